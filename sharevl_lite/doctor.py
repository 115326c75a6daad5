"""`sharevl-lite doctor`: whether this machine can run a recipe, and what to do where it cannot.

Every check has a finding and, unless it is fine, an advice. Nothing is loaded, downloaded or written; Unsloth, which
patches transformers when it is imported, is asked in a process of its own.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import torch
from packaging.version import InvalidVersion, Version
from rich.console import Console

from sharevl_lite.config import Recipe
from sharevl_lite.errors import INSTALL_GPU, INSTALL_UNSLOTH, UserError, in_one_line
from sharevl_lite.findings import Check, Status
from sharevl_lite.memory_advice import memory_checks
from sharevl_lite.memory_plan import GIB
from sharevl_lite.next_steps import candidates, next_steps, recipes_check
from sharevl_lite.policy.hf import BUILTIN_PREFIX, has_bfloat16
from sharevl_lite.precheck import look
from sharevl_lite.recipe_notes import recipe_notes
from sharevl_lite.run_folder import holds_run
from sharevl_lite.versions import installed_version
from sharevl_lite.wording import counted, typed_command

MARKS: dict[Status, str] = {"ok": "ok", "warning": "warn", "failure": "FAIL", "skipped": "skip"}
LEAST_DISK = 2 * GIB

TESTED: dict[str, tuple[str, ...]] = {
    "torch": ("2.11.0", "2.13.0", "2.14.1", "2.15.0"),
    "transformers": ("5.17.0", "5.24.0"),
    "peft": ("0.21.2",),
    "accelerate": ("1.15.0",),
    "datasets": ("4.8.5", "5.2.0"),
    "trl": ("1.15.0", "1.16.0"),
    "vllm": ("0.25.1", "0.31.0", "0.32.0"),
    "unsloth": ("2026.10.9",),
    "unsloth_zoo": ("2026.10.9",),
    "bitsandbytes": (),
    "vllm-bnb-plugin": (),
    "gradio": ("6.31.0",),
}
"""Versions that the tests, or a run on a GPU, have been seen with; of an empty list any. torch pins its triton."""
OPTIONAL = frozenset({"vllm", "unsloth", "unsloth_zoo", "bitsandbytes", "vllm-bnb-plugin"})
DRIVER_SECONDS = 30.0
"""nvidia-smi hangs where a driver does."""
SHARED_ENGINES = {("2026.10.9", "0.31.0")}
"""(unsloth, vllm) whose model with shared weights has been seen to train (on a CPU): all of its image tower and text
layers compute what transformers' do."""

UNSLOTH_SURFACE = ("from_pretrained", "get_peft_model", "for_training", "for_inference")
ASK_UNSLOTH = f"""
from unsloth import FastVisionModel
missing = [name for name in {UNSLOTH_SURFACE!r} if not callable(getattr(FastVisionModel, name, None))]
print("MISSING " + ",".join(missing))
"""


def examine(recipe: Recipe | None, *, memory_gib: float | None = None) -> list[Check]:
    """All checks, in the order they are read. `memory_gib` plans for a GPU of that size, on another machine."""
    checks = [_python(), *_gpus(recipe, memory_gib), *_packages(recipe, memory_gib is not None)]
    checks += [_unsloth(recipe if memory_gib is None else None), _hub(recipe)]
    if recipe is not None:
        checks += [Check("recipe", "warning", note) for note in recipe_notes(recipe)]
        checks += [_disk(recipe), _workers(recipe), _start(recipe), *memory_checks(recipe, memory_gib)]
    return checks


def hindrance(recipe: Recipe) -> str | None:
    """Why a recipe would not run on this machine, in words; None where nothing speaks against it."""
    if not torch.cuda.is_available():
        small = recipe.model.path.startswith(BUILTIN_PREFIX)
        return None if small and not _needs_gpu(recipe) else "need a GPU"
    missing = [check.name for check in _packages(recipe, False) if check.status == "failure"]
    if missing:
        return f"need {', '.join(missing)}"
    short = any(check.status == "failure" for check in memory_checks(recipe, None))
    return "need more GPU memory" if short else None


