"""What is asked of an evaluation. Importing this loads nothing heavy."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Ways = Literal["each", "drawn", "none"]
"""`each`: the plain question, one rewrite, and one image transform of each family that recipe and row allow. `drawn`:
the plain question and one variant drawn as in training. `none`: the plain question alone."""
RESAMPLES = 9999
"""Draws of the bootstrap."""


@dataclass(frozen=True)
class Settings:
    """What may be asked of an evaluation besides its target; None keeps what the recipe says."""

    data: str | None = None
    """Problems as in data.eval. All rows are asked, unless `overrides` set `eval.problems`."""
    samples: int | None = None
    recipe_file: str | None = None
    """Prompt, rewards and variants for a model without a run."""
    engine: str | None = None
    server_urls: Sequence[str] = ()
    variants: Ways = "each"
    source_column: str | None = None
    """Column of the data that figures are split by; None: the first usual one that is there."""
    out: str | Path | None = None
    """Folder to save in. None: the run's own; of a model nothing is saved."""
    name: str | None = None
    resamples: int = RESAMPLES
    overrides: Sequence[str] = ()
    """Of the recipe, as on the command line."""

    def words(self) -> list[str]:
        """All that replaces the recipe's values, as on its command line."""
        words = list(self.overrides)
        if self.data is not None:
            words += ["--data.eval", self.data]
        if self.samples is not None:
            words += ["--eval.samples", str(self.samples)]
        if self.engine is not None:
            words += ["--rollout.engine", self.engine]
            if self.engine != "server":
                words += ["--rollout.overlap", "false"]  # of the training; it needs a server
        if self.server_urls:
            words += ["--rollout.server-urls", json.dumps(list(self.server_urls))]
        return words
