"""Held-out accuracy: of the plain questions, and of one variant of each.

The variants are drawn with the recipe's own `share` section and a fixed visit, and every response has its own seed that
does not depend on the step: two evaluations of a run ask the same questions with the same random numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sharevl_lite.collect import Collector, Rollout, join_rollouts
from sharevl_lite.config import Recipe
from sharevl_lite.data.problem import Problem
from sharevl_lite.metrics import Tally, tally_responses
from sharevl_lite.rollout.engine import Sampling

EVAL_VISIT = 2**31
BLOCK = 64
"""Problems whose prompts are held at a time."""
SHARES = ("accuracy", "accuracy_plain", "accuracy_variants", "format")
"""Figures of every evaluation of a run, in the order in which they are told."""
COUNTS = ("responses", "verified_plain", "verified_variants")
"""How many responses they stand on: all, and those with a verdict to plain questions and to variants."""


def eval_sampling(recipe: Recipe) -> Sampling:
    """How held-out problems are answered."""
    section = recipe.eval
    return Sampling(section.temperature, section.top_p, recipe.rollout.max_completion_length, recipe.seed)


@dataclass(frozen=True)
class HeldOut:
    """Figures of one evaluation (NaN where no verification succeeded) and this process's responses."""

    record: dict[str, float]
    rollout: Rollout


class Evaluator:
    """Evaluates the current policy on held-out problems.

    `gather` turns this process's tally into the list of all processes' tallies.
    """

    def __init__(
        self,
        recipe: Recipe,
        collector: Collector,
        problems: Sequence[Problem],
        *,
        rank: int = 0,
        world: int = 1,
        gather: Callable[[Tally], list[Tally]] = lambda tally: [tally],
    ) -> None:
        self.recipe = recipe
        self.collector = collector
        self.problems = list(problems)[rank::world]
        self.gather = gather
        self.sampling = eval_sampling(recipe)
        self.share = recipe.share.model_copy(
            update={"num_variants": 2, "num_responses": recipe.eval.samples, "original": "kept"}
        )

    def evaluate(self, step: int) -> HeldOut:
        """Asks this process's problems at rollout `step`; the figures are those of all processes."""
        return self.figures(self.ask(step))

    def ask(self, step: int) -> Rollout:
        """This process's problems, answered and rewarded."""
        blocks = []
        for start in range(0, max(1, len(self.problems)), BLOCK):
            asked = self.problems[start : start + BLOCK]
            part = self.collector.ask(step, "eval", asked, self.share, self.sampling, visit=EVAL_VISIT)
            part.prompts.clear()  # the pixels of one block at a time
            blocks.append(part)
        return join_rollouts(blocks)

    def figures(self, rollout: Rollout) -> HeldOut:
        """Accuracy over all (`accuracy`), of plain questions and of variants; `reward` in all and by each of the user's
        functions, format and lengths over all. `verified_plain` and `verified_variants` are the responses that the
        accuracies stand on: those that have a verdict."""
        tally = Tally()
        tally_responses(tally, rollout)
        for name, variant in (("accuracy_plain", 0), ("accuracy_variants", 1)):
            known = [s.accuracy for block in rollout.scores for s in block[variant] if s.failure is None]
            tally.mean(name, known)
            tally.total(name.replace("accuracy", "verified"), len(known))
        tally.total("responses", rollout.rewards_PMN.numel())
        record = Tally.merged(self.gather(tally)).as_record()
        return HeldOut({**dict.fromkeys((*SHARES, "reward"), math.nan), **record}, rollout)
