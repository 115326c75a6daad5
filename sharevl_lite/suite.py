"""`sharevl-lite eval RUN_OR_MODEL --suite ...`: public benchmarks with lmms-eval, beside R1-ShareVL-7B's figures."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console

from sharevl_lite.atomic import write_atomically, write_json
from sharevl_lite.config import Recipe
from sharevl_lite.evaluation.document import Evaluation, Scalar
from sharevl_lite.evaluation.errors import EvaluationError
from sharevl_lite.evaluation.harness import (
    command,
    environment,
    find_harness,
    harness_version,
    prompt_json,
    read_results,
    shell_line,
)
from sharevl_lite.evaluation.outcomes import Outcome
from sharevl_lite.evaluation.protocol import common_protocol
from sharevl_lite.evaluation.published import MODEL, PROTOCOL, R1_SHAREVL_7B
from sharevl_lite.evaluation.saving import EVAL_DIR, Place, reserved_place
from sharevl_lite.evaluation.settings import Settings
from sharevl_lite.evaluation.statistics import LEVEL
from sharevl_lite.evaluation.subject import Subject, find_subject
from sharevl_lite.evaluation.tables import NOTHING, Table, markdown, show, value_and_interval
from sharevl_lite.rollout.server_client import KEY_VARIABLE, key_in
from sharevl_lite.rollout.serving import name_of, served

SCORING = (
    "lmms-eval's rules: the text in <answer> tags, else in the last box, else a number at the end of a line; right "
    "where its option letter is the gold's (a gold with a capital A to H counts as a letter, and letters are picked "
    "out of prose), the texts are nearly equal, or math-verify says so; no model as judge"
)
"""Of 0.7.3: `extract_anwser_tag`, `relax_exact_match` and `parse_mcq` of its `_task_utils/reasoning_utils.py`."""
TEMPLATE_FILE = "prompt.json"
STANDARD_ERROR = 2  # the process's own: in a notebook sys.stderr is no file
SERVER_HINT = (
    "Start the server with --generation-config vllm as well: lmms-eval asks the chat endpoint, which else fills in a "
    "checkpoint's repetition penalty."
)


@dataclass(frozen=True)
class SuiteEvaluation:
    """`evaluation` has a figure for each benchmark; `place` is where it was saved."""

    evaluation: Evaluation
    benchmarks: tuple[str, ...]
    place: Place


def prepare(target: str, settings: Settings) -> Subject:
    """The subject with a server, and greedy sampling unless `settings` say otherwise.

    Raises EvaluationError without a server's URL, and the errors of
    :func:`sharevl_lite.evaluation.subject.find_subject`.
    """
    if settings.engine not in (None, "server"):
        raise EvaluationError(f"--suite asks a vLLM server, not --engine {settings.engine}; give --server-url URL")
    subject = find_subject(target, settings, {"eval.temperature": 0})
    if subject.recipe.rollout.engine != "server":
        raise EvaluationError(
            "--suite: lmms-eval asks a vLLM server; give --server-url URL, such as http://localhost:8000/v1 "
            f"({_serve_line(subject.recipe)})"
        )
    if len(subject.recipe.rollout.server_urls) > 1:
        raise EvaluationError("--suite: lmms-eval asks one server; give one --server-url")
    return subject


def _serve_line(recipe: Recipe) -> str:
    from sharevl_lite.rollout.serve_command import serve_command

    return f"start one with: {serve_command(recipe)} --generation-config vllm"


def command_line(subject: Subject, benchmarks: Sequence[str], *, limit: int | None) -> str:
    """The harness's command as it would be run, for reading: neither harness nor server are needed."""
    model = name_of(subject.recipe, subject.adapter)
    words = command(["lmms-eval"], subject.recipe, benchmarks, model=model, output=Path("lmms-eval"), limit=limit)
    lines = [f"# {TEMPLATE_FILE} holds {prompt_json(subject.recipe)}"]
    if subject.adapter is not None:
        lines.append(f"# the server offers {subject.adapter} as {model} while this runs")
    return "\n".join([*lines, shell_line(words, environment(Path(TEMPLATE_FILE)))])


def run_suite(
    subject: Subject, settings: Settings, benchmarks: Sequence[str], *, limit: int | None = None
) -> SuiteEvaluation:
    """Runs the benchmarks, the first `limit` questions of each, and saves figures, protocol and the harness's files.

    Raises EvaluationError where the harness is missing or fails, RolloutError where the server is not as it must be.
    """
    harness = find_harness()
    folder = settings.out or (subject.run_dir / EVAL_DIR if subject.run_dir is not None else None)
    if folder is None:
        raise EvaluationError("--suite: give --out DIR, for scores and protocol of a model without a run")
    default = f"{subject.adapter.name if subject.adapter else 'base'}-suite"
    with reserved_place(Path(folder), settings.name, default=default) as place:
        evaluation = _run_saved(subject, settings, benchmarks, harness, place, limit)
        write_atomically(place.markdown, as_markdown(evaluation, benchmarks).encode())
        write_json(place.json, {**evaluation.as_json(), "published": _published(benchmarks)}, indent=1)
    return SuiteEvaluation(evaluation, tuple(benchmarks), place)


