"""`sharevl-lite eval`: its options, and what they start. Importing this loads nothing heavy."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sharevl_lite.evaluation.errors import EvaluationError

if TYPE_CHECKING:
    from sharevl_lite.evaluation.settings import Settings

USAGE = """sharevl-lite eval RUN_OR_MODEL [--data DATA] [--samples N] [--engine E] [--section.knob VALUE ...]
       sharevl-lite eval --compare A.json B.json
       sharevl-lite eval RUN_OR_MODEL --suite mathvista,mathverse,... [--server-url URL] [--print-command]"""
DESCRIPTION = """Evaluates a run, a checkpoint of one, a local model, a Hub id, or builtin:digits-vl, on plain
questions and on variants of them; compares two evaluations; or runs public benchmarks with lmms-eval."""
FEWEST_RESAMPLES = 100
LENGTHS = frozenset({"train.rollouts", "train.updates_per_rollout"})
COMPARE_TAKES = frozenset({"command", "target", "compare", "force", "json", "resamples"})
"""What may be set beside --compare; a target is refused by its name."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of `eval`."""
    parser.add_argument("target", metavar="RUN_OR_MODEL", nargs="?")
    asked = parser.add_argument_group("what is asked")
    asked.add_argument("--data", help="problems, as in data.eval, all of them; default: the run's own")
    asked.add_argument("--samples", type=int, metavar="N", help="responses to each problem (eval.samples)")
    asked.add_argument("--recipe", metavar="RECIPE.yaml", help="prompt, rewards and variants for a model without run")
    asked.add_argument(
        "--variants",
        choices=("each", "drawn", "none"),
        help="each (default): the plain question, a rewrite, and an image transform of each family; drawn: the plain "
        "question and a variant drawn as in training; none: the plain question alone",
    )
    asked.add_argument(
        "--by",
        metavar="COLUMN",
        help="column of the data to split figures by (default: source, data_source or dataset)",
    )
    asked.add_argument("--engine", choices=("hf", "vllm", "unsloth", "server"), help="rollout.engine")
    asked.add_argument(
        "--server-url",
        action="append",
        default=[],
        metavar="URL",
        help="a vLLM server, repeatable; means --engine server",
    )
    suite = parser.add_argument_group("public benchmarks with lmms-eval")
    suite.add_argument("--suite", metavar="LIST", help="mathvista,mathverse,mathvision,mmstar,mmmu,ai2d, or all")
    suite.add_argument("--limit", type=int, metavar="N", help="the first N questions of each benchmark, to try it out")
    suite.add_argument("--print-command", action="store_true", help="print lmms-eval's command instead of running it")
    saved = parser.add_argument_group("what is written")
    saved.add_argument(
        "--out", metavar="DIR", help="folder to save in (default: eval/ in the run; a model's: not saved)"
    )
    saved.add_argument("--name", help="name of the files (default: by checkpoint, data and samples)")
    saved.add_argument("--json", action="store_true", help="print the figures as JSON")
    saved.add_argument("--resamples", type=int, metavar="B", help="draws of the bootstrap (default: 9999)")
    compared = parser.add_argument_group("comparing two evaluations")
    compared.add_argument(
        "--compare", nargs=2, metavar=("A.json", "B.json"), help="test B against A, problem by problem"
    )
    compared.add_argument("--force", action="store_true", help="compare although data or protocol differ")


