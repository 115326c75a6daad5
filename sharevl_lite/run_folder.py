"""The folder of a run: held by one process, and checked against what is asked of it before anything is loaded."""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sharevl_lite import metrics_log
from sharevl_lite.atomic import locked
from sharevl_lite.checkpoints import CHECKPOINTS_DIR, STATE_FILE, list_checkpoints, remove_checkpoint, updates_made
from sharevl_lite.config import Recipe
from sharevl_lite.data.problem import Problem, fingerprint
from sharevl_lite.errors import UserError
from sharevl_lite.policy.folder import resolve_model_path
from sharevl_lite.policy.weights_digest import weights_digests
from sharevl_lite.recipe_yaml import parse
from sharevl_lite.recipes import load_recipe
from sharevl_lite.rewards.functions import digest_of_file
from sharevl_lite.run_files import ADAPTER_DIR, DATA_FILE, METRICS_FILE, RECIPE_FILE, SUMMARY_FILE
from sharevl_lite.together import is_main_process

RATE, START, LENGTH = "train.learning_rate", "model.lora.start_from", "train.rollouts"
CHOICES = "data.columns.choices"
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


class RunError(UserError):
    """A run that cannot start or go on, with what to do."""


@contextlib.contextmanager
def held(run_dir: Path) -> Iterator[None]:
    """The run's folder, made and locked by the main process; taken away again where nothing came into it.

    Raises RunError where it cannot be made, or another process trains in it.
    """
    if not is_main_process():
        yield
        return
    with contextlib.ExitStack() as stack:
        try:
            run_dir.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunError(f"{run_dir}: cannot be written ({error}); set --output-dir to another folder") from error
        try:
            stack.enter_context(locked(run_dir))
        except BlockingIOError as error:
            raise RunError(f"{run_dir}: another process trains in it; wait for it, or set --name to another") from error
        except OSError as error:
            _warn_of_no_locks(run_dir, str(error))
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                run_dir.rmdir()


@functools.cache
def _warn_of_no_locks(run_dir: Path, why: str) -> None:
    """Once, for the folder is held twice: by the first checks, and by the training."""
    logger.warning("%s: its file system has no locks (%s); see to it that one process trains in it", run_dir, why)


def check_place(run_dir: Path, resume: str | Path | None) -> None:
    """Raises RunError where the folder holds a run and `resume` is not given, or `resume` is no checkpoint of it."""
    if resume is None:
        if holds_run(run_dir):
            raise RunError(
                f"{run_dir} already holds a run; continue it with --resume auto, or start another with --name NAME"
            )
    elif resume != "auto":
        checkpoint = Path(resume)
        if not (checkpoint / STATE_FILE).is_file():
            raise RunError(f"--resume {resume}: {_no_checkpoint(checkpoint, run_dir)}")
        if checkpoint.parent.resolve() != (run_dir / CHECKPOINTS_DIR).resolve():
            raise RunError(f"--resume {resume}: not a checkpoint of {run_dir}; set --name and --output-dir to its run")


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


def _no_checkpoint(folder: Path, run_dir: Path) -> str:
    """Why `folder` is none to resume from, and what to give instead."""
    why = f"not a checkpoint (no {STATE_FILE} in it)" if folder.exists() else "no such folder"
    for place in (folder, folder / CHECKPOINTS_DIR, run_dir / CHECKPOINTS_DIR):
        there = list_checkpoints(place)
        if there:
            told = f"give auto for the newest, or one of {', '.join(map(str, there[-3:]))}"
            return f"{why}; {told if place.parent.resolve() == run_dir.resolve() else _of_another(there[-1])}"
    return f"{why}; {run_dir} has no checkpoints: give auto to begin it, or set --name and --output-dir to its run"


def _of_another(checkpoint: Path) -> str:
    run = checkpoint.parent.parent.resolve()
    return f"there is {checkpoint}, of another run: set --name {run.name} and --output-dir {run.parent} for it"


def holds_run(run_dir: Path) -> bool:
    """Whether `train` would refuse the folder without `--resume`."""
    return (run_dir / RECIPE_FILE).exists() and has_steps(run_dir)


def has_steps(run_dir: Path) -> bool:
    """Whether there is something to continue: a run that failed before its first step is simply started again."""
    log = run_dir / METRICS_FILE
    records = metrics_log.read(log) if log.is_file() else []
    return bool(list_checkpoints(run_dir / CHECKPOINTS_DIR)) or any("loss" in record for record in records)


def is_finished(recipe: Recipe) -> bool:
    """Whether the run has come to the end that the recipe asks for; one that a callback ended before has not, as long
    as there is a checkpoint to go on from."""
    summary, file = recipe.run_dir / SUMMARY_FILE, recipe.run_dir / RECIPE_FILE
    if not summary.is_file():
        return False
    asked = load_recipe(file).train.rollouts if file.is_file() else recipe.train.rollouts
    steps = json.loads(summary.read_text("utf-8")).get("steps", asked)
    ended = steps >= asked or not list_checkpoints(recipe.run_dir / CHECKPOINTS_DIR)
    return ended and asked == recipe.train.rollouts


def words_on_more(recipe: Recipe) -> str:
    """How a finished run can be trained further."""
    if _decided_by_length(recipe) is None and list_checkpoints(recipe.run_dir / CHECKPOINTS_DIR):
        return f"to train on, repeat this with --{LENGTH} above {recipe.train.rollouts}"
    return f"to train on, start another run with --name NAME --{START} {recipe.run_dir}"


