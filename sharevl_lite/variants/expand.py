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
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal, NamedTuple

import numpy as np

from sharevl_lite.config import ShareSection, TransformSection
from sharevl_lite.data.problem import Problem, Variant, split_placeholders
from sharevl_lite.variants.guard import allowed_kinds, holds_back, kinds_by_text
from sharevl_lite.variants.transforms import TRANSFORMS, GaussianNoise, Transform

STEEPNESS = 10.0
MANY_REPEATS = 0.25
"""From this share of repeated variants on it is said."""

Difficulty = Literal["plainer", "usual", "harder"]
"""How a problem is asked, by how often it was solved (`share.difficulty`)."""
MILD: frozenset[str] = frozenset(
    {"noise_10", "noise_25", "tilt_5_cw", "tilt_5_ccw", "jpeg_50"}
    | {f"{tone}_{percent}" for tone in ("brightness", "contrast") for percent in (70, 130)}
)
"""Transforms that make a problem hardly harder."""


def expand_problem(
    problem: Problem,
    share: ShareSection,
    *,
    seed: int,
    visit: int = 0,
    difficulty: Difficulty = "usual",
    progress: float = 0.0,
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
        progress: Share of the run that is done, for noise that fades.

    Returns:
        Variants with indices 0 .. m-1, the same for the same arguments in every process.
    """
    if difficulty == "plainer":
        return [Variant(index=k, text=problem.text, images=problem.images) for k in range(share.num_variants)]
    rng = draw_by(seed, problem.id, visit)
    usual = difficulty == "usual"
    kept = [problem.text] if usual and share.original == "kept" else []
    pool = _pool(problem, with_original=usual and share.original == "sampled")
    section = share.transforms if usual else _harder(problem, share)
    drawn = _draw_texts(pool, share.num_variants - len(kept), rng)
    draws = [NO_DRAW] * len(kept) + [_draw_transform(problem, section, rng, progress) for _ in drawn]
    guarded = any(draw.due for draw in draws) and holds_back(problem, share.transforms)
    # Noise is drawn last: which texts and transforms are drawn does not depend on the size of an image.
    return [
        replace(as_asked(index, text, problem, draw.transform, rng), guarded=draw.due and guarded)
        for index, (text, draw) in enumerate(zip(kept + drawn, draws, strict=True))
    ]


def words_on_repeats(problems: Sequence[Problem], share: ShareSection) -> str | None:
    """What to know of data whose variants will often repeat the question as it is; None where they seldom do.

    Without rewrites a variant differs only where a transform is drawn: the same prompt is asked and scored m times.
    """
    bare = [problem for problem in problems if not any(text != problem.text for text in problem.variants)]
    if share.num_variants == 1 or not bare:
        return None
    section = share.transforms
    drawn = sum(section.probability for problem in bare if problem.images and kinds_by_text(problem, section))
    repeats = (len(bare) - drawn) / len(problems)
    if repeats < MANY_REPEATS:
        return None
    return (
        f"{len(bare):,} of {len(problems):,} problems have no rewrites: about {repeats:.0%} of all variants beyond the "
        "first will repeat the question as it is; sharevl-lite variants makes rewrites"
    )


def _harder(problem: Problem, share: ShareSection) -> TransformSection:
    """The transforms of a solved problem: more often, and none that are mild unless it allows no others."""
    section = share.transforms
    probability = min(1.0, section.probability * share.difficulty.transform_factor)
    strong = [kind for kind in allowed_kinds(problem, section) if kind not in MILD]
    return section.model_copy(update={"probability": probability, "kinds": strong or section.kinds})


def draw_by(seed: int, problem_id: str, visit: int | str) -> np.random.Generator:
    """Random numbers of one problem and occasion, the same in every process."""
    digest = hashlib.sha256(f"{seed}/{visit}/{problem_id}".encode()).digest()
    return np.random.default_rng(int.from_bytes(digest, "big"))


def _pool(problem: Problem, *, with_original: bool) -> tuple[str, ...]:
    """Texts to draw from; the original stands in where there are no rewrites."""
    if with_original or not problem.variants:
        return (problem.text, *problem.variants)
    return problem.variants


def _draw_texts(pool: tuple[str, ...], count: int, rng: np.random.Generator) -> list[str]:
    """Texts of the drawn variants: without replacement while the pool lasts, then with."""
    order = rng.permutation(len(pool))[:count]
    again = rng.integers(len(pool), size=count - len(order))
    return [pool[index] for index in (*order, *again)]


class _Draw(NamedTuple):
    """Whether a transform was to be drawn, and which; None where the problem bears none."""

    due: bool
    transform: Transform | None


NO_DRAW = _Draw(False, None)


def _draw_transform(problem: Problem, section: TransformSection, rng: np.random.Generator, progress: float) -> _Draw:
    """A transform with the section's probability."""
    if not problem.images or not section.kinds or rng.random() >= section.probability:
        return NO_DRAW
    kinds = allowed_kinds(problem, section)  # looks at the images: only where something is drawn
    if not kinds:
        return _Draw(True, None)
    transform: Transform = TRANSFORMS[kinds[rng.integers(len(kinds))]]
    if isinstance(transform, GaussianNoise):
        return _Draw(True, transform.weaker(noise_strength(section.noise_decay, progress)))
    return _Draw(True, transform)


def noise_strength(decay: str, progress: float) -> float:
    """Share of the noise's deviation that is left at this share of the run (0 to 1), after NoisyRollout's idea.

    `sigmoid` falls from 1 to 0 with its steepest part in the middle, scaled so that it begins at 1 and ends at 0.
    """
    if decay == "none":
        return 1.0
    if decay == "linear":
        return 1.0 - progress
    first, now, last = (1.0 / (1.0 + math.exp(STEEPNESS * (at - 0.5))) for at in (0.0, progress, 1.0))
    return (now - last) / (first - last)


def as_asked(index: int, text: str, problem: Problem, transform: Transform | None, rng: np.random.Generator) -> Variant:
    """The problem asked with this text, its images changed by `transform`, which is announced before the question."""
    if transform is None:
        return Variant(index=index, text=text, images=problem.images)
    return Variant(
        index=index,
        text=announce(transform.sentence(len(problem.images)), text),
        images=tuple(transform.apply(image, rng) for image in problem.images),
        transform=transform.name,
    )


def announce(sentence: str, text: str) -> str:
    """Put the sentence before the question: after the placeholders that the text starts with, if it does."""
    leading, question = split_placeholders(text)
    return f"{leading}{sentence} {question}" if question else f"{leading}{sentence}"
