"""Texts of questions and responses: thinking and boxed answers marked, formulas set, differences shown."""

from __future__ import annotations

import difflib
import re

from sharevl_explorer.markup import Html, el, join, text
from sharevl_explorer.mathml import formula, with_formulas

SHOWN = 20_000
"""Characters of a text that are shown before one asks for all."""
_WORDS = re.compile(r"\s+|\w+|[^\w\s]")
_THINK = re.compile(r"<think>(.*?)(</think>|\Z)", re.S)


def shortened(written: str, limit: int = 160) -> str:
    """The start of a text on one line, for tables and titles; an ellipsis tells that it goes on."""
    line = " ".join(written[: 4 * limit].replace("<image>", " ").split())
    return line if len(line) <= limit and len(written) <= 4 * limit else line[:limit].rstrip() + " …"


def question(written: str) -> Html:
    """A question with its formulas; the place of an image is marked."""
    pieces = written.split("<image>")
    return el("bdi.words", join([with_formulas(piece) for piece in pieces], "▣ "), dir="auto")


def response(written: str, *, full: bool, all_of_it: str | None) -> Html:
    """A response with `<think>` and `\\boxed{}` marked. `all_of_it` is the link to the whole of a long one."""
    cut = written if full else written[:SHOWN]
    parts: list[Html] = []
    end = 0
    for match in _THINK.finditer(cut):
        parts.append(_answer(cut[end : match.start()]))
        closed = bool(match[2])
        label = "thinking" if closed else "thinking, never closed"
        parts.append(
            el("section.think", el("h4", label), el("bdi.words", with_formulas(match[1].strip("\n")), dir="auto"))
        )
        end = match.end()
    parts.append(_answer(cut[end:]))
    if len(cut) < len(written):
        note = f"the first {len(cut):,} of {len(written):,} characters; "
        parts.append(el("p.note", note, el("a", "show all", href=all_of_it)))
    return el("div.response-text", parts)


def _answer(written: str) -> Html:
    if not written.strip():
        return Html("")
    parts: list[Html] = []
    end = 0
    for start, stop, inner in _boxes(written):
        parts += [
            with_formulas(written[end:start].rstrip("$")),
            el("mark.boxed", formula(inner), title=f"boxed: {inner[:200]}"),
        ]
        end = stop
    parts.append(with_formulas(written[end:].removeprefix("$") if parts else written[end:]))
    return el("section.answer", el("bdi.words", join(parts), dir="auto"))


def _boxes(written: str) -> list[tuple[int, int, str]]:
    r"""Every `\boxed{…}` with balanced braces: (start, end, inner)."""
    found: list[tuple[int, int, str]] = []
    for match in re.finditer(r"\\boxed\s*\{", written):
        depth, place = 1, match.end()
        while place < len(written) and depth and place - match.end() < 5000:
            depth += (written[place] == "{") - (written[place] == "}")
            place += 1
        if depth == 0 and (not found or match.start() >= found[-1][1]):
            found.append((match.start(), place, written[match.end() : place - 1]))
    return found


def _changed(dropped: str, added: str) -> list[Html]:
    gone = [el("del", dropped)] if dropped.strip() else []
    return [*gone, el("ins", added) if added.strip() else text(added)]


def word_diff(original: str, variant: str) -> Html:
    """The variant's words; those that the original lacks are inserted, those it dropped struck out."""
    before, after = (_WORDS.findall(side.replace("<image>", " ").strip()[:6000]) for side in (original, variant))
    parts: list[Html] = []
    dropped = added = ""
    for kind, a, b, c, d in difflib.SequenceMatcher(None, before, after, autojunk=False).get_opcodes():
        same = "".join(before[a:b]) if kind == "equal" else ""
        if same.strip():
            parts += [*_changed(dropped, added), text(same)]
            dropped = added = ""
        else:  # a space between two changes is part of one
            dropped, added = dropped + "".join(before[a:b]), added + "".join(after[c:d])
    parts += _changed(dropped, added)
    if max(len(original), len(variant)) > 6000:
        parts.append(el("span.note", " (compared up to 6,000 characters)"))
    return el("bdi.words", join(parts), dir="auto")
