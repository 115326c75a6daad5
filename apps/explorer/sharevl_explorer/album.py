"""The images of an exported file: each stands in it once, and is referred to wherever it is shown."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import NamedTuple

from sharevl_explorer.markup import Html, el
from sharevl_lite.image_files import data_url

TALLEST = 260
"""Pixels, as `.picture` in the style sheet."""
_PNG = b"\x89PNG\r\n\x1a\n"


class _Kept(NamedTuple):
    symbol: Html
    width: int
    height: int


class Album:
    """Collects images while a file is written. SVG refers to an image by its id, without a script."""

    def __init__(self) -> None:
        self._kept: dict[str, _Kept] = {}

    def picture(self, path: Path, alt: str) -> Html:
        """A reference to the image (PNG), in its own size up to 260 pixels of height.

        Raises:
            OSError: it cannot be read, or is no PNG.
        """
        identity = f"image-{path.stem}"
        if identity not in self._kept:
            self._kept[identity] = _read(path, identity)
        _, width, height = self._kept[identity]
        return el(
            "svg.picture",
            el("use", href=f"#{identity}", width=width, height=height),
            viewBox=f"0 0 {width} {height}",
            role="img",
            aria_label=alt,
            style=f"width:{min(width, round(width * TALLEST / height))}px",
        )

    def symbols(self) -> Html:
        """What the references refer to; takes no room itself."""
        symbols = [kept.symbol for kept in self._kept.values()]
        return el("svg", symbols, style="position:absolute;width:0;height:0", aria_hidden="true")


def _read(path: Path, identity: str) -> _Kept:
    data = path.read_bytes()
    width, height = struct.unpack(">II", data[16:24]) if data.startswith(_PNG) and len(data) > 24 else (0, 0)
    if not (width and height):
        raise OSError(f"{path}: no PNG image")
    shown = el("image", href=data_url(data), width=width, height=height)
    return _Kept(el("symbol", shown, id=identity, viewBox=f"0 0 {width} {height}"), width, height)
