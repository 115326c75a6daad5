"""What the rules make of real questions, past the filters: these rewrites, and of unclear grammar none."""

import pytest

from sharevl_lite.rewrite.filters import Candidate, rejected_by, sift
from sharevl_lite.rewrite.rules import rewrite_by_rules

LINES = ("Answer the following question. ", "Solve the following problem. ", "Look at the image")


def accepted(question):
    """All accepted rewrites but those that put a line before the question."""
    texts, _ = sift(question, rewrite_by_rules(question, 100, seed=0), "no answer")
    return {text for text in texts if not text.removeprefix("<image>").startswith(LINES)}


VERBS = ("Find", "Determine", "Calculate", "Work out")


@pytest.mark.parametrize(
    "thing",
    [
        r"the length of $\overline{AC}$",
        "the area of the parallelogram",
        r"the measure of $\angle ABC$",
        "the value of x",
        "the slope of the line that passes through (0, 1) and (2, 5)",
        "the measure of each numbered angle",
        "the range of the function",
    ],
)
@pytest.mark.parametrize("image", ["", "<image>"])
def test_a_quantity_is_asked_for_in_every_form(thing, image):
    forms = {f"{image}{verb} {thing}." for verb in VERBS} | {f"{image}What is {thing}?"}
    for form in sorted(forms):
        assert accepted(form) == forms - {form}


@pytest.mark.parametrize(
    ("question", "rewrites"),
    [
        ("What is the value of $x$ in the figure, if $AB=5$ cm?",
         {"If $AB=5$ cm, what is the value of $x$ in the figure?"}),
        ("Find the value of x, if the perimeter is 24.", {"If the perimeter is 24, find the value of x."}),
        (r"If $AB \parallel CD$, find $x$.", {r"Find $x$ if $AB \parallel CD$."}),
        ("Which side is parallel to AB?",
         {"Name the side that is parallel to AB.", "State which side is parallel to AB."}),
        ("Which angle is the largest?", {"Identify the angle that is the largest."}),
        ("Which organism is eaten by the hawk?", {"Name the organism that is eaten by the hawk."}),
        ("Which bar has the largest value?", {"Identify the bar that has the largest value."}),
        ("Which planet has rings?", {"Determine which planet has rings."}),
        ("Which organism is a producer?\n(A) grass\n(B) fox",
         {"Name the organism that is a producer.\n(A) grass\n(B) fox"}),
        ("Which of the following is a rhombus?", {"State which of the following is a rhombus."}),
        ("How many sides does the polygon have?", {"Determine how many sides the polygon has."}),
        ("How many legs do the animals have?", {"State how many legs the animals have."}),
        ("How many more red balls are there than blue balls?",
         {"Determine how many more red balls there are than blue balls."}),
        ("How many bars are above 20?", {"Determine how many bars are above 20."}),
        ("How many triangles have an area greater than 5?",
         {"Determine how many triangles have an area greater than 5."}),
        ("The pool is 3 ft deep and 20 ft wide. What is its volume if it is 40 ft long?",
         {"The pool is 3 feet deep and 20 feet wide. What is its volume if it is 40 feet long?"}),
        ("The area is 25 cm². Find the side length.", {"The area is 25 square centimeters. Find the side length."}),
    ],
)  # fmt: skip
def test_sure_rewrites_are_made(question, rewrites):
    assert rewrites <= accepted(question)


@pytest.mark.parametrize(
    "question",
    [
        # the subject follows the verb
        "Which side is AB parallel to?",
        "Which of the lines is AB parallel to?",
        "Which team has John played for?",
        "Which animal has the boy fed?",
        "Which color is the car?",
        "Which color is the largest of the balls?",
        "Which animal is this?",
        "Which hand is the man using?",
        "Which season is skiing season?",
        "Which day is Tom free if he works on Monday?",
        "Which planet is the Moon closest to?",
        "How many hours are the shops open?",
        "How many inches are 3 feet?",
        "How many goals have Brazil scored?",
        "How many legs have spiders?",
        "How many of the books have the students read?",
        # no noun that is counted, no thing that is named
        "How many legs does the dog seem to have?",
        "How many legs does the man think the dogs have?",
        "How many times larger are the red bars?",
        "How many inches taller are giraffes than elephants?",
        "How many times as many dogs are there as cats?",
        "How many cubes do you think are there?",
        "Which letter best represents the nucleus?",
        "What is the base of the statue made of?",
        "What is the range of the mountain called?",
        "What is the sum of 7 + ?",
        "What is B?\nA. leaf\nB. stem",
        # two questions, or no condition
        "Which country has the most people over 65, and by how much?",
        "How many cubes are there and how many balls?",
        "Find out if AB is parallel to CD.",
        "Find x if AB = 12, rounded to the nearest tenth.",
        "If AB = 3, what is x, and what is y?",
        # a unit before a noun has no plural
        "A 10 ft ladder leans against a wall. Its foot is 6 ft from the wall. How high does it reach?",
        "Tom has 5 cm sticks and 7 cm sticks. How long are they?",
        "A 3 ft by 5 ft rug lies here. How does it look?",
        "The beach is 3 km long with a 2 km wide bay. How does it look?",
    ],
)
def test_where_the_grammar_is_unclear_there_is_no_rewrite(question):
    assert accepted(question) == set()


@pytest.mark.parametrize(
    ("question", "never"),
    [
        ("How many more red balls are there than blue balls?", "Count the more red"),
        ("The 2 kg block slides down the plane. What is the slope of the plane?", "kilograms"),
        ("What is the length of the side, if any, that is parallel to AB?", "If any"),
        ("Find the area of the circle and round to the nearest tenth.", "What is"),
        ("Which dog is bigger, the brown one or the white one?", "the dog that"),
        ("What is the number of the bus?", "Calculate"),
        ("What is the mode of transport in the picture?", "Calculate"),
        ("How many kg are there in total?", "Count the kg"),
        ("How many people are there on average?", "Count the people"),
    ],
)
def test_forms_that_a_question_does_not_take(question, never):
    assert not [text for text in accepted(question) if never in text]


@pytest.mark.parametrize("ending", ["..", ".?", ",?", ",."])
def test_two_marks_at_the_end_are_rejected(ending):
    assert rejected_by(Candidate("Find the length of $AC$.", f"What is the length of $AC${ending}", "9")) == "wording"


def test_an_ellipsis_and_an_abbreviation_end_as_they_may():
    assert (
        rejected_by(Candidate("Find the sum of 1 + 2 + 3 + ...", "Calculate the sum of 1 + 2 + 3 + ...", "9")) is None
    )
    assert rejected_by(Candidate("Count the cows of the U.S.", "How many cows are there in the U.S.?", "9")) is None
