"""Rewriters: what offers rewrites of a problem, by rules or by a model, behind one protocol."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from sharevl_lite.data.images import shown_images
from sharevl_lite.data.problem import PLACEHOLDER, Problem, split_placeholders
from sharevl_lite.rewrite.chat import CachedChat, ChatRequest, NoReplyError
from sharevl_lite.rewrite.replies import MARK, instruction, parse_rewrites
from sharevl_lite.rewrite.rules import rewrite_by_rules

TEMPERATURE = 0.8
PARSE_TRIES = 3


@dataclass(frozen=True)
class Rewrites:
    """What a rewriter offers for a problem; `failed` says why it offers nothing where a request had no reply."""

    texts: list[str]
    failed: str | None = None


class Rewriter(Protocol):
    """Offers rewrites; what is wrong with them is for others to see."""

    async def rewrite(self, problem: Problem, count: int) -> Rewrites:
        """Up to `count` rewrites of the problem's text, with its placeholders. Never sees the answer.

        Raises VariantsError where no problem can be rewritten any more.
        """

    def cost(self) -> dict[str, Any]:
        """What it has cost in this run, by name."""


class RulesRewriter:
    """Rewrites by rule, the same for the same seed and question."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    async def rewrite(self, problem: Problem, count: int) -> Rewrites:
        """Up to `count` rewrites; fewer where little is safe."""
        return Rewrites(rewrite_by_rules(problem.text, count, seed=self.seed))

    def cost(self) -> dict[str, Any]:
        """No request."""
        return {"requests": 0}


class ModelRewriter:
    """A model is asked for a list of rewrites, with the images; a reply without a list is asked for again."""

    def __init__(self, chat: CachedChat, *, seed: int, max_tokens: int) -> None:
        self.chat, self.seed, self.max_tokens = chat, seed, max_tokens
        self.unparsable_replies = self.unparsable_problems = 0

    async def rewrite(self, problem: Problem, count: int) -> Rewrites:
        """Up to `count` rewrites; none where the model gave no usable list, which `cost` counts."""
        leading, question = split_placeholders(problem.text)
        asked = instruction(question.replace(PLACEHOLDER, MARK), count)
        parts: tuple[str | bytes, ...] = (*shown_images(problem.images), asked)
        for attempt in range(PARSE_TRIES):
            try:
                reply = await self.chat.ask(ChatRequest(parts, TEMPERATURE, self.max_tokens, self.seed + attempt))
            except NoReplyError as error:
                return Rewrites([], failed=str(error))
            texts = parse_rewrites(reply.text)
            if texts is not None:
                return Rewrites(
                    [_placed(text.replace(MARK, PLACEHOLDER), problem.text, leading) for text in texts[:count]]
                )
            self.unparsable_replies += 1
        self.unparsable_problems += 1
        return Rewrites([])

    def cost(self) -> dict[str, Any]:
        """Requests, tokens and seconds; replies that held no list, and problems that got none for it."""
        counts = {"replies_unparsable": self.unparsable_replies, "unparsable": self.unparsable_problems}
        return {**self.chat.cost(), **{name: count for name, count in counts.items() if count}}


def _placed(text: str, original: str, leading: str) -> str:
    """The rewrite behind the original's leading placeholders, unless it has all placeholders itself."""
    return text if text.count(PLACEHOLDER) == original.count(PLACEHOLDER) else leading + text
