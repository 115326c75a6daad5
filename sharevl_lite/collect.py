"""One rollout: problems become variants, variants are answered, answers rewarded, rewards turned into advantages."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from transformers import TrainerState

from sharevl_lite.config import Recipe, ShareSection
from sharevl_lite.data.problem import Problem, Variant
from sharevl_lite.policy.prompts import EncodedPrompt, ImagePixels, PromptEncoder
from sharevl_lite.rewards import RewardScorer, Sample, Score
from sharevl_lite.rewards.scorer import OWN_ARGUMENTS
from sharevl_lite.rollout.engine import Response, RolloutEngine, Sampling, SamplingRequest
from sharevl_lite.share import Advantages, hierarchical_advantage
from sharevl_lite.variants import Difficulty, expand_problem


class Stopwatch:
    """Seconds spent in named parts of a step."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Adds the time inside to `name`."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - started

    def add(self, other: Stopwatch) -> None:
        """Adds the time of another's parts."""
        for name, seconds in other.seconds.items():
            self.seconds[name] = self.seconds.get(name, 0.0) + seconds


@dataclass
class Rollout:
    """What one process collected in one rollout: nested lists are indexed [P][M] or [P][M][N]."""

    number: int
    problems: list[Problem]
    variants: list[list[Variant]]
    prompts: list[list[EncodedPrompt]]
    responses: list[list[list[Response]]]
    scores: list[list[list[Score]]]
    rewards_PMN: Float[Tensor, "P M N"]
    mask_PMN: Bool[Tensor, "P M N"]
    advantages: Advantages
    difficulties: list[Difficulty]
    stopwatch: Stopwatch = field(default_factory=Stopwatch)
    replaced: list[Rollout] | None = None
    """With dynamic sampling: what was asked in vain, one rollout for each round of replacements."""

    @property
    def images(self) -> Mapping[str, ImagePixels]:
        """Every distinct image of the rollout by key."""
        return {key: image for row in self.prompts for prompt in row for key, image in prompt.images.items()}


@dataclass(frozen=True)
class Answered:
    """Questions as they were sent, what came back, and what it is worth: [P][M] prompts, [P][M][N] of the others.

    M may differ from problem to problem.
    """

    prompts: list[list[EncodedPrompt]]
    responses: list[list[list[Response]]]
    scores: list[list[list[Score]]]


def join_rollouts(rollouts: Sequence[Rollout]) -> Rollout:
    """One rollout of several of the same number and shape, in order."""
    return Rollout(
        number=rollouts[0].number,
        problems=[problem for rollout in rollouts for problem in rollout.problems],
        variants=[row for rollout in rollouts for row in rollout.variants],
        prompts=[row for rollout in rollouts for row in rollout.prompts],
        responses=[block for rollout in rollouts for block in rollout.responses],
        scores=[block for rollout in rollouts for block in rollout.scores],
        rewards_PMN=torch.cat([rollout.rewards_PMN for rollout in rollouts]),
        mask_PMN=torch.cat([rollout.mask_PMN for rollout in rollouts]),
        advantages=Advantages.cat([rollout.advantages for rollout in rollouts]),
        difficulties=[difficulty for rollout in rollouts for difficulty in rollout.difficulties],
    )


def split_rollout(rollout: Rollout) -> list[Rollout]:
    """The rollout problem by problem; :func:`join_rollouts` is the inverse."""
    return [
        Rollout(
            number=rollout.number,
            problems=rollout.problems[one],
            variants=rollout.variants[one],
            prompts=rollout.prompts[one],
            responses=rollout.responses[one],
            scores=rollout.scores[one],
            rewards_PMN=rollout.rewards_PMN[one],
            mask_PMN=rollout.mask_PMN[one],
            advantages=rollout.advantages.take(one),
            difficulties=rollout.difficulties[one],
        )
        for one in (slice(p, p + 1) for p in range(len(rollout.problems)))
    ]


def columns_of(problem: Problem) -> dict[str, Any]:
    """What a row has for a user's reward function: each column by its name in the data, and under the names that
    problems have here. A list of accepted answers stays a list. An image is decoded when it is taken from `images`."""
    here = {"problem": problem.text, "images": problem.images, "answer": problem.answer_cell, "id": problem.id}
    there = {getattr(problem.columns, name): value for name, value in here.items()}
    named = {name: value for name, value in there.items() if name and name not in OWN_ARGUMENTS}
    return {**named, **problem.metadata, **here}


def check_rewards(scorer: RewardScorer, problems: Iterable[Problem]) -> None:
    """Raises RewardFunctionError where a reward function needs what these problems do not have."""
    scorer.check_columns({name for problem in problems for name in columns_of(problem)})


