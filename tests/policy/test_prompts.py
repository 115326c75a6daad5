"""Prompts: their length is known from image sizes alone, and equal images have one key."""

import pytest
from PIL import Image
from tiny_models import FAMILIES, encoder, tiny_policy

QUESTIONS = (
    ("How many?", []),
    ("<image>What is this?", [(64, 96)]),
    ("First <image> then <image>: which is larger?", [(200, 70), (33, 150)]),
)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("question", "sizes"), QUESTIONS)
def test_length_from_sizes_is_the_encoded_length(family, question, sizes):
    prompts = encoder(tiny_policy(family))
    images = [Image.new("RGB", size, "grey") for size in sizes]
    assert prompts.count_tokens(question, sizes) == prompts.encode(question, images).prefix.ids_P.numel()


def test_equal_pixels_have_one_key():
    prompts = encoder(tiny_policy("qwen2_5_vl"))
    grey, same, other = (Image.new("RGB", (56, 56), colour) for colour in ("grey", "grey", "white"))
    one, two = prompts.encode("<image><image>?", [grey, other]), prompts.encode("<image>!", [same])
    assert len(one.images) == 2
    assert two.prefix.image_keys == one.prefix.image_keys[:1]
