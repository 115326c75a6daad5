"""What long commands show of how far they are."""

import sys
from io import StringIO

import pytest

from sharevl_lite import progress
from sharevl_lite.progress import shown_progress


class Terminal(StringIO):
    """What believes to be one."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


@pytest.mark.parametrize(
    ("total", "told"),
    [
        (40, ["asked 4 of 40 problems, about 5 min to go", "asked 39 of 40 problems, about 2 s to go"]),
        (None, ["asked 4 problems", "asked 39 problems"]),
    ],
)
def test_without_a_terminal_a_line_is_printed_now_and_then(clock, capsys, total, told):
    with shown_progress("asked", total) as advance:
        for now, problems in ((10, 1), (29, 1), (31, 2), (60, 30), (62, 5), (63, 1)):
            clock[0] = now
            advance(problems)
    out, err = capsys.readouterr()
    assert err.splitlines() == told
    assert not out


@pytest.mark.parametrize("total", [4, None])
def test_on_a_terminal_a_bar_is_drawn_and_taken_away(monkeypatch, total):
    """What is printed meanwhile goes where it belongs: to a file, if that is what standard output is."""
    monkeypatch.setenv("TERM", "xterm")
    shown, printed = Terminal(), StringIO()
    monkeypatch.setattr(sys, "stderr", shown)
    monkeypatch.setattr(sys, "stdout", printed)
    with shown_progress("rewritten", total) as advance:
        advance(3)
        print("columns of the data")
    assert "rewritten" in shown.getvalue()
    assert f"3/{total or '?'}" in shown.getvalue()
    assert shown.getvalue().endswith("\x1b[2K"), "erased"
    assert printed.getvalue() == "columns of the data\n"
