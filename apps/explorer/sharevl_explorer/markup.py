"""HTML that is escaped unless it was built here.

`el("td.number", text, title=text)` escapes text and attributes; only :class:`Html`, which nothing but `el`, `join` and
the project's own constants make, passes as it is. Forgetting to escape is therefore not possible by omission.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterable
from typing import Any

_SAFE_HREF = re.compile(r"[?#]|/run-image/[0-9]+/[0-9a-f]{64}\.png$|data:image/png;base64,[A-Za-z0-9+/=]*$")
_VOID = {"img", "input", "br", "link", "meta"}
_DIRECTIONS = (*range(0x202A, 0x202F), *range(0x2066, 0x206A), 0x200B, 0xFEFF)
"""Overrides of the direction of text, a space without width, and the mark of byte order."""
_UNSEEN = {
    **{code: chr(0x2400 + code) for code in range(32) if chr(code) not in "\t\n\r"},
    **{code: f"[U+{code:04X}]" for code in _DIRECTIONS},
    127: "␡",
}


class Html(str):
    """Finished markup. A plain `str` is text, and text is escaped."""

    __slots__ = ()


def text(value: object) -> Html:
    """`value` as text: escaped, with control characters, NUL among them, as their visible pictures,
    and what would turn the text around by its number."""
    return value if isinstance(value, Html) else Html(html.escape(str(value).translate(_UNSEEN), quote=True))


def join(parts: Iterable[Any], separator: str = "") -> Html:
    """The parts one after another; None is left out, text is escaped."""
    return Html(text(separator).join(text(part) for part in parts if part is not None))


def el(name: str, /, *children: Any, **attributes: Any) -> Html:
    """An element. `name` is `tag.class.class`; attributes drop a trailing `_`, and `_` stands for `-`.

    An attribute of None or False is left out, True is written without value. Raises ValueError for a link that leads
    out of the page (`javascript:`, another host): links are queries, fragments and the run's images.
    """
    tag, *classes = name.split(".")
    given = {"class": " ".join(classes)} if classes else {}
    for key, value in attributes.items():
        attribute = key.rstrip("_").replace("_", "-")
        if attribute in {"href", "src"} and value is not None and not _SAFE_HREF.match(str(value)):
            raise ValueError(f"{attribute}={value!r} leads out of the page")
        if value is not None and value is not False:
            given[attribute] = value
    written = "".join(f" {key}" if value is True else f' {key}="{text(value)}"' for key, value in given.items())
    return Html(f"<{tag}{written}>" if tag in _VOID else f"<{tag}{written}>{join(_flat(children))}</{tag}>")


def _flat(children: Iterable[Any]) -> Iterable[Any]:
    for child in children:
        if isinstance(child, str) or not isinstance(child, Iterable):
            yield child
        else:
            yield from _flat(child)
