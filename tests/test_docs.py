"""The documentation cannot fall behind the code: pages made from it are whole, and quoted messages exist."""

import ast
import json
import re
from pathlib import Path

import pytest
import yaml

from sharevl_lite.knobs import knobs, sections

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The built site (strict: a broken link or anchor fails it)."""
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    folder = tmp_path_factory.mktemp("site")
    build(load_config(str(ROOT / "mkdocs.yml"), site_dir=str(folder)))
    return folder


def test_every_recipe_field_has_a_heading_with_its_default(site):
    page = (site / "recipe-fields" / "index.html").read_text()
    headings = re.findall(r"<h3[^>]*><code>([\w.]+)</code>", page)
    assert sorted(headings) == sorted(knob.key for knob in knobs())
    assert "default <code>32</code>" in page
    assert "default <code>false</code>" in page
    assert "<code>&lt;output_dir&gt;/&lt;name&gt;</code>" in page


def test_every_recipe_is_shown(site):
    page = (site / "recipes" / "index.html").read_text()
    for file in (ROOT / "configs").glob("*.yaml"):
        assert f"<code>{file.name}</code>" in page


def test_formulas_are_set_and_code_is_left_alone(site):
    page = (site / "algorithm" / "index.html").read_text()
    assert page.count("<math") > 20
    assert "$$" not in page
    assert not re.search(r'</p>\s*<math[^>]*display="inline"', page), "a formula in a line is no block"
    assert "\\frac" not in re.sub(r'title="[^"]*"', "", page)


def test_nothing_is_loaded_from_other_hosts(site):
    for page in site.rglob("*.html"):
        loaded = re.findall(
            r'<(?:script|img|iframe)[^>]*src="(https?:[^"]+)"|<link rel="stylesheet" href="(https?:[^"]+)"',
            page.read_text(),
        )
        assert not loaded, (page, loaded)


def test_no_markdown_is_left_over(site):
    for page in site.rglob("*.html"):
        text = re.sub(r"<(code|script|style).*?</\1>", "", page.read_text(), flags=re.S)
        assert not re.search(r"\{ width|\]\(|^#+ ", text, re.M), page


def test_messages_under_troubleshooting_are_messages_of_the_code():
    pieces = set()
    for file in (*(ROOT / "sharevl_lite").rglob("*.py"), *(ROOT / "apps").rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                pieces.add(node.value)
    quoted = re.findall(r"^### `(.+)`$", (DOCS / "troubleshooting.md").read_text(), re.M)
    assert len(quoted) > 15
    assert [message for message in quoted if not any(message in piece for piece in pieces)] == []


def test_every_logged_metric_is_explained():
    logged = {"loss", "grad_norm", "learning_rate", "seconds/...", "eval_..."}
    logged |= {"reward/NAME", "reward/NAME/applied", "log_metric/NAME"}
    for name in ("metrics.py", "trainer.py"):
        source = (ROOT / "sharevl_lite" / name).read_text()
        logged |= set(re.findall(r'(?:\.(?:mean|total|peak)\(|record\[)"([\w/]+)"', source))
    logged = {name for name in logged if not name.startswith("seconds/")} | {"seconds/..."}
    assert len(logged) > 30
    page = (DOCS / "algorithm.md").read_text().partition("## Reading the metrics")[2]
    assert logged - set(re.findall(r"`([^`]+)`", page)) == set()


def test_the_search_finds_a_field_by_its_name_alone(site):
    """lunr splits titles where this says so: `train.learning_rate` into two words."""
    index = json.loads((site / "search" / "search_index.json").read_text())
    titles = {entry["title"] for entry in index["docs"]}
    (title,) = (title for title in titles if "train.learning_rate" in title)
    assert "learning_rate" in re.split(index["config"]["separator"], re.sub("<[^>]+>", "", title))


@pytest.mark.parametrize("page", [ROOT / "README.md", DOCS / "quickstart.md"], ids=lambda page: page.name)
def test_the_recipe_to_start_from_fits_24_gb(page, tmp_path):
    from sharevl_lite.memory_plan import GIB, plan_memory
    from sharevl_lite.model_shape import find_config, measure_shape
    from sharevl_lite.recipes import load_recipe

    (block,) = (text for text in re.findall(r"```yaml\n(.+?)```", page.read_text(), re.S) if "name: my-run" in text)
    (tmp_path / "recipe.yaml").write_text(block)
    recipe = load_recipe(tmp_path / "recipe.yaml")
    shape = measure_shape(find_config(recipe.model.path)[0])
    assert plan_memory(recipe, shape, total=24 * GIB, half=True).fits(24 * GIB)


def test_every_command_has_a_page_that_names_it():
    from sharevl_lite.cli import _parser

    commands = next(action.choices for action in _parser(with_knobs=False)._actions if action.choices)
    written = "\n".join(file.read_text() for file in DOCS.glob("*.md"))
    assert [name for name in commands if f"sharevl-lite {name}" not in written] == []


def test_yaml_in_the_documentation_is_a_recipe():
    from sharevl_lite.recipes import load_recipe

    known = set(load_recipe(ROOT / "configs" / "digits_cpu.yaml").model_dump())
    blocks = [block for file in DOCS.glob("*.md") for block in re.findall(r"```yaml\n(.+?)```", file.read_text(), re.S)]
    assert len(blocks) >= 3
    for block in blocks:
        assert set(yaml.safe_load(block)) <= known, block


def test_fields_named_for_newcomers_are_fields():
    """First column of the table: full names, and names alone that belong to the section before."""
    known = {knob.key for knob in knobs()} | set(sections())
    rows = re.findall(r"^\| (`.+?) \|", (DOCS / "coming-from.md").read_text(), re.M)
    assert len(rows) > 20
    for row in rows:
        section = ""
        for name in re.findall(r"`([a-z0-9_.]+)(?::[^`]*)?`", row):
            section = name.rpartition(".")[0] or section
            wanted = name if "." in name else f"{section}.{name}"
            assert wanted in known, row
