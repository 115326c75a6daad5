"""From a rollout to the rows of the store."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from PIL.Image import Image

from sharevl_lite.ahead import Ahead
from sharevl_lite.atomic import write_atomically, write_json
from sharevl_lite.collect import Rollout
from sharevl_lite.data.problem import Problem, Variant
from sharevl_lite.dynamic import everything_asked
from sharevl_lite.learn import Learner, Pair
from sharevl_lite.policy.prompts import PromptRenderer
from sharevl_lite.rewards import Score, known
from sharevl_lite.rollout.engine import Response
from sharevl_lite.store import Rewards, RolloutRow, Scorer, Verification


class StoredPictures:
    """Names of variants' pictures, which `put_image` stores. Those of a rollout can be stored while it is trained: a
    photo takes a tenth of a second to be packed."""

    def __init__(self, put_image: Callable[[Image], str]) -> None:
        self._put_image = put_image
        self._ahead: Ahead[dict[int, list[str]]] = Ahead()

    def start(self, rollout: Rollout) -> None:
        """Begins with a rollout's pictures, in the background."""
        variants = [variant for row in everything_asked(rollout).variants for variant in row]
        self._ahead.start(lambda: {id(variant): self._names(variant) for variant in variants})

    def take(self) -> Callable[[Variant], list[str]]:
        """What names a variant's pictures, once those that were begun are stored; others are stored when asked for.

        Raises what storing one raised.
        """
        known = self._ahead.take() or {}
        return lambda variant: known[id(variant)] if id(variant) in known else self._names(variant)

    def _names(self, variant: Variant) -> list[str]:
        return [self._put_image(image) for image in variant.images]


def rollout_rows(
    run_id: str,
    rollout: Rollout,
    names_of: Callable[[Variant], list[str]],
    learner: Learner | None = None,
    clip_fractions: Mapping[Pair, float] | None = None,
) -> list[RolloutRow]:
    """One row per response; with a `learner`, how every variant scored it and what the update clipped.

    `names_of` gives the names of a variant's stored pictures. A response without a known reward has no advantage
    (null), not one of 0. Neither has one of a problem that dynamic sampling replaced: its reward is known, but no
    update saw it. These rows come last.
    """
    rows = []
    for p, problem in enumerate(rollout.problems):
        for j, variant in enumerate(rollout.variants[p]):
            shas = names_of(variant)
            for i, (response, score) in enumerate(zip(rollout.responses[p][j], rollout.scores[p][j], strict=True)):
                row = response_row(run_id, rollout.number, problem, variant, shas, (j, i), response, score)
                if learner is not None and learner.takes_part(p, j, i):
                    pairs = [Pair(p, k, j, i) for k in range(learner.recipe.share.num_variants)]
                    row = replace(
                        row,
                        adv_global=float(rollout.advantages.global_PMN[p, j, i]),
                        adv_local=float(rollout.advantages.local_PMN[p, j, i]),
                        scorers=[_scorer(learner, pair, (clip_fractions or {}).get(pair)) for pair in pairs],
                        scorer_logprobs=[_logprobs(learner, pair) for pair in pairs],
                    )
                rows.append(row)
    for gone in rollout.replaced or ():
        rows += rollout_rows(run_id, gone, names_of)
    return rows


def response_row(
    run_id: str,
    step: int,
    problem: Problem,
    variant: Variant,
    image_shas: Sequence[str],
    place: tuple[int, int],
    response: Response,
    score: Score,
) -> RolloutRow:
    """The row of a response that no update saw. `place`: its variant's, and its own under the variant."""
    return RolloutRow(
        run_id=run_id,
        step=step,
        problem_id=problem.id,
        variant_index=place[0],
        variant_text=variant.text,
        transform=variant.transform,
        image_sha=image_shas,
        answer=problem.gold,
        response_index=place[1],
        text=response.text,
        token_ids=response.token_ids,
        truncated=response.truncated,
        sampling_logprobs=response.logprobs,
        rewards=_rewards(score),
        verification=_verification(score),
        extra=score.extras,
    )


def _rewards(score: Score) -> Rewards:
    """What the store says of a score; unknown is null."""
    functions = {name: known(value) for name, value in score.functions.items()}
    return Rewards(known(score.total), known(score.accuracy), score.format, functions)


def _verification(score: Score) -> Verification:
    """How the store says an answer was judged."""
    if score.verdict is None:
        return Verification(failure=score.failure)
    return Verification(score.verdict.extracted, score.verdict.rule, score.failure)


def _scorer(learner: Learner, pair: Pair, clip_fraction: float | None) -> Scorer:
    old_R = learner.scores.old.get(pair)
    if old_R is None:
        return Scorer(pair.k, advantage=learner.advantage(pair), mean_logprob=None, gap=None)
    return Scorer(
        pair.k,
        advantage=learner.advantage(pair),
        mean_logprob=float(old_R.mean()),
        gap=float(learner.gap(pair).mean()),
        clip_fraction=clip_fraction,
    )


def _logprobs(learner: Learner, pair: Pair) -> list[float] | None:
    """The log-probs behind `mean_logprob` and `gap`; None where the pair was not forwarded."""
    old_R = learner.scores.old.get(pair)
    return None if old_R is None else old_R.tolist()


def keep_tokenizer(processor: Any, path: Path) -> None:
    """Token ids of a store can be read wherever it is copied. A tokenizer in Python alone has no such file."""
    tokenizer = getattr(processor.tokenizer, "backend_tokenizer", None)
    if tokenizer is not None:
        write_atomically(path, tokenizer.to_str().encode())


def keep_frame(renderer: PromptRenderer, path: Path) -> None:
    """Keeps what the chat text puts around a question, for those who read the rollouts.

    A template without such a frame leaves no file, and none of an earlier one: the explorer then shows the turns.
    """
    frame = renderer.frame()
    if frame is None:
        path.unlink(missing_ok=True)
    else:
        write_json(path, asdict(frame))
