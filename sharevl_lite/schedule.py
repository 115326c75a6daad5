"""Which problems a rollout asks and which of them an update trains on: a pure function of the recipe and a step number.

Nothing here has a cursor that could be lost: rollout r of a run is the same whether the run was interrupted or not.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.utils.data import Dataset

from sharevl_lite.config import Recipe


class ScheduleError(ValueError):
    """The data or the processes do not fit the recipe's numbers of problems."""


@dataclass(frozen=True)
class UpdateStep:
    """One optimizer step of the run: update `update` (from 0) on the samples of rollout `rollout` (from 1)."""

    rollout: int
    update: int


class Schedule(Dataset[UpdateStep]):
    """All optimizer steps of a run, in order. Each pass over the data is shuffled anew; a tail shorter than a rollout
    waits for the next pass.

    Raises ScheduleError when there are fewer problems than a rollout needs, or the processes do not divide an update.
    """

    def __init__(self, recipe: Recipe, num_problems: int, *, rank: int = 0, world: int = 1) -> None:
        train = recipe.train
        if num_problems < train.problems_per_rollout:
            raise ScheduleError(
                f"train.problems_per_rollout is {train.problems_per_rollout} and the data has {num_problems} problems; "
                "lower it or add data"
            )
        if train.problems_per_update % world:
            raise ScheduleError(
                f"train.problems_per_update ({train.problems_per_update}) must be a multiple of the {world} processes"
            )
        self.recipe = recipe
        self.num_problems = num_problems
        self.rank = rank
        self.share = train.problems_per_update // world
        self.chunks = train.problems_per_rollout // train.problems_per_update

    def __len__(self) -> int:
        return self.recipe.train.rollouts * self.recipe.train.updates_per_rollout

    def __getitem__(self, step: int) -> UpdateStep:
        rollout, update = divmod(step, self.recipe.train.updates_per_rollout)
        return UpdateStep(rollout + 1, update)

    def problems(self, rollout: int) -> list[int]:
        """Indices of the problems that this process asks in the rollout, update by update."""
        train = self.recipe.train
        epoch, place = divmod(rollout - 1, self.num_problems // train.problems_per_rollout)
        generator = torch.Generator().manual_seed(self.recipe.seed * 1_000_003 + epoch)
        order = torch.randperm(self.num_problems, generator=generator).tolist()
        asked = order[place * train.problems_per_rollout : (place + 1) * train.problems_per_rollout]
        mine = []
        for chunk in range(self.chunks):
            start = chunk * train.problems_per_update + self.rank * self.share
            mine.extend(asked[start : start + self.share])
        return mine

    def members(self, update: int) -> list[int]:
        """Places, within :meth:`problems`, of the problems behind one update."""
        chunk = update % self.chunks
        return list(range(chunk * self.share, (chunk + 1) * self.share))
