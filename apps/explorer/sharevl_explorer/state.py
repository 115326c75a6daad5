"""What a page shows, as it stands in the URL: every view is a link, and a link reloads to the same view."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace
from typing import Any, NamedTuple
from urllib.parse import parse_qs, urlencode

VIEWS = ("run", "step", "problem", "response", "compare", "try")
OUTCOMES = ("", "wrong", "right", "mixed", "unknown")
SIGNALS = ("", "own", "rescued", "none", "silent")
MOVES = ("", "gains", "losses")
PAGE_ROWS = 25


class Cell(NamedTuple):
    """What a cell of the cross-scoring matrix can show."""

    name: str
    meaning: str
    field: str
    """Of the store's scorers."""
    floor: float
    """The least value in full colour: differences that mean nothing are not painted so."""


CELLS = {
    "gap": Cell("log-prob gap", "nats per token, under the column's variant minus under the source", "gap", 0.05),
    "advantage": Cell("advantage", "what the pair trained with", "advantage", 0.5),
    "clip": Cell("clip fraction", "share of the tokens whose ratio was clipped in the update", "clip_fraction", 0.05),
}


@dataclass(frozen=True, slots=True)
class State:
    """Fields are the keys of the query; a field at its default is left out of the URL."""

    view: str = "run"
    run: int = 0
    """0: the run; 1: the run that it is compared with."""
    split: str = "train"
    step: int = -1
    """-1: the newest."""
    problem: str = ""
    variant: int = 0
    response: int = 0
    cell: str = "gap"
    """What a cell of the cross-scoring matrix shows."""
    outcome: str = ""
    signal: str = ""
    """Of a problem, as the index defines it; silent: one of its groups has no signal of its own."""
    truncated: int = 0
    transform: str = ""
    low: float | None = None
    """Mean rewards from here …"""
    high: float | None = None
    """… up to here."""
    q: str = ""
    """Text that is searched for."""
    sort: str = "problem"
    down: int = 0
    sheet: int = 1
    """Of a step's table. (Gradio takes a key named `page` for itself.)"""
    under: int = -1
    """Variant whose log-probs the tokens show, against the source; -1: as they were sampled."""
    full: int = 0
    """1: long texts in full."""
    first: int = -1
    """Compare: the earlier step; -1: the first, or of two runs the newest after 0 that both have, else its newest."""
    last: int = -1
    """Compare: the later step; -1: the newest, or of two runs the newest after 0 that both have, else its newest."""
    moves: str = ""
    """Compare: only problems whose accuracy rose, or only those whose fell; empty: all."""

    def to(self, view: str | None = None, **changes: Any) -> str:
        """The link to this state with changes."""
        if view is not None:
            changes["view"] = view
        return "?" + urlencode(_written(replace(self, **changes)) or {"view": "run"})


def _written(state: State) -> dict[str, Any]:
    default = asdict(State())
    return {key: value for key, value in asdict(state).items() if value != default[key]}


def parse(query: str) -> State:
    """The state of a URL's query. What is unknown or malformed falls back to its default: a link never breaks."""
    given = {key: values[-1] for key, values in parse_qs(query.lstrip("?"), keep_blank_values=True).items()}
    read: dict[str, Any] = {}
    for field in fields(State):
        if field.name in given:
            value = _as(str(field.type), given[field.name])
            if value is not None:
                read[field.name] = value
    state = State(**read)
    return replace(
        state,
        view=state.view if state.view in VIEWS else "run",
        cell=state.cell if state.cell in CELLS else "gap",
        outcome=state.outcome if state.outcome in OUTCOMES else "",
        signal=state.signal if state.signal in SIGNALS else "",
        moves=state.moves if state.moves in MOVES else "",
        sheet=max(state.sheet, 1),
    )


def _as(kind: str, written: str) -> Any:
    if kind == "str":
        return written[:2000]
    try:
        number = float(written)
    except ValueError:
        return None
    if not -1e9 <= number <= 1e9:
        return None
    return int(number) if kind == "int" else number