def diagnose(recipe: Recipe | None, asked: str | None, *, memory_gib: float | None, as_json: bool) -> int:
    """Examines, prints what was found and what to do next; returns 1 where a check failed, else 0.

    `asked` is the recipe as it was typed, with its knobs.
    """
    checks, gpu = examine(recipe, memory_gib=memory_gib), torch.cuda.is_available()
    found = candidates(hindrance) if recipe is None or not (as_json or gpu) else []
    if recipe is None:
        checks.append(recipes_check(found))
    code = report(checks, as_json=as_json)
    if not as_json:
        planned = memory_gib is not None
        begun = recipe is not None and holds_run(recipe.run_dir)
        _tell(next_steps(typed_command(), asked, checks, found, gpu=gpu, planned=planned, begun=begun))
    return code


def _tell(steps: list[tuple[str, str]]) -> None:
    for number, (command, meaning) in enumerate(steps):
        told = f"{command}    {meaning}" if command else meaning
        Console(highlight=False).print(f"{'' if number else 'next':5}{told}", markup=False, soft_wrap=True)


def report(checks: list[Check], *, as_json: bool) -> int:
    """Prints the checks; returns 1 where one failed, else 0."""
    failed = sum(check.status == "failure" for check in checks)
    if as_json:
        print(json.dumps({"failures": failed, "checks": [asdict(check) for check in checks]}, indent=2))
        return int(failed > 0)
    console = Console(highlight=False)
    for check in checks:
        console.print(f"{MARKS[check.status]:5}{check.name}: {check.finding}", markup=False, soft_wrap=True)
        if check.advice:
            console.print(f"     -> {check.advice}", markup=False, soft_wrap=True)
    warned = sum(check.status == "warning" for check in checks)
    told = f"{counted(failed, 'failure')}, {counted(warned, 'warning')}, {counted(len(checks), 'check')}"
    console.print(told, soft_wrap=True)
    return int(failed > 0)


def _python() -> Check:
    version = ".".join(map(str, sys.version_info[:3]))
    return Check("python", "ok", f"{version} on {sys.platform}", facts={"version": version})


def _needs_gpu(recipe: Recipe) -> list[str]:
    """What in the recipe does not run on a CPU."""
    needs = ["model.loader: unsloth"] if recipe.model.loader == "unsloth" else []
    needs += ["model.load_in_4bit"] if recipe.model.load_in_4bit else []
    return needs + (["rollout.engine: unsloth"] if recipe.rollout.engine == "unsloth" else [])


def _gpus(recipe: Recipe | None, memory_gib: float | None) -> Iterator[Check]:
    if not torch.cuda.is_available():
        yield _no_gpu(recipe) if memory_gib is None else _other_gpu(memory_gib)
        return
    driver = _driver() or "driver unknown (nvidia-smi does not say)"
    yield Check("driver", "ok", f"{driver}, CUDA {torch.version.cuda}", facts={"cuda": torch.version.cuda})
    for number in range(torch.cuda.device_count()):
        device = torch.cuda.get_device_properties(number)
        free, total = torch.cuda.mem_get_info(number)
        capability = f"{device.major}.{device.minor}"
        half = "bfloat16" if has_bfloat16(number) else "float16 only (no bfloat16)"
        facts = {"name": device.name, "capability": capability, "free": free, "total": total}
        built = torch.cuda.get_arch_list()
        if not runs_on((device.major, device.minor), built):
            finding = f"{device.name}, sm {capability}; torch {torch.__version__} is built for {', '.join(built)} alone"
            yield Check(f"gpu {number}", "failure", finding, "another card, or a torch for an older CUDA (pytorch.org)")
            continue
        finding = f"{device.name}, sm {capability}, {half}, {free / GIB:.1f} of {total / GIB:.1f} GiB free"
        if free < 0.8 * total:
            advice = "another program holds memory of it; end it, or plan with less"
            yield Check(f"gpu {number}", "warning", finding, advice, facts)
        else:
            yield Check(f"gpu {number}", "ok", finding, facts=facts)


