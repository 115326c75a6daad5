"""Read a recipe file, apply overrides, and say everything that is wrong with it at once.

A value is checked strictly: a number in quotes, `true` for a count or `yes` for a switch is an error, not a guess.
Paths of data and output stay as written, relative to the current folder. The paths of reward functions are relative to
the recipe's folder and are made absolute here, so a loaded recipe needs no folder beside it.

The overrides are parsed here and not by tyro: they are merged *before* validation, so that an override can mend a file
whose sections contradict each other, and problems of the file and of the command line come in one report.
"""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from sharevl_lite.config import Recipe
from sharevl_lite.errors import UserError
from sharevl_lite.knobs import find_knob, knobs, sections
from sharevl_lite.recipe_faults import dotted, shown, unknown_key, wording, yaml_syntax
from sharevl_lite.recipe_yaml import KeyPath, parse, syntax_problem
from sharevl_lite.recipe_yaml import dump as dump_yaml


class RecipeError(UserError):
    """A recipe cannot be used; one line of the message for each problem."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = tuple(problems)


def load_recipe(
    path: str | Path | None,
    overrides: Sequence[str] | Mapping[str, Any] = (),
    *,
    presets: Mapping[str, Any] | None = None,
) -> Recipe:
    """Load a recipe from a YAML file.

    Args:
        path: the file. A section without keys (`share:` and nothing below) keeps its defaults. None: every default, for
            the evaluation of a model without a recipe, under the name `eval`; paths of functions given on the command
            line are relative to the current folder.
        overrides: what replaces the file's values: command-line words (`["--share.num-variants", "3"]`, also
            `--key=value`) or a mapping of dotted keys. Dashes and underscores are alike. Text is read as a YAML value
            (`null`, `[a, b]`, `1e-5`) and kept as it stands where the knob takes text and it is no null or list.
        presets: values of dotted keys, above the file's and below the overrides: what a command asks for unless its
            user says otherwise.

    Raises:
        RecipeError: the file is missing or not YAML, or a key or value is wrong. Every problem that can be seen
            together is listed, one per line, with file and line or "command line".
    """
    draft = _Draft(None, {"name": "eval"}, {}) if path is None else _read(Path(path))
    for key, value in (presets or {}).items():
        _put(draft.data, tuple(key.split(".")), value)
    _apply_overrides(draft, overrides)
    _fill_empty_sections(draft.data)
    _wrap_single_values(draft.data)
    _resolve_function_paths(draft)
    try:
        # JSON is pydantic's only strict mode that still takes text for a path.
        recipe = Recipe.model_validate_json(json.dumps(draft.data, default=os.fspath), strict=True)
    except ValidationError as error:
        _report_validation(draft, error)
    except TypeError as error:
        draft.report_override(", ".join(draft.overridden.values()), f"a value is of no YAML type: {error}")
    draft.raise_problems()
    return recipe


def with_local_paths(recipe: Recipe) -> Recipe:
    """The recipe with absolute paths to what of its data and model is on this machine, so that it can be used from any
    folder."""

    def found(path: str | None) -> str | None:
        return path if path is None or not Path(path).exists() else str(Path(path).absolute())

    data = recipe.data.model_copy(update={"train": found(recipe.data.train), "eval": found(recipe.data.eval)})
    lora = recipe.model.lora.model_copy(update={"start_from": found(recipe.model.lora.start_from)})
    model = recipe.model.model_copy(update={"path": found(recipe.model.path), "lora": lora})
    return recipe.model_copy(update={"data": data, "model": model})


def dump_recipe(recipe: Recipe) -> str:
    """The recipe with every default written out, as YAML that loads to an equal recipe from any folder."""
    return dump_yaml(recipe.model_dump(mode="json"))


@dataclass
class _Draft:
    """A recipe's data on the way to validation, with the origin of each value and the problems found so far."""

    file: Path | None
    """None: the defaults."""
    data: dict[str, Any]
    lines: dict[KeyPath, int]
    override_source: str = "command line"
    overridden: dict[KeyPath, str] = field(default_factory=dict)
    """How the override of a key was spelled."""
    file_problems: list[tuple[int, str]] = field(default_factory=list)
    """Each with its line, 0 where it has none."""
    override_problems: list[str] = field(default_factory=list)

    def report(self, path: KeyPath, message: str) -> None:
        """Note a problem of the value at `path`, at the line or override that set it."""
        for length in range(len(path), 0, -1):
            if path[:length] in self.overridden:
                rest = "".join(f".{part}" for part in path[length:])
                return self.report_override(f"{self.overridden[path[:length]]}{rest}", message)
        line = self.lines.get(path) or self.lines.get(path[:-1])
        below = [spelled for key, spelled in self.overridden.items() if key[: len(path)] == path]
        if path and below:
            return self.report_override(f"{', '.join(below)} with {self._place(line)}: {dotted(path)}", message)
        return self.report_line(path, line, message)

    def is_overridden(self, path: KeyPath) -> bool:
        """Whether the value at `path` is of the overrides."""
        return any(path[:length] in self.overridden for length in range(len(path), 0, -1))

    def report_line(self, path: KeyPath, line: int | None, message: str) -> None:
        """Note a problem of a line of the file."""
        parts = (self._place(line), dotted(path), message)
        problem = (line or 0, ": ".join(part for part in parts if part))
        if problem not in self.file_problems:  # each member of a union reports the same value
            self.file_problems.append(problem)

    def report_override(self, spelled: str, message: str) -> None:
        """Note a problem of an override, or of a combination with one."""
        problem = f"{self.override_source}: {spelled}: {message}"
        if problem not in self.override_problems:
            self.override_problems.append(problem)

    def _place(self, line: int | None) -> str:
        return f"{self.file}:{line}" if line else str(self.file or "the defaults")

    def raise_problems(self) -> None:
        """Raise what was reported: the file's problems by line, then those of the overrides."""
        problems = [text for _, text in sorted(self.file_problems, key=lambda problem: problem[0])]
        if problems or self.override_problems:
            raise RecipeError([*problems, *self.override_problems])


