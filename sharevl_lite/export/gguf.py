"""GGUF files for llama.cpp, through its own converter, from an export that was merged and verified.

Looked for in `$LLAMA_CPP_DIR` and on the PATH. It runs in this Python and needs the packages `gguf`, which its own
folder has, and `sentencepiece`. Two runs give two files: the language model, and with `--mmproj` the vision tower. What
is verified afterwards is that both are whole GGUF files with as many tensors as they announce and, where `gguf` can be
imported, that every adapted weight in the language model is the merged one up to the rounding of the type it was
converted to. What llama.cpp computes with them is not verified.
"""

from __future__ import annotations

import os
import re
import shutil
import struct
import subprocess
import sys
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from sharevl_lite.export.base import read_tensor, stored_tensors
from sharevl_lite.export.errors import ExportError

CONVERTER = "convert_hf_to_gguf.py"
ROUNDING = {"F32": 1e-6, "BF16": 2**-8, "F16": 2**-10, "Q8_0": 2**-6}
"""Largest error of a converted weight, by its type in the file, in units of the largest weight of its row."""
WIDTHS = {"auto": 1.0, "f32": 2.0, "f16": 1.0, "bf16": 1.0, "q8_0": 0.6}
"""Size of the files in units of the 16-bit weights', at most."""
HEADER = struct.Struct("<4sIQQ")


def find_converter() -> Path:
    """The script. Raises ExportError, with what to do, where it is not found."""
    folder = os.environ.get("LLAMA_CPP_DIR")
    if folder:
        script = Path(folder).expanduser() / CONVERTER
        if not script.is_file():
            raise ExportError(f"--format gguf: LLAMA_CPP_DIR is {folder}, and there is no {CONVERTER} in it")
        return script
    found = shutil.which(CONVERTER)
    if found is None:
        raise ExportError(
            f"--format gguf needs llama.cpp's {CONVERTER}: git clone https://github.com/ggml-org/llama.cpp, "
            "pip install gguf sentencepiece, and set LLAMA_CPP_DIR to its folder"
        )
    return Path(found)


def convert(converter: Path, merged: Path, folder: Path, name: str, kind: str) -> None:
    """Writes `NAME.gguf` and `mmproj-NAME.gguf` into `folder`. Raises ExportError with the converter's last words."""
    for target, words in ((f"{name}.gguf", ()), (f"mmproj-{name}.gguf", ("--mmproj",))):
        _convert(converter, merged, folder / target, kind, words)


def _convert(converter: Path, merged: Path, target: Path, kind: str, words: Iterable[str]) -> None:
    command = [sys.executable, str(converter), str(merged), "--outfile", str(target), "--outtype", kind, *words]
    done = subprocess.run(command, check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode != 0:
        said = "\n".join(done.stdout.strip().splitlines()[-8:])
        lacking = re.search(r"^ModuleNotFoundError: No module named '([\w.]+)'", done.stdout, re.MULTILINE)
        advice = f"\nIt runs in this Python: pip install {lacking[1].partition('.')[0]}" if lacking else ""
        raise ExportError(f"--format gguf: {' '.join(command[1:])} failed with code {done.returncode}:\n{said}{advice}")
    if not target.is_file():
        raise ExportError(
            f"--format gguf: {CONVERTER} ended well and wrote no {target.name}; is it of another version?"
        )


def check_gguf(folder: Path, merged: Path, adapted: Iterable[str]) -> str:
    """Compares the files with the merged checkpoint; returns what was checked. Raises ExportError."""
    files = sorted(folder.glob("*.gguf"))
    counts = ", ".join(f"{file.name} {_announced(file)} tensors" for file in files)
    if find_spec("gguf") is None:
        return f"{counts}; their contents were not compared (pip install gguf compares them), nor run in llama.cpp"
    names = sorted(adapted)
    for file in files:
        if not file.name.startswith("mmproj-"):
            _check_weights(file, merged, [name for name in names if not re.match(r"(model\.)?visual\.", name)])
    return f"{counts}; the adapted weights of the language model are the merged ones; not run in llama.cpp"


def _announced(file: Path) -> int:
    with open(file, "rb") as opened:
        start = opened.read(HEADER.size)
    if len(start) < HEADER.size or not start.startswith(b"GGUF"):
        raise ExportError(f"--format gguf: {file.name} is not a GGUF file")
    tensors: int = HEADER.unpack(start)[2]
    if tensors == 0:
        raise ExportError(f"--format gguf: {file.name} holds no tensors")
    return tensors


def _check_weights(file: Path, merged: Path, names: Iterable[str]) -> None:
    import gguf

    reader: Any = gguf.GGUFReader(str(file))
    held = {tensor.name: tensor for tensor in reader.tensors}
    if _announced(file) != len(held):
        raise ExportError(f"--format gguf: {file.name} announces {_announced(file)} tensors and holds {len(held)}")
    architecture = bytes(reader.fields["general.architecture"].parts[-1]).decode()
    (arch,) = [key for key, value in gguf.MODEL_ARCH_NAMES.items() if value == architecture]
    stored = stored_tensors(merged)
    layers = 1 + max((int(number) for name in stored for number in re.findall(r"layers\.(\d+)\.", name)), default=0)
    mapping = gguf.get_tensor_name_map(arch, layers)
    for name in names:
        plain = name.replace("model.language_model.", "model.")  # as the converter renames what newer models store
        target = mapping.get_name(plain, try_suffixes=(".weight",))
        if target is None or target not in held:
            raise ExportError(f"--format gguf: {file.name} lacks {name}")
        tensor = held[target]
        kind = tensor.tensor_type.name
        wanted = read_tensor(stored[name], name).float()
        found = torch.from_numpy(gguf.dequantize(tensor.data, tensor.tensor_type).copy()).reshape(wanted.shape)
        allowed = ROUNDING.get(kind, 0.0) * wanted.abs().amax(dim=1, keepdim=True)
        if not bool(((found - wanted).abs() <= allowed).all()):
            raise ExportError(f"--format gguf: {file.name}'s {target} ({kind}) is not the merged {name}")
