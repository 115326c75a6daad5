"""Try it: what the explorer asks of a model, and what comes back. Plain records: which model answers is not known here.

Whoever starts the explorer hands in a :class:`Tryout`. The page's input is untrusted, so :func:`read_trial` holds it to
bounds; a :class:`Desk` lets one trial run at a time.
"""

from __future__ import annotations

import base64
import binascii
import logging
import re
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

IMAGE_BYTES = 10 * 2**20
IMAGE_PIXELS = 40_000_000
QUESTION_CHARACTERS = 4000
ANSWER_CHARACTERS = 500
MOST_SAMPLES = 16
WAITING = 4
"""Trials that may wait for the one that runs; further ones are refused."""

logger = logging.getLogger(__name__)


class TrialError(ValueError):
    """A trial that cannot be run; the message is shown on the page."""


@dataclass(frozen=True, slots=True)
class Trial:
    """One question to the model."""

    question: str
    answer: str | tuple[str, ...] | None
    """The right answer, or all that are accepted; None: the responses are not rewarded."""
    image: bytes | None
    """An image file as it was uploaded."""
    samples: int
    """Responses under each variant."""
    tokens: int
    """Longest response."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """One response. Figures are None where no right answer was given or nothing is known."""

    text: str
    tokens: int
    truncated: bool
    total: float | None = None
    accuracy: float | None = None
    format: float | None = None
    functions: Mapping[str, float | None] = field(default_factory=dict)
    extracted: str | None = None
    rule: str | None = None
    failure: str | None = None
    adv_global: float | None = None
    adv_local: float | None = None
    logged: Mapping[str, str] = field(default_factory=dict)
    """What reward functions logged about the response, by column."""


@dataclass(frozen=True, slots=True)
class AskedVariant:
    """One of the m ways in which the question was asked, with its images (PNG) and responses."""

    text: str
    transform: str | None
    images: tuple[bytes, ...]
    attempts: tuple[Attempt, ...]


@dataclass(frozen=True, slots=True)
class Tryout:
    """A model that can be asked. `ask` raises :class:`TrialError` for a trial that it cannot run."""

    model: str
    """What answers, in words."""
    variants: int
    """m."""
    most_tokens: int
    """Longest response that may be asked for."""
    ask: Callable[[Trial], tuple[AskedVariant, ...]]
    close: Callable[[], None]


def read_trial(data: Any, tryout: Tryout) -> Trial:
    """The trial that a page sent: `question`, `answer` (one accepted answer a line), `image` (base64 or null),
    `samples`, `tokens`.

    Raises:
        TrialError: a part is missing, of another kind or out of bounds.
    """
    given = data if isinstance(data, Mapping) else {}
    question, answer = _text(given, "question", QUESTION_CHARACTERS), _text(given, "answer", ANSWER_CHARACTERS)
    if not question:
        raise TrialError("Type a question.")
    return Trial(
        question=question,
        answer=_accepted(answer),
        image=_image(given.get("image")),
        samples=_count(given, "samples", MOST_SAMPLES),
        tokens=_count(given, "tokens", tryout.most_tokens),
    )


def _text(given: Mapping[Any, Any], name: str, most: int) -> str:
    value = given.get(name, "")
    if not isinstance(value, str):
        raise TrialError(f"The {name} is no text.")
    if len(value) > most:
        raise TrialError(f"The {name} has {len(value):,} characters; at most {most:,} are read.")
    return value.strip()


def _accepted(answer: str) -> str | tuple[str, ...] | None:
    lines = tuple(line.strip() for line in answer.splitlines() if line.strip())
    return lines if len(lines) > 1 else lines[0] if lines else None


def _count(given: Mapping[Any, Any], name: str, most: int) -> int:
    written = str(given.get(name))
    value = int(written) if re.fullmatch(r"[0-9]{1,6}", written) else 0
    if not 1 <= value <= most:
        raise TrialError(f"{name}: give a whole number from 1 to {most}.")
    return value


def _image(value: Any) -> bytes | None:
    if value is None:
        return None
    if not isinstance(value, str):
        raise TrialError("The image is no file.")
    if len(value) > 4 * -(-IMAGE_BYTES // 3):
        raise TrialError(f"The image file is larger than {IMAGE_BYTES // 2**20} MiB.")
    try:
        return base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError) as error:
        raise TrialError("The image did not arrive whole; choose it again.") from error


class Desk:
    """Runs trials one at a time, the others wait; anything that goes wrong becomes a :class:`TrialError`."""

    def __init__(self, tryout: Tryout) -> None:
        self.tryout = tryout
        self._places = threading.BoundedSemaphore(1 + WAITING)
        self._turn = threading.Lock()

    def ask(self, data: Any) -> tuple[AskedVariant, ...]:
        """The answers to what a page sent.

        Raises:
            TrialError: the input is out of bounds, too many wait, or the model failed.
        """
        trial = read_trial(data, self.tryout)
        if not self._places.acquire(blocking=False):
            raise TrialError(f"{WAITING} questions are waiting already; try again in a while.")
        try:
            with self._turn:
                return self.tryout.ask(trial)
        except TrialError:
            raise
        except Exception as error:  # out of memory, a reward function of the user's: the explorer goes on
            logger.exception("a trial failed")
            raise TrialError(f"It failed: {type(error).__name__}: {str(error)[:500]}") from error
        finally:
            self._places.release()
