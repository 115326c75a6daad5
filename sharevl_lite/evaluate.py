"""`sharevl-lite eval`: how a finished run, a checkpoint or a plain model answers, by any engine."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from transformers import TrainerState

from sharevl_lite.atomic import TEMPORARY
from sharevl_lite.checkpoints import STATE_FILE, updates_made
from sharevl_lite.collect import Collector, check_rewards
from sharevl_lite.config import Recipe
from sharevl_lite.data import LoadedProblems, Problem, load_problems
from sharevl_lite.engines import check_engine, check_servers, load_policy_of, make_engine, tell_wait
from sharevl_lite.evaluation.asking import ask_all, find_source
from sharevl_lite.evaluation.document import Evaluation
from sharevl_lite.evaluation.errors import EvaluationError
from sharevl_lite.evaluation.protocol import protocol_of
from sharevl_lite.evaluation.report import tables
from sharevl_lite.evaluation.saving import EVAL_DIR, Place, default_name, reserved_place
from sharevl_lite.evaluation.settings import Settings
from sharevl_lite.evaluation.subject import Subject, check_data, find_subject
from sharevl_lite.evaluation.tables import show
from sharevl_lite.intake import fit_prompts, most_images
from sharevl_lite.policy.hf import load_adapter
from sharevl_lite.policy.packed import PackedPolicy
from sharevl_lite.policy.prompts import PromptEncoder
from sharevl_lite.progress import shown_progress
from sharevl_lite.records import keep_frame, keep_tokenizer
from sharevl_lite.rewards import RewardScorer
from sharevl_lite.run_files import PROMPT_FILE, SUMMARY_FILE, TOKENIZER_FILE, read_record
from sharevl_lite.wording import typed_command


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
    return evaluate(find_subject(target, settings), settings)


def evaluate(subject: Subject, settings: Settings) -> Evaluated:
    """The same of what :func:`sharevl_lite.evaluation.subject.find_subject` found by these settings."""
    recipe = subject.recipe
    check_engine(recipe)
    loaded = _load(recipe)
    column = find_source(loaded.problems, settings.source_column)
    check_servers(recipe)
    with _place(subject, settings) as place, RewardScorer(recipe.reward) as scorer:
        check_rewards(scorer, loaded.problems)
        tell_wait(Console(stderr=True), recipe, "model")
        policy = load_policy_of(recipe)
        if subject.adapter is not None:
            load_adapter(policy, subject.adapter)
        encoder = PromptEncoder.of(policy, recipe.data)
        kinds = {"each": recipe.share.transforms.kinds, "drawn": None, "none": []}[settings.variants]
        problems = fit_prompts(recipe, loaded, encoder, Console(stderr=True), kinds=kinds)
        skipped = loaded.skipped_beside(problems)
        evaluation = _ask(subject, settings, policy, encoder, scorer, problems, column, place, skipped)
        if place is not None:
            keep_frame(encoder, place.responses / PROMPT_FILE)
            keep_tokenizer(encoder.processor, place.responses / TOKENIZER_FILE)
            place.save(evaluation)
    return Evaluated(evaluation, place)


def _load(recipe: Recipe) -> LoadedProblems:
    return load_problems(check_data(recipe), recipe.data, split=recipe.data.eval_split, limit=recipe.eval.problems)


def _place(subject: Subject, settings: Settings) -> AbstractContextManager[Place | None]:
    folder = subject.run_dir / EVAL_DIR if subject.run_dir is not None else None
    folder = folder if settings.out is None else Path(settings.out)
    if folder is not None:
        checkpoint = None if subject.adapter is None else subject.adapter.name
        return reserved_place(folder, settings.name, default=default_name(subject.recipe, checkpoint))
    if settings.name is not None:
        raise EvaluationError(f"--name {settings.name}: the evaluation of a model is saved with --out DIR")
    return nullcontext()


def _ask(
    subject: Subject,
    settings: Settings,
    policy: PackedPolicy,
    encoder: PromptEncoder,
    scorer: RewardScorer,
    problems: Sequence[Problem],
    column: str | None,
    place: Place | None,
    bad_rows_skipped: int,
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
        bad_rows_skipped=bad_rows_skipped,
    )
    with (
        _collector(recipe, policy, encoder, scorer, problems, place) as collector,
        shown_progress("asked", len(problems)) as progress,
    ):
        collector.trainer_state = state_of(subject)
        outcomes, failed = ask_all(
            collector,
            problems,
            settings.variants,
            source_column=column,
            store=None if place is None else place.store(),
            progress=progress,
        )
    return Evaluation.of(protocol, outcomes, failed)


def state_of(subject: Subject) -> TrainerState:
    """What reward functions are told of the training: its length by the recipe, and how far it was with the subject's
    adapter (the end where nobody knows, the beginning without an adapter)."""
    train, adapter = subject.recipe.train, subject.adapter
    length = train.rollouts * train.updates_per_rollout
    made = 0 if adapter is None else length
    if adapter is not None and (adapter / STATE_FILE).is_file():
        made = updates_made(adapter)
    elif subject.run_dir is not None and (subject.run_dir / SUMMARY_FILE).is_file():
        made = int(read_record(subject.run_dir / SUMMARY_FILE).get("adapter_update", length))
    return TrainerState(global_step=made, max_steps=length)


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
