"""What a recipe sets without effect is told; a recipe without such knobs is told nothing."""

from pathlib import Path

import pytest

from sharevl_lite import load_recipe
from sharevl_lite.cli import main
from sharevl_lite.recipe_notes import recipe_notes

CONFIGS = sorted((Path(__file__).parents[1] / "configs").glob("*.yaml"))
DEMO = next(file for file in CONFIGS if file.stem == "digits_cpu")
GSPO = {
    "objective.importance_sampling_level": "sequence",
    "objective.epsilon": 3e-4,
    "objective.epsilon_high": 4e-4,
    "objective.delta": None,
}
TOLD = [
    ({"train.warmup_updates": 1}, "train.warmup_updates: 1 is one update at a rate of 0, which changes nothing"),
    ({"train.warmup_updates": 48}, "train.warmup_updates: 48 of the run's 48 updates, so that the rate never reaches"),
    ({"train.warmup_updates": 2, "train.lr_scheduler_type": "constant"}, "no effect with train.lr_scheduler_type: con"),
    ({"eval.every_rollouts": 5, "data.eval": None}, "eval.every_rollouts: 5 has no effect without data.eval"),
    ({"data.train": __file__, "data.train_split": "tset"}, "data.train_split: tset has no effect, for"),
    ({"train.hub_model_id": "me/mine"}, "train.hub_model_id: me/mine has no effect without train.push_to_hub: true"),
    ({"objective.importance_sampling_level": "sequence"}, "epsilon: 0.2 and epsilon_high: 0.3 are bounds of token"),
    ({"objective.correction": "truncate", "share.trajectories": "own"}, "objective.correction: truncate has no effect"),
    ({"objective.correction_cap": 2.0}, "objective.correction_cap: 2 has no effect with objective.correction: none"),
    ({"share.transforms.kinds": ["mirror_vertical"]}, "mirror_vertical for rows that say allow_mirrors alone"),
    ({"share.transforms.allow_mirrors": True}, "allow_mirrors has no effect, for share.transforms.kinds holds no mirr"),
    ({"rollout.server_urls": "http://x/v1"}, "rollout.server_urls has no effect with rollout.engine: hf"),
]
MEANT = [
    {"train.warmup_updates": 47},
    {"train.warmup_updates": 0, "train.lr_scheduler_type": "constant"},
    GSPO,
    {"objective.correction": "truncate", "objective.correction_cap": 2.0},
    {"share.transforms.kinds": ["mirror_vertical"], "share.transforms.allow_mirrors": True},
    {"train.hub_model_id": "me/mine", "train.push_to_hub": True},
]


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.stem)
def test_nothing_is_said_of_the_recipes_that_come_with_the_program(file):
    assert recipe_notes(load_recipe(file)) == []


@pytest.mark.parametrize(
    ("changes", "told"), TOLD, ids=lambda value: " ".join(value) if isinstance(value, dict) else ""
)
def test_a_knob_without_effect_is_told_with_what_is_meant(changes, told):
    (note,) = recipe_notes(load_recipe(DEMO, changes))
    assert told in note


@pytest.mark.parametrize("changes", MEANT, ids=" ".join)
def test_nothing_is_said_of_knobs_that_are_set_as_they_are_meant(changes):
    assert recipe_notes(load_recipe(DEMO, changes)) == []


def test_a_dry_run_and_doctor_tell_it(capsys, tmp_path):
    asked = [str(DEMO), "--output-dir", str(tmp_path), "--train.warmup-updates", "500"]
    assert main(["train", *asked, "--dry-run"]) == 0
    assert "recipe            train.warmup_updates: 500 of the run's 48 updates" in capsys.readouterr().out
    main(["doctor", *asked])
    assert "warn recipe: train.warmup_updates: 500 of the run's 48 updates" in capsys.readouterr().out
