"""Step: the problems of one step, filtered, sorted and paged by the server."""

from __future__ import annotations

from typing import Any

from sharevl_explorer.figures import number, percent
from sharevl_explorer.markup import Html, el
from sharevl_explorer.parts import OUTCOMES, Context, badge, counted, empty, key, picture, scrolling, signals, trains
from sharevl_explorer.places import not_here, place, split_tabs, step_keys
from sharevl_explorer.prose import shortened
from sharevl_explorer.queries import Page, problems, transforms

_COLUMNS = (
    ("problem", "problem", "by id"),
    ("success", "success", "share of right responses"),
    ("reward", "reward", "mean total reward"),
    ("spread_global", "spread", "global: standard deviation (n - 1) of the reward over all responses"),
    ("spread_local", "local", "mean over variants of the deviation (n - 1) inside a variant"),
    ("outcome", "outcome", "by verdicts"),
    ("signal", "signal", "what an update can learn from"),
    ("silent", "silent", "variants whose responses all earned the same, of all: no signal of their own"),
    ("truncated", "cut", "responses cut at the length limit"),
    ("transforms", "transforms", "of the variants' images"),
)


_OF_TRAINING = ("signal", "silent")
_SILENT = ("silent", "a silent group")


def step_view(context: Context) -> Html:
    """The table, its filters and its pages."""
    state, index = context.state, context.index
    steps = index.steps(state.run, state.split)
    if state.step not in steps:
        return not_here(
            context,
            f"Step {state.step} is not stored, or cannot be read yet.",
            (f"step {state.step}", None),
        )
    page = problems(index, state)
    told = signals(context)
    rows = [_row(context, row, told) for row in page.rows]
    columns = [column for column in _COLUMNS if trains(state.split) or column[0] not in _OF_TRAINING]
    head = el("tr", el("th", el("span.hidden", "image")), [_heading(context, *column) for column in columns])
    told_of = f"problems of step {state.step}"
    table = scrolling(told_of, el("table.problems", el("thead", head), el("tbody", rows), aria_label=told_of))
    return el(
        "section.step",
        step_keys(context, steps),
        el(
            "header.view",
            place(context, (f"step {state.step}", None)),
            split_tabs(context, signal="", transform=""),
        ),
        _filters(context),
        _summary(context, page),
        table if rows else empty("Nothing fits", "No problem of this step passes the filters."),
        _pager(context, page),
    )


def _summary(context: Context, page: Page) -> Html | None:
    """How many groups the filtered problems have of each signal: the figures of the Run view's bars."""
    if not trains(context.state.split) or not page.total:
        return None
    rescued = signals(context)["rescued"][0]
    return el(
        "p.quiet",
        f"{counted(page.total, 'problem')}, {counted(page.groups, 'variant group')}: "
        f"{page.groups - page.silent} with a signal of their own, {page.rescued} {rescued}, "
        f"{page.silent - page.rescued} with no signal",
    )


def _row(context: Context, row: dict[str, Any], told: dict[str, tuple[str, str, str]]) -> Html:
    trained = trains(context.state.split)
    href = context.link("problem", problem=row["problem"], variant=0, response=0)
    shas = row["images"] or []
    asked = el("bdi", shortened(row["question"], 110) or row["problem"], dir="auto")
    label = el("a.row", asked, href=href, data_row=True)
    success = percent(row["success"])
    meter = el("span.meter", el("span", style=f"width:{100 * (row['success'] or 0):.0f}%"), aria_hidden="true")
    return el(
        "tr",
        el("td.thumb", picture(context, shas[0], f"image of {row['problem']}", ".small") if shas else "–"),
        el("td.question", label, el("code.id", row["problem"]), _replaced(row)),
        el("td.number", success, meter, data_label="success"),
        el("td.number", number(row["reward"]), data_label="reward"),
        el("td.number", number(row["spread_global"]), data_label="spread"),
        el("td.number", number(row["spread_local"]), data_label="local"),
        el("td", badge(row["outcome"])),
        el("td", badge(row["signal"], told)) if trained else None,
        el("td.number", f"{row['silent']} of {row['variants']}", data_label="silent") if trained else None,
        el("td.number", row["truncated"], data_label="cut"),
        el("td", row["transforms"] or "none", data_label="transforms"),
    )


def _replaced(row: dict[str, Any]) -> Html | None:
    if not row["replaced"]:
        return None
    return el("span.quiet", " replaced", title="dynamic sampling put another problem in its place; no update saw it")


def _heading(context: Context, column: str, label: str, meaning: str) -> Html:
    state = context.state
    mine = state.sort == column
    arrow = (" ↓" if state.down else " ↑") if mine else ""
    down = not state.down if mine else column != "problem"
    href = context.link(sort=column, down=int(down), sheet=1)
    order = ("descending" if state.down else "ascending") if mine else None
    return el("th", el("a", label + arrow, href=href, title=meaning or None), scope="col", aria_sort=order)


def _filters(context: Context) -> Html:
    state = context.state
    found = [(name, name) for name in transforms(context.index, state)]
    outcomes = [("", "any outcome"), *((name, label) for name, (label, _, _) in OUTCOMES.items())]
    offered = [("", "any signal"), _SILENT, *((name, label) for name, (label, _, _) in signals(context).items())]
    bound = {"type": "number", "step": "any", "inputmode": "decimal"}
    return el(
        "form.filters",
        el(
            "input",
            type="search",
            name="q",
            value=state.q,
            placeholder="search questions and responses  ( / )",
            aria_label="search questions, answers and responses",
        ),
        _select("outcome", outcomes, state.outcome),
        _select("signal", offered, state.signal) if trains(state.split) else None,
        _select("transform", [("", "any transform"), *found], state.transform),
        el(
            "label",
            "reward ",
            el("input", name="low", value=_written(state.low), aria_label="reward from", **bound),
            " to ",
            el("input", name="high", value=_written(state.high), aria_label="reward up to", **bound),
        ),
        el(
            "label",
            el("input", type="checkbox", name="truncated", value="1", checked=bool(state.truncated)),
            " truncated",
        ),
        el("button", "Filter", type="submit"),
        el(
            "a.button.plain",
            "Clear",
            href=context.link(**_CLEARED),
        ),
        role="search",
    )


_CLEARED: dict[str, Any] = {
    **dict.fromkeys(("q", "outcome", "signal", "transform"), ""),
    **{"low": None, "high": None, "truncated": 0, "sheet": 1, "sort": "problem", "down": 0},
}
"""What a state without filters and in the order of ids has."""


def _written(value: float | None) -> str:
    return "" if value is None else f"{value:g}"


def _select(name: str, choices: list[tuple[str, str]], chosen: str) -> Html:
    options = [el("option", label, value=value, selected=value == chosen) for value, label in choices]
    return el("select", options, name=name, aria_label=name)


def _pager(context: Context, page: Page) -> Html:
    before = context.link(sheet=page.number - 1) if page.number > 1 else None
    after = context.link(sheet=page.number + 1) if page.number < page.pages else None
    return el(
        "nav.pager",
        el("a.button", "← previous", href=before) if before else None,
        el("span", f"{counted(page.total, 'problem')}, page {page.number} of {page.pages}"),
        el("a.button", "next →", href=after) if after else None,
        key(context, "h", before),
        key(context, "l", after),
        aria_label="pages",
    )
