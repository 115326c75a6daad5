"""A whole run: from a recipe to a trained adapter, a store of rollouts and a summary.

<output_dir>/<name>/recipe.yaml        the resolved recipe
                    data.json          how many problems, and digests of them and of the base model
                    tokenizer.json     the model's, for those who read the rollouts
                    prompt.json        what the chat template puts around a question
                    metrics.jsonl      a line per step and evaluation
                    rollouts/, images/ the rollout store
                    checkpoints/       the newest checkpoints
                    adapter/           the final adapter (PEFT)
                    summary.json       what came out
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from transformers import TrainerCallback

from sharevl_lite import metrics_log
from sharevl_lite.atomic import (
    publish_directory,
    remove_stale_temporaries,
    temporary_beside,
    write_atomically,
    write_json,
)
from sharevl_lite.checkpoints import CHECKPOINTS_DIR, discard_later_checkpoints, list_checkpoints, updates_made
from sharevl_lite.collect import Collector, check_rewards
from sharevl_lite.config import Recipe
from sharevl_lite.display import OF_UPDATE, StepDisplay
from sharevl_lite.engines import check_engine, check_servers, load_policy_of, make_engine, tell_wait
from sharevl_lite.errors import ToldError
from sharevl_lite.first_checks import check_adapter_start, check_launcher, check_trackers
from sharevl_lite.group import from_main, has_lost_one, join, words_on_loss
from sharevl_lite.heldout import COUNTS, SHARES
from sharevl_lite.intake import fit_prompts, most_images, read_sources
from sharevl_lite.interrupt import InterruptCallback
from sharevl_lite.policy.errors import PolicyError
from sharevl_lite.policy.hf import load_adapter, save_adapter, start_from
from sharevl_lite.policy.prompts import PromptEncoder
from sharevl_lite.policy.weights_digest import weights_digests
from sharevl_lite.recipes import dump_recipe, with_local_paths
from sharevl_lite.records import keep_frame, keep_tokenizer
from sharevl_lite.resume import prepare, words_on_more
from sharevl_lite.rewards import RewardScorer
from sharevl_lite.rewards.functions import RewardFunctionError
from sharevl_lite.rollout.errors import RolloutError
from sharevl_lite.run_basis import check_same_data, check_same_model, data_record, kept_model, reward_digests
from sharevl_lite.run_files import (
    ADAPTER_DIR,
    DATA_FILE,
    METRICS_FILE,
    PROMPT_FILE,
    RECIPE_FILE,
    SUMMARY_FILE,
    TOKENIZER_FILE,
    read_record,
)
from sharevl_lite.run_folder import RunError, check_shared, has_steps, held, is_finished, reopen, words_on_beginning
from sharevl_lite.run_words import AVERAGED, greeting, last_words, saved, to_go_on, words_on_stop
from sharevl_lite.schedule import check_enough
from sharevl_lite.store import RolloutStore
from sharevl_lite.together import Stopped, is_main_process
from sharevl_lite.trainer import BEST_SPLIT, ShareGRPOTrainer


@dataclass(frozen=True)
class RunResult:
    """`summary` as in summary.json (None when interrupted), and where the run is."""

    run_dir: Path
    summary: dict[str, Any] | None


def train(
    recipe: Recipe,
    *,
    resume: str | Path | None = None,
    console: Console | None = None,
    callbacks: Sequence[TrainerCallback] = (),
) -> RunResult:
    """Trains by the recipe and returns what came out.

    `resume`: "auto" for the run's newest checkpoint (or its beginning, when there is none), or a checkpoint's folder.
    `callbacks` are transformers' trainer callbacks; one of its steps is an update. A finished run is not trained
    again unless the recipe asks for more rollouts.
    Raises RunError when the run exists and `resume` is not given, or was started by another recipe; and the errors of
    the recipe's data, model and rewards.
    """
    # Notebooks set FORCE_COLOR for what they start, and rich takes their pipes for a terminal that moves its cursor.
    on_screen = None if sys.stdout.isatty() else False
    recipe = with_local_paths(recipe)
    console = console or Console(quiet=not is_main_process(), force_terminal=on_screen)
    run_dir = recipe.run_dir
    _check_services(recipe)
    try:
        with held(run_dir):
            join(recipe)
            check_shared(run_dir)
            return _train_in_folder(recipe, resume, console, callbacks)
    except RuntimeError as error:  # while it loads; later ones are met below
        if not has_lost_one(error):
            raise
        raise RunError(f"{words_on_loss(error)}. Repeat the command, with --resume auto if steps were made.") from error


def _train_in_folder(
    recipe: Recipe, resume: str | Path | None, console: Console, callbacks: Sequence[TrainerCallback]
) -> RunResult:
    run_dir = recipe.run_dir
    checkpoint, finished, has_begun = from_main(lambda: _found(recipe, resume))
    if checkpoint is not None and not is_main_process():
        checkpoint = run_dir / CHECKPOINTS_DIR / checkpoint.name  # it may have another name for the folder
    if finished:
        summary = read_record(run_dir / SUMMARY_FILE)
        console.print(f"{run_dir} is finished; {words_on_more(recipe)}.", highlight=False, markup=False, soft_wrap=True)
        last_words(console, recipe, summary)
        return RunResult(run_dir, summary)
    if checkpoint is None:
        check_adapter_start(recipe.model)
        if resume is not None and not has_begun:
            console.print(words_on_beginning(run_dir), highlight=False, markup=False, soft_wrap=True)
    check_servers(recipe)
    with RewardScorer(recipe.reward) as scorer:
        trainer, display, skipped = _assemble(recipe, scorer, console, resuming=has_begun, fresh=checkpoint is None)
        for callback in callbacks:
            trainer.add_callback(callback)
        try:
            return _train(recipe, trainer, display, checkpoint, console, skipped)
        finally:
            trainer.collector.engine.close()


def _found(recipe: Recipe, resume: str | Path | None) -> tuple[Path | None, bool, bool]:
    """The checkpoint to start from, whether the run is finished, and whether it has steps. Raises RunError."""
    checkpoint = prepare(recipe, resume)
    if resume is None:
        return None, False, False
    return checkpoint, is_finished(recipe), has_steps(recipe.run_dir)


def _assemble(
    recipe: Recipe, scorer: RewardScorer, console: Console, *, resuming: bool, fresh: bool
) -> tuple[ShareGRPOTrainer, StepDisplay, dict[str, int]]:
    """The trainer, its display, and the bad rows that each source lost, by the summary's names."""
    intake = read_sources(recipe)
    for source in (intake.train, *([] if intake.held_out is None else [intake.held_out])):
        check_rewards(scorer, source.problems)
    tell_wait(console, recipe, "model")
    policy = load_policy_of(recipe)
    if recipe.model.lora.start_from is not None and fresh:
        start_from(policy, recipe.model.lora)
    encoder = PromptEncoder.of(policy, recipe.data)
    problems = fit_prompts(recipe, intake.train, encoder, console)
    world = int(os.environ.get("WORLD_SIZE", "1"))
    check_enough(recipe, len(problems), world)  # before a sampler starts for minutes, and the trainer makes folders
    skipped = {"bad_rows_skipped": intake.train.skipped_beside(problems)}
    held_out = None
    if intake.held_out is not None:
        held_out = fit_prompts(recipe, intake.held_out, encoder, console)
        skipped["eval_bad_rows_skipped"] = intake.held_out.skipped_beside(held_out)
    if resuming:
        check_same_model(recipe)  # again, for now it is surely here
        check_same_data(recipe, problems, held_out)
    display = StepDisplay(console, recipe.train.rollouts, recipe.reward.names)
    tell_wait(console, recipe, "sampler")
    most = most_images([*problems, *(held_out or [])])
    engine = make_engine(recipe, policy, max_images=most, keep_images=True)
    try:
        trainer = ShareGRPOTrainer(
            recipe,
            policy,
            problems,
            Collector(recipe, encoder, engine, scorer),
            eval_problems=held_out,
            store=RolloutStore(recipe.run_dir),
            metrics_log=metrics_log.MetricsLog(recipe.run_dir / METRICS_FILE),
            callbacks=[display],
        )
    except BaseException:  # such as a repository that the Hub refuses
        engine.close()
        raise
    _drop_printer(trainer)
    return trainer, display, skipped


