"""The prompt as it was sent: a question in the chat text of its run, or the turns that the run's recipe made of it.

Training and evaluation keep in `prompt.json` what stands before and after every question in the chat text, and in place
of an image: the model's own chat template with the recipe's prompt in it. Older programs did not keep it. For what they
left, the recipe has `data.prompt_template` and `data.system_prompt`, which make the turns; the template's marks around
them, and in some models a system turn of its own, are not known. That is said, not guessed.
"""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from string import Formatter
from typing import NamedTuple

from yaml import YAMLError

from sharevl_explorer.markup import Html, el
from sharevl_explorer.recipe_file import recipe_of
from sharevl_lite.run_files import PROMPT_FILE, RECIPE_FILE

_IMAGE, _SHOWN_IMAGE = "<image>", "▣"
_MARKS = "The model's chat template, which the run does not keep, puts its marks around the turns"


class Frame(NamedTuple):
    """Chat text without the question; `image` stands in place of an ``<image>``."""

    start: str
    image: str
    end: str


class Turn(NamedTuple):
    """What one side says in a chat."""

    role: str
    text: str


def prompt_as_sent(run: Path, question: str) -> Html:
    """A fold with the chat text of a question of the run, its turns where no more is known, or why they are not."""
    try:
        frame = _frame_of(run)
        shown = _turns_shown(_turns(run, question)) if frame is None else _text_shown(frame, question)
    except (KeyError, OSError, TypeError, ValueError, YAMLError) as error:
        told = str(error)
        if type(error) is not ValueError:
            told = f"{RECIPE_FILE} cannot be used ({type(error).__name__}: {error})"
        shown = [el("p.note", f"not known: {told[:300]}")]
    return el("details.prompt", el("summary", "prompt as sent"), shown)


def _text_shown(frame: Frame, question: str) -> list[Html]:
    text = frame.start + question.replace(_IMAGE, frame.image) + frame.end
    image = f"{frame.image} is where an image goes. " if _IMAGE in question else ""
    return [
        el("bdi.words.code", text, dir="auto"),
        el("p.quiet", f"{image}All that the model was given before its response, in its own chat template."),
    ]


def _turns_shown(turns: list[Turn]) -> list[Html]:
    shown = [el("div", el("h3", turn.role), el("bdi.words.code", _shown(turn.text), dir="auto")) for turn in turns]
    own = "" if turns[0].role == "system" else ". The recipe has no system turn; some models' templates add their own"
    image = f"{_SHOWN_IMAGE} is an image. " if _IMAGE in turns[-1].text else ""
    return [*shown, el("p.quiet", f"{image}{_MARKS}{own}.")]


def _frame_of(run: Path) -> Frame | None:
    """What the run keeps; None where it keeps nothing. Raises ValueError where that cannot be used."""
    path = run / PROMPT_FILE
    return _read(str(path), path.stat().st_mtime_ns) if path.is_file() else None


@lru_cache(maxsize=4)
def _read(path: str, written: int) -> Frame:
    """The file as it was written at that time: one that was replaced is read again."""
    try:
        kept = json.loads(Path(path).read_text(encoding="utf-8"))
        frame = Frame(**{name: kept[name] for name in Frame._fields})
    except (KeyError, OSError, TypeError, ValueError) as error:  # the file may be anyone's
        raise ValueError(f"{PROMPT_FILE} cannot be used ({type(error).__name__}: {error})") from error
    if not all(isinstance(part, str) for part in frame):
        raise ValueError(f"{PROMPT_FILE} cannot be used: {', '.join(Frame._fields)} are not texts")
    return frame


def _turns(run: Path, question: str) -> list[Turn]:
    """The turns before the response. Raises ValueError with the reason where the recipe does not tell them."""
    recipe = recipe_of(run)
    if recipe is None:
        raise ValueError(f"the folder holds no {RECIPE_FILE}, which has the template")
    template, system = recipe["data"]["prompt_template"], recipe["data"]["system_prompt"]
    try:
        fields = [part for part in Formatter().parse(template) if part[1] is not None]
    except ValueError as error:
        raise ValueError(f"data.prompt_template of {RECIPE_FILE} does not format: {error}") from error
    if [part[1:] for part in fields] != [("problem", "", None)]:  # the file may be anyone's
        raise ValueError(f"data.prompt_template of {RECIPE_FILE} does not hold {{problem}} once and nothing else")
    return [*([] if system is None else [Turn("system", str(system))]), Turn("user", template.format(problem=question))]


def _shown(said: str) -> str:
    return said.replace(_IMAGE, _SHOWN_IMAGE)
