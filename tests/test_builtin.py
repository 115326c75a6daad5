"""What the package ships for the demo: data with disjoint splits, and a model that is what it says."""

import json
from importlib.resources import files
from pathlib import Path

import pytest

from sharevl_lite.config import DataSection
from sharevl_lite.data import load_problems
from sharevl_lite.data.digits import KINDS, SPLIT_SIZES, digits_problems, scans
from sharevl_lite.rewrite.make import make_variants
from sharevl_lite.rewrite.settings import Settings

MODEL = Path(str(files("sharevl_lite").joinpath("assets/digits-vl")))


def test_splits_share_no_scan():
    (train, _), (test, _) = scans("train"), scans("test")
    assert len(train) + len(test) == 1797
    seen = {scan.tobytes() for scan in train}
    assert not [scan for scan in test if scan.tobytes() in seen]


@pytest.mark.parametrize("split", SPLIT_SIZES)
def test_problems_are_what_they_say(split):
    problems = digits_problems(split)
    assert len(problems) == SPLIT_SIZES[split] == len({problem.id for problem in problems})
    kinds = {kind.name: kind for kind in KINDS}
    by_hand = {
        "sum": lambda a, b: a + b,
        "difference": lambda a, b: abs(a - b),
        "larger": max,
        "even": lambda a, b: [a % 2, b % 2].count(0),
    }
    assert by_hand.keys() == kinds.keys()
    for problem in problems:
        assert problem.images[0].size == (112, 56)
        assert problem.answer == str(by_hand[problem.metadata["kind"]](*problem.metadata["digits"]))
        assert len({problem.text, *problem.variants}) == 4
        assert all(text.count("<image>") == 1 for text in (problem.text, *problem.variants))


def test_the_variants_of_the_demo_are_made_by_rules(tmp_path):
    """What the package ships is what `sharevl-lite variants builtin:digits --with rules --num 3` writes."""
    make_variants(Settings("builtin:digits", num=3, limit=8), tmp_path / "out", say=lambda _: None)
    made = load_problems(str(tmp_path / "out"), DataSection(), split="train").problems
    shipped = digits_problems("train")[:8]
    assert [problem.variants for problem in made] == [problem.variants for problem in shipped]
    assert {problem.metadata["kind"] for problem in shipped} == {kind.name for kind in KINDS}


def test_the_model_is_a_small_qwen2_5_vl():
    from transformers import AutoModelForImageTextToText, AutoProcessor

    model = AutoModelForImageTextToText.from_pretrained(MODEL)
    processor = AutoProcessor.from_pretrained(MODEL)
    assert type(model).__name__ == "Qwen2_5_VLForConditionalGeneration"
    assert type(processor).__name__ == "Qwen2_5_VLProcessor"
    count = sum(parameter.numel() for parameter in model.parameters())
    assert 1e6 <= count <= 5e6
    assert json.loads((MODEL / "build.json").read_text())["parameters"] == count
    assert sum(file.stat().st_size for file in MODEL.iterdir()) <= 12 * 2**20
    assert (MODEL / "model.safetensors").is_file()
    vocabulary = processor.tokenizer.get_vocab()
    specials = ("<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|image_pad|>", "<|video_pad|>", "<|endoftext|>")
    assert all(token in vocabulary for token in specials)
    text = "What is 7 + 5? <think>Ünïcode</think> \\boxed{12}"
    assert processor.tokenizer.decode(processor.tokenizer(text).input_ids) == text
