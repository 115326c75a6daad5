"""grouped_logprob against the products it cannot do without, and against its peers.

    python kernels/benchmarks/bench_grouped_logprob.py [--shapes 1 2 --peers TRL "Unsloth zoo"] [--sweep]

The yardstick ("× floor") is cuBLAS on the same tensors, timed in turns with what it measures: one product (logits) for
the pass without gradients, two (logits, and probabilities times the weight) for forward + backward. Targets are
sampled from the model, as a policy's own tokens are. Errors are the largest over 256 rows against float64 from the same
inputs; gradients are relative to the largest entry. `--sweep` times tiles and chunk sizes of our own instead of the
peers.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial

import torch
from harness import OK, Report, Row, arguments, device_of, measure, measure_in_turns, peak_mib
from peers import PEERS, GrpoLoss, LogProbs, Peer, version_of
from sharevl_kernels.grouped_logprob import grouped_logprob, launch
from sharevl_kernels.grouped_logprob.kernel import HOPPER, ScanConfig
from sharevl_kernels.grouped_logprob.reference import reference_logprobs
from torch import Tensor

SHAPES = ((2048, 2048, 151936), (8192, 2048, 151936), (8192, 3584, 152064))
SMALL = ((96, 32, 1009),)
OURS = Peer("sharevl grouped_logprob", "sharevl-lite", lambda: _ours)
TARGETS = {  # largest ratio to the floor, from the project's goals
    ("no grad", 8192, 2048): 1.15,
    ("no grad", 8192, 3584): 1.15,
    ("forward + backward", 2048, 2048): 1.32,
    ("forward + backward", 8192, 2048): 1.25,
    ("forward + backward", 8192, 3584): 1.18,
}
LOGPROB_LIMIT = {"ours": 5e-5, "peer": 5e-2}
"""Peers are measured at their own accuracy: beyond 0.05 nats it is an error and no rounding."""
CHECKED_ROWS = 256
CHUNKS = ((256, 8192), (320, 8192), (192, 8192), (256, 4096), (320, 1152))
"""MiB of exponentials and rows of a block that `--sweep` tries; the last holds whole rows of the vocabulary."""


@dataclass(frozen=True)
class Case:
    """One shape's inputs, and the truth about some of its rows."""

    hidden_TH: Tensor
    weight_VH: Tensor
    targets_T: Tensor
    checked: Tensor
    logprobs: Tensor
    unit: Tensor

    @property
    def name(self) -> str:
        """T, H and V."""
        tokens, width = self.hidden_TH.shape
        return f"T={tokens} H={width} V={self.weight_VH.shape[0]}"


def make_case(tokens: int, width: int, vocabulary: int, device: torch.device) -> Case:
    """Random inputs whose logits have a standard deviation of 3, with tokens sampled from them."""
    draw = torch.Generator(device).manual_seed(0)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    hidden_TH = torch.randn(tokens, width, generator=draw, device=device).to(dtype)
    weight_VH = (torch.randn(vocabulary, width, generator=draw, device=device) * 3 / width**0.5).to(dtype)
    targets = []
    for hidden_CH in hidden_TH.split(1024):
        noise_CV = torch.rand(hidden_CH.shape[0], vocabulary, generator=draw, device=device).log_().neg_().log_().neg_()
        targets.append(((hidden_CH @ weight_VH.T).float() + noise_CV).argmax(1))
    checked = torch.randperm(tokens, generator=draw, device=device)[:CHECKED_ROWS]
    targets_T = torch.cat(targets)
    logprobs, _, unit = reference_logprobs(hidden_TH[checked], weight_VH, targets_T[checked])
    return Case(hidden_TH.requires_grad_(True), weight_VH, targets_T, checked, logprobs, unit)


def _ours(hidden_TH: Tensor, weight_VH: Tensor, targets_T: Tensor) -> Tensor:
    return grouped_logprob(hidden_TH, weight_VH, targets_T).logprobs_T


def products(case: Case) -> dict[str, Callable[[], object]]:
    """The products alone."""
    hidden_TH, weight_VH = case.hidden_TH.detach(), case.weight_VH
    logits_TV = hidden_TH @ weight_VH.T
    gradient_TH = torch.empty_like(hidden_TH)

    def first() -> None:
        torch.mm(hidden_TH, weight_VH.T, out=logits_TV)

    def both() -> None:
        first()
        torch.mm(logits_TV, weight_VH, out=gradient_TH)

    return {"no grad": first, "forward + backward": both}


