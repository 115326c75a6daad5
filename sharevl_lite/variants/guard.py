"""Which transforms a problem can bear: by what its text speaks of, and by whether its images seem to hold writing.

Rotations are told in their sentence, which turns up and down along; a mirror's sentence cannot undo that writing is
reversed, nor say what "left" or "above" meant. Whoever asks for pixel coordinates means those of the image as it was:
nothing may move there. A row that names its `transforms` is taken at its word, as far as the
recipe lists them.

The check for writing is a fast guess: blobs of the size of letters, several in a row. Lines that cross look like it
too; a mirror that is left out costs nothing. It misses single letters, and writing that is faint or a few pixels high:
where that matters, and the question does not name the points, let the rows name their transforms. Of texts it
knows English and Chinese words.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sharevl_lite.variants.transforms import TRANSFORMS

if TYPE_CHECKING:
    from sharevl_lite.config import TransformSection
    from sharevl_lite.data.problem import Problem

SIDED = re.compile(
    r"\b(?:left(?:most|wards?)?|right(?:most|wards?)|right(?!\s+(?:angle|triangle|prism|cone|cylinder|pyramid|circular))"
    r"(?!-angled)|(?:counter-?|anti-?)?clockwise|(?:north|south)?-?(?:east|west)\w*|north\w*|south\w*|above|below|beneath"
    r"|over|under|top(?:most)?|bottom|up|down|up(?:per|ward\w*|side)|down(?:ward\w*)|higher|lower|highest|lowest"
    r"|slopes?|gradient|correlat\w*|rises?|rising|falls?|falling|increas\w*|decreas\w*|quadrants?|coordinates?|ax[ie]s"
    r"|directions?|which way|first|second|third|last|next|turns?|signs?|hands?|chiral\w*|mirror\w*|flip\w*|reflect\w*"
    r"|digits?|numbers? (?:(?:is|are) )?(?:shown|on|written|printed)|(?:what|which) numbers? (?:is|are|does|do)|plates?"
    r"|letters?|words?|text|written|writing|read|reads|says?|spell\w*|clock|time|handed\w*)\b"
    r"|[左右上下东西南北钟镜字]|顺时针|逆时针|几点",
    re.IGNORECASE,
)
PLACES = re.compile(
    r"\bb(?:ounding[ -]?)?box(?:es)?\b|bbox|point_2d|\bpixels?\b|<\|?box|\[\s*x_?(?:0|1|min)\s*,|\bx_?min\b|\blocate\b"
    r"|\bx_?(?:0|1)\s*,\s*y_?(?:0|1)\s*,\s*x_?(?:1|2)\b|\b(?:normali[sz]ed|image|absolute|relative) coordinates",
    re.IGNORECASE,
)
"""Words of a question about places in the image."""
_NUMBER = r"\s*-?(?:\d+(?:\.\d*)?|\.\d+)\s*"
BOX = re.compile(
    rf"<\|?(?:box|point)|[\[(](?:{_NUMBER},){{3}}{_NUMBER}[\])]|\({_NUMBER},{_NUMBER}\)\s*,\s*\({_NUMBER},{_NUMBER}\)"
)
"""An answer with the corners of a box, or marked as a place."""
LABELLED = re.compile(
    r"\b[A-Z]{2,5}\b|\\angle|\\triangle|∠|△|\b(?:[Pp]oint|[Ll]ine|[Aa]ngle|[Vv]ertex|[Ss]ide)s? [A-Z]\b"
)
"""Names of points or angles: the image shows them as letters."""
MOST_LETTERS = 400
"""More blobs of a letter's size than this are a texture."""
LOOKED_AT = 512
"""Longest side in pixels at which an image is looked at."""
SMALL = 0.035
"""Letters lower than this share of the image's height are small writing."""
CONTRAST = 25
"""Ink is so much darker or lighter (of 255) than its surroundings."""
MOST_SEEN = 2**17
"""Images whose look is remembered, by a digest."""
_SEEN: dict[bytes, tuple[bool, bool]] = {}
LETTERS = 3
"""So many letters of one height beside each other are writing."""


def kinds_by_text(problem: Problem, section: TransformSection) -> list[str]:
    """Those of the recipe's kinds that neither the row nor its words rule out, in order; images are not looked at."""
    if problem.transforms is not None:
        return [kind for kind in section.kinds if kind in problem.transforms]
    still = section.guard and asks_for_places(problem)
    return [kind for kind in section.kinds if not (still and TRANSFORMS[kind].moves)]


