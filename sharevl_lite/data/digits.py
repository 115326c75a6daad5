"""`builtin:digits`: two handwritten digits side by side, and a question about them.

The images are scikit-learn's digits (1,797 scans of 8×8 grey values, UCI ML repository), enlarged to 56×56 each. Train
and test problems are drawn from disjoint scans. Every question kind has several wordings: the first is the problem's
text, the others are what `sharevl-lite variants --with rules` makes of it (a test compares them).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Literal

from sharevl_lite.data.problem import PLACEHOLDER, Problem

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image

DIGIT_PIXELS = 56
SPLIT_SIZES = {"train": 2048, "test": 512}
TEST_SHARE = 0.3


@dataclass(frozen=True)
class QuestionKind:
    """A question about two digits: its wordings, the problem's own first, and how the answer follows."""

    name: str
    wordings: tuple[str, ...]
    answer: Callable[[int, int], int]
    working: Callable[[int, int], str]


KINDS: tuple[QuestionKind, ...] = (
    QuestionKind(
        "sum",
        (
            "What is the sum of the two digits?",
            "Calculate the sum of the two digits.",
            "Work out the sum of the two digits.",
            "Find the sum of the two digits.",
        ),
        lambda a, b: a + b,
        lambda a, b: f"{a}+{b}={a + b}",
    ),
    QuestionKind(
        "difference",
        (
            "What is the difference between the two digits?",
            "Work out the difference between the two digits.",
            "Find the difference between the two digits.",
            "Calculate the difference between the two digits.",
        ),
        lambda a, b: abs(a - b),
        lambda a, b: f"{max(a, b)}-{min(a, b)}={abs(a - b)}",
    ),
    QuestionKind(
        "larger",
        (
            "Which of the two digits is larger?",
            "Determine which of the two digits is larger.",
            "Find out which of the two digits is larger.",
            "State which of the two digits is larger.",
        ),
        max,
        lambda a, b: f"max({a},{b})={max(a, b)}",
    ),
    QuestionKind(
        "even",
        (
            "How many of the two digits are even?",
            "Find out how many of the two digits are even.",
            "Determine how many of the two digits are even.",
            "State how many of the two digits are even.",
        ),
        lambda a, b: (a % 2 == 0) + (b % 2 == 0),
        lambda a, b: (
            f"{'even' if a % 2 == 0 else 'odd'},{'even' if b % 2 == 0 else 'odd'}={(a % 2 == 0) + (b % 2 == 0)}"
        ),
    ),
)


@cache
def scans(split: str) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """The split's scans: grey values uint8 [S, 8, 8], ink dark on white, and labels [S].

    The division is by label and by position in the file, so it is the same everywhere and both splits hold each digit.
    """
    import numpy as np
    from sklearn.datasets import load_digits

    bunch = load_digits()
    held_out = np.zeros(len(bunch.target), dtype=bool)
    for label in range(10):
        places = np.flatnonzero(bunch.target == label)
        held_out[places[: round(TEST_SHARE * len(places))]] = True
    chosen = held_out if split == "test" else ~held_out
    grey = (255 - np.round(bunch.images * (255 / 16))).clip(0, 255).astype(np.uint8)
    return grey[chosen], bunch.target[chosen]


def draw_pair(left: np.ndarray[Any, Any], right: np.ndarray[Any, Any]) -> Image:
    """Two 8×8 scans side by side as an RGB image of 112×56 pixels."""
    import numpy as np
    from PIL import Image

    size = (2 * DIGIT_PIXELS, DIGIT_PIXELS)
    pair = Image.fromarray(np.concatenate([left, right], axis=1))
    return pair.resize(size, Image.Resampling.BILINEAR).convert("RGB")


def digits_problems(split: Literal["train", "test"] | str) -> list[Problem]:
    """The problems of `train` (2048) or `test` (512), always the same ones in the same order.

    Raises ValueError for another split.
    """
    return list(iterate_digits(split))


def iterate_digits(split: Literal["train", "test"] | str) -> Iterator[Problem]:
    """The problems of :func:`digits_problems`, each drawn when its turn comes: the first few cost no more than that.

    Raises ValueError for another split, at once.
    """
    if split not in SPLIT_SIZES:
        raise ValueError(f"builtin:digits has the splits {', '.join(SPLIT_SIZES)}, not {split!r}")
    return _draw_problems(split)


def _draw_problems(split: str) -> Iterator[Problem]:
    import numpy as np

    images, labels = scans(split)
    rng = np.random.default_rng([20250516, list(SPLIT_SIZES).index(split)])
    for number in range(SPLIT_SIZES[split]):
        first, second = (int(i) for i in rng.choice(len(labels), size=2, replace=False))
        kind = KINDS[number % len(KINDS)]
        a, b = int(labels[first]), int(labels[second])
        yield Problem(
            id=f"digits-{split}-{number:04d}",
            text=PLACEHOLDER + kind.wordings[0],
            images=(draw_pair(images[first], images[second]),),
            answer=str(kind.answer(a, b)),
            variants=tuple(PLACEHOLDER + wording for wording in kind.wordings[1:]),
            metadata={"kind": kind.name, "digits": [a, b]},
        )
