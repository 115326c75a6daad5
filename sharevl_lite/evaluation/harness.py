"""lmms-eval: its command for our tasks, and what its files say.

The harness runs as a program of its own (its pins are not ours), against an OpenAI-compatible server. It answers 0 even
where it failed, and it scores a request that failed as a wrong answer; here a missing file is an error, and a failed
request is left out and counted. Layout of 0.7.3, which was run to find out:

    <output>/<model>/<time>_results.json            results.<task>."acc_score,none", n-samples, versions
                     <time>_samples_<task>.jsonl    a line per question: doc_id, input, target, filtered_resps, resps,
                                                    acc_score, format_score, token_counts
"""

from __future__ import annotations

import hashlib
import json
import math
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from sharevl_lite.config import Recipe
from sharevl_lite.evaluation.errors import EvaluationError
from sharevl_lite.evaluation.outcomes import RIGHT, Answer, Asked, Outcome
from sharevl_lite.evaluation.published import BENCHMARKS

VERSION = "0.7.3"
INSTALL = (
    "lmms-eval is not installed. It has pins of its own, so give it an environment of its own and put that on the "
    f"PATH:\n    python -m venv lmms && lmms/bin/pip install lmms-eval=={VERSION} && export PATH=$PWD/lmms/bin:$PATH\n"
    "or, if they agree, install it here: pip install lmms-eval"
)
PROMPT_VARIABLE = "SHAREVL_PROMPT"
REQUEST_FAILED = ("[LMMS_EVAL_REQUEST_FAILED", "[LMMS_EVAL_BUDGET_EXCEEDED")
TAKEN_FOR_OPENAI = ("o1", "o3", "o4", "gpt-5")
"""Anywhere in a model's name: its chat client leaves out temperature and max_tokens then, so that the server samples by
its own defaults and to another length. There are no other such words in its OpenAI clients."""
TASKS = {benchmark: f"sharevl_{benchmark}" for benchmark in BENCHMARKS}


def parse_suite(text: str) -> list[str]:
    """The benchmarks of a comma-separated list, or of `all`. Raises EvaluationError for one that is unknown."""
    names = list(dict.fromkeys(name.strip().lower() for name in text.split(",") if name.strip()))
    if names == ["all"]:
        return list(BENCHMARKS)
    unknown = [name for name in names if name not in TASKS]
    if unknown or not names:
        told = f"there is no {', '.join(unknown)}" if unknown else "names nothing"
        raise EvaluationError(f"--suite {text}: {told}; benchmarks are {', '.join(BENCHMARKS)}, or all")
    return names


def find_harness() -> list[str]:
    """The words that start lmms-eval, from the PATH or this environment. Raises EvaluationError where it is not."""
    found = shutil.which("lmms-eval")
    if found is not None:
        return [found]
    if find_spec("lmms_eval") is not None:
        return [sys.executable, "-m", "lmms_eval"]
    raise EvaluationError(f"--suite: {INSTALL}")


def harness_version(harness: Sequence[str]) -> str | None:
    """What lmms-eval says of itself; None where it says nothing."""
    done = subprocess.run([*harness, "version"], capture_output=True, text=True, check=False)
    words = done.stdout.split()
    return words[1] if done.returncode == 0 and words[:1] == ["lmms-eval"] else None


def command(
    harness: Sequence[str], recipe: Recipe, benchmarks: Sequence[str], *, model: str, output: Path, limit: int | None
) -> list[str]:
    """The words of a run of `benchmarks` against the recipe's first server, which offers the model as `model`.

    Raises EvaluationError for a model's name or an URL that the harness would take for something else.
    """
    section, url = recipe.eval, recipe.rollout.server_urls[0]
    _check_name(model)
    for what in (model, url):
        if "," in what:
            raise EvaluationError(f"--suite: lmms-eval cannot be given {what!r}, it splits at commas")
    settings = {
        "model": model,
        "base_url": f"{url.rstrip('/').removesuffix('/v1')}/v1",
        "timeout": math.ceil(recipe.rollout.server_timeout_seconds),
        "max_retries": recipe.rollout.server_retries + 1,
        "num_concurrent": recipe.rollout.batch_size,
    }
    sampling = {
        "temperature": section.temperature,
        "top_p": section.top_p,
        "max_new_tokens": recipe.rollout.max_completion_length,
        "seed": recipe.seed,
    }
    words = [*harness, "--model", "openai", "--model_args", _pairs(settings)]
    words += ["--tasks", ",".join(TASKS[benchmark] for benchmark in benchmarks)]
    words += ["--include_path", str(files("sharevl_lite.evaluation").joinpath("lmms_tasks"))]
    words += ["--gen_kwargs", _pairs(sampling), "--seed", str(recipe.seed), "--batch_size", "1"]
    words += [] if limit is None else ["--limit", str(limit)]
    return [*words, "--output_path", str(output), "--log_samples"]