def runs_on(capability: tuple[int, int], built: list[str]) -> bool:
    """Whether kernels built for `sm_XY` (for that and later ones of its generation) or `compute_XY` (for all later
    ones, which compile them) run on a card; so does a build that names none."""
    parts = [re.fullmatch(r"(sm|compute)_(\d+)(\d)[af]?", name) for name in built]
    known = [(kind, int(major), int(minor)) for kind, major, minor in (part.groups() for part in parts if part)]
    return not known or any(
        (major, minor) <= capability and (kind == "compute" or major == capability[0]) for kind, major, minor in known
    )


def _other_gpu(memory_gib: float) -> Check:
    return Check(
        "gpu", "warning", f"none here; the plan is for one of {memory_gib:g} GiB", "run the recipe where it is"
    )


def _no_gpu(recipe: Recipe | None) -> Check:
    """There is none, or none that torch can use."""
    needs = _needs_gpu(recipe) if recipe else []
    finding, advice = "none", "run it on a machine with a CUDA GPU, or set model.loader: hf and rollout.engine: hf"
    driver = _driver()
    if driver is not None:
        built = f"for CUDA {torch.version.cuda}" if torch.version.cuda else "without CUDA"
        finding = f"none that torch can use ({driver}; torch {torch.__version__} is built {built})"
        advice = "update the driver, or install a torch built for an older CUDA; is CUDA_VISIBLE_DEVICES right?"
    if needs:
        return Check("gpu", "failure", f"{finding}, and the recipe needs one ({', '.join(needs)})", advice)
    slow = "fine for the demo; slow for real models"
    if recipe is not None and not recipe.model.path.startswith(BUILTIN_PREFIX):
        slow = "for large models, run it on a machine with a CUDA GPU, and plan for that with --memory-gib N"
    return Check("gpu", "warning", f"{finding}: training runs on the CPU", advice if driver else slow)


def _driver() -> str | None:
    """The driver in words, as nvidia-smi finds it with a GPU; None where it finds none, or is not there."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return None
    command = [tool, "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=DRIVER_SECONDS)
    except (OSError, subprocess.TimeoutExpired):
        return "driver that does not answer"
    versions = done.stdout.splitlines()
    return f"driver {versions[0]}" if done.returncode == 0 and versions else None


def _needed(recipe: Recipe | None) -> set[str]:
    needed = set(TESTED) - OPTIONAL
    if recipe is None:
        return needed
    if recipe.rollout.uses_vllm:
        needed |= {"vllm"}
    if recipe.model.loader == "unsloth":
        needed |= {"unsloth", "unsloth_zoo", "bitsandbytes"}
    if recipe.model.load_in_4bit:
        needed |= {"bitsandbytes"}
        vllm = installed_version("vllm")
        if recipe.rollout.engine == "vllm" and vllm and Version(vllm) >= Version("0.28"):  # it was inside before
            needed |= {"vllm-bnb-plugin"}
    return needed


def _packages(recipe: Recipe | None, elsewhere: bool) -> Iterator[Check]:
    needed = _needed(recipe)
    for package, tested in TESTED.items():
        version = installed_version(package)
        if version is None:
            if package not in needed:
                yield Check(package, "skipped", "not installed (optional)")
            elif package not in OPTIONAL:
                yield Check(package, "failure", "not installed", f"pip install {package}")
            else:
                status: Status = "warning" if elsewhere else "failure"
                finding = f"not installed{' here' if elsewhere else ''}, and the recipe needs it"
                yield Check(package, status, finding, _install(package, needed))
        elif not tested or _release(version) in tested:
            yield Check(package, "ok", version, facts={"version": version})
        else:
            advice = f"tested with {', '.join(tested)}; install one of them if something fails"
            yield Check(package, "warning", version, advice, {"version": version})


def _install(package: str, needed: set[str]) -> str:
    """How an optional package is installed with the others that the recipe needs."""
    if "vllm" in needed:
        return INSTALL_GPU
    return INSTALL_UNSLOTH if "unsloth" in needed else f"pip install {package}"


def _release(version: str) -> str:
    """Without a build's own ending: 2.14.1 of 2.14.1+cu130."""
    try:
        return Version(version).public
    except InvalidVersion:
        return version


