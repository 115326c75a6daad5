"""Verification of many answers at once, each within a time-out that holds whatever the grader is stuck in.

Python cannot interrupt a thread, and a signal handler does not run while C code multiplies two huge integers; a process
can always be killed. So every item is verified in a worker process, and one that takes too long is killed, with its
process; the others go on, and a new process takes its place.

An item is an answer and one gold. Where a problem accepts several answers, the time-out holds for each of them: the
process that is killed over one cannot go on to the next. A gold is looked at only where none before it accepted.
"""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Sequence
from multiprocessing.connection import wait
from types import TracebackType
from typing import Self

from sharevl_lite.rewards.formatting import extract_boxed
from sharevl_lite.rewards.process import WorkerProcess
from sharevl_lite.rewards.verifier import Gold, Verdict, VerifierFailure, by_any, golds_of

_START_SECONDS = 120.0  # importing sympy takes a third of a second; from a cold network disk, a minute
_MAX_FAILED_STARTS = 3
_DYING_SECONDS = 1.0  # a process closes its pipes a moment before it is gone
_DIED = "the verifier process died"

Task = tuple[str, str]
"""(extracted answer, gold): the whole input of a verification, so equal tasks are done once."""


class VerifierStartError(RuntimeError):
    """Verifier processes do not start; no answer can be verified."""


