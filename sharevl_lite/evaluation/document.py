"""The document of an evaluation: `<name>.json`, and how it is read again.

    schema_version   1
    protocol         what decides the figures, as scalars
    metrics          name -> {value, low, high, problems, left_out}: see `figures`
    kinds, transforms, sources
                     the same for each kind of asking, each image transform, each source
    counts           responses asked, cut, not verified, ...
    problems         every problem with its answers: see `outcomes`

`low` and `high` are null where there is no interval to give (one problem, or values without spread that are no shares
of 0 or 1); `value` is null where no problem has one. Nothing in it depends on when or where it was written: two
evaluations of the same thing with the same seed and engine `hf` are equal.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sharevl_lite.atomic import write_json
from sharevl_lite.evaluation.errors import EvaluationError
from sharevl_lite.evaluation.figures import Bootstrap, by_kind, by_source, by_transform, counts, headline
from sharevl_lite.evaluation.outcomes import Outcome
from sharevl_lite.evaluation.statistics import Figure

SCHEMA_VERSION = 1
NUMBERS = {"samples": 1, "seed": 0, "bootstrap_resamples": 0}
"""What figures are worked out and compared by, in every protocol, and the least that each may be."""

Scalar = str | int | float | bool | None
Group = dict[str, dict[str, Figure]]


@dataclass(frozen=True)
class Evaluation:
    """An evaluation, figures and outcomes."""

    protocol: dict[str, Scalar]
    metrics: dict[str, Figure]
    kinds: Group
    transforms: Group
    sources: Group
    counts: dict[str, int]
    problems: tuple[Outcome, ...]

    @classmethod
    def of(cls, protocol: Mapping[str, Scalar], outcomes: Sequence[Outcome], comparisons_failed: int = 0) -> Evaluation:
        """Works the figures out; `protocol` needs `NUMBERS`."""
        samples, draws = int(protocol["samples"] or 0), _draws(protocol)
        return cls(
            dict(protocol),
            headline(outcomes, samples, draws),
            by_kind(outcomes, samples, draws),
            by_transform(outcomes, samples, draws),
            by_source(outcomes, samples, draws),
            counts(outcomes, comparisons_failed),
            tuple(outcomes),
        )

    @property
    def samples(self) -> int:
        """Responses to each way of asking."""
        return int(self.protocol["samples"] or 0)

    def as_json(self, *, problems: bool = True) -> dict[str, Any]:
        """Plain JSON values, with or without the problems."""
        groups = {"kinds": self.kinds, "transforms": self.transforms, "sources": self.sources}
        return {
            "schema_version": SCHEMA_VERSION,
            "protocol": self.protocol,
            "metrics": _plain(self.metrics),
            **{name: {key: _plain(figures) for key, figures in group.items()} for name, group in groups.items()},
            "counts": self.counts,
            **({"problems": [outcome.as_json() for outcome in self.problems]} if problems else {}),
        }

    def write(self, path: Path) -> None:
        """Writes the document; `path` holds all of it or what it held before."""
        write_json(path, self.as_json(), indent=1)


def _draws(protocol: Mapping[str, Scalar]) -> Bootstrap:
    return Bootstrap(int(protocol["seed"] or 0), int(protocol["bootstrap_resamples"] or 0))


def _plain(figures: Mapping[str, Figure]) -> dict[str, Any]:
    return {name: found.as_json() for name, found in figures.items()}


def read(path: str | Path) -> Evaluation:
    """An evaluation as written; its figures are read, not worked out again.

    Raises EvaluationError where the file is missing, is no evaluation, damaged, or of another schema version.
    """
    path = Path(path)
    try:
        record = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise EvaluationError(f"{path}: cannot be read ({error.strerror}); give the .json of an evaluation") from error
    except ValueError as error:
        raise EvaluationError(f"{path}: not JSON ({error}); give the .json of an evaluation") from error
    if not isinstance(record, dict) or "schema_version" not in record or "problems" not in record:
        raise EvaluationError(f"{path}: not an evaluation; `sharevl-lite eval` writes them")
    if record["schema_version"] != SCHEMA_VERSION:
        raise EvaluationError(
            f"{path}: schema version {record['schema_version']}, and this program reads {SCHEMA_VERSION}; evaluate "
            "again, or read it with the sharevl-lite that wrote it"
        )
    try:
        protocol = dict(record["protocol"])
        if fault := _fault(protocol):
            raise ValueError(fault)
        return Evaluation(
            protocol=protocol,
            metrics=_figures(record["metrics"]),
            kinds=_group(record["kinds"]),
            transforms=_group(record["transforms"]),
            sources=_group(record["sources"]),
            counts=dict(record["counts"]),
            problems=tuple(Outcome.from_json(problem) for problem in record["problems"]),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        told = str(error) if type(error) is ValueError else repr(error)
        raise EvaluationError(f"{path}: a damaged evaluation ({told}); evaluate again") from error


def _fault(protocol: Mapping[str, Any]) -> str | None:
    """What is wrong with a protocol's numbers."""
    for name, least in NUMBERS.items():
        if name not in protocol:
            return f"protocol.{name} is missing"
        value = protocol[name]
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            return f"protocol.{name} is {value!r}, not a whole number from {least} on"
    return None


def _figures(record: Mapping[str, Any]) -> dict[str, Figure]:
    return {name: Figure(**values) for name, values in record.items()}


def _group(record: Mapping[str, Any]) -> Group:
    return {key: _figures(figures) for key, figures in record.items()}
