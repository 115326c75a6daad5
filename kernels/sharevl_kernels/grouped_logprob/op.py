"""Log-probs of many targets from hidden states and a language-model head, without the logits.

    log p_t = z_y - log Σ_v exp(z_v),   z = hidden[rows[t]] · weightᵀ / temperature,   y = targets[t]

"Grouped": one call covers every (problem, scoring variant, response) of a packed row. `rows` says which hidden row
predicts each target (the last prompt token predicts the first token of all its responses), and `cu_seqlens` which
targets make up a response.

Under LoRA the head is frozen, so that only ∂log p_t/∂h_t is needed, and that does not depend on the gradient that comes
back: the forward pass computes it (two products in all, nothing is computed again) and the backward pass scales its
rows. A head that is trained itself takes the slow way: torch ops with logits computed again in the backward pass.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sharevl_kernels.devices import runs_triton
from sharevl_kernels.grouped_logprob.body import torch_logprobs, trainable_logprobs, wide_dtype
from sharevl_kernels.index_sum import index_sum, sort_index


class GroupedLogprobs(NamedTuple):
    """Per target: log-probs and, where asked for, entropies (nats, detached); per segment: sums of log-probs."""

    logprobs_T: Float[Tensor, "T"]
    entropies_T: Float[Tensor, "T"] | None
    sums_B: Float[Tensor, "B"] | None


def grouped_logprob(
    hidden_SH: Float[Tensor, "S H"],
    weight_VH: Float[Tensor, "V H"],
    targets_T: Int[Tensor, "T"],
    *,
    rows_T: Int[Tensor, "T"] | None = None,
    cu_seqlens_B1: Int[Tensor, "B1"] | None = None,
    temperature: float = 1.0,
    return_entropy: bool = False,
) -> GroupedLogprobs:
    """Log-probs (nats) of the targets; float32, or float64 for float64 inputs.

    `rows_T[t]` is the hidden row that predicts target t (None: row t); rows may repeat, in any order. `cu_seqlens_B1`
    starts at 0 and ends at T; segment b is the targets `cu_seqlens_B1[b]:cu_seqlens_B1[b + 1]` and may be empty (sum
    0). Differentiable once in the hidden states, and in the weight if it asks for a gradient (slower, and with more
    memory). Under autocast, float32 inputs are cast as for a linear layer.

    On a GPU the values of targets and segments are not looked at, which would wait for the device: a target outside
    [0, V) gives 0 with a gradient of 0 there, and segments must be right. On a CPU both are a ValueError. One look at
    the results, for targets of almost no probability, does wait once a call, so a CUDA graph cannot hold it. Raises
    ValueError for shapes or dtypes that do not fit, and a temperature that is not positive.
    """
    hidden_SH, weight_VH = _autocast(hidden_SH, weight_VH)
    _check(hidden_SH, weight_VH, targets_T, rows_T, cu_seqlens_B1, temperature)
    if weight_VH.requires_grad and torch.is_grad_enabled():
        logprobs_T, entropies_T = _with_trainable_head(
            hidden_SH, weight_VH, targets_T, rows_T, temperature, return_entropy
        )
    else:
        want_unit = hidden_SH.requires_grad and torch.is_grad_enabled()
        logprobs_T, entropies_T, _ = _grouped_logprob(
            hidden_SH, weight_VH, targets_T, rows_T, temperature, want_unit, return_entropy
        )
    sums_B = None
    if cu_seqlens_B1 is not None:
        sums_B = torch.segment_reduce(logprobs_T, "sum", offsets=cu_seqlens_B1.to(logprobs_T.device), initial=0.0)
    return GroupedLogprobs(logprobs_T, entropies_T.detach() if return_entropy else None, sums_B)


def _autocast(hidden_SH: Tensor, weight_VH: Tensor) -> tuple[Tensor, Tensor]:
    device = hidden_SH.device.type
    if not torch.is_autocast_enabled(device) or torch.float64 in (hidden_SH.dtype, weight_VH.dtype):
        return hidden_SH, weight_VH
    dtype = torch.get_autocast_dtype(device)
    return hidden_SH.to(dtype), weight_VH.to(dtype)


def _check(
    hidden_SH: Tensor,
    weight_VH: Tensor,
    targets_T: Tensor,
    rows_T: Tensor | None,
    cu_seqlens_B1: Tensor | None,
    temperature: float,
) -> None:
    if hidden_SH.ndim != 2 or weight_VH.ndim != 2 or hidden_SH.shape[1] != weight_VH.shape[1]:
        raise ValueError(
            f"hidden_SH [S, H] and weight_VH [V, H] must agree in H, got {tuple(hidden_SH.shape)} and "
            f"{tuple(weight_VH.shape)}"
        )
    if hidden_SH.dtype != weight_VH.dtype:
        raise ValueError(f"hidden_SH is {hidden_SH.dtype}, weight_VH {weight_VH.dtype}: cast one, or use autocast")
    if not temperature > 0.0:  # nor NaN
        raise ValueError(f"temperature must be positive, got {temperature}")
    rows = hidden_SH.shape[0] if rows_T is None else rows_T.numel()
    if targets_T.numel() != rows:
        raise ValueError(f"every target needs one row: {targets_T.numel()} targets for {rows} rows")
    vocabulary = weight_VH.shape[0]
    on_cpu = targets_T.device.type == "cpu" and not torch.compiler.is_compiling()
    if on_cpu and targets_T.numel() and not bool(((targets_T >= 0) & (targets_T < vocabulary)).all()):
        raise ValueError(f"targets_T holds an id outside [0, {vocabulary})")
    if cu_seqlens_B1 is None or cu_seqlens_B1.device.type != "cpu" or torch.compiler.is_compiling():
        return
    lengths_B = cu_seqlens_B1.diff()
    ends = (int(cu_seqlens_B1[0]), int(cu_seqlens_B1[-1])) if cu_seqlens_B1.numel() else None
    if ends != (0, targets_T.numel()) or bool((lengths_B < 0).any()):
        raise ValueError(f"cu_seqlens_B1 must rise from 0 to {targets_T.numel()}, got {cu_seqlens_B1.tolist()}")


def _with_trainable_head(
    hidden_SH: Tensor,
    weight_VH: Tensor,
    targets_T: Tensor,
    rows_T: Tensor | None,
    temperature: float,
    want_entropy: bool,
) -> tuple[Tensor, Tensor]:
    hidden_TH = hidden_SH if rows_T is None else hidden_SH.index_select(0, rows_T)
    known_T = (targets_T >= 0) & (targets_T < weight_VH.shape[0])
    logprobs_T, entropies_T = trainable_logprobs(
        hidden_TH, weight_VH, targets_T.where(known_T, 0), temperature, want_entropy=want_entropy
    )
    return logprobs_T * known_T, entropies_T * known_T if want_entropy else entropies_T


@torch.library.custom_op("sharevl::grouped_logprob", mutates_args=())
def _grouped_logprob(
    hidden_SH: Tensor,
    weight_VH: Tensor,
    targets_T: Tensor,
    rows_T: Tensor | None,
    temperature: float,
    want_unit: bool,
    want_entropy: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probs [T], entropies [T] and unit gradients ∂log p/∂h [T, H]; the last two empty where not wanted."""
    hidden_TH = hidden_SH.contiguous() if rows_T is None else hidden_SH.index_select(0, rows_T)
    device = hidden_SH.device.type
    with torch.cuda.device_of(hidden_SH), torch.autocast(device, enabled=False):
        if runs_triton(weight_VH) and targets_T.numel():
            from sharevl_kernels.grouped_logprob.launch import kernel_logprobs

            return kernel_logprobs(
                hidden_TH,
                weight_VH.contiguous(),
                targets_T.contiguous(),
                temperature,
                want_unit=want_unit,
                want_entropy=want_entropy,
            )
        known_T = (targets_T >= 0) & (targets_T < weight_VH.shape[0])
        results = torch_logprobs(
            hidden_TH,
            weight_VH,
            targets_T.where(known_T, 0),
            temperature,
            want_unit=want_unit,
            want_entropy=want_entropy,
        )
    logprobs_T, entropies_T, unit_TH = results
    logprobs_T.masked_fill_(~known_T, 0.0)
    if want_entropy:
        entropies_T.masked_fill_(~known_T, 0.0)
    if want_unit:
        unit_TH.masked_fill_(~known_T[:, None], 0.0)
    return logprobs_T, entropies_T, unit_TH


