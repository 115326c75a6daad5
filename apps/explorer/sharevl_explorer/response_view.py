"""Response: the text, its verdict, its rewards and advantages, and how likely each token was."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean, stdev
from typing import Any

from sharevl_explorer.figures import number
from sharevl_explorer.folds import folded
from sharevl_explorer.markup import Html, el
from sharevl_explorer.parts import Context, counted, key, picture, untrained
from sharevl_explorer.places import not_here, place, same_problem, step_keys
from sharevl_explorer.prompt import prompt_as_sent
from sharevl_explorer.prose import question
from sharevl_explorer.prose import response as set_response
from sharevl_explorer.queries import extra, responses
from sharevl_explorer.token_view import token_view

_LOGGED = 4000
"""Characters of one logged value that are shown, unless all is asked for."""


def response_view(context: Context) -> Html:
    """One response of one problem in one step."""
    state = context.state
    rows = responses(context.index, state.run, state.split, state.step, state.problem)
    places = [(row["variant_index"], row["response_index"]) for row in rows]
    stations = (
        (f"step {state.step}", context.link("step")),
        (state.problem[:200], context.link("problem")),
        (f"Q{state.variant}·{state.response}", None),
    )
    if (state.variant, state.response) not in places:
        return not_here(context, "This step holds no such response, or its file cannot be read.", *stations)
    at = places.index((state.variant, state.response))
    row = rows[at]
    alts = f"image of variant {state.variant}"
    asked = el(
        "aside.panel.asked",
        el("h2", f"Q{state.variant}"),
        [picture(context, sha, alts) for sha in row["image_sha"]],
        el("div", folded(row["variant_text"], question(row["variant_text"]))),
        prompt_as_sent(context.index.runs[state.run], row["variant_text"]),
    )
    return el(
        "section.response",
        _keys(context, places, at),
        step_keys(context, same_problem(context)),
        place(context, *stations),
        el(
            "div.columns",
            asked,
            el("div", _text(context, row), _logged(context, row), token_view(context, row)),
            el("div", _verdict(row), _advantage(state.split, row, rows)),
        ),
    )


def _keys(context: Context, places: Sequence[tuple[int, int]], at: int) -> list[Html | None]:
    def to(other: tuple[int, int]) -> str | None:
        return context.link(variant=other[0], response=other[1])

    j, i = places[at]
    near = {sign: (j + by, i) for sign, by in (("h", -1), ("l", 1))}
    return [
        key(context, "k", to(places[at - 1])) if at else None,
        key(context, "j", to(places[at + 1])) if at + 1 < len(places) else None,
        *(key(context, sign, to(other)) for sign, other in near.items() if other in places),
    ]


def _text(context: Context, row: dict[str, Any]) -> Html:
    whole = context.link(full=1)
    cut = el("p.note", "cut at the length limit") if row["truncated"] else None
    shown = set_response(row["text"], full=bool(context.state.full), all_of_it=whole)
    return el("section.panel", el("h2", f"Response, {counted(len(row['token_ids']), 'token')}"), shown, cut)


def _at_most(text: str, most: int = 2000) -> str:
    return text if len(text) <= most else f"{text[:most]}… ({len(text):,} characters in all)"


def _verdict(row: dict[str, Any]) -> Html:
    verdict = row["verification"] or {}
    judged = {None: "no verdict", True: "✓ right", False: "✕ wrong"}[
        None if row["accuracy"] is None else row["accuracy"] > 0
    ]
    facts = [
        ("verdict", judged),
        ("extracted", verdict.get("extracted") if verdict.get("extracted") is not None else "nothing found"),
        ("right answer", row["answer"]),
        ("rule", verdict.get("rule") or "–"),
        ("failure", verdict.get("failure")),
    ]
    rewards = [("total", row["total"]), ("accuracy", row["accuracy"]), ("format", row["format"])]
    rewards += sorted((row["rewards"]["functions"] or {}).items())
    return el(
        "section.panel",
        el("h2", "Verdict and rewards"),
        el(
            "dl",
            [[el("dt", name), el("dd", el("bdi", _at_most(str(value))))] for name, value in facts if value is not None],
        ),
        el("dl.figures", [[el("dt", name), el("dd", number(value, 3))] for name, value in rewards]),
        el("p.quiet", "total is the weighted sum of the parts, which are shown without their weights"),
    )


def _logged(context: Context, row: dict[str, Any]) -> Html | None:
    """What reward functions said about the response by `log_extra`, a judge's reasons for one."""
    said = extra(context.index, context.state) if row["schema_version"] >= 3 else {}
    if not said:
        return None
    limit = None if context.state.full else _LOGGED
    entries = [[el("dt", name), el("dd", el("bdi", value[:limit]))] for name, value in said.items()]
    cut = any(len(value) > _LOGGED for value in said.values()) and limit is not None
    whole = el("p.note", f"the first {_LOGGED:,} characters of each; ", el("a", "show all", href=context.link(full=1)))
    return el("section.panel", el("h2", "Logged by reward functions"), el("dl.logged", entries), whole if cut else None)


