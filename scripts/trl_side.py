"""TRL's side of `bench_trl.py`: a recipe of plain GRPO in the words of TRL's GRPOTrainer, timed part by part.

Nothing of TRL's step is changed on a GPU. On a CPU its head is: TRL 1.15 takes log-probs and entropies from Triton
kernels, which run on GPUs alone, and :class:`PlainHead` computes the same with torch's own operations there.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from torch import Tensor
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor, TrainerCallback
from trl import GRPOConfig, GRPOTrainer
from trl.data_utils import prepare_multimodal_messages
from trl.trainer import utils as trl_utils

from sharevl_lite.config import Recipe
from sharevl_lite.data import Problem
from sharevl_lite.data.problem import split_placeholders
from sharevl_lite.intake import read_sources
from sharevl_lite.policy.hf import resolve_model_path, text_layers
from sharevl_lite.policy.prompts import PromptRenderer
from sharevl_lite.rewards import RewardScorer, Sample
from sharevl_lite.rewards.functions import load_reward_function

LOSSES = {"sequence": "grpo", "token": "dapo", "dr_grpo": "dr_grpo"}
"""TRL's name of an aggregation (`tests/share/test_trl_parity.py`)."""
VISION = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")

RewardFunction = Callable[..., list[float]]


class PlainHead:
    """Log-probs and entropies of a head's targets from the whole logits, in place of TRL's function for GPUs."""

    @staticmethod
    def apply(
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        temperature: float,
        chunk_size: int,
        softcap: float | None,
        logit_scale: float,
        outputs: Sequence[str],
    ) -> tuple[Tensor, Tensor | None, None, None, None]:
        """The log-probs [N] and, where asked for, the entropies [N] (without a gradient); the rest is not given."""
        if softcap is not None or not set(outputs) <= {"log_probs", "entropy"}:
            raise NotImplementedError(f"a head with softcap {softcap} and {outputs}")
        logits = torch.nn.functional.linear(hidden, weight, bias)
        logprobs = (logits * (logit_scale / temperature)).float().log_softmax(-1)
        entropies = None
        if "entropy" in outputs:
            with torch.no_grad():
                entropies = -(logprobs.exp() * logprobs).sum(-1)
        return logprobs.gather(-1, targets[:, None])[:, 0], entropies, None, None, None


class TimedGRPOTrainer(GRPOTrainer):
    """TRL's trainer; `parts` sums the seconds of the parts of each step, some inside of others."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.parts: list[dict[str, float]] = [{}]

    @contextlib.contextmanager
    def _part(self, name: str) -> Iterator[None]:
        began = seconds()
        yield
        self.parts[-1][name] = self.parts[-1].get(name, 0.0) + seconds() - began

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        with self._part("pass"):
            return super().training_step(*args, **kwargs)

    def _prepare_inputs(self, generation_batch: Any) -> Any:
        with self._part("inputs"):
            return super()._prepare_inputs(generation_batch)

    def _generate_single_turn(self, *args: Any, **kwargs: Any) -> Any:
        with self._part("sample"):
            return super()._generate_single_turn(*args, **kwargs)

    def _calculate_rewards(self, *args: Any, **kwargs: Any) -> Any:
        with self._part("reward"):
            return super()._calculate_rewards(*args, **kwargs)

    def step_parts(self) -> list[dict[str, float]]:
        """Seconds of each step: prompts and images made ready, sampling, rewards, forward and backward passes."""
        return [
            {
                "prepare": part["inputs"] - part["sample"] - part["reward"],
                "sample": part["sample"],
                "reward": part["reward"],
                "train": part["pass"] - part["inputs"],
            }
            for part in self.parts
            if part
        ]


class NextParts(TrainerCallback):
    """Starts a new entry of a trainer's parts after every step."""

    def __init__(self, parts: list[dict[str, float]]) -> None:
        self.parts = parts

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """Called by the Trainer."""
        self.parts.append({})


