"""Questions to the index and, for one problem or step, to its Parquet file. Values are always bound parameters."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from sharevl_explorer.index import Index
from sharevl_explorer.state import PAGE_ROWS, State

SORTS = {
    "problem": "problem",
    "question": "question",
    "success": "success",
    "reward": "reward",
    "spread_global": "spread_global",
    "spread_local": "spread_local",
    "rescued": "rescued",
    "truncated": "truncated",
    "outcome": "outcome",
    "transforms": "transforms",
}
"""Columns by which a step's problems are sorted; nothing else reaches an ORDER BY."""

_STEP_MEANS = """
SELECT step, count(*) AS responses, avg(total) AS reward, avg(accuracy) AS accuracy, avg(format) AS format,
    avg(tokens) AS length, avg(gap) AS gap, avg(clip) AS clip
FROM responses WHERE run = $run AND split = $split GROUP BY step ORDER BY step
"""
_STEP_GROUPS = """
SELECT step, count(*) FILTER (outcome = 'wrong') AS wrong, count(*) FILTER (outcome = 'mixed') AS mixed,
    count(*) FILTER (outcome = 'rescued') AS rescued, count(*) FILTER (outcome = 'right') AS "right",
    count(*) FILTER (outcome = 'unknown') AS unknown
FROM variants WHERE run = $run AND split = $split GROUP BY step ORDER BY step
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
_MOVERS = """
WITH a AS (SELECT problem, success, question, images FROM problems WHERE run = $run_a AND split = $split AND
    step = $first),
b AS (SELECT problem, success FROM problems WHERE run = $run_b AND split = $split AND step = $last)
SELECT problem, a.question, a.images, a.success AS before, b.success AS after, b.success - a.success AS moved
FROM a JOIN b USING (problem) WHERE a.success IS NOT NULL AND b.success IS NOT NULL
ORDER BY abs(moved) DESC, problem LIMIT 60
"""


@dataclass(frozen=True, slots=True)
class Page:
    """One page of a step's problems, and of how many."""

    rows: list[dict[str, Any]]
    total: int
    number: int
    pages: int


def step_means(index: Index, run: int, split: str) -> list[dict[str, Any]]:
    """Means over a step's responses; None where nothing is known."""
    return index.rows(_STEP_MEANS, {"run": run, "split": split})


def step_groups(index: Index, run: int, split: str) -> list[dict[str, Any]]:
    """How many groups of each outcome a step has."""
    return index.rows(_STEP_GROUPS, {"run": run, "split": split})


def problems(index: Index, state: State) -> Page:
    """The problems of the state's step that its filters let through, sorted, one page."""
    where, given = _filters(index, state)
    total = index.rows(f"SELECT count(*) AS n FROM problems p WHERE {where}", given)[0]["n"]
    pages = max(math.ceil(total / PAGE_ROWS), 1)
    number = min(state.page, pages)
    given |= {"limit": PAGE_ROWS, "offset": (number - 1) * PAGE_ROWS}
    sql = f"SELECT * FROM problems p WHERE {where} ORDER BY {_order(state)} LIMIT $limit OFFSET $offset"
    return Page(index.rows(sql, given), total, number, pages)


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
    path = index.shard(state.run, state.split, state.step)
    given = {"path": str(path), "problem": state.problem, "variant": state.variant, "response": state.response}
    rows = [] if path is None else index.rows(_TOKEN_LOGPROBS, given)
    return {
        scorer["variant_index"]: values
        for row in rows
        for scorer, values in zip(row["scorers"], row["scorer_logprobs"] or (), strict=False)
        if values is not None
    }


def appearances(index: Index, split: str, problem: str) -> list[dict[str, Any]]:
    """Where a problem was asked: run and step, with its aggregates."""
    sql = "SELECT * FROM problems WHERE split = $split AND problem = $problem ORDER BY run, step"
    return index.rows(sql, {"split": split, "problem": problem})


def repeated(index: Index, state: State) -> list[int]:
    """Steps that share a problem with another step (or, in a comparison of runs, all), ascending."""
    if len(index.runs) > 1:
        return index.steps(0, state.split)
    sql = (
        "SELECT DISTINCT step FROM problems WHERE run = $run AND split = $split AND problem IN (SELECT problem FROM "
        "problems WHERE run = $run AND split = $split GROUP BY problem HAVING count(*) > 1) ORDER BY step"
    )
    return [row["step"] for row in index.rows(sql, {"run": state.run, "split": state.split})]


def movers(index: Index, split: str, before: tuple[int, int], after: tuple[int, int]) -> list[dict[str, Any]]:
    """Problems of both (run, step) pairs by how far their accuracy moved, the farthest 60."""
    given = {"run_a": before[0], "first": before[1], "run_b": after[0], "last": after[1], "split": split}
    return index.rows(_MOVERS, given)


def _order(state: State) -> str:
    column = SORTS.get(state.sort, "problem")
    return f"{column} {'DESC' if state.down else 'ASC'} NULLS LAST, problem"


def _filters(index: Index, state: State) -> tuple[str, dict[str, Any]]:
    given: dict[str, Any] = {"run": state.run, "split": state.split, "step": state.step}
    where = ["run = $run", "split = $split", "step = $step"]
    if state.outcome:
        where.append("outcome = $outcome")
        given["outcome"] = state.outcome
    if state.truncated:
        where.append("truncated > 0")
    if state.low is not None:
        where.append("reward >= $low - 1e-9")
        given["low"] = state.low
    if state.high is not None:
        where.append("reward <= $high + 1e-9")
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
