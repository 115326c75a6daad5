"""Rewriting without a model: other wordings of the instruction, clauses in another order, units spelled out.

Every rule applies only where its grammar is certain: a noun it knows, a verb right behind the counted noun, no pronoun
or article that a move would leave hanging. Where none applies there are fewer rewrites. Options are never touched.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Callable, Iterator

from sharevl_lite.data.problem import PLACEHOLDER, split_placeholders
from sharevl_lite.rewrite.facts import split_options

NOUNS = (
    "value|length|measure|area|perimeter|circumference|volume|radius|diameter|height|width|slope|sum|difference|total"
    "|product|ratio|average|mean|median|mode|range|probability|distance|number|percentage|maximum|minimum|hypotenuse|base"
    "|surface area|side length|degree measure|scale factor"
)
NAME = r"(?:m\s?)?(?:\\angle\s?|∠\s?|angle\s)?(?:[A-Z]{1,4}|[b-hj-z]|\d)|\$[^$]{1,20}\$"
THING = rf"(?:the (?:(?:total|combined|average|approximate|missing|largest|smallest|maximum|minimum) )?(?:{NOUNS})(?: of [^?]+| between [^?]+| from [^?]+| in [^?]+)?|(?:{NAME}))"  # noqa: E501
TAIL = r"(?: to the nearest [a-z ]+)?"

WHAT_IS = re.compile(rf"What is ({THING}{TAIL})\?$")
FIND = re.compile(rf"(?:Find|Determine|Calculate|Compute) ({THING}{TAIL})\.?$")
HOW_MANY_THERE = re.compile(r"How many ((?!of\b)(?:[a-z-]+ ){0,4}[a-z-]+) are there( [^?]+)?\?$")
HOW_MANY_ARE = re.compile(r"How many ((?!of\b)(?:[a-z-]+ ){0,4}?[a-z-]+) (are|remain|exist|have) ?([^?]*)\?$")
HOW_MANY_OF = re.compile(r"How many of (the [^?]+?) (are|have) ([^?]+)\?$")
WHICH_OF = re.compile(r"Which of (the [^?]+?) (is|has) ([^?]+)\?$")
WHICH = re.compile(r"Which ([a-z]+(?: [a-z]+)?) (is|has|shows|represents) ([^?]+)\?$")
IF_ASK = re.compile(r"(If|Given that) (.+), (?:then )?((?:find|determine|calculate|what is) .+?)([.?])$")
ASK_IF = re.compile(r"((?:Find|Determine|Calculate|What is) .+?) (if|given that) (.+?)([.?])$")
HANGING = re.compile(r"\b(?:it|its|they|their|them|this|these|those|he|she|an?)\b", re.IGNORECASE)
SENTENCE = re.compile(r"(?<=[.?!])\s+(?=[A-Z$\\])")
AMOUNT = re.compile(r"(?<![\w.,/$\\])(\d+(?:\.\d+)?) ?(cm|mm|km|kg|ft)(\^2|²|\^3|³)?(?![\w/^²³])")
FULL_UNITS = {
    "cm": ("centimeter", "centimeters"),
    "mm": ("millimeter", "millimeters"),
    "km": ("kilometer", "kilometers"),
    "kg": ("kilogram", "kilograms"),
    "ft": ("foot", "feet"),
}


def rewrite_by_rules(text: str, count: int, *, seed: int) -> list[str]:
    """Up to `count` rewrites of a question with its placeholders and options; fewer where little is safe.

    The same for the same seed and question.
    """
    leading, question = split_placeholders(text)
    stem, options = split_options(question)
    rest = question[len(stem) :] if options and question.startswith(stem) else ""
    body = (stem if rest else question).strip()
    digest = hashlib.sha256(f"{seed}/{text}".encode()).digest()
    rng = random.Random(int.from_bytes(digest[:8], "big"))
    tiers = [list(dict.fromkeys(tier)) for tier in _candidates(body, text.count(PLACEHOLDER))]
    for tier in tiers:
        rng.shuffle(tier)
    chosen = [new for new in dict.fromkeys(new for tier in tiers for new in tier) if new != body]
    return [leading + new + rest for new in chosen[:count]]


def _candidates(body: str, images: int) -> Iterator[list[str]]:
    """Rewrites in tiers, the best first: another wording or order; units spelled out; a line before the question."""
    sentences = SENTENCE.split(body)
    head, ask = sentences[:-1], sentences[-1]
    moved = [" ".join([*head, new]) for rule in (_reworded, _reordered) for new in rule(ask)]
    yield moved
    spelled = _spell_units(body)
    yield [] if spelled == body else [spelled, *map(_spell_units, moved)]
    yield [line + body for line in _openings(ask, images)]


def _reworded(ask: str) -> list[str]:
    for pattern, rule in _REWORDINGS:
        match = pattern.match(ask)
        if match:
            return rule(match)
    return []


def _thing(match: re.Match[str]) -> list[str]:
    thing = match[1]
    return [f"{verb} {thing}." for verb in ("Find", "Determine", "Calculate", "Work out")] + [f"What is {thing}?"]


def _there(match: re.Match[str]) -> list[str]:
    things, place = match[1], match[2] or ""
    return [
        f"Count the {things}{place}.",
        f"What is the number of {things}{place}?",
        f"Find the number of {things}{place}.",
        f"Determine how many {things} there are{place}.",
    ]


def _are(match: re.Match[str]) -> list[str]:
    ending = f"{match[1]} {match[2]} {match[3]}".strip()
    return [f"{verb} how many {ending}." for verb in ("Determine", "Find out", "State")]


def _of(match: re.Match[str]) -> list[str]:
    whole, verb, kind = match.groups()
    return [f"{start} how many of {whole} {verb} {kind}." for start in ("Determine", "Find out", "State")]


def _which_of(match: re.Match[str]) -> list[str]:
    whole, verb, kind = match.groups()
    return [f"{start} which of {whole} {verb} {kind}." for start in ("Determine", "Find out", "State")]


def _which(match: re.Match[str]) -> list[str]:
    thing, verb, kind = match.groups()
    if thing.startswith(("of", "one")) or thing.split()[-1] in {"following", "statement"}:
        return [f"Determine which {thing} {verb} {kind}."]
    return [f"{start} the {thing} that {verb} {kind}." for start in ("Identify", "Name")] + [
        f"{start} which {thing} {verb} {kind}." for start in ("Determine", "State")
    ]


_REWORDINGS: tuple[tuple[re.Pattern[str], Callable[[re.Match[str]], list[str]]], ...] = (
    (WHAT_IS, _thing),
    (FIND, _thing),
    (HOW_MANY_THERE, _there),
    (HOW_MANY_OF, _of),
    (HOW_MANY_ARE, _are),
    (WHICH_OF, _which_of),
    (WHICH, _which),
)


def _reordered(ask: str) -> list[str]:
    """The condition behind the question, or before it; not where a word would lose its referent."""
    match = IF_ASK.match(ask)
    if match and not HANGING.search(f"{match[2]} {match[3]}") and " if " not in match[3]:
        question = match[3][0].upper() + match[3][1:]
        return [f"{question} {match[1].lower()} {match[2]}{match[4]}"]
    match = ASK_IF.match(ask)
    if match and not HANGING.search(f"{match[1]} {match[3]}"):
        return [f"{match[2].capitalize()} {match[3]}, {match[1][0].lower()}{match[1][1:]}{match[4]}"]
    return []


def _spell_units(text: str) -> str:
    if "$" in text or "\\(" in text:
        return text  # inside formulas nothing is spelled out

    def spell(match: re.Match[str]) -> str:
        name = FULL_UNITS[match[2]][match[1] != "1"]
        power = {"2": "square ", "²": "square ", "3": "cubic ", "³": "cubic "}.get((match[3] or " ")[-1], "")
        return f"{match[1]} {power}{name}"

    return AMOUNT.sub(spell, text)


def _openings(ask: str, images: int) -> list[str]:
    """Lines that may stand before any English question, or instruction."""
    if not re.match(r"(?:What|Which|How|Is|Are|Does|Do|Did|Find|Determine|Calculate|Count|In|If|The|Given)\b", ask):
        return []
    look = {0: "", 1: "Look at the image. "}.get(images, "Look at the images. ")
    if ask.endswith("?"):
        return [line for line in (look, "Answer the following question. ") if line]
    return [line for line in (look, "Solve the following problem. ") if line]