def _check_services(recipe: Recipe) -> None:
    """Engine and trackers are there and the Hub would know us: better now than after the first step."""
    check_launcher()
    check_engine(recipe)
    check_trackers(recipe)
    if recipe.train.push_to_hub:
        from huggingface_hub import get_token

        if get_token() is None:
            raise RunError("train.push_to_hub: there is no Hub token; run `hf auth login` or set HF_TOKEN")


def _train(
    recipe: Recipe,
    trainer: ShareGRPOTrainer,
    display: StepDisplay,
    checkpoint: Path | None,
    console: Console,
    skipped: dict[str, int],
) -> RunResult:
    run_dir, main = recipe.run_dir, trainer.accelerator.is_main_process
    done = _rewind(recipe, trainer, checkpoint) if main else 0
    done = trainer.from_main(lambda: done)
    if main:
        console.print(greeting(recipe, trainer, done), highlight=False, markup=False, soft_wrap=True)
    display.start(done)
    interrupt = InterruptCallback(recipe.train.updates_per_rollout, trainer.gather)
    trainer.add_callback(interrupt)
    trainer.leaving = interrupt.leaving
    summary = None
    with interrupt:
        try:
            _take_steps(recipe, trainer, display, checkpoint, console, done)
            if interrupt.interrupted and trainer.rollouts_done < recipe.train.rollouts:
                raise Stopped
            if main and trainer.rollouts_done < recipe.train.rollouts:
                told = f"A callback ended the run after step {trainer.rollouts_done} of {recipe.train.rollouts}"
                console.print(f"{told}. {to_go_on(recipe, trainer)}", highlight=False, markup=False, soft_wrap=True)
            _settle(recipe, trainer)
        except Stopped:
            if main:
                console.print(words_on_stop(recipe, trainer), highlight=False, markup=False, soft_wrap=True)
            return RunResult(run_dir, None)
        except RuntimeError as error:
            if has_lost_one(error):
                raise _left_alone(recipe, trainer, error) from error
            raise
        if main:
            _publish_adapter(trainer, run_dir)
            summary = _summarise(recipe, metrics_log.read(run_dir / METRICS_FILE)) | skipped
            write_json(run_dir / SUMMARY_FILE, summary, indent=2)
            last_words(console, recipe, summary)
    summary = trainer.from_main(lambda: summary)
    if trainer.uploads is not None:
        trainer.uploads.send(run_dir / ADAPTER_DIR, "the run's adapter")
    return RunResult(run_dir, summary)


