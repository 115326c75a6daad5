"""What a run says of itself: how it begins, how it goes on after a stop, and what came out."""

from __future__ import annotations

import shlex
from typing import Any

from rich.console import Console

from sharevl_lite.config import Recipe
from sharevl_lite.display import APPLIED, before_after_table
from sharevl_lite.heldout import COUNTS, SHARES
from sharevl_lite.recipe_notes import recipe_notes
from sharevl_lite.run_files import ADAPTER_DIR, METRICS_FILE, RECIPE_FILE, SUMMARY_FILE
from sharevl_lite.trainer import ShareGRPOTrainer
from sharevl_lite.variants.expand import words_on_repeats
from sharevl_lite.wording import counted, typed_command

AVERAGED = ("vanished_local", "vanished_global", "rescued")


def saved(recipe: Recipe, trainer: ShareGRPOTrainer) -> str:
    """Which step the newest checkpoint is of, and how to go on from it."""
    return f"Saved after step {trainer.rollouts_done}. {to_go_on(recipe, trainer)}"


def words_on_stop(recipe: Recipe, trainer: ShareGRPOTrainer) -> str:
    """What an interrupt left, and how to go on."""
    done = trainer.rollouts_done
    if done == 0:
        return "Nothing was trained yet; repeat the command."
    if done >= recipe.train.rollouts:
        return f"All {done} steps are trained and saved; the last evaluation is not done. {to_go_on(recipe, trainer)}"
    return saved(recipe, trainer)


def to_go_on(recipe: Recipe, trainer: ShareGRPOTrainer) -> str:
    """The command that goes on; processes of a launcher are begun by the one that their user knows."""
    if trainer.accelerator.num_processes > 1:
        return "Continue with --resume auto."
    kept = shlex.quote(str(recipe.run_dir / RECIPE_FILE))
    return f"Continue with {typed_command()} train {kept} --resume auto"


def greeting(recipe: Recipe, trainer: ShareGRPOTrainer, done: int) -> str:
    """What begins, or goes on after `done` steps."""
    share, train_ = recipe.share, recipe.train
    trained = sum(p.numel() for p in trainer.policy.parameters() if p.requires_grad)
    start = f"resuming after step {done}" if done else "starting"
    processes = trainer.accelerator.num_processes
    start += f" in {processes} processes" if processes > 1 else ""
    told = (
        f"{recipe.name}: {start}; {counted(train_.rollouts, 'step')} of "
        f"{counted(train_.problems_per_rollout, 'problem')} x {counted(share.num_variants, 'variant')} x "
        f"{counted(share.num_responses, 'response')}, {counted(train_.updates_per_rollout, 'update')} each; "
        f"{counted(len(trainer.problems), 'problem')}, {trained:,} trained parameters"
    )
    repeated = words_on_repeats(trainer.problems, share)
    lines = [told, *([] if repeated is None else [f"variants  {repeated}"])]
    return "\n".join([*lines, *(f"recipe    {note}" for note in recipe_notes(recipe))])


def last_words(console: Console, recipe: Recipe, summary: dict[str, Any]) -> None:
    """Prints what came out of a finished run, and what can be done with it."""
    run_dir = recipe.run_dir
    if "accuracy_before" in summary:
        rewards = [f"reward/{function}" for function in recipe.reward.names]
        rewards = ["reward", *rewards, *(f"{name}{APPLIED}" for name in rewards)] if rewards else []
        names = [*SHARES, *COUNTS, *rewards]
        before, after = ({n: summary.get(f"{n}_{when}") for n in names} for when in ("before", "after"))
        console.print(before_after_table(before, after, recipe.eval.samples))
        _tell_best(console, recipe, summary)
    shares = {name: f"{summary[name]:.0%}" for name in AVERAGED}
    sharing = (
        "would be rescued by the global level" if recipe.share.levels == "local" else "were rescued by another variant"
    )
    console.print(
        f"{counted(summary['steps'], 'step')} in {summary['train_seconds']:.0f} s; on average "
        f"{shares['vanished_local']} of the variant groups and {shares['vanished_global']} of the problems gave no "
        f"signal, {shares['rescued']} of the problems {sharing}",
        highlight=False,
        soft_wrap=True,
    )
    typed = shlex.quote(str(run_dir))
    console.print(
        f"adapter   {run_dir / ADAPTER_DIR}\n"
        f"metrics   {run_dir / METRICS_FILE}\n"
        f"rollouts  {run_dir / 'rollouts'} (read with sharevl_lite.store.read)\n"
        f"summary   {run_dir / SUMMARY_FILE}\n"
        f"next      {typed_command()} view {typed}    what the policy tried, in the browser\n"
        f"          {typed_command()} eval {typed} --samples 16    more samples, or --data for other problems\n"
        f"          {typed_command()} export {typed} --to DIR    a verified model for transformers, vLLM, the Hub\n"
        f"          peft.PeftModel.from_pretrained(model, {str(run_dir / ADAPTER_DIR)!r})    use the adapter",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )


def _tell_best(console: Console, recipe: Recipe, summary: dict[str, Any]) -> None:
    if not recipe.train.load_best_model_at_end or "adapter_update" not in summary:
        return
    name = recipe.best_metric.removeprefix("eval_")
    told = f"best      the adapter is that of update {summary['adapter_update']:.0f}, the best in held-out {name}"
    before, after = summary[f"{name}_before"], summary[f"{name}_after"]
    if before is not None and after is not None and before >= after:
        told += "; the model before training was no worse"
    console.print(told, highlight=False, soft_wrap=True)