class Collector:
    """Runs the first half of a Share-GRPO step, and the same for evaluation."""

    def __init__(self, recipe: Recipe, encoder: PromptEncoder, engine: RolloutEngine, scorer: RewardScorer) -> None:
        self.recipe = recipe
        self.encoder = encoder
        self.engine = engine
        self.scorer = scorer
        self.trainer_state = TrainerState()
        """Handed to the user's reward functions, as TRL does; the trainer sets it."""

    def collect(
        self, number: int, problems: Sequence[Problem], difficulty: Callable[[Problem], Difficulty] | None = None
    ) -> Rollout:
        """Rollout `number` of the run on `problems`, each as hard as `difficulty` says (None: as usual).

        May be called again for the same rollout, with problems that it was not asked before: seeds follow the problem.
        """
        rollout = self.recipe.rollout
        sampling = Sampling(rollout.temperature, rollout.top_p, rollout.max_completion_length, self.recipe.seed)
        return self.ask(
            number,
            f"train/{number}",
            problems,
            self.recipe.share,
            sampling,
            visit=number,
            difficulties=None if difficulty is None else [difficulty(problem) for problem in problems],
            progress=(number - 1) / max(1, self.recipe.train.rollouts - 1),
        )

    def ask(
        self,
        number: int,
        label: str,
        problems: Sequence[Problem],
        share: ShareSection,
        sampling: Sampling,
        *,
        visit: int,
        difficulties: Sequence[Difficulty] | None = None,
        progress: float = 0.0,
    ) -> Rollout:
        """Asks `problems` in `share.num_variants` ways, `share.num_responses` times each, and rewards the answers.

        `label` names the occasion for seeding; `visit` tells the draws of variants of one problem apart;
        `difficulties` has one entry per problem (None: all as usual); `progress` is the share of the run that is done.
        """
        watch = Stopwatch()
        levels: list[Difficulty] = ["usual" for _ in problems] if difficulties is None else list(difficulties)
        with watch.part("expand"):
            variants = [
                expand_problem(p, share, seed=self.recipe.seed, visit=visit, difficulty=level, progress=progress)
                for p, level in zip(problems, levels, strict=True)
            ]
        answered = self.pose(label, problems, variants, share.num_responses, sampling, watch)
        totals = [score.total for block in answered.scores for row in block for score in row]
        shape = (len(problems), share.num_variants, share.num_responses)  # also of no problems: a process may have none
        rewards_PMN = torch.tensor(totals, dtype=torch.float64).reshape(shape)
        mask_PMN = torch.isfinite(rewards_PMN)
        return Rollout(
            number=number,
            problems=list(problems),
            variants=variants,
            prompts=answered.prompts,
            responses=answered.responses,
            scores=answered.scores,
            rewards_PMN=rewards_PMN,
            mask_PMN=mask_PMN,
            advantages=hierarchical_advantage(rewards_PMN, mask_PMN, std=share.std),
            difficulties=levels,
            stopwatch=watch,
        )

    def pose(
        self,
        label: str,
        problems: Sequence[Problem],
        variants: Sequence[Sequence[Variant]],
        count: int,
        sampling: Sampling,
        watch: Stopwatch | None = None,
    ) -> Answered:
        """Asks each problem in its own `variants`, `count` times each, and verifies the answers.

        A variant's responses are seeded by `label`, the problem's id and the variant's index.
        """
        watch = watch or Stopwatch()
        with watch.part("expand"):
            prompts = [[self.encoder.encode(v.text, v.images) for v in row] for row in variants]
        with watch.part("rollout"):
            responses = self._sample(label, problems, variants, prompts, count, sampling)
        with watch.part("reward"):
            return Answered(prompts, responses, self._score(problems, prompts, responses))

    def _sample(
        self,
        label: str,
        problems: Sequence[Problem],
        variants: Sequence[Sequence[Variant]],
        prompts: list[list[EncodedPrompt]],
        count: int,
        sampling: Sampling,
    ) -> list[list[list[Response]]]:
        requests = [
            SamplingRequest(f"{label}/{problem.id}/{variant.index}", prompt, count)
            for problem, ways, row in zip(problems, variants, prompts, strict=True)
            for variant, prompt in zip(ways, row, strict=True)
        ]
        answered = iter(self.engine.sample(requests, sampling))
        return [[next(answered) for _ in row] for row in prompts]

    def _score(
        self, problems: Sequence[Problem], prompts: list[list[EncodedPrompt]], responses: list[list[list[Response]]]
    ) -> list[list[list[Score]]]:
        samples = [
            Sample(
                prompt=prompt.text,
                completion=response.text,
                completion_ids=response.token_ids,
                answer=problem.answer,
                columns=columns,
            )
            for problem, row, block in zip(problems, prompts, responses, strict=True)
            for columns in (columns_of(problem),)
            for prompt, group in zip(row, block, strict=True)
            for response in group
        ]
        scored = iter(self.scorer.score(samples, self.trainer_state))
        return [[[next(scored) for _ in group] for group in block] for block in responses]
