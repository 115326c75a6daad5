"""What a path that should be a model is, from the names in it: nothing is read, and the Hub is not asked."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from sharevl_lite.policy.errors import PolicyError

BUILTIN_PREFIX = "builtin:"
BUILTIN_MODELS = {"digits-vl": "assets/digits-vl"}
CONFIG_FILE, ADAPTER_CONFIG, RUN_RECIPE = "config.json", "adapter_config.json", "recipe.yaml"
ADAPTER_FILE = "adapter_model.safetensors"


def resolve_model_path(path: str) -> str:
    """Folder of a built-in model, or `path` as it is. Raises PolicyError for an unknown built-in."""
    if not path.startswith(BUILTIN_PREFIX):
        return path
    name = path.removeprefix(BUILTIN_PREFIX)
    if name not in BUILTIN_MODELS:
        known = ", ".join(BUILTIN_PREFIX + n for n in BUILTIN_MODELS)
        raise PolicyError(f"model.path: there is no {path!r}; built in: {known}")
    return str(files("sharevl_lite").joinpath(BUILTIN_MODELS[name]))


def check_folder(path: str) -> None:
    """Raises PolicyError where `path` is a file, a folder without a model, or meant as a folder that is not there."""
    folder = Path(path)
    if is_missing(path):
        hint = "; ~ is not expanded here" if path.startswith("~") else ""
        raise PolicyError(
            f"model.path: cannot load {path!r} (no such folder{hint}); give a local folder, a Hub id you can reach, or "
            "builtin:digits-vl"
        )
    if not folder.exists() or (folder / CONFIG_FILE).is_file():
        return
    run = folder.parent if folder.name == "adapter" else folder
    export = f"export it (sharevl-lite export {run} --to DIR) and name DIR"
    if (folder / RUN_RECIPE).is_file():
        what = f"a run, not a model); {export}, or train on from it with model.lora.start_from: {path}"
    elif (folder / ADAPTER_CONFIG).is_file():
        merged = export if (run / RUN_RECIPE).is_file() else "merge it with its model and name that"
        what = f"an adapter, not a model); {merged}, or train on from it with model.lora.start_from: {path}"
    elif folder.is_dir():
        what = f"a folder without {CONFIG_FILE}); give the folder of a model as transformers saves it, or a Hub id"
    else:
        what = "a file); give the folder of a model as transformers saves it, or a Hub id"
    raise PolicyError(f"model.path: cannot load {path!r} (it is {what}")


def is_missing(path: str) -> bool:
    """Whether `path` is meant as a folder and is not there: `./x`, `~/x`, `/x`, or `runs/x` beside a folder `runs`.

    A folder of models may have the name of an organisation of the Hub, and hold some of its models.
    """
    if Path(path).exists():
        return False
    first = Path(path).parts[0] if path else path
    if path.startswith((".", "~", "/")) or path.count("/") > 1:
        return True
    return "/" in path and Path(first).is_dir() and not any(Path(first).glob(f"*/{CONFIG_FILE}"))
