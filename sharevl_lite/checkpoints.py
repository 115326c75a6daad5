"""The checkpoints of a run, by name: listed, and deleted so that no half of one is left under its name."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

from sharevl_lite.atomic import temporary_beside
from sharevl_lite.errors import UserError, first_line

CHECKPOINTS_DIR = "checkpoints"
"""Of a run."""
CHECKPOINT_PREFIX = "checkpoint-"
STATE_FILE = "trainer_state.json"
"""The Trainer's own name, without its imports."""


class CheckpointError(UserError):
    """A checkpoint that cannot be read, with what to do."""


@contextlib.contextmanager
def reading(checkpoint: str | Path) -> Iterator[None]:
    """Around the reading of its files, whose readers raise what they like. Raises CheckpointError."""
    try:
        yield
    except Exception as error:
        if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
            raise
        raise CheckpointError(
            f"{checkpoint} is damaged ({first_line(error)}); remove it "
            "and go on with --resume auto from the one before, or with --resume PATH from another"
        ) from error


def list_checkpoints(folder: Path) -> list[Path]:
    """Whole checkpoints, oldest first."""
    found = [p for p in folder.glob(f"{CHECKPOINT_PREFIX}*") if p.name.removeprefix(CHECKPOINT_PREFIX).isdigit()]
    return sorted(found, key=update_of)


def update_of(checkpoint: Path) -> int:
    """Number of the update that a checkpoint was saved after."""
    return int(checkpoint.name.removeprefix(CHECKPOINT_PREFIX))


def updates_made(checkpoint: Path) -> int:
    """Number of updates behind a checkpoint, whatever its folder is called. Raises CheckpointError."""
    with reading(checkpoint):
        return int(json.loads((checkpoint / STATE_FILE).read_text())["global_step"])


def discard_later_checkpoints(folder: Path, update: int) -> None:
    """Deletes the checkpoints after an update, for a resume there. The last goes first: a kill leaves no hole."""
    for checkpoint in reversed(list_checkpoints(folder)):
        if update_of(checkpoint) > update:
            remove_checkpoint(checkpoint)


def keep_newest(folder: Path, limit: int | None, *, best: str | None) -> None:
    """Deletes all checkpoints but the newest `limit` (None: keeps all) and the best, named by its path."""
    checkpoints = list_checkpoints(folder)
    for checkpoint in [] if limit is None else checkpoints[:-limit]:
        if str(checkpoint) != best:
            remove_checkpoint(checkpoint)


def remove_checkpoint(checkpoint: Path) -> None:
    """Deletes a checkpoint; under its name it is whole until it is gone."""
    doomed = temporary_beside(checkpoint)
    checkpoint.rename(doomed)
    shutil.rmtree(doomed)
