"""What `train` refuses at its start, found for `--dry-run` and `doctor` without a weight read or a file downloaded.

The model's folder and the first rows of data on this machine, all of them where they are few, are held to what `train`
holds them to; what would have to be downloaded, and the rows behind the first ones, are left to it.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from sharevl_lite.collect import check_rewards
from sharevl_lite.config import Recipe
from sharevl_lite.data import DataError, LoadedProblems, Problem, load_problems
from sharevl_lite.data.digits import SPLIT_SIZES
from sharevl_lite.data.loading import BUILTIN
from sharevl_lite.data.sources import count_rows, find_files, read_rows
from sharevl_lite.intake import fit_prompts
from sharevl_lite.model_shape import find_config, measure_shape
from sharevl_lite.policy.folder import is_missing
from sharevl_lite.policy.hf import bound_pixels, check_context, check_endings, check_supported, resolve_model_path
from sharevl_lite.policy.prompts import PromptRenderer
from sharevl_lite.rewards import RewardScorer
from sharevl_lite.schedule import check_enough
from sharevl_lite.wording import counted

MEASURED_PROBLEMS = 32
FEW_ROWS = 200
"""Rows of a source that are all looked at."""


@dataclass(frozen=True)
class FirstLook:
    """The first training problems (none of data to be downloaded), and what counts the tokens of their prompts.

    `whole`: there are no others. `skipped`: bad rows among those looked at. `rows`: of the training data, no more than
    `data.train_limit`, where that is known at once.
    """

    problems: list[Problem]
    prompts: PromptRenderer | None
    whole: bool = False
    skipped: int = 0
    rows: int | None = None

    def __str__(self) -> str:
        return f"{'all' if self.whole else 'the first'} {counted(len(self.problems), 'problem')}"

    @property
    def most_problems(self) -> int | None:
        """Problems of the training data, or the rows they are in where not all were looked at; None: not known."""
        return len(self.problems) if self.whole else self.rows


@dataclass(frozen=True)
class _Seen:
    """What was read of a source; `whole`: there is no more for `train` to read. `rows` of the source, where known."""

    loaded: LoadedProblems
    whole: bool
    rows: int | None


def _check_knobs_of_the_model(recipe: Recipe) -> None:
    """What depends on the model's configuration, where that is known. Raises PolicyError."""
    found = find_config(recipe.model.path)
    if found is None:
        return
    check_context(found[0], recipe.rollout.max_completion_length)
    if not isinstance(recipe.model.lora.target_modules, str):
        check_endings(measure_shape(found[0]).linear, recipe.model.lora.target_modules)


def look(recipe: Recipe) -> FirstLook:
    """Checks what is at hand. Raises the errors that `train` would: of reward functions, the model, or data."""
    scorer = RewardScorer(recipe.reward)
    try:
        prompts = _prompts_at_hand(recipe)
        _check_knobs_of_the_model(recipe)
        data = recipe.data
        train = _first_problems(data.train, data.train_split, data.train_limit, recipe)
        held_out = None
        if data.eval is not None:
            held_out = _first_problems(data.eval, data.eval_split, recipe.eval.problems, recipe)
        for source in (train, held_out):
            if source is not None:
                check_rewards(scorer, source.loaded.problems)
    finally:
        scorer.close()
    if train is not None:
        train = _fitting(train, prompts, recipe)
        check_enough(recipe, _count(train, recipe))
    if held_out is not None:
        _fitting(held_out, prompts, recipe)
    if train is None:
        return FirstLook([], prompts)
    loaded = train.loaded
    skipped = len(loaded.skipped) + len(loaded.places) - len(loaded.problems)
    return FirstLook(loaded.problems, prompts, train.whole, skipped, train.rows)


def is_local(model: str) -> bool:
    """Whether a model is built in, here, or named as a folder."""
    return resolve_model_path(model) != model or Path(model).exists() or is_missing(model)


def _prompts_at_hand(recipe: Recipe) -> PromptRenderer | None:
    """None where the model would have to be downloaded. Raises PolicyError for what is here and no model."""
    model = recipe.model
    if is_local(model.path):
        check_supported(model.path)
    processor = _processor_at_hand(model.path)
    if processor is None:
        return None
    bound_pixels(processor, model)
    return PromptRenderer(processor, recipe.data.prompt_template, recipe.data.system_prompt)


def _processor_at_hand(model: str) -> Any:
    from transformers import AutoProcessor

    try:
        return AutoProcessor.from_pretrained(resolve_model_path(model), local_files_only=True)
    except (OSError, ValueError):
        return None


def _first_problems(source: str, split: str, limit: int | None, recipe: Recipe) -> _Seen | None:
    """None of data that would have to be downloaded."""
    builtin = source.startswith(BUILTIN)
    if not builtin and find_files(source, split) is None:
        return None
    rows = SPLIT_SIZES.get(split) if builtin else count_rows(source, split)
    most = FEW_ROWS + 1 if rows is not None and rows <= FEW_ROWS else MEASURED_PROBLEMS
    most = most if limit is None else min(limit, most)
    loaded = load_problems(source, recipe.data, split=split, limit=most)
    return _Seen(
        loaded,
        whole=len(loaded.problems) < most or most == limit,
        rows=rows if limit is None or rows is None else min(rows, limit),
    )


def _fitting(seen: _Seen, prompts: PromptRenderer | None, recipe: Recipe) -> _Seen:
    """Those whose prompts fit. Where bad rows are skipped, good ones may follow the first."""
    if prompts is None:
        return seen
    loaded = seen.loaded
    try:
        fit = fit_prompts(recipe, loaded, prompts, Console(quiet=True))
    except DataError:
        if recipe.data.on_bad_row == "skip" and not seen.whole:
            return seen
        raise
    return replace(seen, loaded=replace(loaded, problems=fit))


def _count(first: _Seen, recipe: Recipe) -> int:
    """Problems of the training data, at most: rows behind the first are counted, not read, and no more than asked."""
    data = recipe.data
    if first.whole:
        return len(first.loaded.problems)
    if first.rows is not None:
        return first.rows
    most = recipe.train.problems_per_rollout + 1
    if data.train_limit is not None:
        most = min(most, data.train_limit)
    rows = read_rows(data.train, split=data.train_split, columns=lambda *_: None)
    return sum(1 for _ in itertools.islice(rows, most))
