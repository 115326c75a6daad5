"""Servers in a recipe: what is refused when it is read, and the command that the user is offered."""

import json
import shlex
import socket
from pathlib import Path

import pytest

from sharevl_lite.cli import main
from sharevl_lite.policy.hf import resolve_model_path
from sharevl_lite.recipes import RecipeError, dump_recipe, load_recipe
from sharevl_lite.rollout.errors import RolloutError
from sharevl_lite.rollout.serve_command import serve_command

DEMO = Path(__file__).parents[2] / "configs" / "digits_cpu.yaml"


def with_urls(*urls, **changes):
    return load_recipe(DEMO, {"rollout.engine": "server", "rollout.server_urls": list(urls), **changes})


def options(command):
    """The words after `vllm serve MODEL`, as {option: value or None}."""
    words = shlex.split(command)
    assert words[:3] == ["VLLM_ALLOW_RUNTIME_LORA_UPDATING=True", "vllm", "serve"]
    found = {}
    for word, after in zip(words[4:], [*words[5:], "--"], strict=True):
        if word.startswith("--"):
            found[word] = None if after.startswith("--") else after
    return words[3], found


@pytest.mark.parametrize(
    ("urls", "told"),
    [
        ([], "engine: server needs server_urls, such as [http://localhost:8000/v1]"),
        (["localhost:8000"], "'localhost:8000' is not the URL of a server; write it like http://localhost:8000/v1"),
        (["http://"], "'http://' is not the URL of a server"),
        (["ftp://host/v1"], "'ftp://host/v1' is not the URL of a server"),
        (["http://host:no/v1"], "'http://host:no/v1' is not a URL"),
        (["http://host:99999/v1"], "'http://host:99999/v1' is not a URL"),
        (["http://[::1/v1"], "is not a URL"),
        (["http://host/v1?key=1"], "'http://host/v1?key=1' is not the URL of a server"),
        (["http://host/v1", "http://host/v1/"], "names a server twice"),
        (["http://host", "http://host/v1"], "names a server twice"),
    ],
)
def test_faulty_urls_are_told_when_the_recipe_is_read(urls, told):
    with pytest.raises(RecipeError) as caught:
        with_urls(*urls)
    assert told in str(caught.value)


def test_a_password_in_a_url_is_refused_and_not_repeated():
    with pytest.raises(RecipeError, match="leave user and password out of the URL") as caught:
        with_urls("http://me:open-sesame@host/v1")
    assert "sesame" not in str(caught.value)


def test_a_recipe_with_servers_survives_writing_and_reading(tmp_path):
    recipe = with_urls("http://one:8000/v1", "https://two/v1", **{"rollout.server_adapter_dir": "/shared"})
    file = tmp_path / "recipe.yaml"
    file.write_text(dump_recipe(recipe))
    assert load_recipe(file) == recipe


def test_the_command_has_what_the_recipe_needs():
    recipe = with_urls("http://localhost:8001/v1", **{"model.lora.rank": 20, "model.min_pixels": 784})
    model, found = options(serve_command(recipe, dtype="bfloat16", max_images=3))
    size = json.loads(found.pop("--mm-processor-kwargs"))["size"]
    assert model == resolve_model_path("builtin:digits-vl")
    assert found == {
        "--host": "localhost",
        "--port": "8001",
        "--dtype": "bfloat16",
        "--max-model-len": "128",
        "--enable-lora": None,
        "--max-lora-rank": "32",
        "--max-loras": "1",
        "--logprobs-mode": "processed_logprobs",
        "--enable-scale-out": None,
        "--limit-mm-per-prompt": '{"image": 3, "video": 0}',
    }
    assert size["shortest_edge"] == 784
    assert size["longest_edge"] > 784  # the model's own


def test_the_command_of_another_machine():
    changes = {"rollout.server_model": "my model", "model.path": "owner/model", "model.dtype": "bfloat16"}
    changes["model.load_in_4bit"] = True
    recipe = with_urls("https://gpu.example", **changes, **{"model.min_pixels": 784, "model.max_pixels": 7840})
    model, found = options(serve_command(recipe))
    assert model == "owner/model"
    assert "--host" not in found  # it must listen to others
    assert found["--quantization"] == "bitsandbytes"
    assert (found["--port"], found["--served-model-name"], found["--dtype"]) == ("443", "my model", "bfloat16")
    assert json.loads(found["--mm-processor-kwargs"])["size"] == {"shortest_edge": 784, "longest_edge": 7840}


@pytest.mark.parametrize(
    ("stored", "four_bits", "told"),
    [
        ("auto", False, "float32"),
        ("auto", True, "bfloat16"),
        ("float64", False, "float32"),
    ],
)
def test_beside_4_bits_vllm_computes_in_16(monkeypatch, stored, four_bits, told):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    recipe = with_urls("http://localhost/v1", **{"model.dtype": stored, "model.load_in_4bit": four_bits})
    assert options(serve_command(recipe))[1]["--dtype"] == told


def test_a_rank_that_vllm_does_not_take():
    with pytest.raises(RolloutError, match="vLLM takes ranks up to 512, not 600"):
        serve_command(with_urls("http://localhost/v1", **{"model.lora.rank": 600}))


def test_a_dry_run_prints_the_command_of_every_server(capsys):
    urls = "[http://localhost:8001/v1, http://localhost:8002/v1]"
    assert main(["train", str(DEMO), "--dry-run", "--rollout.engine", "server", "--rollout.server-urls", urls]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("server  ")]
    assert [line.split("--port ")[1].split()[0] for line in lines] == ["8001", "8002"]
    assert all("VLLM_ALLOW_RUNTIME_LORA_UPDATING=True vllm serve" in line for line in lines)


def test_training_without_its_server_ends_before_anything_is_loaded(tmp_path, capsys):
    recipe = tmp_path / "r.yaml"
    recipe.write_text("model: {path: nowhere/at-all}\ndata: {train: builtin:digits}\n")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/v1"
        words = ["--rollout.engine", "server", "--rollout.server-urls", f"[{url}]", "--output-dir", str(tmp_path)]
        assert main(["train", str(recipe), *words]) == 2
    message = capsys.readouterr().err
    assert f"{url} cannot be reached" in message
    assert "vllm serve nowhere/at-all" in message
