"""What the views share: the context they are drawn in, thumbnails, badges and trails."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from sharevl_explorer.album import Album
from sharevl_explorer.index import Index
from sharevl_explorer.markup import Html, el
from sharevl_explorer.recipe_file import local_alone
from sharevl_explorer.state import State
from sharevl_lite.store_schema import IMAGES_DIR

_SHA = re.compile(r"[0-9a-f]{64}")
OUTCOMES = {
    "wrong": ("all wrong", "✕", "every response is wrong"),
    "mixed": ("mixed", "◐", "right and wrong responses"),
    "right": ("all right", "✓", "every response is right"),
    "unknown": ("verdict missing", "?", "a verdict is not known, and those that are do not differ"),
}
"""Verdicts: label, symbol, meaning."""
SIGNALS = {
    "own": ("own signal", "●", "the rewards of every group differ"),
    "rescued": (
        "rescued",
        "⇄",
        "the rewards of a group are all equal, those of the problem are not: only the shared advantage can teach there",
    ),
    "none": ("no signal", "○", "the rewards of the whole problem are all equal: nothing is learnt"),
}
"""What an update can learn from, as the index defines it: label, symbol, meaning."""
_LOCAL_ALONE = {
    "rescued": (
        "would be rescued",
        "⇄",
        "the rewards of a group are all equal, those of the problem are not: the global level would teach there, but "
        "this run trains by the local level alone",
    ),
}
"""What a run says instead whose `share.levels` is local."""


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
    """An image of the run, that a click shows in its full size; a missing one leaves a labelled frame."""
    run = context.state.run
    path = context.index.runs[run] / IMAGES_DIR / f"{sha}.png" if _SHA.fullmatch(sha) else None
    if path is not None and path.is_file():
        if context.album is None:
            address = f"/run-image/{run}/{sha}.png"
            shown = el(f"img.picture{kind}", src=address, alt=alt, loading="lazy")
            return el("a.enlarge", shown, href=address, title="enlarge")
        with suppress(OSError):  # a damaged file is as good as none
            return context.album.picture(path, alt)
    return el("span.picture.missing", "image missing", role="img", aria_label=f"{alt} (missing)", title=sha[:80])


def signals(context: Context) -> dict[str, tuple[str, str, str]]:
    """`SIGNALS` in the words that fit how the state's run trains."""
    return SIGNALS | _LOCAL_ALONE if local_alone(context.index.runs[context.state.run]) else SIGNALS


def badge(kind: str, told: Mapping[str, tuple[str, str, str]] = OUTCOMES) -> Html:
    """An outcome as symbol and word, or a signal with `told` as `signals` gives it."""
    label, symbol, meaning = told[kind]
    return el(f"span.badge.{kind}", el("i", symbol, aria_hidden="true"), label, title=meaning)


def counted(number: int, noun: str) -> str:
    """1 step, 2 steps, 1,000 steps."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def trains(split: str) -> bool:
    """Whether updates learn from a split's responses; an evaluation has rewards, but no advantages."""
    return split == "train"


def untrained(split: str, rows: Sequence[Mapping[str, Any]]) -> str:
    """Why responses of one problem took no part in an update, as the store's schema has it."""
    if not trains(split):
        return f"the split {split} is an evaluation, no update learns from it"
    if all(row["total"] is None for row in rows):
        return "no reward is known"
    if all(row["truncated"] for row in rows):
        return "cut off, and left out by objective.mask_truncated_completions or with its problem; no update saw it"
    return "dynamic sampling replaced the problem, which would have trained nothing; no update saw it"


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


def trail(*stations: tuple[str, str | None]) -> Html:
    """Where the view stands: links to what is above it."""
    return el(
        "nav.trail",
        [el("a", label, href=href) if href else el("b", label) for label, href in stations],
        aria_label="where this is",
    )


def empty(title: str, message: str, *ways_out: Html) -> Html:
    """A view with nothing to show, why, and links to where there is something."""
    return el("section.empty", el("h2", title), el("p", message), el("p", ways_out) if ways_out else None)


def scrolling(label: str, content: Html) -> Html:
    """What may be wider than the page, and then scrolls sideways; where it does, the page's script makes it a stop of
    the tab key."""
    return el("div.scroll", content, role="group", aria_label=label)


def tabs(label: str, choices: Sequence[tuple[str, str | None, bool]]) -> Html:
    """A switch made of links: (name, link, chosen)."""
    links = [el("a", name, href=href, aria_current="true" if chosen else None) for name, href, chosen in choices]
    return el("div.tabs", links, role="group", aria_label=label)
