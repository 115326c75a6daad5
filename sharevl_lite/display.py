"""What a run shows while it goes: a live table on a wide terminal, a line per step elsewhere; and its last words."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table
from transformers import TrainerCallback

from sharevl_lite.wording import counted

# Column title, key in the metrics, format.
COLUMNS = (
    ("reward", "reward", "{:.3f}"),
    ("accuracy", "accuracy", "{:.1%}"),
    ("format", "format", "{:.1%}"),
    ("length", "response_length", "{:.0f}"),
    ("vanished local", "vanished_local", "{:.0%}"),
    ("global", "vanished_global", "{:.0%}"),
    ("rescued", "rescued", "{:.0%}"),
    ("entropy", "entropy", "{:.3f}"),
    ("gap", "gap_mean", "{:+.3f}"),
    ("seconds", "seconds/step", "{:.1f}"),
)
OF_UPDATE = "eval_of_update"
"""Key of an evaluation of the best checkpoint, put back at the end of a run."""
HELD_OUT = (("accuracy", "eval_accuracy"), ("plain", "eval_accuracy_plain"), ("variants", "eval_accuracy_variants"))
APPLIED = "/applied"
"""How the name of the share ends for which a reward function gave a number."""
LIVE_ROWS = 12
LIVE_WIDTH = 110
"""Columns that the table needs; on a narrower screen its numbers would be cut."""


class StepDisplay(TrainerCallback):
    """Prints each step of a run of `rollouts` steps; `functions` are the names of the user's reward functions."""

    def __init__(self, console: Console, rollouts: int, functions: Sequence[str] = ()) -> None:
        self.console = console
        self.rollouts = rollouts
        self.functions = functions
        self.recent: list[tuple[int, Mapping[str, Any]]] = []
        self.live: Live | None = None
        self.done = 0

    def start(self, done: int) -> None:
        """Called before training, with the rollouts already done (of a resumed run)."""
        self.done = done
        if self.console.is_terminal and self.console.width >= LIVE_WIDTH:
            self.live = Live(console=self.console, refresh_per_second=4)
            self.live.start()

    def stop(self) -> None:
        """Called after training, however it ended."""
        if self.live is not None:
            self.live.stop()
            self.live = None

    def on_log(self, args: Any, state: Any, control: Any, logs: Mapping[str, Any] | None = None, **kwargs: Any) -> None:
        """A step or an evaluation was logged."""
        if not state.is_world_process_zero or logs is None:
            return
        if "loss" in logs:
            self.done += 1
            self.recent = [*self.recent[-LIVE_ROWS + 1 :], (self.done, logs)]
            if self.live is not None:
                self.live.update(self._table())
            else:
                cells = "  ".join(f"{title} {_cell(logs.get(key), form)}" for title, key, form in COLUMNS)
                self.console.print(f"step {self.done}/{self.rollouts}  {cells}", highlight=False, soft_wrap=True)
            if self.done == 1:
                self._tell_silent(logs)
        elif "eval_accuracy" in logs:
            told = ", ".join(f"{title} {_share(logs.get(key))}" for title, key in HELD_OUT)
            told += f", reward {_cell(logs.get('eval_reward'), '{:.3f}')}"
            when = f"with the best checkpoint, of update {logs[OF_UPDATE]:.0f}" if OF_UPDATE in logs else None
            self.console.print(f"held-out {when or f'after step {self.done}'}: {told}", highlight=False, soft_wrap=True)

    def _tell_silent(self, logs: Mapping[str, Any]) -> None:
        """Which functions gave no reward at all in the first step: a mean of nothing is not in the log."""
        for name in self.functions:
            if f"reward/{name}" not in logs:
                self.console.print(
                    f"warning: reward function {name!r} returned None for every response of the first step, which adds "
                    "nothing; if it should apply to some, look at what it returns",
                    highlight=False,
                    soft_wrap=True,
                )

    def _table(self) -> Table:
        table = Table(title=f"step {self.done} of {self.rollouts}")
        table.add_column("step", justify="right")
        for title, _, _ in COLUMNS:
            table.add_column(title, justify="right")
        for step, logs in self.recent:
            table.add_row(str(step), *(_cell(logs.get(key), form) for _, key, form in COLUMNS))
        return table


Figures = Mapping[str, float | None]


def before_after_table(before: Figures, after: Figures, samples: int) -> Table:
    """Held-out figures before and after training (None: not known), with the change, of shares in points.

    Besides the shares of every run both may hold rewards, by names that begin with `reward`. The last column says how
    many responses a figure is the mean of, before and after where that is not the same: from `responses`, all of them,
    `samples` to each problem in either way of asking; `verified_plain` and `verified_variants`, those with a verdict;
    and of a reward function the share `NAME/applied` of them. Older runs kept not all of these.
    """
    title, responses = "held-out problems", after.get("responses")
    if responses:
        asked = counted(round(responses / 2 / samples), "held-out problem")
        title = f"{asked}, asked plainly and as a variant,\n{counted(samples, 'response')} to either"
    table = Table(title=title)
    for title in ("", "before", "after", "change", "responses"):
        table.add_column(title, justify="left" if not title else "right")
    rows = (
        ("all", "accuracy"),
        ("plain questions", "accuracy_plain"),
        ("variants", "accuracy_variants"),
        ("well-formed", "format"),
    )
    for title, name in rows:
        old, new = before[name], after[name]
        change = None if old is None or new is None else 100 * (new - old)
        of = _of(before, after, name)
        table.add_row(title, _share(old), _share(new), "-" if change is None else f"{change:+.1f} points", of)
    for name in (name for name in after if name.startswith("reward") and not name.endswith(APPLIED)):
        old, new = before.get(name), after[name]
        change = None if old is None or new is None else new - old
        shown = _cell(old, "{:.3f}"), _cell(new, "{:.3f}"), _cell(change, "{:+.3f}")
        table.add_row(name, *shown, _of(before, after, name))
    return table


def _of(before: Figures, after: Figures, name: str) -> str:
    """How many responses a figure is the mean of."""
    counts = [_cell(_mean_of(figures, name), "{:.0f}") for figures in (before, after)]
    return counts[0] if counts[0] == counts[1] else " / ".join(counts)


def _mean_of(figures: Figures, name: str) -> float | None:
    responses, plain, variants = (figures.get(key) for key in ("responses", "verified_plain", "verified_variants"))
    if name in ("accuracy", "reward"):
        return None if plain is None or variants is None else plain + variants
    if name.startswith("accuracy"):
        return figures.get(name.replace("accuracy", "verified"))
    if name.startswith("reward"):
        applied = figures.get(f"{name}{APPLIED}")
        return None if responses is None or applied is None else applied * responses
    return responses


def _share(value: float | None) -> str:
    return _cell(value, "{:.1%}")


def _cell(value: Any, form: str) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "-"
    return form.format(value)
