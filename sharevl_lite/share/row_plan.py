"""Which groups of pairs go into which packed row.

Groups are taken in order. A row is full when it has as many tokens as it may, or when attention would gather too many
keys for it; a group is split for its tokens alone. What a group takes of a row depends on what stands there already
(:mod:`sharevl_lite.share.packing`).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, NamedTuple

from sharevl_lite.share.packing import K, Prefix, SegmentGroup, best_start

KEYS_PER_TOKEN = 4
"""Attention gathers the keys of its prompt for every response. Groups share a row while it gathers at most so many for
each token that it may have: many short responses behind long prompts would take more memory than the rest of it."""


class _Load(NamedTuple):
    """What something takes of a row: tokens, and keys that attention gathers."""

    tokens: int
    keys: int

    def plus(self, other: _Load) -> _Load:
        return _Load(self.tokens + other.tokens, self.keys + other.keys)


NOTHING = _Load(0, 0)


def _load_of_prompt(prefix: Prefix, shared: int = 0) -> _Load:
    length = prefix.ids_P.numel()
    return _Load(length - shared, length) if shared < length else NOTHING


def _load_of_response(prefix: Prefix, length: int) -> _Load:
    own = length - 1
    return _Load(own, prefix.ids_P.numel() + own) if own else NOTHING


@dataclass
class _OpenRow(Generic[K]):
    """A row that is being filled."""

    token_budget: int
    share: bool
    load: _Load = NOTHING
    groups: list[SegmentGroup[K]] = field(default_factory=list)
    answered: dict[tuple[Any, ...], set[bytes]] = field(default_factory=dict)
    """By the identity of its prompts: the responses behind them."""

    def load_of(self, group: SegmentGroup[K]) -> _Load:
        """What the group would take of this row, where it shares what it can."""
        if not self.share:
            return _load_of(group, share=False)
        prefix = group.prefix
        answered = self.answered.get(prefix.identity)
        if answered is not None:
            return _load_of(group, prefix.ids_P.numel(), answered)
        return _load_of(group, best_start([other.prefix for other in self.groups], prefix)[1])

    def takes(self, load: _Load) -> bool:
        """Whether there is room."""
        tokens, keys = self.load.plus(load)
        return tokens <= self.token_budget and keys <= KEYS_PER_TOKEN * self.token_budget

    def append(self, group: SegmentGroup[K], load: _Load) -> None:
        self.load = self.load.plus(load)
        self.groups.append(group)
        self.answered.setdefault(group.prefix.identity, set()).update(group.identities)


def _load_of(group: SegmentGroup[K], shared: int = 0, known: Collection[bytes] = (), *, share: bool = True) -> _Load:
    """What a group takes of a row that holds the first `shared` tokens of its prompt and the responses `known`."""
    load = _load_of_prompt(group.prefix, shared)
    seen = set(known)
    for response, identity in zip(group.responses, group.identities, strict=True):
        if not share or identity not in seen:
            load = load.plus(_load_of_response(group.prefix, response.numel()))
            seen.add(identity)
    return load


def plan_rows(
    groups: Sequence[SegmentGroup[K]], token_budget: int, *, share: bool = True
) -> list[list[SegmentGroup[K]]]:
    """Distributes groups over rows of at most `token_budget` tokens, in order: a group goes where the one before it
    went if it can share something there (`share`) and there is room, else first fit. Rows of several groups gather at
    most `KEYS_PER_TOKEN` times as many keys.

    A group longer than the budget is split by responses and its prefix repeated. A single pair longer than the budget
    gets a row of its own: nothing is dropped or cut. Raises ValueError for a group without responses or an empty
    response.
    """
    rows: list[_OpenRow[K]] = []
    latest: _OpenRow[K] | None = None
    for group in groups:
        parts = _split(group, token_budget, share=share)
        if latest is not None:
            load = latest.load_of(group)
            if load.tokens < _load_of(group, share=share).tokens and latest.takes(load):
                latest.append(group, load)
                continue
        for part in parts:
            load = _load_of(part, share=share)
            latest = next((row for row in rows if row.takes(load)), None)
            if latest is None:
                latest = _OpenRow(token_budget, share)
                rows.append(latest)
            latest.append(part, load)
    return [row.groups for row in rows]


def packed_length(group: SegmentGroup) -> int:
    """Tokens the group takes in a row, without what it may share with others there."""
    return _load_of(group).tokens


def _split(group: SegmentGroup[K], token_budget: int, *, share: bool) -> list[SegmentGroup[K]]:
    if not group.responses or len(group.responses) != len(group.pairs):
        raise ValueError(f"a group needs responses and a key for each, got {len(group.responses)}, {group.pairs}")
    parts: list[SegmentGroup[K]] = []
    prompt = group.prefix.ids_P.numel()
    start, tokens, known = 0, prompt, set[bytes]()
    for end, (response, identity) in enumerate(zip(group.responses, group.identities, strict=True)):
        if not response.numel():
            raise ValueError(f"pair {group.pairs[end]} has an empty response; a response has at least its end token")
        own = response.numel() - 1
        added = 0 if share and identity in known else own
        if end > start and tokens + added > token_budget:
            parts.append(SegmentGroup(group.prefix, group.responses[start:end], group.pairs[start:end]))
            start, tokens, known, added = end, prompt, set(), own
        tokens += added
        known.add(identity)
    parts.append(SegmentGroup(group.prefix, group.responses[start:], group.pairs[start:]))
    return parts
