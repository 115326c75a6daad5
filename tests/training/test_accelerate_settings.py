"""What `accelerate launch` was configured for does not change a run in silence."""

import pytest
from rich.console import Console

from sharevl_lite import train
from sharevl_lite.cli import main
from sharevl_lite.rewards import RewardScorer
from sharevl_lite.run import RunError, _assemble


def test_precision_is_the_recipes(small_recipe, monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "no")
    recipe = small_recipe()
    with RewardScorer(recipe.reward) as scorer:
        trainer, *_ = _assemble(recipe, scorer, Console(quiet=True), resuming=False, fresh=True)
    assert trainer.accelerator.mixed_precision == trainer.accelerator.state.mixed_precision == "no"


@pytest.mark.parametrize(
    ("variable", "value", "told"),
    [
        ("ACCELERATE_USE_FSDP", "true", "FSDP"),
        ("ACCELERATE_USE_DEEPSPEED", "1", "DeepSpeed"),
        ("ACCELERATE_DYNAMO_BACKEND", "INDUCTOR", r"torch\.compile"),
    ],
)
def test_other_ways_to_train_are_refused(small_recipe, command, capsys, monkeypatch, variable, value, told):
    monkeypatch.setenv(variable, value)
    with pytest.raises(RunError, match=f"accelerate is configured for {told}"):
        train(small_recipe(), console=Console(quiet=True))
    assert main(command()[3:]) == 2
    assert capsys.readouterr().err.count("accelerate is configured for") == 1
