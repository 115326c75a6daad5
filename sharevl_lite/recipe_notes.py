"""What a recipe sets without effect, or as it is seldom meant: told before a run and in a dry run, refused nowhere."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from sharevl_lite.config import DataSection, Recipe

GRPO_CLIPS_FROM = 0.05
"""Far above GSPO's bounds (3e-4 and 4e-4) and below those of token ratios."""


def recipe_notes(recipe: Recipe) -> list[str]:
    """One sentence for each such knob, with its value and what would be meant."""
    return [
        *_on_the_rate(recipe),
        *_on_data(recipe),
        *_on_sharing(recipe),
        *_on_the_objective(recipe),
        *_on_the_servers(recipe),
    ]


def _on_the_rate(recipe: Recipe) -> Iterator[str]:
    train = recipe.train
    updates = train.rollouts * train.updates_per_rollout
    if train.lr_scheduler_type == "constant":
        if train.warmup_updates:
            yield (
                f"train.warmup_updates: {train.warmup_updates} has no effect with train.lr_scheduler_type: constant; "
                "constant_with_warmup has it"
            )
    elif train.warmup_updates == 1:
        yield "train.warmup_updates: 1 is one update at a rate of 0, which changes nothing; 0 is without a warm-up"
    elif train.warmup_updates >= updates:
        yield (
            f"train.warmup_updates: {train.warmup_updates} of the run's {updates} updates, so that the rate never "
            f"reaches train.learning_rate ({train.learning_rate:g})"
        )


def _on_data(recipe: Recipe) -> Iterator[str]:
    if recipe.data.eval is None and recipe.eval.every_rollouts is not None:
        yield f"eval.every_rollouts: {recipe.eval.every_rollouts} has no effect without data.eval (held-out problems)"
    for split, source in (("train", recipe.data.train), ("eval", recipe.data.eval)):
        name, typed = f"{split}_split", getattr(recipe.data, f"{split}_split")
        if source is not None and typed != DataSection.model_fields[name].default and Path(source).is_file():
            yield f"data.{name}: {typed} has no effect, for {source} is one file"
    if recipe.train.hub_model_id and not recipe.train.push_to_hub:
        yield f"train.hub_model_id: {recipe.train.hub_model_id} has no effect without train.push_to_hub: true"


def _on_sharing(recipe: Recipe) -> Iterator[str]:
    transforms = recipe.share.transforms
    mirrors = [kind for kind in transforms.kinds if kind.startswith("mirror_")]
    if mirrors and not transforms.allow_mirrors:
        yield (
            f"share.transforms.kinds: {', '.join(mirrors)} for rows that say allow_mirrors alone; "
            "share.transforms.allow_mirrors: true is for all"
        )
    if transforms.allow_mirrors and not mirrors:
        yield "share.transforms.allow_mirrors has no effect, for share.transforms.kinds holds no mirror"


def _on_the_objective(recipe: Recipe) -> Iterator[str]:
    objective = recipe.objective
    widest = max(objective.epsilon, objective.epsilon_high)
    if objective.importance_sampling_level == "sequence" and widest > GRPO_CLIPS_FROM:
        yield (
            f"objective.epsilon: {objective.epsilon:g} and epsilon_high: {objective.epsilon_high:g} are bounds of "
            "token ratios; a whole sequence's hardly ever reach them (GSPO: 3e-4 and 4e-4, with delta: null)"
        )
    cross = recipe.share.trajectories == "shared" and recipe.share.num_variants > 1
    if objective.correction != "none" and not cross:
        yield (
            f"objective.correction: {objective.correction} has no effect where no response is scored under another "
            "variant"
        )
    if objective.correction == "none" and objective.correction_cap != 1.0:
        yield f"objective.correction_cap: {objective.correction_cap:g} has no effect with objective.correction: none"


def _on_the_servers(recipe: Recipe) -> Iterator[str]:
    rollout = recipe.rollout
    if rollout.server_urls and rollout.engine != "server":
        yield f"rollout.server_urls has no effect with rollout.engine: {rollout.engine}; `server` samples there"
