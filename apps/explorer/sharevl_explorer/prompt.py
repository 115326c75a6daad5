"""The prompt as it was sent: the turns that a run's recipe made of a question.

The store keeps the question, the recipe in the run's folder `data.prompt_template` and `data.system_prompt`, with which
alone a run goes on. The model's chat template is not kept: it puts its marks around the turns, and in some models a
system turn of its own where the recipe has none. That is said, not guessed.
"""

from __future__ import annotations

from pathlib import Path
from string import Formatter
from typing import NamedTuple

from yaml import YAMLError

from sharevl_explorer.markup import Html, el
from sharevl_explorer.recipe_file import FILE, recipe_of

_IMAGE, _SHOWN_IMAGE = "<image>", "▣"
_MARKS = "The model's chat template, which the run does not keep, puts its marks around the turns"


class Turn(NamedTuple):
    """What one side says in a chat."""

    role: str
    text: str


def prompt_as_sent(run: Path, question: str) -> Html:
    """A fold with the turns that were sent for a question of the run, or with why they are not known."""
    try:
        turns = _turns(run, question)
    except (KeyError, OSError, TypeError, ValueError, YAMLError) as error:
        told = str(error) if type(error) is ValueError else f"{FILE} cannot be used ({type(error).__name__}: {error})"
        shown = [el("p.note", f"not known: {told[:300]}")]
    else:
        shown = [el("div", el("h4", turn.role), el("bdi.words.code", _shown(turn.text), dir="auto")) for turn in turns]
        own = (
            "" if turns[0].role == "system" else ". The recipe has no system turn; some models' templates add their own"
        )
        image = f"{_SHOWN_IMAGE} is an image. " if _IMAGE in turns[-1].text else ""
        shown.append(el("p.quiet", f"{image}{_MARKS}{own}."))
    return el("details.prompt", el("summary", "prompt as sent"), shown)


def _turns(run: Path, question: str) -> list[Turn]:
    """The turns before the response. Raises ValueError with the reason where the recipe does not tell them."""
    recipe = recipe_of(run)
    if recipe is None:
        raise ValueError(f"the folder holds no {FILE}, which has the template")
    template, system = recipe["data"]["prompt_template"], recipe["data"]["system_prompt"]
    try:
        fields = [part for part in Formatter().parse(template) if part[1] is not None]
    except ValueError as error:
        raise ValueError(f"data.prompt_template of {FILE} does not format: {error}") from error
    if [part[1:] for part in fields] != [("problem", "", None)]:  # the file may be anyone's
        raise ValueError(f"data.prompt_template of {FILE} does not hold {{problem}} once and nothing else")
    return [*([] if system is None else [Turn("system", str(system))]), Turn("user", template.format(problem=question))]


def _shown(said: str) -> str:
    return said.replace(_IMAGE, _SHOWN_IMAGE)
