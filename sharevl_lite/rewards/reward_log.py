"""What reward functions log about a batch by TRL's `log_metric` and `log_extra`, which they get as arguments.

    def judged(completions, log_metric, log_extra, **kwargs):
        verdicts = [judge(completion) for completion in completions]
        log_extra("judge says", [verdict.reason for verdict in verdicts])
        log_metric("mean confidence", mean(verdict.confidence for verdict in verdicts))
        return [verdict.score for verdict in verdicts]

Signatures and meaning are those of TRL 1.15: a metric is one number for a batch, an extra is one value per completion.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any


class RewardLog:
    """Collects what is logged about one batch of `size` completions."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._metrics: dict[str, list[float]] = {}
        self._extras: dict[str, list[str | None]] = {}

    def log_metric(self, name: str, value: Any) -> None:
        """Adds a number to the metric `name`; of several the mean counts.

        Raises TypeError or ValueError where `value` is no number.
        """
        try:
            number = float(value)
        except (TypeError, ValueError) as error:
            raise type(error)(f"log_metric({name!r}, ...) wants a number, got {value!r:.200}") from error
        self._metrics.setdefault(_text(name, "log_metric"), []).append(number)

    def log_extra(self, column: str, values: Any) -> None:
        """Keeps one value per completion under `column`.

        Raises:
            TypeError: `column` is no text, or `values` no list.
            ValueError: there are more or fewer values than completions, or the column has been logged already.
        """
        column = _text(column, "log_extra")
        listed = values.tolist() if hasattr(values, "tolist") else values
        if not isinstance(listed, Sequence) or isinstance(listed, str):
            raise TypeError(f"log_extra({column!r}, ...) wants a list, one value per completion, got {values!r:.200}")
        if len(listed) != self._size:
            raise ValueError(f"log_extra({column!r}, ...) got {len(listed)} values for {self._size} completions")
        if column in self._extras:
            raise ValueError(f"log_extra({column!r}, ...) was called before for this batch; use another name")
        self._extras[column] = [_written(value) for value in listed]

    @property
    def metrics(self) -> dict[str, float]:
        """The metrics of the batch by name."""
        return {name: sum(values) / len(values) for name, values in self._metrics.items()}

    def extras_of(self, row: int) -> dict[str, str]:
        """What was logged about completion `row`, by column; what was None is left out."""
        values = {column: values[row] for column, values in self._extras.items()}
        return {column: value for column, value in values.items() if value is not None}


def _text(name: Any, function: str) -> str:
    if not isinstance(name, str):
        raise TypeError(f"{function} wants a name, got {name!r:.200}")
    return _storable(name)


def _written(value: Any) -> str | None:
    """A value as the store keeps it: text as it is, the rest as JSON, or as Python prints what JSON lacks."""
    if value is None:
        return None
    return _storable(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str))


def _storable(text: str) -> str:
    """The text with a question mark for each half of a surrogate pair, which UTF-8 has no bytes for."""
    return text.encode(errors="replace").decode()
