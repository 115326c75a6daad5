"""What stands behind a number in an answer: units and their names, factors in words, directions.

Two different known units disagree, an unknown or missing one is ignored (see `numerals`). So do opposite directions:
45 degrees clockwise is not 45 degrees counterclockwise. "Below zero" is a minus sign.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

HAN = "一-鿿"

_PATTERN = re.compile(
    rf"""
    \s*(?P<degree>\^\s*\\circ)?\s*
    (?:
        (?:\\(?:text|textrm|mathrm|rm|operatorname)\s*\{{(?P<wrapped>[^{{}}0-9]{{1,40}})\}}
          | (?P<plain>(?:(?:sq|cu)\.\ ?)?[A-Za-zµμ]+(?:\ [A-Za-z]+){{0,3}}|[A-Za-z]+\ ?/\ ?[A-Za-z]+)
          | (?P<ohm>[kM]?\s?\\Omega)
          | (?P<han>[{HAN}]{{1,6}}))
        (?:\s*\^\s*\{{?\d\}}?)?
    )?
    \.?
    """,
    re.VERBOSE,
)

_IN_PARENTHESES = re.compile(rf"\s*\(([A-Za-zµμ{HAN}/]+)\)")
"""A unit, or a factor: without the space that a unit of unknown letters needs."""
_NAMES = {
    "nm": "nm nanometer nanometre",
    "um": "um µm μm micrometer micrometre",
    "mm": "mm millimeter millimetre 毫米",
    "cm": "cm centimeter centimetre 厘米",
    "dm": "dm decimeter decimetre 分米",
    "m": "m meter metre 米",
    "km": "km kilometer kilometre 千米 公里",
    "inch": "in inch inches",
    "foot": "ft foot feet",
    "yard": "yd yard",
    "mile": "mi mile",
    "ms": "ms millisecond",
    "second": "s sec second 秒",
    "minute": "min minute 分钟",
    "hour": "h hr hour 小时",
    "day": "day 天",
    "week": "week 周",
    "month": "month 月",
    "year": "yr year 年",
    "mg": "mg milligram 毫克",
    "g": "g gram 克",
    "kg": "kg kilogram 千克 公斤",
    "pound": "lb pound",
    "ml": "ml milliliter millilitre 毫升",
    "litre": "l liter litre 升",
    "newton": "n newton 牛 牛顿",
    "joule": "j joule 焦 焦耳",
    "kj": "kj kilojoule",
    "watt": "w watt 瓦",
    "kw": "kw kilowatt 千瓦",
    "volt": "v volt 伏",
    "mv": "mv millivolt",
    "kv": "kv kilovolt",
    "ampere": "a amp ampere 安",
    "ma": "ma milliamp milliampere",
    "ohm": "ohm",
    "kiloohm": "kiloohm",
    "megaohm": "megaohm",
    "pascal": "pa pascal",
    "kpa": "kpa kilopascal",
    "mpa": "mpa megapascal",
    "hertz": "hz hertz",
    "khz": "khz kilohertz",
    "mhz": "mhz megahertz",
    "mol": "mol mole",
    "degree": "deg degree 度",
    "celsius": "celsius 摄氏度",
    "fahrenheit": "fahrenheit",
    "radian": "rad radian",
    "dollar": "dollar usd",
    "cent": "cent",
    "unit": "unit",
    "%": "percent pct",
    "mile/hour": "mph",
    "km/hour": "kph kmh kmph",
}
_UNITS = {name: unit for unit, names in _NAMES.items() for name in names.split()}
_CAPITALS = re.compile(r"\ (?:[NJAWVL]|nm|[mk]?V|mA|[kM]?Pa|[kMG]?Hz)\.?")
"""Short symbols, which need their own case and a space: `5 N` is a force, 5n and 5N are products."""
_OF_CAPITALS = "newton joule ampere watt volt litre nm mv kv ma pascal kpa mpa hertz khz mhz"
_SHORT = frozenset(_OF_CAPITALS.split())
_SCALES = {
    **{letter: name for name in ("celsius", "fahrenheit") for letter in (name, name[0])},
    **{letter: name for name in ("north", "south", "east", "west") for letter in (name, name[0])},
}
"""What a degree may be of, behind its sign."""
_SPEED = re.compile(r"(mm|cm|m|km|inch|foot|yard|mile)/(second|minute|hour)")
_PARTS = "third fourth fifth sixth seventh eighth ninth tenth"
_FACTORS = {
    "hundred": Fraction(100),
    "thousand": Fraction(1000),
    "million": Fraction(10**6),
    "billion": Fraction(10**9),
    "trillion": Fraction(10**12),
    "dozen": Fraction(12),
    "half": Fraction(1, 2),
    "halve": Fraction(1, 2),
    **{word: Fraction(1, number) for number, word in enumerate(_PARTS.split(), 3)},
    "hundredth": Fraction(1, 100),
    "thousandth": Fraction(1, 1000),
    "millionth": Fraction(1, 10**6),
}
_HAN_FACTOR = re.compile("(百万|千万|万|亿|百|千(?![米克瓦伏帕焦卡]))(.*)")
_HAN_FACTORS = {"百": 100, "千": 1000, "万": 10**4, "百万": 10**6, "千万": 10**7, "亿": 10**8}
_HAN_NO_UNIT = re.compile("[加减乘除半负第或和多]|分之|以[上下内外]")
_CALCULATING = "plus minus times over divided multiplied mod modulo not and or squared cubed sin cos tan log exp sqrt"
_GREEK = (
    "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi omicron pi rho sigma tau upsilon phi chi "
    "psi omega"
)
_NO_UNITS = frozenset([*_CALCULATING.split(), *_GREEK.split()])
_DIMENSIONS = re.compile(r"\b(?:square|squared|sq|cubic|cubed|cu)\b\.?|[.^]|平方|立方")
_LINKS = frozenset({"to", "of"})
_BELOW_ZERO = re.compile(r"\bbelow zero\b|\bbelow freezing\b")
_WAYS = (
    ("clockwise 顺时针", "counterclockwise anticlockwise 逆时针"),
    ("left", "right", "up upward upwards", "down downward downwards"),
    ("north", "south", "east", "west"),
    ("above", "below"),
    ("gain profit increase rise", "loss decrease drop fall decline"),
    ("forward forwards", "backward backwards"),
    ("more", "less fewer"),
    ("before", "after"),
)
_DIRECTIONS = {
    word: (group, side)
    for group, sides in enumerate(_WAYS)
    for side, words in enumerate(sides)
    for word in words.split()
}


@dataclass(frozen=True)
class Behind:
    """What the text behind a number says of it; `unit` is a known one's name, or empty."""

    factor: Fraction = Fraction(1)
    unit: str = ""
    directions: frozenset[tuple[int, int]] = frozenset()
    """Groups of opposites, and the side of each."""


