"""The reward of a response: accuracy_weight * correct + format_weight * well-formed + the user's functions.

The paper's weights are 0.9 and 0.1 (Share-GRPO, arXiv 2505.16673). The public code scores an answer whose verification
fails as wrong; here it is NaN, for the trainer to leave out and count, since a punishment for the grader's time-out
teaches nothing.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Collection, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from sharevl_lite.event_loop import LoopThread
from sharevl_lite.rewards.formatting import is_well_formed
from sharevl_lite.rewards.functions import (
    RewardFunction,
    RewardFunctionError,
    call_reward_function,
    check_arguments,
    load_reward_function,
)
from sharevl_lite.rewards.pool import VerifierPool
from sharevl_lite.rewards.reward_log import RewardLog
from sharevl_lite.rewards.verifier import Gold, Verdict, VerifierFailure

if TYPE_CHECKING:
    from sharevl_lite.config import RewardSection

logger = logging.getLogger(__name__)

_LOGGED_CHARACTERS = 200
_PASSED_ANYWAY = frozenset({"prompt", "completion", "completion_ids", "answer"})  # TRL leaves the first three out, too
OWN_ARGUMENTS = frozenset({"prompts", "completions", "trainer_state", "log_metric", "log_extra"})
"""Arguments of every reward function that no column may have for a name."""
_ALWAYS = OWN_ARGUMENTS | {"completion_ids", "answer"}


def known(value: float) -> float | None:
    """A reward as it is written down: None where it is NaN, for it is not known then."""
    return None if math.isnan(value) else value


@dataclass(frozen=True)
class Sample:
    """A response to be scored. `columns` are what its problem's row has besides, for the user's functions.

    These get `answer` as it is, text or a list.
    """

    prompt: str
    completion: str
    completion_ids: tuple[int, ...]
    answer: Gold
    columns: Mapping[str, Any]


@dataclass(frozen=True)
class Score:
    """The rewards of one response."""

    total: float
    """Weighted sum; NaN when the verifier failed and accuracy has a weight."""
    accuracy: float
    """1 right, 0 wrong, NaN when the verifier failed."""
    format: float
    """1 if the response has the asked form, else 0."""
    functions: dict[str, float]
    """Reward by function name, unweighted; NaN where the function does not apply."""
    verdict: Verdict | None
    """What the verifier found; None when it failed."""
    failure: str | None
    """Why the verifier failed; None when it did not."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """What the functions logged by `log_metric` about the batch that the response was scored in."""
    extras: Mapping[str, str] = field(default_factory=dict)
    """What they logged by `log_extra` about the response."""


class RewardScorer:
    """Scores responses as a recipe's `reward` section says. Loads the user's functions at once, so errors come early.

    Args:
        section: the recipe's `reward`.

    Raises:
        RewardFunctionError: a function cannot be loaded, or two have the same name.
    """

    def __init__(self, section: RewardSection) -> None:
        self._section = section
        self._functions: dict[str, tuple[float, RewardFunction]] = {}
        for entry in section.functions:
            name = entry.path.rpartition(":")[2]
            if name in self._functions:
                raise RewardFunctionError(
                    f"two reward functions are called {name!r}; rename one, metrics go by this name"
                )
            self._functions[name] = (entry.weight, load_reward_function(entry.path))
        self._pool = VerifierPool(section.workers, section.timeout_seconds, section.numeric_tolerance)
        self._loop: LoopThread | None = None
        """Of async functions, whose clients and locks belong to one loop for good."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the verifier processes, and what async functions left behind."""
        self._pool.close()
        if self._loop is not None:
            self._loop.close()
            self._loop = None

    def check_columns(self, names: Collection[str]) -> None:
        """Looks before anything is sampled whether the user's functions can be called for data with these columns.

        Raises:
            RewardFunctionError: a function needs another argument, or a column has the name of an argument.
        """
        if not self._functions:
            return
        columns = set(names) - _PASSED_ANYWAY
        clashes = OWN_ARGUMENTS & columns
        if clashes:
            raise RewardFunctionError(
                f"the data has columns {sorted(clashes)}, which are arguments of every reward function; rename them"
            )
        for name, (_, function) in self._functions.items():
            check_arguments(function, name, columns | _ALWAYS)

    def score(self, samples: Sequence[Sample], trainer_state: Any = None) -> list[Score]:
        """Score each sample, in order; `trainer_state` is handed to the user's functions as TRL does.

        Raises:
            RewardFunctionError: a function raised or returned something that is not a list of rewards.
            VerifierStartError: verifier processes do not start.
        """
        if not samples:
            return []
        outcomes = self._pool.verify_many([s.completion for s in samples], [s.answer for s in samples])
        log = RewardLog(len(samples))
        rewards = self._call_functions(samples, trainer_state, log)
        metrics = log.metrics
        return [
            replace(self._score_one(sample, outcome, functions), metrics=metrics, extras=log.extras_of(row))
            for row, (sample, outcome) in enumerate(zip(samples, outcomes, strict=True))
            for functions in ({name: values[row] for name, values in rewards.items()},)
        ]

    def same_answers(self, pairs: Sequence[tuple[str, str]]) -> list[bool | None]:
        """Whether the two answers of each pair say the same: the verifier's word on the first with the second as gold.

        None where it has none (a time-out, or a second answer that it cannot read). Empty answers are not taken.
        """
        outcomes = self._pool.verify_many([rf"\boxed{{{first}}}" for first, _ in pairs], [other for _, other in pairs])
        return [None if isinstance(outcome, VerifierFailure) else outcome.correct for outcome in outcomes]

    def _score_one(self, sample: Sample, outcome: Verdict | VerifierFailure, functions: dict[str, float]) -> Score:
        verdict, failure = (None, outcome.reason) if isinstance(outcome, VerifierFailure) else (outcome, None)
        if failure is not None:
            logger.warning(
                "the verifier failed (%s); the answer is not scored. gold: %r, response: %r",
                failure,
                sample.answer,
                sample.completion[:_LOGGED_CHARACTERS],
            )
        accuracy = math.nan if verdict is None else float(verdict.correct)
        form = float(is_well_formed(sample.completion, sample.prompt))
        total = self._section.format_weight * form
        if self._section.accuracy_weight:  # 0 * NaN would be NaN
            total += self._section.accuracy_weight * accuracy
        given = {name: value for name, value in functions.items() if not math.isnan(value)}
        total += sum(self._functions[name][0] * value for name, value in given.items())
        if not self._section.format_weight and not self._section.accuracy_weight and not self._weighs(given):
            total = math.nan  # nothing that counts was said of it: it earned no 0
        return Score(total, accuracy, form, functions, verdict, failure)

    def _weighs(self, names: Collection[str]) -> bool:
        """Whether any of the functions of these names counts."""
        return any(self._functions[name][0] for name in names)

    def _call_functions(self, samples: Sequence[Sample], trainer_state: Any, log: RewardLog) -> dict[str, list[float]]:
        if not self._functions:
            return {}
        arguments: dict[str, Any] = {
            **_columns(samples),
            "prompts": [s.prompt for s in samples],
            "completions": [s.completion for s in samples],
            "completion_ids": [list(s.completion_ids) for s in samples],
            "answer": [s.answer if isinstance(s.answer, str) else list(s.answer) for s in samples],
            "trainer_state": trainer_state,
            "log_metric": log.log_metric,
            "log_extra": log.log_extra,
        }
        return {
            name: call_reward_function(function, name, arguments, self._run)
            for name, (_, function) in self._functions.items()
        }

    def _run(self, work: Coroutine[Any, Any, Any]) -> Any:
        if self._loop is None:
            self._loop = LoopThread("sharevl-rewards")
        return self._loop.run(work)


def _columns(samples: Sequence[Sample]) -> dict[str, list[Any]]:
    """The columns as lists over samples. A row that lacks a column has None there, as in a table."""
    names = {name: None for sample in samples for name in sample.columns if name not in _PASSED_ANYWAY}
    return {name: [sample.columns.get(name) for sample in samples] for name in names}
