"""Rollouts by transformers' generate: each response from its own stream, out of the distribution that is trained."""

import weakref
from functools import partial

import pytest
import torch
from tiny_models import FAMILIES, encoder, picture, tiny_policy
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sharevl_lite.rollout.engine import Sampling, SamplingRequest
from sharevl_lite.rollout.errors import RolloutError
from sharevl_lite.rollout.hf import HFRolloutEngine, SeededSampler
from sharevl_lite.share import SegmentGroup, pack_row

LENGTH = 12


def sampling(**changes):
    return Sampling(**{"temperature": 0.9, "top_p": 1.0, "max_completion_length": LENGTH, "seed": 5} | changes)


def requests(policy, count=3):
    """Prompts of unequal lengths with two images, one and none."""
    encode, draw = encoder(policy).encode, partial(picture, policy.config.model_type)
    prompts = [
        encode("See <image> and <image>: which?", (draw(2, 3, 1), draw(3, 2, 2))),
        encode("2+3?", ()),
        encode("<image>How many?", (draw(1, 2, 3),)),
    ]
    return [SamplingRequest(f"problem {place}", prompt, count) for place, prompt in enumerate(prompts)]


def sample(policy, asked=None, batch_size=64, **changes):
    """Responses, flat."""
    groups = HFRolloutEngine(policy, batch_size).sample(asked or requests(policy), sampling(**changes))
    return [response for group in groups for response in group]


def favour(policy, tokens, amount):
    """Adds to the logits of some tokens, in every pass from now on."""
    tokenizer = policy.processor.tokenizer
    ids = [tokenizer.convert_tokens_to_ids(token) for token in tokens]

    def raise_logits(_module, _inputs, logits):
        logits = logits.clone()
        logits[..., ids] += amount
        return logits

    policy.base.lm_head.register_forward_hook(raise_logits)
    return ids


def distributions(policy, request, response, temperature, top_p):
    """The distribution [T, V] of each token of a response, from one ordinary forward pass."""
    prompt, ids = request.prompt, torch.tensor(response.token_ids)
    inputs = {"input_ids": torch.cat([prompt.prefix.ids_P, ids])[None]}
    if prompt.images:
        images = [prompt.images[key] for key in prompt.prefix.image_keys]
        inputs |= {
            "pixel_values": torch.cat([image.patches_LD for image in images]),
            "image_grid_thw": torch.stack([image.grid_3 for image in images]),
            "mm_token_type_ids": torch.cat([prompt.token_types_P, torch.zeros_like(ids)])[None],
        }
    with torch.no_grad():
        logits_TV = policy.model(**inputs, use_cache=False).logits[0, -len(ids) - 1 : -1].double()
    logits_TV[:, list(policy.vision_token_ids)] = -torch.inf
    probs_TV = (logits_TV / (temperature or 1.0)).softmax(-1)
    for probs_V in probs_TV:
        # Tokens are kept, likeliest first, until they hold top_p of the mass.
        order = probs_V.argsort(descending=True)
        before = probs_V[order].cumsum(0) - probs_V[order]
        if top_p < 1.0:
            probs_V[order[before >= top_p]] = 0.0
    return probs_TV / probs_TV.sum(-1, keepdim=True)


def recorded_against_forward(policy, response, request, **settings):
    probs_TV = distributions(policy, request, response, **settings)
    expected_T = probs_TV.gather(1, torch.tensor(response.token_ids)[:, None])[:, 0].log()
    # Model and log-softmax in float32 through three layers with wide weights, with and without a cache.
    torch.testing.assert_close(torch.tensor(response.logprobs).double(), expected_T, rtol=0, atol=1e-4)


def flat_requests(asked):
    return [request for request in asked for _ in range(request.count)]


# ---------------------------------------------------------------- one response


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_a_response_is_the_same_whatever_its_batch(family, batch_size):
    policy = tiny_policy(family)
    together, apart = sample(policy), sample(policy, batch_size=batch_size)
    assert [r.token_ids for r in together] == [r.token_ids for r in apart]
    for one, other in zip(together, apart, strict=True):
        # Equal up to the rounding of a differently padded batch in float32.
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-4)
    asked = requests(policy)
    alone = sample(policy, asked=[asked[2]])
    assert [r.token_ids for r in alone] == [r.token_ids for r in together[6:]]


