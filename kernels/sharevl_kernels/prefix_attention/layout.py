"""Who sees whom in a packed row, in the form each attention backend wants.

    [ prefix | response | response | … ]  [ prefix | … ]

A prefix token sees the earlier tokens of its prefix. A response token sees its prefix and the earlier tokens of its own
response. As a dense mask that is T² entries; as variable-length attention it is one sequence per prefix and per
response, whose keys are [prefix | own tokens], gathered, and whose causal mask is aligned to the last key.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from sharevl_kernels.devices import send
from sharevl_kernels.index_sum import RowIndex, sort_index


@dataclass(frozen=True)
class Sequences:
    """The row as N sequences of queries, in row order, and of gathered keys.

    Sequence i has the queries `queries[i]:queries[i + 1]` of the row and the keys `keys[i]:keys[i + 1]` of the
    gathered ones; `gathered` says where those lie in the row. The tensors are the same bounds on the device, int32.
    """

    queries: tuple[int, ...]
    keys: tuple[int, ...]
    gathered: RowIndex
    queries_N1: Int[Tensor, "N1"]
    keys_N1: Int[Tensor, "N1"]

    @cached_property
    def longest(self) -> tuple[int, int]:
        """Most queries and most keys of a sequence."""
        longest_queries, longest_keys = (
            max(b - a for a, b in pairwise(bounds)) for bounds in (self.queries, self.keys)
        )
        return longest_queries, longest_keys


class PrefixLayout:
    """The layout of one packed row of T tokens on a device; each form is made once and serves every layer.

    `group_T` numbers the prefixes in row order. `segment_T` is 0 in a prefix and another number in each response.
    Raises ValueError for a group that does not begin with its prefix, or is torn apart.
    """

    def __init__(self, group_T: Int[Tensor, "T"], segment_T: Int[Tensor, "T"], device: torch.device) -> None:
        self.group_T = group_T.cpu()
        self.segment_T = segment_T.cpu()
        self.device = device
        self._runs = _runs(self.group_T, self.segment_T)

    @cached_property
    def mask(self) -> Bool[Tensor, "1 1 T T"]:
        """True where a query token (first T) may see a key token. T² bytes, a few times that while it is made."""
        group_T, segment_T = self.group_T.to(self.device), self.segment_T.to(self.device)
        places_T = torch.arange(group_T.numel(), device=self.device)
        earlier_TT = places_T[:, None] >= places_T[None, :]
        same_group_TT = group_T[:, None] == group_T[None, :]
        own_TT = segment_T[:, None] == segment_T[None, :]
        prefix_1T = (segment_T == 0)[None, :]
        return (earlier_TT & same_group_TT & (own_TT | prefix_1T))[None, None]

    @cached_property
    def sequences(self) -> Sequences:
        """The row as sequences; index tensors on the device, bounds known without asking it."""
        queries, keys, places = [0], [0], []
        prefix = torch.arange(0)
        for start, end, is_prefix in self._runs:
            own = torch.arange(start, end)
            if is_prefix:
                prefix = own
            seen = own if is_prefix else torch.cat([prefix, own])
            queries.append(end)
            keys.append(keys[-1] + seen.numel())
            places.append(seen)
        bounds = (send(torch.tensor(ends, dtype=torch.int32), self.device) for ends in (queries, keys))
        gathered = sort_index(torch.cat(places), self.group_T.numel()).to(self.device)
        return Sequences(tuple(queries), tuple(keys), gathered, *bounds)


def _runs(group_T: Int[Tensor, "T"], segment_T: Int[Tensor, "T"]) -> list[tuple[int, int, bool]]:
    """(start, end, whether a prefix) of every prefix and response of the row."""
    pairs, lengths = torch.stack([group_T, segment_T]).unique_consecutive(dim=1, return_counts=True)
    runs: list[tuple[int, int, bool]] = []
    start, seen, current = 0, set(), None
    for (group, segment), length in zip(pairs.T.tolist(), lengths.tolist(), strict=True):
        if segment == 0:
            current = group
        if current != group or (group, segment) in seen:
            raise ValueError(
                f"token {start} of a packed row: every group is one prefix (segment 0) and then its responses, "
                f"each in one piece; group {group}, segment {segment} is out of place"
            )
        seen.add((group, segment))
        runs.append((start, start + length, segment == 0))
        start += length
    return runs
