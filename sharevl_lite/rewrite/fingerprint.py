"""Whether local files are those of last time: a short hash of their names, sizes and times."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path


def fingerprint(place: str | Path) -> str | None:
    """Hash of a file, or of all files below a folder; None where there is neither (a Hub id, a built-in data set)."""
    root = Path(place).expanduser()
    files = sorted(root.rglob("*")) if root.is_dir() else [root] if root.is_file() else []
    stats = [(str(file.relative_to(root)), *_size_and_time(file)) for file in files if file.is_file()]
    return hashlib.sha256(json.dumps(stats).encode()).hexdigest()[:16] if stats else None


def model_identity(engine: str, path: str) -> str:
    """Name of a model in the cache: a local folder that was written anew is another model.

    Raises VariantsError for an unknown built-in model.
    """
    from sharevl_lite.policy.errors import PolicyError
    from sharevl_lite.policy.hf import resolve_model_path
    from sharevl_lite.rewrite.errors import VariantsError

    try:
        state = fingerprint(resolve_model_path(path))
    except PolicyError as error:
        raise VariantsError(f"{engine}:{path}: {str(error).removeprefix('model.path: ')}") from error
    return f"{engine}:{path}" if state is None else f"{engine}:{path}@{state}"


def _size_and_time(file: Path) -> tuple[int, int]:
    status = file.stat()
    return status.st_size, status.st_mtime_ns
