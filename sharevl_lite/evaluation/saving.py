"""Where an evaluation is saved: never over another one, and never into a run's own rollouts.

    <folder>/<name>.json        figures and the outcome of every problem
             <name>.md          the same for people
             <name>/            the responses, as a run has its own, and what stood around each question:
                            `sharevl-lite view <folder>/<name> --split eval`

The folder of a run's evaluations is `<run>/eval`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from sharevl_lite.atomic import write_atomically
from sharevl_lite.config import Recipe
from sharevl_lite.evaluation.document import Evaluation
from sharevl_lite.evaluation.errors import EvaluationError
from sharevl_lite.evaluation.report import as_markdown
from sharevl_lite.store import RolloutStore

EVAL_DIR = "eval"
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")


@dataclass(frozen=True)
class Place:
    """A name in a folder that no evaluation has yet."""

    folder: Path
    name: str

    @property
    def json(self) -> Path:
        """The document."""
        return self.folder / f"{self.name}.json"

    @property
    def markdown(self) -> Path:
        """The report."""
        return self.folder / f"{self.name}.md"

    @property
    def responses(self) -> Path:
        """The folder of the store of responses."""
        return self.folder / self.name

    def is_taken(self) -> bool:
        """Whether something of this name is there."""
        return any(path.exists() for path in (self.json, self.markdown, self.responses))

    def store(self) -> RolloutStore:
        """A store of its own for the responses."""
        return RolloutStore(self.responses)

    def save(self, evaluation: Evaluation) -> None:
        """Writes document and report; the document last, so that where it is the rest is whole."""
        write_atomically(self.markdown, as_markdown(evaluation).encode())
        evaluation.write(self.json)


def find_place(folder: Path, name: str | None, *, default: str) -> Place:
    """The place called `name`, or the first free one of `default` and `default-2`, ... Makes the folder.

    Raises EvaluationError where `name` is taken or is no name, or the folder cannot be written.
    """
    if name is not None and not _NAME.fullmatch(name):
        raise EvaluationError(f"--name {name}: use letters, digits, `.`, `_` and `-`")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise EvaluationError(
            f"{folder}: cannot be made ({error.strerror}); choose another folder with --out"
        ) from error
    if name is not None:
        place = Place(folder, name)
        if place.is_taken():
            raise EvaluationError(f"{place.json}: there already; choose another --name")
        return place
    names = [default, *(f"{default}-{number}" for number in range(2, 10_000))]
    return next(place for place in (Place(folder, name) for name in names) if not place.is_taken())


def default_name(recipe: Recipe, checkpoint: str | None) -> str:
    """Such as `adapter-digits-test-4x`."""
    data = Path(str(recipe.data.eval)).stem.removeprefix("builtin:")
    parts = (checkpoint or "base", data, recipe.data.eval_split, f"{recipe.eval.samples}x")
    return "-".join(re.sub(r"[^A-Za-z0-9._]+", "-", part).strip("-.") for part in parts)
