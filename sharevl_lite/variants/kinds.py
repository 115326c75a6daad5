"""Asking a problem once in every kind of way, so that what each kind costs can be told apart.

A kind is what was done to the problem: `plain` (nothing), `reworded` (an offline rewrite), or the family of an image
transform by the first word of its name (`rotate`, `noise`, `mirror`, ...), with the problem's own words. Training draws
variants instead (:func:`expand_problem`), words and images at once; such a variant is `reworded+rotate`, and one in
which nothing was changed is `unchanged`.
"""

from __future__ import annotations

from typing import get_args

from sharevl_lite.config import ShareSection, TransformName
from sharevl_lite.data.problem import Problem, Variant
from sharevl_lite.variants.expand import announce, as_asked, draw_by
from sharevl_lite.variants.guard import allowed_kinds
from sharevl_lite.variants.transforms import TRANSFORMS

PLAIN, REWORDED, UNCHANGED = "plain", "reworded", "unchanged"


def family_of(transform: str) -> str:
    """`rotate` of `rotate_90_cw`."""
    return transform.partition("_")[0]


FAMILIES: tuple[str, ...] = tuple(dict.fromkeys(family_of(name) for name in get_args(TransformName)))


def ask_each_kind(problem: Problem, share: ShareSection, *, seed: int) -> list[Variant]:
    """The plain problem, one rewrite of it, and one transform of each family that recipe and problem allow.

    `share.transforms.probability` does not matter here. A kind's index is the same for every problem, whichever other
    kinds it has: 0 plain, 1 reworded, then `FAMILIES` in order. The same for the same arguments in every process.
    """
    asked = [Variant(0, problem.text, problem.images)]
    rewrites = [text for text in problem.variants if text != problem.text]
    if rewrites:
        chosen = int(draw_by(seed, problem.id, REWORDED).integers(len(rewrites)))
        asked.append(Variant(1, rewrites[chosen], problem.images))
    kinds = allowed_kinds(problem, share.transforms) if problem.images and share.transforms.kinds else []
    for place, family in enumerate(FAMILIES, start=2):
        members = [kind for kind in kinds if family_of(kind) == family]
        if members:
            rng = draw_by(seed, problem.id, family)
            transform = TRANSFORMS[members[int(rng.integers(len(members)))]]
            asked.append(as_asked(place, problem.text, problem, transform, rng))
    return asked


def kind_of(variant: Variant, problem: Problem) -> str:
    """What was done to the problem in this variant."""
    if variant.transform is None:
        unchanged = UNCHANGED if variant.index else PLAIN
        return unchanged if variant.text == problem.text else REWORDED
    family = family_of(variant.transform)
    sentence = TRANSFORMS[variant.transform].sentence(len(problem.images))
    return family if variant.text == announce(sentence, problem.text) else f"{REWORDED}+{family}"