@torch.no_grad()
def forward(call: LogProbs, case: Case) -> Tensor:
    """Log-probs without a gradient."""
    return call(case.hidden_TH, case.weight_VH, case.targets_T)


def backward(call: LogProbs, case: Case) -> tuple[Tensor, Tensor]:
    """Log-probs and the gradient of their sum in the hidden states."""
    logprobs_T = call(case.hidden_TH, case.weight_VH, case.targets_T)
    (gradient_TH,) = torch.autograd.grad(logprobs_T.sum(), case.hidden_TH)
    return logprobs_T.detach(), gradient_TH


def backward_loss(call: GrpoLoss, case: Case, old_T: Tensor) -> Tensor:
    """The same gradient out of a policy loss: with advantages of -1 and a ratio of 1 it is the unit gradients' mean."""
    loss = call(case.hidden_TH, case.weight_VH, case.targets_T, torch.full_like(old_T, -1.0), old_T)
    (gradient_TH,) = torch.autograd.grad(loss, case.hidden_TH)
    return gradient_TH * case.hidden_TH.shape[0]


def logprob_error(logprobs_T: Tensor, case: Case) -> float:
    """Largest error of the checked rows, nats."""
    return (logprobs_T[case.checked].double() - case.logprobs).abs().max().item()


def gradient_error(gradient_TH: Tensor, case: Case) -> float:
    """Largest error of the checked rows over the largest entry."""
    return ((gradient_TH[case.checked].double() - case.unit).abs().max() / case.unit.abs().max()).item()


def rows_of(
    peer: Peer, case: Case, floor: dict[str, Callable[[], object]], gradient_limit: float, run: argparse.Namespace
) -> Iterator[Row]:
    """Both passes of one peer; a pass that fails its check has no time."""
    device, version = case.hidden_TH.device, version_of(peer)
    limit = LOGPROB_LIMIT["ours" if peer.package == OURS.package else "peer"]
    try:
        call = peer.load()
        for kind, timed, errors in _passes(peer, call, case):
            wrong = _verdict(*errors, limit, gradient_limit)
            if wrong != OK:
                yield Row(case.name, f"{peer.name}, {kind}", version, wrong, None, None, None, None, None, *errors)
                continue
            timings = measure_in_turns({"floor": floor[kind], "peer": timed}, device, run.repeats)
            timing, ratio = timings["peer"], timings["peer"].median / timings["floor"].median
            numbers = (timing.median, timing.lowest, timing.highest, ratio, peak_mib(timed, device), *errors)
            yield Row(case.name, f"{peer.name}, {kind}", version, OK, *numbers, note=_goal(peer, kind, case, ratio))
    except ImportError as error:
        yield Row(case.name, peer.name, version, f"not installed ({error})")
    except Exception as error:  # whatever a peer raises is its own row, and the others are measured
        yield Row(case.name, peer.name, version, f"failed: {_first_line(error)}")


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def _passes(
    peer: Peer, call: LogProbs | GrpoLoss, case: Case
) -> Iterator[tuple[str, Callable[[], object], tuple[float | None, float | None]]]:
    if peer.kind == "loss":
        old_T = forward(_ours, case)
        error = gradient_error(backward_loss(call, case, old_T), case)  # type: ignore[arg-type]
        yield "forward + backward", partial(backward_loss, call, case, old_T), (None, error)  # type: ignore[arg-type]
        return
    error = logprob_error(forward(call, case), case)  # type: ignore[arg-type]
    yield "no grad", partial(forward, call, case), (error, None)  # type: ignore[arg-type]
    logprobs_T, gradient_TH = backward(call, case)  # type: ignore[arg-type]
    errors = logprob_error(logprobs_T, case), gradient_error(gradient_TH, case)
    del logprobs_T, gradient_TH
    yield "forward + backward", partial(backward, call, case), errors  # type: ignore[arg-type]


