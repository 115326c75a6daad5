"""What only a GPU can tell, in one call: tests and benchmarks one part after another, and a report of what was seen.

    python scripts/gpu_report.py [--minutes 20] [--only step tests ...] [--out gpu-report] [--list]

The parts stand in the order of their worth. One that needs what is not installed, or more GPUs, is a line that says
so; one that needs longer than the minutes that are left gets only those, and the rest get none. Commands of a part
run beside each other where nothing is timed (the small models leave room on a card of 24 GB). After every command
`report.md` is written anew, with the card, the versions, and the end of each log, so that a call that is cut off
leaves what it had; whole logs and tables lie beside it.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import platform
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("torch", "triton", "transformers", "peft", "trl", "vllm", "unsloth", "bitsandbytes")
GRACE = 10
"""Seconds that a command which is out of time gets to write what it has."""
SHOWN = 40
"""Lines of a log's end in the report."""
TEST = "{python} -m pytest -q -rs -p no:cacheprovider"
SHARE = "{python} -m sharevl_lite"
MODEL = "Qwen/Qwen2.5-VL-3B-Instruct"


@dataclass(frozen=True)
class Command:
    """A line of a shell, and what it needs. `{python}`, `{out}` (kept) and `{scratch}` (not kept) are filled in."""

    name: str
    line: str
    packages: tuple[str, ...] = ()
    gpus: int = 1


@dataclass(frozen=True)
class Part:
    """Commands that run beside each other, and the minutes that they get at most."""

    name: str
    tells: str
    minutes: float
    commands: tuple[Command, ...]
    unless: str = ""
    """A part that makes this one needless where it went well."""


def twice(line: str) -> str:
    """The line, and once more where it failed: vLLM does not start when another process gives memory back just while it
    measures how much is free."""
    return f"( {line} || ( echo; echo once more; {line} ) )"


def benchmark(name: str, tells: str, words: str = "") -> Part:
    """A benchmark of the kernels, alone on the card."""
    line = f"{{python}} kernels/benchmarks/bench_{name}.py {words} --out {{out}}/kernels"
    return Part(name, tells, 6, (Command(name, line),))


PARTS = (
    Part(
        "step",
        "a whole step of 32 problems in a 3B shape: ours, packed rows, and separate rows as the baseline",
        12,
        (Command("step", "{python} scripts/bench_step.py --at-once --out {out}/step", ("vllm",)),),
    ),
    Part(
        "updates",
        "the same with made-up responses: scores and updates alone",
        8,
        (Command("updates", "{python} scripts/bench_step.py --at-once --without-sampling --out {out}/updates"),),
        unless="step",
    ),
    Part(
        "tests",
        "kernels, policies, loaders and engines against their references; vLLM on a 4-bit export",
        12,
        (
            Command("gpu-tests", f"{TEST} -m gpu tests/kernels tests/policy"),
            Command("sampling", f"{TEST} -m 'not vllm' tests/rollout/test_continuous_batching.py"),
            Command(
                "unsloth",
                f"SHAREVL_TEST_UNSLOTH=1 {TEST} -m unsloth tests/policy/test_unsloth.py",
                ("unsloth", "bitsandbytes"),
            ),
            Command(
                "beside",
                twice(f"{TEST} tests/rollout/test_vllm_beside_unsloth.py"),
                ("unsloth", "vllm", "bitsandbytes"),
            ),
            Command(
                "export",
                f"{SHARE} train configs/digits_cpu.yaml --output-dir {{scratch}} --name demo --train.rollouts 12"
                f" && {SHARE} export {{scratch}}/demo --to {{scratch}}/4bit --format merged-4bit"
                " && "
                + twice(
                    f"{SHARE} eval {{scratch}}/4bit --recipe configs/digits_cpu.yaml --data builtin:digits"
                    " --engine vllm --samples 1 --out {out}/export"
                ),
                ("vllm", "bitsandbytes"),
            ),
        ),
    ),
    Part(
        "sleep",
        "what vLLM gives back while the policy trains",
        6,
        (Command("sleep", f"{TEST} -s tests/rollout/test_vllm_gpu.py", ("vllm",)),),
    ),
    benchmark(
        "packed_update", "packed rows against separate ones, with the kernels that the time goes to", "--profile"
    ),
    benchmark("grouped_logprob", "log-probs and gradients against the peers that are installed", "--peers"),
    Part(
        "memory",
        "what recipes take beside what was planned for them",
        8,
        (
            Command(
                "memory",
                "{python} scripts/measure_memory.py --one-by-one configs/geometry3k_qwen2_5_vl_3b.yaml"
                " configs/geometry3k_qwen3_vl_4b.yaml configs/geometry3k_qwen2_5_vl_3b_80gb.yaml",
                ("unsloth", "bitsandbytes"),
            ),
        ),
    ),
    Part(
        "trl",
        "a step of plain GRPO in a 3B shape against TRL's trainer",
        10,
        (
            Command(
                "trl",
                f"{{python}} scripts/random_models.py {MODEL} {{scratch}}/3b"
                " && {python} scripts/bench_trl.py --model {scratch}/3b --trl-batch 8 --token-budget 16384"
                " --steps 3 --warm-up 1 --out {out}/trl",
            ),
        ),
    ),
    Part(
        "two-gpus",
        "half of the problems on each of two GPUs",
        5,
        (
            Command(
                "two-gpus",
                "{python} -m torch.distributed.run --standalone --nproc-per-node 2 -m sharevl_lite"
                " train configs/digits_cpu.yaml --output-dir {scratch} --name two --train.rollouts 6",
                gpus=2,
            ),
        ),
    ),
    benchmark("swiglu", "the activation of a fused MLP"),
    benchmark("hierarchical_advantage", "advantages in one launch"),
)


