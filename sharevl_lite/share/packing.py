"""Shared-prefix packing: one row scores many responses after one copy of each prompt, and of what prompts share.

    [ prompt of variant k | response 1 | response 2 | … | rest of the prompt of variant k' | response 1 | … ]  [ … ]

A response token sees its own prompt and its own earlier tokens, and its position goes on from the prompt's largest
position plus one on all three axes of the multimodal rotary embedding. The last prompt token predicts the first token
of every response behind it, so hidden states are gathered by index before the head; the last token of a response
predicts nothing and is not part of the row. Variants whose images are the same begin alike up to the first word that
differs (images stand before the text): of the second one only the rest is in the row, if anything. Short answers are
often given more than once: a response stands in the row once after each prompt, and its scores are those of all pairs
that have it. Tokens fall from Σ (P + R) per pair to P + Σ (R - 1) per group, less what is alike in a row.

The row says which of its tokens see which (`layout`). Nothing here knows about models.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from jaxtyping import Int
from sharevl_kernels.prefix_attention import PrefixLayout, Run
from torch import Tensor

LEAST_SHARED = 16
"""Prompts that begin with fewer tokens alike stand whole in a row: the names of a chat's roles are not worth a cut."""
LOOK_BACK = 8
"""A prompt is compared with so many that stand before it in the row."""

K = TypeVar("K")
"""The caller's keys for pairs."""


def _known_by(numbers: Tensor) -> bytes:
    return numbers.long().numpy().tobytes()


@dataclass(frozen=True)
class Prefix:
    """A tokenised prompt: ids with image placeholders expanded, rotary positions, and the images' keys in order.

    `image_P` says which of the images a token is of, -1 for text. Raises ValueError where there are images without it.
    """

    ids_P: Int[Tensor, "P"]
    positions_3P: Int[Tensor, "3 P"]
    image_keys: tuple[str, ...] = ()
    image_P: Int[Tensor, "P"] | None = None

    def __post_init__(self) -> None:
        if self.image_keys and self.image_P is None:
            raise ValueError(f"a prompt with images needs image_P, which tokens are of which of {len(self.image_keys)}")

    @cached_property
    def identity(self) -> tuple[Any, ...]:
        """Equal for prompts that are alike from the first token to the last."""
        return (self.image_keys, *map(_known_by, (self.ids_P, self.positions_3P, self.images_P)))

    @cached_property
    def images_P(self) -> Int[Tensor, "P"]:
        """`image_P`, of prompts of text as well."""
        return torch.full_like(self.ids_P, -1) if self.image_P is None else self.image_P

    def images_within(self, tokens: int) -> int:
        """How many images stand in the first so many tokens."""
        return int(self.images_P[:tokens].max()) + 1 if tokens else 0


@dataclass(frozen=True)
class SegmentGroup(Generic[K]):
    """Responses to be scored after one prefix. `pairs` are the caller's keys for them, given back in the row."""

    prefix: Prefix
    responses: tuple[Int[Tensor, "R"], ...]
    pairs: tuple[K, ...]

    @cached_property
    def identities(self) -> tuple[bytes, ...]:
        """Of its responses, equal for equal ones."""
        return tuple(map(_known_by, self.responses))


@dataclass(frozen=True)
class PackedRow(Generic[K]):
    """One packed row of T tokens, U of them with a target, that has S scores for B pairs.

    `rows_U[u]` is the token whose hidden state predicts `targets_U[u]`; score s is that of `scores_S[s]` (of s itself
    where that is None, and U is S), and pair b owns the scores `cu_seqlens_B1[b]:cu_seqlens_B1[b + 1]`. `runs` are its
    prompts, or what those have of their own, and its responses, in order; `image_keys` names the images whose tokens
    are in the row, in order.
    """

    ids_T: Int[Tensor, "T"]
    positions_3T: Int[Tensor, "3 T"]
    runs: tuple[Run, ...]
    rows_U: Int[Tensor, "U"]
    targets_U: Int[Tensor, "U"]
    scores_S: Int[Tensor, "S"] | None
    cu_seqlens_B1: Int[Tensor, "B1"]
    pairs: tuple[K, ...]
    image_keys: tuple[str, ...]

    def layout(self, device: torch.device) -> PrefixLayout:
        """Which of its tokens see which, for attention on `device`."""
        return PrefixLayout(self.runs, device)


def shared_length(first: Prefix, second: Prefix) -> int:
    """How many tokens two prompts have alike from the start on: the same ids, positions and images."""
    length = min(first.ids_P.numel(), second.ids_P.numel())
    pairs = zip(first.image_keys, second.image_keys, strict=False)
    other = next((number for number, (mine, yours) in enumerate(pairs) if mine != yours), None)
    alike_L = first.ids_P[:length] == second.ids_P[:length]
    alike_L &= (first.positions_3P[:, :length] == second.positions_3P[:, :length]).all(0)
    alike_L &= first.images_P[:length] == second.images_P[:length]
    if other is not None:
        alike_L &= first.images_P[:length] != other
    return length if bool(alike_L.all()) else int((~alike_L).to(torch.uint8).argmax())