def _run_saved(
    subject: Subject,
    settings: Settings,
    benchmarks: Sequence[str],
    harness: Sequence[str],
    place: Place,
    limit: int | None,
) -> Evaluation:
    prompt, output = place.responses / TEMPLATE_FILE, place.responses / "lmms-eval"
    with served(subject.recipe, subject.adapter) as model:
        words = command(harness, subject.recipe, benchmarks, model=model, output=output, limit=limit)
        prompt.write_text(prompt_json(subject.recipe), "utf-8")
        _run(words, environment(prompt))
    found = read_results(output, benchmarks, max_tokens=subject.recipe.rollout.max_completion_length)
    told: dict[str, Scalar] = {
        **found.facts,
        "harness_version": harness_version(harness),
        "served_as": model,
        "limit": limit,
    }
    return _evaluation(subject, settings, benchmarks, found.outcomes, told)


def _run(words: Sequence[str], variables: dict[str, str]) -> None:
    """Runs the harness with its output on standard error."""
    key = key_in(KEY_VARIABLE) or "EMPTY"
    surroundings = {**os.environ, **variables, "OPENAI_API_KEY": key}
    try:
        done = subprocess.run(words, env=surroundings, stdout=STANDARD_ERROR, check=False)
    except OSError as error:
        raise EvaluationError(f"{words[0]} did not start ({error}); is lmms-eval installed whole?") from error
    if done.returncode:
        raise EvaluationError(f"lmms-eval ended with code {done.returncode}; what it printed above says why")


def _evaluation(
    subject: Subject,
    settings: Settings,
    benchmarks: Sequence[str],
    outcomes: Sequence[Outcome],
    facts: Mapping[str, Scalar],
) -> Evaluation:
    protocol: dict[str, Scalar] = {
        **common_protocol(subject.recipe, target=subject.name, adapter=subject.adapter, resamples=settings.resamples),
        "data": ",".join(benchmarks),
        "samples": 1,
        "variants": "none",
        "harness": "lmms-eval",
        "scoring": SCORING,
        **facts,
    }
    evaluation = Evaluation.of(protocol, outcomes)
    # Benchmarks are not one population: a mean over all their questions would say nothing.
    return replace(evaluation, metrics={name: evaluation.sources[name]["mean@1"] for name in benchmarks})


def _published(benchmarks: Sequence[str]) -> dict[str, dict[str, float | str | None]]:
    return {
        name: {"model": MODEL, "percent": R1_SHAREVL_7B[name].percent, "source": R1_SHAREVL_7B[name].source}
        for name in benchmarks
    }


def tables(evaluation: Evaluation, benchmarks: Sequence[str]) -> list[Table]:
    """Our row and the published one, side by side, with the source of each published figure."""
    rows = []
    for name in benchmarks:
        ours, percent = evaluation.metrics[name], R1_SHAREVL_7B[name].percent
        cut, _ = value_and_interval(evaluation.sources[name]["truncated"])
        of = f"{ours.problems}" + (f" ({ours.left_out} left out)" if ours.left_out else "")
        rows.append((name, *value_and_interval(ours), of, cut, NOTHING if percent is None else f"{percent:.1f}%"))
    header = ("benchmark", "ours", f"{LEVEL:.0%}\u00a0interval", "questions", "cut", MODEL)
    sources = [f"- {MODEL} on {name}: {R1_SHAREVL_7B[name].source}." for name in benchmarks]
    notes = [*sources, f"- {PROTOCOL}"]
    if failed := evaluation.protocol["requests_failed"]:
        told = "requests failed; their questions are left out here (lmms-eval counts them as wrong)"
        notes.insert(0, f"- {failed} {told}.")
    if (limit := evaluation.protocol["limit"]) is not None:
        notes.insert(0, f"- Only the first {limit} questions of each benchmark: not comparable.")
    return [Table(f"Benchmarks: {evaluation.protocol['target']}", header, rows, "\n".join(notes))]


def as_markdown(evaluation: Evaluation, benchmarks: Sequence[str]) -> str:
    """The whole report."""
    settings = [(name, "" if value is None else str(value)) for name, value in evaluation.protocol.items()]
    return "# Public benchmarks\n\n" + markdown(
        [*tables(evaluation, benchmarks), Table("Protocol", ("", "setting"), settings, SERVER_HINT, words=("setting",))]
    )


def report(done: SuiteEvaluation, *, as_json: bool) -> None:
    """Prints both rows, and where everything is."""
    if as_json:
        document = {**done.evaluation.as_json(problems=False), "published": _published(done.benchmarks)}
        print(json.dumps(document, indent=2, ensure_ascii=False))
        return
    console = Console()
    show(console, tables(done.evaluation, done.benchmarks))
    told = f"report   {done.place.markdown}\nfigures  {done.place.json}\nharness  {done.place.responses / 'lmms-eval'}"
    console.print(told, highlight=False, markup=False, soft_wrap=True)