def _read(file: Path) -> _Draft:
    if not file.is_file():
        raise RecipeError([_missing(file)])
    try:
        text = file.read_text(encoding="utf-8")
        document = parse(text)
    except UnicodeDecodeError as error:
        raise RecipeError([f"{file}: not UTF-8 text ({error.reason} at byte {error.start})"]) from error
    except yaml.YAMLError as error:
        line, wording = syntax_problem(error, text)
        raise RecipeError([f"{file}:{line}: {wording}"]) from error
    if not isinstance(document.data, dict):
        held = "is empty" if document.data is None else f"holds {shown(document.data)}"
        raise RecipeError([f"{file}: {held}; a recipe is a mapping of keys, such as `name: my-run`"])
    draft = _Draft(file, document.data, document.lines)
    for path, line, message in document.faults:
        draft.report_line(path, line, message)
    return draft


def _missing(file: Path) -> str:
    problem = f"{file}: is a folder, not a recipe file" if file.is_dir() else f"{file}: no such file"
    for folder in (file, file.parent, Path("configs")):
        names = sorted(
            str(found) for pattern in ("*.yaml", "*.yml") for found in folder.glob(pattern) if _is_recipe(found)
        )
        if names:
            return f"{problem}. Recipes near it: {', '.join(names)}"
    return f"{problem}, and no *.yaml near it. Recipes to start from are in configs/ of the repository (git clone)"


def _is_recipe(file: Path) -> bool:
    """Whether the file holds a section of a recipe."""
    try:
        data = parse(file.read_text(encoding="utf-8")).data
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return False
    return not file.name.startswith(".") and isinstance(data, dict) and not sections().keys().isdisjoint(data)


def _apply_overrides(draft: _Draft, overrides: Sequence[str] | Mapping[str, Any]) -> None:
    if isinstance(overrides, str):
        raise TypeError(f"overrides must be a list of words or a mapping, not the text {overrides!r}")
    if isinstance(overrides, Mapping):
        draft.override_source = "overrides"
        pairs: Iterable[tuple[str, Any]] = overrides.items()
    else:
        pairs = _pair_words(overrides, draft)
    for spelled, value in pairs:
        key = spelled.removeprefix("--").replace("-", "_")
        if find_knob(key) is None and key not in sections():
            draft.report_override(spelled, unknown_key(key, as_flag=spelled.startswith("--")))
            continue
        meant = _override_value(key, value) if isinstance(value, str) else copy.deepcopy(value)
        _set(draft, tuple(key.split(".")), meant, spelled)