def _verdict(logp: float | None, gradient: float | None, logprob_limit: float, gradient_limit: float) -> str:
    if logp is not None and not logp <= logprob_limit:
        return f"RED: log-probs off by {logp:.1e} (limit {logprob_limit:.0e})"
    if gradient is not None and not gradient <= gradient_limit:
        return f"RED: gradients off by {gradient:.1e} (limit {gradient_limit:.1e})"
    return OK


def _goal(peer: Peer, kind: str, case: Case, ratio: float) -> str:
    goal = (
        TARGETS.get((kind, *case.hidden_TH.shape)) if peer.package == OURS.package and case.weight_VH.is_cuda else None
    )
    return "" if goal is None else f"goal {goal:.2f}: {'reached' if ratio <= goal else 'MISSED'}"


def compare(case: Case, run: argparse.Namespace) -> Iterator[Row]:
    """The floor, ours and the peers on one shape. Our gradient must not be worse than plain torch's."""
    device = case.hidden_TH.device
    naive = PEERS[0].load()
    plain = gradient_error(backward(naive, case)[1], case)  # type: ignore[arg-type]
    floor = products(case)
    for kind, both in floor.items():
        ms = measure(both, device, run.repeats).median
        yield Row(case.name, f"products alone, {kind}", f"torch {torch.__version__}", OK, ms, ratio=1.0)
    yield from rows_of(OURS, case, floor, max(plain, 1e-6), run)
    for peer in PEERS if run.peers is None else (peer for peer in PEERS if peer.name in run.peers):
        if device.type == "cuda":
            torch.cuda.empty_cache()
        yield from rows_of(peer, case, floor, 5e-2, run)


def sweep(case: Case, run: argparse.Namespace) -> Iterator[Row]:
    """Tiles and chunk sizes of our own, forward + backward and without a gradient."""
    floor = products(case)
    for config in tiles():
        for mib, rows in CHUNKS:
            name = f"{config.rows}x{config.columns}x{config.width} w{config.warps} s{config.stages} g{config.group}"
            name += f"{' persistent' * config.persistent} {mib} MiB {rows} rows"
            with _settings(config, mib, rows):
                yield from rows_of(replace(OURS, name=name), case, floor, 5e-2, run)


@contextmanager
def _settings(config: ScanConfig, mib: int, rows: int) -> Iterator[None]:
    before = launch.EXPONENTIALS_BYTES, launch.ROWS, launch.choose_config
    launch.EXPONENTIALS_BYTES, launch.ROWS = mib * 1024**2, rows
    launch.choose_config = lambda *_: config
    try:
        yield
    finally:
        launch.EXPONENTIALS_BYTES, launch.ROWS, launch.choose_config = before


def tiles() -> Iterator[ScanConfig]:
    """Candidates for Hopper that fit; without entropies none of them spills (`resources.py` compiles such)."""
    yield HOPPER
    yield replace(HOPPER, stages=4)
    yield replace(HOPPER, persistent=False)
    yield replace(HOPPER, columns=128, warps=8)
    yield replace(HOPPER, columns=128, warps=4, persistent=False)
    yield replace(HOPPER, rows=256, columns=128)
    yield replace(HOPPER, group=16)


def main() -> int:
    """Prints the table and writes the CSV. Exit code 1 where our own row is red or failed."""
    parser = arguments(str(__doc__).splitlines()[0])
    parser.add_argument("--sweep", action="store_true", help="our tiles and chunk sizes instead of the peers")
    parser.add_argument("--shapes", type=int, nargs="+", metavar="N", help="some of the shapes, from 0 (default: all)")
    names = [peer.name for peer in PEERS]
    parser.add_argument(
        "--peers", nargs="*", choices=names, metavar="PEER", help=f"of {', '.join(names)}; default: all"
    )
    run = parser.parse_args()
    device = device_of(run)
    table = Report("grouped_logprob sweep" if run.sweep else "grouped_logprob", "× floor", device, run.out)
    shapes = SHAPES if device.type == "cuda" else SMALL
    for shape in shapes if run.shapes is None else (shapes[number] for number in run.shapes):
        case = make_case(*shape, device)
        table.add(sweep(case, run) if run.sweep else compare(case, run))
    return table.finish(own=OURS.name)


if __name__ == "__main__":
    sys.exit(main())
