"""What is evaluated, found and checked by its files' names, before anything heavy is imported."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sharevl_lite.checkpoints import CHECKPOINTS_DIR, STATE_FILE, list_checkpoints
from sharevl_lite.config import Recipe
from sharevl_lite.evaluation.settings import Settings
from sharevl_lite.policy.folder import RULE, check_folder, is_missing, near, resolve_model_path
from sharevl_lite.recipes import load_recipe
from sharevl_lite.run_files import ADAPTER_DIR, RECIPE_FILE
from sharevl_lite.run_folder import RunError

ALL_ROWS = sys.maxsize


@dataclass(frozen=True)
class Subject:
    """What is evaluated: the recipe with its overrides, the folder of an adapter, and the run it belongs to."""

    name: str
    recipe: Recipe
    adapter: Path | None
    run_dir: Path | None


def find_subject(target: str, settings: Settings, presets: Mapping[str, Any] | None = None) -> Subject:
    """Recipe (with what replaces its values), adapter and run of a target; see
    :func:`sharevl_lite.evaluate.evaluate_target`.

    `presets` are as in :func:`sharevl_lite.recipes.load_recipe`.
    """
    adapter, run_dir = locate(Path(target))
    found = None if run_dir is None else run_dir / RECIPE_FILE
    described = found if settings.recipe_file is None else Path(settings.recipe_file)
    if run_dir is None:
        check_model(target)
    words = [*settings.words(), *([] if run_dir else ["--model.path", target])]
    rows = {"eval.problems": ALL_ROWS} if settings.data is not None else {}
    return Subject(target, load_recipe(described, words, presets={**rows, **(presets or {})}), adapter, run_dir)


def check_model(target: str) -> None:
    """Raises RunError for what is meant as a folder and is not there; PolicyError for an unknown built-in, and
    for a folder that holds no model."""
    if resolve_model_path(target) != target:
        return
    if is_missing(target):
        raise RunError(
            f"{target}: no such run, checkpoint or model{near(target)}; give a folder, ORG/NAME or NAME on the Hub, or "
            f"builtin:NAME. {RULE}"
        )
    check_folder(target)


def check_data(recipe: Recipe) -> str:
    """The source of held-out problems. Raises RunError where the recipe names none."""
    if recipe.data.eval is None:
        raise RunError("nothing to evaluate on: give --data, such as --data test.parquet or --data builtin:digits")
    return recipe.data.eval


def locate(target: Path) -> tuple[Path | None, Path | None]:
    """(adapter folder, run folder) of a run or checkpoint; (None, None) of anything else.

    Raises RunError for a run without adapter and checkpoint.
    """
    if (target / RECIPE_FILE).is_file():
        if (target / ADAPTER_DIR).is_dir():
            return target / ADAPTER_DIR, target
        checkpoints = list_checkpoints(target / CHECKPOINTS_DIR)
        if not checkpoints:
            raise RunError(f"{target}: the run has neither an adapter nor a checkpoint yet")
        return checkpoints[-1], target
    run = target.parent.parent
    if (target / STATE_FILE).is_file() and (run / RECIPE_FILE).is_file():
        return target, run
    if target.name == ADAPTER_DIR and (target.parent / RECIPE_FILE).is_file():
        return target, target.parent
    return None, None
