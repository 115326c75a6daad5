"""The benchmark of a whole step runs, on the shipped model, and says what it could not run."""

import csv
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import Qwen2_5_VLForConditionalGeneration

from sharevl_lite.policy.attention import check_full_attention

SCRIPT = Path(__file__).parents[1] / "scripts" / "bench_step.py"


@pytest.mark.slow
def test_both_ways_train_the_same_step(tmp_path):
    command = [sys.executable, str(SCRIPT), "--tiny", "--problems", "2", "--response", "9", "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = list(csv.DictReader((tmp_path / "step.csv").open()))
    assert [row["way"] for row in rows] == ["baseline", "packed"]
    for row in rows:
        assert row["status"] == "ok"
        assert 0 < float(row["seconds/update"]) < float(row["seconds/step"])
        assert float(row["tokens_per_second"]) > 0
    assert "x baseline" in done.stdout


def test_the_model_has_the_published_size():
    spec = importlib.util.spec_from_file_location("bench_step", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["bench_step"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    config = module.config_3b()
    check_full_attention(config)
    with torch.device("meta"):
        model = Qwen2_5_VLForConditionalGeneration(config)
    model.tie_weights()
    assert sum(parameter.numel() for parameter in model.parameters()) == 3_754_622_976  # as its checkpoint says