class VerifierPool:
    """`workers` verifier processes, started on first use, ended by `close`, at exit, or when this process dies.

    Args:
        workers: most processes at a time.
        timeout_seconds: longest verification of one item. The start of a process does not count.
        tolerance: a number may be off by this share of a gold number.
    """

    def __init__(self, workers: int, timeout_seconds: float, tolerance: float = 0.0) -> None:
        if workers < 1 or not timeout_seconds > 0:
            raise ValueError(f"a pool needs workers >= 1 and timeout_seconds > 0, not {workers} and {timeout_seconds}")
        self._count = workers
        self._timeout = timeout_seconds
        self._tolerance = tolerance
        self._workers: list[WorkerProcess] = []
        self._failed_starts = 0
        self._lock = threading.Lock()
        self._owner = os.getpid()
        weakref.finalize(self, _kill_all, self._workers, self._owner)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def pids(self) -> list[int]:
        """Ids of the processes that are running."""
        return [worker.pid for worker in self._workers if worker.is_alive()]

    def close(self) -> None:
        """End the processes. The pool stays usable: the next call starts new ones."""
        with self._lock:
            _kill_all(self._workers, self._owner)

    def verify_many(self, predictions: Sequence[str], golds: Sequence[Gold]) -> list[Verdict | VerifierFailure]:
        r"""Verify each response against its gold answer, or against its accepted ones as `by_any` says; in order.

        Returns:
            A `Verdict`, or a `VerifierFailure` where the time-out passed, the process died or the grader crashed.

        Raises:
            ValueError: the sequences differ in length, or a response has no gold answer.
            VerifierStartError: processes do not start.
            RuntimeError: called in a forked child, where the processes are the parent's.
        """
        if os.getpid() != self._owner:
            raise RuntimeError(
                "this VerifierPool belongs to the parent process; make one in each process that verifies"
            )
        if len(predictions) != len(golds):
            raise ValueError(f"{len(predictions)} predictions but {len(golds)} gold answers; give one for each")
        accepted = [golds_of(gold) for gold in golds]
        if () in accepted:
            raise ValueError(f"response {accepted.index(())} (from 0) has no gold answer; give at least one")
        items = [(extract_boxed(text), row) for text, row in zip(predictions, accepted, strict=True)]
        with self._lock:
            try:
                done = self._turn_by_turn([(box, row) for box, row in items if box is not None])
            except BaseException:
                _kill_all(self._workers, self._owner)  # replies still to come would be taken for the next call's
                raise
        return [
            Verdict(False, "no_box", None)
            if box is None
            else by_any([done[box, gold] for gold in row if (box, gold) in done])
            for box, row in items
        ]

    def _turn_by_turn(self, items: list[tuple[str, tuple[str, ...]]]) -> dict[Task, Verdict | VerifierFailure]:
        """Outcomes of each answer with its golds up to the first that accepts; first golds first, then the second."""
        done: dict[Task, Verdict | VerifierFailure] = {}
        turn = 0
        while items:
            tasks = dict.fromkeys((box, row[turn]) for box, row in items)
            done |= self._work_off(deque(task for task in tasks if task not in done))
            turn += 1
            items = [(box, row) for box, row in items if turn < len(row) and not _accepts(done[box, row[turn - 1]])]
        return done

    def _work_off(self, waiting: deque[Task]) -> dict[Task, Verdict | VerifierFailure]:
        done: dict[Task, Verdict | VerifierFailure] = {}
        total = len(waiting)
        while len(done) < total:
            self._hire(total - len(done))
            self._hand_out(waiting)
            busy = [worker for worker in self._workers if worker.task is not None or not worker.ready]
            patience = min((worker.deadline for worker in busy), default=time.monotonic()) - time.monotonic()
            readable = wait([worker.fileno() for worker in busy], max(0.0, patience))
            for worker in busy:
                if worker.fileno() in readable:
                    self._collect(worker, done)
                elif time.monotonic() >= worker.deadline:
                    limit = _START_SECONDS if worker.task is None else self._timeout
                    self._lose(worker, f"timeout after {limit:g} s", done)
        return done

    def _hire(self, wanted: int) -> None:
        """Replace workers that died while idle, and start new ones up to what the work is worth."""
        for worker in [worker for worker in self._workers if worker.ready and worker.task is None]:
            if not worker.is_alive():
                worker.kill()
                self._workers.remove(worker)
        while len(self._workers) < min(self._count, wanted):
            self._workers.append(WorkerProcess(_START_SECONDS))

    def _hand_out(self, waiting: deque[Task]) -> None:
        for worker in self._workers:
            idle = worker.ready and worker.task is None
            if waiting and idle and worker.give(waiting[0], self._timeout, self._tolerance):
                waiting.popleft()

    def _collect(self, worker: WorkerProcess, done: dict[Task, Verdict | VerifierFailure]) -> None:
        """Take what a worker has sent: that it is ready, that it cannot start, a reply, or its end."""
        replies = worker.read()
        if replies is None:
            self._lose(worker, _DIED, done)
            return
        for reply in replies:
            if "broken" in reply:
                self._lose(worker, reply["broken"], done)
            elif "ready" in reply:
                worker.ready, self._failed_starts = True, 0
            elif worker.task is not None:
                done[worker.task] = (
                    VerifierFailure(reply["failure"])
                    if "failure" in reply
                    else Verdict(reply["correct"], reply["rule"], worker.task[0])
                )
                worker.task = None

    def _lose(self, worker: WorkerProcess, reason: str, done: dict[Task, Verdict | VerifierFailure]) -> None:
        """Kill a worker that is stuck or gone and book the item it had; it is replaced when there is work left."""
        self._workers.remove(worker)
        ending = worker.kill(_DYING_SECONDS if reason == _DIED else 0.0)
        if reason == _DIED:
            reason = f"{reason} ({ending})"
        if worker.task is not None:
            done[worker.task] = VerifierFailure(reason)
            return
        self._failed_starts += 1
        if self._failed_starts >= _MAX_FAILED_STARTS:
            raise VerifierStartError(
                f"{self._failed_starts} verifier processes in a row did not start; the last one: {reason}. "
                "Run `python -m sharevl_lite.rewards.worker` by hand to see why"
            )


def _accepts(outcome: Verdict | VerifierFailure) -> bool:
    return isinstance(outcome, Verdict) and outcome.correct


def _kill_all(workers: list[WorkerProcess], owner: int) -> None:
    if os.getpid() != owner:
        return  # a forked child got a copy of the pool; the processes are its parent's
    while workers:
        workers.pop().kill()
