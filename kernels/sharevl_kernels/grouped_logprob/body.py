"""grouped_logprob in plain torch, for any device and dtype.

Serves CPUs, float64, GPUs without the kernels, the rows that the kernels leave (see `launch.py`), and a head that is
trained itself. Rows go in chunks, so that a chunk of logits is all that exists of them. The frozen head costs two
products, logits and the unit gradient ∂log p/∂h, as in the kernels.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.checkpoint import checkpoint

CHUNK_ELEMENTS = 1 << 26
"""Logits of a chunk: 256 MiB in float32; a few times that exist at once."""


def wide_dtype(dtype: torch.dtype) -> torch.dtype:
    """What log-probs come in: float32, or float64 for float64 inputs."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def wide_product(left_AB: Float[Tensor, "A B"], right_BC: Float[Tensor, "B C"]) -> Float[Tensor, "A C"]:
    """left @ right in at least float32. Half precision on a GPU is not rounded on the way; on a CPU it is."""
    if left_AB.is_cuda and left_AB.dtype in (torch.bfloat16, torch.float16):
        return _WideProduct.apply(left_AB, right_BC)
    return (left_AB @ right_BC).to(wide_dtype(left_AB.dtype))


class _WideProduct(torch.autograd.Function):
    """left @ right, not rounded to the factors' dtype: torch's own `mm` with an `out_dtype` has no gradient."""

    @staticmethod
    def forward(left_AB: Tensor, right_BC: Tensor) -> Tensor:
        return _wide_mm(left_AB, right_BC)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad_AC: Tensor) -> tuple[Tensor | None, Tensor | None]:
        left_AB, right_BC = ctx.saved_tensors
        grad_AC = grad_AC.to(left_AB.dtype)
        needs_left, needs_right = ctx.needs_input_grad
        return grad_AC @ right_BC.T if needs_left else None, left_AB.T @ grad_AC if needs_right else None


def _wide_mm(left_AB: Tensor, right_BC: Tensor) -> Tensor:
    return torch.mm(left_AB, right_BC, out_dtype=torch.float32)


def torch_logprobs(
    hidden_TH: Float[Tensor, "T H"],
    weight_VH: Float[Tensor, "V H"],
    targets_T: Int[Tensor, "T"],
    temperature: float,
    *,
    want_unit: bool,
    want_entropy: bool,
    chunk_elements: int | None = None,
) -> tuple[Float[Tensor, "T"], Float[Tensor, "T_or_0"], Float[Tensor, "T H"]]:
    """Log-probs, entropies [T] and unit gradients [T, H] (empty where not wanted); targets must be in [0, V).

    `chunk_elements`: logits of a chunk of rows (None: CHUNK_ELEMENTS).
    """
    wide = wide_dtype(hidden_TH.dtype)
    count, width = hidden_TH.shape
    logprobs_T = hidden_TH.new_empty(count, dtype=wide)
    entropies_T = hidden_TH.new_empty(count if want_entropy else 0, dtype=wide)
    unit_TH = hidden_TH.new_empty((count if want_unit else 0, width), dtype=wide)
    rows = max(1, (chunk_elements or CHUNK_ELEMENTS) // weight_VH.shape[0])
    for start in range(0, count, rows):
        chosen = slice(start, start + rows)
        relative_CV, logprobs_C = _relative_logits(hidden_TH[chosen], weight_VH, targets_T[chosen], temperature)
        logprobs_T[chosen] = logprobs_C
        if want_entropy:
            entropies_T[chosen] = _entropies(relative_CV, logprobs_C)
        if want_unit:
            pull_CV = _pull(relative_CV, logprobs_C, targets_T[chosen]).to(weight_VH.dtype)
            unit_TH[chosen] = wide_product(pull_CV, weight_VH) / temperature
    return logprobs_T, entropies_T, unit_TH


def trainable_logprobs(
    hidden_TH: Float[Tensor, "T H"],
    weight_VH: Float[Tensor, "V H"],
    targets_T: Int[Tensor, "T"],
    temperature: float,
    *,
    want_entropy: bool,
) -> tuple[Float[Tensor, "T"], Float[Tensor, "T_or_0"]]:
    """The same with a gradient for the head as well: a chunk's logits are computed again in the backward pass."""
    rows = max(1, CHUNK_ELEMENTS // weight_VH.shape[0])
    logprobs, entropies = [], []
    for start in range(0, max(1, hidden_TH.shape[0]), rows):
        chosen = slice(start, start + rows)
        logprobs_C, entropies_C = checkpoint(
            _chunk, hidden_TH[chosen], weight_VH, targets_T[chosen], temperature, want_entropy, use_reentrant=False
        )
        logprobs.append(logprobs_C)
        entropies.append(entropies_C)
    return torch.cat(logprobs), torch.cat(entropies)


def _chunk(
    hidden_CH: Tensor, weight_VH: Tensor, targets_C: Tensor, temperature: float, want_entropy: bool
) -> tuple[Tensor, Tensor]:
    relative_CV, logprobs_C = _relative_logits(hidden_CH, weight_VH, targets_C, temperature)
    with torch.no_grad():
        entropies_C = _entropies(relative_CV, logprobs_C) if want_entropy else logprobs_C.new_empty(0)
    return logprobs_C, entropies_C


def _relative_logits(
    hidden_CH: Float[Tensor, "C H"], weight_VH: Float[Tensor, "V H"], targets_C: Int[Tensor, "C"], temperature: float
) -> tuple[Float[Tensor, "C V"], Float[Tensor, "C"]]:
    """z_v - z_y, and log p(y) = -log(1 + Σ_{v≠y} exp(z_v - z_y))."""
    logits_CV = wide_product(hidden_CH, weight_VH.T) / temperature
    target_C1 = targets_C[:, None]
    relative_CV = logits_CV - logits_CV.gather(1, target_C1)
    others_C = relative_CV.scatter(1, target_C1, -torch.inf).logsumexp(1)
    return relative_CV, -torch.logaddexp(others_C.new_zeros(()), others_C)


def _entropies(relative_CV: Float[Tensor, "C V"], logprobs_C: Float[Tensor, "C"]) -> Float[Tensor, "C"]:
    all_CV = relative_CV + logprobs_C[:, None]
    return -(all_CV.exp() * all_CV).sum(1)


def _pull(
    relative_CV: Float[Tensor, "C V"], logprobs_C: Float[Tensor, "C"], targets_C: Int[Tensor, "C"]
) -> Float[Tensor, "C V"]:
    """∂log p(y)/∂z_v: -p_v, and 1 - p_y at the target."""
    probs_CV = (relative_CV + logprobs_C[:, None]).exp()
    return probs_CV.neg_().scatter_(1, targets_C[:, None], -torch.expm1(logprobs_C)[:, None])
