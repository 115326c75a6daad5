"""Processes that train together stop together: where one fails, the others learn of it instead of waiting for it."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from typing import Any, TypeVar, cast

from sharevl_lite.errors import ToldError, UserError

T = TypeVar("T")
LEFT_TO_MAIN_SECONDS = 60.0

logger = logging.getLogger(__name__)


def is_main_process() -> bool:
    """Whether this is the process that writes and speaks for all, by the RANK that torchrun sets; needs no torch."""
    return process() == 0


def process() -> int:
    """This process's number, by torchrun's RANK."""
    return int(os.environ.get("RANK", "0"))


def leave_word_to_main_process() -> None:
    """Before a mistake is told: what the main process meets as well it tells itself, and a launcher then ends this one.

    Where nobody ended this process meanwhile, it met the mistake alone.
    """
    if not is_main_process():
        time.sleep(LEFT_TO_MAIN_SECONDS)


class Stopped(UserError):
    """An interrupt ended work that a run can do again: in all processes, at the same place."""

    WORDS = "interrupted"

    def __init__(self) -> None:
        super().__init__(self.WORDS)


def in_all(work: Callable[[], T], gather: Callable[[Any], list[Any]], process: int) -> T:
    """What `work`, which all processes do at the same place, gives in this one, number `process`.

    `gather` gives a value of every process, in order. Raises the UserError of `work`; of several processes ToldError in
    all of them, after the first of those in which it failed has logged why, or Stopped where one was interrupted.
    """
    made, failure = None, None
    try:
        made = work()
    except UserError as error:
        failure = error
    told = gather(None if failure is None else str(failure))
    failed = [number for number, text in enumerate(told) if text not in (None, Stopped.WORDS)]
    if failed and len(told) > 1:
        words = f"process {failed[0]}: {told[failed[0]]}"
        if failed[0] == process:
            logger.error("%s", words)
        raise ToldError(words) from failure
    if Stopped.WORDS in told:
        raise Stopped from failure
    if failure is not None:
        raise failure
    return cast(T, made)
