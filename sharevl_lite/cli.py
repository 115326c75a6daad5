"""The command line. Heavy imports wait until a command needs them; a user's mistake is one message and exit code 2."""

from __future__ import annotations

import argparse
import os
import sys
import textwrap
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any, NoReturn

EXIT_OK, EXIT_FAILED, EXIT_USAGE, EXIT_INTERRUPTED = 0, 1, 2, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command and returns its exit code: 0 done, 2 a mistake in what was asked, 130 interrupted."""
    _be_kind_to_shared_cores()
    parser = _parser()
    options, overrides = parser.parse_known_args(arguments)
    if options.command is None:
        parser.print_help()
        return EXIT_USAGE
    try:
        code: int = options.run(options, overrides)
    except KeyboardInterrupt:
        print("stopped without saving", file=sys.stderr)
        return EXIT_INTERRUPTED
    except ValueError as error:
        if not _is_users_mistake(error):
            raise
        print(f"sharevl-lite: {error}", file=sys.stderr)
        return EXIT_USAGE
    return code


def _be_kind_to_shared_cores() -> None:
    """OpenMP threads that spin long at a barrier lose ten times their speed when another process has a core."""
    os.environ.setdefault("GOMP_SPINCOUNT", "5000")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def _is_users_mistake(error: ValueError) -> bool:
    """Whether the error is one of ours, which name what is wrong and what to do; others keep their trace."""
    named = {
        "RecipeError",
        "RunError",
        "DataError",
        "BadRowError",
        "PolicyError",
        "HubError",
        "ScheduleError",
        "RewardFunctionError",
        "RolloutError",
        "StoreError",
        "MetricsError",
    }
    return type(error).__name__ in named and type(error).__module__.startswith("sharevl_lite")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(EXIT_USAGE, f"{self.prog}: {message}\nTry '{self.prog} --help'.\n")


def _parser() -> _Parser:
    parser = _Parser(
        prog="sharevl-lite",
        description="Fine-tune vision-language models with Share-GRPO on one workstation.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"sharevl-lite {version('sharevl-lite')}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    train = commands.add_parser(
        "train",
        help="train by a recipe",
        usage="sharevl-lite train RECIPE.yaml [--dry-run] [--resume auto|PATH] [--section.knob VALUE ...]",
        description="Trains by a recipe; any knob of it can be given on the command line.",
        epilog=_knob_help() if _asks_for_help("train") else None,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    train.add_argument("recipe", metavar="RECIPE.yaml")
    train.add_argument("--dry-run", action="store_true", help="show the resolved recipe and what a step would take")
    train.add_argument("--resume", metavar="auto|PATH", help="continue the run from its newest or a given checkpoint")
    train.set_defaults(run=_train)
    evaluate = commands.add_parser(
        "eval",
        help="held-out accuracy of a run or a model",
        usage="sharevl-lite eval RUN_OR_MODEL [--data DATA] [--samples N] [--json] [--section.knob VALUE ...]",
        description="Evaluates a run, a checkpoint of one, a local model, a Hub id, or builtin:digits-vl, on plain "
        "questions and on variants of them.",
        allow_abbrev=False,
    )
    evaluate.add_argument("target", metavar="RUN_OR_MODEL")
    evaluate.add_argument("--data", help="problems, as in data.eval, all of them; default: the run's own")
    evaluate.add_argument("--samples", type=int, help="responses to each problem (eval.samples)")
    evaluate.add_argument(
        "--recipe", metavar="RECIPE.yaml", help="prompt, rewards and variants for a model without run"
    )
    evaluate.add_argument("--json", action="store_true", help="print the figures as JSON")
    evaluate.set_defaults(run=_evaluate)
    _add_view(commands)
    return parser


def _add_view(commands: Any) -> None:
    from sharevl_explorer.command import add_options

    view = commands.add_parser(
        "view",
        help="explore a run's rollouts in the browser",
        description="Opens the trajectory explorer over a run, or exports problems to one file.",
        allow_abbrev=False,
    )
    add_options(view)
    view.set_defaults(run=_view)


def _asks_for_help(command: str) -> bool:
    words = sys.argv[1:]
    return command in words[:1] and ("-h" in words or "--help" in words)


def _knob_help() -> str:
    from sharevl_lite.knobs import knobs

    lines = ["knobs of a recipe, with their defaults:"]
    for knob in knobs():
        lines.append(f"  --{knob.name} {knob.type}   (default: {knob.default})")
        lines += textwrap.wrap(knob.doc or "", 108, initial_indent="      ", subsequent_indent="      ")
    return "\n".join(lines)


def _train(options: argparse.Namespace, overrides: list[str]) -> int:
    from sharevl_lite.recipes import load_recipe

    recipe = load_recipe(options.recipe, overrides)
    if options.dry_run:
        from sharevl_lite.preview import preview

        print(preview(recipe), end="")
        return EXIT_OK
    from sharevl_lite.run import train

    result = train(recipe, resume=options.resume)
    return EXIT_OK if result.summary is not None else EXIT_INTERRUPTED


def _evaluate(options: argparse.Namespace, overrides: list[str]) -> int:
    from sharevl_lite.evaluate import evaluate_target, report

    evaluation = evaluate_target(
        options.target, data=options.data, samples=options.samples, recipe_file=options.recipe, overrides=overrides
    )
    report(evaluation, as_json=options.json)
    return EXIT_OK


def _view(options: argparse.Namespace, overrides: list[str]) -> int:
    if overrides:
        print(f"sharevl-lite: view takes no {' '.join(overrides)}", file=sys.stderr)
        return EXIT_USAGE
    from sharevl_explorer.command import run

    return run(options)
