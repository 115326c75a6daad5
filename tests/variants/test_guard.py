"""The guard: mirrors and blurs only where the problem bears them."""

from typing import get_args

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from sharevl_lite.config import DataSection, ShareSection, TransformName, TransformSection
from sharevl_lite.data import load_problems
from sharevl_lite.data.problem import Problem
from sharevl_lite.variants import expand_problem
from sharevl_lite.variants.expand import noise_strength
from sharevl_lite.variants.guard import allowed_kinds, speaks_of_sides, writing
from sharevl_lite.variants.transforms import TRANSFORMS

ALL = list(get_args(TransformName))
MIRRORED = {"mirror_horizontal", "mirror_vertical"}
WORDS = ("Angle is 30", "the total 1,234 units", "Price per item", "Sales in 2021", "Answer it", "North side door")


def picture(px=0, lines=(), size=(640, 480)):
    """White, with lines of writing."""
    image = Image.new("RGB", size, "white")
    for number, line in enumerate(lines):
        ImageDraw.Draw(image).text((30, 40 + number * px * 1.6), line, fill="black", font=ImageFont.load_default(px))
    return image


def diagram(rng, lines):
    """Lines and circles without labels."""
    image = Image.new("RGB", (600, 500), "white")
    draw = ImageDraw.Draw(image)
    for _ in range(lines):
        draw.line(rng.integers(20, 480, 4).tolist(), fill="black", width=3)
        x, y, radius = rng.integers(80, 400, 3).tolist()
        radius = 20 + radius % 60
        draw.ellipse([x - radius, y - radius, x + radius, y + radius], outline="black", width=3)
    return image


def problem(text="How many apples are there?", image=None, **fields):
    return Problem(id="a", text="<image>" + text, images=[image or picture()], answer="3", **fields)


def kinds(asked, **section):
    return set(allowed_kinds(asked, TransformSection(kinds=ALL, **section)))


def test_mirrors_need_a_permission_and_then_pass_the_guard():
    assert kinds(problem()).isdisjoint(MIRRORED)
    assert kinds(problem(), allow_mirrors=True) == set(ALL)
    assert kinds(problem("What is left of the tree?"), allow_mirrors=True).isdisjoint(MIRRORED)
    assert kinds(problem("What is left of the tree?"), allow_mirrors=True, guard=False) == set(ALL)
    assert kinds(problem(variants=("<image>Count what is on the right.",)), allow_mirrors=True).isdisjoint(MIRRORED)
    assert kinds(problem(image=picture(24, WORDS[:2])), allow_mirrors=True).isdisjoint(MIRRORED)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("Where is the dog?", "[4, 2, 30, 40]"),
        ("Where is the dog?", r'{"bbox_2d": [4.5, 2, 30, 40]}'),
        ("Give the bounding box of the dog.", "4 2 30 40"),
        ("Where is the dog? Answer as [x1,y1,x2,y2].", "4 2 30 40"),
        ("Point to the dog in pixel coordinates.", "(4, 2)"),
        ("Where is the dog (x_min, y_min)?", "4 2"),
        ("Where is the dog?", "<box>(4,2),(30,40)</box>"),
        ("Where is the dog?", "<|box_start|>(4,2),(30,40)<|box_end|>"),
        ("Where is the dog?", "(4, 2), (30, 40)"),
        ("Where is the dog?", "[0.1,.2,.3,.4]"),
        ("Locate the dog.", "[12, 30]"),
    ],
)
def test_nothing_moves_where_the_answer_is_a_place_in_the_image(text, answer):
    asked = Problem(id="a", text="<image>" + text, images=[picture()], answer=answer, allow_mirrors=True)
    left = kinds(asked)
    moving = ("rotate", "mirror", "tilt", "scale")
    assert left == {kind for kind in ALL if not kind.startswith(moving)}
    assert kinds(asked, guard=False) == set(ALL)
    there = Problem(id="a", text=asked.text, images=[picture()], answer=answer, transforms=frozenset({"rotate_180"}))
    assert kinds(there) == {"rotate_180"}


