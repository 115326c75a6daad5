"""Expanding a problem into its m variants: the first part of a Share-GRPO step (arXiv 2505.16673, section 3.2).

    Q = (images, text)  ->  Q_0 .. Q_{m-1};  Q_k = (T_k(images), sentence of T_k + text_k)

text_k is drawn from the offline rewrites, T_k is no transform with probability 1 - p.

Deviations from the public code of R1-ShareVL, each because meaning was lost there:

- The untouched original is variant 0 (`original: kept`); `sampled` draws it like the others, as there.
- Mirrors need a permission of the recipe or the row: they swap left and right and make writing unreadable.
- The sentence stands once, before the question; there it comes before every piece of text between images.
- Draws come from a stable hash of (seed, problem id, visit), so that they do not depend on the order of the data, on
  the number of workers, or on Python's own salted hash.
"""

from __future__ import annotations

import hashlib
import re
from typing import Literal

import numpy as np

from sharevl_lite.config import MIRRORS, ShareSection, TransformName, TransformSection
from sharevl_lite.data.problem import PLACEHOLDER, Problem, Variant

from .transforms import TRANSFORMS, Transform

Difficulty = Literal["plainer", "usual", "harder"]
"""How a problem is asked, by how often it was solved (`share.difficulty`)."""
MILD: frozenset[str] = frozenset({"noise_10", "noise_25"})
"""Transforms that make a problem hardly harder."""
LEADING_PLACEHOLDERS = re.compile(rf"\s*(?:{re.escape(PLACEHOLDER)}\s*)+")


def expand_problem(
    problem: Problem, share: ShareSection, *, seed: int, visit: int = 0, difficulty: Difficulty = "usual"
) -> list[Variant]:
    """Exactly m = `share.num_variants` ways of asking a problem.

    A variant may equal the original where neither a rewrite nor a transform was drawn; the paper keeps these too.

    Args:
        problem: The problem; without images it is never transformed.
        share: m, what becomes of the original, and the transforms.
        seed: Of the run.
        visit: How many times the problem was expanded before; another visit draws anew.
        difficulty: `plainer`: every variant is the original. `harder`: rewrites alone (where there are any), and more
            and stronger transforms.

    Returns:
        Variants with indices 0 .. m-1, the same for the same arguments in every process.
    """
    if difficulty == "plainer":
        return [Variant(index=k, text=problem.text, images=problem.images) for k in range(share.num_variants)]
    rng = _generator(seed, problem.id, visit)
    keeps = share.original == "kept" and difficulty == "usual"
    originals = [problem.text] if keeps else []
    pool = _pool(problem, with_original=share.original == "sampled" and difficulty == "usual")
    texts = originals + _draw_texts(pool, share.num_variants - len(originals), rng)
    section = share.transforms if difficulty == "usual" else _harder(problem, share)
    transforms: list[Transform | None] = [None for _ in originals]
    transforms += [_draw_transform(problem, section, rng) for _ in texts[len(originals) :]]
    # Noise is drawn last: which texts and transforms are drawn does not depend on the size of an image.
    return [
        _variant(index, text, problem, transform, rng)
        for index, (text, transform) in enumerate(zip(texts, transforms, strict=True))
    ]


def _harder(problem: Problem, share: ShareSection) -> TransformSection:
    """The transforms of a solved problem: more often, and none that are mild unless it allows no others."""
    section = share.transforms
    probability = min(1.0, section.probability * share.difficulty.transform_factor)
    strong = [kind for kind in _allowed_kinds(problem, section) if kind not in MILD]
    return section.model_copy(update={"probability": probability, "kinds": strong or section.kinds})


def _generator(seed: int, problem_id: str, visit: int) -> np.random.Generator:
    digest = hashlib.sha256(f"{seed}/{visit}/{problem_id}".encode()).digest()
    return np.random.default_rng(int.from_bytes(digest, "big"))


def _pool(problem: Problem, *, with_original: bool) -> tuple[str, ...]:
    """Texts to draw from; the original stands in where there are no rewrites."""
    return (problem.text, *problem.variants) if with_original else problem.variants or (problem.text,)


def _draw_texts(pool: tuple[str, ...], count: int, rng: np.random.Generator) -> list[str]:
    """Texts of the drawn variants: without replacement while the pool lasts, then with."""
    order = rng.permutation(len(pool))[:count]
    again = rng.integers(len(pool), size=count - len(order))
    return [pool[index] for index in (*order, *again)]


def _allowed_kinds(problem: Problem, section: TransformSection) -> list[TransformName]:
    mirrors_allowed = section.allow_mirrors or problem.allow_mirrors
    return [kind for kind in section.kinds if mirrors_allowed or kind not in MIRRORS]


def _draw_transform(problem: Problem, section: TransformSection, rng: np.random.Generator) -> Transform | None:
    kinds = _allowed_kinds(problem, section)
    if not problem.images or not kinds or rng.random() >= section.probability:
        return None
    return TRANSFORMS[kinds[rng.integers(len(kinds))]]


def _variant(index: int, text: str, problem: Problem, transform: Transform | None, rng: np.random.Generator) -> Variant:
    if transform is None:
        return Variant(index=index, text=text, images=problem.images)
    return Variant(
        index=index,
        text=_announce(transform.sentence(len(problem.images)), text),
        images=tuple(transform.apply(image, rng) for image in problem.images),
        transform=transform.name,
    )


def _announce(sentence: str, text: str) -> str:
    """Put the sentence before the question: after the placeholders that the text starts with, if it does."""
    leading = LEADING_PLACEHOLDERS.match(text)
    start = leading.end() if leading else 0
    question = text[start:]
    return f"{text[:start]}{sentence} {question}" if question else f"{text[:start]}{sentence}"