def reopen(run_dir: Path) -> None:
    """Takes away what only a finished run has; first of all what says that it is finished."""
    (run_dir / SUMMARY_FILE).unlink(missing_ok=True)
    if (run_dir / ADAPTER_DIR).is_dir():
        remove_checkpoint(run_dir / ADAPTER_DIR)


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
    logger.warning("%s was %d; the run goes on to %d", LENGTH, was, now)


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
    kept = _started(recipe)
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


def check_same_model(recipe: Recipe) -> None:
    """Raises RunError where the run was started upon other weights, whatever their folder is called.

    Of a model that is not on this machine yet, and of a run whose program kept no digest, nothing is known.
    """
    started = kept_model(recipe)
    now = weights_digests(recipe.model.path) if started else {}
    # A download of the Hub may have come to some of the files only.
    whole = Path(resolve_model_path(recipe.model.path)).is_dir()
    names = started.keys() | now.keys() if whole else started.keys() & now.keys()
    if now and any(started.get(name) != now.get(name) for name in names):
        raise RunError(
            f"{recipe.model.path} is not the base model that {recipe.run_dir} was started with (other weights; see "
            f"{recipe.run_dir / DATA_FILE}): its adapter would go on upon another. Set model.path to that model, or "
            f"start another run with --name NAME{_onward(recipe)}"
        )


def check_same_data(recipe: Recipe, problems: list[Problem], held_out: list[Problem] | None = None) -> None:
    """Raises RunError where the run was started with other problems, or with other held-out ones; warns where the file
    of a reward function is another.

    Of held-out problems and rewards older programs kept nothing.
    """
    started, now = _started(recipe), data_record(problems, held_out)
    rewards = started.get("rewards", {})
    changed = [name for name, digest in reward_digests(recipe).items() if rewards.get(name, digest) != digest]
    if changed:
        told = "rewards of the steps before do not compare with those to come"
        logger.warning("reward.functions: the file of %s has changed; %s", " and ".join(changed), told)
    if "eval" in started and "eval" in now and started["eval"] != now["eval"]:
        raise RunError(
            f"{recipe.data.eval} {_not_what(recipe, started['eval'], now['eval'])}: held-out figures of before and "
            "after would be of other problems. Restore the data, or start another run with "
            f"--name NAME{_onward(recipe)}."
        )
    if "problems" not in started or all(started[key] == now[key] for key in ("problems", "fingerprint")):
        return
    then, count = started["problems"], len(problems)
    hint = ""
    read = {problem.columns.choices for problem in problems} - {None}
    if then == count and read:
        hint = (
            " Where the data is as it was, an older version asked without the options of column "
            f"{min(map(str, read))!r}: go on without them with --{CHOICES} null, or start another run with them."
        )
    if recipe.data.on_bad_row == "skip" and count > then:
        hint = (
            " Where the data is as it was, rows that an older version skipped are good now, such as those with a list "
            "of accepted answers: take them out."
        )
    raise RunError(
        f"{recipe.data.train} {_not_what(recipe, started, now)}: a resumed run would "
        f"ask other problems. Restore the data, or start another run with --name NAME{_onward(recipe)}.{hint}"
    )


def _not_what(recipe: Recipe, started: dict[str, Any], now: dict[str, Any]) -> str:
    then, count = started["problems"], now["problems"]
    told = f"{then:,} problems then, {count:,} now" if then != count else f"{count:,} problems, not the same"
    return f"is not what {recipe.run_dir} was started with ({told}; see {recipe.run_dir / DATA_FILE})"


def _onward(recipe: Recipe) -> str:
    """How another run is told to start with what this one has learnt."""
    newest = list_checkpoints(recipe.run_dir / CHECKPOINTS_DIR)[-1:]
    return f" --{START} {newest[0]}" if newest else ""


def _started(recipe: Recipe) -> dict[str, Any]:
    """What the run kept of its problems and its model; empty where it kept nothing."""
    file = recipe.run_dir / DATA_FILE
    return dict(json.loads(file.read_text())) if file.is_file() else {}


def kept_model(recipe: Recipe) -> dict[str, str]:
    """The digests of the base model's weights that the run was started with; empty where none were kept."""
    return dict(_started(recipe).get("model", {}))


def data_record(
    problems: list[Problem],
    held_out: list[Problem] | None = None,
    model: dict[str, str] | None = None,
    rewards: dict[str, str] | None = None,
) -> dict[str, Any]:
    """What is kept of the problems, the held-out ones, the base model (its `weights_digests`) and the user's reward
    functions (their :func:`reward_digests`), to know them again."""
    record: dict[str, Any] = {"problems": len(problems), "fingerprint": fingerprint(problems)}
    if held_out is not None:
        record["eval"] = data_record(held_out)
    return record | {name: kept for name, kept in (("model", model), ("rewards", rewards)) if kept}


def reward_digests(recipe: Recipe) -> dict[str, str]:
    """A digest of the file of each of the user's reward functions, by the function's name."""
    functions = zip(recipe.reward.names, recipe.reward.functions, strict=True)
    return {name: digest_of_file(function.path) for name, function in functions}


def _flat(data: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in data.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat
