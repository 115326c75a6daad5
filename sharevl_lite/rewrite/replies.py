r"""The request to a rewriting model, and reading its reply.

The request is built from the question and its images alone; the answer is no argument of anything here. A reply should
be a JSON list of texts. Models wrap it in prose or fences, put it under a key, and write LaTeX with single backslashes,
where JSON would read `\triangle` as a tab: those backslashes are doubled before parsing.
"""

from __future__ import annotations

import json
import re

MARK = "[image]"
"""Stands for an image inside a question: `<image>` itself is a token of some models."""
INSTRUCTION = (
    "Rewrite the question below in {count} different ways. Each rewrite must ask exactly the same thing and have the "
    "same answer: keep every number, unit, variable, point label, formula, option and [image] mark. Do not solve it "
    "and do not add hints. Keep the language. Reply with a JSON list of {count} strings and nothing else."
    "\n\nQuestion:\n{question}"
)
COMMAND = re.compile(r'(?<!\\)\\(?=[A-Za-z]{2,})(?!u[0-9a-fA-F]{4})(?!n(?![a-z]))|(?<!\\)\\(?=[^"\\/bfnrtu])')
THOUGHT = re.compile(r"<think>.*?</think>", re.DOTALL)


def instruction(question: str, count: int) -> str:
    """The text of the request."""
    return INSTRUCTION.format(count=count, question=question)


def parse_rewrites(reply: str) -> list[str] | None:
    """The rewrites in a reply; None where it holds no list of texts."""
    text = COMMAND.sub(r"\\\\", THOUGHT.sub("", reply))
    decoder = json.JSONDecoder(strict=False)
    for place in (match.start() for match in re.finditer(r"[\[{]", text)):
        try:
            value, _ = decoder.raw_decode(text, place)
        except ValueError:
            continue
        texts = _texts(value)
        if texts:
            return texts
    return None


def _texts(value: object) -> list[str] | None:
    if isinstance(value, dict):
        return next((texts for texts in map(_texts, value.values()) if texts), None)
    if not isinstance(value, list):
        return None
    said = [next(iter(entry.values()), None) if isinstance(entry, dict) else entry for entry in value]
    texts = [entry.strip() for entry in said if isinstance(entry, str) and entry.strip()]
    return texts if len(texts) == len(value) else None
