"""Words for numbers, and the command's own name. Importing this loads nothing heavy."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path


def counted(number: int, noun: str) -> str:
    """1 step, 2 steps."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def typed_command() -> str:
    """The command as it can be typed here: by name if it is on the path, else where it was installed."""
    if shutil.which("sharevl-lite"):
        return "sharevl-lite"
    command = Path(sys.executable).with_name("sharevl-lite")
    near = os.path.relpath(command)
    return str(command) if near.startswith(os.pardir) else near
