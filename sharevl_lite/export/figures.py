"""The card's figures: the run's own evaluations, and those that `sharevl-lite eval` left in it of this very adapter."""

from __future__ import annotations

import html
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from sharevl_lite import metrics_log
from sharevl_lite.evaluation.document import Evaluation
from sharevl_lite.evaluation.document import read as read_evaluation
from sharevl_lite.evaluation.errors import EvaluationError
from sharevl_lite.evaluation.saving import EVAL_DIR
from sharevl_lite.evaluation.statistics import Figure
from sharevl_lite.evaluation.tables import Table, grid
from sharevl_lite.export.public import named, public
from sharevl_lite.export.source import Source
from sharevl_lite.heldout import SHARES
from sharevl_lite.policy.hf import ADAPTER_FILE, adapter_digest
from sharevl_lite.run_files import DATA_FILE, METRICS_FILE, read_record
from sharevl_lite.wording import counted


@dataclass(frozen=True)
class Figures:
    """Paragraphs in Markdown; `notes` tell the user which evaluations of the run are not among them, and why."""

    paragraphs: tuple[str, ...]
    notes: tuple[str, ...]


def figures_of(source: Source) -> Figures:
    """All that is known of how well this adapter does."""
    paragraphs = list(_held_out(source))
    reports, notes = _reports(source)
    for name, report in reports.items():
        paragraphs += _evaluation(name, report)
    return Figures(tuple(paragraphs) or ("This state of the run was not evaluated.",), tuple(notes))


def _held_out(source: Source) -> Iterator[str]:
    """The evaluations of the training itself, before it and of this adapter."""
    recipe, section = source.recipe, source.recipe.eval
    path = source.run / METRICS_FILE
    records = [r for r in (metrics_log.read(path) if path.is_file() else []) if r.get("eval_accuracy") is not None]
    first = next((record for record in records if record["update"] == 0), None)
    start = (
        "base model" if recipe.model.lora.start_from is None else "before training, with the adapter it started from"
    )
    columns = {start: first, source.label: source.evaluation}
    known = {name: record for name, record in columns.items() if record is not None}
    if not known:
        return
    rows = [
        f"| {name.replace('_', ', ')} | " + " | ".join(_share(r.get(f"eval_{name}")) for r in known.values()) + " |"
        for name in SHARES
    ]
    yield "\n".join([f"| held out | {' | '.join(known)} |", "|---|" + "---|" * len(known), *rows])
    answered = int(known[next(reversed(known))].get("eval_responses") or 0)
    yield (
        f"Protocol: {_asked(source, answered)} of {named(recipe.data.eval or '', recipe.data.eval_split)}, each as it "
        f"is (plain) and as one variant of it, {section.samples} responses to either; temperature "
        f"{section.temperature}, top-p {section.top_p}, at most {recipe.rollout.max_completion_length} tokens, seed "
        f"{recipe.seed}, one run, engine {recipe.rollout.engine}."
        + (f" {answered} responses in each column." if answered else "")
    )


def _asked(source: Source, answered: int) -> str:
    """How many problems were asked: the recipe only says how many at most, and the data may hold fewer."""
    most, kept = source.recipe.eval.problems, read_record(source.run / DATA_FILE).get("eval", {})
    # A plain question and a variant of it, so many responses to each; older programs logged no number of responses.
    number = answered // (2 * source.recipe.eval.samples) or kept.get("problems")
    return f"the first problems ({most} at most)" if number is None else f"the first {counted(number, 'problem')}"


def _reports(source: Source) -> tuple[dict[str, Evaluation], list[str]]:
    """By name, those that `sharevl-lite eval` left in the run of an adapter with these weights; notes on the others."""
    weights = source.adapter / ADAPTER_FILE
    digest = adapter_digest(source.adapter) if weights.is_file() else None  # without, the export is refused later
    reports: dict[str, Evaluation] = {}
    notes: list[str] = []
    others: list[str] = []
    for file in sorted((source.run / EVAL_DIR).glob("*.json")):
        try:
            report = read_evaluation(file)
        except EvaluationError as error:
            notes.append(f"not in the card: {error}")
            continue
        if digest is not None and report.protocol.get("adapter_sha256") == digest:
            reports[file.stem] = report
        else:
            others.append(file.name)
    if others:
        notes.append(
            f"not in the card: {', '.join(others)} in {source.run / EVAL_DIR}, evaluations of another adapter than "
            f"{source.label}, or of none"
        )
    return reports, notes


def _evaluation(name: str, report: Evaluation) -> Iterator[str]:
    rows = [f"| {figure} | {_share(found.value)} | {_interval(found)} |" for figure, found in report.metrics.items()]
    yield "\n".join([f"| evaluation `{name}` | value | interval |", "|---|---|---|", *rows])
    known = {key: public(value, key) for key, value in report.protocol.items() if value is not None}
    told = [(key, str(value).replace("\n", r"\n")) for key, value in known.items()]
    protocol = grid(Table("", ("setting", "value"), told, words=("value",)))
    yield f"<details><summary>Protocol of {html.escape(name)}</summary>\n\n{protocol}\n\n</details>"


def _interval(figure: Figure) -> str:
    if figure.low is None or figure.high is None:
        return "-"
    return f"{_share(figure.low)} to {_share(figure.high)}"


def _share(value: Any) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "-"
    return f"{value:.3f}"
