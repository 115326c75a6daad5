"""Rows of the rollout store: what a row holds, in which Parquet columns, and the step from one to the other.

A change of the columns raises `SCHEMA_VERSION`; a reader refuses versions that it does not know, and gives null for
what an older version lacks. Version 2 added `scorer_logprobs`, a column of its own beside `scorers`: who reads figures
reads no tokens along with them. Version 3 added `extra`, what reward functions logged about a response.

In the split `train` a row without an advantage took no part in an update: its reward is not known, or (where
`rewards.total` is there) it was cut off and the recipe masks such rows, or dynamic sampling replaced the problem.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import pyarrow as pa

from sharevl_lite.errors import UserError

SCHEMA_VERSION = 3
READABLE_VERSIONS = (1, 2, 3)
VERSION_KEY = b"sharevl_lite.schema_version"
"""Key of the version in the metadata of a file's schema."""
ROLLOUTS_DIR, IMAGES_DIR = "rollouts", "images"
"""Of a run: a folder for each split, and the pictures."""
STEP_FILE = re.compile(r"step_(\d{6,})\.parquet")
"""Names of the files of a split, one a step; temporaries do not match."""


class StoreError(UserError):
    """The store cannot be read or written as asked; the message says what, where and what to do."""


@dataclass(frozen=True, slots=True)
class Rewards:
    """Rewards of one response. None where the verification failed and nothing is known."""

    total: float | None
    """Weighted sum, the R of algorithm.md."""
    accuracy: float | None
    """1 for a right answer, else 0, before its weight."""
    format: float | None
    """1 for the asked form, else 0, before its weight."""
    functions: Mapping[str, float | None] = field(default_factory=dict)
    """User functions by name, before their weights."""


@dataclass(frozen=True, slots=True)
class Verification:
    """How the answer was judged."""

    extracted: str | None = None
    """The answer found in the response."""
    rule: str | None = None
    """The rule of the verifier ladder that decided."""
    failure: str | None = None
    """Why there is no verdict, such as a time-out."""


@dataclass(frozen=True, slots=True)
class Scorer:
    """The response scored under variant k, at the policy of rollout time. Log-prob and gap are None where the pair was
    not forwarded; the advantage too where it is no pair of the objective."""

    variant_index: int
    """k; the source j is the row's own `variant_index`."""
    advantage: float | None
    """A of the pair: global, plus local where k = j."""
    mean_logprob: float | None
    """Mean over tokens of log pi_old(o | Qk), nats per token."""
    gap: float | None
    """Mean over tokens of log pi_old(o | Qk) - log pi_old(o | Qj), nats per token; 0 for k = j."""
    clip_fraction: float | None = None
    """Share of the tokens whose ratio was clipped in the update, 0..1."""


@dataclass(frozen=True, slots=True)
class RolloutRow:
    """One response: sampled under variant j of a problem, scored under every variant k."""

    run_id: str
    step: int
    problem_id: str
    variant_index: int
    variant_text: str
    transform: str | None
    image_sha: Sequence[str]
    answer: str
    response_index: int
    text: str
    token_ids: Sequence[int]
    truncated: bool
    sampling_logprobs: Sequence[float]
    rewards: Rewards
    verification: Verification = Verification()
    adv_global: float | None = None
    adv_local: float | None = None
    scorers: Sequence[Scorer] = ()
    scorer_logprobs: Sequence[Sequence[float] | None] | None = None
    """log pi_old(o_t | Qk) of each token, nats, per entry of `scorers`; None in it: pair not forwarded."""
    extra: Mapping[str, str] = field(default_factory=dict)
    """What reward functions logged about the response, by column."""
    schema_version: int = SCHEMA_VERSION


def _described(name: str, kind: pa.DataType, description: str, *, nullable: bool = False) -> pa.Field:
    return pa.field(name, kind, nullable=nullable, metadata={"description": description})


def _maybe(name: str, kind: pa.DataType, description: str) -> pa.Field:
    return _described(name, kind, description, nullable=True)


