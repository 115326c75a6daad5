"""An adapter that training is to start from, judged by its configuration and the shapes in its header.

No tensor and no model is read and no torch imported: a wrong `model.lora.start_from` is told at once. What is not known
here (a model whose config.json is not on this machine, layers by a regular expression) is told when both are loaded.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sharevl_lite.checkpoints import CHECKPOINTS_DIR
from sharevl_lite.config_model import LoraSection, ModelSection
from sharevl_lite.errors import first_line
from sharevl_lite.policy.errors import PolicyError
from sharevl_lite.policy.folder import ADAPTER_CONFIG, ADAPTER_FILE, CONFIG_FILE, folder_on_disk
from sharevl_lite.run_files import ADAPTER_DIR, RECIPE_FILE

KNOB = "model.lora.start_from"
LAYER_A = re.compile(r".*\.language_model\.layers\.(\d+)\.(?:\w+\.)*(\w+)\.lora_A\.weight")
WIDTHS = {
    **dict.fromkeys(("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj"), "hidden_size"),
    "down_proj": "intermediate_size",
}
"""Which width of the text model a layer reads."""
ALL_LINEAR = "all-linear"


def check_start(section: ModelSection) -> None:
    """Raises PolicyError where `lora.start_from` cannot be what training of this model starts from."""
    if section.lora.start_from is None:
        return
    folder = adapter_folder(section.lora)
    shapes = _shapes(folder / ADAPTER_FILE)
    told = next(_faults(shapes, section), None)
    if told is not None:
        base = json.loads((folder / ADAPTER_CONFIG).read_text("utf-8")).get("base_model_name_or_path")
        made = f" It was made for {base}." if base else ""
        raise PolicyError(
            f"{KNOB}: {folder} does not fit {section.path} with this model.lora ({told}).{made} Set model.path and "
            "model.lora to what it was trained with, or start from another"
        )


def adapter_folder(lora: LoraSection) -> Path:
    """The folder of the adapter that `start_from` names: itself, or `adapter` in the run that it is.

    Raises PolicyError where there is none, or it scales its update otherwise than `lora`.
    """
    named = Path(lora.start_from or "")
    folder = named
    if not (folder / ADAPTER_FILE).is_file() and (folder / ADAPTER_DIR / ADAPTER_FILE).is_file():
        folder = folder / ADAPTER_DIR
    if not (folder / ADAPTER_FILE).is_file():
        raise PolicyError(f"{KNOB}: {_no_adapter(named)}")
    try:
        config = json.loads((folder / ADAPTER_CONFIG).read_text("utf-8"))
        rank, scale = config["r"], config["lora_alpha"] / config["r"]
    except (OSError, ValueError, KeyError, TypeError, ZeroDivisionError) as error:
        raise PolicyError(f"{KNOB}: {folder} holds no adapter ({ADAPTER_CONFIG}: {first_line(error)})") from error
    others = [name for name in ("use_rslora", "use_dora", "alpha_pattern", "rank_pattern") if config.get(name)]
    if others or scale != lora.alpha / lora.rank or rank != lora.rank:
        more = f" and {', '.join(others)}" if others else ""
        raise PolicyError(
            f"{KNOB}: {folder} has rank {rank}, alpha {config['lora_alpha']}{more}; the recipe "
            f"has rank {lora.rank} and alpha {lora.alpha:g} for all layers: set model.lora to what the adapter was "
            "trained with, or start from another"
        )
    return folder


def _no_adapter(named: Path) -> str:
    """Why what was named is none, and what to name instead."""
    if not named.exists():
        hint = "; ~ is not expanded here" if str(named).startswith("~") else ""
        return (
            f"{named}: no such folder{hint}; name a run or the folder of an adapter (`hf download ID --local-dir DIR` "
            "brings one from the Hub)"
        )
    checkpoints = sorted(named.glob(f"{CHECKPOINTS_DIR}/*/{ADAPTER_FILE}"), key=lambda file: file.stat().st_mtime)
    if (named / RECIPE_FILE).is_file() and checkpoints:
        return f"{named} holds no adapter yet, for the run has not ended; name its checkpoint {checkpoints[-1].parent}"
    return f"{named} holds no adapter (no {ADAPTER_FILE} in it); name a run that has ended, or the folder of an adapter"


def _shapes(file: Path) -> dict[str, list[int]]:
    """Shapes by name, from the header alone. Raises PolicyError where it is damaged."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(file), "numpy") as tensors:
            return {name: tensors.get_slice(name).get_shape() for name in tensors.keys()}  # noqa: SIM118 (no mapping)
    except (SafetensorError, OSError) as error:
        raise PolicyError(f"{KNOB}: {file} is damaged ({error}); copy it again, or start from another") from error


def _faults(shapes: dict[str, list[int]], section: ModelSection) -> Iterator[str]:
    """What cannot be right about these tensors, in words."""
    found = [(name, LAYER_A.fullmatch(name)) for name in shapes]
    layers = [(int(match[1]), match[2], shapes[name]) for name, match in found if match]
    wanted = section.lora.target_modules
    if isinstance(wanted, list):
        endings = {ending.rpartition(".")[2] for ending in wanted}
        adapted = {kind for _, kind, _ in layers}
        if endings != adapted:
            yield (
                f"it adapts {', '.join(sorted(adapted)) or 'no layer of a text model'}; model.lora.target_modules "
                f"{', '.join(sorted(endings))}"
            )
    text = _text_config(section.path)
    for _, kind, shape in layers:
        expected = text.get(WIDTHS.get(kind, ""))
        if expected is not None and shape[-1:] != [expected]:
            yield f"its {kind} reads a width of {shape[-1]:,}, the model's {expected:,}"
    depth, expected = max((number for number, _, _ in layers), default=-1) + 1, text.get("num_hidden_layers")
    everywhere = wanted == ALL_LINEAR or (isinstance(wanted, list) and not re.search(r"\d", "".join(wanted)))
    if expected is not None and (depth > expected or (everywhere and depth != expected)):
        yield f"it is for {depth} layers of a text model, and the model has {expected}"


def _text_config(path: str) -> dict[str, Any]:
    """What the model's config.json says of its text model; nothing where that is not on this machine."""
    folder = folder_on_disk(path)
    if folder is None:
        return {}
    try:
        config = json.loads((folder / CONFIG_FILE).read_text("utf-8"))
        return dict(config.get("text_config", config))  # older files of the Hub have them at the top
    except (OSError, ValueError, TypeError, AttributeError):
        return {}  # told when the model is loaded
