"""Questions to the index and, for one problem or step, to its Parquet file. Values are always bound parameters."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from sharevl_explorer.index import Index
from sharevl_explorer.state import PAGE_ROWS, State

SORTS = {
    "problem": "id_order",
    "question": "question",
    "success": "success",
    "reward": "reward",
    "spread_global": "spread_global",
    "spread_local": "spread_local",
    "silent": "silent",
    "rescued": "rescued",
    "truncated": "truncated",
    "outcome": "outcome",
    "signal": "signal",
    "transforms": "transforms",
}
"""Columns by which a step's problems are sorted; nothing else reaches an ORDER BY."""

_STEP_MEANS = """
SELECT step, count(*) AS responses, avg(total) AS reward, avg(accuracy) AS accuracy, avg(format) AS format,
    avg(tokens) AS length, sum(gap * gaps * tokens) / nullif(sum(gaps * tokens) FILTER (gap IS NOT NULL), 0) AS gap,
    avg(truncated::INT) AS truncated
FROM responses WHERE run = $run AND split = $split GROUP BY step ORDER BY step
"""
_STEP_GROUPS = """
SELECT step, signal, outcome, count(*) AS n FROM variants WHERE run = $run AND split = $split
GROUP BY step, signal, outcome ORDER BY step
"""
_RESPONSES = """
SELECT schema_version, variant_index, variant_text, transform, image_sha, answer, response_index, text, token_ids,
    truncated, sampling_logprobs, rewards, verification, adv_global, adv_local, scorers, rewards.total AS total,
    rewards.accuracy AS accuracy, rewards.format AS format
FROM read_parquet($path) WHERE problem_id = $problem ORDER BY variant_index, response_index
"""
_TOKEN_LOGPROBS = """
SELECT scorers, scorer_logprobs FROM read_parquet($path)
WHERE problem_id = $problem AND variant_index = $variant AND response_index = $response
"""
_EXTRA = """
SELECT extra FROM read_parquet($path)
WHERE problem_id = $problem AND variant_index = $variant AND response_index = $response
"""
_SHOWN_REWARD = "printf('%.2f', reward)::DOUBLE"
"""Bounds of the reward hold for what the table shows, so that 0.92 to 0.92 finds every 0.92."""
_BOTH = """
WITH a AS (SELECT * FROM problems WHERE run = $run_a AND split = $split AND step = $first),
b AS (SELECT * FROM problems WHERE run = $run_b AND split = $split AND step = $last),
alike AS (
    SELECT DISTINCT v.problem FROM variants v JOIN variants w USING (problem, question)
    WHERE v.run = $run_a AND v.split = $split AND v.step = $first AND w.run = $run_b AND w.split = $split AND
        w.step = $last
), pairs AS (
    SELECT problem, a.id_order, a.question, a.answer, b.question AS question_b, b.answer AS answer_b, a.images,
        a.success AS before, b.success AS after, b.success - a.success AS moved, a.judged,
        b.judged AS judged_b,
        $run_a = $run_b OR (a.answer IS NOT DISTINCT FROM b.answer AND problem IN (FROM alike)) AS same
    FROM a JOIN b USING (problem)
)
"""
_MOVERS = f"""{_BOTH}
SELECT * FROM pairs WHERE same AND moved IS NOT NULL AND ($way = 0 OR sign(moved) = $way)
ORDER BY abs(moved) DESC, id_order, problem LIMIT 60
"""
_WAYS = {"": 0, "gains": 1, "losses": -1}
_MOVES = f"""{_BOTH}
SELECT count(*) AS both, count(*) FILTER (moved > 0) AS gains, count(*) FILTER (moved < 0) AS losses FROM pairs
WHERE same AND moved IS NOT NULL
"""
_SHARED = """
SELECT 1 FROM variants v JOIN variants w USING (split, problem, question)
WHERE v.run = $run_a AND w.run = $run_b AND split = $split AND v.answer IS NOT DISTINCT FROM w.answer LIMIT 1
"""
_STRANGERS = f"{_BOTH} FROM pairs WHERE NOT same ORDER BY id_order, problem"
_ASKED = """
SELECT run, list(DISTINCT question) AS questions, list(DISTINCT answer) AS answers FROM variants
WHERE split = $split AND problem = $problem GROUP BY run
"""


