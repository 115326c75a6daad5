"""What ends a step before its first update: a sampler that runs another model, and a loss that is no number."""

from __future__ import annotations

import math

from torch import Tensor

from sharevl_lite.config import Recipe
from sharevl_lite.rollout.errors import RolloutError


def check_gap(recipe: Recipe, step: int, mean: float) -> None:
    """Raises RolloutError where sampler and trainer disagree by a `mean` in nats a token that the recipe rules out."""
    section = recipe.rollout
    if math.isnan(mean):
        raise RolloutError(
            f"step {step}: log-probs of the sampler ({section.engine}) are not numbers; its "
            "weights are damaged, or its precision is too narrow (bfloat16 or float32 instead of float16)"
        )
    if section.max_sampler_gap is not None and not mean <= section.max_sampler_gap:
        raise RolloutError(
            f"rollout.max_sampler_gap: sampler ({section.engine}) and trainer disagree by {mean:.3f} nats a token "
            f"in step {step}, above {section.max_sampler_gap}: they do not run the same model. "
            "Check that both use one base model, precision and processor, or sample with rollout.engine: hf; null "
            "switches the check off"
        )


def check_loss(step: int, loss: Tensor) -> None:
    """Raises RolloutError where log-probs of the trainer were no numbers: no scale and no other step mends that."""
    if not bool(loss.isfinite()):
        raise RolloutError(
            f"step {step}: the loss is not finite, nor are log-probs of the policy; the update was "
            "not applied. Where the run has diverged, go on from an earlier checkpoint with a lower "
            "train.learning_rate; else model.dtype: float16 may be too narrow, or the weights are damaged"
        )
