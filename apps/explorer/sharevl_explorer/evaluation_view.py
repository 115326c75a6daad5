"""An evaluation's own page: its figures with their intervals, as the document beside its folder has them.

`sharevl-lite eval` writes responses to `<name>/` and figures to `<name>.json`. Nothing changes over steps there, so
tables take the place of charts. Without the document, the means over the stored responses are shown.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from sharevl_explorer.figures import number
from sharevl_explorer.index import Index
from sharevl_explorer.markup import Html, el
from sharevl_explorer.parts import Context, counted, scrolling, trains
from sharevl_explorer.queries import step_means
from sharevl_lite.run_files import METRICS_FILE, RECIPE_FILE

_VERSION = 1
"""Of documents, as `sharevl_lite.evaluation.document` writes them."""
_HEADLINES = ("mean@", "pass@", "maj@", "consistency")
"""Figures that are shown large, by how their names begin; of several pass@k the one of the largest k."""
_MEANINGS = {
    "mean@": "share of right responses",
    "pass@": "chance that one of k responses is right",
    "maj@": "the answer with the most votes is right",
    "format": "share of well-formed responses",
    "truncated": "share of responses cut at the length limit",
    "response_length": "tokens per response",
    "consistency": "the majority answers under all ways of asking say the same",
    "all_right": "the majority answer is right under all ways of asking",
    "all_wrong": "the majority answer is right under no way of asking",
    "mixed": "the majority answer is right under some ways of asking",
}
_COUNTS = {"not_verified": "not verified (left out)", "without_answer": "without a boxed answer", "tied_votes": "ties"}
_PROTOCOL = ("target", "checkpoint", "data", "split", "engine", "temperature", "seed", "variants")
_NUMBERS = ("response_length", "reward")
"""How the names of figures begin that are no shares."""


class Measured(NamedTuple):
    """A figure over problems, with the ends of its interval; None where nothing is known."""

    value: float | None
    low: float | None
    high: float | None
    problems: int
    left_out: int


class Document(NamedTuple):
    """What an evaluation's JSON tells here; groups are by name, and so are their figures."""

    protocol: Mapping[str, Any]
    metrics: Mapping[str, Measured]
    groups: Mapping[str, Mapping[str, Mapping[str, Measured]]]
    """By what the problems or the ways of asking are grouped: kinds, transforms, sources."""
    counts: Mapping[str, int]


def document_of(folder: Path) -> Path:
    """Where the document of an evaluation's folder lies, if it has one."""
    whole = folder.resolve()
    return whole.parent / f"{whole.name}.json"


def is_evaluation(index: Index, run: int, split: str) -> bool:
    """Whether a folder holds one evaluation: no run's files, and one step that no update learns from."""
    folder = index.runs[run]
    written = any((folder / name).exists() for name in (RECIPE_FILE, METRICS_FILE))
    splits = index.splits(run)
    return not written and not any(map(trains, splits)) and split in splits and len(index.steps(run, split)) == 1


def evaluation_view(context: Context) -> Html:
    """The figures of every evaluation among the runs, the shown one's first."""
    state, index = context.state, context.index
    (means,) = step_means(index, state.run, state.split)
    others = [run for run in range(len(index.runs)) if run != state.run and is_evaluation(index, run, state.split)]
    return el(
        "section.run",
        el(
            "header.view",
            el("h1", index.names[state.run], tabindex=-1),
            el("p.quiet", f"an evaluation: {counted(means['responses'], 'response')}"),
            el("a.button", "open its problems", href=context.link("step", step=means["step"]), data_key="j"),
        ),
        _evaluation(context, means),
        [
            [el("h2", index.names[run]), _evaluation(context.at(run=run), step_means(index, run, state.split)[0])]
            for run in others
        ],
    )


def _evaluation(context: Context, means: Mapping[str, Any]) -> list[Html | None]:
    path = document_of(context.index.runs[context.state.run])
    try:
        return list(_told(_read(path)))
    except FileNotFoundError:
        told = f"No figures with intervals: {path.name} does not lie beside the folder."
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        told = f"{path.name} cannot be used: {type(error).__name__}: {str(error)[:200]}"
    plain = {
        "accuracy": means["accuracy"], "format": means["format"], "truncated": means["truncated"],
        "reward": means["reward"], "response_length": means["length"],
    }  # fmt: skip
    cards = [_card(name, Measured(value, None, None, 0, 0)) for name, value in plain.items()]
    return [el("p.quiet", told, " Means over the stored responses:"), el("div.cards", cards)]


def _read(path: Path) -> Document:
    """Raises OSError, or ValueError, KeyError, TypeError or AttributeError where it is no evaluation's document."""
    held = json.loads(path.read_text("utf-8"))
    if held["schema_version"] != _VERSION:
        raise ValueError(f"schema version {held['schema_version']}, and this program reads {_VERSION}")
    groups = {
        by: {group: _figures(figures) for group, figures in held[by].items()}
        for by in ("kinds", "transforms", "sources")
    }
    counts = {name: int(count) for name, count in held["counts"].items()}
    return Document(dict(held["protocol"]), _figures(held["metrics"]), groups, counts)


