"""Asking the problems of an evaluation and writing down how each was answered."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

from sharevl_lite.collect import Answered, Collector
from sharevl_lite.config import Recipe
from sharevl_lite.data.problem import Problem, Variant
from sharevl_lite.evaluation.errors import EvaluationError
from sharevl_lite.evaluation.grouping import group_wrong_answers
from sharevl_lite.evaluation.outcomes import RIGHT, Answer, Asked, Outcome
from sharevl_lite.evaluation.settings import Ways
from sharevl_lite.heldout import BLOCK, EVAL_VISIT, eval_sampling
from sharevl_lite.records import response_row
from sharevl_lite.rewards import Score, known
from sharevl_lite.rollout.engine import Response
from sharevl_lite.store import RolloutRow, RolloutStore
from sharevl_lite.variants import ask_each_kind, expand_problem, kind_of

SOURCE_COLUMNS = ("source", "data_source", "dataset")
SPLIT = "eval"
SHARD = 512
"""Problems whose responses are written as one file of the store."""


def ask_all(
    collector: Collector,
    problems: Sequence[Problem],
    ways: Ways,
    *,
    source_column: str | None = None,
    store: RolloutStore | None = None,
    progress: Callable[[int], None] = lambda asked: None,
) -> tuple[list[Outcome], int]:
    """Outcomes of all problems, in order, and how many comparisons of two answers failed.

    Problems are asked `eval.samples` times in each of the `ways`; the responses are written to `store`. Responses are
    seeded by problem and kind of asking: another set of kinds leaves the others as they are.
    Raises EvaluationError where no problem has the `source_column`.
    """
    recipe = collector.recipe
    column = find_source(problems, source_column)
    sampling = eval_sampling(recipe)
    outcomes: list[Outcome] = []
    for shard, start in enumerate(range(0, len(problems), SHARD)):
        rows: list[RolloutRow] = []
        for asked in _blocks(problems[start : start + SHARD], BLOCK):
            variants = [ways_of(problem, recipe, ways) for problem in asked]
            answered = collector.pose("eval", asked, variants, recipe.eval.samples, sampling)
            outcomes += map(_outcome, asked, variants, answered.responses, answered.scores, [column] * len(asked))
            if store is not None:
                rows += _rows(recipe.name, shard, asked, variants, answered, store)
            progress(len(asked))
        if store is not None:
            store.write(SPLIT, shard, rows)
    wrong = [
        [a.extracted for way in o.asked for a in way.answers if a.extracted is not None and not a.correct]
        for o in outcomes
    ]
    groups, failed = group_wrong_answers(wrong, collector.scorer.same_answers)
    return [_grouped(outcome, classes) for outcome, classes in zip(outcomes, groups, strict=True)], failed


def _blocks(problems: Sequence[Problem], size: int) -> Iterator[Sequence[Problem]]:
    return (problems[start : start + size] for start in range(0, len(problems), size))


def ways_of(problem: Problem, recipe: Recipe, ways: Ways) -> list[Variant]:
    """How a problem is asked; the first is the plain question."""
    if ways == "each":
        return ask_each_kind(problem, recipe.share, seed=recipe.seed)
    count = 2 if ways == "drawn" else 1
    share = recipe.share.model_copy(update={"num_variants": count, "original": "kept"})
    return expand_problem(problem, share, seed=recipe.seed, visit=EVAL_VISIT)


def find_source(problems: Sequence[Problem], column: str | None) -> str | None:
    """The column that names where a problem came from: `column`, or the first usual one that a problem has.

    Raises EvaluationError where no problem has `column`.
    """
    if column is None:
        return next((name for name in SOURCE_COLUMNS if any(name in p.metadata for p in problems)), None)
    if not any(column in problem.metadata for problem in problems):
        there = sorted({name for problem in problems for name in problem.metadata})
        told = f"the columns besides the problem's own are {', '.join(there)}" if there else "there is no such column"
        raise EvaluationError(f"--by {column}: no problem has it; {told}")
    return column


def _outcome(
    problem: Problem,
    variants: Sequence[Variant],
    responses: Sequence[Sequence[Response]],
    scores: Sequence[Sequence[Score]],
    column: str | None,
) -> Outcome:
    asked = tuple(
        Asked(kind_of(variant, problem), variant.transform, tuple(map(_answer, said, worth)))
        for variant, said, worth in zip(variants, responses, scores, strict=True)
    )
    source = None if column is None else str(problem.metadata.get(column, "(none)"))
    return Outcome(problem.id, source, problem.text, problem.gold, asked)


def _answer(response: Response, score: Score) -> Answer:
    verdict = score.verdict
    return Answer(
        extracted=(verdict.extracted or None) if verdict else None,
        correct=verdict.correct if verdict else None,
        group=RIGHT if verdict and verdict.correct else None,
        well_formed=bool(score.format),
        truncated=response.truncated,
        tokens=len(response.token_ids),
        rewards=_rewards(score) if score.functions else {},
    )


def _rewards(score: Score) -> dict[str, float | None]:
    values = {"reward": score.total, **{f"reward/{name}": value for name, value in score.functions.items()}}
    return {name: known(value) for name, value in values.items()}


def _grouped(outcome: Outcome, groups: Mapping[str, int]) -> Outcome:
    """The outcome with the classes of its wrong answers filled in."""

    def place(answer: Answer) -> Answer:
        return answer if answer.correct or answer.extracted is None else replace(answer, group=groups[answer.extracted])

    asked = tuple(replace(way, answers=tuple(map(place, way.answers))) for way in outcome.asked)
    return replace(outcome, asked=asked)


def _rows(
    run_id: str,
    step: int,
    problems: Sequence[Problem],
    variants: Sequence[Sequence[Variant]],
    answered: Answered,
    store: RolloutStore,
) -> list[RolloutRow]:
    """One row per response, as the trainer writes them; there are no advantages."""
    rows = []
    for problem, ways, block, worth in zip(problems, variants, answered.responses, answered.scores, strict=True):
        for j, variant in enumerate(ways):
            shas = [store.put_image(image) for image in variant.images]
            for i, (response, score) in enumerate(zip(block[j], worth[j], strict=True)):
                rows.append(response_row(run_id, step, problem, variant, shas, (j, i), response, score))
    return rows
