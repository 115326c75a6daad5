"""From a source in the recipe to checked problems.

Every row is checked before a run starts, so that none fails hours later: images decode in full, each text has one
``<image>`` per image, each accepted answer says something, ids are unique. The one liberty taken: where a text has no
``<image>`` at all and the row has images, all placeholders are put in front (datasets of EasyR1's kind leave them out).

Deviation from the public code of R1-ShareVL: rewrites stored as a string are read as JSON or as a Python literal and
never evaluated.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import logging
import math
import reprlib
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any, get_args

from sharevl_lite.config import FOUND, ColumnNames, DataSection, TransformName
from sharevl_lite.data.cells import cell_text, parse_list
from sharevl_lite.data.errors import BadRow, DataError, OnBadRow, RowFault, RowPlace, check_rows, require_some
from sharevl_lite.data.images import ImageReader
from sharevl_lite.data.layouts import Layout, choose_layout
from sharevl_lite.data.options import read_options
from sharevl_lite.data.problem import PLACEHOLDER, Problem
from sharevl_lite.data.sources import RawRow, find_files, parse_json_line, read_rows

logger = logging.getLogger(__name__)

BUILTIN = "builtin:"
VARIANTS_ALIAS = "new_questions"
MIRRORS_COLUMN, TRANSFORMS_COLUMN = "allow_mirrors", "transforms"
OWN_COLUMNS = frozenset({MIRRORS_COLUMN, TRANSFORMS_COLUMN})


@dataclass(frozen=True)
class LoadedProblems:
    """The problems of a source, in its order, with the place of each, and the rows left out."""

    problems: list[Problem]
    skipped: list[BadRow]
    places: list[RowPlace]

    def skipped_beside(self, kept: Sequence[Problem]) -> int:
        """Bad rows in all, where later checks kept these problems."""
        return len(self.skipped) + len(self.problems) - len(kept)

    def recheck(self, check: Callable[[Problem], None], on_bad_row: OnBadRow) -> LoadedProblems:
        """Apply one more check, such as the length of the prompt in tokens, under the same rules as the first ones.

        Args:
            check: Raises :class:`~sharevl_lite.data.errors.RowFault` with the reason where a problem is bad.
            on_bad_row: As in the recipe.

        Raises:
            BadRowError: A problem is bad under `stop`.
            DataError: None is left under `skip`.
        """
        source = self.places[0].source
        skipped = list(self.skipped)

        def passed(problem: Problem) -> Problem:
            check(problem)
            return problem

        rows = zip(self.places, self.problems, strict=True)
        return _collect(source, check_rows(rows, passed, on_bad_row=on_bad_row, skipped=skipped), skipped)


def load_problems(source: str, section: DataSection, *, split: str, limit: int | None = None) -> LoadedProblems:
    """Read and check the problems of a source.

    Args:
        source: A .parquet or .jsonl file, a folder of them, a Hub dataset id, or `builtin:digits`; `section.train` or
            `section.eval` as a rule.
        section: Column names, and what a bad row does.
        split: Split of a Hub or built-in dataset; in a folder, the first word of the file names.
        limit: Keep the first so many good problems and read no further. None: all.

    Returns:
        The problems, with their images' encoded files in memory, and the rows skipped.

    Raises:
        BadRowError: A row is bad and `section.on_bad_row` is `stop`.
        DataError: The source is missing, unreadable, empty, without a usable row, or without a wanted column.
    """
    skipped: list[BadRow] = []
    rows = iterate_problems(source, section, split=split, skipped=skipped, images=ImageReader())
    with contextlib.closing(rows):
        return _collect(source, itertools.islice(rows, limit), skipped)


def check_source(source: str, split: str) -> None:
    """Raises DataError where a source is not built in, here or on the Hub, by its name; reads nothing of it."""
    if not source.startswith(BUILTIN):
        find_files(source, split)
    elif source != f"{BUILTIN}digits":
        raise DataError(f"{source}: no such built-in dataset; there is builtin:digits")


def iterate_problems(
    source: str,
    section: DataSection,
    *,
    split: str,
    skipped: list[BadRow],
    images: ImageReader,
    on_layout: Callable[[str, Layout], object] | None = None,
) -> Generator[tuple[RowPlace, Problem]]:
    """The problems of :func:`load_problems`, one at a time, so that a large source need not fit into memory.

    Args:
        source: As there; so are `section` and `split`.
        skipped: Grows by each bad row that is skipped.
        images: What reads the image column; one that remembers few images keeps memory flat.
        on_layout: Called with each file and the layout its columns were read by.

    Raises:
        BadRowError: A row is bad and `section.on_bad_row` is `stop`.
        DataError: The source is missing or unreadable, or its columns will not do.
    """
    if source.startswith(BUILTIN):
        yield from _builtin_rows(source, split)
        return
    reader = _RowReader(section.columns, images, lambda column: _lists_options(source, split, column))

    def look(where: str, present: Sequence[str]) -> None:
        reader.layout = choose_layout(where, present, section.columns)
        if on_layout is not None:
            on_layout(where, reader.layout)

    rows = read_rows(source, split=split, columns=look)
    placed = ((row.place, row) for row in rows)
    try:
        yield from check_rows(placed, reader.problem, on_bad_row=section.on_bad_row, skipped=skipped)
    except GeneratorExit:  # no more rows are wanted
        reader.warn_of_empty_options(source)
        raise
    reader.warn_of_empty_options(source)


def _collect(source: str, rows: Iterator[tuple[RowPlace, Problem]], skipped: list[BadRow]) -> LoadedProblems:
    kept = list(rows)
    require_some(source, len(kept), skipped)
    return LoadedProblems([problem for _, problem in kept], skipped, [place for place, _ in kept])


def _lists_options(source: str, split: str, column: str) -> bool:
    """Whether any row of a source lists answer options in a column."""
    for row in read_rows(source, split=split, columns=lambda where, present: None):
        with contextlib.suppress(RowFault):  # told when its turn comes
            if read_options(_cells(row).get(column), column):
                return True
    return False


def _builtin_rows(source: str, split: str) -> Iterator[tuple[RowPlace, Problem]]:
    check_source(source, split)
    from sharevl_lite.data.digits import iterate_digits

    try:
        problems = iterate_digits(split)
    except ValueError as error:
        raise DataError(f"{source}: {error}") from error
    return ((RowPlace(source, number), problem) for number, problem in enumerate(problems))


class _RowReader:
    """Builds problems from raw rows by `layout`, which may change between files; remembers ids across rows."""

    def __init__(self, columns: ColumnNames, images: ImageReader, lists_options: Callable[[str], bool]) -> None:
        self.layout = Layout("as named", frozenset(), columns)
        self._found = columns.choices == FOUND
        self._lists_options = functools.cache(lists_options)
        """Whether any row lists options in a column; asked only where one holds something else."""
        self._images = images
        self._rows_by_id: dict[str, int] = {}
        self.rows_with_options: dict[str, int] = {}
        """Of each column of options that was read."""
        self.ignored: set[str] = set()
        """Columns that are called like one of options, and hold something else in every row."""

    def warn_of_empty_options(self, source: str) -> None:
        """Says which columns of options had none in the rows that were read."""
        for column, rows in self.rows_with_options.items():
            if rows == 0 and column not in self.ignored:
                logger.warning(
                    "%s: the column %r names no options in any row that was read; questions get none", source, column
                )

    def problem(self, row: RawRow) -> Problem:
        """The checked problem of a row; raises RowFault with the reason where the row is bad."""
        cells = _cells(row)
        layout = self._reading(row.place, cells)
        names = layout.columns
        variants = names.variants
        if variants not in cells and variants == ColumnNames().variants:
            variants = VARIANTS_ALIAS
        images = self._images.read(cells.get(names.images), row.folder)
        problem = Problem(
            id=self._identity(cells.get(names.id), row.place.row),
            text=_text(
                layout.question(cells.get(names.problem), cells),
                f"the problem (column {names.problem!r})",
                len(images),
            ),
            images=images,
            answer=_answers(layout.answer(cells.get(names.answer), cells), names.answer),
            variants=tuple(
                _text(layout.rewrite(text, cells), f"variant {index} (from 0, column {variants!r})", len(images))
                for index, text in enumerate(_variant_list(cells.get(variants), variants))
            ),
            allow_mirrors=_flag(cells.get(MIRRORS_COLUMN), MIRRORS_COLUMN),
            transforms=_kinds(cells.get(TRANSFORMS_COLUMN)),
            metadata={
                name: value
                for name, value in cells.items()
                if name not in {names.problem, names.images, names.answer, names.id, variants}
                and name not in OWN_COLUMNS
            },
            columns=self._used(layout, cells),
        )
        self._rows_by_id[problem.id] = row.place.row  # only now: an id of a bad row is not taken
        return problem

    def _reading(self, place: RowPlace, cells: dict[str, Any]) -> Layout:
        """The layout; without its column of options where that was found by its name and no row lists any there.

        Raises RowFault where the row holds something else than options, and other rows hold options.
        """
        column = self.layout.columns.choices
        if column is None:
            return self.layout
        if column not in self.ignored:
            try:
                self.layout.options(cells)
            except RowFault as fault:
                if not self._found or self._lists_options(column):
                    raise
                logger.warning(
                    "%s: the column %r lists answer options in no row, so it is ignored (row %d: %s); name it in "
                    "data.columns.choices where it should list them",
                    place.source,
                    column,
                    place.row,
                    str(fault).partition("; give a list of texts")[0],
                )
                self.ignored.add(column)
            else:
                return self.layout
        return replace(self.layout, columns=self.layout.columns.model_copy(update={"choices": None}))

    def _used(self, layout: Layout, cells: dict[str, Any]) -> ColumnNames:
        """The columns the row was made of; counts those with options."""
        names = layout.columns
        if names.choices is None:
            return names
        has_options = bool(layout.options(cells))
        self.rows_with_options[names.choices] = self.rows_with_options.get(names.choices, 0) + has_options
        return names if has_options else names.model_copy(update={"choices": None})

    def _identity(self, value: Any, row: int) -> str:
        """The row's own id, or its number where it has none."""
        if value is None:
            value = row
        if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
            raise RowFault(
                f"the id (column {self.layout.columns.id!r}) is {reprlib.repr(value)}; give text or a whole number"
            )
        name = _unicode(str(value), f"the id (column {self.layout.columns.id!r})")
        if name in self._rows_by_id:
            raise RowFault(f"the id {name!r} is already that of row {self._rows_by_id[name]}; ids must be unique")
        return name


