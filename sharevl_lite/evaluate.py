"""`sharevl-lite eval`: held-out accuracy of a finished run, a checkpoint, or a plain model."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from sharevl_lite.checkpoints import list_checkpoints
from sharevl_lite.collect import Collector
from sharevl_lite.config import Recipe
from sharevl_lite.data import load_problems
from sharevl_lite.heldout import Evaluator
from sharevl_lite.intake import fit_prompts
from sharevl_lite.policy.hf import load_adapter, load_policy
from sharevl_lite.policy.prompts import PromptEncoder
from sharevl_lite.recipes import load_recipe
from sharevl_lite.rewards import RewardScorer
from sharevl_lite.rollout.hf import HFRolloutEngine
from sharevl_lite.run import ADAPTER_DIR, RECIPE_FILE, RunError


def evaluate_target(
    target: str,
    *,
    data: str | None = None,
    samples: int | None = None,
    recipe_file: str | None = None,
    overrides: Sequence[str] = (),
) -> dict[str, float]:
    """Figures (shares of 0..1) of `target` on `data`: see :class:`Evaluator`.

    `target` is a run's folder (its final adapter, or its newest checkpoint), a checkpoint's folder, or a model as in
    `model.path`; a model takes prompt, rewards and variants from `recipe_file` or the defaults. All rows of `data` are
    asked, unless `overrides` set `eval.problems`; a run's own held-out problems are asked as its recipe says.
    `overrides` are as on the command line. Raises RunError when there is nothing to evaluate, or on.
    """
    adapter, found_recipe = locate(Path(target))
    words = list(overrides)
    if data is not None:
        words += ["--data.eval", data]
    if samples is not None:
        words += ["--eval.samples", str(samples)]
    described = found_recipe if recipe_file is None else Path(recipe_file)
    if found_recipe is None:
        words += ["--model.path", target]
    recipe = load_recipe(described, words) if described is not None else default_recipe(words)
    if recipe.data.eval is None:
        raise RunError("nothing to evaluate on: give --data, such as --data test.parquet or --data builtin:digits")
    whole = data is not None and not any(word.startswith("--eval.problems") for word in words)
    limit = None if whole else recipe.eval.problems
    loaded = load_problems(recipe.data.eval, recipe.data, split=recipe.data.eval_split, limit=limit)
    policy = load_policy(recipe.model, seed=recipe.seed, temperature=recipe.rollout.temperature)
    if adapter is not None:
        load_adapter(policy, adapter)
    encoder = PromptEncoder(
        policy.processor, policy.base.model.get_rope_index, recipe.data.prompt_template, recipe.data.system_prompt
    )
    problems = fit_prompts(recipe, loaded, encoder, Console(stderr=True))
    with RewardScorer(recipe.reward, Path()) as scorer:
        collector = Collector(recipe, encoder, HFRolloutEngine(policy, recipe.rollout.batch_size), scorer)
        return Evaluator(recipe, collector, problems).evaluate(0).record


def report(record: dict[str, float], *, as_json: bool) -> None:
    """Prints the figures."""
    if as_json:
        print(json.dumps({name: None if math.isnan(value) else value for name, value in record.items()}, indent=2))
        return
    table = Table(title=f"{int(record['responses'])} responses")
    table.add_column("")
    table.add_column("", justify="right")
    for title, name in (
        ("accuracy", "accuracy"),
        ("plain questions", "accuracy_plain"),
        ("variants", "accuracy_variants"),
        ("well-formed", "format"),
        ("truncated", "truncated"),
    ):
        table.add_row(title, "-" if math.isnan(record[name]) else f"{record[name]:.1%}")
    if record["verifier_failures"]:
        table.add_row("not verified (left out)", str(int(record["verifier_failures"])))
    Console().print(table)


def default_recipe(words: Sequence[str]) -> Recipe:
    """The defaults, with overrides as on the command line."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        empty = Path(folder) / "defaults.yaml"
        empty.write_text("name: eval\n")
        return load_recipe(empty, words)


def locate(target: Path) -> tuple[Path | None, Path | None]:
    """(adapter folder, recipe file) of a run or checkpoint; (None, None) of anything else.

    Raises:
        RunError: a run without adapter and checkpoint.
    """
    if (target / RECIPE_FILE).is_file():
        if (target / ADAPTER_DIR).is_dir():
            return target / ADAPTER_DIR, target / RECIPE_FILE
        checkpoints = list_checkpoints(target / "checkpoints")
        if not checkpoints:
            raise RunError(f"{target}: the run has neither an adapter nor a checkpoint yet")
        return checkpoints[-1], target / RECIPE_FILE
    run_recipe = target.parent.parent / RECIPE_FILE
    if (target / "trainer_state.json").is_file() and run_recipe.is_file():
        return target, run_recipe
    if target.name == ADAPTER_DIR and (target.parent / RECIPE_FILE).is_file():
        return target, target.parent / RECIPE_FILE
    return None, None
