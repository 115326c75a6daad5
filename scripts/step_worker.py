"""One process of `bench_step.py`: ways to train that share a loaded model and a sampler, one step each.

Imported after Unsloth, where a way is loaded with it.
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from bench_step import READY, Way
from rich.console import Console
from torch import nn

from sharevl_lite import trainer
from sharevl_lite.collect import Collector
from sharevl_lite.config import Recipe
from sharevl_lite.data import Problem
from sharevl_lite.device_memory import MEMORY
from sharevl_lite.engines import load_policy_of, make_engine
from sharevl_lite.intake import fit_prompts, read_sources
from sharevl_lite.learn import Learner, Pair, RowLoss, UpdatePlan
from sharevl_lite.metrics_log import MetricsLog, read
from sharevl_lite.policy.fused import stock_layers
from sharevl_lite.policy.packed import PackedPolicy
from sharevl_lite.policy.prompts import PromptEncoder
from sharevl_lite.recipes import load_recipe
from sharevl_lite.rewards import RewardScorer
from sharevl_lite.rollout.engine import Response, RolloutEngine, Sampling, SamplingRequest, response_seed
from sharevl_lite.share import PackedRow, pack_row, plan_rows
from sharevl_lite.store import RolloutStore

PASS = 4
"""Pairs of one pass of the baseline."""
WARM_UP = 2
"""Problems of the step that does not count."""


class TimedLearner(Learner):
    """Tells on standard error when each row of an update was done, and the next one's forward pass, which waits for the
    device: a step that is cut off still has a speed."""

    def losses(self, model: nn.Module, plan: UpdatePlan, count: int, tokens: int) -> Iterator[RowLoss]:
        """The rows' losses."""
        began = time.monotonic()
        for number, loss in enumerate(super().losses(model, plan, count, tokens)):
            if number:
                print(f"row {number} of {len(plan.trained_rows)}, {time.monotonic() - began:.2f} s", file=sys.stderr)
            yield loss


class SeparateLearner(TimedLearner):
    """A prompt for every pair, as without packing."""

    def _rows(self, pairs: Sequence[Pair]) -> list[PackedRow[Pair]]:
        alone = [group for pair in pairs for group in self._groups([pair])]
        planned = plan_rows(alone, self.recipe.train.token_budget, share=False)
        return [pack_row(groups, share=False) for groups in planned]


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
    """Starts what these ways share, warms them up, says so, waits for a line, and prints a line of JSON for each."""
    began = time.monotonic()
    shared = recipe_of(file, ways[0])
    policy = load_policy_of(shared)
    tell("model loaded", began)
    encoder = PromptEncoder.of(policy, shared.data)
    rows = fit_prompts(shared, read_sources(shared).train, encoder, Console(stderr=True))
    engine = start_engine(shared, policy, ways[0].engine, problems)
    tell("sampler started", began)
    with RewardScorer(shared.reward) as scorer:
        bench = Bench(file, policy, encoder, rows, engine, scorer)
        for way in ways:
            print(json.dumps(bench.step(way, "warm-up", WARM_UP)), file=sys.stderr)
        tell("warm", began)
        print("\n" + READY, end="", flush=True)  # whatever a library has left on the line
        asked = bool(sys.stdin.readline())  # nobody is there any more where it ends without a line
        for way in ways if asked else ():
            print("\n" + json.dumps({"way": way.name} | bench.step(way, "step", problems)), flush=True)
    engine.close()


def start_engine(recipe: Recipe, policy: PackedPolicy, name: str, problems: int) -> RolloutEngine:
    """The sampler of these ways."""
    if name == "random":
        return RandomEngine(policy)
    if name != "vllm":
        return make_engine(recipe, policy, max_images=2)
    from sharevl_lite.rollout.vllm import VLLMRolloutEngine

    class FixedCache(VLLMRolloutEngine):
        """With room for all responses of a step: vLLM counts what processes beside it load meanwhile as its own."""

        def _device_settings(self, recipe: Recipe) -> dict[str, Any]:
            size = {"kv_cache_memory_bytes": cache_bytes(self.policy.config.get_text_config(), recipe, problems)}
            return super()._device_settings(recipe) | size

    return FixedCache(policy, recipe, max_images=2)


def cache_bytes(text: Any, recipe: Recipe, problems: int) -> int:
    """Keys and values in 16 bits of all prompts, read once, and responses of a step, and a quarter more for blocks that
    are not full."""
    share = recipe.share
    width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    token = 2 * 2 * text.num_hidden_layers * text.num_key_value_heads * width
    responses = share.num_responses * recipe.rollout.max_completion_length
    return int(1.25 * token * problems * share.num_variants * (recipe.data.max_prompt_length + responses))


def tell(what: str, began: float) -> None:
    """Seconds since a time, on standard error."""
    print(f"{what} after {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)


@dataclass
class Bench:
    """What the ways of a process share."""

    file: Path
    policy: PackedPolicy
    encoder: PromptEncoder
    rows: Sequence[Problem]
    engine: RolloutEngine
    scorer: RewardScorer

    def step(self, way: Way, kind: str, count: int) -> dict[str, Any]:
        """The metrics of one step of `count` problems."""
        changes: dict[str, object] = {"name": f"{way.name}-{kind}"}
        changes |= dict.fromkeys(("train.problems_per_rollout", "train.problems_per_update"), count)
        recipe = recipe_of(self.file, way, **changes)
        if way.separate:
            length = PASS * recipe.max_sequence_length
            recipe = recipe_of(self.file, way, **changes, **{"train.token_budget": length})
        trainer.Learner = SeparateLearner if way.separate else TimedLearner  # type: ignore[misc]
        log = MetricsLog(recipe.run_dir / "metrics.jsonl")
        recipe.run_dir.mkdir(parents=True)
        if torch.cuda.is_available():
            MEMORY.reset()
        collector = Collector(recipe, self.encoder, self.engine, self.scorer)
        store = RolloutStore(recipe.run_dir)
        run = trainer.ShareGRPOTrainer(recipe, self.policy, self.rows, collector, store=store, metrics_log=log)
        with stock_layers(self.policy.model) if way.separate else contextlib.nullcontext():
            run.train()
        return read(log.path)[-1]


def recipe_of(file: Path, way: Way, **changes: object) -> Recipe:
    """The shared recipe with a way's loader and sampler."""
    # A gap is in the record; the random engine's log-probs are nobody's.
    sampler = {"rollout.max_sampler_gap": None} | ({} if way.engine == "random" else {"rollout.engine": way.engine})
    return load_recipe(file, {"model.loader": way.loader} | sampler | changes)