def test_the_guard_looks_at_every_accepted_answer():
    box = Problem(id="a", text="<image>Where is it?", images=[picture()], answer=("by the tree", "[4, 2, 30, 40]"))
    assert not {"rotate_90_cw", "scale_50"} & kinds(box)
    side = Problem(id="a", text="<image>Where is it?", images=[picture()], answer=("by the tree", "on the left"))
    assert kinds(side, allow_mirrors=True).isdisjoint(MIRRORED)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("What are the coordinates of A?", "(3, -2)"),
        ("How many boxes are there?", "[3, 4]"),
        ("Find the roots x1, x2 of the equation.", "1, 2"),
        ("Which line goes through A(x1, y1) and B(x2, y2)?", "AB"),
        ("List the angles.", "30, 60, 90, 180"),
        ("Solve for x and y.", "x=1, y=2"),
    ],
)
def test_other_coordinates_and_lists_turn_with_the_image(text, answer):
    asked = Problem(id="a", text="<image>" + text, images=[picture()], answer=answer)
    assert {"rotate_90_cw", "scale_50", "tilt_5_cw"} <= kinds(asked)


def test_what_moves_is_what_changes_where_a_mark_lies():
    """A black square near a corner, found again by its pixels."""
    image = Image.new("RGB", (80, 60), "white")
    ImageDraw.Draw(image).rectangle([50, 8, 59, 17], fill="black")
    for name, transform in TRANSFORMS.items():
        changed = np.asarray(transform.apply(image, np.random.default_rng(0)).convert("L"))
        rows, columns = np.nonzero(changed < 90)
        centre = columns.mean(), rows.mean()
        assert transform.moves == (np.hypot(centre[0] - 54.5, centre[1] - 12.5) > 2), name


def test_a_row_has_the_last_word():
    told = problem("What is left?", image=picture(12, WORDS), transforms=frozenset({"mirror_horizontal", "noise_50"}))
    assert kinds(told) == {"mirror_horizontal", "noise_50"}
    assert kinds(problem(transforms=frozenset())) == set()
    assert kinds(problem("Which way is left?", allow_mirrors=True)) > MIRRORED


def test_small_writing_is_not_blurred():
    assert kinds(problem(image=picture(12, WORDS[:3]))) == set(ALL) - MIRRORED - {"noise_50", "scale_50", "jpeg_20"}
    assert kinds(problem(image=picture(40, WORDS[:3]))) == set(ALL) - MIRRORED
    assert kinds(problem(image=picture(12, WORDS[:3])), guard=False) == set(ALL) - MIRRORED


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Which object is to the left of the cube?", True),
        ("Does the wheel turn counter-clockwise?", True),
        ("What is the sum of the RIGHT column?", True),
        ("Which letter comes next?", True),
        ("In $\\triangle ABC$, find $x$.", True),
        ("Find AB.", True),
        ("How far is point A from the wall?", True),
        ("Which object is above the cube?", True),
        ("Is the arrow pointing up or down?", True),
        ("Which city lies northeast of Bonn?", True),
        ("Which shape was flipped?", True),
        ("What time is shown?", True),
        ("What is the slope of the line?", True),
        ("Is the function increasing?", True),
        ("Which way does the gear turn?", True),
        ("Which bar is first?", True),
        ("What does the license plate say?", True),
        ("What number is on the bus?", True),
        ("Which hand holds the ball?", True),
        ("Is the correlation positive or negative?", True),
        ("Does the graph rise?", True),
        ("What digit is this?", True),
        ("钟表显示几点？", True),
        ("图中写的是什么字？", True),
        ("What number of cubes is there?", False),
        ("东边有几个？", True),
        ("图中左边有几个？", True),
        ("A right triangle has legs 3 and 4. What is the hypotenuse?", False),
        ("Is this a right-angled figure with right angles?", False),
        ("How many bright red spheres are there?", False),
        ("What is 2 + 3?", False),
    ],
)
def test_texts_that_a_mirror_would_change(text, expected):
    assert speaks_of_sides([text]) is expected


