"""The solver check: a model must find the answer under a rewrite at least as often as under the original.

It sees what words cannot tell. The original and each rewrite are answered `samples` times, and the answers judged by
the verifier of the rewards. An answer without a verdict counts neither as right nor as wrong: shares of the judged
answers are compared. A rewrite without any judged answer is rejected, because nothing speaks for it. Where the original
is never solved every rewrite passes; how many problems that are is counted.

The right answer is given to the verifier only, never to the model.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from sharevl_lite.data.images import encoded_images
from sharevl_lite.data.problem import PLACEHOLDER, Problem
from sharevl_lite.rewards.pool import VerifierPool
from sharevl_lite.rewards.verifier import VerifierFailure

from .chat import CachedChat, ChatRequest, NoReplyError

DISAGREES, UNJUDGED = "solver_disagrees", "solver_unjudged"
TEMPERATURE = 1.0


@dataclass(frozen=True)
class Checked:
    """Rewrites that passed, those that did not with the reason, and why there was no check where it got no reply."""

    accepted: list[str]
    rejected: list[tuple[str, str]]
    failed: str | None = None


class SolverCheck:
    """Asks `chat` with questions in `template` (`{problem}` is the question), `samples` times each."""

    def __init__(
        self, chat: CachedChat, pool: VerifierPool, *, samples: int, template: str, max_tokens: int, seed: int
    ) -> None:
        self.chat, self.samples, self.template = chat, samples, template
        self.max_tokens, self.seed = max_tokens, seed
        self.counts: Counter[str] = Counter()
        self._pool = pool

    async def sift(self, problem: Problem, texts: Sequence[str], wanted: int) -> Checked:
        """The first `wanted` of the rewrites that the solver agrees with; later ones are asked where some fail.

        Raises VariantsError where the model is gone.
        """
        if not texts:
            return Checked([], [])
        accepted: list[str] = []
        rejected: list[tuple[str, str]] = []
        try:
            first, waiting = texts[:wanted], list(texts[wanted:])
            original, *rates = await _all(self._rate(problem, text) for text in (problem.text, *first))
            self.counts["unsolved_originals"] += original == 0
            while True:
                for text, rate in zip(first, rates, strict=True):
                    reason = _reason(rate, original)
                    if reason is None:
                        accepted.append(text)
                    else:
                        rejected.append((text, reason))
                if len(accepted) >= wanted or not waiting:
                    return Checked(accepted, rejected)
                first, waiting = waiting[:1], waiting[1:]
                rates = [await self._rate(problem, first[0])]
        except NoReplyError as error:
            return Checked([], [], failed=str(error))

    async def _rate(self, problem: Problem, text: str) -> Fraction | None:
        """Share of right answers to the problem in these words, among those with a verdict; None without any."""
        parts = _interleaved(self.template.format(problem=text), encoded_images(problem.images))
        replies = await _all(
            self.chat.ask(ChatRequest(parts, TEMPERATURE, self.max_tokens, self.seed + number))
            for number in range(self.samples)
        )
        written = [reply.text for reply in replies]
        verdicts = await asyncio.to_thread(self._pool.verify_many, written, [problem.answer] * len(written))
        judged = [verdict.correct for verdict in verdicts if not isinstance(verdict, VerifierFailure)]
        self.counts["answers"] += len(verdicts)
        self.counts["answers_unjudged"] += len(verdicts) - len(judged)
        return Fraction(sum(judged), len(judged)) if judged else None

    def cost(self) -> dict[str, Any]:
        """What the check has cost in this run, and what it could not say."""
        return {**self.chat.cost(), **dict(self.counts)}

    def close(self) -> None:
        """Ends the verifier's processes."""
        self._pool.close()


def _reason(rate: Fraction | None, original: Fraction | None) -> str | None:
    if rate is None or original is None:
        return UNJUDGED
    return None if rate >= original else DISAGREES


def _interleaved(text: str, images: Sequence[bytes]) -> tuple[str | bytes, ...]:
    """The text with each image in the place of its placeholder."""
    pieces = text.split(PLACEHOLDER)
    parts: list[str | bytes] = [pieces[0]]
    for image, piece in zip(images, pieces[1:], strict=True):
        parts += [image, piece]
    return tuple(part for part in parts if part)


async def _all(awaitables: Any) -> list[Any]:
    """Their results, when all are done; the first error, if there is one."""
    results = await asyncio.gather(*awaitables, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return results