_REWARDS = pa.struct(
    [
        _maybe("total", pa.float64(), "weighted sum; null: not known"),
        _maybe("accuracy", pa.float64(), "1 right, 0 wrong; before its weight"),
        _maybe("format", pa.float64(), "1 well-formed, 0 not; before its weight"),
        _maybe("functions", pa.map_(pa.string(), pa.float64()), "user functions by name; before their weights"),
    ]
)
_VERIFICATION = pa.struct(
    [
        _maybe("extracted", pa.string(), "answer found in the response"),
        _maybe("rule", pa.string(), "rule that decided"),
        _maybe("failure", pa.string(), "why there is no verdict"),
    ]
)
_SCORER = pa.struct(
    [
        _described("variant_index", pa.int32(), "k, the scoring variant"),
        _maybe("advantage", pa.float64(), "global, plus local where k is the source"),
        _maybe("mean_logprob", pa.float64(), "log pi_old(o | Qk), nats per token; null: pair not forwarded"),
        _maybe("gap", pa.float64(), "log pi_old(o | Qk) - log pi_old(o | Qj), nats per token"),
        _maybe("clip_fraction", pa.float64(), "share of clipped tokens, 0..1"),
    ]
)
SCHEMA = pa.schema(
    [
        _described("schema_version", pa.int32(), f"version of these columns, {SCHEMA_VERSION}"),
        _described("run_id", pa.string(), "the run that wrote the row"),
        _described("step", pa.int64(), "rollout number, as in the file's name"),
        _described("problem_id", pa.string(), "id of the problem; group by it"),
        _described("variant_index", pa.int32(), "j, the variant that the response was sampled under, 0..m-1"),
        _described("variant_text", pa.string(), "the variant's question, without template"),
        _maybe("transform", pa.string(), "image transform of the variant; null: none"),
        _described("image_sha", pa.list_(pa.string()), "images as shown, in order; names in images/"),
        _described("answer", pa.string(), "the problem's right answer; accepted ones joined by ' or '"),
        _described("response_index", pa.int32(), "i, response under the variant, 0..n-1"),
        _described("text", pa.string(), "the response"),
        _described("token_ids", pa.list_(pa.int32()), "the response's tokens"),
        _described("truncated", pa.bool_(), "cut at max_completion_length"),
        _described("sampling_logprobs", pa.list_(pa.float32()), "log-prob of each token as sampled, nats"),
        _described("rewards", _REWARDS, "rewards"),
        _described("verification", _VERIFICATION, "how the answer was judged"),
        _maybe("adv_global", pa.float64(), "G: normalised over all m*n responses of the problem"),
        _maybe("adv_local", pa.float64(), "L: normalised over the n responses of the variant"),
        _described("scorers", pa.list_(_SCORER), "one entry per scoring variant k"),
        _maybe(
            "scorer_logprobs",
            pa.list_(pa.list_(pa.float32())),
            "log pi_old(o_t | Qk) of each token, nats, per entry of scorers; null: not scored, or written by version 1",
        ),
        _maybe(
            "extra", pa.map_(pa.string(), pa.string()), "what reward functions logged, by column; null: version 1, 2"
        ),
    ],
    metadata={VERSION_KEY: str(SCHEMA_VERSION)},
)


def version_fault(metadata: Mapping[bytes, bytes] | None) -> str | None:
    """Why a file with this metadata of its schema cannot be read; None where it can."""
    written = (metadata or {}).get(VERSION_KEY)
    if written is None:
        return "has no schema version, so this store did not write it; move it out of the run"
    if written in [str(version).encode() for version in READABLE_VERSIONS]:
        return None
    return (
        f"schema version {written.decode(errors='replace')}, and this program reads {min(READABLE_VERSIONS)} to "
        f"{max(READABLE_VERSIONS)}; read the run with the sharevl-lite that wrote it"
    )


def to_table(rows: Sequence[RolloutRow]) -> pa.Table:
    """The rows as a table of `SCHEMA`; NaN becomes null.

    Raises:
        StoreError: a value does not fit its column; the message names column and type.
    """
    return pa.Table.from_arrays([_column(column, rows) for column in SCHEMA], schema=SCHEMA)


def _column(column: pa.Field, rows: Sequence[RolloutRow]) -> pa.Array:
    """One column of the table. `from_pandas` makes null of NaN, inside lists and structs as well."""
    try:
        array = pa.array([_storable(getattr(row, column.name)) for row in rows], type=column.type, from_pandas=True)
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError) as error:
        raise StoreError(f"a value of column {column.name} is no {column.type}: {error}") from error
    if array.null_count and not column.nullable:
        raise StoreError(f"column {column.name} is missing in row {array.is_null().index(True).as_py()}")
    return array


def _storable(value: Any) -> Any:
    """`value` with records as dicts and mappings as pairs, which is what pyarrow takes for structs and maps."""
    if isinstance(value, Rewards):
        return {**asdict(value), "functions": list(value.functions.items())}
    if isinstance(value, Verification | Scorer):
        return asdict(value)
    if isinstance(value, Mapping):
        return list(value.items())
    if isinstance(value, Sequence) and value and isinstance(value[0], Scorer):
        return [asdict(scorer) for scorer in value]
    return value
