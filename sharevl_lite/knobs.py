"""Every knob of a recipe with its type, default and meaning, read off the models of ``config``.

One source of truth: the JSON schema that pydantic derives from the models also feeds ``train --help``, the wording of
recipe errors and the "did you mean" of an unknown key. Nothing here imports torch.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

from sharevl_lite.config import Recipe

Schema = dict[str, Any]


@dataclass(frozen=True)
class Knob:
    """One value that a recipe or the command line can set."""

    name: str
    """Dotted name with dashes: `share.num-variants`."""
    type: str
    """What is allowed, in words: `int >= 1`, `plain | repeated`, `list of text`."""
    default: object
    """Value when nothing sets it (JSON types; a path is text)."""
    doc: str
    """The field's docstring; empty where the name says it all."""
    takes_text: bool
    """Whether free text is allowed, so that `--name 7` means the text "7"."""

    @property
    def key(self) -> str:
        """Dotted name as a recipe file spells it: `share.num_variants`."""
        return self.name.replace("-", "_")

    @property
    def section(self) -> str:
        """Dotted key of the section that holds the knob; empty for the top level."""
        return self.key.rpartition(".")[0]


@cache
def sections() -> dict[str, str]:
    """Dotted key of every section, outer ones first, with its docstring."""
    return {key: schema.get("description", "") for key, schema in _walk("", _schema()) if "properties" in schema}


@cache
def find_knob(key: str) -> Knob | None:
    """The knob of a dotted key (underscores), or None."""
    return next((knob for knob in knobs() if knob.key == key), None)


def nearest_keys(key: str, limit: int = 3) -> list[str]:
    """Valid dotted keys that an unknown `key` may have meant, best first; empty when nothing is near.

    The last part of the key counts more than where it stands: `num_variants` at the top level and
    `train.num_variants` both find `share.num_variants`. A section of that name is meant where no sibling is near.
    """
    wanted = key.replace("-", "_")
    section, _, leaf = wanted.rpartition(".")
    names = [name for name in _names() if not wanted.startswith(f"{name}.")]
    siblings = {_leaf(name): name for name in names if name.rpartition(".")[0] == section}
    near_siblings = [siblings[found] for found in difflib.get_close_matches(leaf, siblings, limit, cutoff=0.65)]
    same_leaf = [name for name in names if _leaf(name) == leaf and not (near_siblings and name in sections())]
    near_leaves = difflib.get_close_matches(leaf, sorted({_leaf(name) for name in names}), 1, cutoff=0.75)
    elsewhere = [name for name in names if _leaf(name) in near_leaves]
    return (same_leaf or near_siblings or elsewhere)[:limit]


def _leaf(key: str) -> str:
    return key.rpartition(".")[2]


@cache
def _schema() -> Schema:
    return Recipe.model_json_schema()


@cache
def knobs() -> tuple[Knob, ...]:
    """All knobs in the order of the models, sections unfolded."""
    leaves = ((key, schema) for key, schema in _walk("", _schema()) if "properties" not in schema)
    return tuple(
        Knob(
            name=key.replace("_", "-"),
            type=_in_words(schema),
            default=schema.get("default"),
            doc=" ".join(schema.get("description", "").split()),
            takes_text=any(_is_free_text(option) for option in _alternatives(schema)),
        )
        for key, schema in leaves
    )


@cache
def _names() -> tuple[str, ...]:
    """Keys that may stand in a recipe, those inside a list's items included (`reward.functions.weight`)."""
    names: list[str] = []
    for key, schema in _walk("", _schema()):
        names.append(key)
        item = _resolved(schema.get("items", {}))
        names.extend(f"{key}.{name}" for name in item.get("properties", {}))
    return tuple(names)


def _resolved(schema: Schema) -> Schema:
    """The schema with its `$ref` followed; what stands beside the reference wins."""
    if "$ref" not in schema:
        return schema
    target = _schema()["$defs"][schema["$ref"].rpartition("/")[2]]
    return {**target, **{name: value for name, value in schema.items() if name != "$ref"}}


def _walk(prefix: str, schema: Schema) -> Iterator[tuple[str, Schema]]:
    for name, field in schema["properties"].items():
        key = f"{prefix}.{name}" if prefix else name
        resolved = _resolved(field)
        yield key, resolved
        if "properties" in resolved:
            yield from _walk(key, resolved)


def _alternatives(schema: Schema) -> list[Schema]:
    return [_resolved(option) for option in schema.get("anyOf", [schema])]


def _is_free_text(schema: Schema) -> bool:
    return schema.get("type") == "string" and "enum" not in schema and "const" not in schema


def _in_words(schema: Schema) -> str:
    return " | ".join(_one_in_words(option) for option in _alternatives(schema))


def _one_in_words(schema: Schema) -> str:
    if "const" in schema:
        return str(schema["const"])
    if "enum" in schema:
        return " | ".join(str(choice) for choice in schema["enum"])
    if "properties" in schema:
        fields = schema["properties"].items()
        return "{" + ", ".join(f"{name}: {_in_words(_resolved(field))}" for name, field in fields) + "}"
    if schema["type"] == "array":
        item = _in_words(_resolved(schema["items"]))
        return f"list of ({item})" if " | " in item and not item.startswith("{") else f"list of {item}"
    if schema["type"] == "string":
        return _text_in_words(schema)
    return _number_in_words(schema)


def _text_in_words(schema: Schema) -> str:
    if "pattern" in schema:
        return f"text matching {schema['pattern']}"
    return "path" if schema.get("format") == "path" else "text"


def _number_in_words(schema: Schema) -> str:
    words = {"integer": "int", "number": "float", "boolean": "true | false", "null": "null"}
    signs = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}
    limits = [f"{sign} {schema[bound]:.12g}" for bound, sign in signs.items() if bound in schema]
    return " ".join(filter(None, (words[schema["type"]], " and ".join(limits))))
