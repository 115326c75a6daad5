"""The model as Share-GRPO sees it: packed rows in, log-probs out.

Wraps a PEFT model of the Qwen-VL families and drives its language model directly: embeddings, the vision features
spliced in, the row's own positions and mask. The vision tower runs once per distinct image; while it is frozen, which
is the default, its features outlive the pass in a bounded cache. Everything goes through :meth:`PackedPolicy.forward`,
so that distributed wrappers see it.
"""

from __future__ import annotations

import contextlib
import inspect
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from sharevl_kernels.devices import send
from sharevl_kernels.grouped_logprob import grouped_logprob
from torch import Tensor, nn

from sharevl_lite.policy.attention import packed_arguments, use_prefix_attention
from sharevl_lite.policy.errors import PolicyError
from sharevl_lite.policy.float16_vision import keep_in_range
from sharevl_lite.policy.prompts import ImagePixels
from sharevl_lite.share.packing import PackedRow

HALF = (torch.bfloat16, torch.float16)
FEATURE_CACHE_BYTES = 2 * 1024**3


@dataclass(frozen=True)
class ImageFeatures:
    """What the language model gets of an image: embeddings [L, H], and one [L, H] per deep-stack layer (Qwen3-VL)."""

    embeds_LH: Float[Tensor, "L H"]
    deepstack: tuple[Float[Tensor, "L H"], ...] = ()

    @property
    def nbytes(self) -> int:
        """Memory held."""
        return sum(t.numel() * t.element_size() for t in (self.embeds_LH, *self.deepstack))

    @property
    def are_finite(self) -> bool:
        """Whether all are numbers; waits for the device."""
        return all(bool(t.isfinite().all()) for t in (self.embeds_LH, *self.deepstack))


def cache_argument(base: Any) -> str:
    """The name under which a model takes its keys and values, which transformers 5.24 changed."""
    return "cache" if "cache" in inspect.signature(type(base).forward).parameters else "past_key_values"


class TokenScores(NamedTuple):
    """The S scores of a row: log-probs, and entropies where asked for (nats, detached)."""

    logprobs_S: Float[Tensor, "S"]
    entropies_S: Float[Tensor, "S"] | None


