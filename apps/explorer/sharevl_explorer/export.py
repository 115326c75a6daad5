"""Chosen problems in one HTML file: images once each, no script, light or dark as the reader's system is."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from sharevl_explorer.album import Album
from sharevl_explorer.index import Index
from sharevl_explorer.markup import Html, el
from sharevl_explorer.page import settle
from sharevl_explorer.parts import Context
from sharevl_explorer.problem_view import problem_view
from sharevl_explorer.queries import responses, whereabouts
from sharevl_explorer.response_view import response_view
from sharevl_explorer.state import State
from sharevl_lite.atomic import write_atomically
from sharevl_lite.store_schema import StoreError

MOST = 12
_NAMED = 5
"""Steps that a message names."""
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
"""What the browser may load and run for the file: its own images and style, nothing else."""
_CHOICE = """
SELECT problem FROM problems WHERE run = 0 AND split = $split AND step = $step
ORDER BY spread_global DESC NULLS LAST, problem LIMIT $most
"""
_ASKED = "SELECT count(*) AS asked FROM problems WHERE run = 0 AND split = $split AND step = $step"


class Exported(NamedTuple):
    """What went into a file: so many of the problems that the step of that split asked."""

    split: str
    step: int
    problems: int
    asked: int


def export(
    index: Index, target: Path, chosen: Sequence[str] = (), *, split: str | None = None, step: int | None = None
) -> Exported:
    """Write problems of a step to one file.

    Args:
        index: of the run.
        target: the file, replaced at once when it is whole.
        chosen: ids of problems; none: the 12 of the widest reward spread.
        split: of the rollouts; None: `train`, or the first there is.
        step: None: the newest.

    Raises:
        StoreError: the step or a chosen problem is not stored, or the file cannot be written.
    """
    from sharevl_explorer.app import asset

    split = split or next(iter(index.splits()), "train")
    steps = index.steps(0, split)
    if not steps or (step is not None and step not in steps):
        raise StoreError(_nothing(index, split, step))
    state = settle(index, State(view="problem", split=split, step=-1 if step is None else step))
    given = {"split": split, "step": state.step, "most": MOST}
    ids = list(chosen) or [row["problem"] for row in index.rows(_CHOICE, given)]
    album = Album()
    parts = [_problem(index, state, album, number, problem, ids) for number, problem in enumerate(ids)]
    contents = el("ol.contents", [el("li", el("a", problem, href=f"#p{n}")) for n, problem in enumerate(ids)])
    title = f"{index.runs[0].name}, step {state.step}" + (f" ({split})" if split != "train" else "")
    body = el(
        "body",
        el("div", album.symbols(), el("div.frame", el("h1", title), contents, parts), album.dialogs(), id="sharevl"),
    )
    head = el(
        "head",
        el("meta", charset="utf-8"),
        el("meta", http_equiv="Content-Security-Policy", content=POLICY),
        el("meta", name="viewport", content="width=device-width"),
        el("title", title),
        Html(
            f"<style>{asset('style.css')}body{{margin:0;background:var(--sx-ground);color-scheme:light dark}}</style>"
        ),
    )
    _write(target, ("<!doctype html>" + el("html", head, body, lang="en")).encode())
    (found,) = index.rows(_ASKED, {"split": split, "step": state.step})
    return Exported(split, state.step, len(ids), found["asked"])


def _nothing(index: Index, split: str, step: int | None) -> str:
    """Why there is nothing to export, with what there is."""
    steps, splits = index.steps(0, split), index.splits()
    wanted = "no readable step" if step is None or not steps else f"no readable step {step}"
    if steps:
        there = f"it has steps {steps[0]} to {steps[-1]}" if len(steps) > 1 else f"it has step {steps[0]} alone"
    else:
        there = f"there is --split {' or '.join(splits)}" if splits else "there are no rollouts"
    return f"{index.runs[0]}: {wanted} in split {split!r}; {there}"


def _elsewhere(index: Index, problem: str) -> str:
    """Where a problem was asked: of each split the newest steps, at most five."""
    found = [row for row in whereabouts(index, problem) if row["run"] == 0]
    parts = []
    for split in dict.fromkeys(row["split"] for row in found):
        steps = [row["step"] for row in found if row["split"] == split]
        named = " or ".join(f"--step {step}" for step in steps[-_NAMED:])
        left_out = f", and {len(steps) - _NAMED} earlier ones" if len(steps) > _NAMED else ""
        parts.append(f"--split {split} has it at {named}{left_out}")
    return "; ".join(parts) or "no step of the run has it"


def _write(target: Path, content: bytes) -> None:
    if target.is_dir():
        raise StoreError(f"--export {target}: that is a folder; name a file in it")
    try:
        write_atomically(target, content)
    except FileNotFoundError as error:
        raise StoreError(f"--export {target}: there is no folder {target.parent}; create it first") from error
    except OSError as error:
        raise StoreError(f"--export {target}: cannot be written: {error.strerror or error}") from error


def _problem(index: Index, state: State, album: Album, number: int, problem: str, ids: Sequence[str]) -> Html:
    numbers = {name: place for place, name in enumerate(ids)}

    def anchor(to: State) -> str | None:
        if to.problem not in numbers or to.step != state.step:
            return None
        if to.view == "problem":
            return f"#p{numbers[to.problem]}"
        return f"#p{numbers[to.problem]}-{to.variant}-{to.response}" if to.view == "response" and not to.full else None

    rows = responses(index, 0, state.split, state.step, problem)
    if not rows:
        lacking = f"{index.runs[0]}: step {state.step} of {state.split!r} has no problem {problem!r}"
        raise StoreError(f"{lacking}; {_elsewhere(index, problem)}")
    context = Context(index, state, anchor, album).at(problem=problem, variant=0, full=1)
    answers = [
        el(
            "div.one",
            response_view(context.at(view="response", variant=row["variant_index"], response=row["response_index"])),
            id=f"p{number}-{row['variant_index']}-{row['response_index']}",
        )
        for row in rows
    ]
    overview = problem_view(context.at(full=0))
    return el("div", overview, el("details", el("summary", "every response"), answers), id=f"p{number}")
