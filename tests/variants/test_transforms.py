"""A transform's sentence is true of its pixels: an arrow is drawn, transformed, and read back.

The reader knows nothing of the code under test: it finds the arrow's parts by colour.
"""

import math
import re
import time
from typing import get_args

import numpy as np
import pytest
from PIL import Image, ImageDraw

from sharevl_lite.config import TransformName
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
    red = centre_of((pixels[..., 0] > 150) & (pixels[..., 1] < 80))
    blue = centre_of((pixels[..., 2] > 150) & (pixels[..., 1] < 80))
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
    unmoved = r"noise|tilted by 5 degrees|scaled to 50 percent|(brightness|contrast) changed|compressed as JPEG"
    assert re.search(unmoved, sentence), f"the test cannot read {sentence!r}"
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
    if " 90 degrees" in sentence:
        assert changed.size == SIZE[::-1]
    elif "50 percent of its width" in sentence:
        assert changed.size == (SIZE[0] // 2, SIZE[1] // 2)
    elif "tilted" not in sentence:
        assert changed.size == SIZE


def angle_of_a_line(image):
    """Degrees by which a horizontal line was turned clockwise."""
    rows, columns = np.nonzero(np.asarray(image.convert("L")) < 128)
    return np.degrees(np.arctan(np.polyfit(columns, rows, 1)[0]))


@pytest.mark.parametrize(("name", "clockwise"), [("tilt_5_cw", 5), ("tilt_5_ccw", -5)])
def test_a_tilt_turns_as_it_says_and_cuts_no_corner(name, clockwise):
    image = Image.new("RGB", (401, 301), "white")
    ImageDraw.Draw(image).line([(20, 150), (380, 150)], fill="black", width=3)
    changed = TRANSFORMS[name].apply(image, np.random.default_rng(0))
    assert angle_of_a_line(changed) == pytest.approx(clockwise, abs=0.3)
    assert ("counterclockwise" in TRANSFORMS[name].sentence(1)) == (clockwise < 0)
    black = Image.new("RGB", (101, 81))
    kept = np.asarray(TRANSFORMS[name].apply(black, np.random.default_rng(0)))
    assert (kept == 0).all(-1).sum() == pytest.approx(101 * 81, rel=0.01)
    assert kept[0, 0].tolist() == [255, 255, 255]


def test_a_smaller_image_is_the_mean_of_squares():
    pixels = np.random.default_rng(0).integers(256, size=(8, 6, 3), dtype=np.uint8)
    changed = np.asarray(TRANSFORMS["scale_50"].apply(Image.fromarray(pixels), np.random.default_rng(0)))
    means = pixels.reshape(4, 2, 3, 2, 3).mean((1, 3))
    assert np.abs(changed - means).max() <= 0.51


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("brightness_70", {0: 0, 100: 70, 200: 140, 255: 178}),
        ("brightness_130", {0: 0, 100: 130, 200: 255, 255: 255}),
        ("contrast_70", {0: 38, 128: 128, 228: 198, 255: 217}),
        ("contrast_130", {0: 0, 128: 128, 228: 255, 28: 0}),
    ],
)
def test_tones_by_hand(name, expected):
    for value, after in expected.items():
        changed = TRANSFORMS[name].apply(Image.new("RGB", (2, 2), (value,) * 3), np.random.default_rng(0))
        assert abs(changed.getpixel((0, 0))[0] - after) <= 1


def test_jpeg_loses_more_at_lower_quality_and_keeps_the_picture():
    image = draw_arrow("up", "left")
    errors = [
        np.abs(
            np.asarray(TRANSFORMS[name].apply(image, np.random.default_rng(0))).astype(int) - np.asarray(image)
        ).mean()
        for name in ("jpeg_50", "jpeg_20")
    ]
    assert 0 < errors[0] < errors[1] < 12


@pytest.mark.parametrize("name", [name for name in TRANSFORMS if name.startswith(("rotate", "mirror"))])
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
    reversing = {name for name, transform in TRANSFORMS.items() if transform.reverses}
    assert {name for name in TRANSFORMS if "mirror" in TRANSFORMS[name].sentence(1)} == reversing


def test_sentences_are_distinct_and_speak_of_several_images():
    sentences = {transform.sentence(count) for transform in TRANSFORMS.values() for count in (1, 3)}
    assert len(sentences) == 2 * len(TRANSFORMS)
    for transform in TRANSFORMS.values():
        assert transform.sentence(1).startswith("The image ")
        assert transform.sentence(2) == transform.sentence(1).replace("The image ", "Each image ")
        assert "<image>" not in transform.sentence(1)


def test_noise_is_gaussian_and_independent_within_an_image():
    changed = TRANSFORMS["noise_25"].apply(Image.new("RGB", (600, 500), (128,) * 3), np.random.default_rng(3))
    noise = (np.asarray(changed).astype(float) - 128) / 25
    for steps in (12, 25, 50, 75):  # noise is rounded: up to so many steps of 1/25 deviation, and half a step more
        share = math.erf((steps + 0.5) / 25 / math.sqrt(2))
        assert (np.abs(noise) < (steps + 0.5) / 25).mean() == pytest.approx(share, abs=0.004)
    assert (noise**3).mean() == pytest.approx(0.0, abs=0.03)
    assert (noise**4).mean() == pytest.approx(3.0, abs=0.1)
    for shifted in (noise[1:], noise[:, 1:]):
        same = noise[: shifted.shape[0], : shifted.shape[1]]
        assert abs((same * shifted).mean()) < 0.01


def test_noise_is_as_large_as_any_image():
    changed = TRANSFORMS["noise_10"].apply(Image.new("RGB", (1500, 1300), (128,) * 3), np.random.default_rng(0))
    assert np.asarray(changed).astype(float).std() == pytest.approx(10, rel=0.02)


@pytest.mark.parametrize("name", TRANSFORMS)
def test_a_transform_costs_milliseconds(name):
    """5 ms is the goal on a core of one's own (make bench-transforms); a busy machine gets ten times that."""
    rng = np.random.default_rng(0)
    image = Image.new("RGB", (1024, 1024), "grey")
    TRANSFORMS[name].apply(image, rng)
    times = []
    for _ in range(8):
        started = time.perf_counter()
        TRANSFORMS[name].apply(image, rng)
        times.append(time.perf_counter() - started)
    assert min(times) < 0.050


def test_noise_can_be_weaker_down_to_nothing():
    assert TRANSFORMS["noise_50"].weaker(0.5) == TRANSFORMS["noise_25"]
    assert TRANSFORMS["noise_10"].weaker(0.04) is None
    assert "standard deviation 7 " in TRANSFORMS["noise_10"].weaker(0.7).sentence(1)
