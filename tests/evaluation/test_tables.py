"""Tables in the terminal: every cell as it is, whatever it holds."""

from io import StringIO

import pytest
from rich.console import Console

from sharevl_lite.engines import tell_wait
from sharevl_lite.evaluation.tables import Table, show
from sharevl_lite.recipes import load_recipe


def printed(*tables, width=150):
    console = Console(file=StringIO(), width=width)
    show(console, tables)
    return console.file.getvalue()


@pytest.mark.parametrize("cell", [r"Solve \[x+1=2\] now", r"see \[/b] or [/frac]", "[bold]x[/bold]", r"end \\"])
def test_what_looks_like_markup_is_printed_letter_by_letter(cell):
    told = printed(Table(f"A = {cell}", ("problem", cell), [("1", cell)], notes=cell, words=(cell,)))
    assert told.count(cell) == 4, "title, header, cell and note"


def test_rows_of_figures_stay_in_one_line_where_they_can():
    """Two spaces between columns, one where that is too wide; a title is never broken."""
    row = ("mean@2 reworded", "-10.9", "-23.4 … +12.5", "0.3877 M")
    title = "A = a long path, B = another one, both longer than what is below"
    table = Table(title, ("", "B - A", "95% interval", "p"), [row])
    assert "  ".join(row) in printed(table, width=47).splitlines()
    narrow = printed(table, width=44).splitlines()
    assert " ".join(row) in narrow
    assert title in narrow
    assert "+12.5" in printed(table, width=36), "broken, but whole"


def test_a_path_with_brackets_is_printed_whole(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)  # it is said where loading takes long
    console = Console(file=StringIO(), width=150)
    tell_wait(console, load_recipe(None, {"model.path": "models/[/old] [v2]"}), "model")
    assert "loading models/[/old] [v2] with" in console.file.getvalue()
