"""What can be done on this machine, for those who are new to it: the recipes that run here, and the next command."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import sharevl_lite
from sharevl_lite.config import Recipe
from sharevl_lite.errors import UserError, first_line
from sharevl_lite.findings import Check
from sharevl_lite.policy.folder import BUILTIN_PREFIX
from sharevl_lite.recipes import load_recipe
from sharevl_lite.run_folder import holds_run

CONFIGS = "configs"
WHERE = "recipes to start from are in configs/ of the repository (git clone)"
CARD_GIB = 24

Step = tuple[str, str]
"""A command to type, empty where the step is no command, and what it does."""


@dataclass(frozen=True)
class Candidate:
    """A recipe in a file.

    `hindrance`: why it does not run here (None: it does); `demo`: its model is built in; `begun`: its folder has a run.
    """

    file: Path
    hindrance: str | None
    demo: bool = False
    begun: bool = False


def candidates(hindrance: Callable[[Recipe], str | None]) -> list[Candidate]:
    """The recipes of `configs` in the current folder, else of the checkout that this program runs from.

    A folder of that name that holds no recipe is somebody else's.
    """
    beside = Path(sharevl_lite.__file__).parents[1] / CONFIGS
    for folder in (Path(CONFIGS), beside):
        loaded = [(file, _load(file)) for file in sorted(folder.glob("*.yaml"))]
        if any(isinstance(recipe, Recipe) for _, recipe in loaded):
            return [_candidate(file, recipe, hindrance) for file, recipe in loaded]
    return []


def _load(file: Path) -> Recipe | UserError:
    try:
        return load_recipe(file)
    except UserError as error:
        return error


def _candidate(file: Path, recipe: Recipe | UserError, hindrance: Callable[[Recipe], str | None]) -> Candidate:
    if isinstance(recipe, UserError):
        return Candidate(file, f"does not load ({first_line(recipe)})")
    demo = recipe.model.path.startswith(BUILTIN_PREFIX)
    return Candidate(file, hindrance(recipe), demo, holds_run(recipe.run_dir))


def recipes_check(found: Sequence[Candidate]) -> Check:
    """Which of them run here; of the others the reasons."""
    if not found:
        return Check("recipes", "skipped", f"no folder {CONFIGS} here", WHERE)
    running = [each.file.stem for each in found if each.hindrance is None]
    reasons: dict[str, list[str]] = {}
    for each in found:
        if each.hindrance is not None:
            reasons.setdefault(each.hindrance, []).append(each.file.stem)
    told = f"{len(running)} of {len(found)} in {_shown(found[0].file.parent)} run here"
    told += f": {', '.join(running)}" if running else ""
    others = "; ".join(f"{why}: {', '.join(names)}" for why, names in reasons.items())
    facts = {each.file.stem: each.hindrance for each in found}
    return Check("recipes", "ok" if running else "warning", told, others, facts)


def next_steps(
    command: str,
    asked: str | None,
    checks: Sequence[Check],
    found: Sequence[Candidate],
    *,
    gpu: bool,
    planned: bool,
    begun: bool = False,
) -> list[Step]:
    """What to do next, first things first.

    `asked` is the recipe that was looked at, with its knobs; `gpu`, whether there is one here; `planned`, whether the
    checks are for a GPU on another machine; `begun`, whether the recipe's folder holds a run, which is gone on with.
    """
    failed = [check.name for check in checks if check.status == "failure"]
    if planned:
        return _on_the_planned_machine(command, asked, failed)
    if asked is None:
        return [_mend(failed)] if failed else _without_a_recipe(command, found, gpu=gpu)
    if not failed:
        return [
            (f"{command} train {asked} --dry-run", "its first prompt, and what a step takes; loads no weights"),
            _train(command, asked, "trains it", begun),
        ]
    mend = ("", f"mend what FAILed ({', '.join(failed)}), or use a machine that has it")
    return [mend] if gpu else [mend, _plan(command, asked), _demo(command, found)]


def _on_the_planned_machine(command: str, asked: str | None, failed: Sequence[str]) -> list[Step]:
    if not failed:
        return [(f"{command} train {asked}", "on that machine")] if asked else []
    if all(name.startswith("memory") for name in failed):
        return [("", "lower what is said above and look again, or take a larger GPU")]
    return [_mend(failed)]


def _without_a_recipe(command: str, found: Sequence[Candidate], *, gpu: bool) -> list[Step]:
    """The demo, and a look at a larger recipe: whether it fits this GPU, or one on another machine."""
    demo = _demo(command, found)
    large = next((_shown(each.file) for each in found if not each.demo and (each.hindrance is None) is gpu), None)
    if not gpu:
        return [demo, _plan(command, large or "RECIPE.yaml")]
    return [demo, (f"{command} doctor {large}", "a larger recipe: its memory here")] if large else [demo]


def _mend(failed: Sequence[str]) -> Step:
    return "", f"mend what FAILed: {', '.join(failed)}"


def _plan(command: str, recipe: str) -> Step:
    meaning = f"whether it fits a GPU of {CARD_GIB} GiB on another machine"
    return f"{command} doctor {recipe} --memory-gib {CARD_GIB}", meaning


def _demo(command: str, found: Sequence[Candidate]) -> Step:
    demo = next((each for each in found if each.hindrance is None and each.demo), None)
    if demo is None:
        return f"{command} eval builtin:digits-vl --data builtin:digits --samples 1", f"asks the demo's model; {WHERE}"
    return _train(command, _shown(demo.file), "trains the demo's small model, in minutes on a CPU", demo.begun)


def _train(command: str, recipe: str, meaning: str, begun: bool) -> Step:
    if begun:
        return f"{command} train {recipe} --resume auto", "goes on with the run that is there"
    return f"{command} train {recipe}", meaning


def _shown(path: Path) -> str:
    return os.path.relpath(path)
