"""Texts of questions and responses: thinking and boxed answers marked, formulas set, differences shown."""

from __future__ import annotations

import difflib
import re
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence

from sharevl_explorer.markup import Html, el, join, text
from sharevl_explorer.mathml import FORMULA, as_mathml, formula, inside, is_block, with_formulas

SHOWN = 20_000
"""Characters of a text that are shown before one asks for all: its beginning, its end and its last boxed answer."""
_END = 5_000
_IMAGE = "<image>"
_WORDS = re.compile(r"\s+|\w+|[^\w\s]")
_WHOLE = re.compile(f"{FORMULA.pattern}|{_IMAGE}", re.S)
_BRACES = re.compile(r"\\boxed\s*\{|\\.|[{}]", re.S)
_LONGEST_BOX = 5_000
_PLAIN_WORDS = re.compile(r"\s*[^\W\d_]{3,}(?:[ -][^\W\d_]+)*\s*")
_OPEN, _CLOSE = "<think>", "</think>"

Ranges = list[tuple[int, int]]
Box = tuple[int, int, str]
"""Start, end and inside of a `\\boxed{…}`."""


def shortened(written: str, limit: int = 160) -> str:
    """The start of a text on one line, for tables and titles; an ellipsis tells that it goes on."""
    line = " ".join(written[: 4 * limit].replace("<image>", " ").split())
    return line if len(line) <= limit and len(written) <= 4 * limit else line[:limit].rstrip() + " …"


def question(written: str) -> Html:
    """A question with its formulas; the place of an image is marked."""
    return el("bdi.words", _with_images(written), dir="auto")


def _with_images(written: str) -> Html:
    return join([with_formulas(piece) for piece in written.split(_IMAGE)], "▣ ")


def response(written: str, *, full: bool, all_of_it: str | None) -> Html:
    """A response with `<think>` and `\\boxed{}` marked. `all_of_it` is the link to the whole of a long one."""
    if not written.strip():
        told = "empty: the model ended at once" if not written else f"{len(written):,} characters of white space alone"
        return el("div.response-text", el("p.quiet", told))
    kept = [(0, len(written))] if full or len(written) <= SHOWN else _kept(written)
    parts: list[Html] = []
    for label, start, end in _sections(written):
        if label:
            words = _with_gaps(written, start, end, kept, with_formulas)
            parts.append(el("section.think", el("h3", label), el("bdi.words", words, dir="auto")))
        elif written[start:end].strip():
            words = _with_gaps(written, start, end, kept, _answer)
            parts.append(el("section.answer", el("bdi.words", words, dir="auto")))
    shown = sum(end - start for start, end in kept)
    if shown < len(written):
        note = f"{shown:,} of {len(written):,} characters: the beginning and the end; "
        parts.append(el("p.note", note, el("a", "show all", href=all_of_it)))
    return el("div.response-text", parts)


def _sections(written: str) -> Iterator[tuple[str, int, int]]:
    """Thinking and what is between: (label, start, end); an answer has no label.

    A prompt may end with the opening tag; then the response begins inside the thinking.
    """
    place, inside = 0, written.find(_CLOSE) != -1 and written.find(_CLOSE) < (written + _OPEN).find(_OPEN)
    while place < len(written):
        found = written.find(_CLOSE if inside else _OPEN, place)
        end = found if found >= 0 else len(written)
        yield ("" if not inside else "thinking" if found >= 0 else "thinking, never closed"), place, end
        place = end + len(_CLOSE if inside else _OPEN)
        inside = not inside
    if inside and place == len(written):
        yield "thinking, never closed", place, place


def _kept(written: str) -> Ranges:
    """Which characters of a long text are shown, in order."""
    ranges = [(0, SHOWN - _END), (len(written) - _END, len(written))]
    boxes = _boxes(written[SHOWN - _END : -_END]) if written.rfind("\\boxed", -_END) < 0 else []
    if boxes:
        start, stop, _ = boxes[-1]
        ranges.insert(1, (SHOWN - _END + start, SHOWN - _END + stop))
    return ranges


def _with_gaps(written: str, start: int, end: int, kept: Ranges, shown: Callable[[str], Html]) -> Html:
    """What is kept of a part, and between it how much is not."""
    parts: list[Html] = []
    place = start
    for first, last in [*((max(a, start), min(b, end)) for a, b in kept), (end, end)]:
        if first > last:
            continue
        if first > place:
            parts.append(el("span.gap", f" … {first - place:,} characters … "))
        piece = written[first:last]
        piece = piece.lstrip("\n") if first == start else piece
        parts.append(shown(piece.rstrip("\n") if last == end else piece))
        place = max(place, last)
    return join(parts)


