"""Images as files: in PNG, and inside a data URL."""

from __future__ import annotations

import base64
from io import BytesIO
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.Image import Image


def png_bytes(image: Image) -> bytes:
    """The file of an image, lightly compressed: it is soon read again."""
    file = BytesIO()
    image.save(file, format="PNG", compress_level=1)
    return file.getvalue()


def data_url(file: bytes, media_type: str = "image/png") -> str:
    """The file as a URL that holds all of it (RFC 2397)."""
    return f"data:{media_type};base64,{base64.b64encode(file).decode()}"
