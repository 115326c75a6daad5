"""The images of an exported file: each stands in it once, and is referred to wherever it is shown."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import NamedTuple

from sharevl_explorer.markup import Html, el
from sharevl_lite.image_files import data_url

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
        """A reference to the image (PNG), in its own size as far as the style sheet lets it; it opens the large one.

        Raises:
            OSError: it cannot be read, or is no PNG.
        """
        identity = f"image-{path.stem}"
        if identity not in self._kept:
            self._kept[identity] = _read(path, identity)
        kept = self._kept[identity]
        size = f"--width:{kept.width}px;--shape:{kept.width / kept.height:.4g}"
        shown = _reference(identity, kept, ".picture", role="img", aria_label=alt, style=size)
        return el("button.enlarge", shown, type="button", popovertarget=_large(identity), title="enlarge")

    def symbols(self) -> Html:
        """What the references refer to; takes no room itself."""
        symbols = [kept.symbol for kept in self._kept.values()]
        return el("svg", symbols, style="position:absolute;width:0;height:0", aria_hidden="true")

    def dialogs(self) -> list[Html]:
        """Every image in the whole window. The browser opens and closes them by itself, Escape closes too; a box that
        is ticked by a click on the picture, or by the space bar, shows it 1:1."""
        return [_dialog(identity, kept) for identity, kept in self._kept.items()]


def _large(identity: str) -> str:
    return f"large-{identity}"


def _reference(identity: str, kept: _Kept, kind: str, **attributes: str) -> Html:
    _, width, height = kept
    shown = el("use", href=f"#{identity}", width=width, height=height)
    return el(f"svg{kind}", shown, viewBox=f"0 0 {width} {height}", **attributes)


def _dialog(identity: str, kept: _Kept) -> Html:
    _, width, height = kept
    name, size = _large(identity), f"{width:,} × {height:,} pixels"
    shown = _reference(identity, kept, ".large", aria_hidden="true", style=f"--width:{width}px;--height:{height}px")
    toggle = el("input.hidden", type="checkbox", aria_label="1:1", autofocus=True)
    close = el("button", "✕", type="button", popovertarget=name, popovertargetaction="hide", aria_label="close")
    coarse = f"@media (width>{width}px) and (height>{height}px){{#{name} .large{{image-rendering:pixelated}}}}"
    return el(
        "dialog.enlarged",
        el("style", Html(coarse)),
        el("label.pane", toggle, shown),
        el("p", el("span", size), close),
        id=name,
        popover=True,
        aria_label=f"picture, {size}",
    )


def _read(path: Path, identity: str) -> _Kept:
    data = path.read_bytes()
    width, height = struct.unpack(">II", data[16:24]) if data.startswith(_PNG) and len(data) > 24 else (0, 0)
    if not (width and height):
        raise OSError(f"{path}: no PNG image")
    shown = el("image", href=data_url(data), width=width, height=height)
    return _Kept(el("symbol", shown, id=identity, viewBox=f"0 0 {width} {height}"), width, height)
