r"""The form of a response: `<think>…</think> … \boxed{…}` (Share-GRPO, arXiv 2505.16673, section 4.1).

The public code asks one regular expression, which a second think block or an empty box also satisfies; here the think
block must be the only one, and the box that counts must be closed and hold something.
"""

from __future__ import annotations

import re

_BOX = re.compile(r"\\boxed\s*\{")
_THINK_OPEN, _THINK_CLOSE = "<think>", "</think>"


def extract_boxed(text: str) -> str | None:
    r"""Content of the last `\boxed{…}` of `text`, stripped; None when there is none or the last one is never closed.

    Of nested boxes the innermost opens last and counts. Escaped braces (`\{`, `\}`) are content and do not count as
    braces. An earlier box does not stand in for a last one that was cut off: the answer was still being written.
    """
    opening = None
    for opening in _BOX.finditer(text):  # noqa: B007 - the last match is wanted
        pass
    if opening is None:
        return None
    depth, position = 1, opening.end()
    while position < len(text):
        character = text[position]
        if character == "\\":
            position += 2
            continue
        depth += (character == "{") - (character == "}")
        if depth == 0:
            return text[opening.end() : position].strip()
        position += 1
    return None


def is_well_formed(text: str, prompt: str = "") -> bool:
    r"""Whether the whole response is `<think>…</think> … \boxed{…}`.

    It starts with `<think>` (white space may precede), has exactly one think block, and after the block a box that is
    closed and not empty. Text between block and box, and after the box, is free. Where the `prompt` ends with
    `<think>`, as the templates of some models do, the response goes on from there.
    """
    if prompt.rstrip().endswith(_THINK_OPEN):
        text = _THINK_OPEN + text
    if not text.lstrip().startswith(_THINK_OPEN):
        return False
    if text.count(_THINK_OPEN) != 1 or text.count(_THINK_CLOSE) != 1:
        return False
    return bool(extract_boxed(text.partition(_THINK_CLOSE)[2]))