def _check_name(model: str) -> None:
    """Raises EvaluationError for a name with which the harness would not ask as the protocol says."""
    found = next((word for word in TAKEN_FOR_OPENAI if word in model), None)
    if found is not None:
        wrong = f"takes it for a model of OpenAI's ({found!r} is in it) and drops temperature and length"
    elif _is_number(model):
        wrong = "reads it as a number"
    else:
        return
    raise EvaluationError(
        f"--suite: the server's name for the model is {model!r}, and lmms-eval {VERSION} {wrong}; start the server "
        "with --served-model-name base, and give --rollout.server_model base here"
    )


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return text.isnumeric() or text.lower() in ("true", "false")
    return True


def _pairs(settings: Mapping[str, Any]) -> str:
    return ",".join(f"{name}={value}" for name, value in settings.items())


def environment(prompt: Path) -> dict[str, str]:
    """Variables of the harness beside the caller's own: the recipe's words, and no model as a judge."""
    return {PROMPT_VARIABLE: str(prompt.absolute()), "USE_LLM_JUDGE": "False"}


def shell_line(words: Sequence[str], variables: Mapping[str, str]) -> str:
    """The command as it can be typed; the server's key is not written into it."""
    return " ".join(
        [
            'OPENAI_API_KEY="${VLLM_API_KEY:-EMPTY}"',
            *(f"{name}={shlex.quote(value)}" for name, value in variables.items()),
            shlex.join(words),
        ]
    )


def prompt_json(recipe: Recipe) -> str:
    """What `lmms_tasks/prompt.py` reads: the recipe's words around a question."""
    return json.dumps({"template": recipe.data.prompt_template, "system": recipe.data.system_prompt})


@dataclass(frozen=True)
class HarnessResults:
    """`outcomes` of all questions, with the benchmark as source; `facts` for the protocol."""

    outcomes: list[Outcome]
    facts: dict[str, str | int]


def read_results(output: Path, benchmarks: Sequence[str], *, max_tokens: int) -> HarnessResults:
    """What the harness wrote below `output`; a response of `max_tokens` tokens was cut.

    Raises EvaluationError where a file is missing or damaged, or its figures contradict its own samples.
    """
    found = sorted(output.glob("*/*_results.json"))
    if not found:
        raise EvaluationError(f"{output}: lmms-eval wrote no results; what it printed above says why")
    results = _json(found[-1].read_text("utf-8"), found[-1])
    outcomes: list[Outcome] = []
    for benchmark in benchmarks:
        task = TASKS[benchmark]
        file = found[-1].with_name(found[-1].name.replace("_results.json", f"_samples_{task}.jsonl"))
        if not file.is_file():
            raise EvaluationError(f"{file}: missing; lmms-eval did not finish {benchmark}")
        lines = [_json(line, file) for line in file.read_text("utf-8").splitlines() if line.strip()]
        _check_mean(results, task, lines, found[-1])
        outcomes += [_outcome(benchmark, line, max_tokens, file) for line in lines]
    return HarnessResults(outcomes, _facts(outcomes))


def _json(text: str, file: Path) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise EvaluationError(f"{file}: damaged ({error}); run the suite again") from error


def _check_mean(results: Any, task: str, lines: Sequence[Any], file: Path) -> None:
    """The harness's own figure is the mean over its samples, or one of the files is of something else."""
    try:
        told = float(results["results"][task]["acc_score,none"])
        counted = sum(float(line["acc_score"]) for line in lines) / len(lines)
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        raise EvaluationError(f"{file}: {task} is not as lmms-eval {VERSION} writes it ({error!r})") from error
    if not math.isclose(told, counted, abs_tol=1e-6):
        raise EvaluationError(f"{file}: says {told:.4f} for {task}, its samples say {counted:.4f}; run the suite again")


def _outcome(benchmark: str, line: Any, max_tokens: int, file: Path) -> Outcome:
    try:
        said = line["filtered_resps"]
        text = said if isinstance(said, str) else str(said[0])
        score = float(line["acc_score"])
        tokens = int((line.get("token_counts") or [{}])[0].get("output_tokens") or 0)
        identity = f"{benchmark}/{line['doc_id']}"
        question, gold, well_formed = str(line["input"]), str(line["target"]), float(line["format_score"]) == 1.0
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise EvaluationError(f"{file}: a line is not as lmms-eval {VERSION} writes it ({error!r})") from error
    if score not in (0.0, 1.0):
        raise EvaluationError(f"{file}: doc_id {line['doc_id']} scores {score}, neither right nor wrong")
    answer = Answer(
        extracted=text,
        correct=score == 1.0,
        group=RIGHT if score == 1.0 else None,
        well_formed=well_formed,
        truncated=tokens >= max_tokens,
        tokens=tokens,
    )
    answers = () if text.startswith(REQUEST_FAILED) else (answer,)  # nothing is known of a response that never came
    return Outcome(identity, benchmark, question, gold, (Asked("plain", None, answers),))


def _facts(outcomes: Sequence[Outcome]) -> dict[str, str | int]:
    digest = hashlib.sha256()
    for outcome in outcomes:
        digest.update(json.dumps([outcome.id, outcome.question, outcome.gold]).encode())
    failed = sum(not outcome.asked[0].answers for outcome in outcomes)
    return {
        "data_digest": digest.hexdigest(),
        "problems": len(outcomes),
        "requests_failed": failed,
    }
