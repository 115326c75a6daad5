"""A transformers model in this process: any image-and-text model with a chat template, or a text model.

Every reply is drawn from its own stream of random numbers, as rollouts are: it does not depend on the batch (up to the
rounding of another padding). A text model is asked without the images.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import cached_property
from io import BytesIO
from typing import TYPE_CHECKING, Any

from sharevl_lite.errors import first_line
from sharevl_lite.rewrite.batches import BatchedModel
from sharevl_lite.rewrite.cache import Reply
from sharevl_lite.rewrite.chat import ChatRequest, NoReplyError
from sharevl_lite.rewrite.errors import VariantsError
from sharevl_lite.rewrite.fingerprint import model_identity

if TYPE_CHECKING:
    from torch import Tensor


class TransformersModel(BatchedModel):
    """The model at `path`: a local folder, a Hub id or a built-in one. It loads with the first request.

    Raises VariantsError where it does not load or runs out of memory.
    """

    def __init__(self, path: str, *, batch_size: int) -> None:
        super().__init__(batch_size)
        self.path = path
        self.identity = model_identity("hf", path)

    @cached_property
    def _loaded(self) -> tuple[Any, Any, bool]:
        """(model, processor or tokenizer, whether it sees images)."""
        from transformers import (
            AutoConfig,
            AutoModelForCausalLM,
            AutoModelForImageTextToText,
            AutoProcessor,
            AutoTokenizer,
        )
        from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
        from transformers.utils import logging

        from sharevl_lite.config_model import ModelSection
        from sharevl_lite.policy.hf import default_device, dtype_of, resolve_model_path

        logging.disable_progress_bar()
        device, folder = default_device(), resolve_model_path(self.path)
        try:
            sees = type(AutoConfig.from_pretrained(folder)) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
            kind = AutoModelForImageTextToText if sees else AutoModelForCausalLM
            dtype = dtype_of(ModelSection(path=self.path), device)
            model = kind.from_pretrained(folder, dtype=dtype).to(device).eval().requires_grad_(False)
            processor = (AutoProcessor if sees else AutoTokenizer).from_pretrained(folder)
        except (OSError, KeyError, ValueError) as error:
            raise VariantsError(
                f"hf:{self.path}: cannot be loaded ({first_line(error)}); give a local folder, a Hub "
                "id you can reach, or builtin:digits-vl"
            ) from error
        if processor.chat_template is None:
            raise VariantsError(f"hf:{self.path}: has no chat template; give a model that follows requests")
        tokenizer = processor.tokenizer if sees else processor
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token
        tokenizer.padding_side = "left"  # the replies of a batch begin at one place
        return model, processor, sees

    def generate(self, requests: Sequence[ChatRequest]) -> list[Reply | NoReplyError]:
        """One pass of `generate` over the batch. What the processor refuses has no reply; the rest has."""
        import torch

        started = time.monotonic()
        try:
            inputs = self._inputs(requests)
        except VariantsError:
            raise
        except (ValueError, IndexError) as error:  # such as a question that holds the model's own image token
            if len(requests) == 1:
                return [NoReplyError(f"the processor refuses the request ({error})")]
            return [reply for request in requests for reply in self.generate([request])]
        try:
            written_BT = self._sample(inputs, requests)
        except torch.OutOfMemoryError as error:
            raise VariantsError(
                f"hf:{self.path}: out of memory with {len(requests)} requests at a time; lower --concurrency, replies "
                "so far are kept"
            ) from error
        if self.stopping.is_set():
            return [NoReplyError("stopped")] * len(requests)
        seconds = (time.monotonic() - started) / len(requests)
        return self._replies(written_BT, inputs["attention_mask"].sum(-1).tolist(), seconds)

    def _inputs(self, requests: Sequence[ChatRequest]) -> Any:
        """The batch, padded on the left: token ids, mask, and pixels where the model sees them."""
        model, processor, sees = self._loaded
        said = [_with_images(request) if sees else request.text_alone(self.identity) for request in requests]
        turns = [[{"role": "user", "content": content}] for content in said]
        settings = {"padding": True, "return_tensors": "pt"}
        inputs = processor.apply_chat_template(
            turns,
            tokenize=True,
            add_generation_prompt=True,
            return_dict=True,
            **({"processor_kwargs": settings} if sees else settings),
        )
        return inputs.to(model.device)

    def _sample(self, inputs: Any, requests: Sequence[ChatRequest]) -> Tensor:
        """The tokens written [B, T], each row with its padding behind its end."""
        import torch
        from transformers import LogitsProcessorList, StoppingCriteriaList

        from sharevl_lite.rollout.hf import SeededSampler, without_own_settings

        model, _, _ = self._loaded
        first = requests[0]
        streams = [torch.Generator().manual_seed(int(request.key(self.identity)[:15], 16)) for request in requests]
        uniforms_BT = torch.stack([torch.rand(first.max_tokens, generator=stream) for stream in streams])
        sampler = SeededSampler(uniforms_BT.to(model.device), first.temperature, top_p=1.0, banned_ids=())

        def given_up(ids_BT: Tensor, scores: Any, **_: Any) -> Tensor:
            return torch.full((len(ids_BT),), self.stopping.is_set(), device=ids_BT.device)

        with torch.no_grad(), without_own_settings(model):
            output: Tensor = model.generate(
                **inputs,
                logits_processor=LogitsProcessorList([sampler]),
                stopping_criteria=StoppingCriteriaList([given_up]),
                do_sample=False,
                max_new_tokens=first.max_tokens,
                eos_token_id=self._end_ids,
                pad_token_id=self._tokenizer.pad_token_id,
            )
        return output[:, inputs["input_ids"].shape[1] :]

    def _replies(self, written_BT: Tensor, read: list[int], seconds: float) -> list[Reply | NoReplyError]:
        replies: list[Reply | NoReplyError] = []
        for ids, tokens_in in zip(written_BT.tolist(), read, strict=True):
            end = next((place for place, token in enumerate(ids) if token in self._end_ids), len(ids) - 1)
            text = self._tokenizer.decode(ids[: end + 1], skip_special_tokens=True)
            replies.append(Reply(text, tokens_in, end + 1, seconds))
        return replies

    @property
    def _tokenizer(self) -> Any:
        _, processor, sees = self._loaded
        return processor.tokenizer if sees else processor

    @cached_property
    def _end_ids(self) -> list[int]:
        """Tokens that end a reply, by the model's generation settings or its tokenizer."""
        ends = self._loaded[0].generation_config.eos_token_id
        return [ends] if isinstance(ends, int) else list(ends or [self._tokenizer.eos_token_id])


def _with_images(request: ChatRequest) -> list[dict[str, Any]]:
    from PIL import Image

    return [
        {"type": "text", "text": part}
        if isinstance(part, str)
        else {"type": "image", "image": Image.open(BytesIO(part)).convert("RGB")}
        for part in request.parts
    ]
