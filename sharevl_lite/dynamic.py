"""Dynamic sampling (DAPO, arXiv 2503.14476): problems that train nothing are replaced by further problems.

A problem is silent when no pair of it that may train has an advantage at the recipe's levels. With the shared level
that is when its m*n known rewards are all equal (but for rounding), or fewer than two are known; with
`share.levels: local`, when that holds within each of its variants; with `objective.mask_truncated_completions` also
when all that have an advantage were cut off. Round by round each silent place of the rollout is given its next spare
problem, until none is silent, `rollout.max_extra_rounds` are over or the data has no spare left; what is silent then
stays. Every process replaces its own places without a word to the others, so this may run ahead of the training.

Nothing is thrown away: what was replaced keeps its rows in the store, counts in the metrics of rewards and responses,
and in the running success rates. Only the updates leave it out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Literal

import torch
from jaxtyping import Bool
from torch import Tensor

from sharevl_lite.collect import Rollout, join_rollouts, split_rollout

Levels = Literal["hierarchical", "global", "local"]


def silent_problems(rollout: Rollout, levels: Levels, *, masks_truncated: bool = False) -> Bool[Tensor, "P"]:
    """Which problems train nothing: all advantages of their pairs are 0 at these levels (`share.levels`), those of
    responses apart that were cut off, where these are masked."""
    idle_PKMN = rollout.advantages.as_pairs(levels) == 0.0
    if masks_truncated:
        cut = [[[response.truncated for response in row] for row in block] for block in rollout.responses]
        idle_PKMN |= torch.tensor(cut, dtype=torch.bool, device=idle_PKMN.device).view_as(rollout.mask_PMN)[:, None]
    return idle_PKMN.flatten(1).all(1)


def replace_silent(
    rollout: Rollout,
    ask: Callable[[list[int]], Rollout],
    spares: Sequence[Sequence[int]],
    levels: Levels,
    *,
    masks_truncated: bool = False,
) -> Rollout:
    """The rollout with its silent problems replaced, in place and as many as before; `replaced` holds the others.

    `ask` samples the problems of these indices. `spares` lists, for each place of the rollout, the indices of the
    problems that may take it, in the order of the rounds. `levels` is the recipe's `share.levels`, `masks_truncated`
    its `objective.mask_truncated_completions`.
    """
    places = split_rollout(rollout)
    replaced = []
    for turn in range(max(map(len, spares), default=0)):
        silent = [
            p
            for p, one in enumerate(places)
            if turn < len(spares[p]) and silent_problems(one, levels, masks_truncated=masks_truncated).any()
        ]
        if not silent:
            break
        further = ask([spares[p][turn] for p in silent])
        rollout.stopwatch.add(further.stopwatch)
        gone = join_rollouts([places[p] for p in silent])
        gone.prompts.clear()  # their pixels need not outlive them
        replaced.append(gone)
        for p, one in zip(silent, split_rollout(further), strict=True):
            places[p] = one
    joined = join_rollouts(places) if replaced else rollout
    return replace(joined, stopwatch=rollout.stopwatch, replaced=replaced)


def everything_asked(rollout: Rollout) -> Rollout:
    """The rollout together with what was replaced in it."""
    if not rollout.replaced:
        return rollout
    return replace(join_rollouts([rollout, *rollout.replaced]), stopwatch=rollout.stopwatch)
