"""Ctrl-C and SIGTERM: finish the step, save, say so. A second one stops at once."""

from __future__ import annotations

import signal
from collections.abc import Callable
from types import FrameType
from typing import Any

from transformers import TrainerCallback

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class InterruptCallback(TrainerCallback):
    """Ends training at the next rollout boundary after a signal to any of the processes.

    A rollout has `updates_per_rollout` steps. `gather` gives a value of every process, so that all stop together. Use
    as a context around training.
    """

    def __init__(
        self, updates_per_rollout: int, gather: Callable[[bool], list[bool]], say: Callable[[str], None]
    ) -> None:
        self.updates_per_rollout = updates_per_rollout
        self.gather = gather
        self.say = say
        self.asked = False
        self.interrupted = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> InterruptCallback:
        try:
            self._previous = {number: signal.signal(number, self._handle) for number in SIGNALS}
        except ValueError:  # not the main thread, such as under some notebooks: the default stays
            self._previous = {}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
        self.say("interrupted: finishing this step and saving; interrupt again to stop at once without saving")
        for again in SIGNALS:
            signal.signal(again, signal.default_int_handler if again == signal.SIGINT else signal.SIG_DFL)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        """At a rollout's last update, all processes agree whether to stop."""
        if state.global_step % self.updates_per_rollout:
            return control
        if any(self.gather(self.asked)):
            self.interrupted = True
            control.should_save = True
            control.should_training_stop = True
        return control
