"""Online image transforms: what is done to the pixels, and the sentence that says so.

The paper's are rotations by three angles, noise of three strengths and mirrors along two axes, beside leaving the image
as it is; tilts, a scale, tones and JPEG are ours and drawn only where a recipe lists them.

Deviation from the public code of R1-ShareVL, where both 90-degree sentences say the opposite of what is done: a
transform here is one record, and its name, its pixels and its sentence are all worked out from the same field.
"""

from __future__ import annotations

import io
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

NOISE_FIELD = 2**22
MIRROR_OPERATIONS = {"horizontal": Image.Transpose.FLIP_LEFT_RIGHT, "vertical": Image.Transpose.FLIP_TOP_BOTTOM}
MIRROR_WORDS = {"horizontal": "left to right", "vertical": "top to bottom"}


Size = tuple[int, int]


class Transform(ABC):
    """One change of an image, with its own description."""

    @property
    @abstractmethod
    def name(self) -> str:
        """Name in recipes and in the rollout store."""

    @property
    def reverses(self) -> bool:
        """Whether left and right, or above and below, change their meaning."""
        return False

    @property
    def moves(self) -> bool:
        """Whether a thing has other pixel coordinates afterwards."""
        return False

    @property
    def blurs(self) -> bool:
        """Whether letters of a few pixels cannot be read afterwards."""
        return False

    @abstractmethod
    def sentence(self, images: int) -> str:
        """What the model is told, for a problem of so many images."""

    @abstractmethod
    def apply(self, image: Image.Image, rng: np.random.Generator) -> Image.Image:
        """The changed copy of an RGB image."""

    def resized(self, size: Size) -> Size:
        """(width, height) of the changed copy of an image of `size`."""
        return size


def _subject(images: int) -> str:
    return "The image" if images == 1 else "Each image"


@dataclass(frozen=True)
class Rotation(Transform):
    """A turn by 1, 2 or 3 quarters, clockwise. Width and height swap with the odd ones; no pixel is lost."""

    quarter_turns_cw: Literal[1, 2, 3]
    moves = True

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

    def resized(self, size: Size) -> Size:
        """Width and height swap with the odd turns."""
        return size[::-1] if self.quarter_turns_cw % 2 else size


@dataclass(frozen=True)
class GaussianNoise(Transform):
    """Gaussian noise on every pixel and channel; `std` is on the 0..255 scale.

    A window of a fixed field of 4 million independent values, at a random place and with a random sign: drawing 3
    million values anew takes ten times as long. In an image of up to 1.3 megapixels all values are independent; a
    larger one repeats the field, and two images share parts of it at shifted places.
    """

    std: int

    @property
    def blurs(self) -> bool:
        """Above the paper's middle strength."""
        return self.std > 25

    @property
    def name(self) -> str:
        """`noise_<std>`."""
        return f"noise_{self.std}"

    def weaker(self, scale: float) -> GaussianNoise | None:
        """The noise with its deviation scaled and rounded; None where nothing is left."""
        std = round(self.std * scale)
        return GaussianNoise(std) if std else None

    def sentence(self, images: int) -> str:
        """Says the standard deviation."""
        return f"{_subject(images)} has Gaussian noise with standard deviation {self.std} added."

    def apply(self, image: Image.Image, rng: np.random.Generator) -> Image.Image:
        """The noisy image, rounded and clipped to 0..255."""
        pixels = np.asarray(image)
        up, down = _noise_field(self.std)
        if rng.integers(2):
            up, down = down, up
        start = int(rng.integers(NOISE_FIELD))
        room = _window(up, start, pixels.size).reshape(pixels.shape)
        noisy = np.minimum(pixels, 255 - room)  # saturating: 8-bit arithmetic throughout
        noisy += room
        room = _window(down, start, pixels.size).reshape(pixels.shape)
        np.maximum(noisy, room, out=noisy)
        noisy -= room
        return Image.fromarray(noisy)


