"""Sampling by transformers a few tokens at a time: who leaves, who joins, and that no response is another for it."""

import pytest
import torch
from test_seeded_sampling import favour, recorded_against_forward, requests, sampling
from tiny_models import FAMILIES, tiny_policy
from torch.nn.functional import pad
from transformers import Cache
from transformers.cache_utils import DynamicLayer

import sharevl_lite.rollout.hf as sampler
from sharevl_lite.rollout.continuous import BufferPool, Context, PreallocatedLayer, join
from sharevl_lite.rollout.hf import HFRolloutEngine

LENGTH = 30


@pytest.fixture
def policy(request, monkeypatch):
    """Its responses end after 1 to 30 tokens; five slices and a part of one."""
    monkeypatch.setattr(sampler, "SLICE", 5)
    policy = tiny_policy(getattr(request, "param", "qwen2_5_vl"))
    favour(policy, ["<|im_end|>", "<|endoftext|>"], 2.0)
    return policy


def passes(policy):
    """Appends rows, tokens read and tokens attended to, for each pass of the text model from now on."""
    seen = []

    def note(_module, _args, kwargs):
        rows, read = kwargs["inputs_embeds"].shape[:2]
        cache = kwargs.get("cache", kwargs.get("past_key_values"))  # new and old name
        seen.append((rows, read, cache.get_seq_length() + read))

    policy.base.model.language_model.register_forward_pre_hook(note, with_kwargs=True)
    return seen


def sample(policy, asked, batch_size):
    groups = HFRolloutEngine(policy, batch_size).sample(asked, sampling(max_completion_length=LENGTH))
    return [response for group in groups for response in group]


@pytest.mark.parametrize("policy", FAMILIES, indirect=True)
def test_responses_are_those_of_any_batch(policy):
    asked = requests(policy, count=6)
    together = sample(policy, asked, 64)
    lengths = [len(response.token_ids) for response in together]
    assert len(set(lengths)) > 8
    assert max(lengths) == LENGTH
    for batch_size in (1, 4, 8):
        apart = sample(policy, asked, batch_size)
        assert [r.token_ids for r in apart] == [r.token_ids for r in together]
        for one, other in zip(together, apart, strict=True):
            assert one.logprobs == pytest.approx(other.logprobs, abs=1e-4)  # differently padded, float32
    asked_for = [request for request in asked for _ in range(6)]
    for request, response in zip(asked_for, apart, strict=True):
        recorded_against_forward(policy, response, request, temperature=0.9, top_p=1.0)