@dataclass(frozen=True, slots=True)
class Page:
    """One page of a step's problems, of how many, and how many groups those have: all, silent and rescued ones."""

    rows: list[dict[str, Any]]
    total: int
    groups: int
    silent: int
    rescued: int
    number: int
    pages: int


def step_means(index: Index, run: int, split: str) -> list[dict[str, Any]]:
    """Means over a step's responses; None where nothing is known."""
    return index.rows(_STEP_MEANS, {"run": run, "split": split})


def step_groups(index: Index, run: int, split: str) -> list[dict[str, Any]]:
    """How many groups of each signal and outcome a step has; those that it has none of are left out."""
    return index.rows(_STEP_GROUPS, {"run": run, "split": split})


def problems(index: Index, state: State) -> Page:
    """The problems of the state's step that its filters let through, sorted, one page."""
    where, given = _filters(index, state)
    sums = "count(*) AS total, " + ", ".join(
        f"coalesce(sum({column}), 0)::BIGINT AS {name}"
        for column, name in (("variants", "groups"), ("silent", "silent"), ("rescued", "rescued"))
    )
    found = index.rows(f"SELECT {sums} FROM problems p WHERE {where}", given)[0]
    pages = max(math.ceil(found["total"] / PAGE_ROWS), 1)
    number = min(state.sheet, pages)
    given |= {"limit": PAGE_ROWS, "offset": (number - 1) * PAGE_ROWS}
    sql = f"SELECT * FROM problems p WHERE {where} ORDER BY {_order(state)} LIMIT $limit OFFSET $offset"
    return Page(index.rows(sql, given), number=number, pages=pages, **found)


def neighbours(index: Index, state: State) -> tuple[str | None, str | None]:
    """The problems before and after the state's, in the order of its Step view."""
    where, given = _filters(index, state)
    sql = (
        f"SELECT before, after FROM (SELECT problem, lag(problem) OVER w AS before, lead(problem) OVER w AS after "
        f"FROM problems p WHERE {where} WINDOW w AS (ORDER BY {_order(state)})) WHERE problem = $problem"
    )
    found = index.rows(sql, given | {"problem": state.problem})
    return (found[0]["before"], found[0]["after"]) if found else (None, None)


def transforms(index: Index, state: State) -> list[str]:
    """Transforms that occur in the split."""
    sql = (
        "SELECT DISTINCT transform AS t FROM variants WHERE run = $run AND split = $split AND t IS NOT NULL ORDER BY t"
    )
    return [row["t"] for row in index.rows(sql, {"run": state.run, "split": state.split})]


def responses(index: Index, run: int, split: str, step: int, problem: str) -> list[dict[str, Any]]:
    """Whole rows of a problem in a step, by variant and response; empty if there are none."""
    path = index.shard(run, split, step)
    return [] if path is None else index.rows(_RESPONSES, {"path": str(path), "problem": problem})


def token_logprobs(index: Index, state: State) -> dict[int, list[float | None]]:
    """Log-prob of each token of the state's response (nats), by scoring variant; those that were not kept are missing.

    Asked for one response only: over a step, these are most of the file. The step's file must be of version 2 or later.
    """
    return {
        scorer["variant_index"]: values
        for row in _of_response(index, state, _TOKEN_LOGPROBS)
        for scorer, values in zip(row["scorers"], row["scorer_logprobs"] or (), strict=False)
        if values is not None
    }


def extra(index: Index, state: State) -> dict[str, str]:
    """What reward functions logged about the state's response, by column. Its file must be of version 3 or later."""
    return {name: value for row in _of_response(index, state, _EXTRA) for name, value in (row["extra"] or {}).items()}


def _of_response(index: Index, state: State, sql: str) -> list[dict[str, Any]]:
    path = index.shard(state.run, state.split, state.step)
    given = {"path": str(path), "problem": state.problem, "variant": state.variant, "response": state.response}
    return [] if path is None else index.rows(sql, given)


def appearances(index: Index, split: str, problem: str) -> list[dict[str, Any]]:
    """Where a problem was asked: run and step, with its aggregates."""
    sql = "SELECT * FROM problems WHERE split = $split AND problem = $problem ORDER BY run, step"
    return index.rows(sql, {"split": split, "problem": problem})