@dataclass
class Seen:
    """What became of a command."""

    part: str
    command: Command
    outcome: str = ""
    seconds: float = 0.0
    log: Path | None = None

    @property
    def failed(self) -> bool:
        """Whether it began and did not end well."""
        return self.log is not None and self.outcome != "ok"


# ---------------------------------------------------------------- run


def missing(command: Command, gpus: int) -> str:
    """Why a command cannot run here; empty where it can."""
    absent = [package for package in command.packages if find_spec(package) is None]
    if absent:
        return f"left out: {' and '.join(absent)} not installed"
    return f"left out: needs {command.gpus} GPUs" if gpus < command.gpus else ""


def begin(command: Command, log: Path, folders: dict[str, str]) -> subprocess.Popen[bytes]:
    """Starts a command in a process group of its own."""
    code = os.pathsep.join(str(ROOT / folder) for folder in (".", "kernels", "apps/explorer"))
    path = os.pathsep.join(filter(None, (code, os.environ.get("PYTHONPATH"))))
    environment = {"HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1", **os.environ, "PYTHONPATH": path}
    line = command.line.format(**{name: shlex.quote(value) for name, value in folders.items()})
    with log.open("wb") as stream:
        return subprocess.Popen(
            line, shell=True, cwd=ROOT, env=environment, stdout=stream, stderr=subprocess.STDOUT, start_new_session=True
        )


