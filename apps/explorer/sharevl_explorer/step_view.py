"""Step: the problems of one step, filtered, sorted and paged by the server."""

from __future__ import annotations

from typing import Any

from sharevl_explorer.charts import number, percent
from sharevl_explorer.markup import Html, el
from sharevl_explorer.parts import OUTCOMES, Context, badge, empty, key, picture, step_keys, trail
from sharevl_explorer.prose import shortened
from sharevl_explorer.queries import Page, problems, transforms

_COLUMNS = (
    ("question", "problem", ""),
    ("success", "success", "share of right responses"),
    ("reward", "reward", "mean total reward"),
    ("spread_global", "spread", "global: standard deviation of the reward over all responses"),
    ("spread_local", "local", "mean over variants of the deviation inside a variant"),
    ("outcome", "outcome", "by verdicts and spread"),
    ("rescued", "rescued", "variants without spread inside, of all"),
    ("truncated", "cut", "responses cut at the length limit"),
    ("transforms", "transforms", "of the variants' images"),
)


def step_view(context: Context) -> Html:
    """The table, its filters and its pages."""
    state, index = context.state, context.index
    if state.step not in index.steps(state.run, state.split):
        return empty(
            f"No step {state.step}", "It is not stored, or cannot be read yet. The Run view lists what is there."
        )
    page = problems(index, state)
    rows = [_row(context, row) for row in page.rows]
    head = el("tr", el("th", el("span.hidden", "image")), [_heading(context, *column) for column in _COLUMNS])
    table = el("div.scroll", el("table.problems", el("thead", head), el("tbody", rows)))
    return el(
        "section.step",
        step_keys(context),
        trail((index.runs[state.run].name, context.link("run")), (f"step {state.step}", None)),
        _filters(context),
        table if rows else empty("Nothing fits", "No problem of this step passes the filters."),
        _pager(context, page),
    )


def _row(context: Context, row: dict[str, Any]) -> Html:
    href = context.link("problem", problem=row["problem"], variant=0, response=0)
    shas = row["images"] or []
    label = el("a.row", shortened(row["question"], 110) or row["problem"], href=href, data_row=True)
    success = percent(row["success"])
    meter = el("span.meter", el("span", style=f"width:{100 * (row['success'] or 0):.0f}%"), aria_hidden="true")
    return el(
        "tr",
        el("td.thumb", picture(context, shas[0], f"image of {row['problem']}", ".small") if shas else "–"),
        el("td.question", label, el("code.id", row["problem"])),
        el("td.number", success, meter, data_label="success"),
        el("td.number", number(row["reward"]), data_label="reward"),
        el("td.number", number(row["spread_global"]), data_label="spread"),
        el("td.number", number(row["spread_local"]), data_label="local"),
        el("td", badge(row["outcome"])),
        el("td.number", f"{row['rescued']} of {row['variants']}", data_label="rescued"),
        el("td.number", row["truncated"], data_label="cut"),
        el("td", row["transforms"] or "none", data_label="transforms"),
    )


def _heading(context: Context, column: str, label: str, meaning: str) -> Html:
    state = context.state
    mine = state.sort == column
    arrow = (" ↓" if state.down else " ↑") if mine else ""
    down = not state.down if mine else column != "question"
    href = context.link(sort=column, down=int(down), page=1)
    order = ("descending" if state.down else "ascending") if mine else None
    return el("th", el("a", label + arrow, href=href, title=meaning or None), scope="col", aria_sort=order)


def _filters(context: Context) -> Html:
    state = context.state
    found = [(name, name) for name in transforms(context.index, state)]
    outcomes = [("", "any outcome"), *((name, label) for name, (label, _, _) in OUTCOMES.items())]
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
            href=context.link(q="", outcome="", transform="", low=None, high=None, truncated=0, page=1),
        ),
        role="search",
    )


def _written(value: float | None) -> str:
    return "" if value is None else f"{value:g}"


def _select(name: str, choices: list[tuple[str, str]], chosen: str) -> Html:
    options = [el("option", label, value=value, selected=value == chosen) for value, label in choices]
    return el("select", options, name=name, aria_label=name)


def _pager(context: Context, page: Page) -> Html:
    before = context.link(page=page.number - 1) if page.number > 1 else None
    after = context.link(page=page.number + 1) if page.number < page.pages else None
    return el(
        "nav.pager",
        el("a.button", "← previous", href=before) if before else None,
        el("span", f"{page.total:,} problems, page {page.number} of {page.pages}"),
        el("a.button", "next →", href=after) if after else None,
        key(context, "h", before),
        key(context, "l", after),
        aria_label="pages",
    )
