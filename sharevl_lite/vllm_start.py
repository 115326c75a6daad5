"""What vLLM needs of a process in order to start in it, and what the process keeps."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Iterator
from typing import Any

ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # a second process could neither share the memory nor end with this one
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",  # the run has a display of its own
}
"""What it reads while it is imported; what the user has set stays."""


def set_environment() -> None:
    """Sets :data:`ENVIRONMENT`; before vLLM is imported."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)


def whole_prompts(longest: int) -> dict[str, Any]:
    """vLLM's settings for prompts that are read whole, of sequences of up to `longest` tokens.

    A prompt read in pieces winds its request's random numbers back, which vLLM 0.31 cannot do on a CPU.
    """
    return {"enable_chunked_prefill": False, "max_num_batched_tokens": max(4096, longest)}


@contextlib.contextmanager
def starting_vllm() -> Iterator[None]:
    """Around the making of a `vllm.LLM`.

    - Unsloth switches the compiler's runtime asserts off for the whole process. Graphs then keep sizes as nodes, which
      vLLM 0.25 cannot split: it would not start beside Unsloth.
    - vLLM asks for the number of standard output's file, which a notebook's or a test's has not always.
    - On a GPU vLLM 0.31 leaves torch a single thread for good, and prompts are encoded in this process:
      :func:`threads_of_vllm` is for sampling alone.
    """
    import torch._dynamo

    before = torch.get_num_threads()
    with contextlib.ExitStack() as stack:
        stack.callback(_take_threads_back, before)
        stack.enter_context(torch._dynamo.config.patch(do_not_emit_runtime_asserts=False))
        if not _is_file(sys.stdout):
            real = sys.__stdout__ if _is_file(sys.__stdout__) else stack.enter_context(open(os.devnull, "w"))
            stack.enter_context(contextlib.redirect_stdout(real))
        yield


@contextlib.contextmanager
def threads_of_vllm() -> Iterator[None]:
    """Inside, torch has as many threads as when vLLM had started: what it compiled looks whether it does."""
    import torch

    before = torch.get_num_threads()
    if _threads:
        torch.set_num_threads(_threads[-1])
    try:
        yield
    finally:
        if _threads:
            torch.set_num_threads(before)


_threads: list[int] = []
"""What the engine that started last left torch, where that was not what torch had."""


def _take_threads_back(before: int) -> None:
    import torch

    left = torch.get_num_threads()
    # Its CPU build binds its threads to cores, and lets nobody set their number afterwards.
    _threads[:] = [left] if left != before and torch.cuda.is_available() else []
    if _threads:
        torch.set_num_threads(before)


def _is_file(stream: object) -> bool:
    try:
        return stream is not None and stream.fileno() >= 0  # type: ignore[attr-defined]
    except (AttributeError, io.UnsupportedOperation):
        return False
