"""Where a view stands: its trail, the switch of splits, the keys to other steps, and what to do where nothing is."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any

from sharevl_explorer.markup import Html, el
from sharevl_explorer.parts import Context, key, tabs, trail
from sharevl_explorer.queries import whereabouts

_NEAR = 6
"""Steps that are offered to each side of the one that is shown."""


def place(context: Context, *stations: tuple[str, str | None]) -> Html:
    """The trail from the run down to the view. The split is named wherever there is another to mistake it for."""
    state, index = context.state, context.index
    run = index.names[state.run]
    splits = index.splits(state.run)
    named = f"{run} · {state.split}" if splits != ["train"] or state.split != "train" else run
    return trail((named, context.link("run")), *stations)


def split_tabs(context: Context, **changes: Any) -> Html | None:
    """A switch between the run's splits; it stays at the step where the other split has it, else takes the newest."""
    state, index = context.state, context.index
    names = index.splits(state.run)
    if len(names) < 2:
        return None
    links = []
    for name in names:
        step = state.step if state.step in index.steps(state.run, name) else -1
        links.append((name, context.link(split=name, **{"step": step, "sheet": 1, **changes}), name == state.split))
    return tabs("split", links)


def step_keys(context: Context, steps: Sequence[int]) -> list[Html | None]:
    """`[` and `]` go to the nearest of these steps before and after the state's."""
    before, after = _around(steps, context.state.step, 1)
    return [
        key(context, sign, context.link(step=near[0], sheet=1)) for sign, near in (("[", before), ("]", after)) if near
    ]


def same_problem(context: Context) -> list[int]:
    """Steps of the state's run and split that asked its problem, ascending."""
    state = context.state
    return [
        found["step"]
        for found in whereabouts(context.index, state.problem)
        if (found["run"], found["split"]) == (state.run, state.split)
    ]


def asked_again(context: Context) -> bool:
    """Whether the state's split asked its problem at more than one place: another step, or another run."""
    state = context.state
    return sum(found["split"] == state.split for found in whereabouts(context.index, state.problem)) > 1


def other_steps(context: Context, steps: Sequence[int]) -> Html | None:
    """Links to the nearest steps that asked the same problem; None in a file, or where there is no other."""
    before, after = _around(steps, context.state.step, _NEAR)
    if context.anchors is not None or not (before or after):
        return None
    links = [el("a", step, href=context.link(step=step)) for step in [*before, *after]]
    left_out = len([step for step in steps if step != context.state.step]) - len(links)
    return el("p.quiet", "also asked at step ", _listed(links), f" and {left_out} more" if left_out else None)


def not_here(context: Context, message: str, *stations: tuple[str, str | None]) -> Html:
    """A view of what a step does not hold: the way up, and the steps that hold it."""
    state, index = context.state, context.index
    found = whereabouts(index, state.problem) if state.problem else []
    steps = same_problem(context) if state.problem else index.steps(state.run, state.split)
    if not state.problem:
        found = [{"run": state.run, "split": state.split, "step": step} for step in steps]
    lines = []
    for (run, split), group in groupby(found, lambda row: (row["run"], row["split"])):
        there = context.at(run=run, split=split)
        everywhere = [row["step"] for row in group]
        before, after = _around(everywhere, state.step, _NEAR)
        near = [*before, *([state.step] if state.step in everywhere else []), *after]
        links = [el("a", step, href=there.link(step=step)) for step in near]
        left_out = len(everywhere) - len(near)
        more = f" and {left_out} more" if left_out else None
        lines.append(el("li", f"{index.names[run]} · {split}: step ", _listed(links), more))
    return el(
        "section",
        step_keys(context, steps),
        place(context, *stations),
        el(
            "section.empty",
            el("h2", "Not here"),
            el("p", message),
            [el("p", "It was asked in" if state.problem else "There are"), el("ul", lines)] if lines else None,
        ),
    )


def _around(steps: Sequence[int], step: int, most: int) -> tuple[list[int], list[int]]:
    """The nearest `most` steps before and after one, ascending."""
    return [other for other in steps if other < step][-most:], [other for other in steps if other > step][:most]


def _listed(links: Sequence[Html]) -> list[Any]:
    return [part for number, link in enumerate(links) for part in ((", ", link) if number else (link,))]