def _unsloth(recipe: Recipe | None) -> Check:
    """The functions of Unsloth that are called, and the pair of versions where its engine shares weights."""
    unsloth, vllm = installed_version("unsloth"), installed_version("vllm")
    if unsloth is None:
        return Check("unsloth's functions", "skipped", "Unsloth is not installed")
    used = recipe is not None and recipe.model.loader == "unsloth"
    shared = recipe is not None and recipe.rollout.engine == "unsloth"
    try:
        done = subprocess.run(
            [sys.executable, "-c", ASK_UNSLOTH], capture_output=True, text=True, check=False, timeout=300
        )
    except subprocess.TimeoutExpired:
        return Check("unsloth's functions", "warning", "no answer within 300 s", "try: python -c 'import unsloth'")
    answer = [line for line in done.stdout.splitlines() if line.startswith("MISSING")]
    if not answer:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        status: Status = "failure" if used else "warning"
        return Check("unsloth's functions", status, f"it does not start here ({last})", "set model.loader: hf")
    missing = answer[0].removeprefix("MISSING").strip()
    if missing:
        return Check("unsloth's functions", "failure" if used else "warning", f"missing: {missing}", _pin("unsloth"))
    if shared and (unsloth, None if vllm is None else _release(vllm)) not in SHARED_ENGINES:
        finding = f"with vLLM {vllm}, Unsloth {unsloth} has not been seen to share its weights rightly"
        pairs = ", ".join(" and ".join(pair) for pair in sorted(SHARED_ENGINES))
        advice = f"watch sampler_gap in the first step (0.03 and less is usual); seen: {pairs}; or rollout.engine: vllm"
        return Check("unsloth's functions", "warning", finding, advice)
    return Check("unsloth's functions", "ok", f"{', '.join(UNSLOTH_SURFACE)} are there")


def _pin(package: str) -> str:
    return f"pip install {package}=={TESTED[package][-1]}"


def _hub(recipe: Recipe | None) -> Check:
    from huggingface_hub import constants, get_token

    token = "a token is set" if get_token() else "no token"
    mode = ", offline (HF_HUB_OFFLINE)" if constants.HF_HUB_OFFLINE else ""
    if recipe is not None and recipe.train.push_to_hub and (not get_token() or constants.HF_HUB_OFFLINE):
        advice = "run `hf auth login` or set HF_TOKEN, and unset HF_HUB_OFFLINE; or set train.push_to_hub: false"
        return Check("hub", "failure", f"{token}{mode}, and the recipe uploads", advice)
    return Check("hub", "ok", token + mode)


def _disk(recipe: Recipe) -> Check:
    folder = recipe.output_dir  # of a relative one, at last the current folder
    while not folder.exists():
        folder = folder.parent
    if not folder.is_dir():
        return Check("disk", "failure", f"{folder} is a file", "set output_dir to a folder")
    free = shutil.disk_usage(folder).free
    facts = {"free": free, "folder": str(folder.absolute())}
    if not os.access(folder, os.W_OK):
        return Check("disk", "failure", f"{folder} cannot be written", "set output_dir", facts)
    finding = f"{free / GIB:.1f} GiB free in {'the current folder' if folder == Path() else folder}"
    if free < LEAST_DISK:
        return Check("disk", "failure", finding, f"a run needs {LEAST_DISK / GIB:.0f} GiB; set output_dir", facts)
    return Check("disk", "ok", finding, facts=facts)


def _workers(recipe: Recipe) -> Check:
    cores = os.cpu_count() or 1
    finding = f"{recipe.reward.workers} verifiers on {cores} cores"
    if recipe.reward.workers > cores:
        return Check("rewards", "warning", finding, f"set reward.workers to {cores} or less")
    return Check("rewards", "ok", finding)


def _start(recipe: Recipe) -> Check:
    """What `train` looks at before it loads the model, of what is on this machine."""
    name = "model and data"
    try:
        first = look(recipe)
    except UserError as error:
        return Check(name, "failure", in_one_line(error), "train would end with this")
    if first.prompts is None and not first.problems:
        return Check(name, "skipped", f"{recipe.model.path} and {recipe.data.train} are not on this machine yet")
    seen = str(first) if first.problems else f"nothing of {recipe.data.train}"
    model = recipe.model.path if first.prompts is not None else "no tokenizer"
    return Check(name, "ok", f"read {seen}, with {model}")
