"""Notebooks are their .py sources with outputs; `make test` runs them all (nbmake)."""

import tomllib
from pathlib import Path

import jupytext
import nbformat
import pytest

ROOT = Path(__file__).parent.parent
SOURCES = sorted((ROOT / "notebooks").glob("*.py"))
NAMES = {"quickstart", "share_grpo_explained", "bring_your_own_data"}


@pytest.fixture(params=SOURCES, ids=lambda path: path.stem)
def pair(request):
    """(source, notebook), as notebooks."""
    return jupytext.read(request.param), nbformat.read(request.param.with_suffix(".ipynb"), as_version=4)


def test_all_notebooks_are_there():
    assert {path.stem for path in SOURCES} == NAMES
    assert {path.stem for path in (ROOT / "notebooks").glob("*.ipynb")} == NAMES


def test_a_notebook_has_the_cells_of_its_source(pair):
    source, notebook = ([(cell.cell_type, cell.source) for cell in side.cells] for side in pair)
    assert notebook == source, "run `make notebooks`"


def test_a_notebook_keeps_the_outputs_of_one_whole_run(pair):
    _, notebook = pair
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error"]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert str(ROOT) not in str(notebook)


def test_badges_and_installs_follow_the_repository():
    repository = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]["Repository"]
    name = repository.removeprefix("https://github.com/")
    for path in SOURCES:
        text = path.read_text()
        assert f"colab.research.google.com/github/{name}/blob/main/notebooks/{path.stem}.ipynb" in text
        assert f"kaggle.com/kernels/welcome?src={repository}/blob/main/notebooks/{path.stem}.ipynb" in text
        assert f"@ git+{repository}" in text
