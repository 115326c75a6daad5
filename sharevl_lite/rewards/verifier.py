r"""Is the boxed answer right? A ladder of rules; the first that accepts, or knows better, decides.

    choice → exact → residue → ratio → decimal → tolerance → angle → mathruler → math_verify
    → decimal (of an expression)

Sources: mathruler is the grader of the public Share-GRPO code (through EasyR1), math-verify the one of TRL. Both accept
wrong answers, so cheap rules that know better come before them and end the ladder where they apply:

* words are compared as words: as products of letters "act" equals "cat", and mathruler takes "on" for "no";
* two numbers are compared as numbers (see `numerals`): to mathruler `5e-9` is `1.2e-8`, to both 2e-8 is 1e-8;
* `3:4` is a ratio, equal to 6:8 and not to 3/4, which says "of the whole"; math-verify divides;
* a date is no subtraction, nor are the pages, the score or the telephone number that a gold answer names by digits and
  hyphens: to math-verify 1998-05-12 is 1998-06-11, and 5-12 is 6-13;
* Roman numerals and genotypes are no products, in which VI equals IV and FF equals Ff;
* an angle is named by its points in order, ABC or CBA; as products of letters ABC equals ACB;
* a modulus is part of a residue (see `residues`): to math-verify `5 \mod 8` is `5 \mod 7`, and both are 5;
* `x<2 and x>5` is not `x<2 or x>5`, and 12 am not 12 pm;
* neither grader is asked where both drop what matters: the base of `101_2`, a prime, text between two numbers
  (`2 \text{ hours } 30 \text{ minutes}`; but `3 \text{ or } 4` lists them);
* mathruler drops braces, so that `\frac{1-\sqrt{3}}{2}` would be `1-\frac{\sqrt{3}}{2}` and `2^{n-1}` `2^n-1`: it is
  not asked where a group that matters would be lost (see `graders`), nor where one side alone has commas (to it
  `100, 200` is 100200);
* it is not asked either about two equations (it drops both left sides, so y=3 would be x=3), digits with a space
  between (it would read `1 1/2` as 11/2) or a zero in front (`03` would be 0 times 3), listed numbers (it takes 5 for
  `5 \text{ or } 6`), nor LaTeX commands beyond a few: it drops what it does not know, so `\sqrt[3]{16}` would be
  `\sqrt{16}` and `0.\overline{3}` 0.3.

math-verify gets both sides wrapped in `$…$`: it parses a bare `2 \sqrt{221}` as 221. Its LaTeX extraction is the
default one; the plain-expression extraction stays off: it picks a number out of LaTeX that fails to parse. Its own
time-outs (signals, main thread only, raising a BaseException) are off: a caller that cannot wait forever uses
`VerifierPool`, because some predictions (`9^{9^{9^{9}}}`) keep sympy busy for longer than anybody lives.

A tolerance (0 by default) is for numbers alone: not for an expression, nor for the text of a choice, whose neighbour
may be near. ChartQA's relaxed accuracy (arXiv 2203.10244) is 0.05.

Where a problem accepts several answers, each is a gold of its own: the prediction goes down the ladder for each, in
order, until one accepts. See `by_any` for what they say together.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sharevl_lite.rewards.dates import parse_date, parse_named_date, parse_time
from sharevl_lite.rewards.formatting import extract_boxed
from sharevl_lite.rewards.graders import by_math_verify, by_mathruler, by_rounding
from sharevl_lite.rewards.normalise import (
    clean,
    drop_approximation,
    is_prose,
    is_symbol,
    split_assignment,
    text_key,
    unwrap_text,
)
from sharevl_lite.rewards.numerals import Numeral, agrees, parse_numeral, parse_ratio, ratios_agree, within
from sharevl_lite.rewards.residues import bare_residue, mentions_modulus, parse_residue, residues_agree

# Beyond these a prediction is not worth a symbolic grader (a fraction nested 60 deep parses for minutes); it is then
# right only if a cheap rule says so. A gold that is larger raises them to its own size.
_MAX_CHARACTERS = 400
_MAX_DEPTH = 12

_OPTION = re.compile(r"\(?([A-H])(?:[).:]+\s*(.*))?")
_LATE_OPTION = re.compile(r"\(?([I-Z])[).:]\s+(.+)")
"""Letters from I on are choices only with a text behind: alone they are points, sides and Roman numerals, and names may
begin alike (`J. Smith`), so that a text which is given counts."""
_OPTION_PREFIX = re.compile(
    r"(?:选项?|答案[:是为]?|故选[:]?)\s*"
    r"|(?:the )?(?:correct )?(?:option|choice|answer|figure|graph|point)(?: is)?:? ?",
    re.IGNORECASE,
)
_NAMED_OPTION = re.compile(r"\(?([A-Z])(?:[).:]+\s*(.*))?")
_OTHER_OPTION = {
    last: re.compile(rf"(?:\b(?:and|or)\b|[,/&])\s*\(?[A-{last}]\b|\b[A-{last}][).:]\s*\S|\([a-{last.lower()}]\)")
    for last in "HZ"
}
_POINT = re.compile(r"[A-Z]'?\s*(\([^()]*,[^()]*\))")
_OPTIONS = re.compile(r"[A-H]{2,8}|[A-H](?:(?:\s*[,;&]\s*|\s+and\s+|\s*,\s*and\s+)[A-H])+")
_ANGLE = re.compile(r"(?:m\s*)?\\angle\s*\{?([A-Z]'*)\s*([A-Z]'*)\s*([A-Z]'*)\}?")
_TEXT_IN_BETWEEN = re.compile(r"\d\s*\\(?:text|textrm|mathrm|rm)\s*\{(?!\s*(?:or|and)\s*\})[^{}]*[A-Za-z][^{}]*\}\s*\d")
_HYPHENED = re.compile(r"\d+(?:\s*[-–]\s*\d+)+")
_BASE = re.compile(r"\d\s*_\s*\{?\s*\d")
_ROMAN = re.compile(r"(?=..)X{0,3}(?:IX|IV|V?I{0,3})", re.IGNORECASE)
_GENOTYPE = re.compile(r"(?:([A-Za-z])(?i:\1))+")
_JOINT = re.compile(r"\b(?:and|or)\b")
_RELATION = re.compile(r"[<>]|\\[lg]e(?![A-Za-z])")
_PRIME = re.compile(r"(?<=[A-Za-z0-9)'])'(?![A-Za-z])|\\prime(?![A-Za-z])")


Gold = str | Sequence[str]
"""The right answer, or all that are accepted, of which one is enough."""


@dataclass(frozen=True)
class Verdict:
    """Outcome of a verification that ran to its end."""

    correct: bool
    rule: str
    """What decided: "choice", "exact", "residue", "ratio", "decimal", "tolerance", "angle", "mathruler" or
    "math_verify" accepted; "none" did; or "no_box": there was no answer to look at."""
    extracted: str | None
    """Content of the last box of the prediction."""


@dataclass(frozen=True)
class VerifierFailure:
    """A verification that did not run to its end: a time-out or a crash. It says nothing about the answer."""

    reason: str


def verify(prediction: str, gold: Gold, tolerance: float = 0.0) -> Verdict:
    r"""Judge the last `\boxed{…}` of a response against the gold answer, in this process and without a time-out.

    Args:
        prediction: the response.
        gold: the right answer, or all that are accepted.
        tolerance: a number may be off by this share of a gold number.

    Raises:
        ValueError: a gold answer is empty, or there is none.
        Exception: a grader cannot handle this gold, and no other accepts. A prediction that a grader cannot handle is a
            wrong one.
    """
    extracted = extract_boxed(prediction)
    if extracted is None:
        return Verdict(False, "no_box", None)
    verdict: Verdict | None = None
    fault: Exception | None = None
    for one in golds_of(gold):
        try:
            verdict = judge(extracted, one, tolerance)
        except Exception as error:
            fault = fault or error
            continue
        if verdict.correct:
            return verdict
    if fault is not None or verdict is None:
        raise fault or ValueError("there is no gold answer; give every problem one or leave the row out")
    return verdict


def golds_of(gold: Gold) -> tuple[str, ...]:
    """The accepted answers, each once, in order."""
    return (gold,) if isinstance(gold, str) else tuple(dict.fromkeys(gold))


def by_any(outcomes: Sequence[Verdict | VerifierFailure]) -> Verdict | VerifierFailure:
    """What the outcomes of one answer against each of its golds say together (at least one outcome).

    Right, by the first gold that accepts. Where none does and a verification failed, that gold might have accepted: a
    failure, the first one. Wrong only where every gold says so.
    """
    right = [outcome for outcome in outcomes if isinstance(outcome, Verdict) and outcome.correct]
    failed = [outcome for outcome in outcomes if isinstance(outcome, VerifierFailure)]
    return (right or failed or outcomes)[0]


def judge(extracted: str, gold: str, tolerance: float = 0.0) -> Verdict:
    """`verify` for one gold and an answer that is out of its box already."""
    if not gold.strip():
        raise ValueError("the gold answer is empty; give every problem an answer or leave the row out")
    if not extracted.strip():
        return Verdict(False, "none", extracted)
    answer, expected = drop_approximation(clean(extracted)), drop_approximation(clean(gold))
    option = _OPTION.fullmatch(unwrap_text(expected))
    late = _LATE_OPTION.fullmatch(unwrap_text(expected))
    if option is not None:
        letter, _ = _named_option(answer, "H")
        if letter is not None and letter == option[1]:
            return Verdict(True, "choice", extracted)
        if letter is not None or not option[2]:
            return Verdict(False, "none", extracted)
        expected, tolerance = option[2], 0.0
    elif late is not None:
        letter, text = _named_option(answer, "Z")
        if letter is not None and (letter != late[1] or not text):
            return Verdict(letter == late[1], "choice" if letter == late[1] else "none", extracted)
        answer, expected, tolerance = text or answer, late[2], 0.0
    rule = _accepting_rule(*_without_point(answer, expected), tolerance)
    return Verdict(rule is not None, rule or "none", extracted)


def _without_point(answer: str, expected: str) -> tuple[str, str]:
    """The coordinates alone where one side alone names their point: `P(1,2)` beside `(1,2)`."""
    points = [_POINT.fullmatch(side) for side in (answer, expected)]
    if (points[0] is None) == (points[1] is None):
        return answer, expected
    return points[0][1] if points[0] else answer, points[1][1] if points[1] else expected


def _accepting_rule(answer: str, expected: str, tolerance: float) -> str | None:
    """Name of the rule of the ladder that accepts; None where none does, or one knows better."""
    for name, rule in _LADDER:
        accepts = rule(answer, expected)
        if accepts is None:
            continue
        if not accepts and tolerance and name != "exact" and _by_tolerance(answer, expected, tolerance):
            return "tolerance"
        return name if accepts else None
    return None


def _named_option(answer: str, last: str) -> tuple[str | None, str]:
    """Letter up to `last` that the answer names, and the text behind it: `B`, `(b)`, `B. 30`, `option B`.

    None and "" for two letters or anything else.
    """
    answer = _OPTION_PREFIX.sub("", unwrap_text(answer).strip(), count=1)
    option = _NAMED_OPTION.fullmatch(answer[:2].upper() + answer[2:])
    if option is None or option[1] > last or _OTHER_OPTION[last].search(option[2] or ""):
        return None, ""
    return option[1], option[2] or ""


def _by_text(answer: str, expected: str) -> bool | None:
    if text_key(answer) == text_key(expected):
        return True
    (left, right), (gold_left, gold_right) = split_assignment(answer), split_assignment(expected)
    if bool(left) != bool(gold_left) and is_symbol(left or gold_left) and text_key(right) == text_key(gold_right):
        return True
    if (letters := _letters_of(expected)) is not None and letters == _letters_of(answer):
        return True
    turned = is_prose(answer) and sorted(text_key(answer)) == sorted(text_key(expected))  # `no` for `on`
    return False if turned or is_prose(expected) else None


def _letters_of(answer: str) -> str | None:
    """Several options as they are named: ACD of `ACD`, `A, C, D` and `A and C and D`; None of anything else."""
    letters = unwrap_text(answer).strip()
    return re.sub(r"[^A-H]", "", letters) if _OPTIONS.fullmatch(letters) else None


def _by_letters(answer: str, expected: str) -> bool | None:
    """Numerals in letters, and pairs of alleles, which differ in the case alone."""
    stated, gold = (unwrap_text(side).strip().rstrip(".") for side in (answer, expected))
    if _ROMAN.fullmatch(stated) and _ROMAN.fullmatch(gold):
        return stated.upper() == gold.upper()
    return stated == gold if _GENOTYPE.fullmatch(stated) and _GENOTYPE.fullmatch(gold) else None


def _by_ratio(answer: str, expected: str) -> bool | None:
    stated, gold = parse_ratio(answer), parse_ratio(expected)
    if stated is None and gold is None:
        return None
    return stated is not None and gold is not None and ratios_agree(stated, gold)


def _by_date(answer: str, expected: str) -> bool | None:
    for parse in (parse_time, parse_named_date):
        parts = parse(answer), parse(expected)
        if None not in parts:
            return parts[0] == parts[1]
    stated, gold = parse_date(answer), parse_date(expected)
    return None if stated is None and gold is None else stated == gold


def _by_residue(answer: str, expected: str) -> bool | None:
    if not mentions_modulus(answer) and not mentions_modulus(expected):
        return None
    stated, gold = parse_residue(answer), parse_residue(expected)
    if stated is None or mentions_modulus(expected):
        return stated is not None and gold is not None and residues_agree(stated, gold)
    bare = bare_residue(stated)
    return bare is not None and bool(_by_number(bare, expected))


def _by_number(answer: str, expected: str) -> bool | None:
    numbers = _numbers(answer, expected)
    return None if numbers is None else agrees(*numbers)


def _by_tolerance(answer: str, expected: str, tolerance: float) -> bool:
    numbers = _numbers(answer, expected)
    return numbers is not None and within(*numbers, tolerance)


def _numbers(answer: str, expected: str) -> tuple[Numeral, Numeral] | None:
    """Both sides, if they are numbers. `x = 5` counts as 5, unless both sides name different things."""
    (left, answer), (gold_left, expected) = split_assignment(answer), split_assignment(expected)
    if gold_left and (not is_symbol(gold_left) or (left and text_key(left) != text_key(gold_left))):
        return None
    with_units = parse_numeral(answer, letters=True), parse_numeral(expected, letters=True)
    if all(number is not None and number.unit for number in with_units):
        stated, gold = with_units  # a letter that may be a factor is a unit beside another unit
    else:
        stated, gold = parse_numeral(answer), parse_numeral(expected)
    return None if stated is None or gold is None else (stated, gold)


def _by_angle(answer: str, expected: str) -> bool | None:
    stated, gold = _ANGLE.fullmatch(answer), _ANGLE.fullmatch(expected)
    if stated is None or gold is None:
        return None
    return stated.groups() in (gold.groups(), gold.groups()[::-1])


def _by_reading(answer: str, expected: str) -> bool | None:
    """False where both graders would drop something that the exact rule has found to differ."""
    (left, right), (gold_left, gold_right) = split_assignment(answer), split_assignment(expected)
    stated, gold = (answer, expected) if left and gold_left else (right, gold_right)
    if len(_PRIME.findall(stated)) != len(_PRIME.findall(gold)) or _HYPHENED.fullmatch(gold):
        return False
    joints = [set(_JOINT.findall(unwrap_text(side))) for side in (answer, expected) if _RELATION.search(side)]
    if len(joints) == 2 and all(joints) and joints[0] != joints[1]:
        return False
    misread = any(pattern.search(side) for pattern in (_BASE, _TEXT_IN_BETWEEN) for side in (answer, expected))
    return False if misread else None


def _by_size(answer: str, expected: str) -> bool | None:
    longest, deepest = max(_MAX_CHARACTERS, len(expected)), max(_MAX_DEPTH, _depth(expected))
    return None if len(answer) <= longest and _depth(answer) <= deepest else False


_LADDER: tuple[tuple[str, Callable[[str, str], bool | None]], ...] = (
    ("exact", _by_date),
    ("exact", _by_letters),
    ("exact", _by_text),
    ("residue", _by_residue),
    ("ratio", _by_ratio),
    ("decimal", _by_number),
    ("angle", _by_angle),
    ("none", _by_reading),
    ("none", _by_size),
    ("mathruler", by_mathruler),
    ("math_verify", by_math_verify),
    ("decimal", by_rounding),
)


def _depth(answer: str) -> int:
    deepest = depth = 0
    for character in answer:
        depth += (character in "{([") - (character in "})]")
        deepest = max(deepest, depth)
    return deepest
