r"""What a question says, in a form that two wordings share: numbers, units, variables, point labels, options, concepts.

Spelling is levelled first, so that `30^\circ`, `30°` and "30 degrees", `\frac{1}{2}`, 1/2 and "half", 1,234 and 1234,
"two" and 2, `\triangle ABC` and "triangle ABC" come out alike. Options are taken out before anything else is read.

Allowed orders of a name: AB and BA are one segment; ABC may be read backwards (the middle letter is an angle's vertex);
a longer name may start at any corner, in either direction.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

from sharevl_lite.data.options import split_options
from sharevl_lite.data.problem import PLACEHOLDER
from sharevl_lite.rewrite.lexicon import GROUP_OF_WORD, NUMBER_WORDS, PHRASES, SIGNS, UNITS

MATH = re.compile(r"\$([^$\n]+)\$|\\\((.+?)\\\)|\\\[(.+?)\\\]")
PROSE_IN_MATH = re.compile(r"(?<![\\a-zA-Z{])[a-z]{3,}")
WRAPPED = re.compile(
    r"\\(?:text|mathrm|mathbf|textbf|overline|overleftrightarrow|overrightarrow|overarc|widehat|rm)\s*"
)
FRACTION = re.compile(r"\\[dt]?frac\s*\{?(-?\d+)\}?\s*\{?(\d+)\}?")
NUMBER = re.compile(r"(?<![\w.])\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?|\.\d+")
LABEL = re.compile(r"(?<![A-Za-z\\])[A-Z]{1,6}(?![a-z])['′]?")
VARIABLE = re.compile(r"(?<![A-Za-z\\'’])(?:[b-hj-z](?![A-Za-z'’])(?:_\{?\w+\}?)?)")
VARIABLE_A = re.compile(r"(?<![A-Za-z\\])a(?=\s*(?:[=+*^<>/_]|-\s*\w|\)|,? and b\b))")
GREEK = re.compile(r"\\(alpha|beta|gamma|theta|phi|omega|delta|lambda|mu)(?![a-zA-Z])|([αβγθφωδλμ])")
GREEK_LETTERS = dict(zip("αβγθφωδλμ", "alpha beta gamma theta phi omega delta lambda mu".split(), strict=True))
WORD = re.compile(r"[a-z]+(?:-[a-z]+)*")
POWER = re.compile(r"²|\^\s*\{?2\}?")
CUBE = re.compile(r"³|\^\s*\{?3\}?")
CJK = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]")

_POWER_BEFORE = r"(?:(?:sq(?:uare|\.)?|cu(?:bic|\.)?)\s+)?"
_POWER_BEHIND = r"(?:\s*(?:\^\s*\{?[23]\}?|[²³]|squared|cubed))?"


def _any_unit(spellings: Iterable[str]) -> str:
    """A pattern of all units, in their order. The group that matched is named after the unit's number: `u0`."""
    return "|".join(f"(?P<u{number}>{spelling})" for number, spelling in enumerate(spellings))


_AFTER_NUMBER = re.compile(
    rf"(?<=\d)\s*-?\s*{_POWER_BEFORE}(?:{_any_unit(f'{short}|{words}' for _, short, words in UNITS)})"
    rf"(?![A-Za-z]){_POWER_BEHIND}"
)
_TOLD_APART = {"mm", "cm", "km"}
"""Abbreviations that are no other word or name, and so stand without a number as well."""
_ALONE = [rf"{words}|{name}\b" if name in _TOLD_APART else words for name, _, words in UNITS]
_ANYWHERE = re.compile(
    rf"(?<![A-Za-z]){_POWER_BEFORE}(?:{_any_unit(_ALONE)})(?![A-Za-z]){_POWER_BEHIND}",
    re.IGNORECASE,
)
_NUMBER_WORD = re.compile(
    r"(?<![a-z-])(?:one[- ](third|quarter|fourth|fifth|half)"
    r"|(?:which|the|this|each|every|any|no) one(?![- ](?:third|quarter|fourth|fifth|half|digit))"
    r"|(" + "|".join(NUMBER_WORDS) + r"))(?![a-z])",
    re.IGNORECASE,
)
"""A fraction, "one" as a pronoun, which counts nothing, or a number; in doubt a number, which a rewrite must keep."""
_TENS_AND_ONES = re.compile(r"\b(twenty|thirty|forty|fifty|sixty|seventy|eighty|ninety)[- ](one|two|three|four|five|six"
                            r"|seven|eight|nine)\b", re.IGNORECASE)  # fmt: skip
_PARTS = {"third": "1/3", "quarter": "1/4", "fourth": "1/4", "fifth": "1/5", "half": "1/2"}
_PHRASE = re.compile("|".join(f"(?P<p{i}_{name}>{words})" for i, (name, words) in enumerate(PHRASES)))
_SIGN = re.compile("|".join(f"(?P<s{i}_{name}>{signs})" for i, (name, signs) in enumerate(SIGNS)))


@dataclass(frozen=True)
class Facts:
    """What a text says. `bare` is the levelled text without options."""

    placeholders: int
    options: tuple[tuple[str, str], ...]
    numbers: Counter[str]
    quantities: Counter[tuple[str, str]]
    """(number, unit) wherever a unit follows a number."""
    units: frozenset[str]
    variables: frozenset[str]
    labels: frozenset[str]
    concepts: frozenset[str]
    bare: str


@lru_cache(maxsize=512)
def facts(text: str) -> Facts:
    """The facts of a question."""
    placeholders = text.count(PLACEHOLDER)
    body, options = split_options(text.replace(PLACEHOLDER, " "))
    body = _level(body)
    bare = " ".join(body.split())
    body, quantities, units = _take_units(body)
    body, numbers = _take_numbers(body)
    numbers.update(value for value, _ in quantities.elements())
    labels, variables = _names(body)
    return Facts(placeholders, options, numbers, quantities, units, variables, labels, frozenset(_concepts(body)), bare)