@lru_cache(maxsize=4)
def _noise_field(std: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Rounded noise of this deviation: what it adds, and what it takes away (one of them 0 everywhere)."""
    values = np.random.default_rng(NOISE_FIELD).standard_normal(NOISE_FIELD, dtype=np.float32)
    rounded = np.clip(np.rint(values * np.float32(std)), -255, 255)
    return np.maximum(rounded, 0).astype(np.uint8), np.maximum(-rounded, 0).astype(np.uint8)


def _window(field: NDArray[np.uint8], start: int, size: int) -> NDArray[np.uint8]:
    """`size` values from `start` on, around the end of the field as often as it takes."""
    if start + size <= len(field):
        return field[start : start + size]
    return np.resize(np.concatenate([field[start:], field[:start]]), size)


@dataclass(frozen=True)
class Mirror(Transform):
    """A flip: `horizontal` swaps left and right, `vertical` swaps top and bottom."""

    axis: Literal["horizontal", "vertical"]
    reverses = True
    moves = True

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


@dataclass(frozen=True)
class Tilt(Transform):
    """A turn by a few degrees on a larger white canvas: no corner is cut off.

    Pixels are taken as they are; blending them takes five times as long.
    """

    degrees: int
    direction: Literal["clockwise", "counterclockwise"]
    moves = True

    @property
    def name(self) -> str:
        """`tilt_<degrees>_cw` or `tilt_<degrees>_ccw`."""
        return f"tilt_{self.degrees}_{'cw' if self.direction == 'clockwise' else 'ccw'}"

    def sentence(self, images: int) -> str:
        """Says the degrees and the direction."""
        return f"{_subject(images)} is tilted by {self.degrees} degrees {self.direction}."

    def apply(self, image: Image.Image, rng: np.random.Generator) -> Image.Image:
        """The turned image; `rng` is not used."""
        angle = self.degrees if self.direction == "counterclockwise" else -self.degrees
        return image.rotate(angle, Image.Resampling.NEAREST, expand=True, fillcolor="white")

    def resized(self, size: Size) -> Size:
        """The larger canvas."""
        return _tilted(size, self.degrees)


@lru_cache(maxsize=2**14)
def _tilted(size: Size, degrees: int) -> Size:
    """Canvas of a turn by so many degrees either way: Pillow's own, of a blank image."""
    return Image.new("L", size).rotate(degrees, expand=True).size


@dataclass(frozen=True)
class Shrink(Transform):
    """Width and height divided by a whole number, each pixel the mean of a square: nothing is cropped."""

    factor: int
    moves = True
    blurs = True

    @property
    def name(self) -> str:
        """`scale_<percent>`."""
        return f"scale_{100 // self.factor}"

    def sentence(self, images: int) -> str:
        """Says the size that is left."""
        return f"{_subject(images)} is scaled to {100 // self.factor} percent of its width and height."

    def apply(self, image: Image.Image, rng: np.random.Generator) -> Image.Image:
        """The smaller image; `rng` is not used."""
        return image.reduce(self.factor)

    def resized(self, size: Size) -> Size:
        """Rounded up."""
        return -(-size[0] // self.factor), -(-size[1] // self.factor)


@dataclass(frozen=True)
class Tone(Transform):
    """Brightness, or contrast around middle grey, times `percent` / 100."""

    what: Literal["brightness", "contrast"]
    percent: int

    @property
    def name(self) -> str:
        """`brightness_<percent>` or `contrast_<percent>`."""
        return f"{self.what}_{self.percent}"

    def sentence(self, images: int) -> str:
        """Says what was changed and to which share."""
        return f"{_subject(images)} has its {self.what} changed to {self.percent} percent."

    def apply(self, image: Image.Image, rng: np.random.Generator) -> Image.Image:
        """The image by a table of 256 values; `rng` is not used."""
        fixed = 0.0 if self.what == "brightness" else 128.0
        table = [min(255, max(0, round(fixed + (value - fixed) * self.percent / 100))) for value in range(256)]
        return image.point(table * len(image.getbands()))


@dataclass(frozen=True)
class Jpeg(Transform):
    """Saved as JPEG of a quality of 1 to 95, and read again."""

    quality: int

    @property
    def blurs(self) -> bool:
        """Below a quality of 50."""
        return self.quality < 50

    @property
    def name(self) -> str:
        """`jpeg_<quality>`."""
        return f"jpeg_{self.quality}"

    def sentence(self, images: int) -> str:
        """Says the quality."""
        return f"{_subject(images)} is compressed as JPEG of quality {self.quality}."

    def apply(self, image: Image.Image, rng: np.random.Generator) -> Image.Image:
        """The decoded image; `rng` is not used."""
        file = io.BytesIO()
        image.save(file, "JPEG", quality=self.quality)
        file.seek(0)
        with Image.open(file) as saved:
            saved.load()  # not convert("RGB"), which copies: a tenth to a half of the cost
            return saved


_ALL: tuple[Transform, ...] = (
    Rotation(quarter_turns_cw=1),
    Rotation(quarter_turns_cw=3),
    Rotation(quarter_turns_cw=2),
    GaussianNoise(std=10),
    GaussianNoise(std=25),
    GaussianNoise(std=50),
    Mirror(axis="horizontal"),
    Mirror(axis="vertical"),
    Tilt(5, "clockwise"),
    Tilt(5, "counterclockwise"),
    Shrink(2),
    Tone("brightness", 70),
    Tone("brightness", 130),
    Tone("contrast", 70),
    Tone("contrast", 130),
    Jpeg(50),
    Jpeg(20),
)

TRANSFORMS: Mapping[str, Transform] = MappingProxyType({transform.name: transform for transform in _ALL})
"""Every transform by its name, which is a `TransformName` of the recipe."""
