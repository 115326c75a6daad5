"""One process of `bench_trl.py`: a trainer that takes a step when it is told to, or the judge of finished adapters.

    python scripts/trl_worker.py JOB.json

The job is a `trl_setup.Job` as JSON. Standard output gets a line of JSON when the trainer is ready, one after each
step, and one at the end; each step waits for a line on standard input.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import nn
from transformers import TrainerCallback
from trl_setup import Job

from sharevl_lite import metrics_log
from sharevl_lite.collect import Collector
from sharevl_lite.config import Recipe
from sharevl_lite.engines import make_engine
from sharevl_lite.intake import read_sources
from sharevl_lite.metrics import peak_memory_mib
from sharevl_lite.policy.hf import load_adapter, load_policy
from sharevl_lite.policy.prompts import PromptEncoder
from sharevl_lite.recipes import load_recipe
from sharevl_lite.rewards import RewardScorer
from sharevl_lite.rollout.engine import Sampling
from sharevl_lite.run import train

EVAL_BLOCK = 64


class Gate(TrainerCallback):
    """Lets a Trainer take a step at a time, from one end of a step to the next, and counts what its model reads.

    A step's seconds are all that lies between: the fetching of data, samples, rewards, passes, the optimizer, and what
    is written down.
    """

    def __init__(self) -> None:
        self.steps: list[dict[str, float]] = []
        self.counts: dict[str, float] = {}

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        """Called by the Trainer: everything is loaded. Tells how many parameters are trained."""
        modules = {name.rpartition(".")[2]: module for name, module in model.named_modules()}
        modules["language_model"].register_forward_pre_hook(self._count_tokens, with_kwargs=True)
        modules["visual"].register_forward_pre_hook(self._count_patches, with_kwargs=True)
        tell({"ready": sum(p.numel() for p in model.parameters() if p.requires_grad)})
        self._wait()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Called by the Trainer: the optimizer has made its step."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        step = {"seconds": time.perf_counter() - self.began, **self.counts}
        self.steps.append(step)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()  # the next process's step wants the card's memory as well
        tell({"step": step})
        if state.global_step < state.max_steps:
            self._wait()

    def _wait(self) -> None:
        if not sys.stdin.readline():
            sys.exit("nobody asks for another step")
        self.counts = dict.fromkeys(("sampled_tokens", "trained_tokens", "patches"), 0.0)
        self.began = time.perf_counter()

    def _count_tokens(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Padding counts: it is computed as well. A pass with a cache samples."""
        rows, length = kwargs["inputs_embeds"].shape[:2]
        samples = any(kwargs.get(name) is not None for name in ("cache", "past_key_values"))  # new and old name
        self.counts["sampled_tokens" if samples else "trained_tokens"] += rows * length

    def _count_patches(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        patches = args[0] if args else kwargs["hidden_states"]
        self.counts["patches"] += patches.shape[0]


def tell(record: dict[str, Any]) -> None:
    """A line for the parent."""
    print(json.dumps({"peer": True} | record), flush=True)


def train_ours(recipe: Recipe, gate: Gate) -> dict[str, Any]:
    """The trainer of `sharevl-lite train`."""
    result = train(recipe, console=Console(stderr=True), callbacks=[gate])
    records = [r for r in metrics_log.read(result.run_dir / "metrics.jsonl") if "loss" in r]
    parts = [
        {
            "prepare": record["seconds/expand"],
            "sample": record["seconds/rollout"],
            "reward": record["seconds/reward"],
            "train": record["seconds/score"] + record["seconds/update"],
        }
        for record in records
    ]
    return {
        "parts": parts,
        "rewards": [record["reward"] for record in records],
    }


def judge(recipe: Recipe, adapters: list[Path]) -> list[float]:
    """Accuracy on the held-out problems, asked plainly, of the model without an adapter and with each of these."""
    held_out = read_sources(recipe).held_out
    assert held_out is not None
    problems = held_out.problems
    policy = load_policy(recipe.model, seed=0, temperature=recipe.rollout.temperature)
    encoder = PromptEncoder.of(policy, recipe.data)
    share = recipe.share.model_copy(update={"num_variants": 1, "num_responses": recipe.eval.samples})
    sampling = Sampling(1.0, 1.0, recipe.rollout.max_completion_length, 0)
    accuracies = []
    with RewardScorer(recipe.reward) as scorer:
        collector = Collector(recipe, encoder, make_engine(recipe, policy, max_images=1), scorer)
        for adapter in (None, *adapters):
            if adapter is not None:
                load_adapter(policy, adapter)
            scores = []
            for start in range(0, len(problems), EVAL_BLOCK):
                asked = collector.ask(0, "eval", problems[start : start + EVAL_BLOCK], share, sampling, visit=0)
                scores += [score.accuracy for block in asked.scores for row in block for score in row]
            accuracies.append(sum(scores) / len(scores))
    return accuracies


def work(job: Job) -> None:
    """Does what the job says."""
    torch.set_num_threads(job.threads)
    torch.backends.cuda.enable_cudnn_sdp(False)  # on Hopper it is tried first, and plans anew for every length
    recipe = load_recipe(Path(job.recipe), dict(job.changes))
    if job.side == "judge":
        tell({"accuracies": judge(recipe, [Path(adapter) for adapter in job.adapters])})
        return
    gate = Gate()
    if job.side == "trl":
        from trl_side import train_with_trl

        outcome = train_with_trl(recipe, job.size, gate)
    else:
        outcome = train_ours(recipe, gate)
    tell({"done": {"steps": gate.steps, "peak_memory_mib": peak_memory_mib(), **outcome}})


if __name__ == "__main__":
    work(Job(**json.loads(Path(sys.argv[1]).read_text())))
