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
) -> list[tuple[str, str]]:
    """Commands to type, each with what it does; a step that is no command has none.

    `asked` is the recipe that was looked at, with its knobs; `gpu`, whether there is one here; `planned`, whether the
    checks are for a GPU on another machine; `begun`, whether the recipe's folder holds a run, which is gone on with.
    """
    failures = [check.name for check in checks if check.status == "failure"]
    failed = ", ".join(failures)
    if planned:
        lower = "lower what is said above and look again, or take a larger GPU"
        if any(not name.startswith("memory") for name in failures):
            lower = f"mend what FAILed: {failed}"
        return [("", lower)] if failed else [(f"{command} train {asked}", "on that machine")] if asked else []
    if asked is not None and not failed:
        return [
            (f"{command} train {asked} --dry-run", "its first prompt, and what a step takes; loads no weights"),
            _train(command, asked, "trains it", begun),
        ]
    if asked is None and failed:
        return [("", f"mend what FAILed: {failed}")]
    large = next((_shown(each.file) for each in found if not each.demo and (each.hindrance is None) is gpu), None)
    if gpu and asked is None:
        look = [(f"{command} doctor {large}", "a larger recipe: its memory here")] if large else []
        return [_demo(command, found), *look]
    plan = f"{command} doctor {asked or large or 'RECIPE.yaml'} --memory-gib {CARD_GIB}"
    elsewhere = (plan, f"whether it fits a GPU of {CARD_GIB} GiB on another machine")
    if asked is None:
        return [_demo(command, found), elsewhere]
    mend = ("", f"mend what FAILed ({failed}), or use a machine that has it")
    return [mend] if gpu else [mend, elsewhere, _demo(command, found)]


def _demo(command: str, found: Sequence[Candidate]) -> tuple[str, str]:
    demo = next((each for each in found if each.hindrance is None and each.demo), None)
    if demo is None:
        return f"{command} eval builtin:digits-vl --data builtin:digits --samples 1", f"asks the demo's model; {WHERE}"
    return _train(command, _shown(demo.file), "trains the demo's small model, in minutes on a CPU", demo.begun)


def _train(command: str, recipe: str, meaning: str, begun: bool) -> tuple[str, str]:
    if begun:
        return f"{command} train {recipe} --resume auto", "goes on with the run that is there"
    return f"{command} train {recipe}", meaning


def _shown(path: Path) -> str:
    return os.path.relpath(path)
