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


class Rooms:
    """Memory for the keys and values of a rollout: [rows, H, tokens, D], as large as they can become, each the same.

    A layer whose rows leave or join moves into a spare room, and its own is the next layer's. A GPU's allocator would
    find no use for what is freed when everything grows: it would reserve several times what is needed.
    """

    def __init__(self, rows: int, tokens: int) -> None:
        self.rows, self.tokens = rows, tokens
        self._spare: dict[tuple[int, int], list[Tensor]] = {}

    def take(self, like_BHLD: Float[Tensor, "B H L D"]) -> Float[Tensor, "R H C D"]:
        """A room for such keys or values; its contents are undefined."""
        _, heads, _, size = like_BHLD.shape
        spare = self._spare.get((heads, size))
        return spare.pop() if spare else like_BHLD.new_empty(self.rows, heads, self.tokens, size)

    def give(self, room_RHCD: Float[Tensor, "R H C D"]) -> None:
        """Takes a room back that nobody reads any more."""
        self._spare.setdefault((room_RHCD.shape[1], room_RHCD.shape[3]), []).append(room_RHCD)


class RoomyLayer(DynamicLayer):
    """Keys and values of one layer with room for tokens to come, where `DynamicLayer` copies all for each new token.

    The first `rows` and `length` of each room are filled.
    """

    def __init__(
        self, keys_RHCD: Float[Tensor, "R H C D"], values_RHCD: Float[Tensor, "R H C D"], rows: int, length: int
    ) -> None:
        super().__init__()
        self.lazy_initialization(keys_RHCD, values_RHCD)
        self.rooms = keys_RHCD, values_RHCD
        self._rows = rows
        self.keys, self.values = (room[:rows, :, :length] for room in self.rooms)

    def update(self, key_states: Tensor, value_states: Tensor, *_args: Any, **_kwargs: Any) -> tuple[Tensor, Tensor]:
        """Writes new keys and values [B, H, N, D] behind the others; gives all. RuntimeError where no room is left."""
        start, added = self.get_seq_length(), key_states.shape[2]
        for room, new in zip(self.rooms, (key_states, value_states), strict=True):
            room[: self._rows].narrow(2, start, added).copy_(new)
        self.keys, self.values = (room[: self._rows, :, : start + added] for room in self.rooms)
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


def join(parts: Sequence[tuple[Context, Sequence[int]]], rooms: Rooms) -> Context:
    """Some rows of some contexts, one after the other, without padding that all have; each layer in rooms of its own.

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
        keys = _gather([layer.keys for layer in old], rows_of, width - 1, rooms)
        values = _gather([layer.values for layer in old], rows_of, width - 1, rooms)
        layers.append(RoomyLayer(keys, values, sum(map(len, rows_of)), width - 1))
        for room in (room for layer in old if isinstance(layer, RoomyLayer) for room in layer.rooms):
            rooms.give(room)
    return Context(
        align(pick([context.ids_BL for context in contexts])),
        align(masks),
        torch.cat(pick([context.after_B1 for context in contexts])),
        Cache(layers=layers),
    )


def _gather(
    parts: list[Float[Tensor, "B H L D"]], rows_of: list[Int[Tensor, "R"]], width: int, rooms: Rooms
) -> Float[Tensor, "R H C D"]:
    """A room with rows of some tensors, the last `width` tokens of each (padded with zeros)."""
    room = rooms.take(parts[0])
    start = 0
    for part, rows in zip(parts, rows_of, strict=True):
        kept = min(width, part.shape[2])
        end = start + len(rows)
        room[start:end, :, : width - kept] = 0.0
        room[start:end, :, width - kept : width] = part[rows, :, part.shape[2] - kept :]
        start = end
    return room
