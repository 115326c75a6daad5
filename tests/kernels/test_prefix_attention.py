"""Packed attention from its definition, in float64, gathered and masked; the layout; gradients of shared keys."""

from itertools import accumulate

import pytest
import torch
from devices import GPU
from hypothesis import given, settings
from hypothesis import strategies as st
from sharevl_kernels.prefix_attention import PrefixLayout, Run, block_attention, choose_backend, op, prefix_attention
from sharevl_kernels.prefix_attention.reference import masked_attention, reference_attention
from torch.nn.attention import varlen
from torch.nn.functional import scaled_dot_product_attention

CPU = torch.device("cpu")


def runs_of(groups):
    """Runs of groups (prefix length, lengths of the responses' inputs)."""
    runs = []
    for prefix, lengths in groups:
        stem = len(runs)
        runs += [Run(prefix), *(Run(length, stem, prefix) for length in lengths)]
    return runs


def seen_in(runs):
    """Places that each token sees, from the definition: where its run goes on from, and its run's earlier tokens."""
    starts = [0, *accumulate(run.length for run in runs)]

    def read(number):
        run = runs[number]
        before = [] if run.parent is None else read(run.parent)[: run.shared]
        return before + list(range(starts[number], starts[number + 1]))

    ends = [read(number) for number in range(len(runs))]
    return [ends[number][: run.shared + place + 1] for number, run in enumerate(runs) for place in range(run.length)]


