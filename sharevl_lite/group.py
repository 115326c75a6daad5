"""The group of processes that train together: made before anything is loaded, as patient as the recipe is."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

from sharevl_lite.config import Recipe
from sharevl_lite.errors import first_line
from sharevl_lite.signals import unhandled
from sharevl_lite.together import in_all, is_main_process, process

T = TypeVar("T")

LEAST = timedelta(hours=6)
"""A process waits so long for the slowest one: for its rewards, its rollout, or an evaluation of its own part."""
MARGIN = timedelta(hours=1)
LOST = ("gloo/transport", "Connection closed by peer", "Connection reset by peer", "NCCL error")
"""Words of collectives that failed."""


def patience(recipe: Recipe) -> timedelta:
    """How long processes wait for each other: longer than one of them waits for a server."""
    rollout = recipe.rollout
    if rollout.engine != "server":
        return LEAST
    return max(LEAST, timedelta(seconds=(rollout.server_retries + 1) * rollout.server_timeout_seconds) + MARGIN)


def world() -> int:
    """How many processes a launcher started."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def join(recipe: Recipe) -> None:
    """Makes the group, where a launcher started several processes; transformers gives one of CPUs no time-out, and vLLM
    would make another."""
    if world() == 1:
        return
    import torch
    from accelerate import PartialState
    from accelerate.utils import parse_flag_from_env

    on_cpu = not torch.cuda.is_available() or bool(parse_flag_from_env("ACCELERATE_USE_CPU"))
    with unhandled():  # it waits where no handler of Python runs, also for a process that is gone
        PartialState(cpu=on_cpu, timeout=patience(recipe))


def gather(value: Any) -> list[Any]:
    """The value of every process of the group, in order."""
    if world() == 1:
        return [value]
    from accelerate.utils import gather_object

    gathered: list[Any] = gather_object([value])
    return gathered


def in_all_processes(work: Callable[[], T]) -> T:
    """What `work` gives in this process of the group, where it fails in none; see :mod:`sharevl_lite.together`."""
    return in_all(work, gather, process())


def from_main(make: Callable[[], T]) -> T:
    """What the main process makes, in all; where it raises a UserError, all stop."""
    made: list[T] = gather(in_all_processes(lambda: make() if is_main_process() else None))
    return made[0]


def has_lost_one(error: BaseException) -> bool:
    """Whether a collective failed, which is so where another process died or hangs; gloo has no class of errors."""
    import torch.distributed

    known = torch.distributed.is_available() and isinstance(error, torch.distributed.DistError)
    return known or (isinstance(error, RuntimeError) and any(words in str(error) for words in LOST))


def words_on_loss(error: BaseException) -> str:
    """The same, told, with the first sentence of what the library says behind the place in its source."""
    said = re.sub(r"^\[\S+\] ", "", first_line(error)).partition(". ")[0]
    return f"another process died or hangs, its own output says why ({said})"
