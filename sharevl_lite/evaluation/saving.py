"""Where an evaluation is saved: never over another one, and never into a run's own rollouts.

    <folder>/<name>.json        figures and the outcome of every problem
             <name>.md          the same for people
             <name>/            the responses, as a run has its own, and what stood around each question:
                            `sharevl-lite view <folder>/<name> --split eval`

The folder of a run's evaluations is `<run>/eval`. A name belongs to the evaluation that makes `<name>/`, and that holds
its lock as long as it runs: two that start together get two names.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sharevl_lite.atomic import locked, write_atomically
from sharevl_lite.config import Recipe
from sharevl_lite.data.sources import has_splits
from sharevl_lite.evaluation.document import Evaluation
from sharevl_lite.evaluation.errors import EvaluationError
from sharevl_lite.evaluation.report import as_markdown
from sharevl_lite.store import RolloutStore

EVAL_DIR = "eval"
SCRAPS = ("images", "prompt.json", "tokenizer.json")
"""What says nothing without responses."""
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")


@dataclass(frozen=True)
class Place:
    """A name in a folder, for one evaluation."""

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

    def store(self) -> RolloutStore:
        """A store of its own for the responses."""
        return RolloutStore(self.responses)

    def remove_scraps(self) -> None:
        """Takes away what an evaluation that did not finish has left, except responses and the harness's files."""
        if self.json.exists() or not self.responses.is_dir():
            return
        self.markdown.unlink(missing_ok=True)
        kept = (entry for entry in self.responses.iterdir() if entry.name not in SCRAPS)
        if not any(entry.is_file() or any(path.is_file() for path in entry.rglob("*")) for entry in kept):
            shutil.rmtree(self.responses, ignore_errors=True)

    def save(self, evaluation: Evaluation) -> None:
        """Writes document and report; the document last, so that where it is the rest is whole."""
        write_atomically(self.markdown, as_markdown(evaluation).encode())
        evaluation.write(self.json)


@contextlib.contextmanager
def reserved_place(folder: Path, name: str | None, *, default: str) -> Iterator[Place]:
    """The place called `name`, or the first free one of `default` and `default-2`, ..., nobody else's from now on.

    Makes `folder`, and the place's folder of responses, which reserves the name. Where the evaluation fails or is
    interrupted, that one goes away again unless something was saved in it; what a killed one left empty is free.
    Raises EvaluationError where `name` is taken or is no name, or the folder cannot be written.
    """
    if name is not None and not _NAME.fullmatch(name):
        raise EvaluationError(f"--name {name}: use letters, digits, `.`, `_` and `-`")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as stack:
            place = _first_free(folder, name, default, stack)
            reservation = stack.pop_all()
    except OSError as error:
        raise EvaluationError(
            f"{folder}: cannot be made or written ({error.strerror}); choose another folder with --out"
        ) from error
    with reservation:
        try:
            yield place
        except BaseException:
            place.remove_scraps()
            raise


def _first_free(folder: Path, name: str | None, default: str, stack: contextlib.ExitStack) -> Place:
    if name is None:
        names = [default, *(f"{default}-{number}" for number in range(2, 10_000))]
        return next(place for place in (Place(folder, name) for name in names) if _take(place, stack))
    place = Place(folder, name)
    if _take(place, stack):
        return place
    if place.responses.exists() and not place.json.exists():
        raise EvaluationError(
            f"{place.responses}: there already, without {place.json.name}: an evaluation is under way, or one was "
            "interrupted; choose another --name"
        )
    raise EvaluationError(f"{place.json}: there already; choose another --name")


def _take(place: Place, stack: contextlib.ExitStack) -> bool:
    """Makes the place this evaluation's own until the stack closes; False where it is another's or holds something.

    The folder tells finished evaluations, its lock those under way. Raises OSError where nothing can be made.
    """
    if place.json.exists() or place.markdown.exists():
        return False
    try:
        place.responses.mkdir()
        made = True
    except FileExistsError:
        made = False
    with contextlib.ExitStack() as attempt:
        try:
            descriptor = attempt.enter_context(locked(place.responses))
            there = os.path.samestat(os.fstat(descriptor), place.responses.stat())
            empty = not any(place.responses.iterdir())
        except (BlockingIOError, FileNotFoundError, NotADirectoryError):
            return False  # another's by now, taken away by another, or a file
        except OSError:  # a file system without locks
            return made
        if there and empty:
            stack.push(attempt.pop_all())
        return there and empty


def default_name(recipe: Recipe, checkpoint: str | None) -> str:
    """Such as `adapter-digits-test-4x`; a single file has no split: `adapter-mine-4x` of mine.jsonl."""
    source = str(recipe.data.eval)
    split = [recipe.data.eval_split] if has_splits(source) else []
    parts = (checkpoint or "base", Path(source).stem.removeprefix("builtin:"), *split, f"{recipe.eval.samples}x")
    return "-".join(re.sub(r"[^A-Za-z0-9._]+", "-", part).strip("-.") for part in parts)