def parse_behind(text: str, *, letters: bool) -> Behind | None:
    """What `text` says of the number before it; None if it says something else. `letters`: see `parse_numeral`."""
    found = _PATTERN.fullmatch(_IN_PARENTHESES.sub(r"\1", text))
    if found is None:
        return None
    if found["han"]:
        return _parse_han(found["han"])
    if found["ohm"]:
        return Behind(unit={"k": "kiloohm", "M": "megaohm"}.get(found["ohm"][0], "ohm"))
    return _parse_words(found, letters=letters)


def _parse_words(found: re.Match[str], *, letters: bool) -> Behind | None:
    words = (found["wrapped"] or found["plain"] or "").lower().split()
    directions = frozenset(_DIRECTIONS[word] for word in words if word in _DIRECTIONS)
    below = _BELOW_ZERO.search(" ".join(words))
    sign, ways = Fraction(-1 if below else 1), frozenset() if below else directions
    if found["degree"]:
        return Behind(sign, _SCALES.get(" ".join(words), "degree"), ways)
    factor = sign
    while words and (number := _factor(words[0])) is not None:
        factor *= number
        del words[0]
    if not words:
        return Behind(factor)
    # `25 cm squared` is a unit, `5 squared` is 25.
    if words[0] in _NO_UNITS or not (_NO_UNITS - {"squared", "cubed"}).isdisjoint(words):
        return None
    unit = _unit(" ".join(words))
    if found["plain"] and not letters and not _is_plain_unit(found[0], words, unit):
        return None
    return Behind(factor, unit, ways)


def units_differ(*units: str) -> bool:
    """Whether two of these names, empty where a unit is missing or unknown, are of different units."""
    known = set(units) - {""}
    if not known.isdisjoint(_SCALES.values()):
        known.discard("degree")
    return len(known) > 1


def directions_differ(first: frozenset[tuple[int, int]], second: frozenset[tuple[int, int]]) -> bool:
    """Whether both name a direction of one kind, and not the same: clockwise and counterclockwise, north and east."""
    return any(group == other and side != way for group, side in first for other, way in second - first)


def _factor(word: str) -> Fraction | None:
    return _FACTORS.get(word) or _FACTORS.get(word.removesuffix("s"))


def _parse_han(text: str) -> Behind | None:
    """Chinese: 5厘米, 3个 (a word to count by is an unknown unit), 2万."""
    if _HAN_NO_UNIT.search(text):
        return None
    directions = frozenset(side for word, side in _DIRECTIONS.items() if not word.isascii() and word in text)
    factor, scaled = 1, _HAN_FACTOR.fullmatch(text)
    if scaled is not None:
        factor, text = _HAN_FACTORS[scaled[1]], scaled[2]
    return Behind(Fraction(factor), _UNITS.get(_DIMENSIONS.sub("", text), ""), directions)


def _unit(words: str) -> str:
    """Name of a known unit, or empty. A plural has more than two letters: ms are no metres."""
    over, per, under = re.sub(r"\s*/\s*|\s+per\s+", "/", words).partition("/")
    if per:
        parts = _unit(over), _unit(under)
        return "/".join(parts) if all(parts) else ""
    name = _DIMENSIONS.sub(" ", words).strip() or "unit"
    if name.startswith("degree"):
        return _SCALES.get(name.split()[-1], _UNITS.get(name.removesuffix("s"), ""))
    return _UNITS.get(name) or (_UNITS.get(name.removesuffix("s"), "") if len(name) > 2 else "")


def _is_plain_unit(text: str, words: list[str], known: str) -> bool:
    """Whether bare letters behind a number are a unit: `5cm`, `5 apples`, `5 m/s`, `5 N`; not `5 m`, `5ab` or `5a/b`,
    which may be products."""
    short = len("".join(words)) <= 3
    if "/" in text:
        parts = text.strip().split("/")
        return bool(known) and (_SPEED.fullmatch(known) is not None or any(len(p) > 1 or p.isupper() for p in parts))
    if known in _SHORT and short:
        return _CAPITALS.fullmatch(text) is not None
    if known:
        return len("".join(words)) > 1
    return text.startswith(" ") and all(len(word) >= 3 or word in _LINKS for word in words)