def _left_alone(recipe: Recipe, trainer: ShareGRPOTrainer, error: RuntimeError) -> RunError:
    """What a process says whose peer died; the main one saves what can be saved without the others."""
    kept = trainer.accelerator.is_main_process and trainer.save_before_failure(alone=True)
    if kept or list_checkpoints(recipe.run_dir / CHECKPOINTS_DIR):
        told = saved(recipe, trainer) if kept else to_go_on(recipe, trainer)
    else:
        told = "Nothing was saved yet; repeat the command."
    return RunError(f"{words_on_loss(error)}. {told}")


def _take_steps(
    recipe: Recipe,
    trainer: ShareGRPOTrainer,
    display: StepDisplay,
    checkpoint: Path | None,
    console: Console,
    done: int,
) -> None:
    """All steps of the run after the `done` ones; what ends one before its first update leaves a checkpoint."""
    try:
        if done == 0 and trainer.evaluator is not None:
            trainer.state.max_steps = len(trainer.schedule)  # for reward functions; known later to the Trainer
            trainer.evaluate()
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    except Stopped:
        trainer.save_before_failure()
        raise
    except (PolicyError, RewardFunctionError, RolloutError, ToldError) as error:
        together = trainer.accelerator.num_processes == 1 or isinstance(error, ToldError)
        if together and trainer.save_before_failure():
            console.print(saved(recipe, trainer), highlight=False, markup=False, soft_wrap=True)
        raise
    finally:
        display.stop()


