"""Variants that repeat their question: foretold from the data, and measured in a run."""

import re

import pytest
from rich.console import Console
from test_expand import problem, share

from sharevl_lite import load_recipe, metrics_log, train
from sharevl_lite.preview import preview
from sharevl_lite.variants import expand_problem
from sharevl_lite.variants.expand import words_on_repeats


@pytest.mark.parametrize(("m", "p", "bare"), [(2, 0.3, 200), (2, 0.3, 120), (4, 0.5, 200), (2, 0.0, 200)])
def test_the_share_that_is_foretold_is_that_of_many_expansions(m, p, bare):
    problems = [problem(rewrites=0 if number < bare else 3, id=f"p{number}") for number in range(200)]
    section = share(m=m, p=p)
    told = words_on_repeats(problems, section)
    assert told.startswith(f"{bare} of 200 problems have no rewrites: about")
    foretold = int(re.search(r"(\d+)%", told)[1]) / 100
    ways = [expand_problem(each, section, seed=0, visit=visit) for each in problems for visit in range(10)]
    again = [v.text == row[0].text and v.transform is None for row in ways for v in row[1:]]
    assert sum(again) / len(again) == pytest.approx(foretold, abs=0.03)


def test_nothing_is_told_where_variants_differ():
    assert words_on_repeats([problem(id=f"p{number}") for number in range(9)], share(p=0.0)) is None
    few = [problem(rewrites=0 if number == 0 else 2, id=f"p{number}") for number in range(9)]
    assert words_on_repeats(few, share(p=0.0)) is None
    bare = [problem(rewrites=0, id=f"p{number}") for number in range(9)]
    assert words_on_repeats(bare, share(p=0.9)) is None
    assert words_on_repeats(bare, share(m=1)) is None
    still = [problem(rewrites=0, id=f"p{number}", answer="[1, 2, 3, 4]") for number in range(9)]
    assert "about 100%" in words_on_repeats(still, share(p=0.9, kinds=["rotate_180"])), "a box stays where it is"
    assert "about 100%" in words_on_repeats([problem(rewrites=0, images=0)], share(p=0.9)), "text is never transformed"


@pytest.mark.slow
def test_a_run_says_so_and_measures_it(tmp_path, capsys):
    from sharevl_lite.data.digits import digits_problems

    rows = tmp_path / "rows.jsonl"
    lines = []
    for number, each in enumerate(digits_problems("train")[:4]):
        each.images[0].save(tmp_path / f"{number}.png")
        lines.append(
            f'{{"problem": "{each.text} Begin on the left.", "images": ["{number}.png"], "answer": "{each.answer}"}}\n'
        )
    rows.write_text("".join(lines))
    small = {"train.problems_per_rollout": 4, "train.problems_per_update": 4, "share.num_responses": 2}
    brief = {"data.eval": None, "train.rollouts": 1, "rollout.max_completion_length": 8, "reward.workers": 1}
    for name, kind, probability, repeated, guarded in (
        ("same", "rotate_180", 0.0, 1.0, 0.0),
        ("turned", "rotate_180", 1.0, 0.0, 0.0),
        ("guarded", "mirror_horizontal", 1.0, 1.0, 0.5),  # the question speaks of a side
    ):
        changes = {"name": name, "output_dir": str(tmp_path), "share.transforms.probability": probability}
        changes |= {"data.train": str(rows), "share.transforms.kinds": [kind], "share.transforms.allow_mirrors": True}
        recipe = load_recipe("configs/digits_cpu.yaml", {**small, **brief, **changes})
        assert ("variants          of all 4 problems: 4 of 4" in preview(recipe)) == (name == "same")
        run = train(recipe, console=Console(width=200)).run_dir
        (record,) = metrics_log.read(run / "metrics.jsonl")
        assert (record["repeated_variants"], record["guarded"]) == (repeated, guarded)
        assert ("variants  4 of 4 problems have no rewrites: about 100%" in capsys.readouterr().out) == (name == "same")
