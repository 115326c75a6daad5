"""Online image transforms: what is done to the pixels, and the sentence that says so.

Deviation from the public code of R1-ShareVL, where both 90-degree sentences say the opposite of what is done: a
transform here is one record, and its name, its pixels and its sentence are all worked out from the same field.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, Protocol

import numpy as np
from PIL import Image

MIRROR_OPERATIONS = {"horizontal": Image.Transpose.FLIP_LEFT_RIGHT, "vertical": Image.Transpose.FLIP_TOP_BOTTOM}
MIRROR_WORDS = {"horizontal": "left to right", "vertical": "top to bottom"}


class Transform(Protocol):
    """One change of an image, with its own description."""

    @property
    def name(self) -> str:
        """Name in recipes and in the rollout store."""

    def sentence(self, images: int) -> str:
        """What the model is told, for a problem of so many images."""

    def apply(self, image: Image.Image, rng: np.random.Generator) -> Image.Image:
        """The changed copy of an RGB image."""


def _subject(images: int) -> str:
    return "The image" if images == 1 else "Each image"


@dataclass(frozen=True)
class Rotation:
    """A turn by 1, 2 or 3 quarters, clockwise. Width and height swap with the odd ones; no pixel is lost."""

    quarter_turns_cw: Literal[1, 2, 3]

    def _shorter_way(self) -> tuple[int, str]:
        """Degrees and direction as a person says them: three quarters clockwise are one counterclockwise."""
        if self.quarter_turns_cw == 2:
            return 180, ""
        return 90, "clockwise" if self.quarter_turns_cw == 1 else "counterclockwise"

    @property
    def name(self) -> str:
        """`rotate_90_cw`, `rotate_180` or `rotate_90_ccw`."""
        degrees, direction = self._shorter_way()
        suffix = {"": "", "clockwise": "_cw", "counterclockwise": "_ccw"}[direction]
        return f"rotate_{degrees}{suffix}"

    def sentence(self, images: int) -> str:
        """Says the degrees and, where it matters, the direction."""
        degrees, direction = self._shorter_way()
        return f"{_subject(images)} is rotated {degrees} degrees {direction}".rstrip() + "."

    def apply(self, image: Image.Image, rng: np.random.Generator) -> Image.Image:
        """The turned image; `rng` is not used."""
        # Pillow counts angles counterclockwise, and moves pixels without resampling at multiples of 90 degrees.
        return image.rotate(-90 * self.quarter_turns_cw, expand=True)


@dataclass(frozen=True)
class GaussianNoise:
    """Independent Gaussian noise on every pixel and channel; `std` is on the 0..255 scale."""

    std: int

    @property
    def name(self) -> str:
        """`noise_<std>`."""
        return f"noise_{self.std}"

    def sentence(self, images: int) -> str:
        """Says the standard deviation."""
        return f"{_subject(images)} has Gaussian noise with standard deviation {self.std} added."

    def apply(self, image: Image.Image, rng: np.random.Generator) -> Image.Image:
        """The noisy image, rounded and clipped to 0..255."""
        pixels = np.asarray(image, dtype=np.float32)
        noise = rng.standard_normal(pixels.shape, dtype=np.float32) * np.float32(self.std)
        return Image.fromarray(np.clip(np.rint(pixels + noise), 0, 255).astype(np.uint8))


@dataclass(frozen=True)
class Mirror:
    """A flip: `horizontal` swaps left and right, `vertical` swaps top and bottom."""

    axis: Literal["horizontal", "vertical"]

    @property
    def name(self) -> str:
        """`mirror_<axis>`."""
        return f"mirror_{self.axis}"

    def sentence(self, images: int) -> str:
        """Says which sides are swapped."""
        return f"{_subject(images)} is mirrored {MIRROR_WORDS[self.axis]}."

    def apply(self, image: Image.Image, rng: np.random.Generator) -> Image.Image:
        """The flipped image; `rng` is not used."""
        return image.transpose(MIRROR_OPERATIONS[self.axis])


_ALL: tuple[Transform, ...] = (
    Rotation(quarter_turns_cw=1),
    Rotation(quarter_turns_cw=3),
    Rotation(quarter_turns_cw=2),
    GaussianNoise(std=10),
    GaussianNoise(std=25),
    GaussianNoise(std=50),
    Mirror(axis="horizontal"),
    Mirror(axis="vertical"),
)

TRANSFORMS: Mapping[str, Transform] = MappingProxyType({transform.name: transform for transform in _ALL})
"""Every transform by its name, which is a `TransformName` of the recipe."""
