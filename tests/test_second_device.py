"""Nothing is forgotten on the CPU: on a device of its own (`tests/on_second_device`) everything is computed there.

Tests run on CPUs, where a tensor that was not moved to the model's device is never noticed; on a GPU it ends the run.
torch knows a further device for as long as its process lives, so these cases have one.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parent


@pytest.mark.slow
def test_everything_is_computed_on_the_models_device(tmp_path):
    folders = [str(TESTS / name) for name in ("on_second_device", "policy", "rollout", ".")]
    path = os.pathsep.join([*folders, os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path, "CUDA_VISIBLE_DEVICES": ""}  # a GPU would be preferred to it
    cases = sorted((TESTS / "on_second_device").glob("*_cases.py"))
    assert len(cases) == 3
    words = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--basetemp={tmp_path / 'cases'}"]
    how = {"env": environment, "cwd": TESTS.parent, "capture_output": True, "text": True, "timeout": 500}
    done = subprocess.run([*words, *map(str, cases)], check=False, **how)
    assert done.returncode == 0, done.stdout[-20_000:] + done.stderr[-2_000:]