@_grouped_logprob.register_fake
def _(
    hidden_SH: Tensor,
    weight_VH: Tensor,
    targets_T: Tensor,
    rows_T: Tensor | None,
    temperature: float,
    want_unit: bool,
    want_entropy: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    count, width, wide = targets_T.shape[0], hidden_SH.shape[1], wide_dtype(hidden_SH.dtype)
    return (
        hidden_SH.new_empty(count, dtype=wide),
        hidden_SH.new_empty(count if want_entropy else 0, dtype=wide),
        hidden_SH.new_empty((count if want_unit else 0, width), dtype=wide),
    )


def _save(ctx: torch.autograd.function.FunctionCtx, inputs: tuple, output: tuple) -> None:
    hidden_SH, _, _, rows_T, *_ = inputs
    ctx.set_materialize_grads(False)  # or zeros as large as the unit gradients are made for them
    ctx.save_for_backward(output[2], rows_T)
    ctx.shape, ctx.dtype = hidden_SH.shape, hidden_SH.dtype  # type: ignore[attr-defined]


def _differentiate(
    ctx: torch.autograd.function.FunctionCtx, grad_T: Tensor | None, *_: Tensor | None
) -> tuple[Tensor | None, ...]:
    if grad_T is None:
        return (None,) * 7
    unit_TH, rows_T = ctx.saved_tensors  # type: ignore[attr-defined]
    hidden_grad_SH = _scale_rows(unit_TH, rows_T, grad_T, ctx.shape[0])  # type: ignore[attr-defined]
    return hidden_grad_SH.to(ctx.dtype), None, None, None, None, None, None  # type: ignore[attr-defined]


_grouped_logprob.register_autograd(_differentiate, setup_context=_save)


@torch.library.custom_op("sharevl::grouped_logprob_backward", mutates_args=())
def _scale_rows(unit_TH: Tensor, rows_T: Tensor | None, grad_T: Tensor, num_rows: int) -> Tensor:
    """Σ over the targets t of hidden row s of grad_t·unit_t. An op of its own, so that a second derivative, which the
    unit gradients cannot give, is an error and not a wrong number."""
    if rows_T is None:
        return unit_TH * grad_T[:, None]
    return index_sum(unit_TH, sort_index(rows_T, num_rows), scales_G=grad_T)


@_scale_rows.register_fake
def _(unit_TH: Tensor, rows_T: Tensor | None, grad_T: Tensor, num_rows: int) -> Tensor:
    return unit_TH.new_empty((num_rows, unit_TH.shape[1]))
