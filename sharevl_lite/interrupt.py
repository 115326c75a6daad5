"""Ctrl-C and SIGTERM: a step that has not been trained on is left, another is finished; then save, and say so.

A second one stops at once. What callbacks stop ends alike.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from transformers import TrainerCallback

from sharevl_lite.signals import Signals, tell
from sharevl_lite.together import Stopped

T = TypeVar("T")


class _Leave(KeyboardInterrupt):
    """What breaks into work that may be left: libraries know how to be interrupted."""


class InterruptCallback(Signals, TrainerCallback):
    """Ends training after a signal to any of the processes: at once in what is :meth:`leaving`, else at the next
    rollout boundary, with a checkpoint. There also where another callback has set `should_training_stop`
    (transformers' EarlyStoppingCallback does).

    A rollout has `updates_per_rollout` steps. `gather` gives a value of every process, so that all stop together. Use
    as a context around training, behind all other callbacks.
    """

    def __init__(self, updates_per_rollout: int, gather: Callable[[Any], list[Any]]) -> None:
        super().__init__()
        self.updates_per_rollout = updates_per_rollout
        self.gather = gather
        self._leavable = self._left = False
        self.interrupted = False
        self.stopped = False
        """Whether a callback asked for the end; the Trainer's own asks after the last step."""

    def first(self) -> None:
        """Ends what may be left; otherwise training goes on to the end of the step."""
        tell(
            "interrupted: saving what is finished, after this step where its updates have begun; interrupt again to "
            "stop at once without saving"
        )
        if self._leavable:
            self._leavable, self._left = False, True
            raise _Leave

    def leaving(self, work: Callable[[], T]) -> T:
        """What `work` gives. Raises Stopped where a signal came before, or comes meanwhile and so ends it."""
        try:
            self._leavable = True
            if self.asked:
                raise _Leave
            return work()
        except _Leave:
            raise Stopped from None
        except Exception as error:  # what a library may have made of it
            if self._left:
                raise Stopped from error
            raise
        finally:
            self._leavable = False

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        """At a rollout's last update, all processes agree whether to stop."""
        return self._decide(state, control)

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        """The same, for callbacks that stop by what was logged."""
        return self._decide(state, control)

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        """The same, for callbacks that stop by an evaluation."""
        return self._decide(state, control)

    def _decide(self, state: Any, control: Any) -> Any:
        if state.global_step == 0:
            return control  # an evaluation before the training, which clears what was asked for
        self.stopped = self.stopped or control.should_training_stop
        control.should_training_stop = False  # in the middle of a rollout it has to wait
        if state.global_step % self.updates_per_rollout == 0:
            votes = self.gather((self.asked, self.stopped))
            self.interrupted, self.stopped = (any(vote) for vote in zip(*votes, strict=True))
            control.should_training_stop = self.interrupted or self.stopped
            control.should_save = control.should_save or control.should_training_stop
        return control
