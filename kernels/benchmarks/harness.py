"""What the benchmarks share: timing, memory, a table on the screen and a CSV that says where it was measured.

A row that failed its check has a status and no time: a wrong result is not fast.
"""

from __future__ import annotations

import argparse
import csv
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

import torch

OK = "ok"
PACKAGES = ("triton", "transformers", "peft", "numpy")


@dataclass(frozen=True)
class Timing:
    """Milliseconds of repeated runs."""

    median: float
    lowest: float
    highest: float


@dataclass(frozen=True)
class Row:
    """One line of a table; numbers that were not measured are None. `ratio` is against the table's own yardstick."""

    case: str
    what: str
    version: str
    status: str
    ms: float | None = None
    lowest_ms: float | None = None
    highest_ms: float | None = None
    ratio: float | None = None
    peak_mib: float | None = None
    logprob_error: float | None = None
    gradient_error: float | None = None
    note: str = ""


def arguments(description: str, **kwargs: str) -> argparse.ArgumentParser:
    """The options of every benchmark; `kwargs` are default values."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--device", default="cuda", help="cuda, or cpu to try the script itself (default: cuda)")
    parser.add_argument("--out", type=Path, default=Path("bench-results"), help="folder of the CSV")
    parser.add_argument(
        "--repeats", type=int, default=int(kwargs.get("repeats", "10")), help="timed runs, 2 more warm up"
    )
    return parser


def device_of(options: argparse.Namespace) -> torch.device:
    """The device asked for; ends the program with exit code 2 where there is none."""
    if options.device == "cuda" and not torch.cuda.is_available():
        print(
            "this benchmark needs a CUDA device (--device cpu runs the script itself, on small shapes)", file=sys.stderr
        )
        raise SystemExit(2)
    return torch.device(options.device)


def describe(device: torch.device) -> dict[str, str]:
    """Where a measurement was made: device, versions, time."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    found = {"device": name, "python": platform.python_version(), "torch": torch.__version__}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed"
    if device.type == "cuda":
        found["cuda"] = str(torch.version.cuda)
    return found | {"measured": datetime.now(UTC).isoformat(timespec="seconds")}


def measure(run: Callable[[], object], device: torch.device, repeats: int) -> Timing:
    """Times `run`, after two runs that are not counted."""
    for _ in range(2):
        run()
    times = [_once(run, device) for _ in range(repeats)]
    return Timing(statistics.median(times), min(times), max(times))


def measure_in_turns(runs: dict[str, Callable[[], object]], device: torch.device, repeats: int) -> dict[str, Timing]:
    """As :func:`measure`, one run of each in turn: a GPU's clock drifts by as much as two ways may differ."""
    for run in runs.values():
        run()
        run()
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            times[name].append(_once(run, device))
    return {name: Timing(statistics.median(each), min(each), max(each)) for name, each in times.items()}


def _once(run: Callable[[], object], device: torch.device) -> float:
    if device.type != "cuda":
        started = time.perf_counter()
        run()
        return (time.perf_counter() - started) * 1e3
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize(device)
    start.record()
    run()
    end.record()
    torch.cuda.synchronize(device)
    return float(start.elapsed_time(end))


def peak_mib(run: Callable[[], object], device: torch.device) -> float | None:
    """The most memory `run` held above what was held before it; None on a CPU."""
    if device.type != "cuda":
        run()
        return None
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    run()
    torch.cuda.synchronize(device)
    return (torch.cuda.max_memory_allocated(device) - before) / 1024**2


class Report:
    """A table that prints every row and writes it to `<out>/<title>.csv` when it is made: a run that is cut short keeps
    what it measured. Every line of the CSV has the machine and the versions."""

    def __init__(self, title: str, yardstick: str, device: torch.device, out: Path) -> None:
        self.rows: list[Row] = []
        self.where = describe(device)
        print(f"\n{title}: " + ", ".join(f"{key} {value}" for key, value in self.where.items()))
        heads = f"{'ms':>9} {yardstick:>9} {'MiB':>7} {'Δlogp':>8} {'Δgrad':>8}"
        print(f"{'case':28} {'what':44} {'version':20} {heads}  status", flush=True)
        out.mkdir(parents=True, exist_ok=True)
        self.path = out / f"{title.replace(' ', '_')}.csv"
        self._columns = [field.name for field in fields(Row)] + list(self.where)
        with self.path.open("w", newline="") as file:
            csv.DictWriter(file, self._columns).writeheader()

    def add(self, rows: Iterable[Row]) -> None:
        """Takes rows as they come."""
        for row in rows:
            self.rows.append(row)
            numbers = (
                f"{_shown(row.ms, '.2f'):>9} {_shown(row.ratio, '.2f'):>9} {_shown(row.peak_mib, '.0f'):>7} "
                f"{_shown(row.logprob_error, '.1e'):>8} {_shown(row.gradient_error, '.1e'):>8}"
            )
            line = f"{row.case:28} {row.what:44} {row.version:20} {numbers}  {row.status} {row.note}"
            print(line.rstrip(), flush=True)
            with self.path.open("a", newline="") as file:
                csv.DictWriter(file, self._columns).writerow(asdict(row) | self.where)

    def finish(self, own: str = "") -> int:
        """Says where the table is. 1 where one of our own rows (whose `what` begins with `own`) is not ok, else 0."""
        print(f"written to {self.path}")
        return int(any(row.status != OK for row in self.rows if row.what.startswith(own)))


def _shown(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
