"""What every rollout engine promises: unexpanded prompts in; responses with ids and log-probs out."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from sharevl_lite.policy.prompts import EncodedPrompt

if TYPE_CHECKING:
    from sharevl_lite.policy.packed import PackedPolicy


@dataclass(frozen=True)
class SamplingRequest:
    """One prompt to be sampled `count` times. `key` names it for seeding, e.g. "step 7/problem a/variant 1"."""

    key: str
    prompt: EncodedPrompt
    count: int


@dataclass(frozen=True)
class Sampling:
    """How to sample. `temperature` 0 takes the most likely token; `seed` and a request's key fix each response."""

    temperature: float
    top_p: float
    max_completion_length: int
    seed: int


@dataclass(frozen=True)
class Response:
    """One sampled response.

    `token_ids` ends with the end-of-turn token unless `truncated`; `logprobs` (nats) are of the distribution it was
    drawn from, after temperature, top-p and the ban of vision tokens. `text` is without special tokens.
    """

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    text: str
    truncated: bool


class RolloutEngine(Protocol):
    """Samples responses from the current policy."""

    def sample(self, requests: Sequence[SamplingRequest], sampling: Sampling) -> list[list[Response]]:
        """`count` responses to each request, in order."""

    def sync(self) -> None:
        """Called after the policy's weights changed and before the next :meth:`sample`."""

    def close(self) -> None:
        """Frees what the engine holds."""


def end_ids(policy: PackedPolicy) -> list[int]:
    """Tokens that end a response, by the model's generation settings or its tokenizer."""
    ends = policy.base.generation_config.eos_token_id
    return [ends] if isinstance(ends, int) else list(ends or [policy.processor.tokenizer.eos_token_id])


def response_seed(seed: int, key: str, index: int) -> int:
    """A 63-bit seed of one response: the same in any batch, on any process, in any run."""
    digest = hashlib.sha256(f"{seed}\x1f{key}\x1f{index}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
