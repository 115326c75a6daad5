"""Reading the image column: whatever form a cell takes, RGB pixels come out or the row is bad.

Choices that change pixels, made here once: EXIF orientation is applied (a phone's portrait photo is stored lying
down); transparent parts become white, as on a page (a bare conversion to RGB turns black ink on a transparent ground
into black on black); of an animation the first frame is used; 16-bit and float images are refused, since Pillow would
clip them to white.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
import reprlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any, NoReturn, overload

from PIL import ExifTags, Image, ImageOps

from sharevl_lite.data.errors import RowFault
from sharevl_lite.image_files import png_bytes

EIGHT_BIT_MODES = frozenset(
    {"1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "LAB", "HSV"}
)
_PATHS = reprlib.Repr()
_PATHS.maxstring = 300  # a path is told in full; a file's content that stands where a path belongs is not
DATA_ADDRESS = re.compile(r"data:(?P<type>[^,;]*)(?P<options>(?:;[^,;]*)*),", re.IGNORECASE)
BASE64_IMAGE = re.compile(r"\s*(?:iVBORw0KGgo|/9j/|R0lGOD[dl]h|UklGR)[A-Za-z0-9+/\s]{50,}={0,2}\s*")
"""A PNG, JPEG, GIF or WebP file as text. A path has a dot before its suffix; this has none."""
OBJECT = re.compile(r" ?<[^<>]* at 0x[0-9a-f]+>", re.IGNORECASE)
"""What Pillow calls bytes in memory: it tells a user nothing."""
ALPHA_MODES = frozenset({"LA", "La", "PA", "RGBA", "RGBa"})


@dataclass(frozen=True)
class EncodedImage:
    """A checked image as its file's bytes, a fraction of the memory of its pixels. `size`: (width, height), upright."""

    data: bytes = field(repr=False)
    size: tuple[int, int]

    def decode(self) -> Image.Image:
        """The RGB image, decoded anew."""
        return _decode(self.data, "the image")


class LazyImages(Sequence[Image.Image]):
    """The images of a row, decoded each time one is taken; `sizes` are known without decoding."""

    def __init__(self, images: Iterable[EncodedImage]) -> None:
        self._images = tuple(images)

    @property
    def sizes(self) -> tuple[tuple[int, int], ...]:
        """(width, height) of each, upright."""
        return tuple(image.size for image in self._images)

    @property
    def encoded(self) -> tuple[bytes, ...]:
        """The bytes of each image's file."""
        return tuple(image.data for image in self._images)

    @overload
    def __getitem__(self, place: int) -> Image.Image: ...

    @overload
    def __getitem__(self, place: slice) -> LazyImages: ...

    def __getitem__(self, place: int | slice) -> Image.Image | LazyImages:
        if isinstance(place, slice):
            return LazyImages(self._images[place])
        return self._images[place].decode()

    def __len__(self) -> int:
        return len(self._images)


class ImageReader:
    """Turns cells of an image column into RGB images, checked now and decoded when they are taken.

    Equal files are checked once and share their bytes: several questions about one picture cost its memory once.
    `remembered` bounds how many are kept for that, the newest; None keeps all.
    """

    def __init__(self, remembered: int | None = None) -> None:
        self._checked: dict[bytes, EncodedImage] = {}
        self._remembered = remembered

    def read(self, cell: Any, folder: Path | None) -> LazyImages:
        """All images of a row.

        Args:
            cell: None, one image or a list of images; each a PIL image, a path, bytes, a struct of `bytes`, `path`, or
                base64 text, bare or as `data:image/png;base64,…`.
            folder: What relative paths start from; None where the source has no folder.

        Raises:
            RowFault: An image is missing or does not decode in full.
        """
        if cell is None:
            return LazyImages(())
        if not isinstance(cell, list | tuple):
            return LazyImages((self._one(cell, folder, "the image"),))
        return LazyImages(self._one(entry, folder, f"image {index} (from 0)") for index, entry in enumerate(cell))

    def _one(self, entry: Any, folder: Path | None, label: str) -> EncodedImage:
        if isinstance(entry, Image.Image):
            data = png_bytes(_to_rgb(entry, label))
        else:
            data, path = _encoded(entry, folder, label)
            label = f"{label}, {_PATHS.repr(path)}," if path else label
        key = hashlib.sha256(data).digest()
        if key not in self._checked:
            self._checked[key] = EncodedImage(data, _decode(data, label).size)
            if self._remembered is not None and len(self._checked) > max(1, self._remembered):
                del self._checked[next(iter(self._checked))]
        return self._checked[key]


def encoded_images(images: Sequence[Image.Image]) -> tuple[bytes, ...]:
    """Each image's file: as it was read, or as PNG where it came as pixels."""
    return images.encoded if isinstance(images, LazyImages) else tuple(png_bytes(image) for image in images)