def seconds() -> float:
    """The time, once the device has done what it was asked."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def reward_of(recipe: Recipe, scorer: RewardScorer, rewards: list[float]) -> RewardFunction:
    """The recipe's reward with TRL's signature; `rewards` gets the mean of every call."""
    only = recipe.reward.functions[0] if recipe.reward.functions else None
    own = None if only is None else load_reward_function(only.path)

    def reward(completions: list[Any], completion_ids: list[list[int]], answer: list[str], **columns: Any) -> list[Any]:
        if own is not None:
            values = own(completions=completions, completion_ids=completion_ids, answer=answer, **columns)
        else:
            texts = [messages[0]["content"] for messages in completions]
            samples = [
                Sample("", text, tuple(ids), gold, {})
                for text, ids, gold in zip(texts, completion_ids, answer, strict=True)
            ]
            values = [score.total for score in scorer.score(samples)]
        rewards.append(sum(values) / len(values))
        return list(values)

    return reward


def rows_of(problems: Sequence[Problem], template: str) -> Dataset:
    """The problems as TRL takes them: a chat message, its images in a column, and the answer."""
    return Dataset.from_list(
        [
            {
                "prompt": [{"role": "user", "content": template.format(problem=split_placeholders(problem.text)[1])}],
                "images": list(problem.images),
                "answer": problem.gold,
            }
            for problem in problems
        ]
    )


def check_prompts(rows: Dataset, problems: Sequence[Problem], processor: Any, template: str) -> int:
    """Tokens of the first prompt. Raises RuntimeError where TRL would ask another one than the recipe does."""
    row, problem = rows[0], problems[0]
    messages = prepare_multimodal_messages(row["prompt"], images=row["images"])
    theirs = processor.apply_chat_template([messages], tokenize=True, add_generation_prompt=True, return_dict=True)
    text = PromptRenderer(processor, template).render(problem.text)
    ours = processor(text=[text], images=list(problem.images))
    if list(theirs["input_ids"][0]) != list(ours["input_ids"][0]):
        raise RuntimeError("TRL's prompt is not the recipe's: the chat template puts the image elsewhere")
    return len(ours["input_ids"][0])


def settings(recipe: Recipe, path: str, batch: int) -> GRPOConfig:
    """The recipe's figures, one update a rollout, `batch` responses in a pass, and nothing logged or saved."""
    objective, train, rollout = recipe.objective, recipe.train, recipe.rollout
    responses = train.problems_per_rollout * recipe.share.num_responses
    config = AutoConfig.from_pretrained(path)
    return GRPOConfig(
        output_dir=str(recipe.run_dir),
        seed=recipe.seed,
        use_cpu=not torch.cuda.is_available(),
        bf16=torch.cuda.is_available(),
        model_init_kwargs={"dtype": "bfloat16" if torch.cuda.is_available() else "float32"},
        gradient_checkpointing=recipe.model.gradient_checkpointing,
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=responses // batch,
        num_generations=recipe.share.num_responses,
        max_completion_length=rollout.max_completion_length,
        temperature=rollout.temperature,
        generation_kwargs={"suppress_tokens": [getattr(config, name) for name in VISION]},
        max_steps=train.rollouts,
        learning_rate=train.learning_rate,
        lr_scheduler_type=train.lr_scheduler_type,
        warmup_steps=train.warmup_updates,
        max_grad_norm=train.max_grad_norm,
        loss_type=LOSSES[objective.aggregation],
        epsilon=objective.epsilon,
        epsilon_high=objective.epsilon_high,
        delta=objective.delta,
        beta=objective.beta,
        logging_strategy="no",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )


def adapter_of(recipe: Recipe, path: str) -> LoraConfig:
    """The recipe's adapter, on the layers that the recipe's own loader adapts."""
    lora = recipe.model.lora
    with torch.device("meta"):
        shape = AutoModelForImageTextToText.from_config(AutoConfig.from_pretrained(path))
    layers = text_layers(shape, lora.target_modules)
    return LoraConfig(r=lora.rank, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=layers, bias="none")


def train_with_trl(recipe: Recipe, batch: int, gate: TrainerCallback) -> dict[str, Any]:
    """Trains as the recipe says, saves the adapter as the recipe's own trainer does, and tells what each step took."""
    if not torch.cuda.is_available():
        trl_utils._ChunkedLogProbFunction = PlainHead
    path = resolve_model_path(recipe.model.path)
    processor = AutoProcessor.from_pretrained(path, padding_side="left")
    problems = read_sources(recipe).train.problems
    rows = rows_of(problems, recipe.data.prompt_template)
    prompt = check_prompts(rows, problems, processor, recipe.data.prompt_template)
    rewards: list[float] = []
    with RewardScorer(recipe.reward) as scorer:
        trainer = TimedGRPOTrainer(
            model=path,
            reward_funcs=reward_of(recipe, scorer, rewards),
            args=settings(recipe, path, batch),
            train_dataset=rows,
            processing_class=processor,
            peft_config=adapter_of(recipe, path),
            callbacks=[gate],
        )
        trainer.add_callback(NextParts(trainer.parts))
        trainer.train()
    folder = Path(recipe.run_dir) / "adapter"
    trainer.model.save_pretrained(str(folder))
    return {"parts": trainer.step_parts(), "rewards": rewards, "prompt": prompt}
