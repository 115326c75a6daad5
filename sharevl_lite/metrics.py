"""What is logged every step, as sums that add up over processes.

`vanished_local` is the share of variant groups without local variance (but for rounding), `vanished_global` the share
of problems without global variance, `rescued` the share of problems where some variant group has no variance but the
problem has: those are the problems that GRPO within a variant would have learnt less from. `reward_std` is the mean
over problems of the standard deviation of their rewards, under all variants.

With dynamic sampling these and the figures of rewards and responses are over everything that was sampled, while `pairs`
and what follows from them are of the problems that are trained. `replaced` of the scheduled problems gave way,
`extra_problems` were asked beyond the schedule, and `silent_left` are trained on although they have no global variance.
With difficulty-aware variants, `harder` and `plainer` are the shares of the problems that were asked so.
"""

from __future__ import annotations

import resource
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import torch

from sharevl_lite.collect import Rollout
from sharevl_lite.device_memory import MEMORY
from sharevl_lite.dynamic import Levels, everything_asked, silent_problems
from sharevl_lite.learn import Learner, Pair, RowLoss, UpdatePlan


class Tally:
    """Means and totals, by name, that can be merged over processes."""

    def __init__(self) -> None:
        self.means: dict[str, tuple[float, float]] = {}
        self.totals: dict[str, float] = {}
        self.peaks: dict[str, float] = {}

    def mean(self, name: str, values: Iterable[float] | torch.Tensor) -> None:
        """Adds values to a mean. An empty addition leaves it undefined (and unlogged)."""
        tensor = values if isinstance(values, torch.Tensor) else torch.tensor(list(values), dtype=torch.float64)
        total, count = self.means.get(name, (0.0, 0.0))
        self.means[name] = (total + float(tensor.double().sum()), count + tensor.numel())

    def total(self, name: str, value: float) -> None:
        """Adds to a sum over processes."""
        self.totals[name] = self.totals.get(name, 0.0) + value

    def peak(self, name: str, value: float) -> None:
        """Keeps the largest value over processes: seconds of the slowest, memory of the fullest."""
        self.peaks[name] = max(self.peaks.get(name, value), value)

    @classmethod
    def merged(cls, tallies: Iterable[Tally]) -> Tally:
        """A tally of all of them."""
        merged = cls()
        for tally in tallies:
            for name, (total, count) in tally.means.items():
                so_far, so_many = merged.means.get(name, (0.0, 0.0))
                merged.means[name] = (so_far + total, so_many + count)
            for name, value in tally.totals.items():
                merged.total(name, value)
            for name, value in tally.peaks.items():
                merged.peak(name, value)
        return merged

    def as_record(self) -> dict[str, float]:
        """Name to value; means of nothing are left out."""
        means = {name: total / count for name, (total, count) in self.means.items() if count}
        return {**means, **self.totals, **self.peaks}


@dataclass
class Attempt:
    """What one backward pass over an update found: its loss [], means of its tokens, share of clipped ones by pair."""

    loss: torch.Tensor
    tally: Tally = field(default_factory=Tally)
    clipped: dict[Pair, float] = field(default_factory=dict)

    def add(self, row_loss: RowLoss) -> None:
        """Takes in a row's facts."""
        facts, row = row_loss.facts, row_loss.row
        self.tally.mean("ratio", facts.ratio_T)
        self.tally.mean("clip_low", facts.clipped_low_T)
        self.tally.mean("clip_high", facts.clipped_high_T)
        self.tally.mean("clip_dual", facts.clipped_dual_T)
        if facts.kl_T is not None:
            self.tally.mean("kl", facts.kl_T)
        clipped_T = (facts.clipped_low_T | facts.clipped_high_T | facts.clipped_dual_T).double().cpu()
        for pair, piece_R in zip(row.pairs, clipped_T.split(row.cu_seqlens_B1.diff().tolist()), strict=True):
            self.clipped[pair] = float(piece_R.mean())


