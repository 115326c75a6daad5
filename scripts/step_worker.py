"""One process of `bench_step.py`: ways to train that share a loaded model and a sampler, one step each.

Imported after Unsloth, where a way is loaded with it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from bench_step import Way
from rich.console import Console

from sharevl_lite import trainer
from sharevl_lite.collect import Collector
from sharevl_lite.config import Recipe
from sharevl_lite.engines import load_policy_of, make_engine
from sharevl_lite.intake import fit_prompts, read_sources
from sharevl_lite.learn import Learner
from sharevl_lite.metrics_log import MetricsLog, read
from sharevl_lite.policy.packed import PackedPolicy
from sharevl_lite.policy.prompts import PromptEncoder
from sharevl_lite.recipes import load_recipe
from sharevl_lite.rewards import RewardScorer
from sharevl_lite.rollout.engine import Response, RolloutEngine, Sampling, SamplingRequest, response_seed
from sharevl_lite.share import SegmentGroup
from sharevl_lite.store import RolloutStore

PASS = 4
"""Pairs of one pass of the baseline."""
WARM_UP = 2
"""Problems of the step that does not count."""


class SeparateLearner(Learner):
    """A prompt for every pair, as without packing."""

    def _groups(self, numbers: Sequence[int]) -> list[SegmentGroup]:
        return [group for number in numbers for group in super(SeparateLearner, self)._groups([number])]


class RandomEngine:
    """Responses of full length that nobody sampled: the rest of a step, without a sampler's start."""

    def __init__(self, policy: PackedPolicy) -> None:
        vocabulary = torch.ones(policy.config.get_text_config().vocab_size)
        vocabulary[list(policy.vision_token_ids)] = 0.0
        self.words = vocabulary.nonzero()[:, 0]

    def sample(self, requests: Sequence[SamplingRequest], sampling: Sampling) -> list[list[Response]]:
        """`count` responses to each request."""
        length = sampling.max_completion_length
        return [
            [
                self._response(response_seed(sampling.seed, request.key, number), length)
                for number in range(request.count)
            ]
            for request in requests
        ]

    def _response(self, seed: int, length: int) -> Response:
        places = torch.randint(len(self.words), (length,), generator=torch.Generator().manual_seed(seed))
        return Response(tuple(self.words[places].tolist()), (0.0,) * length, "", truncated=True)

    def sync(self) -> None:
        """There is nothing to hand over."""

    def close(self) -> None:
        """There is nothing to free."""


def work(ways: Sequence[Way], file: Path, problems: int) -> None:
    """Measures these ways, which share loader and sampler; prints a line of JSON for each."""
    shared = recipe_of(file, ways[0])
    policy = load_policy_of(shared)
    encoder = PromptEncoder(policy.processor, policy.base.model.get_rope_index, shared.data.prompt_template)
    rows = fit_prompts(shared, read_sources(shared).train, encoder, Console(stderr=True))
    random = ways[0].engine == "random"
    engine: RolloutEngine = RandomEngine(policy) if random else make_engine(shared, policy, max_images=2)
    length = PASS * (shared.data.max_prompt_length + shared.rollout.max_completion_length)
    with RewardScorer(shared.reward, Path()) as scorer:
        for way in ways:
            trainer.Learner = SeparateLearner if way.separate else Learner  # type: ignore[misc]
            for kind, count in (("warm-up", WARM_UP), ("step", problems)):
                changes = {"name": f"{way.name}-{kind}"} | ({"train.token_budget": length} if way.separate else {})
                changes |= dict.fromkeys(("train.problems_per_rollout", "train.problems_per_update"), count)
                recipe = recipe_of(file, way, **changes)
                log = MetricsLog(recipe.run_dir / "metrics.jsonl")
                recipe.run_dir.mkdir(parents=True)
                if torch.cuda.is_available():
                    torch.cuda.reset_peak_memory_stats()
                collector = Collector(recipe, encoder, engine, scorer)
                store = RolloutStore(recipe.run_dir)
                trainer.ShareGRPOTrainer(recipe, policy, rows, collector, store=store, metrics_log=log).train()
                record = json.dumps({"way": way.name, **read(log.path)[-1]})
                print(record, file=sys.stderr if kind == "warm-up" else sys.stdout, flush=True)
    engine.close()


def recipe_of(file: Path, way: Way, **changes: object) -> Recipe:
    """The shared recipe with a way's loader and sampler."""
    # The random engine's log-probs are nobody's: they are not compared.
    sampler = {"rollout.max_sampler_gap": None} if way.engine == "random" else {"rollout.engine": way.engine}
    return load_recipe(file, {"model.loader": way.loader} | sampler | changes)
