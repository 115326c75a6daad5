"""What a command can refuse by names alone, before torch and transformers are imported, which takes many seconds.

Each check is the one that the command itself makes later, when it comes to that part; here they only come first.
"""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

from sharevl_lite.checkpoints import CHECKPOINTS_DIR, list_checkpoints
from sharevl_lite.config import Recipe
from sharevl_lite.data.loading import check_source
from sharevl_lite.engines import check_installed
from sharevl_lite.policy.adapter_start import check_start as check_adapter_start
from sharevl_lite.policy.folder import check_folder, resolve_model_path
from sharevl_lite.rewards.functions import find_function
from sharevl_lite.run_folder import RunError, check_place, held, is_finished
from sharevl_lite.together import is_main_process

OTHER_WAYS = {
    "ACCELERATE_USE_FSDP": "FSDP",
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "a parallelism_config",
}
"""Variables that `accelerate launch` sets, and what for."""
DYNAMO = "ACCELERATE_DYNAMO_BACKEND"
SWITCHED_ON = frozenset({"1", "true", "yes", "y", "t", "on"})


def check_start(recipe: Recipe, resume: str | Path | None) -> None:
    """What `train` is asked: the run's folder, what must be installed, and :func:`check_inputs`. Raises their errors.

    The inputs of a finished run that is resumed are not asked: its figures are shown. Nor is the adapter that a run
    began with, where it goes on from a checkpoint.
    """
    check_launcher()
    check_installed(recipe)
    check_trackers(recipe)
    with held(recipe.run_dir):
        if is_main_process():  # another one may not see the folder, which is told when they meet
            check_place(recipe.run_dir, resume)
    if resume is not None and is_finished(recipe):
        return
    check_inputs(recipe)
    if resume is None or (resume == "auto" and not list_checkpoints(recipe.run_dir / CHECKPOINTS_DIR)):
        check_adapter_start(recipe.model)


def check_launcher() -> None:
    """Raises RunError where `accelerate launch` was configured for another way to train than the one there is."""
    asked = [f"{what} ({name})" for name, what in OTHER_WAYS.items() if os.environ.get(name, "").lower() in SWITCHED_ON]
    if os.environ.get(DYNAMO, "no").lower() not in ("", "no"):
        asked.append(f"torch.compile ({DYNAMO})")
    if asked:
        raise RunError(
            f"accelerate is configured for {', '.join(asked)}, and here every process trains a whole policy: unset it, "
            "launch with torchrun, or choose plain data parallelism in `accelerate config` (docs/scaling.md)"
        )


def check_trackers(recipe: Recipe) -> None:
    """Raises RunError for a tracker that is not installed."""
    for tracker in recipe.train.report_to:
        if importlib.util.find_spec(tracker) is None:
            raise RunError(f"train.report_to: {tracker} is not installed; pip install {tracker}, or leave it out")


def check_inputs(recipe: Recipe, *, train: bool = True) -> None:
    """Whether the files and folders that the recipe names are there. Without `train`, its training data are not asked.

    Raises DataError, PolicyError or RewardFunctionError.
    """
    data = recipe.data
    for source, split in ((data.train if train else None, data.train_split), (data.eval, data.eval_split)):
        if source is not None:
            check_source(source, split)
    if resolve_model_path(recipe.model.path) == recipe.model.path:
        check_folder(recipe.model.path)
    for function in recipe.reward.functions:
        find_function(function.path)
