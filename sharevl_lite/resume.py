"""Whether a run may go on with what is asked of it, before anything is loaded: its recipe, its length, its model."""

from __future__ import annotations

import json
import logging
import re
import shlex
from pathlib import Path
from typing import Any

from sharevl_lite.checkpoints import CHECKPOINTS_DIR, list_checkpoints, updates_made
from sharevl_lite.config import Recipe
from sharevl_lite.recipe_yaml import parse
from sharevl_lite.recipes import load_recipe
from sharevl_lite.run_basis import CHOICES, START, check_same_model, kept_record
from sharevl_lite.run_files import ADAPTER_DIR, RECIPE_FILE, SUMMARY_FILE
from sharevl_lite.run_folder import RunError, check_place, holds_run, is_finished

RATE, LENGTH = "train.learning_rate", "train.rollouts"
PLACES = frozenset({"data.train", "data.eval", "model.path"})
HARMLESS = frozenset(
    {
        "train.save_rollouts",
        "train.save_total_limit",
        "train.report_to",
        "train.push_to_hub",
        "train.hub_model_id",
        "train.score_skipped",
        "rollout.server_urls",
        "rollout.server_model",
        "rollout.server_adapter_dir",
        "rollout.server_timeout_seconds",
        "rollout.server_retries",
        "rollout.vllm_gpu_memory_utilization",
        "rollout.vllm_enforce_eager",
        "rollout.max_sampler_gap",
        "reward.timeout_seconds",
        "reward.workers",
    }
)
"""Knobs that decide nothing of what is asked, rewarded or optimised."""
ROUNDING = frozenset(
    {"train.token_budget", "rollout.batch_size", "model.gradient_checkpointing", "model.checkpointing_layers"}
)
"""Knobs about how sums are grouped: the run goes on as it would have, but not bit for bit."""
RESUMABLE_CHANGES = HARMLESS | ROUNDING | {RATE, LENGTH, CHOICES}
"""What a resumed run may change. The learning rate decides, but who sees a run diverge goes back to a checkpoint and on
at a lower one. The length may change where no step that was made depends on it."""
STEADY = frozenset({"constant", "constant_with_warmup"})
"""Schedules whose rate at a step does not depend on how many come after it."""
MOST_TOLD = 5
PLAIN_WORD = re.compile(r"[\w./][\w./:@+-]*", re.ASCII)

logger = logging.getLogger(__name__)


def prepare(recipe: Recipe, resume: str | Path | None) -> Path | None:
    """Checks the run's folder against what is asked; returns the checkpoint to start from."""
    run_dir = recipe.run_dir
    recipe_file = run_dir / RECIPE_FILE
    check_place(run_dir, resume)
    if resume is None or (resume == "auto" and not holds_run(run_dir)):
        return None
    started = load_recipe(recipe_file)
    _check_same_recipe(started, recipe, recipe_file)
    if not is_finished(recipe):
        check_same_model(recipe)
    newest = list_checkpoints(run_dir / CHECKPOINTS_DIR)[-1:]
    start = Path(resume) if resume != "auto" else newest[0] if newest else None
    if started.train.rollouts != recipe.train.rollouts:
        _check_length(started.train.rollouts, recipe, start)
    return start


def words_on_more(recipe: Recipe) -> str:
    """How a finished run can be trained further."""
    if _decided_by_length(recipe) is None and list_checkpoints(recipe.run_dir / CHECKPOINTS_DIR):
        return f"to train on, repeat this with --{LENGTH} above {recipe.train.rollouts}"
    return f"to train on, start another run with --name NAME --{START} {recipe.run_dir}"


def _check_length(was: int, recipe: Recipe, start: Path | None) -> None:
    """Raises RunError where a run that goes on from the checkpoint `start` cannot have another length."""
    run_dir, now = recipe.run_dir, recipe.train.rollouts
    told = f"{run_dir}: {LENGTH} was {was}, now {now}"
    source = run_dir if (run_dir / ADAPTER_DIR).is_dir() else start
    elsewhere = f"go on in another run with --name NAME --{START} {source}"
    if start is not None:
        decided = _decided_by_length(recipe)
        if decided is not None:
            raise RunError(f"{told}; {decided}, also of those that were made: keep {was}, or {elsewhere}")
        done = updates_made(start) // recipe.train.updates_per_rollout
        if now < done:
            raise RunError(f"{told}; {done} are done: give {done} or more, or an older checkpoint with --resume PATH")
    elif (run_dir / SUMMARY_FILE).is_file():
        raise RunError(f"{told}; its checkpoints are gone, and with them the optimizer's state: {elsewhere}")
    logger.warning("%s was %d; the run %s %d", LENGTH, was, "goes on to" if now > was else "ends at", now)


