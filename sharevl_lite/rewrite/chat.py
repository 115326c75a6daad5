"""What a model is asked, whoever runs it: a request with its images, the protocol of a model, and a model with a cache.

Three kinds of models stand behind the protocol: an OpenAI-compatible endpoint, transformers and vLLM in this process.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from typing import Any, Protocol

from sharevl_lite.image_files import data_url
from sharevl_lite.rewrite.cache import Reply, ReplyCache
from sharevl_lite.rewrite.errors import VariantsError

MOST_FAILURES = 8
"""Questions in a row without a reply after which a run stops: the model is gone, not one request bad."""


class NoReplyError(RuntimeError):
    """A request that got no reply, for good in this run. The message is the reason."""


@dataclass(frozen=True)
class ChatRequest:
    """One user turn. `parts` are texts and image files (bytes), in the order in which the model reads them.

    The files are those of :func:`~sharevl_lite.data.images.shown_images`: each model's own reader decodes them.
    """

    parts: tuple[str | bytes, ...]
    temperature: float
    max_tokens: int
    seed: int
    needs_images: bool = False
    """Whether a reply without looking at the images is worth nothing; text models refuse such requests."""

    def key(self, model: str) -> str:
        """Hash of the model, the texts, the images and the parameters."""
        parts = [part if isinstance(part, str) else {"image": hashlib.sha256(part).hexdigest()} for part in self.parts]
        asked = [model, parts, self.temperature, self.max_tokens, self.seed]
        return hashlib.sha256(json.dumps(asked).encode()).hexdigest()

    def text_alone(self, model: str) -> str:
        """The texts without the images, for a model that sees none. Raises VariantsError where it must see them."""
        if self.needs_images and any(isinstance(part, bytes) for part in self.parts):
            raise VariantsError(
                f"{model}: sees no images, so it cannot solve problems that have some; name another model"
            )
        return "".join(part for part in self.parts if isinstance(part, str))


class ChatModel(Protocol):
    """Answers requests, many at a time."""

    identity: str
    """Name for the cache: equal names give equal replies to equal requests."""

    async def ask(self, request: ChatRequest, usage: Counter[str]) -> Reply:
        """The reply. `usage` is where repeated attempts are counted.

        Raises:
            NoReplyError: This request gets no reply; another may.
            VariantsError: No request will get one.
        """

    async def close(self) -> None:
        """Frees what the model holds."""


class CachedChat:
    """A model whose replies are kept in `cache`, and what asking it has cost in this run."""

    def __init__(self, model: ChatModel, cache: ReplyCache) -> None:
        self.model, self.cache = model, cache
        self.usage: Counter[str] = Counter()
        self.seconds = 0.0
        self._failed: set[tuple[str | bytes, ...]] = set()

    async def ask(self, request: ChatRequest) -> Reply:
        """The reply, from the cache where it is known.

        Raises:
            NoReplyError: There is none for this request.
            VariantsError: The model is gone.
        """
        try:
            reply, asked = await self.cache.get_or_ask(
                request.key(self.model.identity), partial(self.model.ask, request, self.usage)
            )
        except NoReplyError as error:
            self._failed.add(request.parts)  # however many samples of one question fail, it is one
            if len(self._failed) >= MOST_FAILURES:
                raise VariantsError(
                    f"{self.model.identity}: {len(self._failed)} questions in a row had no reply (the last: {error}); "
                    "run the same command again when the model answers, paid replies are kept"
                ) from error
            raise
        self._failed.clear()
        self.usage["requests" if asked else "cached"] += 1
        if asked:
            self.usage["tokens_in"] += reply.tokens_in
            self.usage["tokens_out"] += reply.tokens_out
            self.seconds += reply.seconds
        return reply

    def cost(self) -> dict[str, Any]:
        """Requests, replies from the cache, tokens and seconds, by name."""
        counts = {name: self.usage[name] for name in ("requests", "cached", "tokens_in", "tokens_out")}
        rest = sorted((name, count) for name, count in self.usage.items() if name not in counts)
        return {**counts, **dict(rest), "model_seconds": round(self.seconds, 2)}


def openai_message(request: ChatRequest) -> dict[str, Any]:
    """The user's turn in the form of OpenAI's chat API, images as data addresses."""
    content: list[dict[str, Any]] = [
        {"type": "text", "text": part}
        if isinstance(part, str)
        else {"type": "image_url", "image_url": {"url": data_url(part, _mime(part))}}
        for part in request.parts
    ]
    return {"role": "user", "content": content}


def _mime(data: bytes) -> str:
    from PIL import Image

    with Image.open(BytesIO(data)) as image:
        return image.get_format_mimetype() or "image/png"
