"""The problems of a run: read before anything heavy is loaded, held to the prompt length once there is a tokenizer."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

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
            length, asked = _longest(problem, encoder, allowed, section.max_prompt_length)
        except ValueError as error:  # sizes that the processor refuses
            sizes = ", ".join(f"{width} × {height}" for width, height in problem.image_sizes)
            raise RowFault(f"its images ({sizes} pixels) cannot be read by the model: {error}") from error
        if length > section.max_prompt_length:
            raise RowFault(
                f"its prompt has {length} tokens{asked}, above data.max_prompt_length ({section.max_prompt_length}); "
                "raise that, or lower model.max_pixels"
            )

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


def _longest(problem: Problem, encoder: PromptRenderer, kinds: Sequence[str], most: int) -> tuple[int, str]:
    """Tokens of the problem's longest prompt, and in words with which transform that is.

    Transforms are counted only where their sentence and larger images could exceed `most`.
    """
    sizes, texts = problem.image_sizes, (problem.text, *problem.variants)
    longest = plain = max(encoder.count_tokens(text, sizes) for text in texts)
    asked = ""
    if not sizes:
        return plain, asked
    images = encoder.count_image_tokens(sizes)
    for transform in (TRANSFORMS[kind] for kind in kinds):
        changed = [transform.resized(size) for size in sizes]
        sentence = transform.sentence(len(sizes))
        growth = encoder.count_image_tokens(changed) - images if changed != list(sizes) else 0
        if plain + growth + len(f"{sentence} ") <= most:  # no tokenizer makes more tokens than bytes
            continue
        length = max(encoder.count_tokens(announce(sentence, text), changed) for text in texts)
        if length > longest:
            longest, asked = length, f" when it is asked with {transform.name}"
    return longest, asked


def most_images(problems: Iterable[Problem]) -> int:
    """Images of the prompt that has most, at least one: what an engine makes room for."""
    return max([1, *(len(problem.images) for problem in problems)])
