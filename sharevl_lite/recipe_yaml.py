"""The YAML of recipes: YAML 1.2's core schema without numbers in other bases, with the line of every key.

Two deviations from ``yaml.safe_load``, which reads YAML 1.1:

* `1e-4` is a number and `no`, `on`, `12:30`, `010` and `2026-01-01` are what they look like. Under 1.1 they are the
  text "1e-4", False, True, 750, 8 and a date: a learning rate that is text, a name that is a date. `2024_01`
  and `0x10` are text, which 1.1 reads as 202401 and 16; the core schema, too, has `0x10` and `0o20` for 16.
* a key that stands twice is a fault; safe_load keeps the last one silently.

Merge keys (`<<`) are not in YAML 1.2 and are read as a key of that name, so a recipe that uses one is told so.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import yaml

KeyPath = tuple[str | int, ...]

_TAG = "tag:yaml.org,2002:"
_INT = re.compile(r"[-+]?[0-9]+\Z")
_FLOAT = re.compile(
    r"[-+]?(?:(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]+)?|\.(?:inf|Inf|INF))\Z|\.(?:nan|NaN|NAN)\Z"
)
_RESOLVERS: tuple[tuple[str, re.Pattern[str], list[str]], ...] = (
    ("null", re.compile(r"(?:~|null|Null|NULL|)\Z"), ["~", "n", "N", ""]),
    ("bool", re.compile(r"(?:true|True|TRUE|false|False|FALSE)\Z"), list("tTfF")),
    ("int", _INT, list("-+0123456789")),
    ("float", _FLOAT, list("-+0123456789.")),
)
_MAX_DEPTH = 16  # an alias inside its own anchor nests without end


class _Loader(yaml.SafeLoader):
    """Safe loader that resolves plain scalars by YAML 1.2's core schema."""


class _Dumper(yaml.SafeDumper):
    """Safe dumper that quotes text which YAML 1.1 or 1.2 would take for something else."""


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    """Text with one of YAML's rarer line breaks in double quotes: PyYAML writes others so that a next-line is lost."""
    style = '"' if any(mark in text for mark in "\x85\u2028\u2029") else None
    return dumper.represent_scalar(_TAG + "str", text, style=style)


_Dumper.add_representer(str, _represent_text)
_Loader.yaml_implicit_resolvers = {}
for _name, _pattern, _first in _RESOLVERS:
    _Loader.add_implicit_resolver(_TAG + _name, _pattern, _first)
    _Dumper.add_implicit_resolver(_TAG + _name, _pattern, _first)
_Dumper.add_implicit_resolver(_TAG + "int", re.compile(r"0o[0-7]+\Z"), ["0"])  # a number to other readers of 1.2


@dataclass
class Document:
    """A parsed YAML text."""

    data: Any = None
    lines: dict[KeyPath, int] = field(default_factory=dict)
    """Line (from 1) of each key and list item."""
    faults: list[tuple[KeyPath, int, str]] = field(default_factory=list)
    """Key path, line and wording of what is valid YAML and still wrong: duplicate keys, foreign tags."""


def parse(text: str) -> Document:
    """Parse one YAML document.

    Raises:
        yaml.YAMLError: the text is not YAML; see :func:`syntax_problem`.
    """
    node = yaml.compose(text, Loader=_Loader)
    document = Document()
    if node is not None:
        document.data = _build(node, (), document)
    return document


def dump(data: Any) -> str:
    """YAML text that :func:`parse` reads back as equal data, keys in their order."""
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)


def syntax_problem(error: yaml.YAMLError, text: str) -> tuple[int, str]:
    """Line (from 1) and wording of a YAML error in `text`."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        wording = ", ".join(part for part in (error.problem, error.context) if part)
        return error.problem_mark.line + 1, f"not valid YAML: {wording}"
    if isinstance(error, yaml.reader.ReaderError):
        return text.count("\n", 0, error.position) + 1, f"not valid YAML: {error.reason}"
    return 1, f"not valid YAML: {error}"


def _build(node: yaml.Node, path: KeyPath, document: Document) -> Any:
    """Plain Python data of a node; lines and faults go to the document."""
    if len(path) > _MAX_DEPTH:
        raise yaml.MarkedYAMLError(problem=f"nested deeper than {_MAX_DEPTH} levels", problem_mark=node.start_mark)
    if isinstance(node, yaml.MappingNode):
        return _build_mapping(node, path, document)
    if isinstance(node, yaml.SequenceNode):
        items = []
        for index, item in enumerate(node.value):
            document.lines[(*path, index)] = item.start_mark.line + 1
            items.append(_build(item, (*path, index), document))
        return items
    assert isinstance(node, yaml.ScalarNode)  # the only other node there is
    return _build_scalar(node, path, document)


def _build_mapping(node: yaml.MappingNode, path: KeyPath, document: Document) -> dict[str, Any]:
    mapping: dict[str, Any] = {}
    for key_node, value_node in node.value:
        line = key_node.start_mark.line + 1
        if not isinstance(key_node, yaml.ScalarNode):
            document.faults.append((path, line, "a key must be text, not a list or mapping"))
            continue
        # The key as written: a key that looks like a number or `null` is reported by that name.
        key = key_node.value
        inner = (*path, key)
        if key in mapping:
            document.faults.append((inner, line, f"duplicate key; line {document.lines[inner]} sets it too. Keep one"))
            continue
        document.lines[inner] = line
        mapping[key] = _build(value_node, inner, document)
    return mapping


def _build_scalar(node: yaml.ScalarNode, path: KeyPath, document: Document) -> Any:
    construct = _SCALARS.get(node.tag.removeprefix(_TAG))
    line = node.start_mark.line + 1
    if construct is None:
        document.faults.append((path, line, f"YAML tag {node.tag} is not understood; remove it"))
        return None
    try:
        return construct(node.value)
    except ValueError:
        document.faults.append((path, line, f"{node.value!r} does not fit its YAML tag {node.tag}"))
        return None


def _number(text: str) -> int | float:
    """A float; `1e3` and the like, without a point, is a whole number where it has no fraction."""
    lowered = text.lower()
    if lowered.lstrip("+-") in (".inf", ".nan"):
        return float(lowered.replace(".", ""))
    value = float(text)
    exact = "." not in text and value.is_integer() and abs(value) < 2**53
    return int(value) if exact else value


_SCALARS: dict[str, Callable[[str], Any]] = {
    "null": lambda text: None,
    "bool": lambda text: text.lower() == "true",
    "int": int,
    "float": _number,
    "str": str,
}
