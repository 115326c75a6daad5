"""A transform's sentence is true of its pixels: an arrow is drawn, transformed, and read back.

The reader knows nothing of the code under test: it finds the arrow's parts by colour.
"""

import re
from typing import get_args

import numpy as np
import pytest
from PIL import Image, ImageDraw

from sharevl_lite.config import MIRRORS, TransformName
from sharevl_lite.variants import TRANSFORMS

SIZE = (90, 60)
STEPS = {"up": (0, -1), "right": (1, 0), "down": (0, 1), "left": (-1, 0)}
CLOCKWISE = ["up", "right", "down", "left"]


def draw_arrow(direction, flag):
    """A black shaft with a red tip and a blue flag at its side; the flag tells a mirror from a rotation."""
    image = Image.new("RGB", SIZE, "white")
    draw = ImageDraw.Draw(image)
    middle = np.array(SIZE) // 2
    forward, aside = np.array(STEPS[direction]), np.array(STEPS[flag])
    for step in range(-20, 21):
        square(draw, middle + step * forward, 2, "black")
    square(draw, middle + 22 * forward, 5, "red")
    square(draw, middle + 9 * aside - 8 * forward, 4, "blue")
    return image


def square(draw, centre, radius, colour):
    draw.rectangle([*(int(v) for v in centre - radius), *(int(v) for v in centre + radius)], fill=colour)


def read_arrow(image):
    """(where the arrow points, on which side its flag is)."""
    pixels = np.asarray(image).astype(int)
    red = centre_of((pixels[..., 0] > 200) & (pixels[..., 1] < 80))
    blue = centre_of((pixels[..., 2] > 200) & (pixels[..., 1] < 80))
    black = centre_of(pixels.sum(-1) < 120)
    forward = red - black
    aside = blue - black
    aside = aside - forward * (aside @ forward) / (forward @ forward)
    return nearest_direction(forward), nearest_direction(aside)


def centre_of(mask):
    rows, columns = np.nonzero(mask)
    return np.array([columns.mean(), rows.mean()])


def nearest_direction(vector):
    return max(STEPS, key=lambda name: np.dot(vector, STEPS[name]))


def direction_as_told(sentence, direction):
    """Where a direction ends up, by the words of a sentence alone."""
    turned = re.search(r"rotated (\d+) degrees( clockwise| counterclockwise)?\.", sentence)
    if turned:
        quarters = int(turned[1]) // 90
        if quarters % 2:
            assert turned[2], "a quarter turn needs its direction"
        sign = -1 if turned[2] == " counterclockwise" else 1
        return CLOCKWISE[(CLOCKWISE.index(direction) + sign * quarters) % 4]
    swaps = {"left to right": {"left": "right", "right": "left"}, "top to bottom": {"up": "down", "down": "up"}}
    mirrored = re.search(r"mirrored (left to right|top to bottom)\.", sentence)
    if mirrored:
        return swaps[mirrored[1]].get(direction, direction)
    assert "noise" in sentence, f"the test cannot read {sentence!r}"
    return direction


ARROWS = [(d, f) for d in STEPS for f in STEPS if np.dot(STEPS[d], STEPS[f]) == 0]


@pytest.mark.parametrize(("direction", "flag"), ARROWS)
def test_the_reader_reads_what_was_drawn(direction, flag):
    assert read_arrow(draw_arrow(direction, flag)) == (direction, flag)


@pytest.mark.parametrize("name", TRANSFORMS)
@pytest.mark.parametrize(("direction", "flag"), ARROWS)
def test_sentence_is_true_of_the_pixels(name, direction, flag):
    transform = TRANSFORMS[name]
    changed = transform.apply(draw_arrow(direction, flag), np.random.default_rng(0))
    sentence = transform.sentence(1)
    assert read_arrow(changed) == (direction_as_told(sentence, direction), direction_as_told(sentence, flag))
    turned_aside = " 90 degrees" in sentence
    assert changed.size == (SIZE[::-1] if turned_aside else SIZE)


@pytest.mark.parametrize("name", [name for name in TRANSFORMS if not name.startswith("noise")])
def test_no_pixel_is_lost_or_blended(name):
    pixels = np.random.default_rng(0).integers(256, size=(7, 5, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    changed = TRANSFORMS[name].apply(image, np.random.default_rng(0))
    assert sorted(map(tuple, np.asarray(changed).reshape(-1, 3))) == sorted(map(tuple, pixels.reshape(-1, 3)))
    assert np.array_equal(np.asarray(image), pixels)


@pytest.mark.parametrize("name", [name for name in TRANSFORMS if name.startswith("noise")])
def test_noise_has_the_deviation_it_claims(name):
    transform = TRANSFORMS[name]
    told = int(re.search(r"standard deviation (\d+)", transform.sentence(1))[1])
    assert name == f"noise_{told}"
    grey = Image.new("RGB", (240, 200), (128, 128, 128))
    changed = transform.apply(grey, np.random.default_rng(1))
    difference = np.asarray(changed).astype(float) - 128
    # Clipping at 2.5 deviations takes 1.3% off the deviation of noise_50; the estimate itself scatters by 0.2%.
    assert difference.std() == pytest.approx(told, rel=0.02)
    assert abs(difference.mean()) < 0.02 * told
    channels = difference.reshape(-1, 3).T
    assert np.abs(np.corrcoef(channels) - np.eye(3)).max() < 0.03
    assert changed.mode == "RGB"


@pytest.mark.parametrize("level", [0, 255])
def test_noise_is_clipped_and_does_not_wrap_around(level):
    changed = TRANSFORMS["noise_50"].apply(Image.new("RGB", (50, 50), (level,) * 3), np.random.default_rng(0))
    assert np.abs(np.asarray(changed).astype(int) - level).max() < 50 * 6
    assert (np.asarray(changed) == level).mean() > 0.45


def test_noise_differs_between_draws():
    rng = np.random.default_rng(0)
    grey = Image.new("RGB", (8, 8), (128,) * 3)
    first, second = (np.asarray(TRANSFORMS["noise_10"].apply(grey, rng)) for _ in range(2))
    assert not np.array_equal(first, second)


def test_registry_holds_exactly_the_names_of_the_recipe():
    assert set(TRANSFORMS) == set(get_args(TransformName))
    assert all(name == transform.name for name, transform in TRANSFORMS.items())
    assert {name for name in TRANSFORMS if "mirror" in TRANSFORMS[name].sentence(1)} == MIRRORS


def test_sentences_are_distinct_and_speak_of_several_images():
    sentences = {transform.sentence(count) for transform in TRANSFORMS.values() for count in (1, 3)}
    assert len(sentences) == 2 * len(TRANSFORMS)
    for transform in TRANSFORMS.values():
        assert transform.sentence(1).startswith("The image ")
        assert transform.sentence(2) == transform.sentence(1).replace("The image ", "Each image ")
        assert "<image>" not in transform.sentence(1)