def test_seed_key_and_index_each_give_another_response():
    policy = tiny_policy("qwen2_5_vl")
    asked = requests(policy, count=4)[1]
    drawn = sample(policy, asked=[asked])
    assert drawn == sample(policy, asked=[asked])
    others = sample(policy, asked=[asked], seed=6)
    renamed = sample(policy, asked=[SamplingRequest("another", asked.prompt, 4)])
    assert len({r.token_ids for r in (*drawn, *others, *renamed)}) == 12


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("settings", [(1.0, 1.0), (0.7, 1.0), (1.3, 0.8), (0.0, 1.0)], ids=str)
def test_recorded_log_probs_are_of_the_distribution_drawn_from(family, settings):
    temperature, top_p = settings
    policy = tiny_policy(family)
    favour(policy, ["<|image_pad|>", "<|vision_end|>"], 4.0)  # so that the ban matters
    asked = requests(policy)
    for request, response in zip(
        flat_requests(asked), sample(policy, asked=asked, temperature=temperature, top_p=top_p), strict=True
    ):
        recorded_against_forward(policy, response, request, temperature=temperature, top_p=top_p)


def test_a_checkpoints_own_generation_settings_do_not_bend_the_distribution():
    policy = tiny_policy("qwen2_5_vl")
    expected = sample(policy)
    own = policy.base.generation_config
    # Qwen2.5-VL's checkpoints come with a repetition penalty.
    own.repetition_penalty, own.no_repeat_ngram_size, own.suppress_tokens = 1.5, 2, list(range(100))
    own.max_length, own.temperature, own.top_k, own.do_sample = 40, 0.1, 3, True
    assert sample(policy) == expected
    assert policy.base.generation_config is own
    assert own.repetition_penalty == 1.5


def test_temperature_zero_takes_the_likeliest_token():
    policy = tiny_policy("qwen2_5_vl")
    asked = requests(policy, count=2)
    drawn = sample(policy, asked=asked, temperature=0.0)
    for request, response in zip(flat_requests(asked), drawn, strict=True):
        likeliest = distributions(policy, request, response, temperature=0.0, top_p=1.0).argmax(-1)
        assert list(response.token_ids) == likeliest.tolist()
    assert drawn == sample(policy, asked=asked, temperature=0.0, seed=99)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_vision_tokens_are_never_sampled(temperature):
    policy = tiny_policy("qwen2_5_vl")
    banned = favour(policy, ["<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>"], 1e4)
    assert sorted(banned) == list(policy.vision_token_ids)
    for response in sample(policy, temperature=temperature):
        assert len(response.token_ids) == len(response.logprobs)
        assert not set(response.token_ids) & set(banned)
        assert torch.isfinite(torch.tensor(response.logprobs)).all()


# ---------------------------------------------------------------- where a response ends


def test_a_response_ends_with_its_end_token():
    policy = tiny_policy("qwen2_5_vl")
    ends = favour(policy, ["<|im_end|>", "<|endoftext|>"], 3.0)
    drawn = sample(policy, asked=requests(policy, count=8))
    assert len({len(response.token_ids) for response in drawn}) > 3
    assert {response.token_ids[-1] for response in drawn} >= set(ends)
    for response in drawn:
        assert len(response.logprobs) == len(response.token_ids)
        assert response.truncated == (response.token_ids[-1] not in ends)
        assert not set(response.token_ids[:-1]) & set(ends)
        assert "<|" not in response.text
        assert response.text == policy.processor.tokenizer.decode(response.token_ids, skip_special_tokens=True)


