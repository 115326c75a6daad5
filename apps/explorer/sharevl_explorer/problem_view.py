"""Problem: the variants side by side, and every response scored under every variant."""

from __future__ import annotations

from itertools import groupby
from statistics import stdev
from typing import Any

from sharevl_explorer.figures import number, percent
from sharevl_explorer.folds import folded
from sharevl_explorer.markup import Html, el
from sharevl_explorer.parts import Context, badge, counted, key, picture, scrolling, signals, tabs, trains, untrained
from sharevl_explorer.places import asked_again, not_here, other_steps, place, same_problem, step_keys
from sharevl_explorer.prompt import prompt_as_sent
from sharevl_explorer.prose import question, shortened, word_diff
from sharevl_explorer.queries import appearances, neighbours, responses
from sharevl_explorer.state import CELLS


def problem_view(context: Context) -> Html:
    """One problem of one step; `variant` marks a column."""
    state = context.state
    rows = responses(context.index, state.run, state.split, state.step, state.problem)
    stations = ((f"step {state.step}", context.link("step")), (state.problem[:200], None))
    if not rows:
        return not_here(
            context,
            f"Step {state.step} holds no problem {state.problem[:200]!r}, or its file cannot be read.",
            *stations,
        )
    groups = [(j, list(group)) for j, group in groupby(rows, key=lambda row: row["variant_index"])]
    steps = same_problem(context)
    return el(
        "section.problem",
        _keys(context, [j for j, _ in groups]),
        step_keys(context, steps),
        place(context, *stations),
        el(
            "header.view",
            el("p", "right answer ", el("b.gold", el("bdi", rows[0]["answer"], dir="auto"))),
            _whole(context),
            other_steps(context, steps),
            el("a.button.plain", "compare across steps", href=context.link("compare"))
            if asked_again(context) and context.link("compare")
            else None,
        ),
        el("div.variants", [_card(context, j, group, groups[0][1][0]) for j, group in groups]),
        _matrix(context, rows, [j for j, _ in groups]),
    )


def _whole(context: Context) -> Html | None:
    """The problem's figures in the step, as in the Step view's row."""
    state = context.state
    found = [
        row
        for row in appearances(context.index, state.split, state.problem)
        if (row["run"], row["step"]) == (state.run, state.step)
    ]
    if not found:
        return None
    (row,) = found
    spread = f", spread {number(row['spread_global'])}"
    signal = badge(row["signal"], signals(context)) if trains(state.split) else None
    return el(
        "p", el("span.quiet", f"mean reward {number(row['reward'])}{spread} "), badge(row["outcome"]), " ", signal
    )


def _keys(context: Context, variants: list[int]) -> list[Html | None]:
    state = context.state
    before, after = neighbours(context.index, state)
    marked = variants.index(state.variant) if state.variant in variants else 0
    return [
        key(context, "k", before and context.link(problem=before)),
        key(context, "j", after and context.link(problem=after)),
        key(context, "h", context.link(variant=variants[max(marked - 1, 0)])),
        key(context, "l", context.link(variant=variants[min(marked + 1, len(variants) - 1)])),
    ]


def _card(context: Context, j: int, group: list[dict[str, Any]], original: dict[str, Any]) -> Html:
    first = group[0]
    known = [row["accuracy"] for row in group if row["accuracy"] is not None]
    rewards = [row["total"] for row in group if row["total"] is not None]
    success = percent(sum(known) / len(known)) if known else "–"
    spread = number(stdev(rewards)) if len(rewards) > 1 else "–"
    same = first["variant_text"] == original["variant_text"]
    changed = (
        question(first["variant_text"])
        if j == original["variant_index"] or same
        else word_diff(original["variant_text"], first["variant_text"])
    )
    marked = ".marked" if j == context.state.variant else ""
    return el(
        f"article.card{marked}",
        el("h2", f"Q{j}", el("span.quiet", " original" if j == 0 else f" {first['transform'] or 'no transform'}")),
        el(
            "div.pictures",
            [
                picture(context, sha, f"image {n + 1} of variant {j}, {first['transform'] or 'as it is'}")
                for n, sha in enumerate(first["image_sha"])
            ],
        ),
        el("div.asked", folded(first["variant_text"], changed)),
        prompt_as_sent(context.index.runs[context.state.run], first["variant_text"]),
        el("p.quiet", f"{counted(len(group), 'response')}, {success} right, local spread {spread}"),
    )