def inputs(count, heads=4, shared=2, head_dim=8, seed=0, dtype=torch.float64, device=CPU):
    draw = torch.Generator().manual_seed(seed)
    shapes = [(heads, count, head_dim), (heads // shared, count, head_dim), (heads // shared, count, head_dim)]
    return [torch.randn(*s, generator=draw).to(device, dtype).requires_grad_(True) for s in shapes]


@st.composite
def trees(draw):
    """Runs that go on from any part of what any earlier one has read, or from nothing."""
    runs, read = [], []
    for number in range(draw(st.integers(1, 7))):
        parent = draw(st.none() | st.integers(0, number - 1)) if number else None
        parent = None if parent is None or not read[parent] else parent
        shared = 0 if parent is None else draw(st.integers(1, read[parent]))
        length = draw(st.integers(0 if number else 1, 4))
        runs.append(Run(length, parent, shared))
        read.append(shared + length)
    return runs


@settings(max_examples=120, deadline=None)
@given(trees(), st.sampled_from([1, 2, 4]), st.sampled_from([prefix_attention, masked_attention]))
def test_every_token_attends_to_what_it_may_see(runs, shared, attention):
    layout = PrefixLayout(runs, CPU)
    query, key, value = inputs(layout.num_tokens, shared=shared)
    found = attention(query, key, value, layout, scale=0.4)
    case = (x.detach().transpose(0, 1) for x in (query, key, value))
    # float64, sums of at most 28 terms
    torch.testing.assert_close(found, reference_attention(*case, seen_in(runs), 0.4), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("attention", [prefix_attention, masked_attention])
def test_gradients_of_prefix_keys_are_sums_over_the_responses(attention):
    runs = [Run(4), Run(2, 0, 4), Run(3, 0, 4), Run(2, 0, 3), Run(1, 3, 5), Run(2, 0, 2), Run(3), Run(2, 6, 3)]
    layout = PrefixLayout(runs, CPU)
    torch.autograd.gradcheck(lambda *qkv: attention(*qkv, layout), inputs(layout.num_tokens, head_dim=3))


def test_the_sequences_are_the_prefixes_and_the_responses_that_have_inputs():
    sequences = PrefixLayout(runs_of([(3, [2, 0, 1]), (2, [])]), CPU).sequences
    assert sequences.queries == (0, 3, 5, 6, 8)
    assert sequences.keys == (0, 3, 8, 12, 14)
    assert sequences.gathered.index_G.tolist() == [0, 1, 2, 0, 1, 2, 3, 4, 0, 1, 2, 5, 6, 7]
    assert sequences.longest == (3, 5)
    assert sequences.queries_N1.tolist() == list(sequences.queries)
    assert sequences.keys_N1.tolist() == list(sequences.keys)
    assert sequences.queries_N1.dtype == sequences.keys_N1.dtype == torch.int32  # what FlashAttention takes


def test_a_prompt_that_begins_like_another_brings_what_it_has_of_its_own():
    """A prompt of 4 with a response of 2; one that has its first 3 and goes on with 2, and its response of 1."""
    layout = PrefixLayout([Run(4), Run(2, 0, 4), Run(2, 0, 3), Run(1, 2, 5)], CPU)
    assert layout.num_tokens == 9
    assert layout.sequences.keys == (0, 4, 10, 15, 21)
    places = [0, 1, 2, 3, *[0, 1, 2, 3, 4, 5], *[0, 1, 2, 6, 7], *[0, 1, 2, 6, 7, 8]]
    assert layout.sequences.gathered.index_G.tolist() == places
    assert layout.mask[0, 0, 8].nonzero()[:, 0].tolist() == [0, 1, 2, 6, 7, 8]


@pytest.mark.parametrize("device", [GPU])
def test_a_layout_reaches_a_gpu_without_waiting_for_it(device):
    runs = [*runs_of([(3, [2, 0, 1]), (2, [])]), Run(2, 0, 2)]
    expected = PrefixLayout(runs, CPU).sequences
    try:
        torch.cuda.set_sync_debug_mode("error")
        sequences = PrefixLayout(runs, torch.device(device)).sequences
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert sequences.longest == expected.longest
    for found, wanted in zip(
        (sequences.keys_N1, *sequences.gathered), (expected.keys_N1, *expected.gathered), strict=True
    ):
        assert found.is_cuda
        assert torch.equal(found.cpu(), wanted)


@pytest.mark.parametrize(
    ("runs", "told"),
    [
        ([Run(3, 0, 1)], "run 0 of a packed row goes on from run 0, which is not an earlier one"),
        ([Run(3), Run(2, 2, 1), Run(2, 0, 3)], "run 1 of a packed row goes on from run 2"),
        ([Run(3), Run(2, 0, 4)], r"run 1 of a packed row goes on from 4 tokens, and its parent \(0\) has read 3"),
        ([Run(3), Run(2, 0, 0)], "run 1 of a packed row goes on from 0 tokens"),
        ([Run(3, None, 2)], r"run 0 of a packed row goes on from 2 tokens, and its parent \(None\) has read 0"),
    ],
)
def test_a_row_that_is_not_packed_is_refused(runs, told):
    with pytest.raises(ValueError, match=told):
        PrefixLayout(runs, CPU)


def test_shapes_that_do_not_fit_are_refused():
    layout = PrefixLayout(runs_of([(3, [2])]), CPU)
    query, key, value = inputs(5)
    with pytest.raises(ValueError, match="of 5 tokens, there are 4"):
        prefix_attention(query[:, :4], key, value, layout)
    with pytest.raises(ValueError, match="4 query heads cannot share 3"):
        prefix_attention(query, torch.cat([key, key])[:3], torch.cat([value, value])[:3], layout)


def test_the_backend_follows_the_device():
    assert choose_backend(CPU, torch.bfloat16, 128) == "sequences"


@pytest.mark.parametrize(
    ("device", "dtype"), [("cpu", torch.float64), pytest.param(*GPU.values, torch.bfloat16, marks=GPU.marks)]
)
def test_blocks_see_themselves_alone(device, dtype):
    query, key, value = inputs(24, heads=4, shared=1, head_dim=16, dtype=dtype, device=device)
    bounds = torch.tensor([0, 7, 8, 24], dtype=torch.int32, device=device)
    mask_TT = torch.block_diag(*(torch.ones(n, n) for n in (7, 1, 16))).bool().to(device)
    exact = [x.detach().double().requires_grad_(True) for x in (query, key, value)]
    found = block_attention(query, key, value, bounds, 16, scale=0.3)
    expected = scaled_dot_product_attention(*(x[None] for x in exact), attn_mask=mask_TT, scale=0.3)[0].transpose(0, 1)
    weights = torch.randn(found.shape, generator=torch.Generator().manual_seed(1)).to(device).double()
    slopes = torch.autograd.grad((found.double() * weights).sum(), (query, key, value))
    expected_slopes = torch.autograd.grad((expected * weights).sum(), exact)
    # Sums of 16 terms in float64; a few roundings of the largest value in half precision.
    limit = 1e-13 if dtype == torch.float64 else 4 * torch.finfo(dtype).eps
    for mine, reference in zip((found, *slopes), (expected, *expected_slopes), strict=True):
        assert (mine.double() - reference).abs().max() <= limit * reference.abs().max()
    with pytest.raises(ValueError, match="24, 16"):
        block_attention(query, key[:2], value[:2], bounds, 16)


@pytest.mark.parametrize("newer", [False, True], ids=["torch 2.11", "torch 2.14"])
def test_flash_attention_is_asked_for_whole_blocks_in_words_that_no_other_backend_takes(monkeypatch, newer):
    """cuDNN's takes over in newer torch where no window is given, and plans anew for every size."""
    asked = []

    def flash_attention(query, key, value, bounds, same, longest, most, *, scale, window_size=(-1, -1)):
        """What its documentation says of a window: so many keys before and behind a query, all where it is -1."""
        assert bounds is same
        assert longest == most
        asked.append(window_size)
        place = torch.arange(query.shape[0])
        block = torch.searchsorted(bounds[1:], place, right=True)
        left, right = (size if size >= 0 else len(place) for size in window_size)
        apart = place[None] - place[:, None]
        seen = (block[None] == block[:, None]) & (apart >= -left) & (apart <= right)
        heads = [x.transpose(0, 1)[None] for x in (query, key, value)]
        return scaled_dot_product_attention(*heads, attn_mask=seen, scale=scale)[0].transpose(0, 1)

    case, bounds = inputs(24, heads=4, shared=1, head_dim=16), torch.tensor([0, 7, 8, 24], dtype=torch.int32)
    expected = block_attention(*case, bounds, 16)
    monkeypatch.setattr(op, "choose_backend", lambda *_: "varlen")
    monkeypatch.setattr(varlen, "varlen_attn", flash_attention)
    monkeypatch.setattr(varlen, "_can_use_cudnn", lambda *_: True, raising=False)
    if not newer:
        monkeypatch.delattr(varlen, "_can_use_cudnn")
    torch.testing.assert_close(block_attention(*case, bounds, 16), expected, rtol=0.0, atol=1e-13)
    assert asked == [(16, 16) if newer else (-1, -1)]


# ---------------------------------------------------------------- on a GPU


@pytest.mark.parametrize("device", [GPU])
@pytest.mark.parametrize("shared", [1, 8])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_flash_attention_sees_what_the_mask_shows(device, shared, dtype):
    assert choose_backend(torch.device(device), dtype, 128) == "varlen"
    runs = [*runs_of([(130, [40, 1, 77]), (64, [200])]), Run(30, 0, 101), Run(90, 6, 131)]
    layout = PrefixLayout(runs, torch.device(device))
    case = inputs(layout.num_tokens, heads=16, shared=shared, head_dim=128, dtype=dtype, device=device)
    exact = [x.detach().double().requires_grad_(True) for x in case]
    weights = torch.randn(layout.num_tokens, 16, 128, device=device)
    found = prefix_attention(*case, layout)
    expected = masked_attention(*exact, layout)
    gradients = torch.autograd.grad((found.float() * weights).sum(), case)
    expected_gradients = torch.autograd.grad((expected * weights.double()).sum(), exact)
    # Half precision throughout: a few roundings of the largest value.
    eps = torch.finfo(dtype).eps
    for value, reference in zip((found, *gradients), (expected, *expected_gradients), strict=True):
        assert (value.double() - reference).abs().max().item() <= 4 * eps * reference.abs().max().item()