def _cells(row: RawRow) -> dict[str, Any]:
    if isinstance(row.cells, dict):
        return row.cells
    try:
        return parse_json_line(row.cells)
    except ValueError as error:
        raise RowFault(str(error)) from error


def _text(value: Any, label: str, images: int) -> str:
    """A problem or variant with one placeholder per image; in front, where the text has none."""
    if value is None or (isinstance(value, str) and not value.strip()):
        raise RowFault(f"{label} is empty")
    if not isinstance(value, str):
        raise RowFault(f"{label} is {reprlib.repr(value)}, not text")
    _unicode(value, label)
    placeholders = value.count(PLACEHOLDER)
    if placeholders == 0:
        return PLACEHOLDER * images + value
    if placeholders != images:
        raise RowFault(
            f"{label} has {placeholders} {PLACEHOLDER} for {images} image(s); write one for each image, or none at all "
            "to have them put in front"
        )
    return value


def _answers(value: Any, column: str) -> str | tuple[str, ...]:
    """The answer, or the accepted ones of a list. A text that looks like a list is one answer, such as a set."""
    if not isinstance(value, list | tuple):
        return _answer(value, f"the answer (column {column!r})")
    if not value:
        raise RowFault(f"the answer (column {column!r}) is an empty list; give at least one accepted answer")
    if len(value) > 1 and all(_is_number(entry) for entry in value):
        raise RowFault(
            f"the answer (column {column!r}) is {reprlib.repr(value)}, each of them right alone; write a point, a box "
            "or a set as one text ('[4, 2, 30, 40]'), or accepted answers as texts"
        )
    return tuple(
        _answer(entry, f"accepted answer {index} (from 0, column {column!r})") for index, entry in enumerate(value)
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | Decimal) and not isinstance(value, bool)