def _pair_words(words: Iterable[Any], draft: _Draft) -> Iterator[tuple[str, str]]:
    """(`--key`, value) of each override on a command line; in a script's list a value may be a number."""
    rest = list(map(str, words))
    while rest:
        word = rest.pop(0)
        key, equals, value = word.partition("=")
        if not word.startswith("--"):
            draft.report_override(word, "is no option; write --key value or --key=value")
        elif equals:
            yield key, value
        elif rest and not rest[0].startswith("--"):
            yield key, rest.pop(0)
        else:
            name = key.removeprefix("--").replace("-", "_")
            known = find_knob(name) is not None or name in sections()
            draft.report_override(key, f"needs a value: {key} VALUE" if known else unknown_key(name, as_flag=True))


def _override_value(key: str, text: str) -> Any:
    """The value that `text` means for the knob: YAML, or the text itself where text is taken."""
    knob = find_knob(key)
    takes_text = knob is not None and knob.takes_text
    try:
        document = parse(text)
    except yaml.YAMLError:
        return text
    if document.faults or (takes_text and not isinstance(document.data, str | list | None)):
        return text
    return document.data


def _set(draft: _Draft, path: KeyPath, value: Any, spelled: str) -> None:
    """Put an override into the data; a mapping for a section sets the keys that it holds."""
    if isinstance(value, Mapping) and dotted(path) in sections():
        for key, inner in value.items():
            _set(draft, (*path, str(key).replace("-", "_")), inner, f"{spelled}.{key}")
        return
    if path in draft.overridden:
        other = draft.overridden[path]
        draft.report_override(spelled, f"given twice{'' if other == spelled else f' (also as {other})'}; keep one")
        return
    draft.overridden[path] = spelled
    _put(draft.data, path, value)


def _put(target: dict[str, Any], path: KeyPath, value: Any) -> None:
    for part in map(str, path[:-1]):
        if target.get(part) is None:
            target[part] = {}
        if not isinstance(target[part], dict):
            return  # the file holds no mapping there, which validation reports
        target = target[part]
    target[str(path[-1])] = value


def _fill_empty_sections(data: dict[str, Any]) -> None:
    """A section whose keys are all commented out is null in YAML; it means the defaults."""
    for key in sections():
        *outer, name = key.split(".")
        target: Any = data
        for part in outer:
            target = target.get(part) if isinstance(target, dict) else None
        if isinstance(target, dict) and name in target and target[name] is None:
            target[name] = {}


def _wrap_single_values(data: dict[str, Any]) -> None:
    """One value where a list of such values is meant: `server_urls: http://localhost:8000` is a list of one.

    Text with a comma in it stays as it is: it may mean several.
    """
    for knob in knobs():
        *outer, name = knob.key.split(".")
        target: Any = data
        for part in outer:
            target = target.get(part) if isinstance(target, dict) else None
        value = target.get(name) if isinstance(target, dict) else None
        text = knob.items == "text" and isinstance(value, str) and bool(value.strip()) and "," not in value
        if text or (knob.items == "mapping" and isinstance(value, dict)):
            target[name] = [value]


def _resolve_function_paths(draft: _Draft) -> None:
    """Make `file.py:function` absolute, from the recipe's folder."""
    folder = Path() if draft.file is None else draft.file.parent
    reward = draft.data.get("reward")
    functions = reward.get("functions") if isinstance(reward, dict) else None
    for index, item in enumerate(functions if isinstance(functions, list) else []):
        path = item.get("path") if isinstance(item, dict) else None
        if not isinstance(path, str):
            continue
        file, colon, function = path.rpartition(":")
        if not (colon and file.endswith(".py") and function.isidentifier()):
            message = f'must be "file.py:function", such as "rewards.py:length_penalty", got {shown(path)}'
            draft.report(("reward", "functions", index, "path"), message)
            continue
        item["path"] = f"{(folder / file).resolve()}:{function}"


def _report_validation(draft: _Draft, error: ValidationError) -> None:
    for problem in error.errors(include_url=False):
        path = _within(draft.data, problem["loc"], required=problem["type"] == "missing")
        syntax = yaml_syntax(path, problem["type"], problem["input"])
        if syntax is not None:
            syntax = f"; write '{syntax}'" if draft.is_overridden(path) else f"; write {syntax}"
        draft.report(path, wording(path, problem["type"], problem["msg"], problem["input"]) + (syntax or ""))


def _within(data: Any, loc: KeyPath, *, required: bool) -> KeyPath:
    """`loc` without the names of union members that pydantic appends; they are no keys of the data."""
    length = 0
    for part in loc:
        held = isinstance(data, dict) and part in data
        held = held or (isinstance(data, list) and isinstance(part, int))
        if not held:
            break
        data = data[part]
        length += 1
    return loc[: length + required]
