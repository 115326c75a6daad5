"""A float16 base learns: gradients that would vanish survive by loss scaling."""

import pytest
import torch
from test_packed_scores import ALL, make_case, packed_scores
from tiny_models import FAMILIES, encoder, picture, tiny_policy

from sharevl_lite.config_model import ModelSection
from sharevl_lite.loss_scale import START
from sharevl_lite.policy.errors import PolicyError
from sharevl_lite.policy.hf import load_policy
from sharevl_lite.share import SegmentGroup, pack_row


def policy(dtype):
    """The shipped model with an adapter that is not zero."""
    loaded = load_policy(ModelSection(path="builtin:digits-vl", dtype=dtype), seed=0).train()
    draw = torch.Generator().manual_seed(5)
    for name, parameter in loaded.named_parameters():
        if "lora_B" in name:
            parameter.data = torch.randn(parameter.shape, generator=draw) * 0.02
    return loaded


def gradient(scored, case, *, size, scale):
    """Gradient of a random sum of log-probs of this size, computed on `scale` times the loss."""
    draw = torch.Generator().manual_seed(1)
    scores = packed_scores(scored, case, ALL)
    loss = sum((torch.randn(len(s), generator=draw, dtype=torch.float64) * s.double()).sum() for s in scores) * size
    scored.zero_grad()
    (loss * scale).backward()
    return torch.cat([p.grad.flatten() / scale for p in scored.parameters() if p.requires_grad])


def test_scaling_keeps_gradients_that_float16_would_lose():
    exact, half = policy("float32"), policy("float16")
    case = make_case(exact)
    expected = gradient(exact, case, size=1e-6, scale=1.0)

    def error(scale):
        return float((gradient(half, case, size=1e-6, scale=scale) - expected).norm() / expected.norm())

    # float16 has 11 digits in binary: 0.2% was measured at this scale and at losses ten thousand times as large;
    # without it a third of the gradients is 0 and the error 44%.
    assert error(START) < 0.005
    assert error(1.0) > 0.2


def with_a_picture(scored, family):
    """The policy's log-probs behind a picture."""
    prompt = encoder(scored).encode("<image>?", (picture(family, 2, 3, 1),))
    row = pack_row([SegmentGroup(prompt.prefix, (torch.arange(8),), (0,))])
    return scored(row, prompt.images).logprobs_S.detach()


def widen(scored, share):
    """The last block's MLP gives up to `share` times what float16 holds, as in the published model."""
    *_, projection = (m for m in scored.base.model.visual.blocks[-1].mlp.modules() if isinstance(m, torch.nn.Linear))
    seen = []
    hook = projection.register_forward_hook(lambda _module, _inputs, out: seen.append(float(out.abs().max())))
    with_a_picture(scored, scored.config.model_type)
    hook.remove()
    scored.forget_images()
    factor = share * torch.finfo(torch.float16).max / max(seen)
    for parameter in (projection.weight, projection.bias):
        parameter.data = (parameter.data.float() * factor).to(parameter.dtype)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_vision_tower_beyond_float16_s_range_still_counts(family):
    half = tiny_policy(family, dtype=torch.float16)
    widen(half, 1.5)
    exact = tiny_policy(family, dtype=torch.float16)
    exact.base.model.visual.load_state_dict(half.base.model.visual.state_dict())
    got, expected = with_a_picture(half, family), with_a_picture(exact.float(), family)
    assert got.isfinite().all()
    # Cut off at two thirds of the largest; a norm follows, and the rest of the picture is what it was.
    assert (got - expected).abs().mean() < 0.3 * (expected - with_a_picture(tiny_policy(family), family)).abs().mean()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_picture_whose_features_are_not_numbers_is_refused(family):
    half = tiny_policy(family, dtype=torch.float16)
    half.base.model.visual.merger.register_forward_hook(lambda _module, _inputs, out: out * torch.inf)
    with pytest.raises(
        PolicyError, match=r"overflows in float16 on a picture of 6 x 4 patches; lower model\.max_pixels"
    ):
        with_a_picture(half, family)
