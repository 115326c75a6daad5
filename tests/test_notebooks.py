"""Notebooks are their .py sources with outputs; `make test` runs them all (nbmake)."""

import ast
import os
import re
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
    for place in (str(ROOT), "/.venv/"):  # of the machine that ran it
        assert place not in str(notebook)


def statements(source, cell):
    """Of a code cell, up to its first `if` or `print`, which is left out."""
    cells = [cell.source for cell in jupytext.read(source).cells if cell.cell_type == "code"]
    tree = ast.parse(cells[cell])
    last = next(n for n, node in enumerate(tree.body) if isinstance(node, ast.Expr | ast.If))
    return compile(ast.Module(tree.body[:last], []), str(source), "exec")


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_a_notebook_installs_what_is_missing(monkeypatch, source):
    for absent in ({"sharevl_lite", "matplotlib"}, {"matplotlib"}, set()):
        monkeypatch.setattr("importlib.util.find_spec", lambda name, absent=absent: None if name in absent else name)
        names = {}
        exec(statements(source, 0), names)
        assert {re.match(r"\w+", found.replace("-", "_"))[0] for found in names["missing"]} == absent


@pytest.mark.parametrize(("exit_code", "smoke"), [(0, False), (9, True)])
def test_an_nvidia_smi_that_fails_is_no_gpu(monkeypatch, tmp_path, exit_code, smoke):
    tool = tmp_path / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\nexit {exit_code}\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.delenv("SHAREVL_SMOKE", raising=False)
    names = {}
    exec(statements(ROOT / "notebooks" / "quickstart.py", 1), names)
    assert names["SMOKE"] is smoke


def test_badges_and_installs_follow_the_repository():
    repository = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]["Repository"]
    name = repository.removeprefix("https://github.com/")
    for path in SOURCES:
        text = path.read_text()
        assert f"colab.research.google.com/github/{name}/blob/main/notebooks/{path.stem}.ipynb" in text
        assert f"kaggle.com/kernels/welcome?src={repository}/blob/main/notebooks/{path.stem}.ipynb" in text
        assert f"@ git+{repository}" in text