def allowed_kinds(problem: Problem, section: TransformSection) -> list[str]:
    """The recipe's kinds that this problem can bear, in order."""
    kinds = kinds_by_text(problem, section)
    if problem.transforms is not None:
        return kinds
    mirrors = _may_mirror(problem, section)
    kinds = [kind for kind in kinds if mirrors or not TRANSFORMS[kind].reverses]
    clear = [kind for kind in kinds if not TRANSFORMS[kind].blurs]
    if section.guard and clear != kinds and any(writing(image)[1] for image in problem.images):
        return clear
    return kinds


def holds_back(problem: Problem, section: TransformSection) -> bool:
    """Whether the guard leaves out some of the kinds that recipe and row allow; looks at the images, as
    :func:`allowed_kinds` does."""
    free = section.model_copy(update={"guard": False})
    return section.guard and allowed_kinds(problem, section) != allowed_kinds(problem, free)


def _may_mirror(problem: Problem, section: TransformSection) -> bool:
    if problem.allow_mirrors:
        return True
    if not section.allow_mirrors:
        return False
    return not section.guard or not (
        speaks_of_sides((problem.text, *problem.variants, *problem.accepted))
        or any(writing(image)[0] for image in problem.images)
    )


def asks_for_places(problem: Problem) -> bool:
    """Whether an accepted answer holds pixel coordinates, as in grounding: they are those of the image as it is."""
    return any(map(BOX.search, problem.accepted)) or PLACES.search(problem.text) is not None


def speaks_of_sides(texts: Iterable[str]) -> bool:
    """Whether a mirror would change what one of the texts means."""
    return any(SIDED.search(text) or LABELLED.search(text) for text in texts)


def writing(image: Image.Image) -> tuple[bool, bool]:
    """(whether the image seems to hold writing, whether that is small)."""
    small = image.convert("L")
    small.thumbnail((LOOKED_AT, LOOKED_AT), Image.Resampling.BOX)
    key = hashlib.blake2b(small.tobytes() + repr(small.size).encode(), digest_size=16).digest()
    if key not in _SEEN:
        if len(_SEEN) >= MOST_SEEN:
            _SEEN.clear()
        _SEEN[key] = _writing(np.asarray(small, dtype=np.float32))
    return _SEEN[key]


def _writing(grey: NDArray[np.float32]) -> tuple[bool, bool]:
    from scipy import ndimage

    height = grey.shape[0]
    ground = ndimage.uniform_filter(grey, size=31, mode="nearest")
    dark, bright = (_lines(*_blobs(ink), height) for ink in (grey < ground - CONTRAST, grey > ground + CONTRAST))
    # The holes of letters are small blobs as well: only the ink of the page tells how small the writing is.
    ink = dark if float(np.median(grey)) >= 128 else bright
    return bool(dark or bright), any(line < SMALL for line in ink)


def _blobs(ink: NDArray[np.bool_]) -> tuple[list[tuple[slice, slice]], NDArray[np.int64]]:
    """Boxes and areas of the connected parts."""
    from scipy import ndimage

    labels, _ = ndimage.label(ink, structure=np.ones((3, 3)))
    return ndimage.find_objects(labels), np.bincount(labels.ravel())[1:]


def _lines(boxes: list[tuple[slice, slice]], areas: NDArray[np.int64], height: int) -> list[float]:
    """Heights (shares of the image's) of the rows of letters among the blobs."""
    letters = []
    for (rows, columns), area in zip(boxes, areas, strict=True):
        tall, wide = rows.stop - rows.start, columns.stop - columns.start
        dense = area / (tall * wide)
        if 5 <= tall <= 0.15 * height and 0.1 <= wide / tall <= 1.8 and 0.15 <= dense <= 0.9:
            letters.append((rows.stop, columns.start, tall, wide))
    found: list[float] = []
    if len(letters) > MOST_LETTERS:
        return found
    for bottom, left, tall, _ in letters:
        neighbours = [
            other
            for other in letters
            if abs(other[0] - bottom) <= 0.3 * tall
            and 0.6 <= other[2] / tall <= 1.6
            and abs(other[1] - left) <= LETTERS * 1.6 * tall
        ]
        if len(neighbours) >= LETTERS:
            found.append(tall / height)
    return found
