"""The model card: what it says of base, data, figures and use, and what of this machine it leaves out."""

import json
import os
import re
import shutil

import pytest
import yaml
from huggingface_hub import ModelCard

from sharevl_lite.evaluation.document import NUMBERS, Evaluation
from sharevl_lite.evaluation.statistics import Figure
from sharevl_lite.export.figures import figures_of
from sharevl_lite.export.source import find_source
from sharevl_lite.policy.hf import adapter_digest, resolve_model_path


def test_the_card_keeps_texts_and_drops_folders(run, export, tmp_path):
    """A prompt may begin with a slash; a relative path may name the folders above."""
    recipe = yaml.safe_load((run / "recipe.yaml").read_text())
    recipe["data"] |= {"prompt_template": "/no_think\n{problem} Use 1/2.", "system_prompt": "~ 1/2"}
    recipe["model"]["lora"]["start_from"] = "a/../../home/alice/first"
    recipe["reward"]["functions"] = [{"path": "../../home/alice/rewards.py:short", "weight": 0.0}]
    recipe["rollout"]["server_adapter_dir"] = "/mnt/alice/served"
    (run / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    protocol = {"data": "../../home/alice/rows.parquet", "prompt_template": "/no_think\n{problem} Use <b> 1/2."}
    evaluated(run, "mine", adapter_sha256=adapter_digest(run / "adapter"), model="models/base", **protocol)
    export(run, tmp_path / "out", "--format", "lora")
    text = ModelCard.load(tmp_path / "out" / "README.md").text
    (kept,) = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    kept = yaml.safe_load(kept)
    assert kept["data"] == recipe["data"]
    assert kept["model"]["lora"]["start_from"] == "first"
    assert kept["reward"]["functions"][0]["path"] == "rewards.py:short"
    assert kept["rollout"]["server_adapter_dir"] == "served"
    settings = ["| model | models/base |", "| data | rows.parquet |"]
    settings.append(r"| prompt_template | /no_think\n{problem} Use \<b> 1/2. |")
    assert "\n".join(settings) in text
    assert "alice" not in text


def evaluated(run, name, **protocol):
    (run / "eval").mkdir(exist_ok=True)
    metrics = {"mean@8": Figure(0.625, 0.5, 0.75, 24), "pass@8": Figure(0.9, None, None, 24)}
    protocol |= {name: least for name, least in NUMBERS.items() if name not in protocol}
    Evaluation(protocol, metrics, {}, {}, {}, {}, ()).write(run / "eval" / f"{name}.json")


def test_the_card(run, export, tmp_path):
    protocol = {"data": "/home/me/rows.parquet", "samples": 8, "seed": 5}
    evaluated(run, "digits", **protocol, adapter_sha256=adapter_digest(run / "adapter"))
    export(run, tmp_path / "out", "--format", "lora")
    card = ModelCard.load(tmp_path / "out" / "README.md")
    front = card.data.to_dict()
    assert front["license"] == "apache-2.0"
    assert front["library_name"] == "peft"
    assert front["pipeline_tag"] == "image-text-to-text"
    assert "base_model" not in front  # no name of the Hub
    text = card.text
    assert "It is the final adapter of the run `digits_cpu`: LoRA of rank" in text
    last = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()][-1]
    assert "| accuracy | " in text
    assert f"{last['eval_accuracy']:.3f} |" in text
    assert "4 responses to either; temperature 1.0, top-p 1.0, at most 32 tokens, seed 0" in text
    assert "| mean@8 | 0.625 | 0.500 to 0.750 |" in text
    assert "| pass@8 | 0.900 | - |" in text
    assert "| data | rows.parquet |\n| samples | 8 |\n| seed | 5 |" in text
    assert "arXiv preprint arXiv:2505.16673" in text
    (recipe,) = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    embedded, real = yaml.safe_load(recipe), yaml.safe_load((run / "recipe.yaml").read_text())
    assert embedded["output_dir"] == os.path.basename(real["output_dir"])
    assert {**embedded, "output_dir": real["output_dir"]} == real
    assert str(tmp_path) not in text
    assert "/home/me" not in text


@pytest.mark.parametrize(("rank", "asked"), [(3, "8"), (12, "16"), (600, None)])
def test_vllm_is_told_a_rank_that_it_takes(tiny_run, export, tmp_path, rank, asked):
    run, _ = tiny_run(r=rank)
    recipe = (run / "recipe.yaml").read_text()
    (run / "recipe.yaml").write_text(recipe.replace("rank: 32", f"rank: {rank}"))
    said = export(run, tmp_path / "out", "--format", "lora")
    card = (tmp_path / "out" / "README.md").read_text()
    for text in (said, card):
        if asked is None:
            assert "vLLM takes adapters of rank 512 at most, and this one has 600" in text
            assert "vllm serve" not in text
        else:
            assert f"--enable-lora --max-lora-rank {asked} --lora-modules" in text


