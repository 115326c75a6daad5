"""Which problems a rollout asks and which of them an update trains on: a pure function of the recipe and a step number.

Nothing here has a cursor that could be lost: rollout r of a run is the same whether the run was interrupted or not.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch
from torch.utils.data import Dataset

from sharevl_lite.config import Recipe
from sharevl_lite.errors import UserError


class ScheduleError(UserError):
    """The data or the processes do not fit the recipe's numbers of problems."""


@dataclass(frozen=True)
class UpdateStep:
    """One optimizer step of the run: update `update` (from 0) on the samples of rollout `rollout` (from 1)."""

    rollout: int
    update: int


def check_enough(recipe: Recipe, num_problems: int, world: int = 1) -> None:
    """Raises ScheduleError where data of so many problems do not suffice for a rollout, or `world` processes do not
    divide an update."""
    asked = recipe.train.problems_per_rollout
    if num_problems < asked:
        raise ScheduleError(
            f"train.problems_per_rollout is {asked} and the data has {num_problems} problems; lower it or add data"
        )
    if recipe.rollout.dynamic_sampling and num_problems == asked:
        raise ScheduleError(
            f"rollout.dynamic_sampling: every step asks all {num_problems} problems, so there is none to replace "
            "another; lower train.problems_per_rollout or add data"
        )
    of_update = recipe.train.problems_per_update
    if of_update % world:
        raise ScheduleError(f"train.problems_per_update ({of_update}) must be a multiple of the {world} processes")


class Schedule(Dataset[UpdateStep]):
    """All optimizer steps of a run, in order. Each pass over the data is shuffled anew; a tail shorter than a rollout
    waits for the next pass.

    Spare problems, which replace those without a signal, are drawn apart from the passes: a pass still asks each
    problem in its own turn, whether or not it stood in for another before.

    Raises ScheduleError when there are fewer problems than a rollout needs, or the processes do not divide an update.
    """

    def __init__(self, recipe: Recipe, num_problems: int, *, rank: int = 0, world: int = 1) -> None:
        check_enough(recipe, num_problems, world)
        train = recipe.train
        self.recipe = recipe
        self.num_problems = num_problems
        self.rank = rank
        self.per_process = train.problems_per_update // world
        self.chunks = train.problems_per_rollout // train.problems_per_update

    def __len__(self) -> int:
        return self.recipe.train.rollouts * self.recipe.train.updates_per_rollout

    def __getitem__(self, step: int) -> UpdateStep:
        rollout, update = divmod(step, self.recipe.train.updates_per_rollout)
        return UpdateStep(rollout + 1, update)

    def problems(self, rollout: int) -> list[int]:
        """Indices of the problems that this process asks in the rollout, update by update."""
        asked = self._asked(rollout)
        return [asked[place] for place in self._places()]

    def spares(self, rollout: int) -> list[list[int]]:
        """For each of :meth:`problems`, the problems that may take its place, one a round of dynamic sampling.

        No problem stands in two lists, in those of other processes or in the rollout itself. They depend on the place
        within the whole rollout alone: neither on how many processes there are nor on which places are replaced. With
        little data the later lists are shorter, or empty.
        """
        asked = set(self._asked(rollout))
        digest = hashlib.sha256(f"{self.recipe.seed}/spares/{rollout}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big"))
        order = torch.randperm(self.num_problems, generator=generator).tolist()
        left = [index for index in order if index not in asked]
        stride, rounds = self.recipe.train.problems_per_rollout, self.recipe.rollout.max_extra_rounds
        return [left[place : rounds * stride : stride] for place in self._places()]

    def members(self, chunk: int) -> list[int]:
        """Places, within :meth:`problems`, of the problems behind update `chunk` (of `chunks`) of each epoch."""
        return list(range(chunk * self.per_process, (chunk + 1) * self.per_process))

    def _asked(self, rollout: int) -> list[int]:
        """The problems of the rollout, over all processes."""
        size = self.recipe.train.problems_per_rollout
        epoch, place = divmod(rollout - 1, self.num_problems // size)
        generator = torch.Generator().manual_seed(self.recipe.seed * 1_000_003 + epoch)
        order: list[int] = torch.randperm(self.num_problems, generator=generator).tolist()
        return order[place * size : (place + 1) * size]

    def _places(self) -> list[int]:
        """This process's places in the whole rollout, update by update."""
        size = self.recipe.train.problems_per_update
        starts = [chunk * size + self.rank * self.per_process for chunk in range(self.chunks)]
        return [start + place for start in starts for place in range(self.per_process)]
