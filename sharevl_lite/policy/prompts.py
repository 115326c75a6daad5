"""From a variant to what a model reads: chat text, token ids, rotary positions and pixels.

The rendered text keeps one placeholder per image (engines such as vLLM expand it themselves); the ids here are
expanded by the processor. An image is known by a hash of its pixels in the size that the vision tower will see, so that
equal images share one pass.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sharevl_lite.share.packing import Prefix

if TYPE_CHECKING:
    from PIL.Image import Image

    from sharevl_lite.config import DataSection
    from sharevl_lite.policy.packed import PackedPolicy

PLACEHOLDER = "<image>"
MARK = "q-c41d7be2"
"""Stands for a question where a frame is looked for; no template or system prompt has this word."""
PROBES = ("{0}", " {0}\n", "{1}{0}", "{0} {1}", "{1}{1}\n{0}", "{0}{1} {0}\n\n{1} ")
"""Questions (0: words, 1: an image) that a frame must fit: spaces at the ends, images in all places."""
CONTROL = re.compile(r"<\|(?:im_start|im_end|endoftext|(?:image|video|vision)_\w+)\|>")


@dataclass(frozen=True)
class ImagePixels:
    """Patches of one image and its grid (frames, rows, columns) of patches."""

    patches_LD: Float[Tensor, "L D"]
    grid_3: Int[Tensor, "3"]


@dataclass(frozen=True)
class EncodedPrompt:
    """One prompt, ready for an engine (`text`, `pictures`) and for scoring (`prefix`, `images` by key).

    `pictures` have the size the vision tower sees, so that every engine cuts them into the same patches.
    """

    text: str
    prefix: Prefix
    token_types_P: Int[Tensor, "P"]
    images: Mapping[str, ImagePixels]
    pictures: tuple[Image, ...] = ()


@dataclass(frozen=True)
class PromptFrame:
    """Chat text without the question: `start` + question + `end` is whole, with `image` for each ``<image>``."""

    start: str
    image: str
    end: str

    def around(self, question: str) -> str:
        """The chat text of a question."""
        return self.start + question.replace(PLACEHOLDER, self.image) + self.end


class PromptRenderer:
    """Renders prompts and counts their tokens with a processor; `template` and `system_prompt` come from the recipe."""

    def __init__(self, processor: Any, template: str = "{problem}", system_prompt: str | None = None) -> None:
        self.processor = processor
        self.template = template
        self.system_prompt = system_prompt

    def render(self, question: str) -> str:
        """The chat text up to where the assistant begins; each ``<image>`` of the question is an image part."""
        content: list[dict[str, str]] = []
        for place, piece in enumerate(self.template.format(problem=question).split(PLACEHOLDER)):
            if place:
                content.append({"type": "image"})
            if piece:
                content.append({"type": "text", "text": piece})
        messages: list[dict[str, Any]] = [{"role": "user", "content": content}]
        if self.system_prompt is not None:
            messages.insert(0, {"role": "system", "content": [{"type": "text", "text": self.system_prompt}]})
        text: str = self.processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        return text

    def frame(self) -> PromptFrame | None:
        """What stands around every question; None where the chat template does more than put marks around it.

        A template may trim or number what it is given: whether this one does is tried with `PROBES`.
        """
        start, *rest = re.split(f"({MARK})", self.render(f"{MARK}{PLACEHOLDER}{MARK}"))
        if rest[::2] != [MARK, MARK]:
            return None
        frame = PromptFrame(start, image=rest[1], end=rest[3])
        probes = [probe.format(MARK, PLACEHOLDER) for probe in PROBES]
        return frame if all(frame.around(probe) == self.render(probe) for probe in probes) else None

    def show(self, question: str, image_sizes: Sequence[tuple[int, int]]) -> str:
        """The chat text for reading: in place of an image's placeholder stands how many tokens of it the model gets."""
        token: str = self.processor.image_token
        counted = iter([f"{token} x {self.count_image_tokens([size]):,}" for size in image_sizes])
        return re.sub(re.escape(token), lambda found: next(counted, token), self.render(question))

    def count_tokens(self, question: str, image_sizes: Sequence[tuple[int, int]]) -> int:
        """Length of the encoded prompt from the images' (width, height): no pixel is touched."""
        return self.longest([question], image_sizes)

    def longest(self, questions: Sequence[str], image_sizes: Sequence[tuple[int, int]]) -> int:
        """The largest :meth:`count_tokens` of questions about the same images, in one call of the tokenizer."""
        return max(self.text_tokens(questions)) - len(image_sizes) + self.count_image_tokens(image_sizes)

    def text_tokens(self, questions: Sequence[str]) -> list[int]:
        """Tokens of encoded prompts in which an image counts as one, in one call of the tokenizer."""
        texts = [self._chat(question) for question in questions]
        # Not verbose: what is too long is said by those who ask.
        return list(map(len, self.processor.tokenizer(texts, add_special_tokens=False, verbose=False).input_ids))

    def bound_tokens(self, question: str, image_sizes: Sequence[tuple[int, int]]) -> int:
        """At least :meth:`count_tokens`, in a tenth of its time: a tokenizer makes no more tokens than bytes."""
        text = self._chat(question)
        normalizer = self.processor.tokenizer.backend_tokenizer.normalizer
        if normalizer is not None:  # may write one letter as several
            text = normalizer.normalize_str(text)
        return len(text.encode()) + self.count_image_tokens(image_sizes)

    def count_image_tokens(self, image_sizes: Sequence[tuple[int, int]]) -> int:
        """Tokens of images of these (width, height). Raises ValueError for a shape that the processor refuses."""
        if not image_sizes:
            return 0
        sizes = [(height, width) for width, height in image_sizes]
        expanded = self.processor._get_num_multimodal_tokens(image_sizes=sizes)["num_image_tokens"]
        return sum(int(count) for count in expanded)

    def _chat(self, question: str) -> str:
        """What :meth:`render` gives, in a fraction of its time where the template has a frame."""
        return self.render(question) if self._frame is None else self._frame.around(question)

    @cached_property
    def _frame(self) -> PromptFrame | None:
        return self.frame()

    @cached_property
    def control_tokens(self) -> list[str]:
        """Spellings that the tokenizer reads as an image or video, the border of one, or the border of a turn."""
        return sorted(filter(CONTROL.fullmatch, self.processor.tokenizer.get_added_vocab()))


