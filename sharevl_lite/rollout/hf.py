"""Rollouts with transformers' `generate`, on any device.

Each response is drawn by inverse transform sampling from its own stream of uniform numbers, seeded by its name. So a
response does not depend on which others share its batch or process: a resumed run, or one on two processes, samples
what one uninterrupted process would have sampled (up to the rounding of a differently padded batch).

Equal prompts that start together are read once for all of their responses, and `generate` goes on from the keys and
values.
"""

from __future__ import annotations

import contextlib
import math
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import DynamicCache, GenerationConfig, LogitsProcessor, LogitsProcessorList, TopPLogitsWarper

from sharevl_lite.policy.adapted import narrowed_once
from sharevl_lite.policy.packed import PackedPolicy, cache_argument
from sharevl_lite.policy.prompts import EncodedPrompt
from sharevl_lite.rollout.continuous import BufferPool, Context, join
from sharevl_lite.rollout.engine import Response, Sampling, SamplingRequest, end_ids, response_seed
from sharevl_lite.rollout.errors import RolloutError

SLICE = 16
"""Tokens of each response between two looks at which have ended."""


class SeededSampler(LogitsProcessor):
    """Draws the next token of every row itself and leaves only that one possible, so that greedy search takes it.

    `uniforms_BT` holds a number in [0, 1) per row and step. `logprobs` collects, per step, the log-prob [B] of the
    drawn tokens under the distribution they were drawn from.
    """

    def __init__(
        self, uniforms_BT: Float[Tensor, "B T"], temperature: float, top_p: float, banned_ids: Sequence[int]
    ) -> None:
        self.uniforms_BT = uniforms_BT
        self.temperature = temperature
        self.nucleus = TopPLogitsWarper(top_p) if top_p < 1.0 else None
        self.banned_ids = list(banned_ids)
        self.logprobs: list[Float[Tensor, "B"]] = []

    def __call__(self, input_ids: Int[Tensor, "B L"], scores: Float[Tensor, "B V"]) -> Float[Tensor, "B V"]:
        """Keeps the drawn token of each row."""
        logits_BV = scores.to(torch.float32, copy=True)
        logits_BV[:, self.banned_ids] = -torch.inf
        if self.temperature > 0.0:
            logits_BV /= self.temperature
            if self.nucleus is not None:
                logits_BV = self.nucleus(input_ids, logits_BV)
            logprobs_BV = logits_BV.log_softmax(-1)
            del logits_BV  # of a large batch each of these is a gigabyte
            cumulative_BV = logprobs_BV.double().exp_().cumsum_(-1)
            threshold_B1 = self.uniforms_BT[:, len(self.logprobs), None].double() * cumulative_BV[:, -1:]
            drawn_B1 = torch.searchsorted(cumulative_BV, threshold_B1, right=True).clamp(max=scores.shape[1] - 1)
            del cumulative_BV
        else:
            logprobs_BV = logits_BV.log_softmax(-1)
            drawn_B1 = logits_BV.argmax(-1, keepdim=True)
        self.logprobs.append(logprobs_BV.gather(1, drawn_B1).squeeze(1))
        return torch.full_like(scores, -torch.inf).scatter(1, drawn_B1, 0.0)


@dataclass
class Row:
    """A response that is being sampled: to which request, its own uniform numbers, and what it has so far."""

    request: SamplingRequest
    uniforms_T: Float[Tensor, "T"]
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)


