"""The words for what is wrong with a recipe: what a key takes, what an unknown key or value may have meant."""

from __future__ import annotations

import difflib
import json
from typing import Any

from sharevl_lite.knobs import find_knob, knobs, nearest_keys, sections
from sharevl_lite.recipe_yaml import KeyPath

_LONGEST_VALUE = 80
ABSENT = {
    "missing": "is required and not given",
    "string_too_short": "is empty; name one, or leave the key out",
}
NO_WORDS = frozenset({"none", "null", "off", "no", "false"})
OTHER_VALUES = {
    "model.dtype": {"bf16": "bfloat16", "fp16": "float16", "half": "float16", "fp32": "float32", "fp64": "float64"},
    "model.loader": {"transformers": "hf", "huggingface": "hf"},
    "rollout.engine": {"transformers": "hf", "huggingface": "hf", "colocate": "vllm"},
    "share.std": {"group": "plain", "std": "plain"},
    "objective.importance_sampling_level": {"grpo": "token", "gspo": "sequence"},
    "objective.aggregation": {
        "grpo": "sequence",
        "seq-mean-token-mean": "sequence",
        "dapo": "token",
        "bnpo": "token",
        "token-mean": "token",
        "seq-mean-token-sum-norm": "dr_grpo",
    },
}
"""What TRL, verl and everyday speech call a value of a knob, with ours."""
NOT_OFFERED = frozenset({"top_k", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty"})
"""Knobs of samplers whose names are near to those of others here."""


def wording(path: KeyPath, kind: str, message: str, value: Any) -> str:
    """What is wrong with the value at `path`, by pydantic's kind of error and its message."""
    if kind == "extra_forbidden":
        return unknown_key(dotted(tuple(part for part in path if isinstance(part, str))))
    if kind == "value_error":
        return message.removeprefix("Value error, ")
    if kind in ABSENT:
        return ABSENT[kind]
    taken = _taken(path, kind)
    told = message.replace("Input should be", "must be") if taken is None else f"must be {taken}"
    return f"{told}, got {shown(value)}{_meant(path, value)}"


def _meant(path: KeyPath, value: Any) -> str:
    """What a word that is none of a knob's values may have meant."""
    in_list = bool(path) and isinstance(path[-1], int)
    key = dotted(path[:-1] if in_list else path)
    knob = find_knob(key)
    if knob is None or not (isinstance(value, str) or value is False):
        return ""
    word = str(value).strip().lower()
    if word in NO_WORDS and (in_list or knob.items is not None):
        return "; write [] for none"
    if word in NO_WORDS and knob.type.endswith("| null"):
        return "; write null for none"
    choices = knob.type.removeprefix("list of ").strip("()").split(" | ")
    near = difflib.get_close_matches(word, choices, 1, cutoff=0.7)
    meant = OTHER_VALUES.get(key, {}).get(word) or next(iter(near), None)
    return f"; did you mean {meant}?" if meant else ""


def yaml_syntax(path: KeyPath, kind: str, value: Any) -> str | None:
    """How text that stands where a list, or one item of a list, is wanted would be written in YAML."""
    knob = find_knob(dotted(path if kind == "list_type" else path[:-1]))
    if kind not in ("list_type", "model_type") or knob is None or not isinstance(value, str) or not value.strip():
        return None
    if knob.items == "mapping":
        item = f"{{path: {value}, weight: 1}}"
        return item if kind == "model_type" else f"[{item}]"
    return "[" + ", ".join(part.strip() for part in value.split(",")) + "]"


def _taken(path: KeyPath, kind: str) -> str | None:
    """What a key takes, in words; None where the knobs do not say."""
    key = dotted(path)
    if key in sections():
        return "a mapping of keys"
    knob = find_knob(key)
    if knob is None and kind == "model_type":
        items = find_knob(dotted(path[:-1]))
        return None if items is None else items.type.removeprefix("list of ")
    return None if knob is None else knob.type


def unknown_key(key: str, *, as_flag: bool = False) -> str:
    """What is said of a key that no recipe has; `as_flag`: as options of the command line are spelled."""
    if key.replace("-", "_").rpartition(".")[2] in NOT_OFFERED:
        return "not offered; what shapes the sampling is rollout.temperature and rollout.top_p"
    near = nearest_keys(key)
    if near:
        spelled = [f"--{name.replace('_', '-')}" if as_flag else name for name in near]
        return f"unknown key; did you mean {' or '.join(spelled)}?"
    section = key.rpartition(".")[0]
    while section and section not in sections():
        section = section.rpartition(".")[0]
    keys = [*(knob.key for knob in knobs()), *sections()]
    names = [name.rpartition(".")[2] for name in keys if name.rpartition(".")[0] == section]
    return f"unknown key; {section or 'a recipe'} has {', '.join(names)}"


def dotted(path: KeyPath) -> str:
    """`share.num_variants` of its parts."""
    return ".".join(str(part) for part in path)


def shown(value: Any) -> str:
    """A value as JSON, cut where it is long."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= _LONGEST_VALUE else f"{text[: _LONGEST_VALUE - 1]}…"
