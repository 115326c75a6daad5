"""The problems of a run: read before anything heavy is loaded, held to the prompt length once there is a tokenizer."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass

from rich.console import Console

from sharevl_lite.config import Recipe
from sharevl_lite.data import LoadedProblems, Problem, load_problems
from sharevl_lite.data.errors import RowFault
from sharevl_lite.policy.prompts import PromptEncoder


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


def fit_prompts(recipe: Recipe, loaded: LoadedProblems, encoder: PromptEncoder, console: Console) -> list[Problem]:
    """The problems whose prompts, rewrites included, fit `data.max_prompt_length`. Says how many rows were skipped."""
    section = recipe.data

    def fits(problem: Problem) -> None:
        sizes = problem.image_sizes
        length = max(encoder.count_tokens(text, sizes) for text in (problem.text, *problem.variants))
        if length > section.max_prompt_length:
            raise RowFault(
                f"its prompt has {length} tokens, above data.max_prompt_length ({section.max_prompt_length}); raise "
                "that, or lower model.max_pixels"
            )

    source = loaded.places[0].source
    checked = loaded.recheck(fits, section.on_bad_row)
    if checked.skipped:
        console.print(
            f"{source}: skipped {len(checked.skipped)} bad rows and kept {len(checked.problems)}; the first: "
            f"{checked.skipped[0]}",
            highlight=False,
            soft_wrap=True,
        )
    return checked.problems


def fingerprint(problems: Iterable[Problem]) -> str:
    """A digest of ids, texts, rewrites, answers and image sizes, to notice that data changed before a resume."""
    digest = hashlib.sha256()
    for problem in problems:
        record = [problem.id, problem.text, problem.answer, *problem.variants, *map(list, problem.image_sizes)]
        digest.update(json.dumps(record).encode())
    return digest.hexdigest()
