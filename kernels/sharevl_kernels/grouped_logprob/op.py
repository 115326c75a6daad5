"""log p(target) = z_y - logsumexp(z), z = hidden · weightᵀ / temperature, for many targets in bounded memory.

Targets are taken in chunks, and under autograd a chunk's logits are recomputed in the backward pass, so no more than
one chunk of logits exists at a time. Logits are normalised in at least float32. The pass with and the pass without
gradients run the same operations on the same chunks, so an on-policy ratio is exactly 1.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.checkpoint import checkpoint

CHUNK = 2048


def grouped_logprob(
    hidden_SH: Float[Tensor, "S H"],
    weight_VH: Float[Tensor, "V H"],
    targets_T: Int[Tensor, "T"],
    *,
    rows_T: Int[Tensor, "T"] | None = None,
    temperature: float = 1.0,
) -> tuple[Float[Tensor, "T"], Float[Tensor, "T"]]:
    """Log-probs [T] of the targets and the entropies [T] (nats, detached) of the distributions they come from.

    `rows_T[t]` is the hidden row that predicts target t (None: row t); rows may repeat. Both results are float32, or
    float64 for float64 inputs. Raises ValueError for a target outside [0, V) or unequal numbers of targets and rows.
    """
    vocabulary = weight_VH.shape[0]
    rows = hidden_SH.shape[0] if rows_T is None else rows_T.numel()
    if targets_T.numel() != rows:
        raise ValueError(f"every target needs one row: {targets_T.numel()} targets for {rows} rows")
    if targets_T.numel() and not bool(((targets_T >= 0) & (targets_T < vocabulary)).all()):
        raise ValueError(f"targets_T holds an id outside [0, {vocabulary})")
    logprobs, entropies = [], []
    for start in range(0, targets_T.numel(), CHUNK):
        chosen = slice(start, start + CHUNK)
        hidden_CH = hidden_SH[chosen] if rows_T is None else hidden_SH.index_select(0, rows_T[chosen])
        if torch.is_grad_enabled() and (hidden_CH.requires_grad or weight_VH.requires_grad):
            logp_C, entropy_C = checkpoint(
                _chunk, hidden_CH, weight_VH, targets_T[chosen], temperature, use_reentrant=False
            )
        else:
            logp_C, entropy_C = _chunk(hidden_CH, weight_VH, targets_T[chosen], temperature)
        logprobs.append(logp_C)
        entropies.append(entropy_C)
    if not logprobs:
        empty = hidden_SH.new_zeros(0, dtype=_wide(hidden_SH.dtype))
        return empty, empty
    return torch.cat(logprobs), torch.cat(entropies)


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _chunk(
    hidden_CH: Float[Tensor, "C H"], weight_VH: Float[Tensor, "V H"], targets_C: Int[Tensor, "C"], temperature: float
) -> tuple[Float[Tensor, "C"], Float[Tensor, "C"]]:
    logits_CV = (hidden_CH @ weight_VH.T).to(_wide(hidden_CH.dtype)) / temperature
    all_CV = logits_CV.log_softmax(-1)
    with torch.no_grad():
        entropy_C = -(all_CV.exp() * all_CV).sum(-1)
    return all_CV.gather(1, targets_C[:, None]).squeeze(1), entropy_C
