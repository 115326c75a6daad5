"""Reading raw rows, lazily: a Parquet or JSON-lines file, a folder of them, or a dataset on the Hugging Face Hub.

Nothing is decoded here: a cell of the image column stays bytes or a path until its row is checked, so a limit reads
no more images than it keeps.
"""

from __future__ import annotations

import codecs
import difflib
import itertools
import json
import re
import shlex
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sharevl_lite.data.errors import DataError, MissingSource, RowPlace

SUFFIXES = (".parquet", ".jsonl")
LONG_NAMES = {
    "train": ("training",),
    "test": ("testing",),
    "val": ("validation", "valid"),
    "dev": ("development",),
    "eval": ("evaluation",),
}
"""Splits, and how else each is written: files of that name belong to it where none has the short one."""
SPLIT_NAME = re.compile(rf"(?:{'|'.join(itertools.chain(LONG_NAMES, *LONG_NAMES.values()))})(?:mini|set)?(?![a-z])")
"""Start of a file name that tells a split. `devices` tells none."""
SHARD = re.compile(r"([\w.]+)-\d+-of-\d+")
"""Start of a file name as the Hub has it: all before the numbers is the split."""
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
BATCH_ROWS = 64
OWN_MANIFEST, OWN_DATA = "manifest.json", "data"
"""A folder that holds both was written by `sharevl-lite variants`: its rows lie in the second."""
HEAD_LINES = 1000
"""Lines of a JSON-lines file that are looked through for its columns."""
COUNTED_BYTES = 64 * 2**20
"""Largest JSON-lines file whose lines are counted at once."""

ColumnCheck = Callable[[str, Sequence[str]], None]
"""Given a file (for messages) and its columns; raises DataError where they will not do."""


@dataclass(frozen=True)
class RawRow:
    """A row before any check: named cells, or the bytes of a JSON line that is yet to be parsed.

    `folder` is what relative image paths start from; None for a dataset of the Hub.
    """

    place: RowPlace
    cells: dict[str, Any] | bytes
    folder: Path | None


# A row of one file: its number or line there, for messages, and its cells.
FileRows = Iterator[tuple[str, dict[str, Any] | bytes]]
FileReader = Callable[[Path, ColumnCheck], FileRows]


def read_rows(source: str, *, split: str, columns: ColumnCheck) -> Iterator[RawRow]:
    """The rows of a source, in order. A local file or folder wins over a Hub dataset of the same name.

    Args:
        source: As in `data.train`, without the built-in ones.
        split: Split of a Hub dataset; of a folder, the files whose names start with it as a word of its own, if any
            do: of `test` test.jsonl and test_2.jsonl, not testmini.jsonl, and of the Hub's shards such as
            test_hard-00000-of-00001.parquet those of the very name. A single file is taken whole.
        columns: Is asked once for each file, and says by an error when columns are missing.

    Raises:
        DataError: The source does not exist or cannot be read, or a wanted column is missing.
    """
    readers = find_files(source, split)
    if readers is None:
        yield from _hub_rows(source, split, columns)
        return
    number = 0
    for file, read in readers.items():
        for detail, cells in read(file, columns):
            yield RawRow(RowPlace(source, number, f"{file.name} {detail}"), cells, file.parent)
            number += 1


def has_splits(source: str) -> bool:
    """Whether a split chooses among the rows of a source: a single file is taken whole. By its name alone."""
    return Path(source).suffix not in SUFFIXES


def count_rows(source: str, split: str) -> int | None:
    """Rows of a source, where that is known at once: by the footers of Parquet files, or the lines of small JSON-lines
    files. None of others, and of what cannot be read, which is told when it is."""
    try:
        files = find_files(source, split)
        return None if files is None else sum(map(_rows_of, files))
    except (DataError, OSError, ValueError):  # pyarrow's errors are ValueErrors or OSErrors
        return None


def _rows_of(file: Path) -> int:
    if file.suffix == ".parquet":
        import pyarrow.parquet as pq

        return int(pq.read_metadata(file).num_rows)
    if file.stat().st_size > COUNTED_BYTES:
        raise ValueError
    return sum(1 for _ in _lines(file))


