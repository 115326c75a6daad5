"""The rollouts of a run, by number: sampled when they are needed, or ahead while the one before is trained.

A rollout that is sampled ahead is asked by the adapter and the success rates of the step before its own. Both are kept
with a checkpoint, so that a resumed run samples the rollout again by what it was sampled by, not by what came after.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

from torch import Tensor
from transformers import TrainerState

from sharevl_lite.ahead import Ahead
from sharevl_lite.collect import Collector, Rollout
from sharevl_lite.config import Recipe
from sharevl_lite.data.problem import Problem
from sharevl_lite.difficulty import SuccessRates
from sharevl_lite.dynamic import replace_silent
from sharevl_lite.policy.hf import adapter_tensors, other_adapter, read_adapter, write_adapter
from sharevl_lite.policy.packed import PackedPolicy
from sharevl_lite.schedule import Schedule

T = TypeVar("T")
FOLDER, FILE = "ahead", "ahead.json"
"""Of a checkpoint: what its next rollout was sampled by."""

logger = logging.getLogger(__name__)


class InAll(Protocol):
    """Work that all processes do at the same place; see :mod:`sharevl_lite.together`."""

    def __call__(self, work: Callable[[], T], /, *, leave: bool = False) -> T:
        """What `work` gives in this process, where it fails in none; with `leave` an interrupt may end it."""
        ...


@dataclass(frozen=True)
class Basis:
    """What a rollout is sampled by: success rates, and the adapter after so many updates."""

    updates: int
    success: SuccessRates
    adapter: Mapping[str, Tensor]


class RolloutSource:
    """Samples the rollouts of a run. `success` are the success rates so far, which the trainer keeps up to date."""

    def __init__(
        self,
        recipe: Recipe,
        policy: PackedPolicy,
        problems: Sequence[Problem],
        collector: Collector,
        schedule: Schedule,
        in_all: InAll,
    ) -> None:
        self.recipe = recipe
        self.policy = policy
        self.problems = problems
        self.collector = collector
        self.schedule = schedule
        self.in_all = in_all
        self.success = SuccessRates(recipe.share.difficulty)
        self._ahead: Ahead[tuple[Rollout, int]] = Ahead()
        self._bases: dict[int, Basis] = {}

    def wait(self) -> None:
        """Returns when nothing is being sampled ahead."""
        self._ahead.wait()

    def sample(self, number: int, state: TrainerState) -> tuple[Rollout, int]:
        """Rollout `number`, and how many updates its sampler had seen; with `rollout.overlap` the next one is begun."""
        self.collector.trainer_state = state
        waiting, now = time.perf_counter(), state.global_step
        made = self.in_all(self._ahead.take, leave=True)
        if made is None and number in self._bases:
            made = self._sample_again(number)
        self.in_all(self.collector.engine.sync)
        if made is None:
            made = self.in_all(lambda: self._collect(number, self.success), leave=True), now
        else:
            made[0].stopwatch.seconds["wait"] = time.perf_counter() - waiting
        if self.recipe.rollout.overlap:
            self._begin(number + 1, now)
        return made

    def save(self, checkpoint: Path, number: int) -> None:
        """Writes the success rates, and what rollout `number`, the next one, is sampled by where it is ahead."""
        self.success.save(checkpoint)
        basis = self._bases.get(number)
        if basis is not None:
            folder = checkpoint / FOLDER
            folder.mkdir()
            basis.success.save(folder)
            write_adapter(basis.adapter, folder)
            (folder / FILE).write_text(json.dumps({"rollout": number, "updates": basis.updates}) + "\n")

    def load(self, checkpoint: Path) -> None:
        """Takes what :meth:`save` wrote. Raises DifficultyError without success rates, and what readers raise."""
        self.success = self.success.load(checkpoint)
        folder = checkpoint / FOLDER
        if not self.recipe.rollout.overlap:
            return
        if not folder.is_dir():
            logger.warning("%s: does not say what its next rollout was sampled by; it is sampled anew", checkpoint)
            return
        saved = json.loads((folder / FILE).read_text())
        basis = Basis(saved["updates"], self.success.load(folder), read_adapter(folder))
        self._bases = {saved["rollout"]: basis}

    def _begin(self, number: int, now: int) -> None:
        """Samples rollout `number` in the background, unless the run is over before."""
        basis = Basis(now, self.success, adapter_tensors(self.policy))
        # The one before is kept too: a step that fails before its first update is saved as not begun.
        self._bases = {key: kept for key, kept in self._bases.items() if key == number - 1} | {number: basis}
        if number <= self.recipe.train.rollouts:
            self._ahead.start(lambda: (self._collect(number, basis.success), now))

    def _sample_again(self, number: int) -> tuple[Rollout, int]:
        """A rollout that a run which was stopped had sampled ahead, by what it had sampled it by."""
        basis = self._bases[number]
        with other_adapter(self.policy, basis.adapter):
            self.in_all(self.collector.engine.sync)
            return self.in_all(lambda: self._collect(number, basis.success), leave=True), basis.updates

    def _collect(self, number: int, success: SuccessRates) -> Rollout:
        def ask(indices: list[int]) -> Rollout:
            return self.collector.collect(number, [self.problems[index] for index in indices], success.difficulty)

        rollout = ask(self.schedule.problems(number))
        if not self.recipe.rollout.dynamic_sampling:
            return rollout
        masked = self.recipe.objective.mask_truncated_completions
        levels, spares = self.recipe.share.levels, self.schedule.spares(number)
        return replace_silent(rollout, ask, spares, levels, masks_truncated=masked)