def _settle(recipe: Recipe, trainer: ShareGRPOTrainer) -> None:
    """Leaves the policy as the run ends with it: the last one or the best, evaluated once."""
    state = trainer.state
    if trainer.evaluator is not None and not trainer.from_main(lambda: _is_evaluated(trainer)):
        trainer._determine_best_metric(trainer.evaluate(), trial=None)
    best = state.best_model_checkpoint if recipe.train.load_best_model_at_end else None
    if best is not None and state.best_global_step != state.global_step:
        load_adapter(trainer.policy, Path(best))
        trainer.eval_split = BEST_SPLIT  # beside the last step's evaluation, not instead of it
        trainer.evaluate()


def _is_evaluated(trainer: ShareGRPOTrainer) -> bool:
    """Whether the newest evaluation is of the last update: by `eval.every_rollouts`, or before a kill at the end."""
    evaluated = [r["update"] for r in metrics_log.read(trainer.metrics_log.path) if "eval_accuracy" in r]
    return evaluated[-1:] == [trainer.state.global_step]


def _rewind(recipe: Recipe, trainer: ShareGRPOTrainer, checkpoint: Path | None) -> int:
    """Puts the run's files back to the checkpoint (or to nothing); returns the rollouts done."""
    run_dir = recipe.run_dir
    run_dir.mkdir(parents=True, exist_ok=True)
    for folder in (run_dir, run_dir / CHECKPOINTS_DIR):
        remove_stale_temporaries(folder, older_than_seconds=0)
    reopen(run_dir)
    write_atomically(run_dir / RECIPE_FILE, dump_recipe(recipe).encode())
    held_out, model = trainer.eval_dataset, weights_digests(recipe.model.path) or kept_model(recipe)
    record = data_record(list(trainer.problems), held_out and list(held_out), model, reward_digests(recipe))
    write_json(run_dir / DATA_FILE, record)
    if checkpoint is None or not (run_dir / TOKENIZER_FILE).is_file():
        keep_tokenizer(trainer.policy.processor, run_dir / TOKENIZER_FILE)
    if checkpoint is None or not (run_dir / PROMPT_FILE).is_file():
        keep_frame(trainer.collector.encoder, run_dir / PROMPT_FILE)
    updates = 0 if checkpoint is None else updates_made(checkpoint)
    if checkpoint is not None:
        discard_later_checkpoints(run_dir / CHECKPOINTS_DIR, updates)
    done = updates // recipe.train.updates_per_rollout
    keep = done if checkpoint is not None else -1
    trainer.metrics_log.truncate_after(keep, without=OF_UPDATE)  # the best checkpoint is evaluated again at the end
    for split, last in (("train", keep), ("eval", keep), (BEST_SPLIT, -1)):
        trainer.store.discard_after(split, last)
    return done


def _publish_adapter(trainer: ShareGRPOTrainer, run_dir: Path) -> None:
    staging = temporary_beside(run_dir / ADAPTER_DIR)
    staging.mkdir()
    save_adapter(trainer.policy, staging)
    publish_directory(staging, run_dir / ADAPTER_DIR, replace=True)


def _summarise(recipe: Recipe, records: list[dict[str, Any]]) -> dict[str, Any]:
    steps = [record for record in records if "loss" in record]
    evaluations = [record for record in records if "eval_accuracy" in record]
    summary: dict[str, Any] = {
        "name": recipe.name,
        "steps": len(steps),
        "train_seconds": sum(record["seconds/step"] for record in steps),
        "verifier_failures": sum(record["verifier_failures"] for record in steps),
    }
    for name in AVERAGED:
        summary[name] = sum(record[name] for record in steps) / len(steps)
    updates = steps[-1]["update"]
    summary["adapter_update"] = int(evaluations[-1].get(OF_UPDATE, updates) if evaluations else updates)
    for when, record in (("before", evaluations[0]), ("after", evaluations[-1])) if evaluations else ():
        rewards = [name.removeprefix("eval_") for name in record if name.startswith("eval_reward")]
        for name in (*SHARES, *rewards):
            summary[f"{name}_{when}"] = record[f"eval_{name}"]
        for name in (name for name in COUNTS if f"eval_{name}" in record):  # an older program's line may lack some
            summary[f"{name}_{when}"] = record[f"eval_{name}"]
    return summary


def _drop_printer(trainer: ShareGRPOTrainer) -> None:
    from transformers import PrinterCallback

    trainer.remove_callback(PrinterCallback)
