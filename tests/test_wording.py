"""Words that many messages share."""

import sys
from pathlib import Path

from sharevl_lite.wording import typed_command


def test_the_command_is_named_as_it_can_be_typed(monkeypatch, tmp_path):
    """Off the path: from here where it lies below, else whole; `../../..` would lead nowhere after a `cd`."""
    installed = tmp_path / "project" / ".venv" / "bin"
    (tmp_path / "elsewhere").mkdir()
    installed.mkdir(parents=True)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "executable", str(installed / "python"))
    monkeypatch.chdir(tmp_path / "project")
    assert typed_command() == str(Path(".venv", "bin", "sharevl-lite"))
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert typed_command() == str(installed / "sharevl-lite")
    command = installed / "sharevl-lite"
    command.touch(mode=0o755)
    monkeypatch.setenv("PATH", str(installed))
    assert typed_command() == "sharevl-lite"
