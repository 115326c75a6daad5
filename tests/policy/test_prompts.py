"""Prompts: their length is known from image sizes alone, equal images have one key, and a frame is their chat text."""

import copy

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image
from tiny_models import CHAT_TEMPLATE, FAMILIES, MERGED, encoder, picture, tiny_policy, tiny_processor
from tokenizers.normalizers import NFC

from sharevl_lite.config import DataSection
from sharevl_lite.policy.prompts import PromptEncoder, PromptRenderer

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


@pytest.fixture(scope="module", params=FAMILIES)
def composing(request):
    """Prompts for a tokenizer that writes letters in normal form C first, as Qwen's does."""
    processor = copy.deepcopy(tiny_processor(request.param))
    processor.tokenizer.backend_tokenizer.normalizer = NFC()
    return PromptRenderer(processor)


@settings(max_examples=60, deadline=None)
@given(question=st.text(max_size=40).map(lambda text: text.replace("<", "")))
@example(question="\u0958\U0001d160\ufb2c" * 9)  # letters that this form writes as two or three
@example(question="")
def test_no_prompt_has_more_tokens_than_its_bound(composing, question):
    for text, sizes in ((question, []), (f"<image>{question}<image>", [(64, 96), (200, 70)])):
        assert composing.count_tokens(text, sizes) <= composing.bound_tokens(text, sizes), text


def test_a_bound_is_close_enough_to_spare_the_tokenizer(monkeypatch):
    prompts = encoder(tiny_policy("qwen2_5_vl"))
    question, sizes = "<image>How many?", [(64, 96)]
    around = len(prompts.render(question).encode()) + prompts.count_image_tokens(sizes)
    monkeypatch.setattr(PromptRenderer, "longest", None)
    assert prompts.bound_tokens(question, sizes) == around


def test_equal_pixels_have_one_key():
    prompts = encoder(tiny_policy("qwen2_5_vl"))
    grey, same, other = (Image.new("RGB", (56, 56), colour) for colour in ("grey", "grey", "white"))
    one, two = prompts.encode("<image><image>?", [grey, other]), prompts.encode("<image>!", [same])
    assert len(one.images) == 2
    assert two.prefix.image_keys == one.prefix.image_keys[:1]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("size", [(28, 28), (61, 35), (200, 90), (9, 40), (31, 400)], ids=str)
def test_pictures_have_the_size_that_the_processor_gives_them(family, size):
    """An engine that gets them cuts the same patches; to the processor they are as good as the originals."""
    policy = tiny_policy(family)
    values = np.random.default_rng(0).integers(256, size=(8, 8, 3), dtype=np.uint8)
    original = Image.fromarray(values).resize(size, Image.Resampling.BICUBIC)
    prompt = encoder(policy).encode("<image>What?", (original,))
    (picture,) = prompt.pictures
    assert picture.width % MERGED[family] == picture.height % MERGED[family] == 0
    (image,) = prompt.images.values()
    for one in (original, picture):
        batch = policy.processor(text=[prompt.text], images=[one], return_tensors="pt")
        assert batch["input_ids"][0].tolist() == prompt.prefix.ids_P.tolist()
        assert batch["image_grid_thw"][0].tolist() == image.grid_3.tolist()
        # Pillow and torchvision round a bicubic resize to whole levels, 1/255 over a deviation of 0.27: two at most.
        assert (batch["pixel_values"] - image.patches_LD).abs().max().item() < 2.5 / 255 / 0.26
    again = encoder(policy).encode("<image>What?", (picture,))
    assert again.images.keys() == prompt.images.keys()


@pytest.mark.parametrize("system", [None, "Answer in one {word}."])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_frame_makes_the_chat_text_of_any_question(family, system):
    renderer = PromptRenderer(tiny_processor(family), "Look: <image>{problem}\n\\boxed{{}}. ", system)
    frame = renderer.frame()
    for question, _ in [*QUESTIONS, (" {a} \n", []), ("<image>\n", []), ("<image> <image><image>", [])]:
        assert frame.around(question) == renderer.render(question)


@pytest.mark.parametrize(
    ("part", "instead"),
    [
        ("{{ part['text'] }}", "{{ part['text'] | trim }}"),
        ("{{ part['text'] }}", "{{ part['text'] | upper }}"),
        ("<|vision_start|>", "Picture {{ loop.index }}: <|vision_start|>"),
        ("{% for part in message['content'] %}", "{% for part in message['content'] | sort(attribute='type') %}"),
    ],
)
def test_a_template_that_changes_questions_has_no_frame(part, instead):
    processor = copy.copy(tiny_processor("qwen2_5_vl"))
    processor.chat_template = CHAT_TEMPLATE.replace(part, instead)
    assert processor.chat_template != CHAT_TEMPLATE
    assert PromptRenderer(processor).frame() is None


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64], ids=str)
def test_patches_wait_in_the_precision_that_the_vision_tower_reads(family, dtype):
    """To the bit the tower's input, and never more bytes than the processor's float32."""
    policy = tiny_policy(family, dtype=dtype)
    images = [picture(family, 3, 2, seed=1), picture(family, 2, 4, seed=2)]
    as_made = encoder(policy).encode("<image><image>?", images).images
    kept = PromptEncoder.of(policy, DataSection()).encode("<image><image>?", images).images
    assert kept.keys() == as_made.keys()
    for key, image in kept.items():
        patches = as_made[key].patches_LD
        assert patches.dtype == torch.float32
        assert image.patches_LD.element_size() == min(dtype.itemsize, 4)
        assert torch.equal(image.patches_LD.to(dtype), patches.to(dtype))
        assert torch.equal(image.grid_3, as_made[key].grid_3)
