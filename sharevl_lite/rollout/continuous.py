"""Continuous batching for transformers' `generate`: a response that has ended makes room for one that waits.

`generate` is called for a few tokens at a time and goes on from the keys and values of the call before. Between two
calls finished rows leave, and waiting ones, whose prompts are read then, join. Rows of unequal length are padded on
their left. (transformers' own continuous batching, `generate_batch`, takes no images up to 5.24.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import pad
from transformers import Cache
from transformers.cache_utils import CacheLayerMixin, DynamicLayer


class BufferPool:
    """Preallocated buffers of the KV cache of a rollout: [rows, H, tokens, D], as large as they can become, all alike.

    A layer whose rows leave or join is copied into a free buffer, and its old one is the next layer's. A GPU's
    allocator would find no use for what is freed when everything grows: it would reserve several times what is needed.
    """

    def __init__(self, rows: int, tokens: int) -> None:
        self.rows, self.tokens = rows, tokens
        self._free: dict[tuple[int, int], list[Tensor]] = {}

    def acquire(self, like_BHLD: Float[Tensor, "B H L D"]) -> Float[Tensor, "R H C D"]:
        """A buffer for such keys or values; its contents are undefined."""
        _, heads, _, size = like_BHLD.shape
        free = self._free.get((heads, size))
        return free.pop() if free else like_BHLD.new_empty(self.rows, heads, self.tokens, size)

    def release(self, buffer_RHCD: Float[Tensor, "R H C D"]) -> None:
        """Takes a buffer back that nobody reads any more."""
        self._free.setdefault((buffer_RHCD.shape[1], buffer_RHCD.shape[3]), []).append(buffer_RHCD)


class PreallocatedLayer(DynamicLayer):
    """Keys and values of one layer in buffers of a fixed capacity, where `DynamicLayer` copies all for each new token.

    The first `rows` and `length` of each buffer are filled.
    """

    def __init__(
        self, keys_RHCD: Float[Tensor, "R H C D"], values_RHCD: Float[Tensor, "R H C D"], rows: int, length: int
    ) -> None:
        super().__init__()
        self.lazy_initialization(keys_RHCD, values_RHCD)
        self.buffers = keys_RHCD, values_RHCD
        self._rows = rows
        self._set_length(length)

    def _set_length(self, length: int) -> None:
        self.keys, self.values = (buffer[: self._rows, :, :length] for buffer in self.buffers)

    def update(self, key_states: Tensor, value_states: Tensor, *_args: Any, **_kwargs: Any) -> tuple[Tensor, Tensor]:
        """Writes new keys and values [B, H, N, D] behind the others; gives all. RuntimeError beyond the capacity."""
        start, added = self.get_seq_length(), key_states.shape[2]
        for buffer, new in zip(self.buffers, (key_states, value_states), strict=True):
            buffer[: self._rows].narrow(2, start, added).copy_(new)
        self._set_length(start + added)
        return self.keys, self.values


@dataclass
class Context:
    """What rows have read: left-padded tokens, which of them are none, and all keys and values but the last token's.

    `after_B1` is what a token's number in its row lacks to its position (an image takes fewer positions than tokens).
    """

    ids_BL: Int[Tensor, "B L"]
    mask_BL: Int[Tensor, "B L"]
    after_B1: Int[Tensor, "B 1"]
    cache: Cache

    def extend(self, new_BN: Int[Tensor, "B N"]) -> None:
        """Adds tokens that have been sampled; the cache has had all but the last of them."""
        self.ids_BL = torch.cat([self.ids_BL, new_BN], dim=1)
        self.mask_BL = pad(self.mask_BL, (0, new_BN.shape[1]), value=1)


def join(parts: Sequence[tuple[Context, Sequence[int]]], pool: BufferPool) -> Context:
    """Some rows of some contexts, one after the other, without padding that all have; each layer in buffers of its own.

    The contexts are used up: the buffers of each of their layers are released as soon as they have been copied.
    """
    device = parts[0][0].ids_BL.device
    contexts = [context for context, _ in parts]
    rows_of = [torch.tensor(rows, device=device) for _, rows in parts]

    def pick(tensors: list[Tensor]) -> list[Tensor]:
        return [tensor[rows] for tensor, rows in zip(tensors, rows_of, strict=True)]

    masks = pick([context.mask_BL for context in contexts])
    width = max(int(mask_RL.sum(1).max()) for mask_RL in masks)

    def align(tensors: list[Tensor]) -> Tensor:
        return torch.cat([pad(tensor, (width - tensor.shape[1], 0)) for tensor in tensors])  # a negative number cuts

    layers: list[CacheLayerMixin] = []
    for _ in range(len(contexts[0].cache)):
        old = [context.cache.layers.pop(0) for context in contexts]
        layers.append(_join_layer(old, rows_of, width - 1, pool))
    return Context(
        align(pick([context.ids_BL for context in contexts])),
        align(masks),
        torch.cat(pick([context.after_B1 for context in contexts])),
        Cache(layers=layers),
    )


def _join_layer(
    old: list[CacheLayerMixin], rows_of: list[Int[Tensor, "R"]], length: int, pool: BufferPool
) -> PreallocatedLayer:
    """Rows of some layers, the last `length` tokens of each, in new buffers; those of the old layers are released."""
    keys_RHCD = _gather([layer.keys for layer in old], rows_of, length, pool)
    values_RHCD = _gather([layer.values for layer in old], rows_of, length, pool)
    for layer in old:
        if isinstance(layer, PreallocatedLayer):
            for buffer in layer.buffers:
                pool.release(buffer)
    return PreallocatedLayer(keys_RHCD, values_RHCD, sum(map(len, rows_of)), length)


def _gather(
    parts: list[Float[Tensor, "B H L D"]], rows_of: list[Int[Tensor, "R"]], length: int, pool: BufferPool
) -> Float[Tensor, "R H C D"]:
    """A buffer with rows of some tensors, the last `length` tokens of each (padded with zeros)."""
    buffer = pool.acquire(parts[0])
    start = 0
    for part, rows in zip(parts, rows_of, strict=True):
        kept = min(length, part.shape[2])
        end = start + len(rows)
        buffer[start:end, :, : length - kept] = 0.0
        buffer[start:end, :, length - kept : length] = part[rows, :, part.shape[2] - kept :]
        start = end
    return buffer
