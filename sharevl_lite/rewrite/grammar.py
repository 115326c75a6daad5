"""Whether what follows "Which X is" or "How many X are" says something of X, or is itself the subject.

"Which side is parallel to AB?" asks after the side that is parallel to AB; "Which side is AB parallel to?" has the same
verb before its subject, and no rewrite that keeps the order is English. Only beginnings that no subject has are known
here; of all others nothing is said.
"""

from __future__ import annotations

import re

MORE = re.compile(r"\b(?:more|fewer|less)\b")
ADVERB = re.compile(r" (?:[a-z]+ly|also|still|now|best|most|never|not|only|always|here|there)$")
"""Second word of a thing that is none: "which letter best represents"."""

_COMPARED = (
    "taller|shorter|longer|larger|smaller|bigger|greater|higher|lower|heavier|lighter|older|younger|wider|narrower"
    "|thicker|thinner|closer|nearer|farther|further|faster|slower|steeper|flatter|warmer|colder|hotter|cooler|better"
    "|worse|earlier|later|deeper|brighter|darker|stronger|weaker|cheaper|harder|softer|denser"
)
_NO_COUNT = re.compile(
    r"\b(?:do|does|did|can|could|will|would|should|must|may|is|was|were|has|have|are|that|which|who|whose|times|as|many"
    rf"|much|you|we|they|percent|{_COMPARED})\b|\b(?:more|fewer|less)$"
)
_MEASURE = re.compile(
    r"\b(?:hours|days|weeks|months|years|minutes|seconds|feet|inches|yards|miles|degrees|dollars|cents|units|points"
    r"|pounds|ounces|grams|kilograms|met(?:er|re)s|centimet(?:er|re)s|kilomet(?:er|re)s|lit(?:er|re)s|km|cm|mm|kg|ft|m|g)$"
)
_ATTRIBUTE = re.compile(
    r"\b(?:colou?r|shape|size|material|way|direction|side|day|month|year|time|season|hand|type|kind|sort|class|group"
    r"|category|family|kingdom|phylum|order|level|state|phase|form|style|brand)$"
)
"""What a question may ask of a subject that follows: "Which color is the largest of the balls?"."""
_KIND = re.compile(
    r"\b(?:organism|animal|plant|figure|function|triangle|quadrilateral|polygon|graph|line|angle|object|planet|number"
    r"|statement|word|sentence|picture|image|diagram)$"
)
"""Things of which "is a …" says what they are."""
_END = r"(?=$|,| (?:to|in|on|of|by|at|for|from|with|than|as|among|between|about|if|when|or|and|during|after|before)\b)"
_HIGHEST = (
    r"(?!(?:for|t|n|gu|r|ch|v|p|inter|requ|harv|w|cont|prot|cr|qu|arr)est\b)"
    r"(?:[a-z]+est|worst|most [a-z]+|least [a-z]+)"
)
_STATES = (
    "parallel|perpendicular|congruent|similar|equal|adjacent|opposite|next|north|south|east|west|northeast|northwest"
    "|southeast|southwest|true|false|correct|incorrect|isosceles|equilateral|scalene|acute|obtuse|regular|missing|empty"
    "|full|open|closed|likely|unlikely|different|impossible|possible|monotonic|linear|nonlinear|constant|continuous"
    "|even|odd|prime|positive|negative|visible|responsible|available|common|first|last|left|red|blue|green|yellow"
    "|purple|cyan|black|white|orange|pink|gr[ae]y|brown"
)
_PLACES = (
    "in|on|at|to the|left of|right of|above|below|behind|between|inside|outside|under|near|next to|after|before|across"
    "|from|within|over|around|against|opposite"
)
_DONE = (
    r"(?!(?:b|s|sh|sl|spe|we|fe|ne|bre|re|ste|de)ed\b)[a-z]{2,}ed|shown|drawn|eaten|known|seen|found|held|worn|made"
    r"|taken|given|written|driven|chosen|broken|hidden|won|lost|built|cut|left"
)
_HAVING_DONE = re.compile(
    r" (?:[a-z]+ed|eaten|taken|given|written|driven|chosen|broken|fallen|spoken|seen|been|beaten|hidden|ridden|stolen"
    r"|worn|torn|drawn|grown|known|shown|thrown|flown|won|lost|made|sold|bought|met|held|kept|read|run|led|built|sent"
    r"|spent|found|gone|done|come|become|put|set|hit|cut|had|got|left|sung|begun|drunk)$"
)
_LEFT_HANGING = re.compile(r" (?:of|for|to|from|at|by|with|on|in|about|into|like|off|up|out)$")
_ANOTHER_QUESTION = re.compile(r"\b(?:how|what|why|whether)\b|, (?:and|but|if)\b")
_IS = re.compile(
    rf"(?:not |also |[a-z]+ly )*(?:(?:the )?{_HIGHEST}{_END}|the same\b|(?:more|less) (?:[a-z]+ )?than\b"
    rf"|(?:more|less) [a-z]+{_END}|(?:{_COMPARED}){_END}|[a-z]+er than\b|(?:{_PLACES})\b|(?:{_STATES}){_END}"
    rf"|(?:{_DONE}){_END}|(?:labell?ed|marked) [A-Z\d]|being [a-z]+)"
)
_DOING = re.compile(
    rf"(?:not )?(?!(?:k|r|w|str|spr|th|even|morn|ceil|build)ing\b)[a-z]+ing(?:{_END}|(?= (?:an?|the|his|her)\b))"
)
_A_KIND = re.compile(r"(?:not )?an? [a-z-]+(?: [a-z-]+)?")
_HAD = (
    rf"(?:the {_HIGHEST}|the (?:most|least|same)|an?|no|more|fewer|less|at least|at most|exactly|only|two|three|four"
    r"|five|six|\d+)\b"
)
_HAS, _HAVE = re.compile(rf"{_HAD}|[a-z]+s$"), re.compile(rf"{_HAD}|been\b")
_SUBJECT = re.compile(
    r"(?:the (?!same\b)|(?:an?|this|these|those|they|he|she|it|we|you|there|his|her|its|their|our|my|your|each|every)\b"
    r"|[A-Z\d$\\]|(?:[a-z]+s|people|men|women|children) [a-z]+ing\b)"
)


