"""sharevl-lite: Share-GRPO (arXiv 2505.16673) for vision-language models on one workstation.

    recipe = sharevl_lite.load_recipe("configs/digits_cpu.yaml", ["--train.rollouts", "10"])
    result = sharevl_lite.train(recipe)
    table = sharevl_lite.store.read(result.run_dir)

Importing the package imports nothing heavy; the parts come when they are used.
"""

from __future__ import annotations

import importlib
import logging
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sharevl_lite import metrics_log, rewards, share, store
    from sharevl_lite.config import Recipe
    from sharevl_lite.errors import UserError
    from sharevl_lite.recipes import RecipeError, load_recipe
    from sharevl_lite.run import RunResult, train

__version__ = "0.1.0"

__all__ = [
    "Recipe",
    "RecipeError",
    "RunResult",
    "UserError",
    "load_recipe",
    "metrics_log",
    "rewards",
    "share",
    "store",
    "train",
]

# Imported by PEFT, it says at every start on some CPUs that it found no other kernel for 4 bits on the Hub.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)

_MODULES = frozenset({"metrics_log", "rewards", "share", "store"})
_NAMES = {
    "Recipe": "config",
    "RecipeError": "recipes",
    "RunResult": "run",
    "UserError": "errors",
    "load_recipe": "recipes",
    "train": "run",
}


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"{__name__}.{name}")
    if name in _NAMES:
        return getattr(importlib.import_module(f"{__name__}.{_NAMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
