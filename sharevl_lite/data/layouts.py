"""Column layouts of known datasets: which columns tell one from another, and how its rows become ours.

A source whose columns are the recipe's is read as it is. Any other is compared with the table below by its columns
alone; where exactly one layout fits best it is used, and the log says which. Nothing is guessed beyond the table.

Sources, each a published dataset's own list of columns:

* EasyR1's form (hiyouga/geometry3k and others): `images`, `problem`, `answer`; R1-ShareVL-52K adds `new_questions`;
* CLEVR-Math (dali-does/clevr-math): `template`, `id`, `question`, `image`, `label`; its `id` is the image's file name,
  which several questions share, so rows are numbered instead;
* MathVista (AI4Math/MathVista): `pid`, `question`, `image` (a path), `decoded_image`, `choices`, `answer`, …; the
  answer of a multiple-choice row is the text of a choice, not its letter;
* GEOQA of R1-V (leonardPKU/GEOQA_R1V_Train_8K): `image`, `problem`, `solution` with `<answer> … </answer>`.
"""

from __future__ import annotations

import difflib
import logging
import re
import reprlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from sharevl_lite.config import FOUND, ColumnNames
from sharevl_lite.data.cells import parse_list
from sharevl_lite.data.errors import DataError, RowFault
from sharevl_lite.data.options import CHOICE_COLUMNS, Options, lettered_answer, read_options, with_options
from sharevl_lite.data.problem import PLACEHOLDER

logger = logging.getLogger(__name__)

TAGGED_ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL | re.IGNORECASE)
HASHED_ANSWER = re.compile(r"^####(?!#)(.*)$", re.MULTILINE)
"""The last line of GSM8K's solutions."""
NO_COLUMN = ""
"""Name of a column that no source has: the id of rows that are numbered."""


@dataclass(frozen=True)
class Layout:
    """How a dataset names its columns.

    `tells` are the columns by which it is known. The options of `columns.choices` are put below the question with their
    letters. `tagged_answer`: the answer must stand in `<answer>…</answer>`.
    """

    name: str
    tells: frozenset[str]
    columns: ColumnNames
    tagged_answer: bool = False

    @property
    def wanted(self) -> dict[str, str]:
        """The columns that must exist: the three that make a problem, and optional ones that were named."""
        names, plain = self.columns, ColumnNames()
        wanted = {"problem": names.problem, "images": names.images, "answer": names.answer}
        if names.variants != plain.variants:
            wanted["variants"] = names.variants
        if names.id not in {plain.id, NO_COLUMN}:
            wanted["id"] = names.id
        return wanted

    def question(self, text: Any, cells: Mapping[str, Any]) -> Any:
        """The problem's text with its options below it; the text itself where the row has none.

        Raises RowFault for a chat: its JSON would pass as the question.
        """
        if _is_chat(text, self.columns.problem):
            raise RowFault(
                f"the problem (column {self.columns.problem!r}) is {reprlib.repr(text)}, not text but the messages of "
                "a chat; write the user's question alone into a column and name it in data.columns.problem (--columns "
                "problem=… of `sharevl-lite variants`)"
            )
        return self.rewrite(text, cells)

    def rewrite(self, text: Any, cells: Mapping[str, Any]) -> Any:
        """A rewritten question, whose options stand in the same column; the text itself where the row has none."""
        return with_options(text, self.options(cells)) if isinstance(text, str) and text.strip() else text

    def answer(self, value: Any, cells: Mapping[str, Any]) -> Any:
        """The answer out of its solution; of a multiple-choice row as `B. text`, which the verifier takes by either.

        Of a list of accepted answers each. Raises RowFault where the answer is not to be found in a solution, holds an
        image's placeholder, or where the option is missing.
        """
        if isinstance(value, list | tuple):
            return [self._one_answer(each, cells) for each in value]
        return self._one_answer(value, cells)

    def _one_answer(self, value: Any, cells: Mapping[str, Any]) -> Any:
        if isinstance(value, str):
            value = self._bare_answer(value)
        options = self.options(cells)
        return lettered_answer(value, options) if options and value not in (None, "") else value

    def _bare_answer(self, text: str) -> str:
        """The answer alone: what stands in the last `<answer>…</answer>`, or behind the `####` of a last line."""
        inside = TAGGED_ANSWER.findall(text)
        hashed = [] if self.tagged_answer else HASHED_ANSWER.findall(text)
        if not (inside or hashed) and (self.tagged_answer or "<think>" in text.lower()):
            raise RowFault(
                f"column {self.columns.answer!r} has no <answer>…</answer>: {reprlib.repr(text)}; name the column "
                "that holds the bare answer"
            )
        bare = str((inside or hashed or [text])[-1])
        if PLACEHOLDER in bare:
            raise RowFault(
                f"the answer (column {self.columns.answer!r}) has an {PLACEHOLDER}: {reprlib.repr(text)}; are the "
                "columns of problem and answer swapped?"
            )
        return bare.strip() if inside or hashed else text

    def options(self, cells: Mapping[str, Any]) -> Options:
        """The options of a row; [] where it has none. Raises RowFault where the cell holds something else."""
        column = self.columns.choices
        return [] if column is None else read_options(cells.get(column), column)


def _is_chat(value: Any, column: str) -> bool:
    """Whether a cell holds messages with `role` (or ShareGPT's `from`), as a list or written as JSON or in Python."""
    if isinstance(value, str):
        value = parse_list(value, column) if re.match(r"\s*\[\s*\{", value) else None
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(message, Mapping) and not {"role", "from"}.isdisjoint(message) for message in value)
    )


def _layout(name: str, tells: str, choices: str | None = FOUND, tagged: bool = False, **columns: str) -> Layout:
    return Layout(name, frozenset(tells.split()), ColumnNames(choices=choices, **columns), tagged)


