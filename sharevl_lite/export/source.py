"""Which adapter of a run is exported, and what the run knows about it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sharevl_lite import metrics_log
from sharevl_lite.checkpoints import CHECKPOINT_PREFIX, CHECKPOINTS_DIR, list_checkpoints, update_of
from sharevl_lite.config import Recipe
from sharevl_lite.export.errors import ExportError
from sharevl_lite.recipes import load_recipe
from sharevl_lite.run_files import ADAPTER_DIR, DATA_FILE, METRICS_FILE, RECIPE_FILE, SUMMARY_FILE, read_record


@dataclass(frozen=True)
class Source:
    """An adapter of a run.

    `update` is the optimizer step it was saved after, None for the adapter that the run ended with; `updates` are those
    behind it, of that one as well. `evaluation` is the line of metrics.jsonl for it, where there is one. `notes` are
    what the user should be told about the choice.
    """

    run: Path
    recipe: Recipe
    adapter: Path
    update: int | None
    updates: int
    evaluation: Mapping[str, Any] | None
    notes: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """The adapter in words."""
        return f"the adapter after update {self.update}" if self.update is not None else "the run's final adapter"

    @property
    def base_digests(self) -> dict[str, str]:
        """Digests of the base model's files of weights, by file name, as the run kept them; empty in older runs."""
        return dict(read_record(self.run / DATA_FILE).get("model", {}))


def find_source(run: Path, wanted: str) -> Source:
    """The adapter of a run by `wanted`: `last` (the final adapter, or the newest checkpoint), `best` (of the
    checkpoints still there, the one with the best held-out figure, `Recipe.best_metric`) or the number of an update.

    Raises ExportError where there is no such run or adapter; the message lists what there is.
    """
    if not (run / RECIPE_FILE).is_file():
        raise ExportError(_no_run(run))
    recipe = load_recipe(run / RECIPE_FILE)
    checkpoints = {update_of(path): path for path in list_checkpoints(run / CHECKPOINTS_DIR)}
    evaluations = _evaluations(run)
    if wanted == "last":
        return _last(run, recipe, checkpoints, evaluations)
    if wanted == "best":
        return _best(run, recipe, checkpoints, evaluations)
    if not (wanted.isascii() and wanted.isdecimal()):
        raise ExportError(
            f"--checkpoint {wanted}: give best, last or the number of an update; {_held(run, checkpoints)}"
        )
    update = int(wanted)
    if update not in checkpoints:
        raise ExportError(f"--checkpoint {wanted}: {run} has no checkpoint of that update; {_held(run, checkpoints)}")
    return Source(run, recipe, checkpoints[update], update, update, evaluations.get(update))


def _last(run: Path, recipe: Recipe, checkpoints: Mapping[int, Path], evaluations: Mapping[int, Any]) -> Source:
    if (run / ADAPTER_DIR).is_dir():
        # What a run ends with was evaluated last: the last update, or the best one put back.
        final = _evaluation_records(run)[-1:]
        return Source(run, recipe, run / ADAPTER_DIR, None, _updates_made(run, recipe), final[0] if final else None)
    if not checkpoints:
        raise ExportError(f"{run}: the run has neither an adapter nor a checkpoint yet; let it reach its first save")
    update = max(checkpoints)
    note = f"the run is not finished: exporting its newest checkpoint, after update {update}"
    return Source(run, recipe, checkpoints[update], update, update, evaluations.get(update), (note,))


def _updates_made(run: Path, recipe: Recipe) -> int:
    """Updates behind the final adapter, which may be the best one put back; of old runs, as far as they tell."""
    summary, log = read_record(run / SUMMARY_FILE), run / METRICS_FILE
    logged = [record["update"] for record in metrics_log.read(log) if "update" in record] if log.is_file() else []
    asked = recipe.train.rollouts * recipe.train.updates_per_rollout
    return int(summary.get("adapter_update", logged[-1] if logged else asked))


def _best(run: Path, recipe: Recipe, checkpoints: Mapping[int, Path], evaluations: Mapping[int, Any]) -> Source:
    figure = recipe.best_metric
    evaluations = {update: record for update, record in evaluations.items() if record.get(figure) is not None}
    known = [update for update in checkpoints if update in evaluations]
    if not known:
        raise ExportError(
            f"--checkpoint best: no checkpoint of {run} was evaluated (evaluations: {_listed(evaluations)}); set "
            f"eval.every_rollouts to train.save_rollouts next time, and name one now; {_held(run, checkpoints)}"
        )

    def value(update: int) -> float:
        return float(evaluations[update][figure])

    def told(update: int) -> str:
        return f"{value(update):.1%}" if figure == "eval_accuracy" else f"{value(update):.3f}"

    chosen = max(known, key=value)
    name = figure.removeprefix("eval_")
    notes = [f"best held-out {name} among the checkpoints: {told(chosen)}, after update {chosen}"]
    better = [update for update in evaluations if update and value(update) > value(chosen)]
    if better:
        top = max(better, key=value)
        notes.append(
            f"update {top} did better ({told(top)}), but its checkpoint is gone (train.save_total_limit: "
            f"{recipe.train.save_total_limit}); train.load_best_model_at_end keeps the best one"
        )
    if 0 in evaluations and value(0) >= value(chosen):
        notes.append(f"before training it did no worse: {told(0)}")
    return Source(run, recipe, checkpoints[chosen], chosen, chosen, evaluations[chosen], tuple(notes))


def _evaluations(run: Path) -> dict[int, dict[str, Any]]:
    """Evaluations by update. A second one of the last update is of the best adapter, put back at the end of the run."""
    found: dict[int, dict[str, Any]] = {}
    for record in _evaluation_records(run):
        found.setdefault(record["update"], record)
    return found


def _evaluation_records(run: Path) -> list[dict[str, Any]]:
    """Those with a figure that is known, oldest first."""
    path = run / METRICS_FILE
    records = metrics_log.read(path) if path.is_file() else []
    return [r for r in records if r.get("eval_accuracy") is not None or r.get("eval_reward") is not None]


def _held(run: Path, checkpoints: Mapping[int, Path]) -> str:
    final = " and the final adapter (last)" if (run / ADAPTER_DIR).is_dir() else ""
    return f"there are updates {_listed(checkpoints)}{final}"


def _listed(updates: Mapping[int, Any] | Sequence[int]) -> str:
    return ", ".join(map(str, updates)) or "none"


def _no_run(run: Path) -> str:
    if not run.exists():
        return f"{run}: no such folder; give the folder of a run, such as runs/NAME"
    if run.name.startswith(CHECKPOINT_PREFIX) and (run.parent.parent / RECIPE_FILE).is_file():
        update = run.name.removeprefix(CHECKPOINT_PREFIX)
        return f"{run}: a checkpoint, not a run; sharevl-lite export {run.parent.parent} --checkpoint {update}"
    if run.name == ADAPTER_DIR and (run.parent / RECIPE_FILE).is_file():
        return f"{run}: an adapter, not a run; sharevl-lite export {run.parent}"
    return f"{run}: not a run (no {RECIPE_FILE} in it); give the folder that `sharevl-lite train` wrote"
