"""The recipe that lies in a run's folder, as plain data."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

from sharevl_lite.run_files import RECIPE_FILE


def recipe_of(run: Path) -> Any:
    """What the run's recipe says; None where the folder has none. Raises OSError and YAMLError as reading it does."""
    path = run / RECIPE_FILE
    return _read(str(path), path.stat().st_mtime_ns) if path.is_file() else None


def shares_rewards(run: Path) -> bool:
    """Whether the run's advantages have the level that variants share; taken for granted where no recipe says it."""
    import yaml

    try:
        recipe = recipe_of(run)
        return bool(recipe is None or recipe["share"]["levels"] != "local")
    except (OSError, UnicodeDecodeError, yaml.YAMLError, KeyError, TypeError):
        return True


@lru_cache(maxsize=4)
def _read(path: str, written: int) -> Any:
    """The file as it was written at that time: one that was replaced is read again."""
    import yaml

    return yaml.safe_load(Path(path).read_text(encoding="utf-8"))
