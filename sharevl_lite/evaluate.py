"""`sharevl-lite eval`: how a finished run, a checkpoint or a plain model answers, by any engine."""

from __future__ import annotations

import json
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from sharevl_lite.atomic import TEMPORARY
from sharevl_lite.checkpoints import CHECKPOINTS_DIR, STATE_FILE, list_checkpoints
from sharevl_lite.collect import Collector, check_rewards
from sharevl_lite.config import Recipe
from sharevl_lite.data import LoadedProblems, Problem, load_problems
from sharevl_lite.engines import check_engine, check_servers, load_policy_of, make_engine, tell_wait
from sharevl_lite.evaluation.asking import Ways, ask_all, find_source
from sharevl_lite.evaluation.document import Evaluation
from sharevl_lite.evaluation.errors import EvaluationError
from sharevl_lite.evaluation.protocol import protocol_of
from sharevl_lite.evaluation.report import tables
from sharevl_lite.evaluation.saving import EVAL_DIR, Place, default_name, find_place
from sharevl_lite.evaluation.statistics import RESAMPLES
from sharevl_lite.evaluation.tables import show
from sharevl_lite.intake import fit_prompts, most_images
from sharevl_lite.policy.folder import check_folder, is_missing
from sharevl_lite.policy.hf import load_adapter, resolve_model_path
from sharevl_lite.policy.packed import PackedPolicy
from sharevl_lite.policy.prompts import PromptEncoder
from sharevl_lite.recipes import load_recipe
from sharevl_lite.rewards import RewardScorer
from sharevl_lite.run import typed_command
from sharevl_lite.run_folder import ADAPTER_DIR, RECIPE_FILE, RunError

ALL_ROWS = sys.maxsize
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


@dataclass(frozen=True)
class Settings:
    """What may be asked of an evaluation besides its target; None keeps what the recipe says."""

    data: str | None = None
    """Problems as in data.eval. All rows are asked, unless `overrides` set `eval.problems`."""
    samples: int | None = None
    recipe_file: str | None = None
    """Prompt, rewards and variants for a model without a run."""
    engine: str | None = None
    server_urls: Sequence[str] = ()
    variants: Ways = "each"
    source_column: str | None = None
    """Column of the data that figures are split by; None: the first usual one that is there."""
    out: str | Path | None = None
    """Folder to save in. None: the run's own; of a model nothing is saved."""
    name: str | None = None
    resamples: int = RESAMPLES
    overrides: Sequence[str] = ()
    """Of the recipe, as on the command line."""

    def words(self) -> list[str]:
        """All that replaces the recipe's values, as on its command line."""
        words = list(self.overrides)
        if self.data is not None:
            words += ["--data.eval", self.data]
        if self.samples is not None:
            words += ["--eval.samples", str(self.samples)]
        if self.engine is not None:
            words += ["--rollout.engine", self.engine]
            if self.engine != "server":
                words += ["--rollout.overlap", "false"]  # of the training; it needs a server
        if self.server_urls:
            words += ["--rollout.server-urls", json.dumps(list(self.server_urls))]
        return words


@dataclass(frozen=True)
class Subject:
    """What is evaluated: the recipe with its overrides, the folder of an adapter, and the run it belongs to."""

    name: str
    recipe: Recipe
    adapter: Path | None
    run_dir: Path | None


@dataclass(frozen=True)
class Evaluated:
    """An evaluation, and where it was saved (None: it was not)."""

    evaluation: Evaluation
    place: Place | None


def evaluate_target(target: str, settings: Settings | None = None) -> Evaluated:
    """Evaluates a run's folder (its final adapter, or its newest checkpoint), a checkpoint's folder, or a model.

    A model is named as in `model.path`. A run's own held-out problems are asked as its recipe says.
    Raises RunError when there is nothing to evaluate, or on; EvaluationError where it cannot be saved or a column is
    missing; and the errors of the recipe's data, model, rewards and engine.
    """
    settings = settings or Settings()
    subject = find_subject(target, settings)
    recipe = subject.recipe
    check_engine(recipe)
    loaded = _load(recipe)
    column = find_source(loaded.problems, settings.source_column)
    check_servers(recipe)
    place = _place(subject, settings)
    with RewardScorer(recipe.reward) as scorer:
        check_rewards(scorer, loaded.problems)
        tell_wait(Console(stderr=True), recipe, "model")
        policy = load_policy_of(recipe)
        if subject.adapter is not None:
            load_adapter(policy, subject.adapter)
        encoder = PromptEncoder.of(policy, recipe.data)
        kinds = {"each": recipe.share.transforms.kinds, "drawn": None, "none": []}[settings.variants]
        problems = fit_prompts(recipe, loaded, encoder, Console(stderr=True), kinds=kinds)
        evaluation = _ask(subject, settings, policy, encoder, scorer, problems, column, place)
    if place is not None:
        place.save(evaluation)
    return Evaluated(evaluation, place)