def _decided_by_length(recipe: Recipe) -> str | None:
    """What of every step depends on how many there are, in words; None where nothing does."""
    schedule, decay = recipe.train.lr_scheduler_type, recipe.share.transforms.noise_decay
    if schedule not in STEADY:
        return f"train.lr_scheduler_type: {schedule} makes the length decide the rate of every step"
    return None if decay == "none" else f"noise_decay: {decay} makes the length decide the noise of every step"


def _check_same_recipe(started: Recipe, recipe: Recipe, recipe_file: Path) -> None:
    """Raises RunError where the run cannot go on with what changed; warns of what it goes on with."""
    before, now = _flat(started.model_dump(mode="json")), _flat(recipe.model_dump(mode="json"))
    changed = _changed(before, now)
    if list_checkpoints(recipe.run_dir / CHECKPOINTS_DIR):
        changed = [key for key in changed if key != START]  # its weights have gone into the run's own
    _tell_moves(recipe, before, now)
    wrong = [key for key in changed if key not in RESUMABLE_CHANGES]
    if wrong:
        told = "; ".join(f"{key} was {before.get(key)!r}, now {now.get(key)!r}" for key in wrong[:MOST_TOLD])
        raise RunError(
            f"{recipe_file}: the run was started with another recipe ({told}); go on {_as_it_was(before, wrong)}, or "
            "start another with --name NAME"
        )
    if not is_finished(recipe):
        _tell_changes(changed, before, now)
    elif changed:
        logger.warning("%s: of no effect, for the run is finished", ", ".join(changed))


def _changed(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Knobs whose values are not the same; a folder or file that may only have been moved is."""
    unequal = sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))
    return [key for key in unequal if not (key in PLACES and _may_be_moved(before.get(key), now.get(key)))]


def _tell_changes(changed: list[str], before: dict[str, Any], now: dict[str, Any]) -> None:
    """Warns of what a run goes on with that makes it another than it would have been."""
    if rounding := [key for key in changed if key in ROUNDING]:
        logger.warning("%s changed: the run goes on, but not bit for bit", ", ".join(rounding))
    if RATE in changed:
        logger.warning("%s was %g; the run goes on with %g", RATE, before[RATE], now[RATE])
    if CHOICES in changed:  # of training problems check_same_data sees what it makes
        logger.warning("%s was %s, now %s: held-out questions may differ", CHOICES, before[CHOICES], now[CHOICES])


def _tell_moves(recipe: Recipe, before: dict[str, Any], now: dict[str, Any]) -> None:
    """Warns of what is taken for the same by its name alone: an older program kept no more."""
    kept = kept_record(recipe)
    for key, held in (("data.eval", "eval"), ("model.path", "model")):
        if held not in kept and before.get(key) != now.get(key) and _may_be_moved(before.get(key), now.get(key)):
            logger.warning(
                "%s was %s, now %s: taken for the same by its name, for an older version kept no digest of it",
                key,
                before[key],
                now[key],
            )


def _as_it_was(before: dict[str, Any], wrong: list[str]) -> str:
    """How to give these knobs as the run was started with them."""
    if len(wrong) > MOST_TOLD or not all(key in before for key in wrong):
        return "with the recipe of the run's folder in place of this one"
    words = (f"--{key.replace('_', '-')} {shlex.quote(_as_word(before[key]))}" for key in wrong)
    return f"as it was with {' '.join(words)}"


def _as_word(value: Any) -> str:
    """A value as the command line reads it."""
    plain = isinstance(value, str) and PLAIN_WORD.fullmatch(value) and parse(value).data == value
    return str(value) if plain else json.dumps(value, ensure_ascii=False)  # JSON is YAML


def _may_be_moved(before: Any, now: Any) -> bool:
    """Whether both may be the same folder or file, seen from elsewhere or after a move: by the name alone.

    :func:`check_same_data` and :func:`check_same_model` look at what they hold.
    """
    if not isinstance(before, str) or not isinstance(now, str):
        return False
    here = Path(before).is_absolute() or Path(now).is_absolute()  # ids of the Hub are not
    return here and Path(before).name == Path(now).name


def _flat(data: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in data.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat
