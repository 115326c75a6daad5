"""Expansion: m variants, the original kept, transforms announced once, the same draws in every process."""

import os
import re
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from sharevl_lite.config import ShareSection, TransformSection
from sharevl_lite.data import PLACEHOLDER, Problem
from sharevl_lite.variants import TRANSFORMS, expand_problem

ROOT = Path(__file__).parents[2]
ALL = sorted(TRANSFORMS)
MIRRORS_ONLY = ["mirror_horizontal", "mirror_vertical"]


def picture(seed=0, size=(6, 4)):
    return Image.fromarray(np.random.default_rng(seed).integers(256, size=(size[1], size[0], 3), dtype=np.uint8))


def problem(rewrites=3, images=1, **changes):
    lead = PLACEHOLDER * images
    variants = tuple(f"{lead}Rewrite {n}?" for n in range(rewrites))
    made = Problem("p1", f"{lead}Original?", tuple(picture(n) for n in range(images)), "1", variants)
    return replace(made, **changes)


def share(m=2, p=1.0, original="kept", kinds=None, mirrors=False):
    transforms = TransformSection(probability=p, allow_mirrors=mirrors, **({"kinds": kinds} if kinds else {}))
    return ShareSection(num_variants=m, original=original, transforms=transforms)


def pixels(images):
    return [np.asarray(image).tobytes() for image in images]


def same(first, second):
    return [(v.index, v.text, v.transform, pixels(v.images)) for v in first] == [
        (v.index, v.text, v.transform, pixels(v.images)) for v in second
    ]


# ---------------------------------------------------------------- texts


def test_kept_original_is_untouched_and_rewrites_are_not_repeated_while_they_last():
    subject = problem(rewrites=3)
    for seed in range(20):
        first, *others = expand_problem(subject, share(m=4, p=0), seed=seed)
        assert (first.text, first.images, first.transform) == (subject.text, subject.images, None)
        assert {variant.text for variant in others} == set(subject.variants)


def test_rewrites_repeat_only_when_they_run_out():
    texts = [variant.text for variant in expand_problem(problem(rewrites=2), share(m=6, p=0), seed=0)]
    assert set(texts[1:3]) == set(problem(rewrites=2).variants)
    assert set(texts[3:]) <= set(problem(rewrites=2).variants)


def test_original_is_repeated_where_there_are_no_rewrites():
    texts = [variant.text for variant in expand_problem(problem(rewrites=0), share(m=3, p=0), seed=0)]
    assert texts == ["<image>Original?"] * 3


def test_sampled_draws_the_original_like_the_others():
    subject = problem(rewrites=3)
    drawn = [expand_problem(subject, share(m=2, original="sampled"), seed=0, visit=v) for v in range(400)]
    firsts = Counter(re.sub(r".*(Original|Rewrite \d).*", r"\1", variants[0].text) for variants in drawn)
    assert len(firsts) == 4
    assert min(firsts.values()) > 60  # 100 expected, deviation 8.7
    assert all(variants[0].transform for variants in drawn)  # index 0 is transformed like the others
    assert all(variants[0].text.split(". ")[-1] != variants[1].text.split(". ")[-1] for variants in drawn)


def test_one_variant_is_the_original_alone():
    (variant,) = expand_problem(problem(), share(m=1), seed=0)
    assert (variant.index, variant.text, variant.transform) == (0, "<image>Original?", None)


# ---------------------------------------------------------------- transforms


def test_transforms_are_drawn_with_the_given_chance_and_evenly():
    kinds = ["rotate_90_cw", "rotate_180", "noise_10"]
    drawn = Counter(
        expand_problem(problem(), share(p=0.3, kinds=kinds), seed=0, visit=visit)[1].transform for visit in range(3000)
    )
    assert drawn[None] / 3000 == pytest.approx(0.7, abs=0.035)  # four deviations
    assert all(drawn[kind] / 3000 == pytest.approx(0.1, abs=0.022) for kind in kinds)


@pytest.mark.parametrize("kind", ALL)
def test_pixels_and_sentence_belong_to_the_named_transform(kind):
    subject = problem(images=2)
    _, variant = expand_problem(subject, share(kinds=[kind], mirrors=True), seed=0)
    assert variant.transform == kind
    assert variant.text.startswith(f"<image><image>{TRANSFORMS[kind].sentence(2)} Rewrite ")
    if kind.startswith("noise"):
        assert pixels(variant.images) != pixels(subject.images)
    else:
        rng = np.random.default_rng(0)
        assert pixels(variant.images) == pixels(TRANSFORMS[kind].apply(image, rng) for image in subject.images)


def test_images_of_a_problem_get_noise_of_their_own():
    grey = Image.new("RGB", (8, 8), (128,) * 3)
    _, variant = expand_problem(replace(problem(images=2), images=(grey, grey)), share(kinds=["noise_25"]), seed=0)
    first, second = pixels(variant.images)
    assert first != second


def test_mirrors_need_a_permission():
    for seed in range(50):
        _, variant = expand_problem(problem(), share(kinds=MIRRORS_ONLY), seed=seed)
        assert variant.transform is None
        assert pixels(variant.images) == pixels(problem().images)
        _, variant = expand_problem(problem(), share(kinds=[*MIRRORS_ONLY, "rotate_180"]), seed=seed)
        assert variant.transform == "rotate_180"


def test_row_or_recipe_may_permit_mirrors():
    for subject, section in (
        (problem(allow_mirrors=True), share(kinds=MIRRORS_ONLY)),
        (problem(), share(kinds=MIRRORS_ONLY, mirrors=True)),
    ):
        drawn = {expand_problem(subject, section, seed=seed)[1].transform for seed in range(30)}
        assert drawn == set(MIRRORS_ONLY)


def test_problem_without_images_is_not_transformed():
    for seed in range(20):
        assert all(v.transform is None for v in expand_problem(problem(images=0), share(m=3), seed=seed))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<image>What?", "<image>{} What?"),
        ("<image>\nWhat?", "<image>\n{} What?"),
        (" <image> <image>\n\nWhat?", " <image> <image>\n\n{} What?"),
        ("What is in <image>?", "{} What is in <image>?"),
        ("<image>First. <image>Second.", "<image>{} First. <image>Second."),
        ("<image>", "<image>{}"),
    ],
)
def test_sentence_stands_before_the_question(text, expected):
    count = text.count(PLACEHOLDER)
    subject = problem(rewrites=0, images=count, text=text)
    _, variant = expand_problem(subject, share(kinds=["rotate_180"]), seed=0)
    assert variant.text == expected.format(TRANSFORMS["rotate_180"].sentence(count))


# ---------------------------------------------------------------- determinism


def test_same_arguments_same_variants_and_others_differ():
    section = share(m=4, p=0.8, kinds=ALL, mirrors=True)
    first = expand_problem(problem(), section, seed=3, visit=1)
    assert same(first, expand_problem(problem(), section, seed=3, visit=1))
    assert not same(first, expand_problem(problem(), section, seed=3, visit=2))
    assert not same(first, expand_problem(problem(), section, seed=4, visit=1))
    assert not same(first, expand_problem(problem(id="p2"), section, seed=3, visit=1))


def test_draws_do_not_depend_on_the_size_of_the_image():
    section = share(m=6, p=0.9)
    small = expand_problem(problem(), section, seed=0)
    large = expand_problem(replace(problem(), images=(picture(size=(31, 17)),)), section, seed=0)
    assert [(v.text, v.transform) for v in small] == [(v.text, v.transform) for v in large]


SCRIPT = """
import hashlib
from PIL import Image
from sharevl_lite.config import ShareSection, TransformSection
from sharevl_lite.data import Problem
from sharevl_lite.variants import expand_problem
image = Image.linear_gradient("L").convert("RGB").resize((9, 7))
share = ShareSection(num_variants=4, transforms=TransformSection(probability=0.7))
total = hashlib.sha256()
for visit in range(8):
    problem = Problem("α", "<image>a", (image,), "1", ("<image>b", "<image>c", "<image>d"))
    for v in expand_problem(problem, share, seed=11, visit=visit):
        total.update(repr((v.index, v.text, v.transform, [i.tobytes() for i in v.images])).encode())
print(total.hexdigest())
"""


def test_every_process_draws_the_same():
    digests = set()
    for salt in ("0", "1", "random"):
        environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONHASHSEED": salt}
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, check=True
        )
        digests.add(done.stdout)
    assert len(digests) == 1


# ---------------------------------------------------------------- properties

WORDS = st.text(st.characters(codec="utf-8", exclude_characters="<"), min_size=1, max_size=20)


@st.composite
def problems(draw):
    count = draw(st.integers(0, 3))

    def text():
        pieces = draw(st.lists(WORDS, min_size=count + 1, max_size=count + 1))
        if draw(st.booleans()):
            return PLACEHOLDER * count + pieces[0]
        return PLACEHOLDER.join(pieces)

    return Problem(
        id=draw(st.text(max_size=8)),
        text=text(),
        images=tuple(picture(seed, size=(3, 2)) for seed in range(count)),
        answer="1",
        variants=tuple(text() for _ in range(draw(st.integers(0, 3)))),
        allow_mirrors=draw(st.booleans()),
    )


@st.composite
def shares(draw):
    return ShareSection(
        num_variants=draw(st.integers(1, 6)),
        original=draw(st.sampled_from(["kept", "sampled"])),
        transforms=TransformSection(
            probability=draw(st.sampled_from([0.0, 0.5, 1.0])),
            kinds=draw(st.lists(st.sampled_from(ALL), min_size=1)),
            allow_mirrors=draw(st.booleans()),
        ),
    )


# ---------------------------------------------------------------- difficulty


def test_plainer_is_the_original_in_every_variant():
    subject = problem()
    for original in ("kept", "sampled"):
        variants = expand_problem(subject, share(m=3, original=original), seed=0, difficulty="plainer")
        assert [(v.index, v.text, v.images, v.transform) for v in variants] == [
            (k, subject.text, subject.images, None) for k in range(3)
        ]


@pytest.mark.parametrize("original", ["kept", "sampled"])
def test_harder_asks_rewrites_alone(original):
    subject, section = problem(rewrites=3), share(m=3, p=0, original=original)
    for seed in range(20):
        texts = [v.text for v in expand_problem(subject, section, seed=seed, difficulty="harder")]
        assert set(texts) == set(subject.variants)
    texts = [v.text for v in expand_problem(problem(rewrites=0), section, seed=0, difficulty="harder")]
    assert texts == ["<image>Original?"] * 3


def harder_transforms(section, subject=None, visits=1500):
    subject = subject or problem()
    drawn = [expand_problem(subject, section, seed=0, visit=v, difficulty="harder") for v in range(visits)]
    return Counter(variant.transform for variants in drawn for variant in variants)


def test_harder_transforms_more_often_by_the_stronger_kinds():
    found = harder_transforms(share(m=2, p=0.3))
    assert set(found) == {None, "rotate_90_cw", "rotate_90_ccw", "rotate_180", "noise_50"}
    assert found[None] / 3000 == pytest.approx(0.4, abs=0.04), "twice 0.3 of all variants, the first included"
    tripled = ShareSection(transforms=TransformSection(probability=0.5), difficulty={"transform_factor": 3})
    assert None not in harder_transforms(tripled, visits=100)


def test_harder_keeps_to_what_the_recipe_and_the_row_allow():
    assert set(harder_transforms(share(p=0), visits=100)) == {None}, "transforms that are off stay off"
    assert set(harder_transforms(share(p=1, kinds=["noise_10", "noise_25"]), visits=100)) == {"noise_10", "noise_25"}
    guarded = share(p=1, kinds=["noise_10", "mirror_vertical"])
    assert set(harder_transforms(guarded, visits=100)) == {"noise_10"}
    assert set(harder_transforms(guarded, problem(allow_mirrors=True), visits=100)) == {"mirror_vertical"}


@pytest.mark.parametrize("difficulty", ["plainer", "usual", "harder"])
def test_each_difficulty_is_a_function_of_its_arguments(difficulty):
    section = share(m=4, p=0.5)
    first = expand_problem(problem(), section, seed=3, visit=1, difficulty=difficulty)
    assert same(first, expand_problem(problem(), section, seed=3, visit=1, difficulty=difficulty))
    if difficulty == "usual":
        assert same(first, expand_problem(problem(), section, seed=3, visit=1))


@settings(max_examples=200, deadline=None)
@given(subject=problems(), section=shares(), seed=st.integers(0, 2**32 - 1), visit=st.integers(0, 10**6))
def test_what_holds_for_every_expansion(subject, section, seed, visit):
    variants = expand_problem(subject, section, seed=seed, visit=visit)
    assert [variant.index for variant in variants] == list(range(section.num_variants))
    if section.original == "kept":
        assert variants[0].text == subject.text
        assert variants[0].images is subject.images
        assert variants[0].transform is None
    sentences = [transform.sentence(count) for transform in TRANSFORMS.values() for count in (1, 2)]
    for variant in variants:
        assert variant.text.count(PLACEHOLDER) == len(variant.images) == len(subject.images)
        assert all(image.mode == "RGB" for image in variant.images)
        told = [sentence for sentence in sentences for _ in range(variant.text.count(sentence))]
        if variant.transform is None:
            assert told == []
            assert variant.text in (subject.text, *subject.variants)
            assert pixels(variant.images) == pixels(subject.images)
        else:
            assert told == [TRANSFORMS[variant.transform].sentence(len(subject.images))]
            assert variant.text.replace(told[0] + " ", "").replace(told[0], "") in (subject.text, *subject.variants)
            assert subject.images
            assert variant.transform in section.transforms.kinds
            permitted = section.transforms.allow_mirrors or subject.allow_mirrors
            assert permitted or "mirror" not in variant.transform
