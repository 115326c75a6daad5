"""How a problem was answered: a record for each problem, each way it was asked, and each response."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

RIGHT = 0
"""Class of the answers that the verifier accepts; wrong answers are classes from 1 on."""


@dataclass(frozen=True)
class Answer:
    """One response, without its text (that is in the store beside the evaluation)."""

    extracted: str | None
    """The boxed answer; None where there was none, or the verification failed."""
    correct: bool | None
    """None: the verification failed and nothing is known."""
    group: int | None
    """Class of answers that say the same, within the problem: RIGHT, or a number from 1 on. None: no answer, or the
    verification failed."""
    well_formed: bool
    truncated: bool
    tokens: int
    """Length of the response."""
    rewards: Mapping[str, float | None] = field(default_factory=dict)
    """`reward`, and `reward/NAME` for each of the user's functions; None: not known. Empty without functions."""


@dataclass(frozen=True)
class Asked:
    """One way in which a problem was asked, and its answers in the order of sampling."""

    kind: str
    """See :mod:`sharevl_lite.variants.kinds`."""
    transform: str | None
    answers: tuple[Answer, ...]

    @property
    def known(self) -> list[bool]:
        """Whether each verified response was right; the others are left out."""
        return [answer.correct for answer in self.answers if answer.correct is not None]


@dataclass(frozen=True)
class Outcome:
    """A problem in all the ways it was asked; the first is the plain one."""

    id: str
    source: str | None
    question: str
    gold: str
    asked: tuple[Asked, ...]

    def as_json(self) -> dict[str, Any]:
        """Plain JSON values; one list per property of the answers."""
        return {
            "id": self.id,
            "source": self.source,
            "question": self.question,
            "gold": self.gold,
            "asked": [
                {
                    "kind": way.kind,
                    "transform": way.transform,
                    **{name: [getattr(answer, name) for answer in way.answers] for name in _PROPERTIES},
                    **(
                        {"rewards": [answer.rewards for answer in way.answers]}
                        if any(answer.rewards for answer in way.answers)
                        else {}
                    ),
                }
                for way in self.asked
            ],
        }

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Outcome:
        """The inverse of :meth:`as_json`. Raises KeyError, TypeError or ValueError for anything else."""
        asked = tuple(
            Asked(
                way["kind"],
                way["transform"],
                tuple(Answer(*values) for values in zip(*_columns(way), strict=True)),
            )
            for way in record["asked"]
        )
        if not asked:
            raise ValueError("a problem that was asked in no way")
        return cls(record["id"], record["source"], record["question"], record["gold"], asked)


def _columns(way: Mapping[str, Any]) -> list[Sequence[Any]]:
    """The lists of a way's record, in the order of an answer's fields."""
    return [*(way[name] for name in _PROPERTIES), way.get("rewards", [{}] * len(way["tokens"]))]


_PROPERTIES = tuple(name for name in Answer.__dataclass_fields__ if name != "rewards")
