"""What `sharevl-lite doctor` finds: one record for each thing that it looks at."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

Status = Literal["ok", "warning", "failure", "skipped"]


@dataclass(frozen=True)
class Check:
    """One finding; `advice` says what to do about it, `facts` holds its numbers for `--json`."""

    name: str
    status: Status
    finding: str
    advice: str = ""
    facts: dict[str, Any] = field(default_factory=dict)
