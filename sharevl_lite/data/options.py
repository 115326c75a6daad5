"""Answer options of multiple-choice rows: the column that lists them, the text made of it, the form of the answer.

A row becomes its question with `Options:` and a line `(A) …` for each below it, and its answer `B. text`, which the
verifier takes by either. A question that shows the same options already is left as it is.
"""

from __future__ import annotations

import math
import re
import reprlib
from collections.abc import Mapping
from typing import Any

from sharevl_lite.data.cells import cell_text, parse_list
from sharevl_lite.data.errors import RowFault

NULLS = frozenset({"", "null", "none", "nan"})
"""How null is written in a cell that is text."""
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
CHOICE_COLUMNS = ("choices", "options")
"""Columns that are found by their names."""
OPTION = re.compile(r"(?:(?<=\s)|^)(?:\(([A-H])\)|([A-H])(?:[.:)]))[ \t]*(?=\S)")
OPTIONS_HEADING = re.compile(r"\b(?:options|choices|answer choices)\s*:?\s*$", re.IGNORECASE)
_BARE_LETTER = re.compile(r"\(?([A-Z])\)?[.:]?")
_NO_CONTENT = re.compile(r"\\(?:text|mathrm|mathbf|dfrac|frac|left|right)\b|[\s${}().,;:\\]+")
WITHOUT = "to leave the column out, set data.columns.choices: null (--columns choices=null of `sharevl-lite variants`)"

Options = list[tuple[str, str]]
"""(letter, text) of each."""


def split_options(text: str) -> tuple[str, tuple[tuple[str, str], ...]]:
    """The text without its block of options, and the options as (letter, content); () where there is no block.

    A block starts at A and goes on with B: a single "(A)" in a sentence is a point.
    """
    marks = [(match.start(), match.end(), match[1] or match[2]) for match in OPTION.finditer(text)]
    starts = [place for place, mark in enumerate(marks) if mark[2] == "A"]
    for start in reversed(starts):
        run = [mark for step, mark in enumerate(marks[start:]) if mark[2] == "ABCDEFGH"[min(step, 7)]]
        if len(run) < 2 or run != marks[start : start + len(run)]:
            continue
        ends = [mark[0] for mark in run[1:]] + [len(text)]
        options = tuple(
            (letter, " ".join(text[end:stop].split())) for (_, end, letter), stop in zip(run, ends, strict=True)
        )
        return OPTIONS_HEADING.sub("", text[: run[0][0]].rstrip()).rstrip(), options
    return text, ()


def read_options(value: Any, column: str) -> Options:
    """The options in a cell: a list, a text that holds one, or a mapping A, B, … to texts; [] for an empty cell.

    Empty are null and a text that says so, NaN, and lists and mappings of nothing else. Gaps at the end of a list or a
    mapping are no options: tables of one width for all rows have them. A list of nothing but
    the letters themselves names no options: they stand in the question, or nowhere.

    Raises RowFault where the cell is something else, or has more options than there are letters.
    """
    if isinstance(value, str) and value.strip().lower() in NULLS:
        return []
    if isinstance(value, str):
        listed = parse_list(value, column)
        value = value if listed is None else listed
    if isinstance(value, Mapping):
        held = {key: text for key, text in value.items() if text is not None}  # Parquet fills gaps of structs
        value = list(held.values()) if list(held) == list(LETTERS[: len(held)]) else value
    if _is_gap(value):
        return []
    while isinstance(value, list | tuple) and value and _is_gap(value[-1]):
        value = value[:-1]
    if not isinstance(value, list | tuple) or not all(isinstance(option, str | int | float) for option in value):
        raise RowFault(f"column {column!r} is {reprlib.repr(value)}; give a list of texts, or {WITHOUT}")
    if len(value) > len(LETTERS):
        raise RowFault(f"column {column!r} has {len(value)} options; {len(LETTERS)} is the most")
    options = [(letter, cell_text(option).strip()) for letter, option in zip(LETTERS, value, strict=False)]
    return [] if all(letter == text for letter, text in options) else options


def _is_gap(value: Any) -> bool:
    """Whether a cell, or an entry of one, holds nothing. (An option may be called "None".)"""
    if isinstance(value, str):
        return not value.strip()
    return value is None or (isinstance(value, float) and math.isnan(value))


def with_options(text: str, options: Options) -> str:
    """The question with its options below it, unless it shows them."""
    if not options or shows_options(text, options):
        return text
    return text.rstrip() + "\nOptions:\n" + "\n".join(f"({letter}) {option}" for letter, option in options)


def shows_options(text: str, options: Options) -> bool:
    """Whether the text has a block of these options, in this order; spaces, case and signs of LaTeX do not count.

    What follows the last one, such as "Answer with the letter.", may be anything.
    """
    shown = [_content(option) for _, option in split_options(text)[1]]
    wanted = [_content(option) for _, option in options]
    if len(shown) != min(len(wanted), 8):  # blocks are read up to H
        return False
    return shown[:-1] == wanted[: len(shown) - 1] and shown[-1].startswith(wanted[len(shown) - 1])


def _content(option: str) -> str:
    return _NO_CONTENT.sub("", option).lower()


def lettered_answer(value: Any, options: Options) -> str:
    """`B. text` of an answer given as the text, the letter or both. Raises RowFault where it is none of the options."""
    said = str(value).strip()
    texts = dict(options)
    letter = next((letter for form in _forms(value) for letter, option in options if form == option), None)
    bare = _BARE_LETTER.fullmatch(said)
    if letter is None and bare is not None and bare[1] in texts:
        letter = bare[1]
    if letter is None:
        letter = next((letter for letter, option in options if said == f"{letter}. {option}"), None)
    if letter is None:
        told = ", ".join(repr(text) for _, text in options)
        raise RowFault(f"the answer {said!r} is none of the options {told}; give one's text or letter, or {WITHOUT}")
    return f"{letter}. {texts[letter]}"


def _forms(value: Any) -> list[str]:
    """How an answer may be written among the options: as it is, and 2.0 as the 2 that a column of numbers becomes."""
    said = str(value).strip()
    try:
        return [said, cell_text(float(said))]
    except ValueError:
        return [said]