def end(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """Ends commands with all that they have started, which get a while for it."""
    for process in processes:
        signal_group(process, signal.SIGTERM)
    deadline = time.monotonic() + GRACE
    while time.monotonic() < deadline and any(process.poll() is None or is_alive(process) for process in processes):
        time.sleep(0.1)
    for process in processes:
        signal_group(process, signal.SIGKILL)
        process.wait()


def signal_group(process: subprocess.Popen[bytes], number: int) -> bool:
    """Whether any process of a command's group was there to be signalled."""
    try:
        os.killpg(process.pid, number)
    except ProcessLookupError:
        return False
    return True


def is_alive(process: subprocess.Popen[bytes]) -> bool:
    """Whether something that a command has started still runs: its shell may have ended before."""
    return signal_group(process, 0)


def run(part: Part, seconds: float, gpus: int, out: Path, scratch: Path) -> Iterator[Seen]:
    """The part's commands beside each other; each is told when it has ended, or is ended when the time is over."""
    folders = {"python": sys.executable, "out": str(out), "scratch": str(scratch)}
    running: dict[str, tuple[Seen, subprocess.Popen[bytes]]] = {}
    began = time.monotonic()
    try:
        for command in part.commands:
            seen = Seen(part.name, command, missing(command, gpus))
            if seen.outcome:
                yield seen
            else:
                seen.log = out / f"{command.name}.log"
                running[command.name] = seen, begin(command, seen.log, folders)
        while running:
            time.sleep(0.2)
            passed = time.monotonic() - began
            codes = {name: process.poll() for name, (_, process) in running.items()}
            if passed >= seconds:
                end([process for name, (_, process) in running.items() if codes[name] is None])
            for name, code in codes.items():
                if code is None and passed < seconds:
                    continue
                seen, _ = running.pop(name)
                seen.outcome = "stopped: out of time" if code is None else f"failed ({code})" if code else "ok"
                seen.seconds = passed
                yield seen
    finally:
        end([process for _, process in running.values()])


def run_all(parts: Sequence[Part], minutes: float, cards: Sequence[str], out: Path) -> Iterator[Seen]:
    """All parts, as long as there is time."""
    deadline = time.monotonic() + 60 * minutes
    fine: dict[str, bool] = {}
    with tempfile.TemporaryDirectory(prefix="sharevl-gpu-report-", ignore_cleanup_errors=True) as scratch:
        for part in parts:
            left = deadline - time.monotonic()
            if fine.get(part.unless) or left < GRACE:
                why = "not needed" if fine.get(part.unless) else "not begun: out of time"
                yield from (Seen(part.name, command, why) for command in part.commands)
                continue
            fine[part.name] = True
            for seen in run(part, min(60 * part.minutes, left - GRACE), len(cards), out, Path(scratch)):
                fine[part.name] &= seen.outcome == "ok"
                yield seen


# ---------------------------------------------------------------- report


def find_cards() -> list[str]:
    """The GPUs, with memory and driver."""
    asked = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(asked, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return []
    return [line.strip() for line in done.stdout.splitlines() if line.strip()]


def commit() -> str:
    """The commit that is tested, and whether files differ from it; empty without git."""
    try:
        told = subprocess.run(
            ["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return ""
    return told.stdout.strip()


def versions() -> str:
    """What is installed, in words."""
    found = [f"Python {platform.python_version()}"]
    for package in filter(find_spec, PACKAGES):
        with contextlib.suppress(metadata.PackageNotFoundError):  # a nightly's has another name
            found.append(f"{package} {metadata.version(package)}")
    return ", ".join(found)


def tail(log: Path) -> str:
    """The last lines of a log, without the steps of progress bars and what a code block cannot hold."""
    lines = [line.rsplit("\r", 1)[-1] for line in log.read_text(errors="replace").split("\n")]
    return "\n".join([line.replace("```", "'''") for line in lines if line.strip()][-SHOWN:])


def report(seen: Sequence[Seen], cards: Sequence[str]) -> str:
    """Markdown: where, what became of each command, and the end of its log."""
    where = [f"{time.strftime('%Y-%m-%d')}, commit {commit() or 'unknown'}", *cards, versions()]
    lines = ["# GPU report", "", *(f"- {line}" for line in where), ""]
    lines += ["| part | command | outcome | seconds |", "|---|---|---|---|"]
    lines += [f"| {one.part} | {one.command.name} | {one.outcome} | {one.seconds:.0f} |" for one in seen]
    for one in seen:
        if one.log is not None:
            lines += ["", f"## {one.command.name}: {one.outcome}", "", f"`{one.command.line}`", ""]
            lines += ["```text", tail(one.log), "```"]
    return "\n".join(lines) + "\n"


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command's options."""
    names = [part.name for part in PARTS]
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--minutes", type=float, default=60, help="for all parts together (default: 60)")
    parser.add_argument(
        "--only", nargs="+", choices=names, default=names, metavar="PART", help=f"of {', '.join(names)} (default: all)"
    )
    parser.add_argument("--out", type=Path, default=Path("gpu-report"), help="folder of report, logs and tables")
    parser.add_argument("--list", action="store_true", help="say what the parts tell, and run nothing")
    options = parser.parse_args(arguments)
    if options.minutes <= 0:
        parser.error(f"--minutes must be more than 0, not {options.minutes:g}")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the parts. Exit code 1 where a command failed or was stopped, 2 without a GPU."""
    options = parse(arguments)
    parts = [part for part in PARTS if part.name in options.only]
    if options.list:
        print("\n".join(f"{part.name:23} {part.tells} (at most {part.minutes:g} minutes)" for part in parts))
        return 0
    cards = find_cards()
    if not cards:
        print("no NVIDIA GPU was found (nvidia-smi); --list says what would run", file=sys.stderr)
        return 2
    out = options.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    seen: list[Seen] = []
    try:
        for one in run_all(parts, options.minutes, cards, out):
            seen.append(one)
            (out / "report.md").write_text(report(seen, cards))
            print(f"{one.command.name:23} {one.outcome} ({one.seconds:.0f} s)", flush=True)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    finally:
        print(f"written to {options.out / 'report.md'}")
    return int(any(one.failed for one in seen))


if __name__ == "__main__":
    sys.exit(main())
