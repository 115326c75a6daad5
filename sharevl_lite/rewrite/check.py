"""The solver check: a model must agree with the gold answer on a rewrite at least as often as on the original.

    right(rewrite) / judged(rewrite)  >=  right(original) / judged(original),    k samples each

The model sees question and images, never the answer; its replies are judged by the verifier of the rewards. A sample
whose verification fails is counted and left out of `judged`: it says nothing. Where nothing could be judged a rewrite
is rejected under a name of its own. k samples are a noisy measure: with k small some good rewrites are lost.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from string import Formatter
from typing import TYPE_CHECKING, Any

from sharevl_lite.data.images import shown_images
from sharevl_lite.data.problem import PLACEHOLDER, Problem
from sharevl_lite.rewrite.chat import CachedChat, ChatRequest, NoReplyError

if TYPE_CHECKING:
    from sharevl_lite.rewards import VerifierPool

TEMPERATURE = 0.7
TEMPLATE = "{problem}\nThink step by step, then put the final answer in \\boxed{}."
DISAGREES, UNVERIFIED, NO_REPLY = "solver_disagrees", "solver_unverified", "solver_no_reply"


@dataclass(frozen=True)
class Agreement:
    """How many of the samples that could be judged were right."""

    right: int
    judged: int


@dataclass(frozen=True)
class Checked:
    """The rewrites that passed, the others with the name of why, and why a request had no reply, if one had none."""

    accepted: list[str]
    rejected: list[tuple[str, str]]
    failed: str | None = None


class SolverCheck:
    """Asks the model behind `chat` for `samples` answers to each text. `counts` tells what came of them."""

    def __init__(
        self, chat: CachedChat, pool: VerifierPool, *, samples: int, seed: int, template: str, max_tokens: int
    ) -> None:
        self.chat, self.pool = chat, pool
        self.samples, self.seed, self.template, self.max_tokens = samples, seed, template, max_tokens
        self.counts: Counter[str] = Counter()

    async def check(self, problem: Problem, texts: Sequence[str], wanted: int) -> Checked:
        """The first `wanted` of the texts that pass; no more are asked about than it takes."""
        waiting, accepted = list(texts), list[str]()
        rejected: list[tuple[str, str]] = []
        try:
            original = await self._agreement(problem, problem.text) if waiting else Agreement(0, 0)
        except NoReplyError as error:
            return Checked([], [(text, NO_REPLY) for text in waiting], str(error))
        self.counts["never_solved"] += bool(waiting) and original.judged > 0 and original.right == 0
        failed = None
        while waiting and len(accepted) < wanted:
            batch = waiting[: wanted - len(accepted)]
            waiting = waiting[len(batch) :]
            found = await asyncio.gather(*(self._agreement(problem, text) for text in batch), return_exceptions=True)
            for text, result in zip(batch, found, strict=True):
                if isinstance(result, NoReplyError):
                    failed = str(result)
                elif isinstance(result, BaseException):
                    raise result
                reason = NO_REPLY if isinstance(result, NoReplyError) else _reason(result, original)
                if reason is None:
                    accepted.append(text)
                else:
                    rejected.append((text, reason))
        return Checked(accepted, rejected, failed)

    async def _agreement(self, problem: Problem, text: str) -> Agreement:
        from sharevl_lite.rewards import VerifierFailure

        parts = _parts(filled(self.template, text), shown_images(problem.images))
        requests = [
            ChatRequest(parts, TEMPERATURE, self.max_tokens, self.seed + sample, needs_images=True)
            for sample in range(self.samples)
        ]
        replies = await asyncio.gather(*map(self.chat.ask, requests))
        golds = [problem.answer] * len(replies)
        verdicts = await asyncio.to_thread(self.pool.verify_many, [reply.text for reply in replies], golds)
        judged = [verdict for verdict in verdicts if not isinstance(verdict, VerifierFailure)]
        right = sum(verdict.correct for verdict in judged)
        self.counts.update(
            samples=len(verdicts), right=right, wrong=len(judged) - right, unverified=len(verdicts) - len(judged)
        )
        return Agreement(right, len(judged))

    def cost(self) -> dict[str, Any]:
        """What the check has cost in this run, each name with `check_` in front."""
        return {f"check_{name}": value for name, value in self.chat.cost().items()}


def filled(template: str, text: str) -> str:
    r"""The template with the text for `{problem}`.

    One that could stand in `data.prompt_template` is read as there: of `\boxed{{}}` the model sees `\boxed{}`. In any
    other, such as `TEMPLATE`, braces stand for themselves.
    """
    try:
        fields = {field[1:] for field in Formatter().parse(template) if field[1] is not None}
    except ValueError:  # single braces
        fields = set()
    return template.format(problem=text) if fields == {("problem", "", None)} else template.replace("{problem}", text)


def _reason(rewrite: Agreement, original: Agreement) -> str | None:
    if not rewrite.judged or not original.judged:
        return UNVERIFIED
    return None if rewrite.right * original.judged >= original.right * rewrite.judged else DISAGREES


def _parts(text: str, images: Sequence[bytes]) -> tuple[str | bytes, ...]:
    """The text with each image in the place of its placeholder."""
    parts: list[str | bytes] = []
    for place, piece in enumerate(text.split(PLACEHOLDER)):
        if place:
            parts.append(images[place - 1])
        if piece:
            parts.append(piece)
    return tuple(parts)
