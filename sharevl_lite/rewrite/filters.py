"""Filters: what a rewrite must keep to be accepted, each with the name under which the report counts it.

They compare the facts of two texts (see `facts`), so they are cheap and never ask a model. In doubt they reject: a good
rewrite lost costs little, a question with another answer teaches the wrong thing. What they cannot see, such as whether
"men" may be called "people", is left to the solver check.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sharevl_lite.data.problem import PLACEHOLDER
from sharevl_lite.rewrite.facts import CJK, Facts, facts
from sharevl_lite.rewrite.lexicon import GROUP_OF_WORD, QUANTITIES

LONGEST_FACTOR = 2.0
SLACK_WORDS = 10
"""Added to both lengths before they are compared: short questions may grow by more than their length."""
NEAREST = 0.97
"""Share of neighbouring word pairs in common from which two texts are the same one."""

ASK = re.compile(
    r"\b(?:how many|how much|how long|how far|how tall|what|which|find|determine|calculate|compute|evaluate|work out"
    r"|solve for|count|identify|name|give|state|tell)\b|(?:^|[.?!]\s+)(?:who|whose|when|where)\b",
    re.IGNORECASE,
)
ASIDE = re.compile(
    r"(?:,\s*)?\b(?:if|when|given|where|such that|so that|provided|assuming|whose)\b"
    r"|[.?!;](?=\s|$)",
    re.IGNORECASE,
)
COUNTED = re.compile(
    r"\b(?:how many|(?:number|count) of|count)\s+(?:the |all |of the )*((?:[a-z-]+ )*?[a-z-]+)"
    r"(?=\s+(?:are|is|were|was|do|does|did|have|has|had|can|will|there|exist|remain|left|that|which|with|in|on|of|at|to"
    r"|than|behind|under|above|below|inside|outside|between|from|for|the|this|these|each)\b|\s*[.?!,;:]|\s*$)",
    re.IGNORECASE,
)
THAN = re.compile(r"\bthan\s+(?:(?:the|a|an|of|number|that|those|value|are)\s+)*([a-z-]+)", re.IGNORECASE)
CONTAINER = re.compile(
    r"\b(?:inscribed|circumscribed)\s+(?:in|about|around|within)\s+(?:(?:the|a|an)\s+)?([a-z]+)", re.I
)
RATIO = re.compile(r"\bratio\s+(?:of|between)\s+.*?\s(?:to|and)\s+(?:(?:the|that|of|value)\s+)*(\w+)", re.IGNORECASE)
VERBS = frozenset("are is were was do does did have has had can will exist remain there".split())
ANY_OBJECT = frozenset({"object", "thing", "item", "element", "shape"})
LETTERED = re.compile(r"([A-H])(?:\.\s*(.*))?", re.DOTALL)
BROKEN_END = re.compile(r"(?:(?<!\.)\.\s*\.|(?<!\.[A-Za-z])\.\s*\?|,\s*[.?])\s*$")
"""Two marks where one belongs; not the three of an ellipsis, nor "in the U.S.?"."""
TOKEN = re.compile(r"\w+|[^\w\s]")
STOP_WORDS = {
    "en": "the of is and what in to find how are that which many with on for".split(),
    "fr": "le la les de des du est et quelle quel une un dans trouver combien sont".split(),
    "de": "der die das ist und ein eine wie von den welche was finde im berechne".split(),
    "es": "el los las de es y cuál qué una un en cuántos encuentra del son".split(),
    "it": "il lo gli di è e quale qual una un trova quanti del della sono".split(),
    "pt": "o os as de é e qual uma um encontre quantos do da são".split(),
}


@dataclass(frozen=True)
class Candidate:
    """A rewrite under examination: the original, the rewrite, the gold answer (or all that are accepted), and the
    rewrites accepted before it."""

    original: str
    text: str
    answer: str | tuple[str, ...]
    accepted: tuple[str, ...] = ()

    @property
    def before(self) -> Facts:
        """What the original says."""
        return facts(self.original)

    @property
    def after(self) -> Facts:
        """What the rewrite says."""
        return facts(self.text)


def placeholders(pair: Candidate) -> bool:
    """As many image placeholders."""
    return pair.before.placeholders == pair.after.placeholders


def options(pair: Candidate) -> bool:
    """The same options under the same letters, in the same order."""
    return pair.before.options == pair.after.options


def language(pair: Candidate) -> bool:
    """The same script, and where stop words tell a language, the same language."""
    before, after = pair.before.bare, pair.after.bare
    if _script(before) != _script(after):
        return False
    first, second = _tongue(before), _tongue(after)
    return first is None or second is None or first == second


def length(pair: Candidate) -> bool:
    """Neither much shorter nor much longer."""
    before, after = (_length(text) + SLACK_WORDS for text in (pair.before.bare, pair.after.bare))
    return before / LONGEST_FACTOR <= after <= before * LONGEST_FACTOR


def answer_hidden(pair: Candidate) -> bool:
    """The gold answer, or any that is accepted, is not said where the original does not say it."""
    return all(_hidden(pair, answer) for answer in ([pair.answer] if isinstance(pair.answer, str) else pair.answer))


def _hidden(pair: Candidate, answer: str) -> bool:
    lettered = LETTERED.fullmatch(answer.strip())
    if lettered is not None:
        told = re.compile(rf"\b(?:answer|option|choice)\s*(?:is|:)?\s*\(?{lettered[1]}\b", re.IGNORECASE)
        if told.search(pair.after.bare) and not told.search(pair.before.bare):
            return False
    answer = answer if lettered is None else lettered[2] or ""
    values = facts(answer).numbers
    if values:
        return any(pair.after.numbers[value] <= pair.before.numbers[value] for value in values)
    words = answer.strip().casefold()
    return not words or not _says(pair.after.bare, words) or _says(pair.before.bare, words)


def numbers(pair: Candidate) -> bool:
    """The same numbers, as often."""
    return pair.before.numbers == pair.after.numbers


def units(pair: Candidate) -> bool:
    """The same units, each on the same number."""
    return pair.before.units == pair.after.units and pair.before.quantities == pair.after.quantities


def variables(pair: Candidate) -> bool:
    """The same variables."""
    return pair.before.variables == pair.after.variables


def labels(pair: Candidate) -> bool:
    """The same point labels, up to the orders that name the same thing."""
    return pair.before.labels == pair.after.labels


def wording(pair: Candidate) -> bool:
    """The same words of negation, quantity, comparison, direction, shape and kind; one mark at the end."""
    broken = BROKEN_END.search(pair.after.bare) and not BROKEN_END.search(pair.before.bare)
    return not broken and pair.before.concepts == pair.after.concepts


def relations(pair: Candidate) -> bool:
    """`AB = 6` gives AB no other value; what stands behind "than", "inscribed in" or "ratio of … to" stays there; the
    same is counted."""
    before, after = pair.before.bare, pair.after.bare
    first, second = _assigned(before), _assigned(after)
    if any(first[name] != second[name] for name in first.keys() & second.keys()):
        return False
    for pattern in (THAN, CONTAINER, RATIO, COUNTED):
        one, other = (_kinds(pattern, text) for text in (before, after))
        if one and other and one != other:
            return False
    return True


def asked(pair: Candidate) -> bool:
    """The same quantity is asked for."""
    before, after = _asked(pair.before.bare), _asked(pair.after.bare)
    if before is None or after is None:
        return True
    if before[0] != after[0]:
        return False
    names, others = before[1], after[1]
    if names and others:
        return names <= others or others <= names
    return names == others or bool(before[0])  # "its area" for "the area of ABC"


def fresh(pair: Candidate) -> bool:
    """Not nearly the original, nor nearly an accepted rewrite."""
    pairs = _word_pairs(pair.text)
    return not any(_overlap(pairs, _word_pairs(other)) >= NEAREST for other in (pair.original, *pair.accepted))


Filter = Callable[[Candidate], bool]

FILTERS: tuple[tuple[str, Filter], ...] = (
    ("placeholders", placeholders),
    ("options", options),
    ("language", language),
    ("length", length),
    ("answer revealed", answer_hidden),
    ("numbers", numbers),
    ("units", units),
    ("variables", variables),
    ("labels", labels),
    ("relations", relations),
    ("wording", wording),
    ("asked quantity", asked),
    ("near-duplicate", fresh),
)
"""Name and test, in the order in which they are asked; the first that fails names the rejection."""


def rejected_by(pair: Candidate) -> str | None:
    """Name of the first filter that rejects, or None."""
    return next((name for name, passes in FILTERS if not passes(pair)), None)


def sift(original: str, texts: Sequence[str], answer: str | tuple[str, ...]) -> tuple[list[str], list[tuple[str, str]]]:
    """The accepted rewrites, and the rejected ones with the name of the filter."""
    accepted: list[str] = []
    rejected: list[tuple[str, str]] = []
    for text in texts:
        reason = rejected_by(Candidate(original, text, answer, tuple(accepted)))
        if reason is None:
            accepted.append(text)
        else:
            rejected.append((text, reason))
    return accepted, rejected


def _script(text: str) -> str:
    if len(CJK.findall(text)) * 3 > sum(character.isalpha() for character in text):
        return "CJK"
    counts = Counter(
        unicodedata.name(character, "?").split()[0]
        for character in text
        if character.isalpha() and ord(character) > 127
    )
    latin = sum(character.isascii() and character.isalpha() for character in text)
    if counts and counts.most_common(1)[0][1] > latin:
        return counts.most_common(1)[0][0]
    return "LATIN"


def _tongue(text: str) -> str | None:
    """The language with most stop words, if it has two more than any other."""
    words = set(re.findall(r"[^\W\d_]+", text.lower()))
    scores = sorted(((len(words.intersection(known)), name) for name, known in STOP_WORDS.items()), reverse=True)
    return scores[0][1] if scores[0][0] >= scores[1][0] + 2 else None


def _length(text: str) -> float:
    return len(text.split()) + len(CJK.findall(text)) / 2


def _says(text: str, words: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(words)}(?!\w)", text.casefold()) is not None


def _assigned(text: str) -> dict[str, set[str]]:
    """Values by name, wherever the text says `name = value`; the letters of a name in any order."""
    values: dict[str, set[str]] = {}
    for name, value in re.findall(r"([A-Za-z]{1,6}|angle\s*[A-Z0-9]{1,4})\s*=\s*(-?\d[\d.,/]*\d|\d)", text):
        values.setdefault("".join(sorted(name.split()[-1])), set()).add(value)
    return values


def _kinds(pattern: re.Pattern[str], text: str) -> set[str]:
    """The last word of each find, in the singular, under the name of its group."""
    found = set()
    for phrase in pattern.findall(text):
        word = phrase.lower().split()[-1]
        if word in VERBS:
            continue
        single = word[:-1] if word.endswith("s") and not word.endswith("ss") else word
        found.add("object" if single in ANY_OBJECT else GROUP_OF_WORD.get(word, single))
    return found


def _asked(text: str) -> tuple[frozenset[str], frozenset[str]] | None:
    """(quantities, labels and variables) of what the last asking clause asks for; None without such a clause."""
    starts = list(ASK.finditer(text))
    if not starts:
        return None
    clause = text[starts[-1].end() :]
    end = ASIDE.search(clause)
    heard = facts(clause if end is None else clause[: end.start()])
    return heard.concepts & QUANTITIES, heard.labels | heard.variables


def _word_pairs(text: str) -> Counter[tuple[str, str]]:
    words = ["", *TOKEN.findall(text.replace(PLACEHOLDER, " ").casefold())]
    words = [word for word in words if word == "" or word[0].isalnum() or not word.isascii() or word in "+-=/<>"]
    return Counter(zip(words, [*words[1:], ""], strict=True))


def _overlap(first: Counter[tuple[str, str]], second: Counter[tuple[str, str]]) -> float:
    return 2 * (first & second).total() / max(1, first.total() + second.total())