def test_four_bits_pixel_bounds_and_a_system_prompt_are_told(tiny_run, export, tmp_path):
    run, _ = tiny_run()
    recipe = (run / "recipe.yaml").read_text()
    for before, after in (
        ("load_in_4bit: false", "load_in_4bit: true"),
        ("min_pixels: null", "min_pixels: 784"),
        ("max_pixels: null", "max_pixels: 6272"),
        ("system_prompt: null", "system_prompt: Be brief."),
    ):
        assert before in recipe
        recipe = recipe.replace(before, after)
    (run / "recipe.yaml").write_text(recipe)
    said = export(run, tmp_path / "out")
    assert "it was trained against 4-bit weights and is merged into, and compared with, the 16-bit ones" in said
    bounds = """--mm-processor-kwargs '{"size": {"shortest_edge": 784, "longest_edge": 6272}}'"""
    text = ModelCard.load(tmp_path / "out" / "README.md").text
    assert bounds in said
    assert bounds in text
    assert "trained against the base model in 4 bits (NF4)" in text
    (snippet,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    compile(snippet, "README.md", "exec")
    (asked,) = re.findall(r"```text\n(.*?)```", text, re.DOTALL)
    assert "\\boxed{}" in asked  # not doubled, as in a template
    assert "{problem}" in asked
    assert 'processor.image_processor.size["longest_edge"] = 6272' in snippet
    assert 'messages.insert(0, {"role": "system", "content": [{"type": "text", "text": "Be brief."}]})' in snippet


@pytest.mark.parametrize(
    ("files", "front", "sentence"),
    [
        ({}, {}, "Unknown: the base model came without a card or licence file"),
        ({"LICENSE": "free"}, {}, "That of the base model. Its LICENSE lie"),
        (
            {"README.md": "---\nlicense: other\nlicense_name: qwen-research\nlicense_link: LICENSE\n---\n# base\n"},
            {"license": "other", "license_name": "qwen-research", "license_link": "LICENSE"},
            "That of the base model: qwen-research.",
        ),
    ],
)
def test_the_licence_is_the_base_models(run, export, tmp_path, files, front, sentence):
    base = shutil.copytree(resolve_model_path("builtin:digits-vl"), tmp_path / "base")
    for name, content in files.items():
        (base / name).write_text(content)
    export(run, tmp_path / "out", "--base", str(base), "--format", "lora")
    card = ModelCard.load(tmp_path / "out" / "README.md")
    assert {name: value for name, value in card.data.to_dict().items() if name.startswith("license")} == front
    assert sentence in card.text
    assert (tmp_path / "out" / "LICENSE").exists() == ("LICENSE" in files)


def test_evaluations_that_are_not_of_this_adapter_are_left_out_of_the_card_and_told(run, export, tmp_path):
    """Nor does a file that is none stop an export: of a comparison, of an older program, cut off by a kill."""
    evaluated(run, "mine", adapter_sha256=adapter_digest(run / "adapter"))
    evaluated(run, "earlier", adapter_sha256="0" * 64)
    evaluated(run, "base", adapter_sha256=None)
    evaluated(run, "old")
    for name, text in {"cmp": '{"shared": 3}', "newer": '{"schema_version": 99, "problems": []}', "cut": "{"}.items():
        (run / "eval" / f"{name}.json").write_text(text)
    said = export(run, tmp_path / "out", "--format", "lora")
    assert "cmp.json: not an evaluation" in said
    assert "newer.json: schema version 99" in said
    assert "cut.json: not JSON" in said
    assert (
        f"not in the card: base.json, earlier.json, old.json in {run / 'eval'}, evaluations of another adapter" in said
    )
    assert said.index("cmp.json") < said.index("verified: ")
    text = (tmp_path / "out" / "README.md").read_text()
    assert re.findall(r"\| evaluation `(\w+)`", text) == ["mine"]


def test_what_the_card_says_of_the_training_is_that_of_the_checkpoint(run, export, tmp_path):
    """Its learning rates too: the recipe of a resumed run has that of the last steps."""
    shutil.copytree(run / "adapter", run / "checkpoints" / "checkpoint-1")
    log = run / "metrics.jsonl"
    first, last = (
        f'{{"step": {step}, "update": {step}, "learning_rate": {rate}}}' for step, rate in ((1, 1e-3), (2, 1e-4))
    )
    log.write_text("\n".join([first, last, ""]))
    export(run, tmp_path / "first", "--format", "lora", "--checkpoint", "1")
    asked = "1 rollout of 6 problems, 1 update each (the run's recipe asks for 2), at a learning rate of 0.001."
    assert f"Trained on {asked}" in (tmp_path / "first" / "README.md").read_text()
    export(run, tmp_path / "last", "--format", "lora")
    asked = "2 rollouts of 6 problems, 1 update each, at learning rates from 0.0001 to 0.001."
    assert f"Trained on {asked}" in (tmp_path / "last" / "README.md").read_text()


def test_the_card_says_how_many_problems_were_asked(run):
    """Not how many might have been: the recipe's number is a bound. Older programs did not keep it."""
    words = (run / "recipe.yaml").read_text()
    assert "  problems: 4\n" in words
    (run / "recipe.yaml").write_text(words.replace("  problems: 4\n", "  problems: 256\n"))
    told = "\n".join(figures_of(find_source(run, "last")).paragraphs)
    assert "Protocol: the first 4 problems of `builtin:digits`, split `test`, each as it is" in told
    assert "32 responses in each column." in told
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for record in metrics:
        record.pop("eval_responses", None)
    (run / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in metrics))
    told = "\n".join(figures_of(find_source(run, "last")).paragraphs)
    assert "Protocol: the first 4 problems of" in told
    assert "in each column" not in told
    (run / "data.json").write_text('{"problems": 2048, "fingerprint": "f"}')
    told = "\n".join(figures_of(find_source(run, "last")).paragraphs)
    assert "Protocol: the first problems (256 at most) of" in told


def test_a_single_file_has_no_split(run, export, tmp_path):
    recipe = yaml.safe_load((run / "recipe.yaml").read_text())
    recipe["data"]["eval"] = "data/mine.jsonl"
    (run / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    told = "\n".join(figures_of(find_source(run, "last")).paragraphs)
    assert "problems of `data/mine.jsonl`, each as it is (plain)" in told
    export(run, tmp_path / "out", "--format", "lora")
    text = (tmp_path / "out" / "README.md").read_text()
    assert "of `builtin:digits`, split `train`; held out: `data/mine.jsonl`. Trained on" in text