def _figures(held: Mapping[str, Mapping[str, Any]]) -> dict[str, Measured]:
    figures = {}
    for name, found in held.items():
        value, low, high = (None if found[part] is None else float(found[part]) for part in ("value", "low", "high"))
        figures[name] = Measured(value, low, high, int(found["problems"]), int(found.get("left_out", 0)))
    return figures


def _told(document: Document) -> Iterator[Html | None]:
    """The page's parts from a whole document."""
    given = [(name, document.protocol[name]) for name in _PROTOCOL if document.protocol.get(name) is not None]
    level = document.protocol.get("confidence")
    interval = f"{100 * level:.0f} % interval" if isinstance(level, int | float) else "interval"
    mean = next((name for name in document.metrics if name.startswith("mean@")), "mean@1")
    large = _headlines(document.metrics)
    yield el("dl.inline", [el("div", el("dt", name), el("dd", el("bdi", str(value)[:200]))) for name, value in given])
    yield el("div.cards", [_card(name, document.metrics[name], interval) for name in large])
    rest = [(name, found) for name, found in document.metrics.items() if name not in large]
    rows = [(name, *_both(found, name), _of(found)) for name, found in rest]
    yield _table("Other figures", ("", "value", interval, "problems"), rows)
    if len(document.groups["kinds"]) > 1:
        yield _grouped("Ways of asking", document.groups["kinds"], mean, interval)
    yield _grouped("Sources", document.groups["sources"], mean, interval)
    more = [
        _grouped("Image transforms", document.groups["transforms"], mean, interval),
        _table("Counts", ("", "number"), [(_COUNTS.get(k, _words(k)), f"{n:,}") for k, n in document.counts.items()]),
    ]
    yield el("details.more", el("summary", "image transforms and counts"), more)


def _headlines(metrics: Mapping[str, Measured]) -> list[str]:
    found = [[name for name in metrics if name.startswith(start)] for start in _HEADLINES]
    return [names[-1] for names in found if names]


def _card(name: str, found: Measured, interval: str = "") -> Html:
    value, between = _both(found, name)
    return el(
        "article.chart",
        el("span.quiet", _words(name)),
        el("b.large", value),
        el("p", interval, " ", el("span.number", between)) if interval else None,
        el("p.quiet", _meaning(name)) if _meaning(name) else None,
    )


def _grouped(title: str, groups: Mapping[str, Mapping[str, Measured]], mean: str, interval: str) -> Html | None:
    """Groups below each other: the mean, its interval, and how far from the plain questions where that is known."""
    changes = any("change" in figures for figures in groups.values())
    nothing = Measured(None, None, None, 0, 0)
    rows = []
    for group, figures in groups.items():
        found = figures.get(mean, nothing)
        change = figures.get("change", nothing)
        moved = (_points(change.value), _between(_points(change.low), _points(change.high))) if changes else ()
        rows.append((group, *_both(found, mean), *moved, _of(found)))
    header = ("", mean, interval, *(("points from plain", interval) if changes else ()), "problems")
    return _table(title, header, rows)


def _table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> Html | None:
    if not rows:
        return None
    head = el("tr", [el("th" if place == 0 else "th.number", name, scope="col") for place, name in enumerate(header)])
    body = [
        el(
            "tr",
            el("th", el("bdi", _words(row[0])[:200]), scope="row", title=_meaning(row[0]) or None),
            [el("td.number", cell) for cell in row[1:]],
        )
        for row in rows
    ]
    return el(
        "section.panel",
        el("h2", title),
        scrolling(title, el("table.numbers", el("thead", head), el("tbody", body), aria_label=title)),
    )


def _meaning(name: str) -> str:
    return next((meaning for start, meaning in _MEANINGS.items() if name.startswith(start)), "")


def _words(name: str) -> str:
    return name.replace("_", " ")


def _of(found: Measured) -> str:
    return f"{found.problems:,}" + (f" ({found.left_out} left out)" if found.left_out else "")


def _both(found: Measured, name: str) -> tuple[str, str]:
    """The value and its interval: per cent of a share, a plain number of a length or a reward."""
    value, low, high = (_written(part, name) for part in found[:3])
    return value, _between(low, high)


def _written(value: float | None, name: str) -> str:
    if value is None or name.startswith(_NUMBERS):
        return number(value, 1 if name == "response_length" else 3)
    return f"{number(100 * value, 1)} %"


def _points(value: float | None) -> str:
    """A difference of shares in percentage points."""
    return "–" if value is None else ("+" if value > 0 else "") + number(100 * value, 1)


def _between(low: str, high: str) -> str:
    return "–" if "–" in (low, high) else f"{low.removesuffix(' %')} … {high}"