def test_rows_leave_when_their_responses_end(policy):
    asked = requests(policy, count=8)
    seen = passes(policy)
    lengths = [len(response.token_ids) for response in sample(policy, asked, 64)]
    decoded = [rows for rows, read, _ in seen if read == 1]
    expected = [sum(length > start // 5 * 5 for length in lengths) for start in range(max(lengths))]
    assert decoded == expected
    assert decoded[-1] < decoded[0] / 2


def test_waiting_groups_join_whole_and_their_prompts_are_read_once(policy):
    asked = requests(policy, count=4) + [
        type(one)(f"again {number}", one.prompt, 4) for number in range(3) for one in requests(policy)
    ]
    seen = passes(policy)
    sample(policy, asked, 10)
    decoded, prompts = [rows for rows, read, _ in seen if read == 1], [rows for rows, read, _ in seen if read > 1]
    assert max(decoded) <= 10
    assert prompts[0] == 2  # two groups of four, and no half of a third
    assert sum(prompts) == len(asked)  # equal prompts are one where they join together, which none do here
    assert len(prompts) > 4


def test_more_responses_than_the_batch_holds_are_sampled_in_parts(policy):
    (first, *_) = requests(policy, count=7)
    seen = passes(policy)
    responses = sample(policy, [first], 3)
    assert [r.token_ids for r in responses] == [r.token_ids for r in sample(policy, [first], 64)]
    assert [rows for rows, read, _ in seen if read > 1] == [1, 1, 1, 1]  # of 3, 3, 1, and all at once


def test_nothing_is_asked_and_nothing_is_read(policy):
    seen = passes(policy)
    assert HFRolloutEngine(policy, 4).sample(requests(policy, count=0), sampling()) == [[], [], []]
    assert HFRolloutEngine(policy, 4).sample([], sampling()) == []
    assert not seen


def test_padding_that_no_row_needs_is_dropped(policy):
    """The longest prompt's rows leave in time; what the others attend to gets shorter, as long as their longest."""
    longest, short, middle = requests(policy, count=4)
    asked = [type(longest)("long", longest.prompt, 1), short, middle]
    seen = passes(policy)
    responses = sample(policy, asked, 64)
    prompts = [longest.prompt] + [short.prompt] * 4 + [middle.prompt] * 4
    widths = [width for _, read, width in seen if read == 1]
    assert len(responses[0].token_ids) < max(len(response.token_ids) for response in responses) - 5
    for step, width in enumerate(widths):
        slice_start = step // 5 * 5
        running = [
            prompt.prefix.ids_P.numel()
            for prompt, response in zip(prompts, responses, strict=True)
            if len(response.token_ids) > slice_start
        ]
        assert width == max(running) + step


# ---------------------------------------------------------------- keys and values


def context(lengths, width, seed):
    """A context of one layer whose rows have these many tokens; keys are the tokens' ids."""
    ids_BL = torch.randint(1, 1000, (len(lengths), width), generator=torch.Generator().manual_seed(seed))
    mask_BL = torch.stack([pad(torch.ones(length), (width - length, 0)) for length in lengths]).long()
    layer = DynamicLayer()
    keys = ids_BL[:, None, :-1, None].float().expand(-1, 2, -1, 3).contiguous()
    layer.update(keys, -keys)
    return Context(ids_BL, mask_BL, torch.tensor(lengths)[:, None] * 10, Cache(layers=[layer]))


@pytest.mark.parametrize("tokens", [4, 9])
def test_join_aligns_rows_on_their_last_tokens(tokens):
    one, other = context([3, 9, 5], 9, seed=1), context([4, 2], 6, seed=2)
    rows = [(one, 2), (one, 0), (other, 0), (other, 1), (other, 0)]
    expected = [(c.ids_BL[row, -n:], 10 * n) for c, row in rows for n in [int(c.mask_BL[row].sum())]]
    joined = join([(one, [2, 0]), (other, [0, 1, 0])], BufferPool(5, tokens))
    assert joined.ids_BL.shape == (5, 5)  # the row of nine tokens is not among them
    keys, values = joined.cache.layers[0].keys, joined.cache.layers[0].values
    assert keys.shape == values.shape == (5, 2, 4, 3)
    assert torch.equal(values, -keys)
    for row, (ids, after) in enumerate(expected):
        assert torch.equal(joined.ids_BL[row, 5 - len(ids) :], ids)
        assert joined.mask_BL[row].tolist() == [0] * (5 - len(ids)) + [1] * len(ids)
        assert torch.equal(keys[row, 1, 5 - len(ids) :, 2], ids[:-1].float())
        assert joined.after_B1[row].item() == after
    assert len(one.cache) == len(other.cache) == 0  # their memory is given back


def test_a_preallocated_layer_grows_in_its_own_memory():
    draw = torch.Generator().manual_seed(0)
    buffers = torch.randn(2, 3, 2, 10, 4, generator=draw)
    layer, plain = PreallocatedLayer(buffers[0], buffers[1], 2, 4), DynamicLayer()  # the third row is nobody's
    plain.update(buffers[0][:2, :, :4].clone(), buffers[1][:2, :, :4].clone())
    third = buffers[:, 2].clone()
    for new in (1, 3, 1, 1):
        keys, values = torch.randn(2, 2, 2, new, 4, generator=draw)
        for mine, theirs in zip(layer.update(keys, values), plain.update(keys, values), strict=True):
            assert torch.equal(mine, theirs)
        assert layer.get_seq_length() == plain.get_seq_length()
        assert layer.get_mask_sizes(1) == plain.get_mask_sizes(1)
        assert layer.keys.data_ptr() == buffers.data_ptr()
    assert torch.equal(buffers[:, 2], third)
    with pytest.raises(RuntimeError, match="exceeds dimension size"):
        layer.update(keys, values)


def test_padding_is_zero_in_a_buffer_that_others_have_left():
    """Values under a mask count as 0 times what they are, and 0 times infinity is none."""
    pool = BufferPool(2, 6)
    pool.release(torch.full((2, 2, 6, 3), torch.inf))
    pool.release(torch.full((2, 2, 6, 3), torch.inf))
    joined = join([(context([2], 2, seed=3), [0]), (context([5], 5, seed=4), [0])], pool)
    for part in (joined.cache.layers[0].keys, joined.cache.layers[0].values):
        assert part.shape == (2, 2, 4, 3)
        assert torch.equal(part[0, :, :3], torch.zeros(2, 3, 3))
        assert part.isfinite().all()


def test_a_rollout_has_one_buffer_more_than_its_layers(policy, monkeypatch):
    """However often rows leave and join; what a GPU's allocator is asked for does not depend on it."""
    made = []
    acquire = BufferPool.acquire

    def count(pool, like_BHLD):
        free = sum(map(len, pool._free.values()))
        buffer = acquire(pool, like_BHLD)
        made.append((tuple(buffer.shape), buffer.data_ptr(), free == 0))
        return buffer

    monkeypatch.setattr(BufferPool, "acquire", count)
    asked = requests(policy, count=6)
    sample(policy, asked, 12)
    layers = policy.base.config.get_text_config().num_hidden_layers
    longest = max(request.prompt.prefix.ids_P.numel() for request in asked)
    assert {shape[0] for shape, _, _ in made} == {12}
    assert {shape[2] for shape, _, _ in made} == {longest + LENGTH}
    assert len(made) > 6 * layers  # several times
    assert len({address for _, address, _ in made}) == sum(new for _, _, new in made) == 2 * (layers + 1)


def test_nothing_moves_while_nobody_leaves_or_joins(policy, monkeypatch):
    favour(policy, ["<|im_end|>", "<|endoftext|>"], -100.0)
    joined = []
    monkeypatch.setattr(sampler, "join", lambda *words: joined.append(0) or join(*words))
    (first, *_) = requests(policy, count=2)
    responses = sample(policy, [first], 2)
    assert [len(response.token_ids) for response in responses] == [LENGTH, LENGTH]
    assert len(joined) == 1


def test_cudnn_plans_no_attention_while_sampling(policy):
    """On Hopper it is tried first, and plans for every number of keys, for tens of milliseconds each."""
    enabled = []
    policy.base.register_forward_pre_hook(lambda *_: enabled.append(torch.backends.cuda.cudnn_sdp_enabled()))
    before = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(True)
    try:
        sample(policy, requests(policy), 4)
        assert torch.backends.cuda.cudnn_sdp_enabled()
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)
    assert enabled
    assert not any(enabled)
