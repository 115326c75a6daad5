"""What a recipe is in the words of transformers' Trainer."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import TrainingArguments

from sharevl_lite.checkpoints import CHECKPOINTS_DIR
from sharevl_lite.config import Recipe
from sharevl_lite.group import patience

NEVER = 2**31
"""Rollouts: no run is so long. Its end is saved anyway; a number that follows its length would change with it."""


@dataclass
class RecipeArguments(TrainingArguments):
    """The Trainer's, with the recipe beside them: trackers show all of it as the run's settings."""

    recipe: dict[str, Any] = field(default_factory=dict)


def training_arguments(recipe: Recipe) -> TrainingArguments:
    """The Trainer's arguments of a recipe. Checkpoints and evaluations fall on rollout boundaries."""
    train = recipe.train
    updates = train.updates_per_rollout
    every = recipe.eval.every_rollouts if recipe.data.eval else None
    if "tensorboard" in train.report_to:  # the Trainer takes the folder from nowhere else
        os.environ["TENSORBOARD_LOGGING_DIR"] = str(recipe.run_dir / "tensorboard")
    arguments = RecipeArguments(
        recipe=recipe.model_dump(mode="json"),
        output_dir=str(recipe.run_dir / CHECKPOINTS_DIR),
        run_name=recipe.name,
        seed=recipe.seed,
        use_cpu=not torch.cuda.is_available(),
        per_device_train_batch_size=1,
        num_train_epochs=1,
        learning_rate=train.learning_rate,
        lr_scheduler_type=train.lr_scheduler_type,
        warmup_steps=train.warmup_updates,
        weight_decay=train.weight_decay,
        max_grad_norm=train.max_grad_norm,
        logging_strategy="steps",
        logging_steps=updates,
        logging_nan_inf_filter=False,
        save_strategy="steps",
        save_steps=(train.save_rollouts or NEVER) * updates,
        # Not save_total_limit: the Trainer would drop the newest checkpoint for the best one, and with it the resume.
        eval_strategy="steps" if every else "no",
        eval_steps=(every or 1) * updates,
        metric_for_best_model=recipe.best_metric if every else None,
        greater_is_better=True if every else None,
        report_to=list(train.report_to) or "none",
        push_to_hub=train.push_to_hub,
        hub_model_id=train.hub_model_id,
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        ddp_find_unused_parameters=False,
        ddp_timeout=int(patience(recipe).total_seconds()),
        log_level="error",
    )
    arguments.mixed_precision = "no"  # the recipe's dtype alone: `accelerate launch` has one of its own to hand on
    if arguments.device.type == "cpu":
        # Accelerate numbers the processes' CPUs (`cpu:1`), and torch.load knows none with a number: no checkpoint could
        # be read again.
        arguments._setup_devices = torch.device("cpu")
    return arguments