def find_subject(target: str, settings: Settings, presets: Mapping[str, Any] | None = None) -> Subject:
    """Recipe (with what replaces its values), adapter and run of a target; see :func:`evaluate_target`.

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
    """Raises RunError for what is not there and cannot be a model of the Hub; PolicyError for an unknown built-in, and
    for a folder that holds no model."""
    if resolve_model_path(target) != target:
        return
    if not Path(target).exists() and (is_missing(target) or not HUB_ID.fullmatch(target)):
        raise RunError(
            f"{target}: no such run, checkpoint or model; give a folder, ORG/NAME on the Hub, or builtin:NAME"
        )
    check_folder(target)


def _load(recipe: Recipe) -> LoadedProblems:
    if recipe.data.eval is None:
        raise RunError("nothing to evaluate on: give --data, such as --data test.parquet or --data builtin:digits")
    return load_problems(recipe.data.eval, recipe.data, split=recipe.data.eval_split, limit=recipe.eval.problems)


def _place(subject: Subject, settings: Settings) -> Place | None:
    folder = subject.run_dir / EVAL_DIR if subject.run_dir is not None else None
    folder = folder if settings.out is None else Path(settings.out)
    if folder is not None:
        checkpoint = None if subject.adapter is None else subject.adapter.name
        return find_place(folder, settings.name, default=default_name(subject.recipe, checkpoint))
    if settings.name is not None:
        raise EvaluationError(f"--name {settings.name}: the evaluation of a model is saved with --out DIR")
    return None


def _ask(
    subject: Subject,
    settings: Settings,
    policy: PackedPolicy,
    encoder: PromptEncoder,
    scorer: RewardScorer,
    problems: Sequence[Problem],
    column: str | None,
    place: Place | None,
) -> Evaluation:
    recipe = subject.recipe
    protocol = protocol_of(
        recipe,
        policy,
        problems,
        target=subject.name,
        adapter=subject.adapter,
        ways=settings.variants,
        source_column=column,
        resamples=settings.resamples,
    )
    with (
        _collector(recipe, policy, encoder, scorer, problems, place) as collector,
        _progress(len(problems)) as progress,
    ):
        outcomes, failed = ask_all(
            collector,
            problems,
            settings.variants,
            source_column=column,
            store=None if place is None else place.store(),
            progress=lambda asked: progress.advance(progress.task_ids[0], asked),
        )
    return Evaluation.of(protocol, outcomes, failed)


@contextmanager
def _collector(
    recipe: Recipe,
    policy: PackedPolicy,
    encoder: PromptEncoder,
    scorer: RewardScorer,
    problems: Sequence[Problem],
    place: Place | None,
) -> Iterator[Collector]:
    """Asks with the recipe's engine, which is closed at the end."""
    with _own_adapter_folder(recipe, place) as own:
        tell_wait(Console(stderr=True), own, "sampler")
        engine = make_engine(own, policy, max_images=most_images(problems))
        try:
            yield Collector(own, encoder, engine, scorer)
        finally:
            engine.close()


@contextmanager
def _own_adapter_folder(recipe: Recipe, place: Place | None) -> Iterator[Recipe]:
    """The recipe with a folder of its own for what servers read: the run's may be in use by its training."""
    if recipe.rollout.engine != "server" or recipe.rollout.server_adapter_dir is not None:
        yield recipe
        return
    folder = Path(tempfile.mkdtemp(prefix=f"{TEMPORARY}served-", dir=None if place is None else place.folder))
    folder.chmod(0o755)  # a server may run as another user
    try:
        section = recipe.rollout.model_copy(update={"server_adapter_dir": folder})
        yield recipe.model_copy(update={"rollout": section})
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _progress(problems: int) -> Progress:
    progress = Progress(
        TextColumn("asked"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
        disable=not sys.stderr.isatty(),
    )
    progress.add_task("asked", total=problems)
    return progress


def report(evaluated: Evaluated, *, as_json: bool) -> None:
    """Prints the figures, and where they are."""
    evaluation, place = evaluated.evaluation, evaluated.place
    if as_json:
        print(json.dumps(evaluation.as_json(problems=False), indent=2, ensure_ascii=False))
        return
    console = Console()
    show(console, tables(evaluation))
    if place is None:
        told = "not saved; --out DIR saves figures and responses"
    else:
        told = f"report     {place.markdown}\nfigures    {place.json}\nresponses  {place.responses} ({typed_command()} "
        told += f"view {place.responses})"
    console.print(told, highlight=False, markup=False, soft_wrap=True)


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