def _answer(written: str) -> Html:
    """Text with its formulas set and its boxed answers marked, those inside formulas as well."""
    parts: list[Html] = []
    place = 0
    boxes = _boxes(written)
    for match in _outside(FORMULA, written, boxes):
        parts += _boxed(written, place, match.start(), boxes)
        parts += _formula(written, match, _within(boxes, match.start(), match.end()))
        place = match.end()
    return join([*parts, *_boxed(written, place, len(written), boxes)])


def _outside(pattern: re.Pattern[str], written: str, boxes: Sequence[Box]) -> Iterator[re.Match[str]]:
    """Matches that neither lie in a box nor cut one."""
    place = 0
    while match := pattern.search(written, place):
        beyond = _end_of_box(boxes, match.start()) or _end_of_box(boxes, match.end())
        if beyond is None:
            yield match
        place = beyond or match.end()


def _end_of_box(boxes: Sequence[Box], place: int) -> int | None:
    """Where the box ends that `place` lies inside of."""
    before = bisect_left(boxes, (place,)) - 1
    return boxes[before][1] if before >= 0 and place < boxes[before][1] else None


def _within(boxes: Sequence[Box], start: int, end: int) -> Sequence[Box]:
    return boxes[bisect_left(boxes, (start,)) : bisect_left(boxes, (end,))]


def _boxed(written: str, start: int, end: int, boxes: Sequence[Box]) -> list[Html]:
    """A stretch of text without formulas around its boxes."""
    parts: list[Html] = []
    for first, stop, inner in _within(boxes, start, end):
        parts += [text(written[start:first]), _mark(inner)]
        start = stop
    return [*parts, text(written[start:end])]


def _mark(inner: str) -> Html:
    dollars = re.fullmatch(r"\s*(\$\$?)([^$]+)\1\s*", inner)
    words = _PLAIN_WORDS.fullmatch(inner)  # which as a formula would be a product of letters
    shown = text(inner.strip()) if words else formula(dollars[2] if dollars else inner)
    return el("mark.boxed", shown, title=f"boxed: {inner[:200]}")


def _formula(written: str, match: re.Match[str], boxes: Sequence[Box]) -> list[Html]:
    """A formula that may hold boxes. One that is only a box is that; in one that cannot be set the box is marked."""
    latex, block = inside(match), is_block(match)
    if len(boxes) == 1 and written[boxes[0][0] : boxes[0][1]] == latex.strip():
        return [_mark(boxes[0][2])]
    made = as_mathml(latex, block=block)
    if made is not None:
        return [made]
    parts: list[Html] = []
    place = written.index(latex, match.start())
    end = place + len(latex)
    for start, stop, inner in boxes:
        parts += [el("code.latex", written[place:start]), _mark(inner)]
        place = stop
    return [*parts, el("code.latex", written[place:end]) if written[place:end].strip() else text("")]


def _boxes(written: str) -> list[Box]:
    r"""Every outermost `\boxed{…}` with balanced braces, in order."""
    found: list[Box] = []
    opened: list[tuple[int, int] | None] = []
    for match in _BRACES.finditer(written):
        if match[0] == "{":
            opened.append(None)
        elif match[0].startswith(r"\boxed"):
            opened.append((match.start(), match.end()))
        elif match[0] == "}" and opened and (box := opened.pop()) and match.end() - box[0] < _LONGEST_BOX:
            found.append((box[0], match.end(), written[box[1] : match.start()]))
    outermost: list[Box] = []
    for start, stop, inner in sorted(found):
        if not outermost or start >= outermost[-1][1]:
            outermost.append((start, stop, inner))
    return outermost


def _changed(dropped: str, added: str) -> list[Html]:
    gone = [el("del", _with_images(dropped))] if dropped.strip() else []
    return [*gone, el("ins", _with_images(added)) if added.strip() else text(added)]


def _words(written: str) -> list[str]:
    """Words, spaces and signs; a formula and the place of an image are each one of them."""
    words: list[str] = []
    place = 0
    for match in _WHOLE.finditer(written):
        words += [*_WORDS.findall(written[place : match.start()]), match[0]]
        place = match.end()
    return [*words, *_WORDS.findall(written[place:])]


def word_diff(original: str, variant: str) -> Html:
    """The variant's words; those that the original lacks are inserted, those it dropped struck out."""
    before, after = (_words(side.strip()[:6000]) for side in (original, variant))
    parts: list[Html] = []
    dropped = added = ""
    for kind, a, b, c, d in difflib.SequenceMatcher(None, before, after, autojunk=False).get_opcodes():
        same = "".join(before[a:b]) if kind == "equal" else ""
        if same.strip():
            parts += [*_changed(dropped, added), _with_images(same)]
            dropped = added = ""
        else:  # a space between two changes is part of one
            dropped, added = dropped + "".join(before[a:b]), added + "".join(after[c:d])
    parts += _changed(dropped, added)
    if max(len(original), len(variant)) > 6000:
        parts.append(el("span.note", " (compared up to 6,000 characters)"))
    return el("bdi.words", join(parts), dir="auto")
