"""The recipe that lies in a run's folder, as plain data."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from sharevl_lite.run_files import RECIPE_FILE


def recipe_of(run: Path) -> Any:
    """What the run's recipe says; None where the folder has none. Raises OSError and YAMLError as reading it does."""
    path = run / RECIPE_FILE
    return _read(str(path), path.stat().st_mtime_ns) if path.is_file() else None


def local_alone(run: Path) -> bool:
    """Whether the run trains by the local level of the advantage alone; not if its recipe cannot tell."""
    try:
        return bool(recipe_of(run)["share"]["levels"] == "local")
    except (KeyError, OSError, TypeError, ValueError, yaml.YAMLError):  # the file may be anyone's, or not there
        return False


@lru_cache(maxsize=4)
def _read(path: str, written: int) -> Any:
    """The file as it was written at that time: one that was replaced is read again."""
    return yaml.safe_load(Path(path).read_text(encoding="utf-8"))
