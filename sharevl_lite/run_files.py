"""Names in the folder of a run, for what writes them and what reads them; those of the store are `store_schema`'s."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sharevl_lite.errors import UserError

RECIPE_FILE = "recipe.yaml"
"""The resolved recipe."""
DATA_FILE = "data.json"
"""How many problems there were, and digests of them, of the base model and of the files of reward functions."""
TOKENIZER_FILE = "tokenizer.json"
"""The model's."""
PROMPT_FILE = "prompt.json"
"""What the chat template puts around a question."""
METRICS_FILE = "metrics.jsonl"
"""A line for each step and evaluation."""
SUMMARY_FILE = "summary.json"
"""What came out, of a run that has ended."""
ADAPTER_DIR = "adapter"
"""The adapter that it ended with."""

_WAYS_OUT = "restore it from a copy, or remove it: the run is then taken as one that has none"


class RunFileError(UserError):
    """A file of a run that cannot be read, with what to do."""


def read_record(file: Path) -> dict[str, Any]:
    """The JSON object in a run's file; empty where there is no such file. Raises RunFileError where it is damaged."""
    try:
        record = json.loads(file.read_text("utf-8")) if file.is_file() else {}
    except (OSError, ValueError) as error:
        raise RunFileError(f"{file}: cannot be read ({error}); {_WAYS_OUT}") from error
    if not isinstance(record, dict):
        raise RunFileError(f"{file}: not a JSON object; {_WAYS_OUT}")
    return record
