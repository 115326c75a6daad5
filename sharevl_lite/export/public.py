"""What of the values of this machine may go out into the world, in a model card."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePath
from typing import Any


def public(value: Any, key: str = "") -> Any:
    """Of folders of this machine the last part, of servers nothing."""
    if isinstance(value, Mapping):
        return {name: public(inner, name) for name, inner in value.items()}
    if isinstance(value, list):
        return [] if key == "server_urls" else [public(inner) for inner in value]
    if isinstance(value, str) and (PurePath(value).is_absolute() or value.startswith("~")):
        return PurePath(value).name
    return value