def _level(text: str) -> str:
    """One spelling of LaTeX and of signs; math delimiters go, currency stays as a word."""
    text = MATH.sub(lambda m: m[0] if _is_currency(m) else f" {next(g for g in m.groups() if g is not None)} ", text)
    text = re.sub(r"\\?\$\s*(\d[\d,.]*\d|\d)", r"\1 dollars", text)
    text = text.replace("{,}", ",").replace("\\,", " ").replace("\\ ", " ").replace("−", "-")
    text = WRAPPED.sub("", text)
    text = FRACTION.sub(r" \1/\2 ", text)
    for pattern, word in ((r"\\triangle|△|Δ", " triangle "), (r"\\angle|∠", " angle ")):
        text = re.sub(pattern, word, text)
    return text


def _is_currency(match: re.Match[str]) -> bool:
    inner = match[1]
    return inner is not None and inner[:1].isdigit() and PROSE_IN_MATH.search(inner) is not None


def _power(text: str) -> str:
    lowered = text.lower()
    if "cu" in lowered or "3" in lowered or "³" in lowered:
        return "^3"
    return "^2" if "sq" in lowered or "2" in lowered or "²" in lowered else ""


def _unit(match: re.Match[str]) -> str:
    """The unit that was met, with its power, which stands on either side of the name."""
    group = str(match.lastgroup)
    name, _, _ = UNITS[int(group.removeprefix("u"))]
    return name + _power(match[0].replace(match[group], ""))


def _quantities(text: str) -> Iterator[tuple[slice, tuple[str, str]]]:
    """Every number with a unit behind it, in order: where both stand, and (number, unit)."""
    done = 0
    for match in _AFTER_NUMBER.finditer(text):
        *_, number = NUMBER.finditer(text, max(0, match.start() - 24), match.start())  # one ends where the unit begins
        start = number.start()
        numerator = re.search(r"\d+\s*/\s*$", text[max(done, start - 12) : start])
        if numerator:
            start -= len(numerator[0])
        done = match.end()
        yield slice(start, done), (_value(text[start : number.end()]), _unit(match))


def _take_units(text: str) -> tuple[str, Counter[tuple[str, str]], frozenset[str]]:
    """The text without quantities and units, the quantities, and all units, with or without a number."""
    text = _spell_numbers(text)
    quantities: Counter[tuple[str, str]] = Counter()
    pieces, done = [], 0
    for place, quantity in _quantities(text):
        quantities[quantity] += 1
        pieces.append(text[done : place.start])
        done = place.stop
    rest = "".join(pieces) + text[done:]
    units = {unit for _, unit in quantities} | {_unit(match) for match in _ANYWHERE.finditer(rest)}
    return _ANYWHERE.sub(" ", rest), quantities, frozenset(units)


def _spell_numbers(text: str) -> str:
    text = _TENS_AND_ONES.sub(lambda m: str(sum(int(NUMBER_WORDS[word.lower()]) for word in m.groups())), text)
    known = NUMBER_WORDS | _PARTS
    return _NUMBER_WORD.sub(lambda m: known[(m[1] or m[2]).lower()] if m[1] or m[2] else m[0], text)


def _value(number: str) -> str:
    cleaned = number.replace(",", "").replace(" ", "")
    try:
        return str(Fraction(cleaned))
    except (ValueError, ZeroDivisionError):
        return cleaned


def _take_numbers(text: str) -> tuple[str, Counter[str]]:
    numbers: Counter[str] = Counter()

    def book(match: re.Match[str]) -> str:
        numbers[_value(match[0])] += 1
        return " "

    text = re.sub(r"\d+\s*/\s*\d+", book, text)
    text = re.sub(r"\b(\w) squared\b", r"\1^2", re.sub(r"\b(\w) cubed\b", r"\1^3", text))
    text = CUBE.sub(" ^3 ", POWER.sub(" ^2 ", text))
    text = re.sub(r"(?<=[A-Za-z])_\{?(\w)\}?", r"_\1", text)
    return NUMBER.sub(book, text), numbers


def _names(text: str) -> tuple[frozenset[str], frozenset[str]]:
    labels = set()
    for match in LABEL.finditer(text):
        name = match[0].replace("′", "'")
        if name == "I" or (name == "A" and re.match(r"A\s+[a-z]{2,}", text[match.start() :])):
            continue  # the pronoun and the article
        labels.add(_canonical(name))
    variables = set(VARIABLE.findall(text)) | set(VARIABLE_A.findall(text))
    variables |= {latex or GREEK_LETTERS[sign] for latex, sign in GREEK.findall(text)}
    return frozenset(labels), frozenset(variables - {"m", "s", "t"} | ({"t"} if re.search(r"\bt\b", text) else set()))


def _canonical(name: str) -> str:
    if name.endswith("'") or len(name) == 1:
        return name
    turns = [name] if len(name) <= 3 else [name[i:] + name[:i] for i in range(len(name))]
    return min(order for turn in turns for order in (turn, turn[::-1]))


def _concepts(text: str) -> set[str]:
    found = {str(m.lastgroup).split("_", 1)[1] for m in _SIGN.finditer(text)}
    lowered = text.lower()

    def book(match: re.Match[str]) -> str:
        found.add(str(match.lastgroup).split("_", 1)[1])
        return " "

    lowered = _PHRASE.sub(book, lowered)
    found |= {GROUP_OF_WORD[word] for word in WORD.findall(lowered) if word in GROUP_OF_WORD}
    return found - {"plain"}
