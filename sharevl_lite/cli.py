"""The command line. Heavy imports wait until a command needs them; a user's mistake is one message and exit code 2."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import textwrap
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from sharevl_lite import __version__
from sharevl_lite.errors import ToldError, UserError
from sharevl_lite.parser import EXIT_USAGE, Parser
from sharevl_lite.signals import Signals
from sharevl_lite.together import is_main_process, leave_word_to_main_process

EXIT_OK, EXIT_FAILED, EXIT_INTERRUPTED = 0, 1, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command and returns its exit code: 0 done, 2 a mistake in what was asked, 130 interrupted."""
    _be_kind_to_shared_cores()
    words = sys.argv[1:] if arguments is None else list(arguments)
    parser = _parser(with_knobs=words[:1] == ["train"] and not {"-h", "--help"}.isdisjoint(words))
    parser.refuse_unknown_command(words)
    words, knobs = parser.set_knobs_apart(words)
    options, others = parser.parse_known_args(words)
    if options.command is None:
        parser.print_help()
        return EXIT_USAGE
    options.parser.refuse_misspelled(others)
    try:
        with Signals() if options.run is _train else nullcontext():  # SIGTERM ends what was begun as Ctrl-C does
            code: int = options.run(options, [*knobs, *others])
    except KeyboardInterrupt:
        if is_main_process():
            print("stopped without saving", file=sys.stderr)
        return EXIT_INTERRUPTED
    except UserError as error:
        if not isinstance(error, ToldError):
            leave_word_to_main_process()
            print(f"sharevl-lite: {error}{_beside(error, options)}", file=sys.stderr)
        return EXIT_USAGE
    return code


def _beside(error: UserError, options: argparse.Namespace) -> str:
    """Where data that was not found lies beside the recipe."""
    if getattr(options, "recipe", None) is None:
        return ""
    from sharevl_lite.data.errors import MissingSource

    return error.beside(Path(options.recipe).parent) if isinstance(error, MissingSource) else ""