def run(options: argparse.Namespace, overrides: Sequence[str]) -> None:
    """Evaluates or compares. Raises EvaluationError for options that do not fit together."""
    if options.resamples is not None and options.resamples < FEWEST_RESAMPLES:
        raise EvaluationError(f"--resamples {options.resamples}: an interval needs at least {FEWEST_RESAMPLES}")
    if options.compare is not None:
        _compare(options, overrides)
        return
    if options.target is None:
        raise EvaluationError("eval: give a run or a model, or --compare A.json B.json; see sharevl-lite eval --help")
    if options.force:
        raise EvaluationError("--force belongs to --compare")
    if options.suite is not None:
        _run_suite(options, overrides)
        return
    if options.limit is not None or options.print_command:
        raise EvaluationError("--limit and --print-command belong to --suite; eval.problems limits other data")
    from sharevl_lite.engines import check_installed
    from sharevl_lite.evaluation.subject import check_data, find_subject
    from sharevl_lite.first_checks import check_inputs
    from sharevl_lite.heavy_imports import without_collecting

    settings = _settings(options, overrides)
    subject = find_subject(options.target, settings)
    check_installed(subject.recipe)
    check_data(subject.recipe)
    check_inputs(subject.recipe, train=False)
    if idle := _of_trainings(overrides):
        print(f"{' '.join(idle)}: of no effect, for an evaluation trains nothing", file=sys.stderr)
    if subject.run_dir is None and settings.recipe_file is None:
        print("prompt, rewards and variants are the defaults; --recipe gives those of a training", file=sys.stderr)
    with without_collecting():
        from sharevl_lite.evaluate import evaluate, report

    report(evaluate(subject, settings), as_json=options.json)


def _of_trainings(overrides: Sequence[str]) -> list[str]:
    """Knobs that decide how a model is trained alone. (The length of a training is told to reward functions.)"""
    names = [word.partition("=")[0] for word in overrides if word.startswith(("--train.", "--objective."))]
    return [name for name in names if name.removeprefix("--").replace("-", "_") not in LENGTHS]


def _settings(options: argparse.Namespace, overrides: Sequence[str]) -> Settings:
    from sharevl_lite.evaluation.settings import RESAMPLES, Settings

    engine = options.engine or ("server" if options.server_url else None)
    if options.server_url and engine != "server":
        raise EvaluationError(f"--server-url and --engine {engine}: leave one of them out")
    return Settings(
        data=options.data,
        samples=options.samples,
        recipe_file=options.recipe,
        engine=engine,
        server_urls=options.server_url,
        variants=options.variants or "each",
        source_column=options.by,
        out=options.out,
        name=options.name,
        resamples=options.resamples or RESAMPLES,
        overrides=overrides,
    )


def _run_suite(options: argparse.Namespace, overrides: Sequence[str]) -> None:
    from sharevl_lite import suite
    from sharevl_lite.evaluation.harness import parse_suite

    odd = [f"--{name}" for name in ("data", "samples", "variants", "by") if getattr(options, name)]
    if odd:
        raise EvaluationError(f"--suite has its own data and asks once; it takes no {' '.join(odd)}")
    if options.limit is not None and options.limit < 1:
        raise EvaluationError(f"--limit {options.limit}: must be at least 1")
    benchmarks, settings = parse_suite(options.suite), _settings(options, overrides)
    subject = suite.prepare(options.target, settings)
    if options.print_command:
        print(suite.command_line(subject, benchmarks, limit=options.limit))
        return
    suite.report(suite.run_suite(subject, settings, benchmarks, limit=options.limit), as_json=options.json)


def _compare(options: argparse.Namespace, overrides: Sequence[str]) -> None:
    given = [
        f"--{name.replace('_', '-')}"
        for name, value in vars(options).items()
        if name not in COMPARE_TAKES and value != options.parser.get_default(name)
    ]
    odd = [*([options.target] if options.target else []), *given, *overrides]
    if odd:
        raise EvaluationError(f"--compare reads two evaluations and takes no {' '.join(odd)}")
    from rich.console import Console

    from sharevl_lite.evaluation import compare, document
    from sharevl_lite.evaluation.settings import RESAMPLES
    from sharevl_lite.evaluation.tables import show

    first, second = options.compare
    comparison = compare.compare(
        document.read(first), document.read(second), force=options.force, resamples=options.resamples or RESAMPLES
    )
    if options.json:
        print(json.dumps(comparison.as_json(), indent=2, ensure_ascii=False))
        return
    show(Console(), compare.tables(comparison, _names(first, second)))


def _names(first: str, second: str) -> tuple[str, str]:
    """Their names where these tell them apart, else the whole paths."""
    short = Path(first).stem, Path(second).stem
    return short if short[0] != short[1] else (first, second)
