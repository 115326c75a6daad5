"""Scores, gradients and samples of a policy on the second device are those of the CPU."""

import pytest
import tiny_models
import torch
from second_device import DEVICE
from test_packed_scores import ALL, SPLITTING, gradients, make_case, packed_scores, separate_scores
from test_seeded_sampling import favour, requests, sampling
from tiny_models import FAMILIES, tiny_policy

import sharevl_lite.rollout.hf as sampler
from sharevl_lite.policy.attention import use_block_attention
from sharevl_lite.policy.fused import fuse
from sharevl_lite.rollout.hf import HFRolloutEngine
from sharevl_lite.share import pack_row

LENGTH = 12


@pytest.fixture
def policies(monkeypatch):
    """`policies(family, **how)`: the same tiny policy on the CPU and on the second device, where the model was moved
    before it was adapted, as the loaders do."""

    def moved(*args, **settings):
        return tiny_model(*args, **settings).to(DEVICE)

    def make(family, **how):
        here = tiny_policy(family, **how)
        monkeypatch.setattr(tiny_models, "tiny_model", moved)
        there = tiny_policy(family, **how)
        assert {tensor.device for tensor in (*there.parameters(), *there.buffers())} == {DEVICE}
        return here, there

    tiny_model = tiny_models.tiny_model
    return make


def assert_the_same(here, there):
    assert {tensor.device for tensor in there} == {DEVICE}
    for one, other in zip(here, there, strict=True):
        # Log-probs down to -15 and gradients up to 10² in float32, with attention taken apart on the one device.
        torch.testing.assert_close(other.detach().cpu(), one.detach(), rtol=1e-4, atol=1e-3)


def scores_and_slopes(policy, images=None, budget=ALL):
    case = make_case(policy)
    scores = packed_scores(policy.train(), case, budget, images)
    return [*scores, *gradients(policy, scores).values()]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("adapt_vision", [False, True], ids=["text", "vision in blocks, checkpointing"])
def test_packed_rows_score_and_learn(policies, family, adapt_vision):
    both = policies(family, adapt_vision=adapt_vision, checkpointing=adapt_vision)
    if adapt_vision:
        use_block_attention(both[1].base.model.visual)
    budget = ALL if adapt_vision else SPLITTING
    assert_the_same(*(scores_and_slopes(policy, budget=budget) for policy in both))


@pytest.mark.parametrize("family", FAMILIES)
def test_separate_rows_entropies_and_the_reference_are_scored(policies, family):
    found = []
    for policy in policies(family):
        case = make_case(policy)
        with torch.no_grad():
            separate = separate_scores(policy, case)
            with policy.reference():
                row = policy(pack_row(case.groups()), case.images, entropy=True)
        found.append([*separate, *row])
    assert_the_same(*found)


@pytest.mark.parametrize(
    ("family", "dtype"), [("qwen2_5_vl", torch.bfloat16), ("qwen3_vl", torch.float16)], ids=["bfloat16", "float16"]
)
def test_fused_layers_score_and_learn_under_autocast(policies, family, dtype):
    here, there = policies(family, dtype=dtype, checkpointing=True)
    assert fuse(there.model) == fuse(here.model) > 0
    found = scores_and_slopes(there)
    assert {tensor.device for tensor in found} == {DEVICE}
    assert all(tensor.isfinite().all() for tensor in found)
    expected = packed_scores(here, make_case(here), ALL)
    for one, other in zip(expected, found, strict=False):
        # Two lists of operations in half precision: roundings of 2⁻⁸ of logits around 10, through three wide layers.
        torch.testing.assert_close(other.detach().cpu(), one.detach(), rtol=0, atol=0.5)


@pytest.mark.parametrize(
    ("family", "how"),
    [("qwen2_5_vl", {}), ("qwen3_vl", {"top_p": 0.8}), ("qwen2_5_vl", {"temperature": 0.0})],
    ids=["plain", "nucleus", "greedy"],
)
def test_groups_join_and_rows_leave_while_it_samples(policies, family, how, monkeypatch):
    monkeypatch.setattr(sampler, "SLICE", 3)
    found = []
    for policy in policies(family):
        favour(policy, ["<|im_end|>", "<|endoftext|>"], 2.5)
        asked = requests(policy) + [sampler.SamplingRequest("again", one.prompt, 2) for one in requests(policy)]
        groups = HFRolloutEngine(policy, 7).sample(asked, sampling(max_completion_length=LENGTH, **how))
        found.append([response for group in groups for response in group])
    for one, other in zip(*found, strict=True):
        assert one.token_ids == other.token_ids
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-4)
    assert "temperature" in how or len({len(response.token_ids) for response in found[1]}) > 4


def test_images_kept_while_sampling_serve_the_update(policies):
    found = []
    for policy in policies("qwen3_vl"):
        asked = [sampler.SamplingRequest(f"{n}", prompt, 2) for n, prompt in enumerate(make_case(policy).prompts)]
        HFRolloutEngine(policy, 8, keep_images=True).sample(asked, sampling(max_completion_length=3))
        found.append(scores_and_slopes(policy, images={}))
    assert_the_same(*found)
