"""What a run shows: a live table on a terminal, a line per step elsewhere, and the table of before and after."""

import re
from io import StringIO
from types import SimpleNamespace

import pytest
from rich.console import Console

from sharevl_lite.display import LIVE_ROWS, LIVE_WIDTH, StepDisplay, before_after_table
from sharevl_lite.wording import counted

STEP = {
    "loss": 0.1,
    "reward": 0.6125,
    "accuracy": 0.543,
    "format": 0.987,
    "response_length": 23.4,
    "vanished_local": 0.25,
    "vanished_global": 0.125,
    "rescued": 0.3125,
    "entropy": 0.4321,
    "gap_mean": -0.0456,
    "seconds/step": 12.34,
}
SHOWN = ("0.613", "54.3%", "98.7%", "23", "25%", "12%", "31%", "0.432", "-0.046", "12.3")
HELD_OUT = {"eval_accuracy": 0.5, "eval_accuracy_plain": 0.625, "eval_accuracy_variants": 0.375}
MAIN = SimpleNamespace(is_world_process_zero=True)


@pytest.fixture
def screen():
    """`screen(terminal)`: a display of a run of 20 steps, and what it has written."""

    def make(terminal, width=140):
        output = StringIO()
        console = Console(file=output, force_terminal=terminal, width=width, color_system=None)
        return StepDisplay(console, 20), output

    return make


def log(display, **logs):
    display.on_log(None, MAIN, None, logs=logs)


def last_frame(output):
    """The lines of the table as it stood at the end, without the codes that move the cursor."""
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", output.getvalue())
    return [line for line in text.replace("\r", "\n").splitlines() if line.strip()]


def test_a_narrow_terminal_shows_lines_with_whole_numbers(screen):
    display, output = screen(True, 80)
    display.start(0)
    log(display, **STEP)
    display.stop()
    assert output.getvalue().startswith("step 1/20  reward 0.613  accuracy 54.3%")
    assert "\x1b" not in output.getvalue()


def test_a_reward_function_that_applies_to_nothing_is_told_once(screen):
    display, output = screen(False)
    display.functions = ["brevity", "silent"]
    display.start(0)
    log(display, **STEP, **{"reward/brevity": 0.0})
    log(display, **STEP)
    told = [line for line in output.getvalue().splitlines() if "warning" in line]
    assert len(told) == 1
    assert "reward function 'silent' returned None for every response of the first step" in told[0]
    display, output = screen(False)
    display.functions = ["silent"]
    display.start(4)  # a resumed run
    log(display, **STEP)
    assert "warning" not in output.getvalue()


def test_the_table_fits_a_terminal_that_is_just_wide_enough(screen):
    display, output = screen(True, LIVE_WIDTH)
    display.start(0)
    log(display, **{**STEP, "vanished_local": 1.0, "vanished_global": 1.0, "seconds/step": 1234.5})
    display.stop()
    assert "…" not in output.getvalue()


def test_a_terminal_shows_a_table_of_the_steps(screen):
    display, output = screen(True)
    display.start(0)
    log(display, **STEP)
    log(display, **{**STEP, "reward": 0.7})
    display.stop()
    lines = last_frame(output)
    title = max(place for place, line in enumerate(lines) if "step 2 of 20" in line)
    table = "\n".join(lines[title:])
    for name in ("step", "reward", "accuracy", "format", "length", "vanished local", "rescued", "gap", "seconds"):
        assert name in table
    rows = [line for line in lines[title:] if "0.432" in line]
    cells = [re.findall(r"[^\s│]+", row) for row in rows]
    assert cells == [["1", *SHOWN], ["2", "0.700", *SHOWN[1:]]]


def test_the_table_keeps_the_newest_steps_of_a_resumed_run(screen):
    display, output = screen(True)
    display.start(3)
    for _ in range(LIVE_ROWS + 2):
        log(display, **STEP)
    display.stop()
    lines = last_frame(output)
    title = max(place for place, line in enumerate(lines) if f"step {LIVE_ROWS + 5} of 20" in line)
    numbers = [int(re.findall(r"[^\s│]+", line)[0]) for line in lines[title:] if "0.432" in line]
    assert numbers == list(range(6, LIVE_ROWS + 6))


def test_elsewhere_each_step_is_a_line(screen):
    display, output = screen(False)
    display.start(0)
    log(display, **STEP)
    log(display, **STEP)
    display.stop()
    lines = output.getvalue().splitlines()
    assert len(lines) == 2, "a line that is wrapped cannot be searched"
    assert lines[0].startswith("step 1/20  reward 0.613  accuracy 54.3%  format 98.7%  length 23  vanished local 25%")
    assert lines[1].startswith("step 2/20  ")
    assert "\x1b" not in output.getvalue()


