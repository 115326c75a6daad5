"""Whether two evaluations may be compared: what of their protocols must be the same, and what is only said.

An older evaluation may lack what is recorded now; a setting that one of the two does not know is said, not refused.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sharevl_lite.evaluation.document import Evaluation
from sharevl_lite.evaluation.figures import REWARD

SAME = (
    "data_digest",
    "pixels_digest",
    "problems",
    "samples",
    "temperature",
    "top_p",
    "max_completion_length",
    "prompt_sha256",
    "min_pixels",
    "max_pixels",
    "variants",
    "numeric_tolerance",
)
"""What two evaluations must share, or their difference is not one of the models."""
SAME_VARIANTS = ("variant_kinds", "variant_mirrors", "variant_guard", "variant_probability", "variant_rows_digest")
"""So too, unless both asked the plain questions alone."""
TOLD = (
    "seed",
    "engine",
    "loader",
    "dtype",
    "load_in_4bit",
    "reward_weights",
    "reward_functions",
    "harness_version",
    "version_sharevl_lite",
    "version_math_verify",
    "version_torch",
    "version_transformers",
    "version_peft",
    "version_vllm",
)
"""What may differ, and is said: another way to run the same model, or another judge of the same rules."""
OFF_IF_ABSENT = frozenset({"numeric_tolerance"})
"""Recorded only where it is not off."""
UNKNOWN = "not recorded"
DIGESTS = {
    "data_digest": "problems",
    "pixels_digest": "pictures",
    "prompt_sha256": "prompts",
    "variant_rows_digest": "transforms that the rows allow",
}
"""Settings that are the digest of something, with its name."""
SHOWN_DIGITS = 12

Difference = tuple[str, Any, Any]
"""A setting, and its value in the first and in the second."""


@dataclass(frozen=True)
class Unlike:
    """Settings that differ: `refused` ones, unless forced, and `told` ones."""

    refused: list[Difference]
    told: list[Difference]


def unlike(first: Evaluation, second: Evaluation) -> Unlike:
    """The settings in which two evaluations differ."""
    found = Unlike([], [])
    plain_alone = first.protocol.get("variants") == second.protocol.get("variants") == "none"
    for name in (*SAME, *(() if plain_alone else SAME_VARIANTS)):
        one, other = _value(first, name), _value(second, name)
        if one != other:
            (found.told if UNKNOWN in (one, other) else found.refused).append((name, one, other))
    for name in TOLD:
        one, other = _value(first, name), _value(second, name)
        if one != other:
            found.told.append((name, one, other))
    return found


def in_words(name: str, one: Any, other: Any) -> str:
    """A difference, for a message; of digests whose they are."""
    if name in DIGESTS:
        return f"other {DIGESTS[name]}"
    return f"{name}: {one!r} and {other!r}"


def shown(name: str, value: Any) -> str:
    """A setting's value in a table; of a digest its beginning."""
    return str(value)[:SHOWN_DIGITS] if name in DIGESTS and value != UNKNOWN else str(value)


def _value(evaluation: Evaluation, name: str) -> Any:
    return evaluation.protocol.get(name, None if name in OFF_IF_ABSENT else UNKNOWN)


def unlike_rewards(names: list[str], differences: list[Difference]) -> list[str]:
    """Those of the rewards `names` that were not computed alike: the file of a function differs, or a weight."""
    known = {name: (one, other) for name, one, other in differences if UNKNOWN not in (one, other)}
    one, other = (set(text.split(", ")) for text in known.get("reward_functions", ("", "")))
    changed = {f"{REWARD}/{text.partition('=')[0]}" for text in one ^ other}
    if changed or "reward_weights" in known:
        changed.add(REWARD)
    return [name for name in names if name in changed]


def is_pooled(evaluation: Evaluation) -> bool:
    """Whether its sources are benchmarks: no one population, so that a mean over all their questions says nothing."""
    return not evaluation.protocol.keys().isdisjoint(("harness", "harness_version"))
