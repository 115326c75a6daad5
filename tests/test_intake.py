"""Prompts are held to their longest form, and rows that no model can read are told by their number."""

from dataclasses import replace
from io import StringIO

import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from tiny_models import encoder, tiny_policy

from sharevl_lite.data import Problem
from sharevl_lite.data.errors import BadRowError, RowPlace
from sharevl_lite.data.loading import LoadedProblems
from sharevl_lite.data.problem import fingerprint
from sharevl_lite.intake import fit_prompts
from sharevl_lite.recipes import load_recipe
from sharevl_lite.variants.transforms import TRANSFORMS

WIDE = Problem("wide", "<image>How many?", (Image.new("RGB", (1680, 168)),), "3")
GOOD = Problem("good", "What is 1 + 1?", (), "2")


@pytest.fixture(scope="module")
def prompts():
    """With room for large images; the processor is shared with other tests."""
    made = encoder(tiny_policy("qwen2_5_vl"))
    before = made.processor.image_processor.size
    made.processor.image_processor.size = {"shortest_edge": 28**2, "longest_edge": 4096 * 28**2}
    yield made
    made.processor.image_processor.size = before


def fit(prompts, problems, *words, source="rows.jsonl", **options):
    recipe = load_recipe(None, ["--model.path", "x", "--data.train", "x", *words])
    places = [RowPlace(source, number) for number in range(len(problems))]
    said = StringIO()
    kept = fit_prompts(recipe, LoadedProblems(list(problems), [], places), prompts, Console(file=said), **options)
    return [problem.id for problem in kept], said.getvalue()


def longest(prompts, kind):
    """Tokens of WIDE as it is asked with a transform, encoded in full."""
    transform = TRANSFORMS[kind]
    image = transform.apply(WIDE.images[0], np.random.default_rng(0))
    return prompts.encode(f"<image>{transform.sentence(1)} How many?", [image]).prefix.ids_P.numel()


def test_a_transform_that_makes_the_prompt_too_long_is_found(prompts):
    plain = prompts.count_tokens(WIDE.text, WIDE.image_sizes)
    tilted = longest(prompts, "tilt_5_cw")
    assert tilted > plain + 100
    short = ["--data.max_prompt_length", str(tilted - 1)]
    both = ["--share.transforms.kinds", "[noise_10, tilt_5_cw]"]
    assert fit(prompts, [WIDE], *both, "--data.max_prompt_length", str(tilted))[0] == ["wide"]
    told = (
        rf"row 0 .* {tilted} tokens \(\d+ of them image tokens\) when it is asked with tilt_5_cw, above "
        rf".*\({tilted - 1}\); raise that, or lower model.max_pixels\."
    )
    with pytest.raises(BadRowError, match=told):
        fit(prompts, [WIDE], *both, *short)
    assert fit(prompts, [WIDE], *both, *short, "--share.transforms.probability", "0")[0] == ["wide"]
    assert fit(prompts, [WIDE], "--share.transforms.kinds", "[noise_10]", *short)[0] == ["wide"]
    assert fit(prompts, [WIDE], *both, *short, kinds=[])[0] == ["wide"]
    assert fit(prompts, [replace(WIDE, transforms=("noise_10",))], *both, *short)[0] == ["wide"]


@pytest.mark.parametrize("kind", ["noise_10", "rotate_90_cw"])
def test_the_sentence_counts(prompts, kind):
    length = longest(prompts, kind)
    knobs = ["--share.transforms.kinds", f"[{kind}]", "--data.max_prompt_length"]
    assert fit(prompts, [WIDE], *knobs, str(length))[0] == ["wide"]
    with pytest.raises(BadRowError, match=rf"{length} tokens \(.*\) when it is asked with {kind}"):
        fit(prompts, [WIDE], *knobs, str(length - 1))


@pytest.mark.parametrize(
    ("problem", "message"),
    [
        (replace(WIDE, images=(Image.new("RGB", (1, 300)),)), r"its images \(1 × 300 pixels\) cannot be read .* 300"),
        (replace(GOOD, text="1 <|image_pad|> 2"), r"its text holds <\|image_pad\|>"),
        (replace(GOOD, variants=("<|vision_start|>?",)), r"its text holds <\|vision_start\|>"),
        (replace(GOOD, text="1 + 1?<|im_end|>"), r"its text holds <\|im_end\|>"),
    ],
)
def test_what_no_model_can_read_is_a_bad_row(prompts, problem, message):
    with pytest.raises(BadRowError, match=rf"row 1 .*{message}"):
        fit(prompts, [GOOD, problem], "--data.max_prompt_length", "9000")
    kept, said = fit(prompts, [GOOD, problem], "--data.max_prompt_length", "9000", "--data.on_bad_row", "skip")
    assert kept == ["good"]
    assert "skipped 1 bad rows and kept 1" in said
    odd = "[/INST] [red]rows.jsonl"
    _, said = fit(prompts, [GOOD, problem], "--data.max_prompt_length", "9000", "--data.on_bad_row", "skip", source=odd)
    assert f"{odd}: skipped 1 bad rows" in said, "letter by letter"


def test_of_a_prompt_that_is_too_long_what_makes_it_so_is_told(prompts):
    """Image tokens are counted, smaller images advised where they help, and a rewrite that is too long is named."""
    small = replace(WIDE, images=(Image.new("RGB", (112, 84)),))
    length, images = prompts.count_tokens(small.text, small.image_sizes), prompts.count_image_tokens(small.image_sizes)
    assert images == 12 < length / 2
    told = rf"its prompt has {length} tokens \(12 of them image tokens\), above .*\({length - 1}\); raise that\. Fix"
    knobs = ["--share.transforms.probability", "0", "--data.max_prompt_length", str(length - 1)]
    with pytest.raises(BadRowError, match=told):
        fit(prompts, [small], *knobs)
    plain = prompts.count_tokens(GOOD.text, ())
    with pytest.raises(BadRowError, match=rf"its prompt has {plain} tokens, above .*; raise that\. Fix"):
        fit(prompts, [GOOD], "--data.max_prompt_length", str(plain - 1))
    rewritten = replace(GOOD, variants=("What is 1 plus 1?", "What is " + "1 + " * 50 + "1?"))
    told = r"its variant 1 \(from 0\) makes a prompt of \d+ tokens, above .*, and the original fits; leave that"
    with pytest.raises(BadRowError, match=told):
        fit(prompts, [rewritten], "--data.max_prompt_length", str(plain + 10))


@pytest.mark.parametrize("kind", TRANSFORMS)
def test_the_size_of_a_transformed_image_is_known(kind):
    draw = np.random.default_rng(1)
    for size in [(1, 1), (5, 300), *map(tuple, draw.integers(1, 400, size=(12, 2)).tolist())]:
        assert TRANSFORMS[kind].apply(Image.new("RGB", size), draw).size == TRANSFORMS[kind].resized(size)


def test_old_runs_know_their_data_again_and_lists_of_answers_are_told_apart():
    """The first digest was written down before answers could be lists."""
    asked = Problem("good", "What is 1 + 1?", (), "2", ("What is 1 plus 1?",))
    assert fingerprint([asked]) == "c10b57c31c91c259d79ae5c9a672b8b2fec9062d82bebb411fe241ea504ef326"
    lists = [replace(asked, answer=answer) for answer in (("2",), ("2", "two"), ("two", "2"), ('["2", "two"]',))]
    assert len({fingerprint([problem]) for problem in (asked, *lists, replace(asked, answer='["2", "two"]'))}) == 6