@pytest.mark.parametrize("terminal", [True, False])
def test_what_is_not_known_is_a_dash(screen, terminal):
    """One variant has no gap; with every verification failed there is no reward."""
    display, output = screen(terminal)
    display.start(0)
    log(display, **{**{k: v for k, v in STEP.items() if k not in ("gap_mean", "reward")}, "accuracy": float("nan")})
    display.stop()
    text = "\n".join(last_frame(output))
    if terminal:
        (row,) = {line for line in text.splitlines() if "0.432" in line}
        assert re.findall(r"[^\s│]+", row) == ["1", "-", "-", *SHOWN[2:8], "-", SHOWN[9]]
    else:
        assert "reward -  accuracy -  format 98.7%" in text
        assert "gap -" in text


@pytest.mark.parametrize("terminal", [True, False])
def test_an_evaluation_is_a_line(screen, terminal):
    display, output = screen(terminal)
    display.start(6)
    log(display, **HELD_OUT)
    log(display, **{**HELD_OUT, "eval_accuracy_variants": float("nan")})
    display.stop()
    text = "\n".join(last_frame(output))
    assert "held-out after step 6: accuracy 50.0%, plain 62.5%, variants 37.5%" in text
    assert "held-out after step 6: accuracy 50.0%, plain 62.5%, variants -" in text


def test_other_processes_and_other_records_show_nothing(screen):
    display, output = screen(False)
    display.start(0)
    display.on_log(None, SimpleNamespace(is_world_process_zero=False), None, logs=STEP)
    log(display, train_runtime=3.0)
    display.on_log(None, MAIN, None)
    display.stop()
    assert output.getvalue() == ""


def figures(all_, plain, variants, form):
    return {"accuracy": all_, "accuracy_plain": plain, "accuracy_variants": variants, "format": form}


COUNTS = {"responses": 64, "verified_plain": 32, "verified_variants": 32}


def shown(before, after):
    output = StringIO()
    Console(file=output, width=140, color_system=None).print(before_after_table(before, after, samples=4))
    return output.getvalue()


def test_before_and_after():
    text = shown(figures(0.25, 0.3, 0.2, 0.9) | COUNTS, figures(0.5, 0.45, 0.55, 0.85) | COUNTS)
    assert "8 held-out problems, asked plainly and as a variant, 4 responses to either" in " ".join(text.split())
    rows = [re.split(r"\s*│\s*", line.strip(" │")) for line in text.splitlines() if "points" in line]
    assert rows == [
        ["all", "25.0%", "50.0%", "+25.0 points", "64"],
        ["plain questions", "30.0%", "45.0%", "+15.0 points", "32"],
        ["variants", "20.0%", "55.0%", "+35.0 points", "32"],
        ["well-formed", "90.0%", "85.0%", "-5.0 points", "64"],
    ]


def test_before_and_after_without_a_figure():
    """Every verification of an evaluation failed: its figure is null in summary.json."""
    text = shown(figures(None, None, None, 0.9), figures(0.5, 0.5, 0.5, 0.9))
    rows = [re.split(r"\s*│\s*", line.strip(" │")) for line in text.splitlines() if "50.0%" in line]
    assert rows == [[name, "-", "50.0%", "-", "-"] for name in ("all", "plain questions", "variants")]


def test_before_and_after_say_of_how_many_responses():
    """Four had no verdict before, and the function gave a number for every second one after."""
    rewards = {"reward": 0.5, "reward/brevity": 0.25}
    before = figures(0.5, 0.5, 0.5, 0.9) | COUNTS | {"verified_plain": 28} | rewards | {"reward/brevity/applied": 1.0}
    text = shown(before, figures(0.5, 0.5, 0.5, 0.9) | COUNTS | rewards | {"reward/brevity/applied": 0.5})
    rows = [re.split(r"\s*│\s*", line.strip(" │")) for line in text.splitlines() if "│" in line]
    assert {row[0]: row[-1] for row in rows} == {
        "all": "60 / 64",
        "plain questions": "28 / 32",
        "variants": "32",
        "well-formed": "64",
        "reward": "60 / 64",
        "reward/brevity": "64 / 32",
    }


def test_one_is_no_plural():
    assert [counted(number, "step") for number in (0, 1, 2)] == ["0 steps", "1 step", "2 steps"]
