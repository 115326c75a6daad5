"""Digests of a base model's weights, to know the model again wherever its folder lies.

Of each file of weights: its size and `PROBES` pieces spread over it. A model of 7B is read in no time, and other
weights of the same shapes (another fine-tune, a merge that changed some layers) differ in some piece. Small files are
read whole.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from pathlib import Path

from sharevl_lite.policy.folder import folder_on_disk

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
WEIGHTS = ("*.safetensors", "pytorch_model*.bin")
"""Names of files of weights where those two are not there; only the first kind counts where both are."""
PROBES, PIECE = 64, 2**16
"""Pieces of each file, and the bytes of each."""


def weights_digests(path: str) -> dict[str, str]:
    """File name to digest, in hexadecimal, of the model at `path`, as in `model.path`; empty where none is here.

    Raises PolicyError for an unknown built-in.
    """
    folder = folder_on_disk(path)
    return {} if folder is None else {file.name: _digest(file) for file in _read_files(folder)}


def _read_files(folder: Path) -> list[Path]:
    """The files that weights may be read from; others may lie beside them."""
    named = {SINGLE}
    with contextlib.suppress(OSError, ValueError, KeyError, AttributeError):  # a damaged index is told when it is read
        named |= set(json.loads((folder / INDEX).read_text("utf-8"))["weight_map"].values())
    found = [folder / name for name in sorted(named) if (folder / name).is_file()]
    return found or next(filter(None, (sorted(folder.glob(kind)) for kind in WEIGHTS)), [])


def _digest(file: Path) -> str:
    size = file.stat().st_size
    digest = hashlib.sha256(f"{size}:".encode())
    spread = [probe * (size - PIECE) // (PROBES - 1) for probe in range(PROBES)]
    with file.open("rb") as weights:
        for start in spread if size > PROBES * PIECE else range(0, size, PIECE):
            weights.seek(start)
            digest.update(weights.read(PIECE))
    return digest.hexdigest()