def _advantage(split: str, row: dict[str, Any], rows: Sequence[dict[str, Any]]) -> Html:
    """Both levels, and the advantage of each pair as it was stored: `share.levels` and `share.trajectories` choose."""
    if row["adv_global"] is None:
        return el("section.panel", el("h2", "Advantage"), el("p.quiet", f"none: {untrained(split, [row])}"))
    levels = [("global", row["adv_global"]), ("local", row["adv_local"])]
    pairs = [(_under(row, scorer), scorer["advantage"]) for scorer in row["scorers"]]
    gaps = [(f"under Q{s['variant_index']}", s["gap"]) for s in row["scorers"]]
    floor = max([0.5, *(abs(value) for _, value in [*levels, *pairs] if value is not None)])
    trained = [el("h3", "trained with"), _bars(pairs, floor=floor, unknown="not a pair")]
    return el(
        "section.panel",
        el("h2", "Advantage"),
        _bars(levels, floor=floor),
        el("p.quiet", _where_from(row, rows)),
        trained if pairs else None,
        el("h2", "Log-prob gap"),
        _bars(gaps, floor=0.05),
        el("p.quiet", "mean over tokens, nats, against the source"),
    )


def _where_from(row: dict[str, Any], rows: Sequence[dict[str, Any]]) -> str:
    """What both levels compare the reward with: mean and deviation (n - 1) of the problem's and the group's rewards."""
    j = row["variant_index"]
    own = [other for other in rows if other["variant_index"] == j]
    told = []
    for whose, members in (("the problem's", rows), (f"Q{j}'s", own)):
        rewards = [other["total"] for other in members if other["total"] is not None]
        if len(rewards) > 1:
            told.append(f"mean {number(mean(rewards))}, deviation {number(stdev(rewards))} of {whose} {len(rewards)}")
    return f"reward {number(row['total'])}; " + "; ".join(told)


def _under(row: dict[str, Any], scorer: dict[str, Any]) -> str:
    """A scoring variant; the one that the response was sampled under is marked."""
    k = scorer["variant_index"]
    return f"under Q{k}" + (", its own" if k == row["variant_index"] else "")


def _bars(values: Sequence[tuple[str, float | None]], *, floor: float, unknown: str = "–") -> Html:
    """Bars to both sides of 0. `floor`: the least value that fills a side, so that nothing is not drawn large.
    `unknown` stands where there is no value."""
    scale = max([floor, *(abs(value) for _, value in values if value is not None)])
    lines = []
    for name, value in values:
        sign = "neg" if (value or 0) < 0 else "pos"
        bar = el(f"span.bar-{sign}", style=f"width:{50 * abs(value or 0) / scale:.1f}%")
        figure = unknown if value is None else number(value, 3)
        lines.append([el("dt", name), el("dd", el("span.axis", bar, aria_hidden="true"), el("b", figure))])
    return el("dl.bars", lines)