def best_start(before: Sequence[Prefix], prefix: Prefix) -> tuple[int, int]:
    """Which of the prompts before it in a row a prompt has most tokens alike with, and how many; 0 where too few."""
    recent = range(max(0, len(before) - LOOK_BACK), len(before))
    length, place = max(((shared_length(before[place], prefix), place) for place in recent), default=(0, 0))
    return (place, length) if length >= LEAST_SHARED else (0, 0)


class _Tokens:
    """The tokens of a row as they are laid down, run after run."""

    def __init__(self) -> None:
        self.ids: list[Tensor] = []
        self.positions: list[Tensor] = []
        self.runs: list[Run] = []
        self.count = 0

    def append(self, ids_L: Tensor, positions_3L: Tensor, parent: int | None, shared: int) -> Int[Tensor, "L"]:
        """Lays down a run; returns the places of its tokens."""
        self.ids.append(ids_L)
        self.positions.append(positions_3L)
        self.runs.append(Run(ids_L.numel(), parent, shared))
        self.count += ids_L.numel()
        return torch.arange(self.count - ids_L.numel(), self.count)


class _Stem(NamedTuple):
    """A prompt in a row: the run that has read it, as its first tokens, and the places of its tokens."""

    run: int
    places_P: Int[Tensor, "P"]

    @classmethod
    def of(cls, tokens: _Tokens, prefix: Prefix, start: _Stem | None, shared: int) -> _Stem:
        """Lays down what a prompt has of its own behind the `shared` tokens that it has alike with `start`."""
        if start is None:
            run, places_P = None, torch.arange(0)
        else:
            run, places_P = start.run, start.places_P[:shared]
        if shared < prefix.ids_P.numel():
            own_L = tokens.append(prefix.ids_P[shared:], prefix.positions_3P[:, shared:], run, shared)
            run, places_P = len(tokens.runs) - 1, torch.cat([places_P, own_L])
        assert run is not None  # an empty prompt has nothing that predicts a response
        return cls(run, places_P)


class _Scores:
    """The scores of a row as its responses are laid down: which tokens predict what, and whose scores they are."""

    def __init__(self) -> None:
        self.rows: list[Tensor] = []
        self.targets: list[Tensor] = []
        self.lengths = [0]
        self.places: list[Tensor] = []
        self._count = 0

    def append(self, rows_R: Tensor, targets_R: Tensor) -> Int[Tensor, "R"]:
        """Adds scored tokens, for a response that is new; returns their numbers."""
        self.rows.append(rows_R)
        self.targets.append(targets_R)
        self._count += targets_R.numel()
        return torch.arange(self._count - targets_R.numel(), self._count)

    def give(self, numbers_R: Tensor) -> None:
        """The next pair has the scores of these tokens."""
        self.lengths.append(numbers_R.numel())
        self.places.append(numbers_R)

    def which_S(self) -> Int[Tensor, "S"] | None:
        """The scored token of every score; None where each has its own."""
        return torch.cat(self.places) if self._count < sum(self.lengths) else None


def pack_row(groups: Sequence[SegmentGroup[K]], *, share: bool = True) -> PackedRow[K]:
    """Lays groups one after another in a row (see the module's head); with `share`, what is alike stands there once."""
    tokens, scores = _Tokens(), _Scores()
    stems: list[_Stem] = []
    image_keys: list[str] = []
    known: dict[tuple[Any, ...], int] = {}
    answered: dict[tuple[int, bytes], Tensor] = {}
    for number, group in enumerate(groups):
        prefix = group.prefix
        first = known.setdefault(prefix.identity, number) if share else number
        if first < number:
            stems.append(stems[first])
        else:
            place, shared = best_start([g.prefix for g in groups[:number]], prefix) if share else (0, 0)
            stems.append(_Stem.of(tokens, prefix, stems[place] if shared else None, shared))
            image_keys.extend(prefix.image_keys[prefix.images_within(shared) :])
        for response_R, identity in zip(group.responses, group.identities, strict=True):
            if not share or (first, identity) not in answered:
                places_R = _answer(tokens, stems[-1], prefix, response_R)
                answered[first, identity] = scores.append(places_R, response_R)
            scores.give(answered[first, identity])
    return PackedRow(
        ids_T=torch.cat(tokens.ids),
        positions_3T=torch.cat(tokens.positions, dim=1),
        runs=tuple(tokens.runs),
        rows_U=torch.cat(scores.rows),
        targets_U=torch.cat(scores.targets),
        scores_S=scores.which_S(),
        cu_seqlens_B1=torch.tensor(scores.lengths).cumsum(0),
        pairs=tuple(pair for group in groups for pair in group.pairs),
        image_keys=tuple(image_keys),
    )


def _answer(tokens: _Tokens, stem: _Stem, prefix: Prefix, response_R: Tensor) -> Int[Tensor, "R"]:
    """Lays down a response without its last token; returns the tokens that predict it, the prompt's last one first."""
    positions_R = prefix.positions_3P.max() + 1 + torch.arange(response_R.numel() - 1)
    own_R = tokens.append(response_R[:-1], positions_R.expand(3, -1), stem.run, prefix.ids_P.numel())
    return torch.cat([stem.places_P[-1:], own_R])