def _be_kind_to_shared_cores() -> None:
    """OpenMP threads that spin long at a barrier lose ten times their speed when another process has a core."""
    os.environ.setdefault("GOMP_SPINCOUNT", "5000")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def _parser(*, with_knobs: bool = False) -> Parser:
    """`with_knobs`: the help of `train` lists every knob, which takes time to read off the recipe's models."""
    parser = Parser(
        prog="sharevl-lite",
        description="Fine-tune vision-language models with Share-GRPO on one workstation.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"sharevl-lite {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    train = commands.add_parser(
        "train",
        help="train by a recipe",
        usage="sharevl-lite train RECIPE.yaml [--dry-run] [--resume auto|PATH] [--section.knob VALUE ...]",
        description="Trains by a recipe; any knob of it can be given on the command line.",
        epilog=_knob_help() if with_knobs else None,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    train.add_argument("recipe", metavar="RECIPE.yaml")
    train.add_argument("--dry-run", action="store_true", help="show the resolved recipe and what a step would take")
    train.add_argument("--resume", metavar="auto|PATH", help="continue the run from its newest or a given checkpoint")
    train.set_defaults(run=_train, parser=train)
    _add_eval(commands)
    doctor = commands.add_parser(
        "doctor",
        help="whether this machine can run a recipe",
        usage="sharevl-lite doctor [RECIPE.yaml] [--memory-gib N] [--json] [--section.knob VALUE ...]",
        description="Checks the GPU, the installed versions and the disk, and plans the memory of a recipe. Exit code "
        "1 where a check fails.",
        allow_abbrev=False,
    )
    doctor.add_argument("recipe", metavar="RECIPE.yaml", nargs="?")
    doctor.add_argument("--memory-gib", type=float, metavar="N", help="plan for a GPU of N GiB instead of the one here")
    doctor.add_argument("--json", action="store_true", help="print the checks as JSON")
    doctor.set_defaults(run=_doctor, parser=doctor)
    _add_variants(commands)
    _add_export(commands)
    _add_view(commands)
    parser.commands = commands.choices
    return parser


def _add_eval(commands: argparse._SubParsersAction[Parser]) -> None:
    from sharevl_lite.eval_command import DESCRIPTION, USAGE, add_options

    evaluate = commands.add_parser(
        "eval",
        help="how a run or a model answers held-out problems; two evaluations compared; public benchmarks",
        usage=USAGE,
        description=DESCRIPTION,
        allow_abbrev=False,
    )
    add_options(evaluate)
    evaluate.set_defaults(run=_evaluate, parser=evaluate)


def _add_variants(commands: argparse._SubParsersAction[Parser]) -> None:
    variants = commands.add_parser(
        "variants",
        help="rewrites of every problem of a data set, filtered",
        usage="sharevl-lite variants DATA --out DIR [--with REWRITER] [--check-with MODEL] ... | --report DIR",
        description="Writes the data set with `variants` filled, a report and a manifest; the same command goes on "
        "after a kill without paying twice. Exit code 1 where requests failed for good: run it again to ask for "
        "those.",
        allow_abbrev=False,
    )
    variants.add_argument("data", metavar="DATA", nargs="?", help="as in data.train")
    variants.add_argument("--out", metavar="DIR", help="folder to write; must be new, or of the same settings")
    variants.add_argument("--report", metavar="DIR", help="print the report of a folder written before")
    variants.add_argument(
        "--with", dest="rewriter", default="rules", help="rules (no model; default), openai, hf:MODEL or vllm:MODEL"
    )
    variants.add_argument("--num", type=int, default=4, help="most rewrites of a problem (default: 4)")
    variants.add_argument("--base-url", help="an OpenAI-compatible endpoint; the key comes from OPENAI_API_KEY")
    variants.add_argument("--model", help="model of the endpoint")
    variants.add_argument("--columns", help="problem=question,images=image,answer=label,choices=options")
    variants.add_argument("--split", default="train", help="split of the source (default: train)")
    variants.add_argument("--limit", type=int, help="the first so many problems")
    variants.add_argument("--seed", type=int, default=0)
    variants.add_argument("--concurrency", type=int, help="requests at a time, or in a batch (default: 8; vllm: 64)")
    variants.add_argument("--max-tokens", type=int, default=2048, help="longest reply of a model (default: 2048)")
    _add_check(variants)
    variants.add_argument("--timeout", type=float, default=120.0, help="seconds for one request (default: 120)")
    variants.add_argument("--cache", metavar="FILE", help="replies of the model (default: DIR.cache.sqlite)")
    variants.add_argument("--on-bad-row", choices=("stop", "skip"), default="stop")
    variants.set_defaults(run=_variants, parser=variants)


def _add_check(variants: Parser) -> None:
    check = variants.add_argument_group("solver check (off unless --check-with is given)")
    check.add_argument(
        "--check-with",
        metavar="openai|hf:MODEL|vllm:MODEL",
        help="keep a rewrite only if this model agrees with the answer on it at least as often as on the original",
    )
    check.add_argument("--check-samples", type=int, default=4, help="answers to each text (default: 4)")
    check.add_argument("--check-base-url", help="endpoint of the check (default: --base-url)")
    check.add_argument("--check-model", help="model of that endpoint (default: --model)")
    check.add_argument(
        "--check-template",
        help="what it is asked: text with {problem}; must lead to a boxed answer. Literal braces may be doubled, as in "
        "data.prompt_template, or single",
    )


def _add_export(commands: argparse._SubParsersAction[Parser]) -> None:
    export = commands.add_parser(
        "export",
        help="a run as a model for transformers, vLLM, llama.cpp or the Hub",
        usage="sharevl-lite export RUN --to DIR [--checkpoint best|last|N] "
        "[--format merged-16bit|merged-4bit|lora|gguf] [--push-to-hub ORG/NAME] ...",
        description="Writes the model, reads it again from the disk and compares its tensors and logits with the base "
        "model and the adapter. Nothing appears under DIR unless that went well.",
        allow_abbrev=False,
    )
    export.add_argument("target", metavar="RUN", help="the folder of a run")
    export.add_argument("--to", metavar="DIR", required=True, help="folder to write; new or empty")
    export.add_argument(
        "--checkpoint",
        metavar="best|last|N",
        default="last",
        help="last: the final adapter, or the newest checkpoint (default); best: of the checkpoints still there, that "
        "of the highest held-out accuracy, or reward where accuracy has no weight; N: the one after update N",
    )
    export.add_argument(
        "--format",
        choices=("merged-16bit", "merged-4bit", "lora", "gguf"),
        default="merged-16bit",
        help="merged-16bit: the whole model, in the base's own names and precision (a float32 base stays float32); "
        "merged-4bit: the same with its text layers in NF4, through bitsandbytes, on a CPU too; "
        "lora: the adapter; gguf: for llama.cpp, whose convert_hf_to_gguf.py is looked for in LLAMA_CPP_DIR and on "
        "the PATH",
    )
    export.add_argument("--base", metavar="MODEL", help="the base model, where the recipe's has moved or is quantised")
    export.add_argument(
        "--saver",
        choices=("own", "unsloth"),
        default="own",
        help="who merges, packs in 4 bits or writes GGUF files; the checks are the same. unsloth needs a GPU, for gguf "
        "a built llama.cpp in LLAMA_CPP_DIR, and fetches none",
    )
    _add_export_details(export)
    export.set_defaults(run=_export, parser=export)


def _add_export_details(export: Parser) -> None:
    export.add_argument(
        "--max-shard-size",
        metavar="SIZE",
        default="5GB",
        help="largest file of weights that our own saver writes (default: 5GB)",
    )
    export.add_argument("--prompts", type=int, default=4, help="prompts of the run to compare logits on (default: 4)")
    export.add_argument(
        "--tolerance",
        type=float,
        metavar="SHARE",
        help="largest error of the logits in units of what the adapter does to them (default: 0.01 for float32, 0.1 "
        "for float16, 0.3 for bfloat16); with merged-4bit the largest share of what the adapter does that the 4 bits "
        "may lose (default: 0.7)",
    )
    export.add_argument(
        "--gguf-type",
        choices=("auto", "f32", "f16", "bf16", "q8_0"),
        default="auto",
        help="type of the weights in GGUF files (default: auto, 16 bits)",
    )
    export.add_argument(
        "--push-to-hub", metavar="ORG/NAME", help="upload it, with the token of HF_TOKEN or hf auth login"
    )
    export.add_argument("--private", action="store_true", help="create the repository as a private one")


def _add_view(commands: Any) -> None:
    from sharevl_explorer.command import add_options

    view = commands.add_parser(
        "view",
        help="explore a run's rollouts in the browser",
        description="Opens the trajectory explorer over a run, or exports problems to one file.",
        allow_abbrev=False,
    )
    add_options(view)
    view.add_argument(
        "--model",
        metavar="MODEL",
        help="adds Try it, with transformers: `run` (the run's own policy), a run, a checkpoint, an adapter, a local "
        "model or a Hub id",
    )
    view.set_defaults(run=_view, parser=view)


def _knob_help() -> str:
    from sharevl_lite.knobs import knobs

    lines = ["knobs of a recipe, with their defaults:"]
    for knob in knobs():
        lines.append(f"  --{knob.name} {knob.type}   (default: {knob.default})")
        lines += textwrap.wrap(knob.doc or "", 108, initial_indent="      ", subsequent_indent="      ")
    return "\n".join(lines)


def _train(options: argparse.Namespace, overrides: list[str]) -> int:
    from sharevl_lite.first_checks import check_adapter_start, check_inputs, check_start
    from sharevl_lite.heavy_imports import without_collecting
    from sharevl_lite.recipes import load_recipe, with_local_paths

    recipe = load_recipe(options.recipe, overrides)
    if options.dry_run:
        check_inputs(recipe)
        check_adapter_start(recipe.model)
        with without_collecting():
            from sharevl_lite.preview import preview

        print(preview(recipe), end="")
        return EXIT_OK
    check_start(with_local_paths(recipe), options.resume)
    if recipe.model.loader == "unsloth":
        from sharevl_lite.policy.unsloth import import_unsloth

        import_unsloth(beside_vllm=recipe.rollout.uses_vllm)  # before anything that imports transformers
    with without_collecting():
        from sharevl_lite.run import train

    result = train(recipe, resume=options.resume)
    return EXIT_OK if result.summary is not None else EXIT_INTERRUPTED


def _evaluate(options: argparse.Namespace, overrides: list[str]) -> int:
    from sharevl_lite.eval_command import run

    run(options, overrides)
    return EXIT_OK


def _doctor(options: argparse.Namespace, overrides: list[str]) -> int:
    from sharevl_lite.heavy_imports import without_collecting
    from sharevl_lite.recipes import RecipeError, load_recipe

    if options.recipe is None and overrides:
        raise RecipeError([f"{overrides[0]}: knobs need a recipe; sharevl-lite doctor RECIPE.yaml {overrides[0]} ..."])
    if options.memory_gib is not None and options.memory_gib <= 0:
        raise RecipeError([f"--memory-gib {options.memory_gib}: give the GPU's memory in GiB, such as 24"])
    recipe = None if options.recipe is None else load_recipe(options.recipe, overrides)
    with without_collecting():
        from sharevl_lite.doctor import diagnose

    asked = None if options.recipe is None else shlex.join([options.recipe, *overrides])
    return diagnose(recipe, asked, memory_gib=options.memory_gib, as_json=options.json)


def _variants(options: argparse.Namespace, overrides: list[str]) -> int:
    from sharevl_lite.rewrite.command import run

    return EXIT_OK if run(options, overrides) else EXIT_FAILED


def _export(options: argparse.Namespace, overrides: list[str]) -> int:
    from sharevl_lite.export.settings import check, settings_of
    from sharevl_lite.heavy_imports import without_collecting

    settings = settings_of(options, overrides)
    check(settings)
    if options.saver == "unsloth":
        from sharevl_lite.policy.unsloth import import_unsloth

        import_unsloth()  # before anything that imports transformers
    with without_collecting():
        from sharevl_lite.export.command import export

    export(settings)
    return EXIT_OK


def _view(options: argparse.Namespace, overrides: list[str]) -> int:
    from sharevl_explorer.command import run

    if overrides:
        raise UserError(f"view takes no {' '.join(overrides)}")
    if options.model is not None and options.export:
        raise UserError("view --export writes a file; --model needs a server. Leave one of them out.")

    def open_model() -> Any:
        from sharevl_lite.heavy_imports import without_collecting

        with without_collecting():
            from sharevl_lite.try_it import open_tryout

        return open_tryout(options.run_dir, options.model)

    run(options, None if options.model is None else open_model)
    return 0
