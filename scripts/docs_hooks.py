"""What MkDocs does not do: pages made from the code, so that they cannot fall behind it, and formulas as MathML, which
browsers set without a script."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from sharevl_explorer.mathml import formula

from sharevl_lite.knobs import Knob, knobs, sections
from sharevl_lite.recipes import load_recipe

ROOT = Path(__file__).resolve().parent.parent
CODE = re.compile(r"(^```.*?^```|`[^`\n]+`)", re.S | re.M)
FORMULA = re.compile(r"\$\$(.+?)\$\$|(?<![\\$\w])\$(?!\s)([^$\n]+?)(?<![\s\\])\$(?![\d$])", re.S)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the generated pages."""
    for name, content in (("recipe-fields.md", fields_page()), ("recipes.md", recipes_page())):
        files.append(File.generated(config, name, content=content))
    return files


def on_page_markdown(markdown: str, **_: object) -> str:
    """Sets the formulas of a page: $…$ in a line, $$…$$ on its own. Code stays as it is."""
    pieces = CODE.split(markdown)
    pieces[::2] = [FORMULA.sub(lambda found: _set(found[1], found[2]), piece) for piece in pieces[::2]]
    return "".join(pieces)


def _set(block: str | None, inline: str | None) -> str:
    latex = (block or inline or "").strip()
    made = str(formula(latex, block=block is not None))
    if "<math" not in made:
        raise ValueError(f"the documentation has a formula that cannot be set: {latex}")
    return made if block is not None else f"<span>{made}</span>"  # a line may begin with it: it is no block


def fields_page() -> str:
    """Every field of a recipe, section by section, from the models."""
    lines = [
        "# Every recipe field",
        "",
        "A recipe is one YAML file; what it leaves out has the default given here. On the command line a field is "
        "`--section.field VALUE`. An unknown or wrong field stops the command with its line and the nearest name.",
        "",
    ]
    documented = {"": "Fields at the top level.", **sections()}
    for section, text in documented.items():
        own = [knob for knob in knobs() if knob.section == section]
        if own:
            lines += [f"## {f'`{section}`' if section else 'Top level'}", "", text, ""]
            lines += [line for knob in own for line in _field(knob)]
    return "\n".join(lines)


def _field(knob: Knob) -> Iterator[str]:
    default = f"default `{_as_yaml(knob.default)}`" if knob.default is not None else "not set by default"
    yield f"### `{knob.key}`"
    yield ""
    yield f"{_plain(knob.type)}; {default}"
    yield ""
    yield _plain(knob.doc or "")
    yield ""


def _plain(text: str) -> str:
    """Text that holds no tags; code in it stays as it is."""
    pieces = CODE.split(text)
    pieces[::2] = [piece.replace("<", "&lt;") for piece in pieces[::2]]
    return "".join(pieces)


def _as_yaml(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def recipes_page() -> str:
    """Every recipe of `configs/`, with the words at its head and its text."""
    lines = [
        "# Recipes",
        "",
        "The files of `configs/`. Start from the one nearest to your machine, point `data` at your own rows, and ask "
        "`sharevl-lite doctor RECIPE` whether it fits. Where a figure of memory is given it is planned, not measured, "
        "unless the recipe says otherwise.",
        "",
    ]
    for file in sorted((ROOT / "configs").glob("*.yaml")):
        text = file.read_text()
        recipe = load_recipe(file)
        head = [line.removeprefix("#").strip() for line in text.splitlines() if line.startswith("#")]
        body = "\n".join(line for line in text.splitlines() if not line.startswith("#"))
        shape = f"m = {recipe.share.num_variants}, n = {recipe.share.num_responses}, engine `{recipe.rollout.engine}`"
        lines += [f"## `{file.name}`", "", " ".join(head), "", f"{shape}.", "", "```yaml", body, "```", ""]
    return "\n".join(lines)