class PromptEncoder(PromptRenderer):
    """Makes of prompts what a model reads.

    `rope_index` is the model's own ``get_rope_index``, `dtype` that of its vision tower: patches, which wait for it in
    the host's memory, take no more than it reads. None: as the processor makes them.
    """

    def __init__(
        self,
        processor: Any,
        rope_index: Callable[..., tuple[Tensor, Tensor]],
        template: str = "{problem}",
        system_prompt: str | None = None,
        *,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(processor, template, system_prompt)
        self.rope_index = rope_index
        self.dtype = dtype

    @classmethod
    def of(cls, policy: PackedPolicy, section: DataSection) -> PromptEncoder:
        """Prompts for this policy, as the recipe says."""
        model = policy.base.model
        template, system = section.prompt_template, section.system_prompt
        return cls(policy.processor, model.get_rope_index, template, system, dtype=model.visual.dtype)

    def _fit(self, image: Image) -> Image:
        """The image in the size its processor would give it (min and max pixels are set on it at load)."""
        from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

        settings = self.processor.image_processor
        side = settings.patch_size * settings.merge_size
        low, high = pixel_bounds(self.processor)
        height, width = smart_resize(image.height, image.width, factor=side, min_pixels=low, max_pixels=high)
        return image if image.size == (width, height) else image.resize((width, height), int(settings.resample))

    def encode(self, question: str, images: Sequence[Image]) -> EncodedPrompt:
        """Tokenises one question with its images (as many as it has placeholders; checked when data is read)."""
        text = self.render(question)
        pictures = tuple(self._fit(image) for image in images)
        batch = self.processor(text=[text], images=list(pictures) or None, return_tensors="pt")
        ids_P = batch["input_ids"][0]
        token_types_P = batch.get("mm_token_type_ids", torch.zeros_like(batch["input_ids"]))[0]
        grids = batch.get("image_grid_thw")
        positions_31P, _ = self.rope_index(
            input_ids=ids_P[None], mm_token_type_ids=token_types_P[None], image_grid_thw=grids
        )
        pieces = [] if grids is None else _split_images(self._patches(batch["pixel_values"]), grids)
        keyed = [(_key(picture), image) for picture, image in zip(pictures, pieces, strict=True)]
        keys = tuple(key for key, _ in keyed)
        prefix = Prefix(ids_P, positions_31P[:, 0], keys, self._image_of(ids_P, grids))
        return EncodedPrompt(text, prefix, token_types_P, dict(keyed), pictures)

    def _patches(self, patches_LD: Tensor) -> Tensor:
        half = self.dtype is not None and self.dtype.itemsize < patches_LD.element_size()
        return patches_LD.to(self.dtype) if half else patches_LD

    def _image_of(self, ids_P: Tensor, grids_I3: Tensor | None) -> Int[Tensor, "P"]:
        """Which image a token is of, -1 for text."""
        image_P = torch.full_like(ids_P, -1)
        if grids_I3 is not None:
            counts = grids_I3.prod(-1) // self.processor.image_processor.merge_size**2
            image_P[ids_P == self.processor.image_token_id] = torch.arange(len(counts)).repeat_interleave(counts)
        return image_P


def pixel_bounds(processor: Any) -> tuple[int, int]:
    """Fewest and most pixels that an image has when a processor has resized it."""
    size = processor.image_processor.size
    return int(size["shortest_edge"]), int(size["longest_edge"])


def pixel_settings(processor: Any) -> dict[str, Any]:
    """A processor's bounds, for another processor of that model: by both of the names that they have.

    One is not enough: Unsloth gives processors `max_pixels` of their own, which count for more than a `size` that is
    handed to them.
    """
    low, high = pixel_bounds(processor)
    return {"size": {"shortest_edge": low, "longest_edge": high}, "min_pixels": low, "max_pixels": high}


def _split_images(patches_LD: Tensor, grids_I3: Tensor) -> list[ImagePixels]:
    counts = grids_I3.prod(-1).tolist()
    return [ImagePixels(patches, grid) for patches, grid in zip(patches_LD.split(counts), grids_I3, strict=True)]


def _key(picture: Image) -> str:
    """Of the eight-bit pixels: the patches that follow from them are eight times the bytes."""
    digest = hashlib.sha256(str(picture.size).encode())
    digest.update(picture.convert("RGB").tobytes())
    return digest.hexdigest()
