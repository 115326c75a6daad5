"""Who sees whom in a packed row, in the form each attention backend wants.

    [ prompt | response | response | … | rest of a prompt | response | … ]  [ prompt | … ]

A row is a sequence of runs of tokens. A run goes on from what an earlier one has read, or from the first so many tokens
of that; a token sees what its run goes on from, and the earlier tokens of its run. So responses go on from a whole
prompt, and a prompt that begins like an earlier one is a run of what it has of its own. As a dense mask that is T²
entries; as variable-length attention it is one sequence per run, whose keys are [what it goes on from | own tokens],
gathered, and whose causal mask is aligned to the last key.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import NamedTuple

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from sharevl_kernels.devices import send
from sharevl_kernels.index_sum import RowIndex, sort_index


class Run(NamedTuple):
    """`length` tokens of a row, which go on from the first `shared` tokens that run number `parent` has read (what it
    goes on from itself, and its own); no parent: from nothing."""

    length: int
    parent: int | None = None
    shared: int = 0


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
    """The layout of one packed row on a device; each form is made once and serves every layer.

    Raises ValueError for a run that goes on from a later one, or from more than was read.
    """

    def __init__(self, runs: Sequence[Run], device: torch.device) -> None:
        self.runs = tuple(runs)
        self.device = device
        self.num_tokens = sum(run.length for run in runs)
        self._read = _read(self.runs)

    @cached_property
    def mask(self) -> Bool[Tensor, "1 1 T T"]:
        """True where a query token (first T) may see a key token. T² bytes, a few times that while it is made."""
        mask_TT = torch.zeros(self.num_tokens, self.num_tokens, dtype=torch.bool)
        start = 0
        for run, read in zip(self.runs, self._read, strict=True):
            own = slice(start, start + run.length)
            mask_TT[own, read[: run.shared]] = True
            mask_TT[own, own] = torch.ones(run.length, run.length, dtype=torch.bool).tril()
            start += run.length
        return mask_TT.to(self.device)[None, None]

    @cached_property
    def sequences(self) -> Sequences:
        """The row as sequences; index tensors on the device, bounds known without asking it."""
        queries, keys, places = [0], [0], []
        for run, read in zip(self.runs, self._read, strict=True):
            if run.length:
                queries.append(queries[-1] + run.length)
                keys.append(keys[-1] + read.numel())
                places.append(read)
        bounds = (send(torch.tensor(ends, dtype=torch.int32), self.device) for ends in (queries, keys))
        gathered = sort_index(torch.cat(places), self.num_tokens).to(self.device)
        return Sequences(tuple(queries), tuple(keys), gathered, *bounds)


def _read(runs: Sequence[Run]) -> list[Int[Tensor, "K"]]:
    """For each run, the places of all tokens that its last one sees, in order."""
    found: list[Tensor] = []
    start = 0
    for number, run in enumerate(runs):
        before = torch.arange(0) if run.parent is None else _of_parent(found, run.parent)
        if not 0 <= run.shared <= before.numel() or (run.parent is not None and not run.shared):
            raise ValueError(
                f"run {number} of a packed row goes on from {run.shared} tokens, and its parent "
                f"({run.parent}) has read {before.numel()}"
            )
        found.append(torch.cat([before[: run.shared], torch.arange(start, start + run.length)]))
        start += run.length
    return found


def _of_parent(found: Sequence[Tensor], parent: int) -> Tensor:
    if not 0 <= parent < len(found):
        raise ValueError(f"run {len(found)} of a packed row goes on from run {parent}, which is not an earlier one")
    return found[parent]