def shown_images(images: Sequence[Image.Image]) -> tuple[bytes, ...]:
    """Each image as a file in which every reader sees the pixels of training: its own, or a PNG of what it shows."""
    return tuple(data if _is_plain(data) else png_bytes(_decode(data, "the image")) for data in encoded_images(images))


def _is_plain(data: bytes) -> bool:
    """Whether a file leaves nothing to its reader: a PNG or JPEG of one picture, upright and opaque, not in CMYK."""
    with Image.open(BytesIO(data)) as image:
        image.load()  # EXIF may stand behind the pixels
        if image.format not in {"PNG", "JPEG"} or image.mode == "CMYK" or getattr(image, "n_frames", 1) > 1:
            return False
        turned = image.getexif().get(ExifTags.Base.Orientation, 1) in range(2, 9)
        opaque = not image.has_transparency_data or image.convert("RGBA").getchannel("A").getextrema() == (255, 255)
        return opaque and not turned


def _encoded(entry: Any, folder: Path | None, label: str) -> tuple[bytes, str | None]:
    """The encoded file behind one entry, and its path or name where it has one."""
    if isinstance(entry, Mapping):
        path = entry["path"] if isinstance(entry.get("path"), str) else None
        if entry.get("bytes") is not None:
            return (entry["bytes"], path) if isinstance(entry["bytes"], bytes) else _refuse(entry, label)
        return _encoded(path, folder, label) if path is not None else _refuse(entry, label)
    if isinstance(entry, bytes | bytearray | memoryview):
        return bytes(entry), None
    if not isinstance(entry, str) or not entry.strip():
        return _refuse(entry, label)
    if entry.lstrip()[:5].lower() == "data:":
        return _data_address(entry.strip(), label), None
    return (_base64(entry, label), None) if BASE64_IMAGE.fullmatch(entry) else _read_file(entry, folder, label)


def _data_address(text: str, label: str) -> bytes:
    """The file inside `data:image/png;base64,…`."""
    head = DATA_ADDRESS.match(text)
    if head is None or head["type"][:6].lower() != "image/" or not head["options"].lower().endswith(";base64"):
        raise RowFault(f"{label} is {reprlib.repr(text)}; of data: addresses, data:image/…;base64,… is understood")
    return _base64(text[head.end() :], label)


def _base64(text: str, label: str) -> bytes:
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError) as error:  # ValueError: characters beyond ASCII
        raise RowFault(f"{label} is base64 text that does not decode ({error}); encode the file again") from error


def _refuse(entry: Any, label: str) -> NoReturn:
    raise RowFault(
        f"{label} is {reprlib.repr(entry)}; it must be a path, the bytes of an image file, or a struct with non-empty "
        "'bytes' or 'path'"
    )


def _read_file(name: str, folder: Path | None, label: str) -> tuple[bytes, str]:
    shown = reprlib.repr(name)
    if "://" in name:
        raise RowFault(f"{label} is the address {shown}; download it and give the file's path")
    path = Path(name).expanduser()
    if not path.is_absolute():
        if folder is None:
            raise RowFault(f"{label} is the relative path {shown}, but the dataset came without its image files")
        path = folder / path
    try:
        return path.read_bytes(), str(path)
    except (OSError, ValueError) as error:  # ValueError: a NUL character in the name
        cause = getattr(error, "strerror", None) or error
        raise RowFault(f"{label} cannot be read from {_PATHS.repr(str(path))}: {cause}") from error


def _decode(data: bytes, label: str) -> Image.Image:
    try:
        image = Image.open(BytesIO(data))
        image.load()
    except Exception as error:  # Pillow's decoders raise a dozen kinds, SyntaxError and struct.error among them
        why = OBJECT.sub("", str(error))
        raise RowFault(f"{label} does not decode ({len(data)} bytes; {type(error).__name__}: {why})") from error
    return _to_rgb(image, label)


def _to_rgb(image: Image.Image, label: str) -> Image.Image:
    if image.mode not in EIGHT_BIT_MODES:
        raise RowFault(f"{label} has more than 8 bits per channel (mode {image.mode}); save it as an 8-bit image")
    try:
        upright = ImageOps.exif_transpose(image)
        if upright.mode in ALPHA_MODES or "transparency" in upright.info:
            page = Image.new("RGBA", upright.size, "white")
            page.alpha_composite(upright.convert("RGBA"))
            upright = page
        return upright.convert("RGB")
    except Exception as error:  # a PIL image of the caller's may still be unread; broken EXIF raises many kinds
        raise RowFault(f"{label} cannot be turned into RGB ({type(error).__name__}: {error})") from error