def tally_rollout(tally: Tally, rollout: Rollout) -> None:
    """Rewards, responses and vanished groups of one process's rollout, what was replaced in it included."""
    asked = everything_asked(rollout)
    tally_responses(tally, asked)
    silent_PM, silent_P = asked.advantages.silent_PM, asked.advantages.silent_P
    groups = [rewards[known] for rewards, known in zip(asked.rewards_PMN, asked.mask_PMN, strict=True)]
    tally.mean("reward_std", [float(group.std()) for group in groups if len(group) > 1])
    tally.mean("vanished_local", silent_PM)
    tally.mean("vanished_global", silent_P)
    tally.mean("rescued", silent_PM.any(1) & ~silent_P)
    tally.mean("guarded", [float(variant.guarded) for row in asked.variants for variant in row])
    for row in rollout.prompts:
        seen = [(prompt.text, prompt.prefix.image_keys) for prompt in row]
        tally.mean("repeated_variants", [float(prompt in seen[:k]) for k, prompt in enumerate(seen) if k > 0])
    tally.total("sampled_tokens", sum(len(r.token_ids) for block in asked.responses for row in block for r in row))
    for name, seconds in rollout.stopwatch.seconds.items():
        tally.peak(f"seconds/{name}", seconds)


def tally_responses(tally: Tally, rollout: Rollout) -> None:
    """What responses are worth, in all and by each of the user's functions (with the share that it gave a number for,
    which its mean is over), what these logged, and how they look."""
    scores = [score for block in rollout.scores for row in block for score in row]
    responses = [response for block in rollout.responses for row in block for response in row]
    known = [score for score in scores if score.failure is None]
    tally.mean("reward", rollout.rewards_PMN[rollout.mask_PMN])
    tally.mean("accuracy", [score.accuracy for score in known])
    tally.mean("format", [score.format for score in scores])
    for name in scores[0].functions if scores else ():
        values = torch.tensor([score.functions[name] for score in scores], dtype=torch.float64)
        applied = torch.isfinite(values)
        tally.mean(f"reward/{name}", values[applied])
        tally.mean(f"reward/{name}/applied", applied)
    for name in sorted({name for score in scores for name in score.metrics}):
        tally.mean(f"log_metric/{name}", [score.metrics[name] for score in scores if name in score.metrics])
    tally.mean("response_length", [float(len(response.token_ids)) for response in responses])
    tally.mean("truncated", [float(response.truncated) for response in responses])
    tally.total("verifier_failures", len(scores) - len(known))


def tally_replaced(tally: Tally, rollout: Rollout, levels: Levels, *, masks_truncated: bool = False) -> None:
    """What dynamic sampling did; see :func:`sharevl_lite.dynamic.silent_problems`."""
    rounds = [len(gone.problems) for gone in rollout.replaced or ()]
    tally.total("replaced", max(rounds, default=0))  # a place that is replaced twice was so in the first round
    tally.total("extra_problems", sum(rounds))
    tally.total("silent_left", int(silent_problems(rollout, levels, masks_truncated=masks_truncated).sum()))


def tally_difficulties(tally: Tally, rollout: Rollout) -> None:
    """How hard the problems were asked."""
    difficulties = everything_asked(rollout).difficulties
    for level in ("harder", "plainer"):
        tally.mean(level, [float(difficulty == level) for difficulty in difficulties])


def tally_plans(tally: Tally, plans: Iterable[UpdatePlan]) -> None:
    """What packing and skipping saved."""
    for plan in plans:
        tally.total("pairs", len(plan.valid))
        tally.total("pairs_skipped", len(plan.valid) - len(plan.active))
        tally.total("tokens_packed", plan.tokens_packed)
        tally.total("tokens_separate", plan.tokens_separate)


def tally_scores(tally: Tally, learner: Learner) -> None:
    """Entropy of the own-variant tokens, the mean gap between variants (its p95 needs all the values), and how far the
    sampler's log-probs are from the trainer's (mean and largest |difference|)."""
    own = [entropy_R for pair, entropy_R in learner.scores.entropy.items() if pair.k == pair.j]
    tally.mean("entropy", torch.cat(own) if own else torch.zeros(0))
    tally.mean("gap_mean", learner.gaps())
    sampler_gaps = learner.sampler_gaps().abs()
    tally.mean("sampler_gap", sampler_gaps)
    if sampler_gaps.numel():
        tally.peak("sampler_gap_max", float(sampler_gaps.max()))


def percentile_95(values_X: torch.Tensor) -> float | None:
    """95th percentile of |values|; None of nothing."""
    if not values_X.numel():
        return None
    return float(np.percentile(values_X.abs().double().cpu().numpy(), 95, method="nearest"))


def peak_memory_mib() -> float:
    """Peak of this process (MiB): device memory in use on a GPU (a sleeping engine's is not), else resident memory."""
    if torch.cuda.is_available():
        return MEMORY.peak() / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10