def test_a_response_that_does_not_end_is_truncated():
    policy = tiny_policy("qwen2_5_vl")
    ends = favour(policy, ["<|im_end|>", "<|endoftext|>"], -1e4)
    for response in sample(policy):
        assert response.truncated
        assert len(response.token_ids) == LENGTH
        assert not set(response.token_ids) & set(ends)
    favour(policy, ["<|im_end|>"], 2e4)
    for response in sample(policy, max_completion_length=1):
        assert not response.truncated  # it ended on the last token there was room for
        assert response.token_ids == (ends[0],)


def test_longer_limits_only_add_tokens():
    policy = tiny_policy("qwen2_5_vl")
    for short, long in zip(sample(policy, max_completion_length=4), sample(policy), strict=True):
        assert long.token_ids[:4] == short.token_ids


@pytest.mark.parametrize("training", [False, True])
def test_sampling_leaves_the_policys_mode_alone(training):
    policy = tiny_policy("qwen2_5_vl", checkpointing=True).train(training)
    drawn = sample(policy)
    assert policy.training is policy.base.model.language_model.training is training
    assert drawn == sample(tiny_policy("qwen2_5_vl"))  # no dropout, no checkpointing, whatever the mode


# ---------------------------------------------------------------- the draw


def empirical(scores_V, uniforms_B, temperature=1.0, top_p=1.0, banned=()):
    """Counts [V] of the tokens drawn from the same scores with these uniforms."""
    sampler = SeededSampler(uniforms_B[:, None], temperature, top_p, banned)
    scores_BV = scores_V.expand(len(uniforms_B), -1)
    kept_BV = sampler(torch.zeros(len(uniforms_B), 1, dtype=torch.long), scores_BV)
    assert (torch.isfinite(kept_BV).sum(-1) == 1).all()  # greedy search has no choice
    return kept_BV.argmax(-1).bincount(minlength=len(scores_V)).double()


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.5, 1.0), (2.0, 0.7)])
def test_evenly_spaced_uniforms_draw_each_token_in_proportion(temperature, top_p):
    draw = torch.Generator().manual_seed(0)
    scores_V, count, banned = 3 * torch.randn(40, generator=draw), 20_000, [3, 17]
    uniforms_B = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    probs_V = scores_V.double().index_fill(0, torch.tensor(banned), -torch.inf).div(temperature).softmax(-1)
    order = probs_V.argsort(descending=True)
    probs_V[order[(probs_V[order].cumsum(0) - probs_V[order]) >= top_p]] = 0.0
    expected_V = count * probs_V / probs_V.sum()
    counts_V = empirical(scores_V, uniforms_B, temperature, top_p, banned)
    # An interval of probability p holds p·count evenly spaced points, give or take one at its ends; float32
    # probabilities move the ends by 20,000 · 40 · 6e-8 points.
    assert (counts_V - expected_V).abs().max() <= 1.05
    assert (counts_V[probs_V == 0.0] == 0).all()


def test_random_uniforms_pass_a_chi_square_test():
    draw = torch.Generator().manual_seed(1)
    scores_V, count = torch.randn(30, generator=draw), 50_000
    expected_V = count * scores_V.double().softmax(-1)
    counts_V = empirical(scores_V, torch.rand(count, generator=draw))
    statistic = ((counts_V - expected_V) ** 2 / expected_V).sum().item()
    assert statistic < 58.3  # the 99.9% point of chi-square with 29 degrees of freedom; the seed is fixed


def test_the_ends_of_the_unit_interval_draw_possible_tokens():
    scores_V = torch.tensor([-torch.inf, 0.0, -torch.inf, 1.0, -torch.inf])
    largest = 1.0 - 2.0**-24  # the largest float32 below 1
    assert empirical(scores_V, torch.tensor([0.0, largest])).tolist() == [0, 1, 0, 1, 0]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_half_precision_scores_are_normalised_in_float32_and_left_as_they_are(dtype):
    scores_BV = 5 * torch.randn(4, 60, generator=torch.Generator().manual_seed(2)).to(dtype)
    before_BV = scores_BV.clone()
    sampler = SeededSampler(torch.full((4, 1), 0.5), 0.9, 1.0, [7])
    kept_BV = sampler(torch.zeros(4, 1, dtype=torch.long), scores_BV)
    assert torch.equal(scores_BV, before_BV)
    drawn_B1 = kept_BV.argmax(-1, keepdim=True)
    logits_BV = before_BV.double().index_fill(1, torch.tensor([7]), -torch.inf) / 0.9
    expected_B = logits_BV.log_softmax(-1).gather(1, drawn_B1)[:, 0]
    # float32: a few roundings of numbers up to 20
    torch.testing.assert_close(sampler.logprobs[0].double(), expected_B, rtol=0, atol=1e-5)


