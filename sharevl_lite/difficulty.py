"""How hard each problem is asked: by a running success rate, after an idea of DIVA-GRPO (arXiv 2603.01106).

    rate = accuracy of the first visit, then memory * rate + (1 - memory) * accuracy of the visit

Accuracy is the share of right answers among a visit's known ones, over all variants as they were asked, so a problem
that became too hard falls back to the usual variants by itself. A visit without a verified answer changes nothing.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from sharevl_lite.collect import Rollout
from sharevl_lite.config import DifficultySection
from sharevl_lite.data.problem import Problem
from sharevl_lite.errors import UserError
from sharevl_lite.variants import Difficulty

FILE = "difficulty.json"


class DifficultyError(UserError):
    """A checkpoint without its success rates, with what to do."""


@dataclass(frozen=True)
class SuccessRates:
    """Success rates by problem id, the same in every process. Never changed in place: a rollout that is sampled ahead
    keeps those it began with."""

    section: DifficultySection
    rates: dict[str, float] = field(default_factory=dict)

    def difficulty(self, problem: Problem) -> Difficulty:
        """How to ask the problem now; as usual before its first visit, and always unless the section is `adaptive`."""
        rate = self.rates.get(problem.id)
        if not self.section.adaptive or rate is None:
            return "usual"
        if rate >= self.section.solved:
            return "harder"
        return "plainer" if rate <= self.section.unsolved else "usual"

    def after(self, visits: Iterable[tuple[str, float]]) -> SuccessRates:
        """The rates after these visits, each a problem's id and its accuracy, 0..1."""
        rates, memory = dict(self.rates), self.section.memory
        for name, accuracy in visits:
            before = rates.get(name)
            rates[name] = accuracy if before is None else memory * before + (1.0 - memory) * accuracy
        return SuccessRates(self.section, rates)

    def save(self, folder: Path) -> None:
        """Writes the rates into a checkpoint."""
        if self.section.adaptive:
            (folder / FILE).write_text(json.dumps({"rates": self.rates}) + "\n")

    def load(self, folder: Path) -> SuccessRates:
        """The rates of a checkpoint. Raises DifficultyError where they are missing or not readable."""
        if not self.section.adaptive:
            return self
        try:
            saved = json.loads((folder / FILE).read_text())["rates"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DifficultyError(
                f"{folder / FILE}: share.difficulty.adaptive needs the success rates of the checkpoint ({error!r}); "
                "restore the file, or resume from another checkpoint"
            ) from error
        return SuccessRates(self.section, saved)


def visits_of(rollout: Rollout) -> list[tuple[str, float]]:
    """Id and accuracy of each problem of the rollout with a known answer."""
    visits = []
    for problem, block in zip(rollout.problems, rollout.scores, strict=True):
        known = [score.accuracy for row in block for score in row if score.failure is None]
        if known:
            visits.append((problem.id, sum(known) / len(known)))
    return visits