def find_files(source: str, split: str) -> dict[Path, FileReader] | None:
    """The files of a local source, in order, each with what reads it; None of a dataset of the Hub. Opens none of them.

    Raises DataError where the source is not there, or holds no file that can be read.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        files = _files_of(path, split)
    elif path.exists():
        files = [path]
    elif HUB_ID.fullmatch(source) and path.suffix not in SUFFIXES:
        return None
    else:
        raise _missing(source, path)
    return {file: _reader(file) for file in files}


def _files_of(folder: Path, split: str) -> list[Path]:
    """The data files of a folder that belong to the split, sorted by name."""
    if (folder / OWN_MANIFEST).is_file() and (folder / OWN_DATA).is_dir():
        return _files_of(folder / OWN_DATA, split)
    files = sorted(file for file in folder.iterdir() if file.suffix in SUFFIXES and file.is_file())
    if not files:
        deeper = sorted({str(file.parent) for file in folder.rglob("*") if file.suffix in SUFFIXES})[:5]
        hint = f"; there are some in {', '.join(deeper)}: name that folder" if deeper else ""
        raise DataError(f"{folder}: the folder holds no .parquet or .jsonl file{hint}{_saved_to_disk(folder, split)}")
    for name in (split, *LONG_NAMES.get(split, ())):
        chosen = [file for file in files if _belongs(file.name, name)]
        if chosen:
            return chosen
    # A folder that does name its splits must not hand out its test files for training.
    others = [file.name for file in files if SPLIT_NAME.match(file.name)]
    if others:
        raise DataError(
            f"{folder}: no file name starts with the split {split!r}, but there are {', '.join(others[:5])}; set "
            "data.train_split or data.eval_split to the split that you mean (a longer word is another split), or name "
            "one file"
        )
    return files


def _belongs(file: str, split: str) -> bool:
    """Whether a file's name starts with the split as a word of its own; that of a shard must be just the split."""
    shard = SHARD.match(file)
    if shard:
        return shard[1] == split
    return file.startswith(split) and not file[len(split) :][:1].isalpha()


def _saved_to_disk(folder: Path, split: str) -> str:
    """How to convert what `save_to_disk` of the `datasets` package wrote; empty where the folder is something else."""
    many = (folder / "dataset_dict.json").is_file()
    if not many and not ((folder / "dataset_info.json").is_file() and any(folder.glob("*.arrow"))):
        return ""
    part = f"[{split!r}]" if many else ""
    return (
        "; save_to_disk of the datasets package wrote it. Convert it once with "
        f"datasets.load_from_disk({str(folder)!r}){part}.to_parquet({f'{split}.parquet'!r}) and name that file"
    )


def _reader(file: Path) -> FileReader:
    if file.suffix == ".parquet":
        return _parquet_rows
    if file.suffix == ".jsonl":
        if _is_json_array(file):
            raise DataError(f"{file}: one JSON array, not an object on each line{_conversion(file, 'json')}")
        return _jsonl_rows
    kind = file.suffix.removeprefix(".")
    known = _conversion(file, kind) if kind in ("csv", "json") else ""
    raise DataError(
        f"{file}: {file.suffix or 'a file without suffix'} is not understood; give .parquet or .jsonl{known}"
    )


def _is_json_array(file: Path) -> bool:
    """Whether the file begins as one; a file that cannot be read is told when it is."""
    try:
        with file.open("rb") as opened:
            return opened.read(4096).removeprefix(codecs.BOM_UTF8).lstrip().startswith(b"[")
    except OSError:
        return False


def _conversion(file: Path, kind: str) -> str:
    """How a file of this kind becomes one that is read. Cells of a CSV stay the texts they are: a reader that looks for
    numbers takes the zeros from 007 and makes 3 a 3.0 where another cell is empty."""
    target = file.with_name(f"{file.stem}-lines.jsonl" if file.suffix == ".jsonl" else f"{file.stem}.jsonl")
    # In double quotes, so that the shell's word is in single ones.
    source, made = (json.dumps(str(path), ensure_ascii=False) for path in (file, target))
    opened = f'open({source}, encoding="utf-8-sig", newline="")'
    rows = f"csv.DictReader({opened})" if kind == "csv" else f"json.load({opened})"
    written = f'open({made}, "x").writelines(json.dumps(row) + chr(10) for row in {rows})'
    return f"; convert it once: python -c {shlex.quote(f'import csv, json; {written}')}"


