"""Loss scaling: float16 gradients that would vanish are kept, and an overflow costs a repetition, not an update."""

import json
import math

import pytest
import torch
from torch import nn

from sharevl_lite.loss_scale import GROW_AFTER, HIGHEST, START, LossScale, LossScaleError


def parameters(*gradients):
    made = [nn.Parameter(torch.zeros(len(gradient))) for gradient in gradients]
    for parameter, gradient in zip(made, gradients, strict=True):
        parameter.grad = torch.tensor(gradient)
    return made


def test_a_scale_that_is_off_changes_nothing(tmp_path):
    scale = LossScale(enabled=False)
    (parameter,) = parameters([1e30, 2.0])
    assert scale.scale == 1.0
    assert scale.unscale([parameter, nn.Parameter(torch.zeros(1))])
    assert parameter.grad.tolist() == [torch.tensor(1e30).item(), 2.0]
    assert scale.unscale([])
    scale.save(tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("bad", [math.inf, math.nan])
def test_without_a_scale_gradients_that_are_not_finite_end_the_run(bad):
    with pytest.raises(LossScaleError, match=r"not finite; the update was not applied\. .* --resume auto"):
        LossScale(enabled=False).unscale(parameters([1.0], [bad, 1.0]))


def test_finite_gradients_are_divided_exactly():
    scale = LossScale(enabled=True)
    frozen = nn.Parameter(torch.zeros(1))
    first, second = parameters([0.1 * START, 3.0], [7.0 * START])
    assert scale.unscale([first, frozen, second])
    assert first.grad.tolist() == [torch.tensor(0.1).item(), 3.0 / START]
    assert second.grad.tolist() == [7.0]
    assert scale.scale == START


@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
def test_an_overflow_halves_the_scale_and_drops_the_gradients(bad):
    scale = LossScale(enabled=True)
    first, second = parameters([1.0], [bad])
    assert not scale.unscale([first, second])
    assert first.grad is None
    assert second.grad is None
    assert scale.scale == START / 2


def test_the_scale_grows_back_after_calm_updates_up_to_a_bound():
    scale = LossScale(enabled=True)
    scale.unscale(parameters([math.inf]))
    for _ in range(GROW_AFTER - 1):
        scale.unscale(parameters([1.0]))
    assert scale.scale == START / 2
    scale.unscale(parameters([1.0]))
    assert scale.scale == START
    scale.scale = HIGHEST
    for _ in range(GROW_AFTER):
        scale.unscale(parameters([1.0]))
    assert scale.scale == HIGHEST


def test_gradients_that_are_never_finite_end_the_run_with_advice():
    scale = LossScale(enabled=True)
    while scale.scale > 1.0:
        assert not scale.unscale(parameters([math.nan]))
    with pytest.raises(LossScaleError, match="not finite at any loss scale; use bfloat16"):
        scale.unscale(parameters([math.nan]))


def test_a_checkpoint_holds_the_scale(tmp_path):
    scale = LossScale(enabled=True)
    scale.unscale(parameters([math.inf]))
    scale.unscale(parameters([1.0]))
    scale.save(tmp_path)
    again = LossScale(enabled=True)
    again.load(tmp_path)
    assert (again.scale, again._calm_updates) == (START / 2, 1)
    assert json.loads((tmp_path / "loss_scale.json").read_text()) == {"scale": START / 2, "calm_updates": 1}
