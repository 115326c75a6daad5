"""What of the values of this machine may go out into the world, in a model card."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

from sharevl_lite.data.sources import has_splits

PLACES = frozenset({"path", "train", "eval", "start_from", "output_dir", "server_adapter_dir", "server_model"})
"""Keys of a recipe whose texts may be folders and files."""
PLACES_OF_EVALUATIONS = frozenset({"target", "model", "adapter", "data"})
"""Those of an evaluation's protocol."""


def public(value: Any, key: str = "") -> Any:
    """A value under that key of a recipe or a protocol, without folders and servers of this machine.

    Of a path that is absolute or leaves the current folder the last part is kept, of servers nothing. Any other text is
    as it is, whatever it begins with.
    """
    if isinstance(value, Mapping):
        return {name: public(inner, name) for name, inner in value.items()}
    if isinstance(value, list):
        return [] if key == "server_urls" else [public(inner) for inner in value]
    if isinstance(value, str) and key in PLACES | PLACES_OF_EVALUATIONS:
        return _public_path(value)
    return value


def named(source: str, split: str) -> str:
    """A source of problems in Markdown, with its split; a single file is taken whole and has none."""
    return f"`{_public_path(source)}`" + (f", split `{split}`" if has_splits(source) else "")


def _public_path(path: str) -> str:
    leaves = PurePath(path).is_absolute() or path.startswith("~") or os.path.normpath(path).split(os.sep)[0] == ".."
    return PurePath(path).name if leaves else path
