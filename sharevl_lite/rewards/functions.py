"""Users' own rewards: a function in a Python file, with the signature that TRL's GRPOTrainer calls.

    def short(prompts, completions, completion_ids, answer, **kwargs) -> list[float | None]: ...

Called as TRL 1.15 does: by keyword, once per batch, with `prompts` and `completions` (text), `completion_ids`, one list
per column of the data, `trainer_state`, and `log_metric` and `log_extra` of :mod:`sharevl_lite.rewards.reward_log`.
None for a sample means "does not apply". Async functions are awaited.
"""

from __future__ import annotations

import hashlib
import importlib.util
import inspect
import math
import sys
import traceback
from collections.abc import Callable, Collection, Coroutine, Sequence
from numbers import Real
from pathlib import Path
from types import ModuleType
from typing import Any

from sharevl_lite.errors import UserError

RewardFunction = Callable[..., Any]
_MODULE = "sharevl_reward_"


class RewardFunctionError(UserError):
    """A user's reward function cannot be loaded, or returned something that is not a list of rewards."""


def load_reward_function(spec: str) -> RewardFunction:
    """Load `file.py:function`; a relative file is looked up in the current folder (a loaded recipe has none).

    Raises:
        RewardFunctionError: the spec, the file, its import, the function or its signature is not as it should be.
    """
    path, name = find_function(spec)
    function = getattr(_import_file(path, spec), name, None)
    if not callable(function):
        raise RewardFunctionError(f"reward function {spec!r}: {path} defines no function {name!r}")
    _check_signature(function, spec)
    return function


def find_function(spec: str) -> tuple[Path, str]:
    """The file and the name that `file.py:function` means; the file is there, and nothing of it is read.

    Raises:
        RewardFunctionError: the spec is written otherwise, or there is no such file.
    """
    file, colon, name = spec.rpartition(":")
    if not colon or not file or not name.isidentifier():
        raise RewardFunctionError(f"reward function {spec!r}: write it as `file.py:function`")
    path = Path(file).resolve()
    if not path.is_file():
        raise RewardFunctionError(
            f"reward function {spec!r}: there is no file {path}; paths start at the recipe's folder"
        )
    return path, name


def digest_of_file(spec: str) -> str:
    """16 hex digits that tell whether the file of `file.py:function` is the same; not what it imports.

    Raises RewardFunctionError as :func:`find_function` does.
    """
    return hashlib.sha256(find_function(spec)[0].read_bytes()).hexdigest()[:16]


def call_reward_function(
    function: RewardFunction, name: str, arguments: dict[str, Any], run: Callable[[Coroutine[Any, Any, Any]], Any]
) -> list[float]:
    """Call with keyword `arguments` and check what comes back: one reward per completion, NaN for None.

    `run` gives the result of a coroutine, which an async function returns.

    Raises:
        RewardFunctionError: the function raised, or returned a wrong length, type or a non-finite number.
    """
    try:
        output = function(**arguments)
        if inspect.iscoroutine(output):
            output = run(output)
    except (Exception, SystemExit) as error:
        hint = "; completions are text, not chat messages" if "string indices" in str(error) else ""
        raise RewardFunctionError(
            f"reward function {name!r} raised {type(error).__name__}: {error} "
            f"({_place_of(error)}called with {', '.join(arguments)}{hint})"
        ) from error
    rewards = output.tolist() if hasattr(output, "tolist") else output
    expected = len(arguments["completions"])
    if not isinstance(rewards, Sequence) or isinstance(rewards, str) or len(rewards) != expected:
        size = f" of {len(rewards)}" if isinstance(rewards, Sequence) else ""
        raise RewardFunctionError(
            f"reward function {name!r} returned a {type(output).__name__}{size}; return a list of {expected} rewards, "
            "one per completion"
        )
    return [_checked(reward, name, row) for row, reward in enumerate(rewards)]


def _place_of(error: BaseException) -> str:
    """The last line of a user's file that the error came through, such as `rewards.py, line 6; `."""
    files = {getattr(module, "__file__", None) for name, module in sys.modules.items() if name.startswith(_MODULE)}
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename in files]
    return f"{Path(frames[-1].filename).name}, line {frames[-1].lineno}; " if frames else ""


def _checked(reward: Any, name: str, row: int) -> float:
    if reward is None:
        return math.nan
    if not isinstance(reward, Real) or not math.isfinite(reward):
        raise RewardFunctionError(
            f"reward function {name!r} returned {reward!r} for completion {row}; return a finite number, or None where "
            "the reward does not apply"
        )
    return float(reward)


def _import_file(path: Path, spec: str) -> ModuleType:
    # Two files may have the same name; the digest of the path keeps their modules apart.
    module_name = f"{_MODULE}{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    description = importlib.util.spec_from_file_location(module_name, path)
    if description is None or description.loader is None:
        raise RewardFunctionError(f"reward function {spec!r}: {path} is not a Python file; its name must end in .py")
    module = importlib.util.module_from_spec(description)
    sys.modules[module_name] = module  # dataclasses and pickle look a class's module up
    try:
        description.loader.exec_module(module)
    except BaseException as error:
        del sys.modules[module_name]
        if not isinstance(error, Exception | SystemExit):
            raise
        raise RewardFunctionError(
            f"reward function {spec!r}: importing {path} raised {type(error).__name__}: {error}"
        ) from error
    return module


def check_arguments(function: RewardFunction, name: str, given: Collection[str]) -> None:
    """Raises RewardFunctionError where the function needs an argument that is not among those `given`."""
    needed = [
        parameter.name
        for parameter in inspect.signature(function).parameters.values()
        if parameter.default is parameter.empty and parameter.kind not in (_ANY_NAMED, _ANY_PLACED)
    ]
    missing = [argument for argument in needed if argument not in given]
    if missing:
        raise RewardFunctionError(
            f"reward function {name!r} needs {', '.join(missing)}, which the data does not have; there are "
            f"{', '.join(sorted(given))}"
        )


_ANY_NAMED, _ANY_PLACED = inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL


def _check_signature(function: RewardFunction, spec: str) -> None:
    if inspect.isclass(function):
        raise RewardFunctionError(f"reward function {spec!r} is a class; name a function, or an instance of it")
    call = function if inspect.isroutine(function) else type(function).__call__
    if inspect.isgeneratorfunction(call) or inspect.isasyncgenfunction(call):
        raise RewardFunctionError(f"reward function {spec!r} has a yield; return a list, one reward per completion")
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError) as error:
        raise RewardFunctionError(
            f"reward function {spec!r} does not say its arguments ({error}); call it from a function of your own"
        ) from error
    placed = [one.name for one in parameters if one.kind is one.POSITIONAL_ONLY and one.default is one.empty]
    if placed:
        raise RewardFunctionError(
            f"reward function {spec!r} takes {', '.join(placed)} by position alone and is called by keyword; "
            "remove the /"
        )
    if not any(parameter.kind is _ANY_NAMED for parameter in parameters):
        raise RewardFunctionError(
            f"reward function {spec!r} must take **kwargs: it is called with every column of the data, as in TRL"
        )
