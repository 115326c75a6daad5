"""What a run was started with, kept in its folder: its problems, base model and rewards, to know them again."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from sharevl_lite.checkpoints import CHECKPOINTS_DIR, list_checkpoints
from sharevl_lite.config import Recipe
from sharevl_lite.data.problem import Problem, fingerprint
from sharevl_lite.policy.folder import resolve_model_path
from sharevl_lite.policy.weights_digest import weights_digests
from sharevl_lite.rewards.functions import digest_of_file
from sharevl_lite.run_files import DATA_FILE, read_record
from sharevl_lite.run_folder import RunError

START, CHOICES = "model.lora.start_from", "data.columns.choices"

logger = logging.getLogger(__name__)


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


def kept_model(recipe: Recipe) -> dict[str, str]:
    """The digests of the base model's weights that the run was started with; empty where none were kept."""
    return dict(kept_record(recipe).get("model", {}))


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
    started, now = kept_record(recipe), data_record(problems, held_out)
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


def kept_record(recipe: Recipe) -> dict[str, Any]:
    """What the run kept of its problems, model and rewards (a :func:`data_record`); empty where it kept nothing."""
    return read_record(recipe.run_dir / DATA_FILE)