def test_writing_is_found_and_pictures_without_it_mostly_pass(capsys):
    rng = np.random.default_rng(0)
    written = [
        picture(px, rng.choice(WORDS, count)) for px in (12, 16, 24, 36) for count in (1, 2, 4) for _ in range(5)
    ]
    digits = load_problems("builtin:digits", DataSection(), split="train", limit=100).problems
    scenes = {
        "digits": [asked.images[0] for asked in digits if asked.images],
        "diagrams": [diagram(rng, int(rng.integers(1, 6))) for _ in range(40)],
        "gradients": [Image.linear_gradient("L").rotate(angle).convert("RGB") for angle in range(0, 360, 18)],
        "patches": [
            Image.fromarray(rng.integers(256, size=(12, 16, 3), dtype=np.uint8)).resize((640, 480)) for _ in range(30)
        ],
    }
    found = np.mean([writing(image)[0] for image in written])
    false = {name: np.mean([writing(image)[0] for image in images]) for name, images in scenes.items()}
    with capsys.disabled():
        print(f"\nwriting found: {found:.0%}; taken for writing: {', '.join(f'{n} {v:.0%}' for n, v in false.items())}")
    assert found == 1.0
    assert false["digits"] == 0.0
    assert false["gradients"] == 0.0
    assert false["patches"] <= 0.15
    assert false["diagrams"] <= 0.6  # lines that cross; in doubt there is no mirror


@pytest.mark.parametrize("decay", ["none", "linear", "sigmoid"])
def test_noise_fades_from_full_strength_to_nothing(decay):
    strengths = [noise_strength(decay, step / 20) for step in range(21)]
    assert strengths[0] == pytest.approx(1.0)
    assert strengths == sorted(strengths, reverse=True)
    assert strengths[-1] == pytest.approx(1.0 if decay == "none" else 0.0)
    assert noise_strength(decay, 0.5) == pytest.approx(1.0 if decay == "none" else 0.5)
    if decay == "sigmoid":
        assert strengths[2] > noise_strength("linear", 0.1) > strengths[18]


def test_a_variant_says_the_strength_it_has():
    section = TransformSection(probability=1.0, kinds=["noise_50"], noise_decay="linear")
    share = ShareSection(num_variants=2, transforms=section)
    half = expand_problem(problem(), share, seed=0, progress=0.5)[1]
    assert half.transform == "noise_25"
    assert "standard deviation 25 " in half.text
    last = expand_problem(problem(), share, seed=0, progress=1.0)[1]
    assert last.transform is None
    assert last.text == problem().text


@pytest.mark.parametrize(
    ("asked", "section", "held"),
    [
        (problem(), {}, False),
        (problem(image=picture(12, WORDS)), {}, True),
        (problem(image=picture(12, WORDS)), {"guard": False}, False),
        (problem(image=picture(12, WORDS)), {"kinds": ["rotate_180"]}, False),
        (problem(image=picture(12, WORDS), transforms=frozenset({"rotate_180"})), {}, False),
        (problem("What is left of the tree?"), {"kinds": ["mirror_horizontal"], "allow_mirrors": True}, True),
        (problem("What is left of the tree?"), {"kinds": ["mirror_horizontal"]}, False),  # nobody allowed a mirror
        (problem("Give the bounding box of the tree."), {}, True),
        (problem(image=picture(12, WORDS)), {"probability": 0.0}, False),
    ],
)
def test_a_variant_says_whether_the_guard_narrowed_its_draw(asked, section, held):
    section = TransformSection(**{"probability": 1.0, "kinds": ALL, **section})
    first, *others = expand_problem(asked, ShareSection(num_variants=4, transforms=section), seed=0)
    assert [variant.guarded for variant in (first, *others)] == [False, held, held, held]
