"""What the views share: the context they are drawn in, thumbnails, badges and trails."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from sharevl_explorer.album import Album
from sharevl_explorer.index import Index
from sharevl_explorer.markup import Html, el
from sharevl_explorer.state import State

_SHA = re.compile(r"[0-9a-f]{64}")
OUTCOMES = {
    "wrong": ("all wrong", "✕", "every response is wrong"),
    "mixed": ("mixed", "◐", "right and wrong responses inside a variant"),
    "rescued": (
        "rescued",
        "⇄",
        "no reward spread inside a variant, but across the variants: only sharing gives a signal",
    ),
    "right": ("all right", "✓", "every response is right"),
    "unknown": ("unknown", "?", "no verdict is known"),
}


@dataclass(frozen=True)
class Context:
    """Where a view is drawn: on a server, or into one file (`anchors` then says where its links lead, and `album` takes
    its images)."""

    index: Index
    state: State
    anchors: Callable[[State], str | None] | None = None
    album: Album | None = None

    def link(self, view: str | None = None, **changes: Any) -> str | None:
        """The link to this state with changes; None where a file does not hold that view."""
        if self.anchors is None:
            return self.state.to(view, **changes)
        return self.anchors(replace(self.state, **(changes if view is None else {**changes, "view": view})))

    def at(self, **changes: Any) -> Context:
        """The same place with another state."""
        return replace(self, state=replace(self.state, **changes))


def picture(context: Context, sha: str, alt: str, kind: str = "") -> Html:
    """An image of the run; a missing one leaves a labelled frame."""
    run = context.state.run
    path = context.index.runs[run] / "images" / f"{sha}.png" if _SHA.fullmatch(sha) else None
    if path is not None and path.is_file():
        if context.album is None:
            return el(f"img.picture{kind}", src=f"/run-image/{run}/{sha}.png", alt=alt, loading="lazy")
        with suppress(OSError):  # a damaged file is as good as none
            return context.album.picture(path, alt)
    return el("span.picture.missing", "image missing", role="img", aria_label=f"{alt} (missing)", title=sha[:80])


def badge(outcome: str) -> Html:
    """The outcome as symbol and word."""
    label, symbol, meaning = OUTCOMES[outcome]
    return el(f"span.badge.{outcome}", el("i", symbol, aria_hidden="true"), label, title=meaning)


_NEAR = {"k": ("←", "previous"), "j": ("→", "next")}


def key(context: Context, name: str, href: str | None) -> Html | None:
    """A link that a key follows; in a file there are no keys. Those to a neighbour are seen as well."""
    if href is None or context.anchors is not None:
        return None
    if name in _NEAR and context.state.view in ("problem", "response"):
        sign, where = _NEAR[name]
        told = f"{where} {context.state.view}"
        return el("a.button.near", sign, href=href, data_key=name, aria_label=told, title=f"{told} ({name})")
    return el("a.key", href=href, data_key=name, tabindex=-1, aria_hidden="true")


def step_keys(context: Context) -> list[Html | None]:
    """`[` and `]` go to the step before and after."""
    state = context.state
    steps = context.index.steps(state.run, state.split)
    if state.step not in steps:
        return []
    place = steps.index(state.step)
    return [
        key(context, sign, context.link(step=steps[other], page=1))
        for sign, other in (("[", place - 1), ("]", place + 1))
        if 0 <= other < len(steps)
    ]


def trail(*stations: tuple[str, str | None]) -> Html:
    """Where the view stands: links to what is above it."""
    return el(
        "nav.trail",
        [el("a", label, href=href) if href else el("b", label) for label, href in stations],
        aria_label="where this is",
    )


def empty(title: str, message: str) -> Html:
    """A view with nothing to show, and why."""
    return el("section.empty", el("h2", title), el("p", message))


def tabs(label: str, choices: Sequence[tuple[str, str | None, bool]]) -> Html:
    """A switch made of links: (name, link, chosen)."""
    links = [el("a", name, href=href, aria_current="true" if chosen else None) for name, href, chosen in choices]
    return el("div.tabs", links, role="group", aria_label=label)
