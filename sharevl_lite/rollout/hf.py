"""Rollouts with transformers' `generate`, on any device.

Each response is drawn by inverse transform sampling from its own stream of uniform numbers, seeded by its name. So a
response does not depend on which others share its batch or process: a resumed run, or one on two processes, samples
what one uninterrupted process would have sampled (up to the rounding of a differently padded batch).

Equal prompts are read once for all of their responses, and `generate` goes on from the keys and values.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import DynamicCache, GenerationConfig, LogitsProcessor, LogitsProcessorList, TopPLogitsWarper

from sharevl_lite.policy.packed import PackedPolicy, cache_argument
from sharevl_lite.policy.prompts import EncodedPrompt
from sharevl_lite.rollout.engine import Response, Sampling, SamplingRequest, end_ids, response_seed


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
        logits_BV = scores.float().clone()
        logits_BV[:, self.banned_ids] = -torch.inf
        if self.temperature > 0.0:
            logits_BV = logits_BV / self.temperature
            if self.nucleus is not None:
                logits_BV = self.nucleus(input_ids, logits_BV)
            logprobs_BV = logits_BV.log_softmax(-1)
            cumulative_BV = logprobs_BV.double().exp().cumsum(-1)
            threshold_B1 = self.uniforms_BT[:, len(self.logprobs), None].double() * cumulative_BV[:, -1:]
            drawn_B1 = torch.searchsorted(cumulative_BV, threshold_B1, right=True).clamp(max=scores.shape[1] - 1)
        else:
            logprobs_BV = logits_BV.log_softmax(-1)
            drawn_B1 = logits_BV.argmax(-1, keepdim=True)
        self.logprobs.append(logprobs_BV.gather(1, drawn_B1).squeeze(1))
        return torch.full_like(scores, -torch.inf).scatter(1, drawn_B1, 0.0)


class HFRolloutEngine:
    """Batched `generate` on the policy being trained, `batch_size` responses at a time.

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
        jobs = [(request, index) for request in requests for index in range(request.count)]
        training = self.policy.training
        self.policy.eval()
        drawn: list[Response] = []
        try:
            for start in range(0, len(jobs), self.batch_size):
                drawn.extend(self._generate(jobs[start : start + self.batch_size], sampling))
        finally:
            self.policy.train(training)
        responses = iter(drawn)
        return [[next(responses) for _ in range(request.count)] for request in requests]

    def sync(self) -> None:
        """Nothing to do: the engine samples from the trained weights themselves."""

    def close(self) -> None:
        """Nothing is held."""

    @torch.no_grad()
    def _generate(self, jobs: list[tuple[SamplingRequest, int]], sampling: Sampling) -> list[Response]:
        device = self.policy.device
        uniforms = [
            torch.rand(
                sampling.max_completion_length,
                generator=torch.Generator().manual_seed(response_seed(sampling.seed, request.key, index)),
            )
            for request, index in jobs
        ]
        sampler = SeededSampler(
            torch.stack(uniforms).to(device), sampling.temperature, sampling.top_p, self.policy.vision_token_ids
        )
        prompts = {request.prompt.prefix.identity: request.prompt for request, _ in jobs}
        places = {identity: place for place, identity in enumerate(prompts)}
        base = self.policy.base
        with self.policy.autocast(), without_own_settings(base):
            ids_BL, mask_BL, cache = self._read(list(prompts.values()))
            rows = torch.tensor([places[request.prompt.prefix.identity] for request, _ in jobs], device=device)
            cache.batch_select_indices(rows)
            base.model.rope_deltas = base.model.rope_deltas[rows]
            # Not the model's own, which Unsloth replaces by one with a cache of its own.
            output = type(base).generate(
                base,
                input_ids=ids_BL[rows],
                attention_mask=mask_BL[rows],
                logits_processor=LogitsProcessorList([sampler]),
                do_sample=False,
                max_new_tokens=sampling.max_completion_length,
                eos_token_id=self.end_ids,
                pad_token_id=self.pad_id,
                **{cache_argument(base): cache},
            )
        new_BT = output[:, ids_BL.shape[1] :].cpu()
        logprobs_BT = torch.stack(sampler.logprobs, dim=1).cpu()
        return [self._response(ids_T, logp_T) for ids_T, logp_T in zip(new_BT, logprobs_BT, strict=True)]

    def _read(self, prompts: list[EncodedPrompt]) -> tuple[Int[Tensor, "B L"], Int[Tensor, "B L"], DynamicCache]:
        """Reads prompts but for their last tokens: left-padded ids, which of them are none, and keys and values."""
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
        base, device = self.policy.base, self.policy.device
        cache = DynamicCache(config=base.config.get_text_config())
        self.policy.read(ids_BL, mask_BL, positions_3BL, keys, images, cache)
        if not self.keep_images:
            self.policy.forget_images()
        cache.crop(-1)  # `generate` reads a last token itself
        base.model.rope_deltas = after_B1.to(device)
        return ids_BL.to(device), mask_BL.to(device), cache

    def _response(self, ids_T: Int[Tensor, "T"], logprobs_T: Float[Tensor, "T"]) -> Response:
        ids = ids_T.tolist()
        end = next((place for place, token in enumerate(ids) if token in self.end_ids), None)
        length = len(ids) if end is None else end + 1
        kept = ids[:length]
        return Response(
            token_ids=tuple(kept),
            logprobs=tuple(logprobs_T[:length].tolist()),
            text=self.policy.processor.tokenizer.decode(kept, skip_special_tokens=True),
            truncated=end is None,
        )


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