LAYOUTS: tuple[Layout, ...] = (
    _layout("EasyR1 (geometry3k)", "problem images answer"),
    _layout("R1-ShareVL-52K", "problem images answer new_questions"),
    _layout(
        "CLEVR-Math", "template question image label", problem="question", images="image", answer="label", id=NO_COLUMN
    ),
    _layout(
        "MathVista",
        "pid question decoded_image choices answer question_type",
        "choices",
        problem="question",
        images="decoded_image",
        id="pid",
    ),
    _layout(
        "MathVista (image files)",
        "pid question image choices answer question_type",
        "choices",
        problem="question",
        images="image",
        id="pid",
    ),
    _layout("GEOQA of R1-V", "image problem solution", tagged=True, images="image", answer="solution"),
    _layout("one image column", "image problem answer", images="image"),
    _layout("question and image", "question image answer", problem="question", images="image"),
    _layout("question and images", "question images answer", problem="question"),
    _layout("question, image, choices", "question image choices answer", "choices", problem="question", images="image"),
    _layout("question, images, choices", "question images choices answer", "choices", problem="question"),
    _layout("question, image, options", "question image options answer", "options", problem="question", images="image"),
    _layout("question, images, options", "question images options answer", "options", problem="question"),
)


WRITTEN = _layout(
    "written by sharevl-lite variants", "id problem images answer variants allow_mirrors transforms", choices=None
)


def choose_layout(where: str, present: Iterable[str], columns: ColumnNames) -> Layout:
    """The layout of a source.

    Columns that the user named, and the plain ones where they exist, are taken as they are; otherwise the layout of the
    table that most columns tell. A folder that `sharevl-lite variants` wrote has columns of its own, so that one recipe
    can name those of the original data for its held-out problems; its questions hold their options. Elsewhere a column
    of options is the one that the user named, the layout's, or one that is called `choices` or `options`.

    Args:
        where: The source, for messages.
        present: Its columns.
        columns: The recipe's names.

    Returns:
        The layout, with the column of options or None in `columns.choices`.

    Raises:
        DataError: A wanted column is missing and no layout, or more than one, fits; or both columns of options exist.
    """
    there = list(present)
    layout = _base_layout(where, there, columns.model_copy(update={"choices": FOUND}))
    written = WRITTEN.tells <= set(there)
    choices = None if written else _choices(where, there, layout.columns, columns.choices)
    return replace(layout, columns=layout.columns.model_copy(update={"choices": choices}))


def _base_layout(where: str, there: list[str], columns: ColumnNames) -> Layout:
    """The layout, whatever its column of options: as named, as `sharevl-lite variants` writes it, or a known one."""
    asked = Layout("as named", frozenset(), columns)
    complete = set(asked.wanted.values()) <= set(there)
    if not complete and WRITTEN.tells <= set(there):
        return WRITTEN
    if columns != ColumnNames():
        check_columns(where, there, asked.wanted)
        return asked
    fitting = [layout for layout in LAYOUTS if layout.tells <= set(there)]
    if complete:
        plain = [layout for layout in fitting if layout.columns == columns]
        return max(plain, key=lambda layout: len(layout.tells), default=asked)
    if not fitting:
        check_columns(where, there, asked.wanted)  # raises: one is missing
    return _best(where, there, fitting)


def _best(where: str, there: list[str], fitting: list[Layout]) -> Layout:
    """The layout that most columns tell. Raises DataError where that is more than one."""
    most = max(len(layout.tells) for layout in fitting)
    best = [layout for layout in fitting if len(layout.tells) == most]
    if "decoded_image" in there:  # MathVista's own table has the path beside the picture
        best = [layout for layout in best if layout.columns.images == "decoded_image"] or best
    if len(best) > 1:
        raise DataError(
            f"{where}: the columns {', '.join(map(repr, there))} fit more than one known layout "
            f"({', '.join(layout.name for layout in best)}); say which columns to read with data.columns (or --columns "
            "problem=…,images=…,answer=… of `sharevl-lite variants`)"
        )
    logger.info("%s: read by the columns of %s", where, best[0].name)
    return best[0]


def _choices(where: str, there: list[str], known: ColumnNames, asked: str | None) -> str | None:
    """The column of options: the one `asked` for, that of a `known` layout, or the one there by its name."""
    if asked != FOUND:
        if asked is not None:
            check_columns(where, there, {"choices": asked})
        return asked
    if known.choices != FOUND:
        return known.choices
    taken = {known.problem, known.images, known.answer, known.variants, known.id}
    found = [name for name in CHOICE_COLUMNS if name in there and name not in taken]
    if len(found) > 1:
        raise DataError(
            f"{where}: both {' and '.join(map(repr, found))} may hold the answer options; name one in "
            "data.columns.choices, or null for none (--columns choices=… of `sharevl-lite variants`)"
        )
    return found[0] if found else None


def check_columns(where: str, present: Iterable[str], wanted: Mapping[str, str]) -> None:
    """Raise :class:`DataError` with the columns there are and the nearest name, where a wanted column is missing."""
    columns = list(present)
    for key, column in wanted.items():
        if column in columns:
            continue
        near = difflib.get_close_matches(column, columns, n=1)
        hint = f"; nearest: {near[0]!r}" if near else ""
        empty = " (for problems without images, give the column an empty list)" if key == "images" else ""
        raise DataError(
            f"{where}: no column {column!r}; there are {', '.join(map(repr, columns))}{hint}. Set data.columns.{key} "
            f"(--data.columns.{key}; --columns {key}=… of `sharevl-lite variants`) to the column that holds it{empty}."
        )
