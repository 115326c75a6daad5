"""Rewriting without a model: other wordings of the instruction, clauses in another order, units spelled out.

Every rule applies only where its grammar is certain: a noun it knows, a verb right behind the counted noun, no pronoun
or article that a move would leave hanging. Where none applies there are fewer rewrites. Options are never touched.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Callable, Iterator

from sharevl_lite.data.options import split_options
from sharevl_lite.data.problem import PLACEHOLDER, split_placeholders
from sharevl_lite.rewrite.grammar import ADVERB, MORE, is_countable, is_measure, may_follow

NOUNS = (
    "value|length|measure|area|perimeter|circumference|volume|radius|diameter|height|width|slope|sum|difference|total"
    "|product|ratio|average|mean|median|mode|range|probability|distance|number|percentage|maximum|minimum|hypotenuse|base"
    "|surface area|side length|degree measure|scale factor"
)
NAME = r"(?:m\s?)?(?:\\angle\s?|∠\s?|angle\s)?(?:[A-Z]{1,4}|[b-hj-z]|\d)|\$[^$]{1,20}\$"
THING = rf"(?:the (?:(?:total|combined|average|approximate|missing|largest|smallest|maximum|minimum) )?(?:{NOUNS})(?: of [^?]+| between [^?]+| from [^?]+| in [^?]+)?|(?:{NAME}))"  # noqa: E501
TAIL = r"(?: to the nearest [a-z ]+)?"

WHAT_IS = re.compile(rf"What is ({THING}{TAIL})\?$")
FIND = re.compile(rf"(?:Find|Determine|Calculate|Compute|Work out) ({THING}{TAIL})\.?$")
COUNTED = r"((?!of\b)(?:[a-z-]+ ){0,4}?[a-z-]+)"
HOW_MANY_THERE = re.compile(rf"How many {COUNTED} are there( [^?]+)?\?$")
HOW_MANY_ARE = re.compile(rf"How many {COUNTED} (are|remain|exist|have) ?([^?]*)\?$")
OWNER = r"(?:the|this|these|each)(?: (?!(?:to|think|say|believe)\b)[a-z-]+){1,3}(?: (?:in|on|of|at|with) the [a-z]+)?"
HOW_MANY_DOES = re.compile(rf"How many {COUNTED} (does|do) ({OWNER}) have\?$")
HOW_MANY_OF = re.compile(r"How many of (the [^?]+?) (are|have) ([^?]+)\?$")
WHICH_OF = re.compile(r"Which of (the [^?]+?) (is|has) ([^?]+)\?$")
WHICH = re.compile(r"Which ([a-z]+(?: [a-z]+)?) (is|has|shows|represents) ([^?]+)\?$")
IF_ASK = re.compile(r"(If|Given that) (.+), (?:then )?((?:find|determine|calculate|what is) .+?)([.?])$")
ASK_IF = re.compile(r"((?:Find|Determine|Calculate|What is) .+?),? (if|given that) (.+?)([.?])$")
HANGING = re.compile(r"\b(?:it|its|they|their|them|this|these|those|he|she|an?)\b", re.IGNORECASE)
SENTENCE = re.compile(r"(?<=[.?!])\s+(?=[A-Z$\\])")
AMOUNT = re.compile(r"(?<![\w.,/$\\])(\d+(?:\.\d+)?) ?(cm|mm|km|kg|ft)(\^2|²|\^3|³)?(?![\w/^²³])")
_BEHIND = r"and|or|by|of|to|from|in|at|on|for|with|is|are|was|were|each|if|than|above|below"
BEHIND_AMOUNT = re.compile(
    rf"\s*(?:$|[.,;:?!)×=+]|(?:{_BEHIND})\b|(?:long|wide|high|tall|deep|thick|apart|away)(?:$|[.,;:?!)]|\s(?:{_BEHIND})\b))"
)
"""What may follow an amount in the plural: "a 10 ft ladder" and "5 cm sticks" have no plural."""
UNIT_ALONE = re.compile(r"(?<![A-Za-z])(?:cm|mm|km|kg|ft)(?![A-Za-z])")

ENDS_OPEN = re.compile(
    r" (?:of|for|to|from|at|by|with|on|in|about|like|called|named|known|made|used|do|be|become)$|[^\w$)\]}°'′%\"²³]$"
)
"""A thing that ends so is none: "the base of the statue made of", "the sum of 7 +"."""
SECOND_QUESTION = re.compile(r"\b(?:what|how|why|whether)\b")
IMPERATIVE = re.compile(
    r"(?:,|;|\band|\bthen)\s+(?:then )?(?:find|give|round|express|show|state|write|determine|calculate|use|choose"
    r"|select|justify|explain|leave|name|draw|identify|compare|simplify|estimate|describe|list|answer|label|classify)\b"
    rf"|\bby [a-z]+ing\b|\busing\b|\band (?:the|its) (?:[a-z]+ )?(?:{NOUNS})\b|\bif (?:possible|necessary|needed|any)\b"
)
"""What "Find …" may hold and "What is …?" may not."""
NO_CONDITION = re.compile(
    r"(?:any|possible|necessary|needed|not|so|applicable)\b|.*(?:,\s+(?!and\b|[A-Z$\\])|\b(?:find|determine|calculate|what"
    r"|which|how|round(?:ed)?|give|express|nearest|answer)\b)"
)
ASKS_IF = re.compile(r" (?:out|tell|say|see|check|explain|decide|state|show|determine|know)$")
"""Before an "if" that is no condition: "find out if"."""
NOT_CALCULATED = r"(?:number(?! of (?!the\b|this\b))|difference|product|base|mode|range)\b"
"""The number of a bus, the difference between two cells and the mode of transport are found."""
FIGURES = re.compile(
    r"\d|\$|\b(?:numbers|values?|data|digits|angles?|areas?|lengths?|functions?|bars?|ages|prices?|triangle|highest|lowest"
    r"|largest|smallest|maximum|minimum)\b"
)
LABEL_ALONE = re.compile(r"[A-Z]{1,4}|[b-hj-w]|\d")
"""What may be the label of a part as well as a quantity: nobody calculates what B is in a drawing of a flower."""

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


def _find(match: re.Match[str]) -> list[str]:
    thing = match[1].rstrip(" .")
    return [new for new in _thing(thing) if not (new.endswith("?") and IMPERATIVE.search(thing))]


def _what_is(match: re.Match[str]) -> list[str]:
    return [] if LABEL_ALONE.fullmatch(match[1]) else _thing(match[1].rstrip("."))


def _thing(thing: str) -> list[str]:
    if ENDS_OPEN.search(thing) or SECOND_QUESTION.search(thing) or ". " in thing:
        return []
    calculated = not re.match(f"the {NOT_CALCULATED}", thing) or FIGURES.search(thing)
    verbs = ("Find", "Determine", "Calculate", "Work out") if calculated else ("Find", "Determine")
    return [f"{verb} {thing}." for verb in verbs] + [f"What is {thing}?"]


def _there(match: re.Match[str]) -> list[str]:
    things, place = match[1], match[2] or ""
    if not is_countable(things) or SECOND_QUESTION.search(place) or re.match(r" (?:and|or|but|as)\b", place):
        return []
    determine = f"Determine how many {things} there are{place}."
    if is_measure(things) or MORE.search(things) or re.match(r" (?:if|when|after|once|on average)\b", place):
        return [determine]
    return [
        f"Count the {things}{place}.",
        f"What is the number of {things}{place}?",
        f"Find the number of {things}{place}.",
        determine,
    ]


def _are(match: re.Match[str]) -> list[str]:
    things, verb, kind = match.groups()
    if not is_countable(things) or not may_follow(verb, kind, things):
        return []
    ending = f"{things} {verb} {kind}".strip()
    return [f"{start} how many {ending}." for start in ("Determine", "Find out", "State")]


def _does(match: re.Match[str]) -> list[str]:
    things, verb, owner = match.groups()
    if not is_countable(things):
        return []
    ending = f"{things} {owner} {'has' if verb == 'does' else 'have'}"
    return [f"{start} how many {ending}." for start in ("Determine", "Find out", "State")]


def _of(match: re.Match[str]) -> list[str]:
    whole, verb, kind = match.groups()
    if not may_follow(verb, kind, whole):
        return []
    return [f"{start} how many of {whole} {verb} {kind}." for start in ("Determine", "Find out", "State")]


def _which_of(match: re.Match[str]) -> list[str]:
    whole, verb, kind = match.groups()
    if not may_follow(verb, kind, whole):
        return []
    return [f"{start} which of {whole} {verb} {kind}." for start in ("Determine", "Find out", "State")]


def _which(match: re.Match[str]) -> list[str]:
    thing, verb, kind = match.groups()
    if not may_follow(verb, kind, thing) or ADVERB.search(thing):
        return []
    if thing.startswith(("of", "one")) or thing.split()[-1] in {"following", "statement"}:
        return [f"Determine which {thing} {verb} {kind}."]
    clauses = () if "," in kind else ("Identify", "Name")  # "…, A or B" is apposed to "which"
    return [f"{start} the {thing} that {verb} {kind}." for start in clauses] + [
        f"{start} which {thing} {verb} {kind}." for start in ("Determine", "State")
    ]


_REWORDINGS: tuple[tuple[re.Pattern[str], Callable[[re.Match[str]], list[str]]], ...] = (
    (WHAT_IS, _what_is),
    (FIND, _find),
    (HOW_MANY_THERE, _there),
    (HOW_MANY_DOES, _does),
    (HOW_MANY_OF, _of),
    (HOW_MANY_ARE, _are),
    (WHICH_OF, _which_of),
    (WHICH, _which),
)


def _reordered(ask: str) -> list[str]:
    """The condition behind the question, or before it; not where a word would lose its referent."""
    match = IF_ASK.match(ask)
    if match and not HANGING.search(f"{match[2]} {match[3]}") and not re.search(r" if |,", match[3]):
        question = match[3][0].upper() + match[3][1:]
        return [f"{question} {match[1].lower()} {match[2]}{match[4]}"]
    match = ASK_IF.match(ask)
    if match is None or HANGING.search(f"{match[1]} {match[3]}") or NO_CONDITION.match(match[3]):
        return []
    question = match[1][0].lower() + match[1][1:]
    if "," in question or SECOND_QUESTION.search(question, 4) or ASKS_IF.search(question):
        return []
    return [f"{match[2].capitalize()} {match[3]}, {question}{match[4]}"]


def _spell_units(text: str) -> str:
    if "$" in text or "\\(" in text:
        return text  # inside formulas nothing is spelled out

    def spell(match: re.Match[str]) -> str:
        name = FULL_UNITS[match[2]][match[1] != "1"]
        power = {"2": "square ", "²": "square ", "3": "cubic ", "³": "cubic "}.get((match[3] or " ")[-1], "")
        return f"{match[1]} {power}{name}"

    spelled = AMOUNT.sub(spell, text)
    mixed = UNIT_ALONE.search(spelled)  # one text, one spelling
    return text if mixed or not all(BEHIND_AMOUNT.match(text, m.end()) for m in AMOUNT.finditer(text)) else spelled


def _openings(ask: str, images: int) -> list[str]:
    """Lines that may stand before any English question, or instruction."""
    if not re.match(r"(?:What|Which|How|Is|Are|Does|Do|Did|Find|Determine|Calculate|Count|In|If|The|Given)\b", ask):
        return []
    look = {0: "", 1: "Look at the image. "}.get(images, "Look at the images. ")
    if ask.endswith("?"):
        return [line for line in (look, "Answer the following question. ") if line]
    return [line for line in (look, "Solve the following problem. ") if line]