def test_what_is_recomputed_stays_so(monkeypatch):
    """`generate` of a model that Unsloth has loaded leaves every layer without (see tests/policy/test_unsloth.py)."""
    policy = tiny_policy("qwen2_5_vl", checkpointing=True).train()
    layers = policy.base.model.language_model.layers
    layers[-1].gradient_checkpointing = False
    flags, generate = [layer.gradient_checkpointing for layer in layers], policy.base.generate

    def forget(*args, **kwargs):
        for layer in layers:
            layer.gradient_checkpointing = False
        return generate(*args, **kwargs)

    monkeypatch.setattr(policy.base, "generate", forget)
    sample(policy)
    assert [layer.gradient_checkpointing for layer in layers] == flags == [True] * (len(flags) - 1) + [False]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("keep", [False, True], ids=["to sample", "to train"])
def test_prompts_are_read_once_and_images_seen_once(family, keep):
    policy = tiny_policy(family)
    asked = requests(policy, count=4)
    asked.append(SamplingRequest("asked again", asked[2].prompt, 2))
    seen, read = [], []
    policy.base.model.visual.register_forward_pre_hook(lambda module, args: seen.append(len(args[0])))
    policy.base.model.language_model.register_forward_pre_hook(
        lambda module, args, kwargs: read.append(tuple(kwargs["inputs_embeds"].shape[:2])), with_kwargs=True
    )
    engine = HFRolloutEngine(policy, 64, keep_images=keep)
    responses = engine.sample(asked, sampling())
    longest = max(request.prompt.prefix.ids_P.numel() for request in asked)
    assert read[0] == (3, longest)
    assert read[1] == (14, 1)
    assert len(seen) == 3
    group = SegmentGroup(asked[0].prompt.prefix, (torch.tensor(responses[0][0].token_ids),), (0,))
    policy(pack_row([group]), asked[0].prompt.images)
    assert len(seen) == (3 if keep else 5)


def test_logits_that_are_no_numbers_end_the_rollout():
    policy = tiny_policy("qwen2_5_vl")
    policy.base.get_output_embeddings().register_forward_hook(lambda _module, _inputs, out: out * torch.nan)
    with pytest.raises(RolloutError, match=r"response to problem 0 are not numbers.*model\.dtype is too narrow"):
        HFRolloutEngine(policy, 8).sample(requests(policy), sampling())


class Held(TorchDispatchMode):
    """Most bytes that tensors made within it held at a time."""

    def __init__(self):
        super().__init__()
        self.sizes, self.most = {}, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in (part for part in tree_leaves(out) if isinstance(part, torch.Tensor)):
            storage = tensor.untyped_storage()
            place = storage._cdata
            if place not in self.sizes:
                self.sizes[place] = storage.nbytes()
                weakref.finalize(storage, self.sizes.pop, place)
                self.most = max(self.most, sum(self.sizes.values()))
        return out


@pytest.mark.parametrize(("top_p", "planned"), [(1.0, 16), (0.9, 30)])
def test_drawing_takes_the_memory_that_is_planned(top_p, planned):
    """Bytes of a logit, those that `generate` hands over (4) included; `memory_plan` counts them."""
    rows, words = 4, 20_000
    scores = torch.randn(rows, words, generator=torch.Generator().manual_seed(0))
    draw = SeededSampler(torch.rand(rows, 1, generator=torch.Generator().manual_seed(1)), 0.9, top_p, [3])
    with Held() as held:
        draw(torch.zeros(rows, 1, dtype=torch.long), scores)
    assert held.most / scores.numel() + 4 == pytest.approx(planned, abs=0.1)
