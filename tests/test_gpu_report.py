"""The report of a GPU's tests and benchmarks, with commands that run anywhere."""

import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "scripts" / "gpu_report.py"
HARNESS = ROOT / "kernels" / "benchmarks" / "harness.py"
CARDS = ["A card, 80 GiB, 580.1"]


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    import gpu_report

    monkeypatch.setattr(gpu_report, "find_cards", lambda: CARDS)
    monkeypatch.setattr(gpu_report, "GRACE", 2)
    return gpu_report


def run(script, tmp_path, *parts, minutes=1.0):
    made = [
        script.Part(name, "", limit, tuple(script.Command(*command) for command in commands), unless)
        for name, limit, commands, unless in parts
    ]
    seen = list(script.run_all(made, minutes, CARDS, tmp_path))
    return {one.command.name: one for one in seen}, script.report(seen, CARDS)


def test_outcomes_and_logs_are_told(script, tmp_path):
    say = "{python} -c 'import sharevl_lite, sharevl_kernels; print(\"seen\", 6 * 7)'"
    seen, text = run(
        script,
        tmp_path,
        ("first", 1, [("good", say), ("bad", "echo about to fail; exit 3"), ("absent", say, ("no_such",))], ""),
        ("again", 1, [("otherwise", say)], "first"),
        ("needless", 1, [("spare", say)], "again"),
        ("more", 1, [("two", say, (), 2)], ""),
    )
    outcomes = {name: one.outcome for name, one in seen.items()}
    assert outcomes == {
        "good": "ok",
        "bad": "failed (3)",
        "absent": "left out: no_such not installed",
        "otherwise": "ok",  # the first part did not go well
        "spare": "not needed",
        "two": "left out: needs 2 GPUs",
    }
    assert [name for name, one in seen.items() if one.failed] == ["bad"]
    assert "seen 42" in text
    assert "about to fail" in text
    assert CARDS[0] in text
    assert "torch 2" in text
    assert (tmp_path / "good.log").read_text() == "seen 42\n"


def test_a_part_that_only_left_commands_out_did_not_go_well(script, tmp_path):
    seen, _ = run(
        script,
        tmp_path,
        ("step", 1, [("whole", "true", ("no_such",))], ""),
        ("updates", 1, [("half", "true")], "step"),
    )
    assert seen["half"].outcome == "ok"


def test_a_command_out_of_time_is_ended_with_its_children(script, tmp_path):
    began = time.monotonic()
    seen, text = run(
        script,
        tmp_path,
        ("slow", 0.02, [("deaf", "trap '' TERM; echo here; sleep 71.5 & sleep 71.5; wait")], ""),
        ("next", 1, [("quick", "echo {out} > {scratch}/kept && cat {scratch}/kept")], ""),
    )
    assert time.monotonic() - began < 30
    assert seen["deaf"].outcome == "stopped: out of time"
    assert "here" in text
    assert seen["quick"].outcome == "ok"
    assert str(tmp_path) in text
    assert not subprocess.run(["pgrep", "-f", "sleep 71.5"], capture_output=True, check=False).stdout


def test_parts_for_which_no_time_is_left_are_told(script, tmp_path):
    seen, _ = run(script, tmp_path, ("late", 1, [("never", "true")], ""), minutes=1 / 60)
    assert seen["never"].outcome == "not begun: out of time"
    assert not seen["never"].failed


def test_the_report_is_there_after_each_command(script, tmp_path, monkeypatch, capsys):
    parts = [script.Part("one", "", 1, (script.Command("bad", "exit 1"),))]
    monkeypatch.setattr(script, "PARTS", (*parts, script.Part("two", "", 1, (script.Command("next", "true"),))))
    reports = []
    write = Path.write_text

    def keep(path, text, *rest, **named):
        reports.append(text)
        return write(path, text, *rest, **named)

    monkeypatch.setattr(Path, "write_text", keep)
    assert script.main(["--out", str(tmp_path / "new")]) == 1
    assert [report.count("\n| ") for report in reports] == [2, 3]  # the table's head, and one more each time
    assert "| two | next | ok |" in (tmp_path / "new" / "report.md").read_text()
    assert "bad" in capsys.readouterr().out
    assert script.main(["--only", "two", "--out", str(tmp_path)]) == 0


@pytest.mark.parametrize("words", [["--minutes", "0"], ["--only", "no-such"]])
def test_bad_options_are_refused(script, words, capsys):
    with pytest.raises(SystemExit) as stop:
        script.main(words)
    assert stop.value.code == 2
    assert words[-1] in capsys.readouterr().err


def test_without_a_gpu_it_says_so(tmp_path):
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--out", str(tmp_path / "out")],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PATH": ""},
    )
    assert done.returncode == 2
    assert "no NVIDIA GPU" in done.stderr
    assert not (tmp_path / "out").exists()


def test_what_the_parts_name_exists(script):
    """Scripts, test files, recipes and the words of their options; what a GPU would find after minutes otherwise."""
    names = {"python": "python", "out": "out", "scratch": "scratch"}
    for command in (command for part in script.PARTS for command in part.commands):
        for line in command.line.format(**names).split(" && "):
            words = shlex.split(line)
            for word in words:
                if word.startswith(("scripts/", "kernels/", "tests/", "configs/")):
                    assert (ROOT / word).exists(), word
            script_words = words[1:] if words[1].endswith(".py") else []
            source = "".join((ROOT / file).read_text() for file in script_words[:1])
            source += HARNESS.read_text() if "kernels/" in line else ""
            assert all(f'"{word}"' in source for word in script_words if word.startswith("--")), line
    assert len({command.name for part in script.PARTS for command in part.commands}) == sum(
        len(part.commands) for part in script.PARTS
    )
    assert {part.unless for part in script.PARTS} <= {"", *(part.name for part in script.PARTS)}