def _missing(source: str, path: Path) -> DataError:
    names = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
    near = difflib.get_close_matches(path.name, names, n=1)
    hint = f" Did you mean {str(path.with_name(near[0]))!r}?" if near else ""
    return MissingSource(
        f"{source}: no such file or folder ({path.absolute()}).{hint} Give a .parquet or .jsonl file, a folder of "
        "them, a Hub dataset as owner/name, or builtin:digits.",
        source,
    )


def _parquet_rows(path: Path, columns: ColumnCheck) -> FileRows:
    import pyarrow as pa
    import pyarrow.parquet as pq

    done = 0
    try:
        with pq.ParquetFile(path) as file:
            columns(str(path), file.schema_arrow.names)
            for batch in file.iter_batches(batch_size=BATCH_ROWS):
                rows = batch.to_pylist()
                yield from ((f"row {done + offset}", cells) for offset, cells in enumerate(rows))
                done += len(rows)
    except DataError:
        raise
    except (pa.ArrowException, OSError, ValueError, OverflowError) as error:
        why = str(error).rstrip(".")
        raise DataError(
            f"{path}: cannot be read as Parquet from row {done} (counted from 0) on: {why}. Write the file again."
        ) from error


def _jsonl_rows(path: Path, columns: ColumnCheck) -> FileRows:
    """Lines, unparsed, so that a malformed one is a bad row like any other. Blank lines are no rows."""
    names = _jsonl_columns(path)
    if names:
        columns(str(path), names)
    for number, line in _lines(path):
        yield f"line {number}", line


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Lines that hold something, numbered from 1 as editors do."""
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield number, line
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error


def _jsonl_columns(path: Path) -> list[str]:
    """Keys of the first lines, in the order of appearance."""
    columns: dict[str, None] = {}
    for _, line in itertools.islice(_lines(path), HEAD_LINES):
        try:
            columns.update(dict.fromkeys(parse_json_line(line)))
        except ValueError:  # reported with its number when its turn comes
            continue
    return list(columns)


def parse_json_line(line: bytes) -> dict[str, Any]:
    """The object on one line of a JSON-lines file.

    Raises:
        ValueError: The line is not UTF-8, not JSON, or not an object; the message says which.
    """
    try:
        value = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise ValueError(f"the line is not UTF-8 ({error.reason} at byte {error.start})") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"the line is not valid JSON ({error.msg} at character {error.pos})") from error
    except RecursionError as error:
        raise ValueError("the line is nested too deeply to be read as JSON") from error
    if not isinstance(value, dict):
        raise ValueError(f"the line holds a JSON {type(value).__name__}, not an object with named fields")
    return value


def _hub_rows(source: str, split: str, columns: ColumnCheck) -> Iterator[RawRow]:
    from datasets import load_dataset

    try:
        dataset = load_dataset(source, split=split)
    except Exception as error:  # the network, the cache and the builders each have their own kinds
        raise MissingSource(
            f"{source}: there is no such file or folder here, and loading split {split!r} of a Hub dataset of that "
            f"name failed: {type(error).__name__}: {error}. Of a file or folder give the path from the current "
            f"directory ({Path.cwd()}); of a Hub dataset check owner/name, the split and the connection, and log in "
            "with `hf auth login` if it is private or gated.",
            source,
        ) from error
    columns(f"{source}, split {split!r}", dataset.column_names)
    number = 0
    # The Arrow format hands out the stored bytes; the default one would decode every image, and we would again.
    for table in dataset.with_format("arrow").iter(batch_size=BATCH_ROWS):
        for cells in table.to_pylist():
            yield RawRow(RowPlace(source, number), cells, None)
            number += 1