def _answer(value: Any, label: str) -> str:
    if value is None or (isinstance(value, str) and not value.strip()):
        raise RowFault(f"{label} is empty")
    if isinstance(value, str):
        return _unicode(value, label)
    if not _is_number(value):
        raise RowFault(f"{label} is {reprlib.repr(value)}; give text or a number")
    if not isinstance(value, int) and not math.isfinite(value):  # a large int does not fit into a float
        raise RowFault(f"{label} is {value}; give a finite number or text")
    return cell_text(value)


def _unicode(text: str, label: str) -> str:
    """The text itself, where UTF-8 can hold it: JSON may carry half of a character pair, and tokenizers fail on it."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise RowFault(
            f"{label} has half of a UTF-16 character pair at character {error.start}; write it whole"
        ) from error
    return text


def _flag(value: Any, column: str) -> bool:
    if value is None:
        return False
    if not isinstance(value, bool):
        raise RowFault(f"column {column!r} is {reprlib.repr(value)}; give true or false")
    return value


def _kinds(value: Any) -> frozenset[str] | None:
    """The transforms a row allows; None where it does not say."""
    if value is None:
        return None
    if not isinstance(value, list | tuple) or any(kind not in get_args(TransformName) for kind in value):
        raise RowFault(
            f"column {TRANSFORMS_COLUMN!r} is {reprlib.repr(value)}; give a list of share.transforms.kinds, or null"
        )
    return frozenset(value)


def _variant_list(value: Any, column: str) -> list[Any]:
    """The entries of a rewrite column: a list, or a string that holds a list or is itself the one rewrite."""
    if value is None or (isinstance(value, str) and not value.strip()):
        return []
    if isinstance(value, list | tuple):
        return list(value)
    if not isinstance(value, str):
        raise RowFault(f"column {column!r} is {reprlib.repr(value)}; give a list of texts, or a string that holds one")
    parsed = parse_list(value, column)
    if parsed is not None:
        return parsed
    if value.lstrip().startswith(("['", '["')):
        # Training on the text of a cut-off list would go unnoticed.
        raise RowFault(
            f"column {column!r} starts like a list but is neither JSON nor a Python literal: {reprlib.repr(value)}"
        )
    return [value]
