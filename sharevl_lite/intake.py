"""The problems of a run: read before anything heavy is loaded, held to the prompt length once there is a tokenizer."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from rich.console import Console

from sharevl_lite.config import Recipe
from sharevl_lite.data import LoadedProblems, Problem, load_problems
from sharevl_lite.data.errors import RowFault
from sharevl_lite.policy.prompts import PromptRenderer
from sharevl_lite.variants.expand import announce
from sharevl_lite.variants.transforms import TRANSFORMS


@dataclass(frozen=True)
class Intake:
    """The two sources of a recipe as read; `held_out` is None without `data.eval`."""

    train: LoadedProblems
    held_out: LoadedProblems | None


def read_sources(recipe: Recipe) -> Intake:
    """Reads and checks the rows of both sources. Raises DataError where a source or a row is bad."""
    data = recipe.data
    train = load_problems(data.train, data, split=data.train_split, limit=data.train_limit)
    if data.eval is None:
        return Intake(train, None)
    return Intake(train, load_problems(data.eval, data, split=data.eval_split, limit=recipe.eval.problems))


def fit_prompts(
    recipe: Recipe,
    loaded: LoadedProblems,
    encoder: PromptRenderer,
    console: Console,
    *,
    kinds: Sequence[str] | None = None,
) -> list[Problem]:
    """The problems whose prompts fit `data.max_prompt_length`, rewritten and with transforms of these kinds as well.

    `kinds` are those that training draws, by default. Says how many rows were skipped.
    """
    section = recipe.data
    transforms = recipe.share.transforms
    if kinds is None:
        kinds = transforms.kinds if transforms.probability > 0.0 else ()

    def fits(problem: Problem) -> None:
        _check_special_tokens(problem, encoder)
        allowed = [kind for kind in kinds if problem.transforms is None or kind in problem.transforms]
        try:
            fault = _too_long(problem, encoder, allowed, section.max_prompt_length)
        except ValueError as error:  # sizes that the processor refuses
            sizes = ", ".join(f"{width} × {height}" for width, height in problem.image_sizes)
            raise RowFault(f"its images ({sizes} pixels) cannot be read by the model: {error}") from error
        if fault is not None:
            raise RowFault(fault)

    source = loaded.places[0].source
    told = words_on_options(loaded.problems)
    if told is not None:
        console.print(f"{source}: answer options {told}", highlight=False, markup=False, soft_wrap=True)
    checked = loaded.recheck(fits, section.on_bad_row)
    if checked.skipped:
        console.print(
            f"{source}: skipped {len(checked.skipped)} bad rows and kept {len(checked.problems)}; the first: "
            f"{checked.skipped[0]}",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )
    return checked.problems


def words_on_options(problems: Sequence[Problem]) -> str | None:
    """From which column the options in the problems' texts are; None where none was read."""
    columns = dict.fromkeys(problem.columns.choices for problem in problems if problem.columns.choices is not None)
    if not columns:
        return None
    return f"of column {', '.join(map(repr, columns))} stand below each question (data.columns.choices)"


def _check_special_tokens(problem: Problem, encoder: PromptRenderer) -> None:
    """Raises RowFault for text that a tokenizer would read as (part of) an image, or as the end of the question."""
    for text in (problem.text, *problem.variants):
        for token in encoder.control_tokens:
            if token in text:
                raise RowFault(
                    f"its text holds {token}, by which the model tells images and turns apart; write <image> for an "
                    "image, and spell it otherwise where it is spoken of"
                )


@dataclass(frozen=True)
class _Length:
    """Tokens of a prompt, how many of them are its images', and in words with which transform that is."""

    tokens: int
    images: int
    asked: str = ""

    def __str__(self) -> str:
        return f"{self.tokens} tokens{f' ({self.images} of them image tokens)' if self.images else ''}{self.asked}"


def _too_long(problem: Problem, encoder: PromptRenderer, kinds: Sequence[str], most: int) -> str | None:
    """What to know of a problem with a prompt above `most` tokens; None where all fit."""
    longest = _longest(problem, encoder, kinds, most)
    if longest.tokens <= most:
        return None
    above = f"above data.max_prompt_length ({most})"
    alone = [replace(problem, text=text, variants=()) for text in (problem.text, *problem.variants)]
    original, *rewrites = (_longest(one, encoder, kinds, most) for one in alone)
    if original.tokens <= most:
        index, length = next((index, length) for index, length in enumerate(rewrites) if length.tokens > most)
        return (
            f"its variant {index} (from 0) makes a prompt of {length}, {above}, and the original fits; leave that "
            "variant out, or raise the limit"
        )
    # Smaller images are no way out of a long text, nor worth it for the few tokens of small ones.
    images = longest.tokens - longest.images <= most and 2 * longest.images >= longest.tokens
    return f"its prompt has {longest}, {above}; raise that{', or lower model.max_pixels' if images else ''}"


def _longest(problem: Problem, encoder: PromptRenderer, kinds: Sequence[str], most: int) -> _Length:
    """The length of the problem's longest prompt.

    Tokens are counted only where bytes, and transforms only where their sentence and larger images, could exceed
    `most`; a length up to `most` may be a bound.
    """
    sizes, texts = problem.image_sizes, (problem.text, *problem.variants)
    bound = max(encoder.bound_tokens(text, sizes) for text in texts)
    images = encoder.count_image_tokens(sizes)
    changes = []
    for transform in (TRANSFORMS[kind] for kind in kinds if sizes):
        changed = [transform.resized(size) for size in sizes]
        sentence = transform.sentence(len(sizes))
        growth = encoder.count_image_tokens(changed) - images if changed != list(sizes) else 0
        changes.append((transform.name, sentence, changed, growth + len(f"{sentence} ".encode())))
    if bound + max([0, *(extra for *_, extra in changes)]) <= most:
        return _Length(bound, images)
    plain = encoder.longest(texts, sizes)
    longest = _Length(plain, images)
    doubtful = [change for change in changes if plain + change[-1] > most]
    asked = [announce(sentence, text) for _, sentence, *_ in doubtful for text in texts]
    counts = encoder.text_tokens(asked) if asked else []  # in one call: most of its time goes by once
    for place, (name, _, changed, _) in enumerate(doubtful):
        of_images = encoder.count_image_tokens(changed)
        own = counts[place * len(texts) : (place + 1) * len(texts)]
        length = max(own) - len(sizes) + of_images
        if length > longest.tokens:
            longest = _Length(length, of_images, f" when it is asked with {name}")
    return longest


def most_images(problems: Iterable[Problem]) -> int:
    """Images of the prompt that has most, at least one: what an engine makes room for."""
    return max([1, *(len(problem.images) for problem in problems)])
