"""The rollout store: every response of a run with its rewards and advantages, one Parquet file per step.

    <run>/rollouts/<split>/step_000042.parquet    one row per response, see `RolloutRow`
    <run>/images/<sha256>.png                     each distinct image once

Files are written to a temporary name, fsynced and renamed: what is visible is whole, whenever the writer is killed.
NaN is stored as null. Group rows by the stored ids (`problem_id`, `variant_index`), never by prompt text: rewrites may
coincide and one problem may be asked in several steps.

The trainer writes; notebooks and the explorer read with :func:`read` and :func:`scan`, which need no torch.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
from PIL import Image, UnidentifiedImageError

from sharevl_lite.atomic import TEMPORARY, remove_stale_temporaries, sync_directory, write_atomically
from sharevl_lite.store_schema import (
    IMAGES_DIR,
    ROLLOUTS_DIR,
    SCHEMA,
    SCHEMA_VERSION,
    STEP_FILE,
    Rewards,
    RolloutRow,
    Scorer,
    StoreError,
    Verification,
    to_table,
    version_fault,
)

__all__ = ["Rewards", "RolloutRow", "RolloutStore", "Scorer", "StoreError", "Verification", "read", "scan"]

_SPLIT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_SHA = re.compile(r"[0-9a-f]{64}")
# Log-probs of tokens hardly repeat, which makes a dictionary larger than they are; byte by byte they compress well.
_BYTE_STREAM_SPLIT = ["sampling_logprobs.list.element", "scorer_logprobs.list.element.list.element"]
_REPEATING = [
    *("run_id", "problem_id", "variant_text", "transform", "image_sha.list.element", "answer", "text"),
    *("token_ids.list.element", "verification.extracted", "verification.rule", "verification.failure"),
]
PNG_LEVEL = 1
"""zlib's fastest. Pictures are written while the GPU waits; the usual level takes five times as long over noise on
white, for 15% less."""
_PNG_START, _PNG_END = b"\x89PNG\r\n\x1a\n", b"\0\0\0\0IEND\xaeB`\x82"


class RolloutStore:
    """Writes the rollouts of one run and manages them for a resume.

    Args:
        run_dir: the run's folder, created at the first write.
    """

    def __init__(self, run_dir: str | Path) -> None:
        self.run_dir = Path(run_dir)
        self._ready: set[Path] = set()

    def write(self, split: str, step: int, rows: Sequence[RolloutRow]) -> Path:
        """Write a step's rows as one file and return its path; a file of that step is replaced.

        Raises:
            StoreError: a row is of another step, names an image that was not put, or a value does not fit its column.
        """
        if step < 0:
            raise StoreError(f"step {step}: steps count from 0")
        path = _split_dir(self.run_dir, split) / f"step_{step:06d}.parquet"
        self._check(path, step, rows)
        try:
            table = to_table(rows)
        except StoreError as error:
            raise StoreError(f"{path}: {error}") from error
        self._make_ready(path.parent)
        layout = {"compression": "zstd", "use_dictionary": _REPEATING, "use_byte_stream_split": _BYTE_STREAM_SPLIT}
        return write_atomically(path, lambda file: pq.write_table(table, file, **layout))

    def put_image(self, image: Image.Image) -> str:
        """Store an image, once, and return its name.

        The name is the sha256 of "<width>x<height>:RGB:" and the image's RGB bytes, row by row: equal pixels have one
        name whatever file they came from. Other modes are converted as the processors do (alpha is dropped).
        """
        rgb = image if image.mode == "RGB" else image.convert("RGB")
        sha = pixel_sha(rgb)
        path = self._image_path(sha)
        if not _is_whole_png(path):
            self._make_ready(path.parent)
            # From the bytes alone: a camera's ICC profile and notes stay out of the run.
            bare = Image.frombytes("RGB", rgb.size, rgb.tobytes())
            write_atomically(path, lambda file: bare.save(file, format="PNG", compress_level=PNG_LEVEL))
        return sha

    def image(self, sha: str) -> Image.Image:
        """The stored image of that name, RGB.

        Raises:
            StoreError: no such image, or the file no longer holds the pixels of its name.
        """
        path = self._image_path(sha)
        try:
            with Image.open(path) as opened:
                image = opened.convert("RGB")
        except FileNotFoundError:
            raise StoreError(f"{path}: no such image; the images folder must be copied along with a run") from None
        except (OSError, SyntaxError, UnidentifiedImageError) as error:
            raise StoreError(f"{path}: damaged image ({error}); delete it and restore it from a copy") from error
        if pixel_sha(image) != sha:
            raise StoreError(f"{path}: the pixels do not match the name; delete it and restore it from a copy")
        return image

    def steps(self, split: str) -> list[int]:
        """Steps that are stored, ascending; empty for a split that does not exist yet."""
        return [step for step, _ in _step_files(_split_dir(self.run_dir, split))]

    def discard_after(self, split: str, step: int) -> list[int]:
        """Delete the files of steps later than `step`, for a resume there; returns the steps deleted.

        The last goes first, so that a kill in between leaves no hole.
        """
        folder = _split_dir(self.run_dir, split)
        later = [(number, path) for number, path in _step_files(folder) if number > step]
        for _, path in reversed(later):
            path.unlink()
        if later:
            sync_directory(folder)
        return [number for number, _ in later]

    def _make_ready(self, folder: Path) -> None:
        """Create the folder and take away what a killed writer left, once per store: listing images is slow."""
        if folder not in self._ready:
            folder.mkdir(parents=True, exist_ok=True)
            remove_stale_temporaries(folder)
            self._ready.add(folder)

    def _image_path(self, sha: str) -> Path:
        if not _SHA.fullmatch(sha):
            raise StoreError(f"{sha!r} is no image name; it is the sha256 that put_image returned, 64 hex digits")
        return self.run_dir / IMAGES_DIR / f"{sha}.png"

    def _check(self, path: Path, step: int, rows: Sequence[RolloutRow]) -> None:
        for number, row in enumerate(rows):
            if row.step != step:
                raise StoreError(f"{path}: row {number} is of step {row.step}; write each step by itself")
            if row.schema_version != SCHEMA_VERSION:
                raise StoreError(f"{path}: row {number} has schema_version {row.schema_version}, not {SCHEMA_VERSION}")
            if len(row.token_ids) != len(row.sampling_logprobs):
                raise StoreError(
                    f"{path}: row {number} has {len(row.token_ids)} token_ids and "
                    f"{len(row.sampling_logprobs)} sampling_logprobs; they are one per token"
                )
            lengths = [len(values) for values in row.scorer_logprobs or () if values is not None]
            scored = row.scorer_logprobs is None or len(row.scorer_logprobs) == len(row.scorers)
            if not scored or set(lengths) - {len(row.token_ids)}:
                raise StoreError(
                    f"{path}: row {number} has scorer_logprobs of lengths {lengths} for {len(row.scorers)} scorers and "
                    f"{len(row.token_ids)} token_ids; they are one list per scorer, one value per token"
                )
        for sha in {sha for row in rows for sha in row.image_sha}:
            if not self._image_path(sha).exists():
                raise StoreError(f"{path}: image {sha} is not in the store; put_image comes before write")


def read(
    run: str | Path,
    split: str = "train",
    *,
    steps: Iterable[int] | None = None,
    columns: Sequence[str] | None = None,
) -> pa.Table:
    """Rows of a run, by step.

    Args:
        run: the run's folder.
        split: `train`, `eval` or what else was written.
        steps: read these only. None: all.
        columns: read these only. None: all of `RolloutRow`; what an older file lacks is null.

    Raises:
        StoreError: no such run, split, step or column, or a file of another schema version.
    """
    unknown = [name for name in columns or () if name.split(".")[0] not in SCHEMA.names]
    if unknown:
        raise StoreError(f"no column {', '.join(unknown)}; the store has {', '.join(SCHEMA.names)}")
    return scan(run, split, steps=steps).to_table(columns=None if columns is None else list(columns))


def scan(run: str | Path, split: str = "train", *, steps: Iterable[int] | None = None) -> ds.Dataset:
    """The same rows as a lazy dataset, for filters and columns without reading the rest. Raises as :func:`read`."""
    folder = _split_dir(Path(run), split)
    files = dict(_step_files(folder))
    if not files:
        raise StoreError(_nothing_there(Path(run), split))
    wanted = list(files) if steps is None else sorted(set(steps))
    missing = [step for step in wanted if step not in files]
    if missing:
        raise StoreError(f"{folder}: no step {', '.join(map(str, missing))}; it holds {min(files)} to {max(files)}")
    for step in wanted:
        _check_version(files[step])
    return ds.dataset([str(files[step]) for step in wanted], schema=SCHEMA, format="parquet")


def _split_dir(run: Path, split: str) -> Path:
    if not _SPLIT.fullmatch(split):
        raise StoreError(f"{split!r} is no name of a split; use letters, digits, `.`, `_` and `-`")
    return run / ROLLOUTS_DIR / split


def _step_files(folder: Path) -> list[tuple[int, Path]]:
    """Whole step files by step; temporaries do not match the pattern."""
    matches = ((STEP_FILE.fullmatch(path.name), path) for path in folder.glob("step_*.parquet"))
    return sorted((int(match[1]), path) for match, path in matches if match)


def _nothing_there(run: Path, split: str) -> str:
    if not run.is_dir():
        return f"{run}: no such run folder"
    folder = run / ROLLOUTS_DIR
    names = sorted(path.name for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
    held = [name for name in names if not name.startswith(TEMPORARY) and _step_files(folder / name)]
    if not held:
        return f"{run}: holds no rollouts yet; is it a run folder, with `rollouts/` in it?"
    return f"{run}: no split {split!r}; it has {', '.join(held)}"


def _check_version(path: Path) -> None:
    try:
        fault = version_fault(pq.read_schema(path).metadata)
    except (pa.ArrowInvalid, OSError) as error:
        raise StoreError(f"{path}: not a readable Parquet file ({error}); restore it from a copy") from error
    if fault is not None:
        raise StoreError(f"{path}: {fault}")


def pixel_sha(rgb: Image.Image) -> str:
    """The name of an RGB image, as :meth:`RolloutStore.put_image` says."""
    return hashlib.sha256(f"{rgb.width}x{rgb.height}:RGB:".encode() + rgb.tobytes()).hexdigest()


def _is_whole_png(path: Path) -> bool:
    """Whether the file starts and ends as a PNG does; one that lost its end to a failing disk is written again."""
    try:
        with open(path, "rb") as file:
            start = file.read(len(_PNG_START))
            file.seek(-len(_PNG_END), 2)
            return start == _PNG_START and file.read() == _PNG_END
    except OSError:
        return False
