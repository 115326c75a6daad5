"""The images of an exported file: each stands in it once, and is referred to wherever it is shown."""

from __future__ import annotations

import base64
from pathlib import Path

from PIL import Image

from sharevl_explorer.markup import Html, el

TALLEST = 260
"""Pixels, as `.picture` in the style sheet."""


class Album:
    """Collects images while a file is written. SVG refers to an image by its id, without a script."""

    def __init__(self) -> None:
        self._symbols: dict[str, Html] = {}

    def picture(self, path: Path, alt: str) -> Html:
        """A reference to the image (PNG), in its own size up to 260 pixels of height.

        Raises:
            OSError: it cannot be read, or is no image.
        """
        with Image.open(path) as image:
            width, height = image.size
        identity, box = f"image-{path.stem}", f"0 0 {width} {height}"
        if identity not in self._symbols:
            data = "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()
            shown = el("image", href=data, width=width, height=height)
            self._symbols[identity] = el("symbol", shown, id=identity, viewBox=box)
        return el(
            "svg.picture",
            el("use", href=f"#{identity}", width=width, height=height),
            viewBox=box,
            role="img",
            aria_label=alt,
            style=f"width:{min(width, round(width * TALLEST / height))}px",
        )

    def symbols(self) -> Html:
        """What the references refer to; takes no room itself."""
        return el("svg", list(self._symbols.values()), style="position:absolute;width:0;height:0", aria_hidden="true")
