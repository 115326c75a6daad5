"""A float16 base learns: gradients that would vanish survive by loss scaling."""

import torch
from test_packed_scores import ALL, make_case, packed_scores

from sharevl_lite.config_model import ModelSection
from sharevl_lite.loss_scale import START
from sharevl_lite.policy.hf import load_policy


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
