"""The group of processes that train together: made before anything is loaded, as patient as the recipe is."""

from __future__ import annotations

import os
from datetime import timedelta

from sharevl_lite.config import Recipe

LEAST = timedelta(hours=6)
"""A process waits so long for the slowest one: for its rewards, its rollout, or an evaluation of its own part."""
MARGIN = timedelta(hours=1)


def patience(recipe: Recipe) -> timedelta:
    """How long processes wait for each other: longer than one of them waits for a server."""
    rollout = recipe.rollout
    if rollout.engine != "server":
        return LEAST
    return max(LEAST, timedelta(seconds=(rollout.server_retries + 1) * rollout.server_timeout_seconds) + MARGIN)


def join(recipe: Recipe) -> None:
    """Makes the group, where a launcher started several processes; transformers gives one of CPUs no time-out, and vLLM
    would make another."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return
    import torch
    from accelerate import PartialState
    from accelerate.utils import parse_flag_from_env

    on_cpu = not torch.cuda.is_available() or bool(parse_flag_from_env("ACCELERATE_USE_CPU"))
    PartialState(cpu=on_cpu, timeout=patience(recipe))
