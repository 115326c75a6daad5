"""Whole commands with their model on the second device: training, evaluation, export, rewriting, a question."""

import io
from pathlib import Path

import pytest
import torch
from bitsandbytes.functional import quantize_4bit
from rich.console import Console
from second_device import DEVICE
from sharevl_explorer.trial import Trial
from transformers import TrainerCallback

from sharevl_lite import load_recipe, metrics_log, train, training_arguments
from sharevl_lite.data.digits import digits_problems
from sharevl_lite.evaluate import Settings, evaluate_target
from sharevl_lite.export import command, nf4, verify
from sharevl_lite.policy import hf
from sharevl_lite.rewrite.chat import ChatRequest
from sharevl_lite.rewrite.hf import TransformersModel
from sharevl_lite.try_it import open_tryout

DEMO = Path(__file__).parents[2] / "configs" / "digits_cpu.yaml"
SMALL = {
    "data.train_limit": 64,
    "share.num_responses": 2,
    "rollout.temperature": 2.0,
    "rollout.max_completion_length": 6,
    "rollout.batch_size": 8,
    "train.rollouts": 1,
    "train.problems_per_rollout": 2,
    "train.problems_per_update": 2,
    "train.warmup_updates": 0,
    "train.lr_scheduler_type": "constant",
    "train.token_budget": 256,
    "eval.problems": 1,
    "eval.samples": 1,
    "reward.workers": 1,
}
REWARD = """
def number(completion_ids, **kwargs):
    return [sum(ids) % 17 for ids in completion_ids]
"""
EVERYTHING = {
    "model.gradient_checkpointing": True,
    "model.lora.dropout": 0.1,
    "share.difficulty.adaptive": True,
    "rollout.dynamic_sampling": True,
    "rollout.top_p": 0.9,
    "objective.beta": 0.05,
    "objective.correction": "truncate",
    "objective.sampler_cap": 2.0,
    "train.epochs_per_rollout": 2,
    "train.save_rollouts": 1,
}
pytestmark = pytest.mark.usefixtures("on_second_device")


@pytest.fixture(scope="module")
def on_second_device():
    """Models are loaded there and the Trainer is told so, as they find it with a GPU."""

    usual = training_arguments.RecipeArguments

    def arguments(**settings):
        return usual(**{**settings, "use_cpu": False})

    with pytest.MonkeyPatch.context() as patch:
        for module in (hf, verify):
            patch.setattr(module, "default_device", lambda: DEVICE)
        patch.setattr(training_arguments, "RecipeArguments", arguments)
        patch.setenv("ACCELERATE_TORCH_DEVICE", str(DEVICE))
        yield


class Witness(TrainerCallback):
    """Looks where a run's tensors are before every update of the optimizer."""

    def __init__(self):
        self.devices = set()

    def on_pre_optimizer_step(self, args, state, control, model=None, **_):
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.devices |= {args.device, *(tensor.device for p in trained for tensor in (p, p.grad))}


def train_there(folder, resume=None, **changes):
    """The run's folder and the metrics of its steps, which were all computed on the second device."""
    (folder / "reward.py").write_text(REWARD)  # others than right and wrong: short responses train too
    rewards = {"reward.functions": [{"path": f"{folder / 'reward.py'}:number"}]}
    recipe = load_recipe(DEMO, {**SMALL, **rewards, "name": "there", "output_dir": str(folder), **changes})
    witness = Witness()
    run = train(recipe, resume=resume, console=Console(quiet=True), callbacks=[witness]).run_dir
    assert witness.devices == {DEVICE}
    return run, [record for record in metrics_log.read(run / "metrics.jsonl") if "loss" in record]


@pytest.fixture(scope="module")
def trained(on_second_device, tmp_path_factory):
    return train_there(tmp_path_factory.mktemp("trained"), **EVERYTHING)


def test_a_run_trains_with_all_options_and_goes_on(trained, tmp_path):
    run, (first,) = trained
    assert first["kl"] >= 0.0
    assert first["grad_norm"] > 0.0
    again, records = train_there(run.parent, resume="auto", **EVERYTHING, **{"train.rollouts": 2})
    assert again == run
    assert [record["step"] for record in records] == [1, 2]


def test_a_run_in_half_precision_trains_fused_layers(tmp_path):
    sequences = {"objective.importance_sampling_level": "sequence", "objective.delta": None}
    _, (record,) = train_there(tmp_path, **{"model.dtype": "float16", "data.eval": None, **sequences})
    assert record["grad_norm"] > 0.0
    assert record["sampler_gap"] < 0.1
    assert record["loss_scale"] > 1.0


def test_a_run_is_evaluated(trained):
    run, _ = trained
    evaluation = evaluate_target(str(run), Settings(resamples=50)).evaluation
    assert evaluation.counts["responses"] == len(evaluation.kinds) > 2


def test_a_run_is_exported_and_verified(trained, tmp_path):
    run, _ = trained
    said = []
    command.export(command.Settings(run=run, to=tmp_path / "merged", prompts=1), say=said.append)
    assert (tmp_path / "merged" / "model.safetensors").is_file(), said


def test_a_question_is_answered(trained):
    run, _ = trained
    tryout = open_tryout(str(run), "run")
    file = io.BytesIO()
    digits_problems("test")[0].images[0].save(file, "PNG")
    try:
        asked = tryout.ask(Trial("Which is larger?", "3", file.getvalue(), samples=2, tokens=6))
    finally:
        tryout.close()
    assert [len(variant.attempts) for variant in asked] == [2, 2]


def test_a_local_model_rewrites():
    model = TransformersModel("builtin:digits-vl", batch_size=2)
    image = io.BytesIO()
    digits_problems("test")[0].images[0].save(image, "PNG")
    asked = ("Say it in other words.",), (image.getvalue(), "What is the sum of the two digits?")
    replies = model.generate([ChatRequest(parts, 1.0, 6, 0) for parts in asked])
    assert all(0 < reply.tokens_out <= 6 for reply in replies)


def test_four_bits_are_unpacked():
    weight = torch.randn(8, 96, generator=torch.Generator().manual_seed(0))
    found = [
        nf4.unpack(*quantize_4bit(weight.to(device), compress_statistics=True, quant_type="nf4")).cpu()
        for device in ("cpu", DEVICE)
    ]
    assert torch.equal(*found)
