"""The tokenizer of a run, from what lies on this machine: nothing is downloaded, and no weights are read.

Looked for in the run's folder, where training keeps it, in the model's folder, and in the Hub's local cache.
"""

from __future__ import annotations

from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from sharevl_explorer.recipe_file import recipe_of
from sharevl_lite.run_files import RECIPE_FILE, TOKENIZER_FILE


def tokenizer_of(run: Path) -> tuple[Any, str | None]:
    """The tokenizer of a run's model and None, or None and why there is none."""
    try:
        found, looked = _find(run)
        if found is None:
            return None, f"no {TOKENIZER_FILE} in {looked}"
        return _read(str(found), found.stat().st_mtime_ns), None
    except Exception as error:  # the library raises its own bare Exception; the page shows numbers and why
        return None, f"the tokenizer cannot be read ({type(error).__name__}: {str(error)[:200]})"


def _find(run: Path) -> tuple[Path | None, str]:
    """The file, and where it was looked for, in words."""
    if (run / TOKENIZER_FILE).is_file():
        return run / TOKENIZER_FILE, str(run)
    recipe = recipe_of(run)
    if recipe is None:
        return None, f"{run}, and no {RECIPE_FILE} that names its model"
    model = str(recipe["model"]["path"])
    if model.startswith("builtin:"):
        folder = Path(str(files("sharevl_lite"))) / "assets" / model.removeprefix("builtin:")
    else:
        folder = Path(model)
    if (folder / TOKENIZER_FILE).is_file():
        return folder / TOKENIZER_FILE, str(folder)
    if folder.is_dir() or model.startswith("builtin:"):
        return None, f"{run} or {folder}"
    brings = f"hf download {model} {TOKENIZER_FILE} brings it"
    return _cached(model), f"{run}, and {model} is no folder here and not in the Hub's local cache; {brings}"


def _cached(model: str) -> Path | None:
    """The file in the Hub's local cache, if `model` is a Hub id whose file is there."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(model, TOKENIZER_FILE)
    except HFValidationError:  # a path of another machine
        return None
    return Path(found) if isinstance(found, str) else None


@lru_cache(maxsize=4)
def _read(path: str, written: int) -> Any:
    """The file as it was written at that time: one that was replaced is read again."""
    from tokenizers import Tokenizer

    return Tokenizer.from_file(path)
