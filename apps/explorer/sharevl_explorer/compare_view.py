"""Compare: one problem across steps or runs, or the problems whose accuracy moved most."""

from __future__ import annotations

from typing import Any

from sharevl_explorer.charts import number, percent
from sharevl_explorer.markup import Html, el
from sharevl_explorer.parts import Context, badge, empty, picture, trail
from sharevl_explorer.prose import question, response, shortened
from sharevl_explorer.queries import appearances, movers, repeated, responses


def compare_view(context: Context) -> Html:
    """With a problem: where it was asked, side by side. Without: the biggest movers."""
    return _problem(context) if context.state.problem else _movers(context)


def _problem(context: Context) -> Html:
    state, index = context.state, context.index
    found = appearances(index, state.split, state.problem)
    if not found:
        return empty("Not here", "No step of this split asked that problem.")
    shown = found if len(found) <= 8 else [*found[:4], *found[-4:]]
    left_out = f"; the first and last four of {len(found)} are shown" if len(found) > 8 else ""
    return el(
        "section.compare",
        trail(("compare", context.link(problem="")), (state.problem, None)),
        el("p.quiet", f"asked in {len(found)} steps{left_out}"),
        el("div.variants", [_appearance(context.at(run=row["run"], step=row["step"]), row) for row in shown]),
    )


def _appearance(context: Context, row: dict[str, Any]) -> Html:
    state = context.state
    rows = responses(context.index, state.run, state.split, state.step, state.problem)
    first = rows[0] if rows else None
    runs = f"{context.index.runs[state.run].name}, " if len(context.index.runs) > 1 else ""
    texts = [
        el(
            "details",
            el("summary", f"Q{r['variant_index']}·{r['response_index']} reward {number(r['total'])}"),
            response(
                r["text"],
                full=False,
                all_of_it=context.link("response", variant=r["variant_index"], response=r["response_index"]),
            ),
        )
        for r in rows
    ]
    return el(
        "article.card",
        el("h3", el("a", f"{runs}step {state.step}", href=context.link("problem"))),
        [picture(context, sha, f"image at step {state.step}") for sha in (first["image_sha"] if first else [])],
        first and el("p", question(first["variant_text"])),
        el("p", f"{percent(row['success'])} right, reward {number(row['reward'])} ", badge(row["outcome"])),
        texts,
    )


def _movers(context: Context) -> Html:
    state, index = context.state, context.index
    steps = repeated(index, state)
    later_run = 1 if len(index.runs) > 1 else 0
    later = index.steps(later_run, state.split) if later_run else steps
    if not steps or not later or (not later_run and len(steps) < 2):
        others = [
            el("a.button", f"split {name}", href=context.link(split=name, first=-1, last=-1))
            for name in index.splits()
            if name != state.split
        ]
        return el("section", empty("Nothing to compare", "No problem of this split was asked in two steps."), others)
    first = state.first if state.first in steps else steps[0]
    last = state.last if state.last in later else later[-1]
    rows = movers(index, state.split, (0, first), (later_run, last))
    return el(
        "section.compare",
        trail(("compare", None)),
        el(
            "form.filters",
            _choice("first", steps, first),
            " to ",
            _choice("last", later, last),
            el("button", "Compare", type="submit"),
        ),
        el("p.quiet", f"{state.split}: problems of both steps by how far their accuracy moved, the farthest 60"),
        el("ol.movers", [_mover(context, row) for row in rows])
        if rows
        else empty("No common problem", "Choose two steps that asked the same problems."),
    )


def _choice(name: str, steps: list[int], chosen: int) -> Html:
    options = [el("option", f"step {step}", value=step, selected=step == chosen) for step in steps]
    return el("select", options, name=name, aria_label=f"{name} step")


def _mover(context: Context, row: dict[str, Any]) -> Html:
    moved = row["moved"]
    sign = "▲" if moved > 0 else "▼" if moved < 0 else "＝"
    shas = row["images"] or []
    return el(
        "li",
        picture(context, shas[0], f"image of {row['problem']}", ".small") if shas else None,
        el("a.row", shortened(row["question"], 90), href=context.link(problem=row["problem"]), data_row=True),
        el("span.quiet", f"{percent(row['before'])} → {percent(row['after'])}"),
        el("b", f"{sign} {percent(abs(moved))}"),
    )
