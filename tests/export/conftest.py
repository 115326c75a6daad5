"""Runs to export: a real one, and runs of tiny random models made up around an adapter that is not zero."""

import shutil

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny_models import tiny_model, tiny_processor

from sharevl_lite.cli import main
from sharevl_lite.export import command
from sharevl_lite.recipes import dump_recipe, load_recipe


@pytest.fixture
def run(small_run, tmp_path):
    """A copy of the real run, with the adapter it learned."""
    return shutil.copytree(small_run, tmp_path / "run")


@pytest.fixture(scope="session")
def exported(small_run, tmp_path_factory):
    """The real run as a merged model. Copy it to change it."""
    folder = tmp_path_factory.mktemp("exported")
    command.export(command.Settings(run=small_run, to=folder / "digits", prompts=1), say=lambda _: None)
    return folder / "digits"


@pytest.fixture
def export(capsys):
    """`export(run, to, *words, code=0)`: the command; returns what it said, on stderr where it failed."""

    def call(run, to, *words, code=0):
        words = words if "--prompts" in words else ("--prompts", "1", *words)
        capsys.readouterr()
        assert main(["export", str(run), "--to", str(to), *words]) == code, "".join(capsys.readouterr())[-900:]
        said = capsys.readouterr()
        if code:
            assert not to.exists() or not any(to.iterdir())
            assert not list(to.parent.glob(".tmp-*"))
        return said.err if code else said.out

    return call


@pytest.fixture
def tiny_run(tmp_path):
    """`tiny_run(family, dtype, tied=False, **lora)`: a run without rollouts on a random base in a local folder."""

    def make(family="qwen2_5_vl", dtype=torch.float32, *, tied=False, strength=0.15, **lora):
        base, run = tmp_path / "base", tmp_path / "run"
        model = tiny_model(family, dtype=dtype)
        if tied:
            model.config.tie_word_embeddings = model.config.text_config.tie_word_embeddings = True
            model.lm_head.weight = model.get_input_embeddings().weight
        model.save_pretrained(base)
        tiny_processor(family).save_pretrained(base)
        wanted = lora.pop("target_modules", r".*language_model.*\.(q_proj|down_proj)")
        adapted = get_peft_model(model, LoraConfig(**{"r": 3, "lora_alpha": 6, "target_modules": wanted, **lora}))
        draw = torch.Generator().manual_seed(3)
        with torch.no_grad():
            for name, parameter in adapted.named_parameters():
                if "lora_" in name:
                    parameter.data = strength * torch.randn(parameter.shape, generator=draw)
        adapted.save_pretrained(run / "adapter")
        words = ["--model.path", str(base), "--data.train", "builtin:digits"]
        (run / "defaults.yaml").write_text("name: tiny\n")
        (run / "recipe.yaml").write_text(dump_recipe(load_recipe(run / "defaults.yaml", words)))
        return run, base

    return make
