"""What a path that should be a model is, from the names in it: nothing is read, and the Hub is not asked."""

from __future__ import annotations

import difflib
import re
from importlib.resources import files
from pathlib import Path

from sharevl_lite.checkpoints import CHECKPOINTS_DIR
from sharevl_lite.policy.errors import PolicyError
from sharevl_lite.run_files import ADAPTER_DIR, DATA_FILE, METRICS_FILE, RECIPE_FILE

BUILTIN_PREFIX = "builtin:"
BUILTIN_MODELS = {"digits-vl": "assets/digits-vl"}
CONFIG_FILE = "config.json"
"""Of a model, as transformers saves it."""
ADAPTER_CONFIG, ADAPTER_FILE = "adapter_config.json", "adapter_model.safetensors"
"""Of an adapter, as PEFT saves it."""
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
"""With an organisation or without."""
RUNS = "runs"
"""Where training writes by default."""
OF_RUNS = (ADAPTER_DIR, CHECKPOINTS_DIR, DATA_FILE, METRICS_FILE, "rollouts")
"""What a run's folder holds beside its recipe, any of it: a recipe alone is somebody's own."""
RULE = (
    "What is here is taken as it is; ./x, ~/x, /x, a/b/c, names under runs/ or beside runs, and names of runs in runs/ "
    "are paths; any other name is a Hub id"
)


def resolve_model_path(path: str) -> str:
    """Folder of a built-in model, or `path` as it is. Raises PolicyError for an unknown built-in."""
    if not path.startswith(BUILTIN_PREFIX):
        return path
    name = path.removeprefix(BUILTIN_PREFIX)
    if name not in BUILTIN_MODELS:
        known = ", ".join(BUILTIN_PREFIX + n for n in BUILTIN_MODELS)
        raise PolicyError(f"model.path: there is no {path!r}; built in: {known}")
    return str(files("sharevl_lite").joinpath(BUILTIN_MODELS[name]))


def folder_on_disk(path: str) -> Path | None:
    """The folder of a model as in `model.path`: its own, or the snapshot in the Hub's cache here; None without either.

    Raises PolicyError for an unknown built-in.
    """
    folder = Path(resolve_model_path(path))
    if folder.is_dir():
        return folder
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(path, CONFIG_FILE)
    except HFValidationError:  # a path of another machine
        return None
    return Path(found).parent if isinstance(found, str) else None


def check_folder(path: str) -> None:
    """Raises PolicyError where `path` is a file, a folder without a model, or meant as a folder that is not there."""
    folder = Path(path)
    if is_missing(path):
        hint = "; ~ is not expanded here" if path.startswith("~") else ""
        raise PolicyError(
            f"model.path: cannot load {path!r} (no such folder{hint}){near(path)}; give a local folder, a Hub id you "
            f"can reach, or builtin:digits-vl. {RULE}"
        )
    if not folder.exists() or (folder / CONFIG_FILE).is_file():
        return
    run = folder.parent if folder.name == ADAPTER_DIR else folder
    export = f"export it (sharevl-lite export {run} --to DIR) and name DIR"
    if (folder / RECIPE_FILE).is_file():
        what = f"a run, not a model); {export}, or train on from it with model.lora.start_from: {path}"
    elif (folder / ADAPTER_CONFIG).is_file():
        merged = export if (run / RECIPE_FILE).is_file() else "merge it with its model and name that"
        what = f"an adapter, not a model); {merged}, or train on from it with model.lora.start_from: {path}"
    elif folder.is_dir():
        what = f"a folder without {CONFIG_FILE}); give the folder of a model as transformers saves it, or a Hub id"
    else:
        what = "a file); give the folder of a model as transformers saves it, or a Hub id"
    raise PolicyError(f"model.path: cannot load {path!r} (it is {what}")


def is_missing(path: str) -> bool:
    """Whether `path` is meant as a folder and is not there, by `RULE`.

    A folder may have the name of an organisation of the Hub: `Qwen/x` beside a folder `Qwen` is an id, unless that
    holds runs. So is a bare name, unless it is that of a run or stands where runs lie: a mistyped run is told at once,
    and not looked for on the Hub.
    """
    if Path(path).exists():
        return False
    if path.startswith((".", "~", "/")) or not HUB_ID.fullmatch(path):
        return True
    parent = Path(path).parent
    return parent.name == RUNS or Path(RUNS, path).is_dir() or _is_run(parent) or any(map(_is_run, _folders_of(parent)))


def near(path: str) -> str:
    """Words on what is here under a name like that, and may have been meant; empty where nothing is."""
    here = Path(path)
    if Path(RUNS, path).is_dir():
        return f"; did you mean {Path(RUNS, path)}?"
    known = difflib.get_close_matches(here.name, [folder.name for folder in _folders_of(here.parent)], n=1)
    return f"; did you mean {here.with_name(known[0])}?" if known else ""


def _folders_of(parent: Path) -> list[Path]:
    try:
        return sorted(folder for folder in parent.iterdir() if folder.is_dir())
    except OSError:  # not there, or not ours
        return []


def _is_run(folder: Path) -> bool:
    return (folder / RECIPE_FILE).is_file() and any((folder / name).exists() for name in OF_RUNS)