def is_countable(things: str) -> bool:
    """Whether what stands behind "how many" is a noun that is counted, with no verb and no comparison in it."""
    return _NO_COUNT.search(things) is None


def is_measure(things: str) -> bool:
    """Whether the noun is a unit, which measures more often than it is counted."""
    return _MEASURE.search(things) is not None


def may_follow(verb: str, kind: str, things: str) -> bool:
    """Whether `things verb kind` is a clause with `things` as its subject, beyond doubt.

    Args:
        verb: `is`, `are`, `has` or `have`; others, which ask with "do" after an object, are taken.
        kind: What follows it, up to the question mark.
        things: The noun behind "which" or "how many".
    """
    if _ANOTHER_QUESTION.search(kind):
        return False
    if verb not in {"is", "are", "has", "have"}:
        return True
    if _LEFT_HANGING.search(kind):
        return False
    if verb in {"has", "have"}:
        shape = _HAS if verb == "has" else _HAVE
        return shape.match(kind) is not None and (kind.startswith("been ") or not _HAVING_DONE.search(kind))
    if verb == "are":
        return _IS.match(kind) is not None or not (is_measure(things) or _SUBJECT.match(kind))
    return _is(kind, things)


def _is(kind: str, things: str) -> bool:
    if _ATTRIBUTE.search(things):
        return _IS.match(kind) is not None and (not kind.startswith("the ") or kind.startswith("the same "))
    if re.search(r"\b(?:following|these)\b", things) and re.match(r"(?:an?|the) ", kind):
        return True
    return bool(_IS.match(kind) or _DOING.match(kind) or (_KIND.search(things) and _A_KIND.fullmatch(kind)))
