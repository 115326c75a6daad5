"""Compare: one problem across steps or runs, or the problems whose accuracy moved most.

Between two runs a problem is compared at steps that both have, so that a difference of the runs is not mistaken for the
progress of training; ids under which they asked different problems are counted apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sharevl_explorer.figures import moved, number, percent
from sharevl_explorer.markup import Html, el
from sharevl_explorer.parts import Context, badge, counted, empty, picture, tabs, trail
from sharevl_explorer.places import not_here, split_tabs
from sharevl_explorer.prose import question, response, shortened
from sharevl_explorer.queries import (
    appearances,
    asked_alike,
    movers,
    moves_of,
    repeated,
    responses,
    share_a_problem,
    strangers,
)
from sharevl_explorer.state import MOVES

_TEXTS = 4
"""Responses that a card holds; the others are a click away."""
_CHARACTERS = {"question": 400, "response": 1500}
"""Of a text in a card."""


def compare_view(context: Context) -> Html:
    """With a problem: where it was asked, side by side. Without: the biggest movers."""
    return _problem(context) if context.state.problem else _movers(context)


def _problem(context: Context) -> Html:
    state, index = context.state, context.index
    found = appearances(index, state.split, state.problem)
    stations = (f"compare · {state.split}", context.link(problem="")), (state.problem[:200], None)
    if not found:
        return not_here(context, "No step of this split asked that problem.", *stations)
    compared = {(0, state.first), (len(index.runs) - 1, state.last)}
    shown = _chosen(found, compared)
    hidden = [row for row in found if row not in shown]
    asked = [
        f"{index.names[run]}: {counted(sum(row['run'] == run for row in found), 'step')}"
        for run in sorted({row["run"] for row in found})
    ]
    alike = asked_alike(index, state.split, state.problem)
    return el(
        "section.compare",
        trail(*stations),
        el("p.quiet", f"asked in {'; '.join(asked)}", f", of which {len(shown)} are shown" if hidden else None),
        None if alike else el("p.note", "The runs asked different problems under this id: see question and answer."),
        el("div.variants", [_appearance(context.at(run=row["run"], step=row["step"]), row, compared) for row in shown]),
        el("details", el("summary", "the other steps"), el("ul", [_elsewhere(context, row) for row in hidden]))
        if hidden
        else None,
    )


def _chosen(found: Sequence[dict[str, Any]], compared: set[tuple[int, int]]) -> list[dict[str, Any]]:
    """At most eight appearances, the first and last of a run, of two runs at the same steps where there are such; and
    those at the (run, step) pairs that were compared."""
    runs = sorted({row["run"] for row in found})
    steps = [{row["step"] for row in found if row["run"] == run} for run in runs]
    both = set.intersection(*steps)
    most = 4 if len(runs) == 1 else 2
    ends = {(run, step) for run, own in zip(runs, steps, strict=True) for step in _ends(both or own, most)}
    chosen = [row for row in found if (row["run"], row["step"]) in ends | compared]
    return sorted(chosen, key=lambda row: (row["step"], row["run"]))


def _ends(steps: set[int], most: int) -> list[int]:
    ordered = sorted(steps)
    return ordered if len(ordered) <= 2 * most else [*ordered[:most], *ordered[-most:]]


def _elsewhere(context: Context, row: dict[str, Any]) -> Html:
    there = context.at(run=row["run"], step=row["step"])
    href = there.link("problem")
    return el("li", el("a", _named(there), href=href), f" {_right(row)}")


def _named(context: Context) -> str:
    """The step, with its run where there are two."""
    state, names = context.state, context.index.names
    return f"{names[state.run]} · step {state.step}" if len(names) > 1 else f"step {state.step}"


def _appearance(context: Context, row: dict[str, Any], compared: set[tuple[int, int]]) -> Html:
    state = context.state
    rows = responses(context.index, state.run, state.split, state.step, state.problem)
    first = rows[0] if rows else None
    left_out = len(rows) - _TEXTS
    return el(
        "article.card.marked" if (state.run, state.step) in compared else "article.card",
        el("h2", el("a", _named(context), href=context.link("problem"))),
        [picture(context, sha, f"image at step {state.step}") for sha in (first["image_sha"] if first else [])],
        first and el("p", question(_start(first["variant_text"], "question"))),
        first and el("p.quiet", "right answer ", el("bdi", shortened(first["answer"]))),
        el("p", f"{_right(row)}, reward {number(row['reward'])} ", badge(row["outcome"])),
        [_text(context, response_row) for response_row in rows[:_TEXTS]],
        el("p", el("a", f"{left_out} more", href=context.link("problem"))) if left_out > 0 else None,
    )


def _text(context: Context, row: dict[str, Any]) -> Html:
    whole = context.link("response", variant=row["variant_index"], response=row["response_index"])
    return el(
        "details",
        el("summary", f"Q{row['variant_index']}·{row['response_index']} reward {number(row['total'])}"),
        response(_start(row["text"], "response"), full=False, all_of_it=whole),
        el("p", el("a", "the whole response", href=whole)),
    )


def _start(written: str, kind: str) -> str:
    most = _CHARACTERS[kind]
    return written if len(written) <= most else written[:most].rstrip() + " …"


def _movers(context: Context) -> Html:
    state, index = context.state, context.index
    later_run = len(index.runs) - 1
    choices = _choices(context, later_run)
    heading = el("header.view", trail((f"compare · {state.split}", None)), split_tabs(context, first=-1, last=-1))
    if not choices[0] or not choices[1]:
        lacking = "The runs do not both hold this split." if later_run else "No problem of this split was asked twice."
        return el("section", heading, empty("Nothing to compare", lacking, *_elsewhere_to(context)))
    first, last = _defaults(state.first, state.last, choices, same_run=not later_run)
    before, after = context.at(run=0, step=first), context.at(run=later_run, step=last)
    pair = (0, first), (later_run, last)
    rows, unlike = movers(index, state.split, *pair, state.moves), strangers(index, state.split, *pair)
    counts = moves_of(index, state.split, *pair)
    return el(
        "section.compare",
        heading,
        el(
            "form.filters",
            _choice(before, "first", choices[0]),
            " to ",
            _choice(after, "last", choices[1]),
            el("button", "Compare", type="submit"),
        ),
        el(
            "p.quiet",
            f"problems by how far their accuracy is from {_named(before)} to {_named(after)}",
            _of_common(counts, state.moves, len(rows)),
        ),
        _ways(context, counts) if counts["both"] else None,
        _warning(unlike),
        el("ol.movers", [_mover(context, row) for row in rows]) if rows else _none(context, counts, unlike),
    )


def _ways(context: Context, counts: dict[str, int]) -> Html:
    """The switch between gains, losses and all that both have."""
    chosen = context.state.moves
    links = [(f"{way or 'all'} {counts[way or 'both']:,}", context.link(moves=way), way == chosen) for way in MOVES]
    return el("p", tabs("which moves", links))


def _none(context: Context, counts: dict[str, int], unlike: Sequence[dict[str, Any]]) -> Html | None:
    """Why no problem is listed, and what to do."""
    state, index = context.state, context.index
    if counts["both"]:
        return el("p", f"No {state.moves} between these steps.")
    last = len(index.runs) - 1
    if last and not share_a_problem(index, state.split, (0, last)):
        told = f"The two runs have no problem of the split {state.split} in common, at no step."
        return empty("No common problem", told, *_elsewhere_to(context, but=state.split))
    return None if unlike else empty("No common problem", "Choose two steps that asked the same problems.")


def comparable(context: Context) -> list[str]:
    """Splits in which there is something to compare: problems that one run asked again, or steps of both runs."""
    last = len(context.index.runs) - 1
    return [name for name in context.index.splits(0) if all(_choices(context.at(split=name), last))]


def _elsewhere_to(context: Context, but: str = "") -> list[Html]:
    """Where there is something to compare, when the split that is shown has nothing."""
    return [
        el("a.button", f"compare in {name}", href=context.link(split=name, step=-1, first=-1, last=-1))
        for name in comparable(context)
        if name != but
    ]


def _choices(context: Context, later_run: int) -> tuple[list[int], list[int]]:
    """The steps to choose from: of one run those that share a problem with another, of two runs all."""
    index, split = context.index, context.state.split
    if later_run:
        return index.steps(0, split), index.steps(later_run, split)
    steps = repeated(index, context.at(run=0).state)
    return steps, steps


def _defaults(first: int, last: int, choices: tuple[list[int], list[int]], *, same_run: bool) -> tuple[int, int]:
    """The steps as chosen; else the first and the last of one run, the newest that both have of two, or where that is
    the one before the training the newest of each."""
    both = [step for step in choices[0] if step in set(choices[1]) and step > 0]
    ends = (choices[0][0], choices[1][-1]) if same_run else (both or choices[0])[-1:] + (both or choices[1])[-1:]
    return first if first in choices[0] else ends[0], last if last in choices[1] else ends[1]


def _choice(chosen: Context, name: str, steps: Sequence[int]) -> Html:
    here = chosen.state.step
    options = [el("option", _named(chosen.at(step=step)), value=step, selected=step == here) for step in steps]
    return el("select", options, name=name, aria_label=f"{name} step")


def _warning(rows: Sequence[dict[str, Any]]) -> Html | None:
    """Ids that mean different problems in the two runs, which therefore did not move."""
    if not rows:
        return None
    lines = [
        el(
            "li",
            el("code", row["problem"][:200]),
            ": ",
            el("bdi", f"{shortened(row['question'], 90)} ({shortened(row['answer'], 30)})", dir="auto"),
            " and ",
            el("bdi", f"{shortened(row['question_b'], 90)} ({shortened(row['answer_b'], 30)})", dir="auto"),
        )
        for row in rows[:20]
    ]
    told = f"⚠ {counted(len(rows), 'id')} with another question or right answer in each run, not compared"
    return el("details.note", el("summary", told), el("ul", lines), role="status")


def _mover(context: Context, row: dict[str, Any]) -> Html:
    shas = row["images"] or []
    label = el("bdi", shortened(row["question"], 90) or row["problem"], dir="auto")
    return el(
        "li",
        picture(context.at(run=0), shas[0], f"image of {row['problem']}", ".small") if shas else el("span"),
        el("a.row", label, href=context.link(problem=row["problem"]), data_row=True),
        el("span.quiet", _before_after(row), title="right, of the responses that have a verdict"),
        el("b", moved(row["moved"])),
    )


def _right(row: dict[str, Any]) -> str:
    """Of how many responses with a verdict how many are right."""
    return f"{percent(row['success'])} of {row['judged']} right"


def _before_after(row: dict[str, Any]) -> str:
    first, last = row["judged"], row["judged_b"]
    of_first = "" if first == last else f" of {first}"
    return f"{percent(row['before'])}{of_first} → {percent(row['after'])} of {last}"


def _of_common(counts: dict[str, int], moves: str, shown: int) -> str | None:
    """How many problems both have, and how many of those that were asked for are listed."""
    if not counts["both"]:
        return None
    left_out = shown < counts[moves or "both"]
    return f": {counted(counts['both'], 'problem')} in both" + (f", the farthest {shown}" if left_out else "")
