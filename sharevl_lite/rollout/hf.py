"""Rollouts with transformers' `generate`, on any device.

Each response is drawn by inverse transform sampling from its own stream of uniform numbers, seeded by its name. So a
response does not depend on which others share its batch or process: a resumed run, or one on two processes, samples
what one uninterrupted process would have sampled (up to the rounding of a differently padded batch).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, TopPLogitsWarper

from sharevl_lite.policy.packed import PackedPolicy
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
    """Batched `generate` on the policy being trained, `batch_size` responses at a time."""

    def __init__(self, policy: PackedPolicy, batch_size: int) -> None:
        self.policy = policy
        self.batch_size = batch_size
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
        inputs = self._batch([request for request, _ in jobs])
        base = self.policy.base
        with self.policy.autocast(), without_own_settings(base), recomputing_as_before(base):
            output = self.policy.model.generate(
                **{name: tensor.to(device) for name, tensor in inputs.items()},
                logits_processor=LogitsProcessorList([sampler]),
                do_sample=False,
                max_new_tokens=sampling.max_completion_length,
                eos_token_id=self.end_ids,
                pad_token_id=self.pad_id,
            )
        new_BT = output[:, inputs["input_ids"].shape[1] :].cpu()
        logprobs_BT = torch.stack(sampler.logprobs, dim=1).cpu()
        return [self._response(ids_T, logp_T) for ids_T, logp_T in zip(new_BT, logprobs_BT, strict=True)]

    def _batch(self, requests: list[SamplingRequest]) -> dict[str, Any]:
        """Left-padded model inputs, one row per request."""
        longest = max(r.prompt.prefix.ids_P.numel() for r in requests)
        ids_BL = torch.full((len(requests), longest), self.pad_id)
        types_BL = torch.zeros_like(ids_BL)
        mask_BL = torch.zeros_like(ids_BL)
        patches, grids = [], []
        for row, request in enumerate(requests):
            prompt = request.prompt
            start = longest - prompt.prefix.ids_P.numel()
            ids_BL[row, start:] = prompt.prefix.ids_P
            types_BL[row, start:] = prompt.token_types_P
            mask_BL[row, start:] = 1
            for key in prompt.prefix.image_keys:
                patches.append(prompt.images[key].patches_LD)
                grids.append(prompt.images[key].grid_3)
        inputs: dict[str, Any] = {"input_ids": ids_BL, "attention_mask": mask_BL, "mm_token_type_ids": types_BL}
        if grids:
            inputs |= {"pixel_values": torch.cat(patches), "image_grid_thw": torch.stack(grids)}
        return inputs

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


@contextlib.contextmanager
def recomputing_as_before(model: Any) -> Iterator[None]:
    """Layers that the backward pass is to recompute are so afterwards as well.

    The `generate` of a model that Unsloth has loaded switches that off for good, and leaves it to Unsloth's own trainer
    to switch it on again.
    """
    switched = [module for module in model.modules() if "gradient_checkpointing" in vars(module)]
    flags = [module.gradient_checkpointing for module in switched]
    try:
        yield
    finally:
        for module, flag in zip(switched, flags, strict=True):
            module.gradient_checkpointing = flag
