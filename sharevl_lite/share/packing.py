"""Shared-prefix packing: one row scores many responses after one copy of each prompt.

    [ prefix of variant k | response 1 | response 2 | … ]  [ prefix of variant k' | … ]

A response token sees its own prefix and its own earlier tokens, and its position goes on from the prefix's largest
position plus one on all three axes of the multimodal rotary embedding. The last prefix token predicts the first token
of every response behind it, so hidden states are gathered by index before the head; the last token of a response
predicts nothing and is not part of the row. Tokens fall from Σ (P + R) per pair to P + Σ (R - 1) per group.

The row says which of its tokens see which (`layout`). Nothing here knows about models.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from jaxtyping import Int
from sharevl_kernels.prefix_attention import PrefixLayout
from torch import Tensor

K = TypeVar("K")
"""The caller's keys for pairs."""


@dataclass(frozen=True)
class Prefix:
    """A tokenised prompt: ids with image placeholders expanded, rotary positions, and the images' keys in order."""

    ids_P: Int[Tensor, "P"]
    positions_3P: Int[Tensor, "3 P"]
    image_keys: tuple[str, ...]


@dataclass(frozen=True)
class SegmentGroup(Generic[K]):
    """Responses to be scored after one prefix. `pairs` are the caller's keys for them, given back in the row."""

    prefix: Prefix
    responses: tuple[Int[Tensor, "R"], ...]
    pairs: tuple[K, ...]


@dataclass(frozen=True)
class PackedRow(Generic[K]):
    """One packed row of T tokens with B pairs and S scored tokens.

    `rows_S[s]` is the token whose hidden state predicts `targets_S[s]`; pair b owns the scored tokens
    `cu_seqlens_B1[b]:cu_seqlens_B1[b + 1]`. `group_T` numbers the prefixes; `segment_T` is 0 in a prefix and counts
    the responses from 1.
    """

    ids_T: Int[Tensor, "T"]
    positions_3T: Int[Tensor, "3 T"]
    group_T: Int[Tensor, "T"]
    segment_T: Int[Tensor, "T"]
    rows_S: Int[Tensor, "S"]
    targets_S: Int[Tensor, "S"]
    cu_seqlens_B1: Int[Tensor, "B1"]
    pairs: tuple[K, ...]
    image_keys: tuple[str, ...]

    def layout(self, device: torch.device) -> PrefixLayout:
        """Which of its tokens see which, for attention on `device`."""
        return PrefixLayout(self.group_T, self.segment_T, device)


def plan_rows(groups: Sequence[SegmentGroup[K]], token_budget: int) -> list[list[SegmentGroup[K]]]:
    """Distributes groups over rows of at most `token_budget` tokens, in order, first fit.

    A group longer than the budget is split by responses and its prefix repeated. A single pair longer than the budget
    gets a row of its own: nothing is dropped or cut. Raises ValueError for a group without responses or an empty
    response.
    """
    rows: list[list[SegmentGroup[K]]] = []
    room: list[int] = []
    for group in groups:
        for part in _split(group, token_budget):
            length = packed_length(part)
            slot = next((r for r, free in enumerate(room) if length <= free), None)
            if slot is None:
                rows.append([part])
                room.append(token_budget - length)
            else:
                rows[slot].append(part)
                room[slot] -= length
    return rows


def packed_length(group: SegmentGroup) -> int:
    """Tokens the group takes in a row."""
    return group.prefix.ids_P.numel() + sum(r.numel() - 1 for r in group.responses)


def _split(group: SegmentGroup[K], token_budget: int) -> list[SegmentGroup[K]]:
    if not group.responses or len(group.responses) != len(group.pairs):
        raise ValueError(f"a group needs responses and a key for each, got {len(group.responses)}, {group.pairs}")
    parts: list[SegmentGroup[K]] = []
    start, used = 0, group.prefix.ids_P.numel()
    for end, response in enumerate(group.responses):
        if response.numel() == 0:
            raise ValueError(f"pair {group.pairs[end]} has an empty response; a response has at least its end token")
        if end > start and used + response.numel() - 1 > token_budget:
            parts.append(SegmentGroup(group.prefix, group.responses[start:end], group.pairs[start:end]))
            start, used = end, group.prefix.ids_P.numel()
        used += response.numel() - 1
    parts.append(SegmentGroup(group.prefix, group.responses[start:], group.pairs[start:]))
    return parts


def pack_row(groups: Sequence[SegmentGroup[K]]) -> PackedRow[K]:
    """Lays groups one after another in a row (see the module's head)."""
    ids, positions, group_numbers, segments, rows, targets, lengths = [], [], [], [], [], [], []
    pairs: list[K] = []
    image_keys: list[str] = []
    offset = segment = 0
    for number, group in enumerate(groups):
        prefix_length = group.prefix.ids_P.numel()
        next_position = group.prefix.positions_3P.max() + 1
        last_of_prefix = offset + prefix_length - 1
        ids.append(group.prefix.ids_P)
        positions.append(group.prefix.positions_3P)
        segments.append(torch.zeros(prefix_length, dtype=torch.long))
        offset += prefix_length
        for response_R in group.responses:
            inputs = response_R.numel() - 1
            segment += 1
            ids.append(response_R[:-1])
            positions.append((next_position + torch.arange(inputs)).expand(3, -1))
            segments.append(torch.full((inputs,), segment, dtype=torch.long))
            rows.append(torch.tensor([last_of_prefix]))
            rows.append(torch.arange(offset, offset + inputs))
            targets.append(response_R)
            lengths.append(response_R.numel())
            offset += inputs
        group_numbers.append(torch.full((packed_length(group),), number, dtype=torch.long))
        pairs.extend(group.pairs)
        image_keys.extend(group.prefix.image_keys)
    return PackedRow(
        ids_T=torch.cat(ids),
        positions_3T=torch.cat(positions, dim=1),
        group_T=torch.cat(group_numbers),
        segment_T=torch.cat(segments),
        rows_S=torch.cat(rows),
        targets_S=torch.cat(targets),
        cu_seqlens_B1=torch.tensor([0, *lengths]).cumsum(0),
        pairs=tuple(pairs),
        image_keys=tuple(image_keys),
    )