class PackedPolicy(nn.Module):
    """A vision-language model with adapters that scores packed rows.

    `model` is a PeftModel around the conditional-generation model of Qwen2-VL, Qwen2.5-VL or Qwen3-VL; `temperature`
    divides the logits of every score. Log-probs are float32 or wider.
    """

    accepts_loss_kwargs = False

    def __init__(self, model: Any, processor: Any, *, temperature: float = 1.0) -> None:
        super().__init__()
        self.model = model
        self.processor = processor
        self.temperature = temperature
        use_prefix_attention(self.base)
        if self.base_dtype == torch.float16:
            keep_in_range(self.base.model.visual)
        self._features: OrderedDict[str, ImageFeatures] = OrderedDict()
        # Asked once, because adapters that are switched off for a reference pass ask for no gradient either.
        self._vision_trained = [p for p in self.base.model.visual.parameters() if p.requires_grad]

    @property
    def base(self) -> Any:
        """The conditional-generation model inside the adapters."""
        return self.model.get_base_model()

    @property
    def config(self) -> Any:
        """The model's configuration, as the Trainer expects it."""
        return self.base.config

    @property
    def device(self) -> torch.device:
        """Where the embeddings are."""
        return self.base.get_input_embeddings().weight.device

    @property
    def base_dtype(self) -> torch.dtype:
        """Precision of the frozen base."""
        dtype: torch.dtype = self.base.get_input_embeddings().weight.dtype
        return dtype

    @property
    def vision_token_ids(self) -> tuple[int, ...]:
        """Ids that only a processor may write; sampled ones would crash the scoring pass."""
        config = self.config
        names = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
        return tuple(sorted({int(getattr(config, name)) for name in names if getattr(config, name, None) is not None}))

    @contextlib.contextmanager
    def reference(self) -> Iterator[None]:
        """Inside, the model scores without its adapters: the reference of the KL term."""
        with self.model.disable_adapter():
            yield

    def forward(self, row: PackedRow, images: Mapping[str, ImagePixels], *, entropy: bool = False) -> TokenScores:
        """Log-probs, and with `entropy` entropies, of the row's pairs, token by token.

        Raises ValueError for a vision token in a response and where the row's placeholders and its images disagree;
        PolicyError where the vision tower overflows.
        """
        device = self.device
        if bool(torch.isin(row.targets_U, torch.tensor(self.vision_token_ids)).any()):
            raise ValueError("a response must not contain vision tokens (every engine bans them)")
        with self.autocast():
            features = {key: self._image_features(key, images) for key in dict.fromkeys(row.image_keys)}
            hidden_TH = self._hidden(row, [features[key] for key in row.image_keys])
            scores = grouped_logprob(
                hidden_TH,
                self.base.get_output_embeddings().weight,
                send(row.targets_U, device),
                rows_T=send(row.rows_U, device),
                temperature=self.temperature,
                return_entropy=entropy,
            )
        if row.scores_S is None:
            return TokenScores(scores.logprobs_T, scores.entropies_T)
        which_S = send(row.scores_S, device)
        entropies_T = scores.entropies_T
        return TokenScores(scores.logprobs_T[which_S], None if entropies_T is None else entropies_T[which_S])

    def _hidden(self, row: PackedRow, features: list[ImageFeatures]) -> Float[Tensor, "T H"]:
        embeds_1TH, extra = self._spliced(row.ids_T[None], features)
        if not features and self._vision_trained and torch.is_grad_enabled():
            # A gradient of 0: processes average the gradients of the last row, and wait for one of every parameter.
            embeds_1TH = embeds_1TH + 0.0 * torch.stack([p.sum() for p in self._vision_trained]).sum()
        if self.training and torch.is_grad_enabled():
            embeds_1TH.requires_grad_(True)  # reentrant checkpointing needs an input with a gradient
        return self.base.model.language_model(
            inputs_embeds=embeds_1TH,
            position_ids=send(row.positions_3T[:, None], self.device),
            use_cache=False,
            **packed_arguments(row.layout(self.device)),
            **extra,
        ).last_hidden_state[0]

    def read(
        self,
        ids_BL: Int[Tensor, "B L"],
        mask_BL: Int[Tensor, "B L"],
        positions_3BL: Int[Tensor, "3 B L"],
        image_keys: Sequence[str],
        images: Mapping[str, ImagePixels],
        cache: Any,
    ) -> None:
        """Reads a batch of prompts, padded where `mask_BL` is 0, into a cache of transformers'. `image_keys` are the
        images in order, prompt after prompt; what the vision tower makes of them serves later passes too."""
        features = {key: self._image_features(key, images) for key in dict.fromkeys(image_keys)}
        embeds_BLH, extra = self._spliced(ids_BL, [features[key] for key in image_keys])
        self.base.model.language_model(
            inputs_embeds=embeds_BLH,
            attention_mask=send(mask_BL, self.device),
            position_ids=send(positions_3BL, self.device),
            use_cache=True,
            **{cache_argument(self.base): cache},
            **extra,
        )

    def _spliced(
        self, ids_BL: Int[Tensor, "B L"], features: Sequence[ImageFeatures]
    ) -> tuple[Float[Tensor, "B L H"], dict[str, Any]]:
        """Embeddings of tokens, those of images in place of their placeholders, and what deep-stack layers need."""
        visual_BL = ids_BL == self.config.image_token_id
        found, expected = int(visual_BL.sum()), sum(f.embeds_LH.shape[0] for f in features)
        if found != expected:
            raise ValueError(
                f"{found} image tokens for {expected} image features; prompts and their images must come from the "
                "same processor"
            )
        visual_BL = send(visual_BL, self.device)
        embeds_BLH = self.base.get_input_embeddings()(send(ids_BL, self.device))
        if not features:
            return embeds_BLH, {}
        visual_VH = torch.cat([f.embeds_LH for f in features]).to(embeds_BLH.dtype)
        embeds_BLH = embeds_BLH.masked_scatter(visual_BL[..., None], visual_VH)
        layers = range(len(features[0].deepstack))
        if not layers:
            return embeds_BLH, {}
        deepstack = [torch.cat([f.deepstack[layer] for f in features]) for layer in layers]
        return embeds_BLH, {"visual_pos_masks": visual_BL, "deepstack_visual_embeds": deepstack}

    def _image_features(self, key: str, images: Mapping[str, ImagePixels]) -> ImageFeatures:
        if key in self._features:
            self._features.move_to_end(key)
            return self._features[key]
        image = images[key]
        with torch.set_grad_enabled(bool(self._vision_trained) and torch.is_grad_enabled()):
            tower = self.base.model.visual
            output = tower(image.patches_LD.to(self.device, tower.dtype), grid_thw=image.grid_3[None].to(self.device))
        deepstack = getattr(output, "deepstack_features", None) or ()
        features = ImageFeatures(output.pooler_output, tuple(deepstack))
        if self.base_dtype == torch.float16 and not features.are_finite:
            _, rows, columns = (int(n) for n in image.grid_3)
            raise PolicyError(
                f"model.dtype: the vision tower overflows in float16 on a picture of {columns} x {rows} patches; lower "
                "model.max_pixels, or use bfloat16 on a GPU that has it, or float32"
            )
        if not self._vision_trained:
            self._remember(key, features)
        return features

    def forget_images(self) -> None:
        """Drops the features that are kept of pictures; a sampler on this device has their memory then."""
        self._features.clear()

    def _remember(self, key: str, features: ImageFeatures) -> None:
        self._features[key] = features
        while len(self._features) > 1 and sum(f.nbytes for f in self._features.values()) > FEATURE_CACHE_BYTES:
            self._features.popitem(last=False)

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """Half-precision bases with float32 adapters need autocast; a full-precision model must not get it."""
        if self.base_dtype in HALF:
            return torch.autocast(self.device.type, dtype=self.base_dtype)
        return contextlib.nullcontext()
