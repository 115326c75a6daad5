"""A problem, and one way of asking it: the two records that every room passes on. And a digest of many problems."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sharevl_lite.config import ColumnNames

if TYPE_CHECKING:
    from PIL.Image import Image

PLACEHOLDER = "<image>"
_LEADING = re.compile(rf"\s*(?:{re.escape(PLACEHOLDER)}\s*)*")


def split_placeholders(text: str) -> tuple[str, str]:
    """The placeholders that a text starts with, with the white space around them, and the question behind them."""
    leading = _LEADING.match(text)
    start = leading.end() if leading else 0
    return text[:start], text[start:]


@dataclass(frozen=True)
class Problem:
    """One checked row of the data.

    `text` holds one ``<image>`` per entry of `images` (RGB; those of files are decoded each time they are taken).
    `answer` is the right answer or, where the row lists them, all that are accepted, repeats included. `variants` are
    offline rewrites of `text` with equal meaning and as many placeholders. `transforms` names what may be done to the
    images, where the row says so. `metadata` keeps every other column as it was, that of options too; `columns` names
    those that the problem was made of, `choices` where the row has options.
    """

    id: str
    text: str
    images: Sequence[Image]
    answer: str | tuple[str, ...]
    variants: tuple[str, ...] = ()
    allow_mirrors: bool = False
    transforms: frozenset[str] | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    columns: ColumnNames = field(default=ColumnNames(choices=None), compare=False)

    @property
    def accepted(self) -> tuple[str, ...]:
        """The answers of which each is right, each once."""
        return (self.answer,) if isinstance(self.answer, str) else tuple(dict.fromkeys(self.answer))

    @property
    def gold(self) -> str:
        """The right answer as it is shown and stored: several with " or " between them."""
        return " or ".join(self.accepted)

    @property
    def answer_cell(self) -> str | list[str]:
        """The answer as a row has it: text, or a list of texts."""
        return self.answer if isinstance(self.answer, str) else list(self.answer)

    @property
    def image_sizes(self) -> tuple[tuple[int, int], ...]:
        """(width, height) of each image; images read from files are not decoded for it."""
        known: tuple[tuple[int, int], ...] | None = getattr(self.images, "sizes", None)
        return tuple(image.size for image in self.images) if known is None else known


@dataclass(frozen=True)
class Variant:
    """One of the m ways of asking a problem, ready to be sent to the model.

    `text` holds the ``<image>`` placeholders and, where `transform` is set, the sentence that says what was done to
    the images. `index` is the variant's place among the m; 0 is the original under `original: kept`. `guarded`: a
    transform was to be drawn, and the guard left out some that the recipe would have allowed.
    """

    index: int
    text: str
    images: Sequence[Image]
    transform: str | None = None
    guarded: bool = False


def fingerprint(problems: Iterable[Problem]) -> str:
    """A digest of ids, texts, rewrites, answers and image sizes, to notice that data changed before a resume."""
    digest = hashlib.sha256()
    for problem in problems:
        record = [problem.id, problem.text, problem.answer, *problem.variants, *map(list, problem.image_sizes)]
        digest.update(json.dumps(record).encode())
    return digest.hexdigest()
