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


class RoomyLayer(DynamicLayer):
    """Keys and values of one layer with room for tokens to come, where `DynamicLayer` copies all for each new token."""

    def __init__(self, keys_BHCD: Float[Tensor, "B H C D"], values_BHCD: Float[Tensor, "B H C D"], length: int) -> None:
        super().__init__()
        self.lazy_initialization(keys_BHCD, values_BHCD)
        self._room = keys_BHCD, values_BHCD
        self.keys, self.values = (part[:, :, :length] for part in self._room)

    def update(self, key_states: Tensor, value_states: Tensor, *_args: Any, **_kwargs: Any) -> tuple[Tensor, Tensor]:
        """Writes new keys and values [B, H, N, D] behind the others; gives all. RuntimeError where no room is left."""
        start, added = self.get_seq_length(), key_states.shape[2]
        for room, new in zip(self._room, (key_states, value_states), strict=True):
            room.narrow(2, start, added).copy_(new)
        self.keys, self.values = (room[:, :, : start + added] for room in self._room)
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


def join(parts: Sequence[tuple[Context, Sequence[int]]], room: int) -> Context:
    """Some rows of some contexts, one after the other, without padding that all have, and with `room` for new tokens.

    The contexts are used up: the memory of each of their layers is given back as soon as it has been copied.
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
        keys = _gather([layer.keys for layer in old], rows_of, width - 1, room)
        values = _gather([layer.values for layer in old], rows_of, width - 1, room)
        layers.append(RoomyLayer(keys, values, width - 1))
    return Context(
        align(pick([context.ids_BL for context in contexts])),
        align(masks),
        torch.cat(pick([context.after_B1 for context in contexts])),
        Cache(layers=layers),
    )


def _gather(
    parts: list[Float[Tensor, "B H L D"]], rows_of: list[Int[Tensor, "R"]], width: int, room: int
) -> Float[Tensor, "B H C D"]:
    """Rows of some tensors, the last `width` tokens of each (padded with zeros), and `room` behind them."""
    _, heads, _, size = parts[0].shape
    gathered = parts[0].new_zeros(sum(map(len, rows_of)), heads, width + room, size)
    start = 0
    for part, rows in zip(parts, rows_of, strict=True):
        kept = min(width, part.shape[2])
        end = start + len(rows)
        gathered[start:end, :, width - kept : width] = part[rows, :, part.shape[2] - kept :]
        start = end
    return gathered
