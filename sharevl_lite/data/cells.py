"""Lists that are written as text in a cell, and what a cell says as text."""

from __future__ import annotations

import ast
import io
import itertools
import json
import tokenize
from decimal import Decimal
from typing import Any

from sharevl_lite.data.errors import RowFault


def parse_list(text: str, column: str) -> list[Any] | None:
    """The list written in a string as JSON or as a Python literal; None where it holds no list.

    Raises RowFault for texts without a comma between them, which Python would join.
    """
    for parse in (json.loads, ast.literal_eval):
        try:
            value = parse(text.strip())
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):  # all that either one raises
            continue
        if not isinstance(value, list | tuple):
            continue
        if parse is ast.literal_eval and _texts_without_comma(text.strip()):
            raise RowFault(f"column {column!r} has two texts with no comma between them (a printed NumPy array?)")
        return list(value)
    return None


def cell_text(value: str | int | float | Decimal) -> str:
    """A text as it is, a number in digits: 3.0 as 3, since a column with a gap makes floats of integers.

    As an answer "3.0" would accept all that rounds to it.
    """
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        value = int(value)
    return str(value)


def _texts_without_comma(literal: str) -> bool:
    """Whether Python would join neighbouring texts into one: ``['a' 'b']`` is a list of one."""
    skipped = {tokenize.NL, tokenize.NEWLINE, tokenize.COMMENT}
    tokens = tokenize.generate_tokens(io.StringIO(literal).readline)
    kinds = [token.type for token in tokens if token.type not in skipped]
    return (tokenize.STRING, tokenize.STRING) in itertools.pairwise(kinds)
