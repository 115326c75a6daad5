"""Packed attention from its definition, in float64, gathered and masked; the layout; gradients of shared keys."""

import pytest
import torch
from devices import GPU
from hypothesis import given, settings
from hypothesis import strategies as st
from sharevl_kernels.prefix_attention import PrefixLayout, choose_backend, prefix_attention
from sharevl_kernels.prefix_attention.reference import masked_attention, reference_attention

CPU = torch.device("cpu")


def tokens(groups):
    """group_T and segment_T of groups (prefix length, lengths of the responses' inputs)."""
    group_T, segment_T, segment = [], [], 0
    for number, (prefix, lengths) in enumerate(groups):
        group_T += [number] * (prefix + sum(lengths))
        segment_T += [0] * prefix
        for length in lengths:
            segment += 1
            segment_T += [segment] * length
    return torch.tensor(group_T), torch.tensor(segment_T)


def inputs(count, heads=4, shared=2, head_dim=8, seed=0, dtype=torch.float64, device=CPU):
    draw = torch.Generator().manual_seed(seed)
    shapes = [(heads, count, head_dim), (heads // shared, count, head_dim), (heads // shared, count, head_dim)]
    return [torch.randn(*s, generator=draw).to(device, dtype).requires_grad_(True) for s in shapes]


rows = st.lists(st.tuples(st.integers(1, 5), st.lists(st.integers(0, 4), max_size=4)), min_size=1, max_size=3)


@settings(max_examples=60, deadline=None)
@given(rows, st.sampled_from([1, 2, 4]), st.sampled_from([prefix_attention, masked_attention]))
def test_every_token_attends_to_what_it_may_see(groups, shared, attention):
    group_T, segment_T = tokens(groups)
    query, key, value = inputs(group_T.numel(), shared=shared)
    layout = PrefixLayout(group_T, segment_T, CPU)
    found = attention(query, key, value, layout, scale=0.4)
    expected = reference_attention(*(x.detach().transpose(0, 1) for x in (query, key, value)), group_T, segment_T, 0.4)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)  # float64, sums of at most 9 terms


@pytest.mark.parametrize("attention", [prefix_attention, masked_attention])
def test_gradients_of_prefix_keys_are_sums_over_the_responses(attention):
    group_T, segment_T = tokens([(4, [2, 3, 1]), (3, [2])])
    layout = PrefixLayout(group_T, segment_T, CPU)
    torch.autograd.gradcheck(lambda *qkv: attention(*qkv, layout), inputs(group_T.numel(), head_dim=3))


def test_the_sequences_are_the_prefixes_and_the_responses_that_have_inputs():
    group_T, segment_T = tokens([(3, [2, 0, 1]), (2, [])])
    sequences = PrefixLayout(group_T, segment_T, CPU).sequences
    assert sequences.queries == (0, 3, 5, 6, 8)
    assert sequences.keys == (0, 3, 8, 12, 14)
    assert sequences.gathered.index_G.tolist() == [0, 1, 2, 0, 1, 2, 3, 4, 0, 1, 2, 5, 6, 7]
    assert sequences.longest == (3, 5)
    assert sequences.queries_N1.tolist() == list(sequences.queries)
    assert sequences.keys_N1.tolist() == list(sequences.keys)
    assert sequences.queries_N1.dtype == sequences.keys_N1.dtype == torch.int32  # what FlashAttention takes


@pytest.mark.parametrize("device", [GPU])
def test_a_layout_reaches_a_gpu_without_waiting_for_it(device):
    group_T, segment_T = tokens([(3, [2, 0, 1]), (2, [])])
    expected = PrefixLayout(group_T, segment_T, CPU).sequences
    try:
        torch.cuda.set_sync_debug_mode("error")
        sequences = PrefixLayout(group_T, segment_T, torch.device(device)).sequences
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert sequences.longest == expected.longest
    for found, wanted in zip(
        (sequences.keys_N1, *sequences.gathered), (expected.keys_N1, *expected.gathered), strict=True
    ):
        assert found.is_cuda
        assert torch.equal(found.cpu(), wanted)


@pytest.mark.parametrize(
    ("group", "segment"),
    [([0, 0, 0], [1, 0, 0]), ([0, 0, 0, 0], [0, 1, 2, 1]), ([0, 1, 0], [0, 0, 1]), ([0, 0, 0], [0, 1, 0])],
    ids=["no prefix first", "torn response", "torn group", "torn prefix"],
)
def test_a_row_that_is_not_packed_is_refused(group, segment):
    with pytest.raises(ValueError, match="out of place"):
        PrefixLayout(torch.tensor(group), torch.tensor(segment), CPU)


def test_shapes_that_do_not_fit_are_refused():
    layout = PrefixLayout(*tokens([(3, [2])]), CPU)
    query, key, value = inputs(5)
    with pytest.raises(ValueError, match="of 5 tokens, there are 4"):
        prefix_attention(query[:, :4], key, value, layout)
    with pytest.raises(ValueError, match="4 query heads cannot share 3"):
        prefix_attention(query, torch.cat([key, key])[:3], torch.cat([value, value])[:3], layout)


def test_the_backend_follows_the_device():
    assert choose_backend(CPU, torch.bfloat16, 128) == "sequences"


# ---------------------------------------------------------------- on a GPU


@pytest.mark.parametrize("device", [GPU])
@pytest.mark.parametrize("shared", [1, 8])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_flash_attention_sees_what_the_mask_shows(device, shared, dtype):
    assert choose_backend(torch.device(device), dtype, 128) == "varlen"
    group_T, segment_T = tokens([(130, [40, 1, 77]), (64, [200])])
    layout = PrefixLayout(group_T, segment_T, torch.device(device))
    case = inputs(group_T.numel(), heads=16, shared=shared, head_dim=128, dtype=dtype, device=device)
    exact = [x.detach().double().requires_grad_(True) for x in case]
    weights = torch.randn(group_T.numel(), 16, 128, device=device)
    found = prefix_attention(*case, layout)
    expected = masked_attention(*exact, layout)
    gradients = torch.autograd.grad((found.float() * weights).sum(), case)
    expected_gradients = torch.autograd.grad((expected * weights.double()).sum(), exact)
    # Half precision throughout: a few roundings of the largest value.
    eps = torch.finfo(dtype).eps
    for value, reference in zip((found, *gradients), (expected, *expected_gradients), strict=True):
        assert (value.double() - reference).abs().max().item() <= 4 * eps * reference.abs().max().item()
