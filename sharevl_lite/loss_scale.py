"""Gradients that can be trusted: finite in any precision, and large enough for float16.

Loss scaling for float16 bases: the backward pass runs on a larger loss, so that small gradients do not vanish.

float16 ends at 6e-8 below and 65,504 above. The loss is multiplied by a power of two, which costs no digit, and the
float32 gradients of the adapters are divided by it. Where a gradient overflowed, the scale is halved and the update is
computed again: unlike a scaler that skips the step, this never throws samples away.

In other precisions nothing overflows at a smaller scale: a gradient that is not finite ends the run before the weights
take it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import nn

from sharevl_lite.errors import UserError

FILE = "loss_scale.json"
START, LOWEST, HIGHEST = 2.0**16, 1.0, 2.0**24
GROW_AFTER = 200
"""Updates without an overflow after which the scale is doubled."""


class LossScaleError(UserError):
    """Gradients that are not finite, at any scale, with what to do."""


class LossScale:
    """The factor of the loss; 1 for good unless `enabled`."""

    def __init__(self, *, enabled: bool) -> None:
        self.enabled = enabled
        self.scale = START if enabled else 1.0
        self._calm_updates = 0

    def unscale(self, parameters: Iterable[nn.Parameter]) -> bool:
        """Divides the gradients by the scale.

        Returns False where one is not finite: the gradients are dropped, the scale is halved, and the update is to be
        computed again. Raises LossScaleError where there is no smaller scale.
        """
        trained = [parameter for parameter in parameters if parameter.grad is not None]
        gradients = [parameter.grad for parameter in trained if parameter.grad is not None]
        if all(torch.stack([gradient.isfinite().all() for gradient in gradients]).tolist() if gradients else ()):
            if self.enabled:
                torch._foreach_mul_(gradients, 1.0 / self.scale)
                self._grow()
            return True
        if not self.enabled:
            raise LossScaleError(
                "gradients are not finite; the update was not applied. Lower train.learning_rate and go on from a "
                "checkpoint with --resume auto (without one the run starts again), or look for what is extreme in the "
                "step's responses and rewards"
            )
        for parameter in trained:
            parameter.grad = None
        if self.scale <= LOWEST:
            raise LossScaleError(
                "model.dtype: float16 gradients are not finite at any loss scale; use bfloat16 on a GPU that has it, "
                "or float32"
            )
        self.scale /= 2
        self._calm_updates = 0
        return False

    def save(self, folder: Path) -> None:
        """Writes the scale into a checkpoint."""
        if self.enabled:
            (folder / FILE).write_text(json.dumps({"scale": self.scale, "calm_updates": self._calm_updates}) + "\n")

    def load(self, folder: Path) -> None:
        """Takes the scale of a checkpoint."""
        if self.enabled and (folder / FILE).is_file():
            saved = json.loads((folder / FILE).read_text())
            self.scale, self._calm_updates = saved["scale"], saved["calm_updates"]

    def _grow(self) -> None:
        self._calm_updates += 1
        if self._calm_updates >= GROW_AFTER and self.scale < HIGHEST:
            self.scale *= 2
            self._calm_updates = 0
