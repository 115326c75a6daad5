"""The verifier process: `python -P -m sharevl_lite.rewards.worker`, started by `VerifierPool`.

One JSON document per line. In: `[extracted, gold, tolerance, seconds]`. Out: once `{"ready": true}` or
`{"broken": reason}`, then for each line in, `{"correct": …, "rule": …}` or `{"failure": reason}`.

A verifier must not outlive the run it works for, whatever happens to either:

* idle, it reads the end of its input when the parent is gone, even by `kill -9`;
* at work, a thread notices that the process has another parent;
* inside C code that never lets that thread run (an integer power with a billion digits), the kernel's alarm ends it.
"""

from __future__ import annotations

import contextlib
import gc
import json
import logging
import os
import resource
import signal
import sys
import threading
import time
from typing import IO, Any

_MAX_MEMORY = 4 * 2**30  # bytes of address space; an expression that explodes fails here and not in the trainer
_PARENT_CHECK_SECONDS = 0.5
_MAX_REASON = 500  # characters of an error message; sympy likes to print the whole expression


def main() -> None:
    """Serve until the input ends."""
    threading.Thread(target=_exit_when_orphaned, args=(os.getppid(),), daemon=True).start()
    replies = _take_stdout()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    with contextlib.suppress(ValueError, OSError):  # a lower limit is set already
        resource.setrlimit(resource.RLIMIT_AS, (_MAX_MEMORY, _MAX_MEMORY))
    try:
        _warm_up()
    except Exception as error:
        _send(replies, {"broken": _describe(error)})
        return
    _send(replies, {"ready": True})
    for line in sys.stdin.buffer:
        extracted, gold, tolerance, seconds = json.loads(line)
        signal.setitimer(signal.ITIMER_REAL, seconds)
        reply = _answer(extracted, gold, tolerance)
        signal.setitimer(signal.ITIMER_REAL, 0)
        _send(replies, reply)


def _answer(extracted: str, gold: str, tolerance: float) -> dict[str, Any]:
    from sharevl_lite.rewards.verifier import judge

    try:
        verdict = judge(extracted, gold, tolerance)
    except BaseException as error:  # graders raise BaseException subclasses too, and each is a failure of one item
        return {"failure": _describe(error)}
    return {"correct": verdict.correct, "rule": verdict.rule}


def _warm_up() -> None:
    """Import the graders and fill their caches of regular expressions, so that no item's time-out pays for it.

    All of that stays: looking through it for garbage meanwhile would take a seventh of the start.
    """
    gc.disable()
    from sharevl_lite.rewards.verifier import judge

    logging.getLogger("math_verify").setLevel(
        logging.ERROR
    )  # it warns that its time-outs are off; they are meant to be
    if not judge(r"\sqrt{8}+x", r"x+2\sqrt{2}").correct or judge(r"\sqrt{2}+x", "x+1.5").correct:
        raise RuntimeError(
            "the graders misjudge a known answer; are math-verify and mathruler the versions of the project?"
        )
    gc.freeze()
    gc.enable()


def _take_stdout() -> IO[bytes]:
    """A private copy of standard output; whatever a library prints goes to standard error instead."""
    replies = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)
    return replies


def _send(replies: IO[bytes], message: dict[str, Any]) -> None:
    with contextlib.suppress(BrokenPipeError):  # the parent is gone, and the end of the input says so next
        replies.write(json.dumps(message).encode() + b"\n")


def _exit_when_orphaned(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_PARENT_CHECK_SECONDS)
    os._exit(1)


def _describe(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"[:_MAX_REASON]


if __name__ == "__main__":
    main()
