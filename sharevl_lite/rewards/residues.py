r"""Residues: `5 \pmod 7`, `x \equiv 5 \pmod{7}`, `5 mod 7`. Both graders drop the modulus.

    a (mod m) is b (mod n)  where m = n and a - b is a multiple of m
    a (mod m) is b          where b is the residue a itself, 0 <= a < m

A gold answer with a modulus means all numbers of a class, which one number without a modulus does not name. A gold
number is often the remainder that was asked for; an answer that adds the modulus says it too. A stated residue must be
smaller than its modulus (up to the sign): `1234 \bmod 7` repeats the question, `1234 \bmod 7 = 2` answers it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from sharevl_lite.rewards.normalise import is_symbol, text_key, unwrap_text

_MODULUS = re.compile(
    r"(?P<residue>.+?)\s*(?:(?P<open>\()\s*)?(?:\\[bp]?mod(?![A-Za-z])|\bmod(?:ulo)?\b)\s*(?P<modulus>[^()]+)(?(open)\))"
)
_CONGRUENT = re.compile(r"\\equiv(?![A-Za-z])|(?<![<>!=:\\])=(?!=)")
_MENTIONS_MODULUS = re.compile(r"\\[bp]?mod(?![A-Za-z])|(?<![A-Za-z\\])mod(?:ulo)?(?![A-Za-z])")
_INTEGER = re.compile(r"[+-]?\s*\d{1,400}")


@dataclass(frozen=True)
class Residue:
    """An answer with a modulus, as keys of the exact rule."""

    name: str
    """What is congruent; empty where it is not said."""
    residue: str
    modulus: str


def parse_residue(answer: str) -> Residue | None:
    """Read a cleaned answer as one residue and its modulus; None when it is anything else."""
    found = _MODULUS.fullmatch(unwrap_text(answer).strip())
    if found is None or _MENTIONS_MODULUS.search(found["modulus"]):
        return None
    *names, residue = _CONGRUENT.split(found["residue"])
    modulus, *remainder = _CONGRUENT.split(found["modulus"])
    if remainder:  # of a division that is written out
        names, residue = [*names, *remainder[1:]], remainder[0]
    if len(names) > 1 or _MENTIONS_MODULUS.search(residue):
        return None
    name = names[0].strip() if names else ""
    return Residue(text_key(name), text_key(residue), text_key(modulus))


def mentions_modulus(answer: str) -> bool:
    """Whether a cleaned answer speaks of a modulus, in a form that can be read or not."""
    return _MENTIONS_MODULUS.search(unwrap_text(answer)) is not None


def residues_agree(prediction: Residue, gold: Residue) -> bool:
    """Whether both name the same class, of the same thing where both say of what. Different moduli never do."""
    if prediction.modulus != gold.modulus or not _same_thing(prediction.name, gold.name):
        return False
    if prediction.residue == gold.residue:
        return True
    stated, meant, modulus = map(_integer, (prediction.residue, gold.residue, gold.modulus))
    if stated is None or meant is None or not modulus:
        return False
    return abs(stated) < modulus and (stated - meant) % modulus == 0


def bare_residue(prediction: Residue) -> str | None:
    """The residue as a number without its modulus; None where it is not a remainder of a division by the modulus."""
    stated, modulus = _integer(prediction.residue), _integer(prediction.modulus)
    if stated is None or modulus is None or not 0 <= stated < modulus:
        return None
    return f"{prediction.name}={stated}" if prediction.name else str(stated)


def _same_thing(name: str, gold: str) -> bool:
    if name and gold:
        return name == gold
    return all(is_symbol(side) for side in (name, gold) if side)


def _integer(text: str) -> int | None:
    return int(text.replace(" ", "")) if _INTEGER.fullmatch(text) else None
