"""Importing torch, transformers and Gradio from the command line without looking for garbage meanwhile.

Half a million objects come with these modules, and all of them stay. Python's collector looks through them again and
again while they are made, which takes a fifth of the time of a start, and later at each of its full collections.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_HEAVY = ("torch", "transformers", "gradio")


@contextmanager
def without_collecting() -> Iterator[None]:
    """Around the import of a heavy module: no garbage collection in it, and none of its objects in later ones.

    A process that has the heavy modules already, such as a notebook or a test, keeps its collector as it is.
    """
    if not gc.isenabled() or not sys.modules.keys().isdisjoint(_HEAVY):
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