def whereabouts(index: Index, problem: str) -> list[dict[str, Any]]:
    """Every place that asked a problem: run, split and step, ascending."""
    sql = "SELECT run, split, step FROM problems WHERE problem = $problem ORDER BY run, split DESC, step"
    return index.rows(sql, {"problem": problem})


def repeated(index: Index, state: State) -> list[int]:
    """Steps that share a problem with another step, ascending."""
    sql = (
        "SELECT DISTINCT step FROM problems WHERE run = $run AND split = $split AND problem IN (SELECT problem FROM "
        "problems WHERE run = $run AND split = $split GROUP BY problem HAVING count(*) > 1) ORDER BY step"
    )
    return [row["step"] for row in index.rows(sql, {"run": state.run, "split": state.split})]


def movers(
    index: Index, split: str, before: tuple[int, int], after: tuple[int, int], moves: str = ""
) -> list[dict[str, Any]]:
    """Problems of both (run, step) pairs by how far their accuracy moved, the farthest 60; strangers are left out.

    `moves`: `gains` or `losses` alone. `judged` and `judged_b` are the responses with a verdict.
    """
    return index.rows(_MOVERS, _pair(split, before, after) | {"way": _WAYS[moves]})


def moves_of(index: Index, split: str, before: tuple[int, int], after: tuple[int, int]) -> dict[str, int]:
    """How many problems both (run, step) pairs have, of which how many gains and losses; strangers are left out."""
    return index.rows(_MOVES, _pair(split, before, after))[0]


def share_a_problem(index: Index, split: str, runs: tuple[int, int]) -> bool:
    """Whether two runs asked any problem alike, at whatever steps."""
    return bool(index.rows(_SHARED, {"run_a": runs[0], "run_b": runs[1], "split": split}))


def strangers(index: Index, split: str, before: tuple[int, int], after: tuple[int, int]) -> list[dict[str, Any]]:
    """Ids that two runs gave to different problems: no question in common, or another right answer."""
    return [] if before[0] == after[0] else index.rows(_STRANGERS, _pair(split, before, after))


def asked_alike(index: Index, split: str, problem: str) -> bool:
    """Whether the runs mean the same problem by an id: a question and the right answer in common."""
    found = index.rows(_ASKED, {"split": split, "problem": problem})
    return all(set.intersection(*(set(row[column]) for row in found)) for column in ("questions", "answers") if found)


def _pair(split: str, before: tuple[int, int], after: tuple[int, int]) -> dict[str, Any]:
    return {"run_a": before[0], "first": before[1], "run_b": after[0], "last": after[1], "split": split}


def _order(state: State) -> str:
    column = SORTS.get(state.sort, "id_order")
    return f"{column} {'DESC' if state.down else 'ASC'} NULLS LAST, id_order, problem"


def _filters(index: Index, state: State) -> tuple[str, dict[str, Any]]:
    given: dict[str, Any] = {"run": state.run, "split": state.split, "step": state.step}
    where = ["run = $run", "split = $split", "step = $step"]
    if state.outcome:
        where.append("outcome = $outcome")
        given["outcome"] = state.outcome
    if state.signal:
        where.append("silent > 0" if state.signal == "silent" else "signal = $signal")
        given |= {} if state.signal == "silent" else {"signal": state.signal}
    if state.truncated:
        where.append("truncated > 0")
    if state.low is not None:
        where.append(f"{_SHOWN_REWARD} >= $low - 1e-9")
        given["low"] = state.low
    if state.high is not None:
        where.append(f"{_SHOWN_REWARD} <= $high + 1e-9")
        given["high"] = state.high
    if state.transform:
        where.append(_any_variant("v.transform = $transform"))
        given["transform"] = state.transform
    path = index.shard(state.run, state.split, state.step)
    if state.q and path is not None:
        found = "contains(lower({}), lower($q))"
        where.append(
            f"({found.format('p.problem')} OR {_any_variant(found.format('v.question'))} OR "
            f"{_any_variant(found.format('v.answer'))} OR p.problem IN "
            f"(SELECT problem_id FROM read_parquet($path) WHERE {found.format('text')}))"
        )
        given |= {"q": state.q, "path": str(path)}
    return " AND ".join(where), given


def _any_variant(condition: str) -> str:
    return (
        "EXISTS (SELECT 1 FROM variants v WHERE v.run = p.run AND v.split = p.split AND v.step = p.step AND "
        f"v.problem = p.problem AND {condition})"
    )