class HFRolloutEngine:
    """`generate` on the policy being trained, `batch_size` responses at a time (`continuous.py` says how).

    With `keep_images` the policy keeps what its vision tower made of the images, for an update on these responses.
    """

    def __init__(self, policy: PackedPolicy, batch_size: int, *, keep_images: bool = False) -> None:
        self.policy = policy
        self.batch_size = batch_size
        self.keep_images = keep_images
        tokenizer = policy.processor.tokenizer
        self.end_ids = end_ids(policy)
        self.pad_id: int = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else self.end_ids[0]

    def sample(self, requests: Sequence[SamplingRequest], sampling: Sampling) -> list[list[Response]]:
        """`count` responses to each request, in order."""
        groups = [
            [Row(request, uniforms(request, index, sampling)) for index in range(request.count)] for request in requests
        ]
        training = self.policy.training
        self.policy.eval()
        try:
            self._sample(groups, sampling)
        finally:
            self.policy.train(training)
        return [[self._response(row) for row in group] for group in groups]

    def sync(self) -> None:
        """Nothing to do: the engine samples from the trained weights themselves."""

    def close(self) -> None:
        """Nothing is held."""

    @torch.no_grad()
    def _sample(self, groups: list[list[Row]], sampling: Sampling) -> None:
        """Samples each row to its end. Those of a group start together, so that their prompt is read once."""
        size = self.batch_size
        waiting = deque(group[start : start + size] for group in groups for start in range(0, len(group), size))
        longest = max((row.request.prompt.prefix.ids_P.numel() for group in groups for row in group), default=0)
        pool = BufferPool(min(size, sum(map(len, groups))), longest + sampling.max_completion_length)
        running: list[Row] = []
        context: Context | None = None
        settings = without_own_settings(self.policy.base)
        with self.policy.autocast(), narrowed_once(), settings, without_cudnn_attention():
            while True:
                staying = [place for place, row in enumerate(running) if not self._has_ended(row, sampling)]
                joining: list[Row] = []
                while waiting and len(staying) + len(joining) + len(waiting[0]) <= size:
                    joining += waiting.popleft()
                if not staying + joining:
                    return
                if context is None or joining or len(staying) < len(running):
                    parts = [(context, staying)] if context is not None and staying else []
                    context = None  # an ended one gives its memory back before others are read
                    running = [running[place] for place in staying] + joining
                    context = join([*parts, self._read(joining)] if joining else parts, pool)
                self._go_on(running, context, sampling)

    def _read(self, rows: list[Row]) -> tuple[Context, list[int]]:
        """Reads the prompts of some rows, equal ones once; which row of the context is whose."""
        prompts = {row.request.prompt.prefix.identity: row.request.prompt for row in rows}
        places = {identity: place for place, identity in enumerate(prompts)}
        context = self._read_prompts(list(prompts.values()))
        if not self.keep_images:
            self.policy.forget_images()
        return context, [places[row.request.prompt.prefix.identity] for row in rows]

    def _read_prompts(self, prompts: list[EncodedPrompt]) -> Context:
        longest = max(prompt.prefix.ids_P.numel() for prompt in prompts)
        ids_BL = torch.full((len(prompts), longest), self.pad_id)
        mask_BL = torch.zeros_like(ids_BL)
        positions_3BL = torch.zeros(3, *ids_BL.shape, dtype=torch.long)
        after_B1 = torch.zeros(len(prompts), 1, dtype=torch.long)
        for row, prompt in enumerate(prompts):
            prefix, start = prompt.prefix, longest - prompt.prefix.ids_P.numel()
            ids_BL[row, start:] = prefix.ids_P
            mask_BL[row, start:] = 1
            positions_3BL[:, row, start:] = prefix.positions_3P
            after_B1[row] = prefix.positions_3P.max() + 1 - prefix.ids_P.numel()
        keys = [key for prompt in prompts for key in prompt.prefix.image_keys]
        images = {key: image for prompt in prompts for key, image in prompt.images.items()}
        cache = DynamicCache(config=self.policy.base.config.get_text_config())
        self.policy.read(ids_BL, mask_BL, positions_3BL, keys, images, cache)
        cache.crop(-1)  # `generate` reads a last token itself
        device = self.policy.device
        return Context(ids_BL.to(device), mask_BL.to(device), after_B1.to(device), cache)

    def _go_on(self, rows: list[Row], context: Context, sampling: Sampling) -> None:
        """Samples up to `SLICE` tokens more of each row."""
        starts = [len(row.token_ids) for row in rows]
        count = min(SLICE, sampling.max_completion_length - max(starts))
        uniforms_BT = torch.stack(
            [row.uniforms_T[start : start + count] for row, start in zip(rows, starts, strict=True)]
        )
        sampler = SeededSampler(
            uniforms_BT.to(self.policy.device), sampling.temperature, sampling.top_p, self.policy.vision_token_ids
        )
        base = self.policy.base
        base.model.rope_deltas = context.after_B1
        # Not the model's own, which Unsloth replaces by one with a cache of its own.
        output = type(base).generate(
            base,
            input_ids=context.ids_BL,
            attention_mask=context.mask_BL,
            logits_processor=LogitsProcessorList([sampler]),
            do_sample=False,
            max_new_tokens=count,
            eos_token_id=self.end_ids,
            pad_token_id=self.pad_id,
            **{cache_argument(base): context.cache},
        )
        new_BN = output[:, context.ids_BL.shape[1] :]
        context.extend(new_BN)
        logprobs_BN = torch.stack(sampler.logprobs, dim=1)
        for row, ids, logprobs in zip(rows, new_BN.tolist(), logprobs_BN.tolist(), strict=True):
            end = next((place for place, token in enumerate(ids) if token in self.end_ids), len(ids))
            row.token_ids += ids[: end + 1]
            row.logprobs += logprobs[: end + 1]
            if not math.isfinite(sum(logprobs[: end + 1])):
                raise RolloutError(
                    f"rollout: log-probs of a response to {row.request.key} are not numbers; the weights or the "
                    "adapter are damaged, or model.dtype is too narrow (bfloat16 or float32 instead of float16)"
                )

    def _has_ended(self, row: Row, sampling: Sampling) -> bool:
        return self._is_whole(row) or len(row.token_ids) == sampling.max_completion_length

    def _is_whole(self, row: Row) -> bool:
        return bool(row.token_ids) and row.token_ids[-1] in self.end_ids

    def _response(self, row: Row) -> Response:
        return Response(
            token_ids=tuple(row.token_ids),
            logprobs=tuple(row.logprobs),
            text=self.policy.processor.tokenizer.decode(row.token_ids, skip_special_tokens=True),
            truncated=not self._is_whole(row),
        )


def uniforms(request: SamplingRequest, index: int, sampling: Sampling) -> Float[Tensor, "T"]:
    """The numbers in [0, 1) that draw the tokens of a request's response."""
    stream = torch.Generator().manual_seed(response_seed(sampling.seed, request.key, index))
    return torch.rand(sampling.max_completion_length, generator=stream)


@contextlib.contextmanager
def without_own_settings(model: Any) -> Iterator[None]:
    """Sets the checkpoint's generation settings aside, which `generate` would fill in and apply before the sampler.

    Qwen2.5-VL's hold a repetition penalty: responses would come from another distribution than the one trained.
    """
    own = model.generation_config
    model.generation_config = GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = own


@contextlib.contextmanager
def without_cudnn_attention() -> Iterator[None]:
    """Leaves attention to the other kernels: on Hopper torch tries cuDNN's first, which plans anew for every length."""
    before = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(False)
    try:
        yield
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)