def _matrix(context: Context, rows: list[dict[str, Any]], variants: list[int]) -> Html:
    """Every response in a row; where any was scored under variants, with the matrix of those scores beside it."""
    state = context.state
    shown = CELLS[state.cell]
    values = {
        (row["variant_index"], row["response_index"], scorer["variant_index"]): scorer[shown.field]
        for row in rows
        for scorer in row["scorers"]
    }
    scale = max(shown.floor, *(abs(value) for value in values.values() if value is not None), 0.0)
    columns = variants if values else []
    head = el(
        "tr",
        el("th", "response", scope="col"),
        el("th", "reward", scope="col"),
        el("th", "answer", scope="col", title="found in the response by the verifier"),
        el("th", "tokens", scope="col"),
        [el("th", f"Q{k}", scope="col", class_="marked" if k == state.variant else None) for k in columns],
    )
    body = [_line(context, row, columns, values, scale) for row in rows]
    table = scrolling("responses", el("table.matrix", el("thead", head), el("tbody", body), aria_label="responses"))
    if not values:
        told = f"No response was scored under variants: {untrained(state.split, rows)}."
        return el("section.panel", el("h2", "Responses"), el("p.quiet", told), table)
    switch = [(cell.name, context.link(cell=name), name == state.cell) for name, cell in CELLS.items()]
    return el(
        "section.panel",
        el(
            "header.view",
            el("h2", "Cross-scoring"),
            tabs("what a cell shows", switch) if context.anchors is None else None,
        ),
        el(
            "p.quiet",
            "Rows are responses, columns the variants they were scored under; the source is outlined. "
            f"Cells: {shown.name}, {shown.meaning}.",
        ),
        table,
        _legend(scale, state.cell),
    )


def _line(context: Context, row: dict[str, Any], variants: list[int], values: dict[Any, Any], scale: float) -> Html:
    j, i = row["variant_index"], row["response_index"]
    mark = "?" if row["accuracy"] is None else "✓" if row["accuracy"] > 0 else "✕"
    href = context.link("response", variant=j, response=i)
    name = el(
        "a.row",
        f"Q{j}·{i} ",
        el("span", mark, aria_label={"✓": "right", "✕": "wrong", "?": "unknown"}[mark]),
        href=href,
        title=shortened(row["text"]),
        data_row=True,
    )
    cells = []
    for k in variants:
        value = values.get((j, i, k))
        share = 0.0 if value is None else min(abs(value) / scale, 1.0)
        sign = "neg" if (value or 0) < 0 else "pos"
        source = ".source" if k == j else ""
        cells.append(
            el(
                f"td.cell.{sign}{source}",
                number(value, 3),
                style=f"--v:{100 * share:.0f}%",
                title=f"Q{j}, response {i}, under Q{k}: {number(value, 4)}",
            )
        )
    extracted = (row["verification"] or {}).get("extracted")
    border = "first" if i == 0 and j > 0 else None
    facts = [
        el("td.number", number(row["total"])),
        el("td.answer", el("bdi", shortened(extracted, 24) if extracted is not None else "–")),
        el("td.number", f"{len(row['token_ids']):,}", ", cut" if row["truncated"] else None),
    ]
    return el("tr", el("th", name, scope="row"), facts, cells, class_=border)


def _legend(scale: float, cell: str) -> Html:
    low = None if cell == "clip" else number(-scale)
    return el(
        "p.scale",
        low,
        el("span.ramp" + (".half" if cell == "clip" else ""), aria_hidden="true"),
        number(scale),
        el("span.outline", "source"),
        "– not a pair" if cell == "advantage" else "– not forwarded",
    )
