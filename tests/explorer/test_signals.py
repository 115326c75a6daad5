"""What groups could teach: one definition in the index, the bars, the Step view and the metrics of training."""

import json
import math
import re
from dataclasses import replace

import pytest
import torch
from hostile_rows import rows
from sharevl_explorer.index import SILENT_SPREAD, Index
from sharevl_explorer.page import render
from sharevl_explorer.queries import problems, step_groups, step_means
from sharevl_explorer.state import State
from sharevl_kernels import hierarchical_advantage
from test_index import stored

from sharevl_lite.metrics_log import read as read_metrics
from sharevl_lite.store import Rewards, RolloutStore

TOTALS = {
    "rescued": [[1, 1], [0, 0]],
    "half": [[1, 1], [1, 0]],
    "mixed": [[1, 0], [0, 1]],
    "right": [[1, 1], [1, 1]],
    "shape": [[0.1, 0], [0, 0.1]],
}


def text(page):
    return " ".join(re.sub(r"<[^>]+>", " ", page).split())


def test_rewards_that_differ_by_rounding_alone_are_silent_as_in_training(tmp_path):
    assert SILENT_SPREAD == hierarchical_advantage.SILENT_SPREAD
    above = math.nextafter(SILENT_SPREAD, 1.0)
    pairs = {"noise": [0.3, 0.1 + 0.2], "border": [0.0, SILENT_SPREAD], "above": [0.0, above]}
    stored(tmp_path, 1, {name: [pair, pair] for name, pair in pairs.items()})
    found = Index([tmp_path]).rows("SELECT problem, signal, silent FROM problems")
    told = {row["problem"][2:]: (row["signal"], row["silent"]) for row in found}
    assert told == {"noise": ("none", 2), "border": ("none", 2), "above": ("own", 0)}
    rewards_PMN = torch.tensor([[pair, pair] for pair in pairs.values()], dtype=torch.float64)
    advantages = hierarchical_advantage.hierarchical_advantage(rewards_PMN)
    assert {name: int(silent) for name, silent in zip(pairs, advantages.silent_PM.sum(1), strict=True)} == {
        name: silent for name, (_, silent) in told.items()
    }


def test_bars_say_signal_first_and_then_right_or_wrong(tmp_path):
    """All wrong with a spread of the format's reward trains; a rescued group does not hide how it was."""
    stored(tmp_path, 1, TOTALS)
    page = render(Index([tmp_path]), "?view=run")
    title = re.search(r"<title>(step 1: [^<]*)</title>", page.split("Groups per step")[1])
    assert title[1] == (
        "step 1: 2 own signal, all wrong, 3 own signal, mixed, 1 rescued, all wrong, 2 rescued, all right, "
        "2 no signal, all right"
    )


@pytest.mark.parametrize(
    ("recipe", "local"),
    [
        (None, False),
        ("share: {levels: hierarchical}", False),
        ("share: {levels: global}", False),
        ("share: {levels: local, trajectories: own}", True),
        ("share: [levels", False),
        ("local", False),
    ],
)
def test_a_run_of_the_local_level_alone_rescues_nothing(tmp_path, recipe, local):
    stored(tmp_path, 1, TOTALS)
    if recipe is not None:
        (tmp_path / "recipe.yaml").write_text(recipe)
    index = Index([tmp_path])
    run, step = (render(index, query).split("<dialog")[0] for query in ("?view=run", "?view=step&step=1"))
    word = "would be rescued" if local else "rescued"
    assert re.findall(r'swatch rescued-right"></span>([^<]*)', run) == [f"{word}, all right"]
    assert f"1 {word}, all wrong, 2 {word}, all right" in run
    assert re.findall("<figcaption><span[^>]*>([a-z ]*rescued)<", run) == [word]
    assert re.findall('<option value="rescued">([^<]*)', step) == [word]
    assert f"3 {word}, " in step
    badges = re.findall('<span class="badge rescued" title="([^"]*)"><i[^>]*>⇄</i>([^<]*)', step)
    assert len(badges) == 2
    assert {label for _, label in badges} == {word}
    for told in (run, *(meaning for meaning, _ in badges)):
        assert ("only the shared advantage can teach" in told) != local
        assert ("this run trains by the local level alone" in told) == local


def test_two_runs_of_which_one_rescues_nothing(tmp_path):
    for name, levels in (("shared", "hierarchical"), ("alone", "local")):
        stored(tmp_path / name, 1, TOTALS)
        (tmp_path / name / "recipe.yaml").write_text(f"share: {{levels: {levels}}}")
    page = render(Index([tmp_path / "shared", tmp_path / "alone"]), "?view=run")
    assert ">rescued or would be rescued<" in page
    assert "only the shared advantage can teach" in page


@pytest.mark.parametrize("signal", ["", "silent", "rescued", "none", "own"])
def test_the_filter_counts_the_groups_of_the_bars(tmp_path, signal):
    stored(tmp_path, 1, TOTALS)
    index = Index([tmp_path])
    bars = {}
    for row in step_groups(index, 0, "train"):
        bars[row["signal"]] = bars.get(row["signal"], 0) + row["n"]
    page = problems(index, State(step=1, signal=signal))
    assert page.total == len(page.rows) == {"": 5, "silent": 3, "rescued": 2, "none": 1, "own": 2}[signal]
    if signal in ("", "silent"):
        assert page.rescued == bars["rescued"]
        assert page.silent == bars["rescued"] + bars["none"]
    shown = text(render(index, f"?view=step&step=1&signal={signal}"))
    assert f"{page.rescued} rescued, {page.silent - page.rescued} with no signal" in shown


def test_the_figures_are_those_of_the_training(trained):
    """vanished_local, vanished_global, rescued and gap_mean of metrics.jsonl, from the store alone."""
    index = Index([trained])
    gaps = {row["step"]: row["gap"] for row in step_means(index, 0, "train")}
    logged = [record for record in read_metrics(trained / "metrics.jsonl") if "vanished_local" in record]
    assert len(logged) == 2
    for record in logged:
        found = index.rows(
            "SELECT avg((signal = 'none')::INT) AS vanished_global, avg((signal = 'rescued')::INT) AS rescued, "
            "sum(silent) / sum(variants) AS vanished_local FROM problems WHERE split = 'train' AND step = $step",
            {"step": record["step"]},
        )[0]
        assert found == pytest.approx({name: record[name] for name in found})
        assert gaps[record["step"]] == pytest.approx(record["gap_mean"], rel=1e-5)


def test_the_gap_is_a_mean_over_tokens(tmp_path):
    """As gap_mean in the metrics: a response of three tokens weighs three times one of a single token."""
    store = RolloutStore(tmp_path)
    short, long = rows(store, 1, {"a": "one"}, variants=2, n=1)
    scorers = [replace(scorer, gap=-0.1 if scorer.variant_index else 0.0) for scorer in short.scorers]
    other = [replace(scorer, gap=0.0 if scorer.variant_index else -0.5) for scorer in long.scorers]
    written = [
        replace(short, token_ids=[1], sampling_logprobs=[-1.0], scorers=scorers, scorer_logprobs=None),
        replace(long, token_ids=[1, 2, 3], sampling_logprobs=[-1.0] * 3, scorers=other, scorer_logprobs=None),
    ]
    store.write("train", 1, written)
    assert step_means(Index([tmp_path]), 0, "train")[0]["gap"] == pytest.approx((-0.1 - 3 * 0.5) / 4)


def test_an_evaluation_shows_no_figure_of_training(tmp_path):
    store = RolloutStore(tmp_path)
    for split in ("train", "eval"):
        store.write(split, 4, rows(store, 4, {"a": "one"}))
    records = [
        {"step": 4, "reward": 0.1, "entropy": 0.777, "clip_low": 0.666},
        {"step": 4, "eval_accuracy": 0.5, "eval_accuracy_plain": 0.555, "eval_accuracy_variants": 0.444},
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    index = Index([tmp_path])
    train, held_out = (text(render(index, f"?view=run&split={split}")) for split in ("train", "eval"))
    assert "entropy 0.777" in train
    assert "held-out, plain 0.555" in train
    for word in ("entropy", "clip", "rescued", "shared advantage", "0.777"):
        assert word not in held_out.split("Keys")[0], word
    assert "accuracy, plain 0.555" in held_out
    step = text(render(index, "?view=step&split=eval&step=4")).split("Keys")[0]
    assert "rescued" not in step
    assert "any signal" not in step


def test_why_a_response_has_no_advantage(tmp_path):
    """An evaluation, an unknown reward and a problem that dynamic sampling replaced are told apart."""
    store = RolloutStore(tmp_path)
    bare = [
        replace(row, adv_global=None, adv_local=None, scorers=[], scorer_logprobs=None)
        for row in rows(store, 1, {"gone": "one", "lost": "two"})
    ]
    bare = [replace(row, rewards=Rewards(None, None, 1.0)) if row.problem_id == "p-lost" else row for row in bare]
    store.write("train", 1, bare)
    store.write("eval", 1, bare)
    index = Index([tmp_path])
    for split, problem, reason in (
        ("train", "p-gone", "dynamic sampling replaced the problem"),
        ("train", "p-lost", "no reward is known"),
        ("eval", "p-gone", "the split eval is an evaluation"),
    ):
        for view in ("problem", "response"):
            assert reason in text(render(index, f"?view={view}&split={split}&step=1&problem={problem}"))
    assert text(render(index, "?view=step&step=1")).count(" replaced ") == 1


@pytest.mark.parametrize(
    ("pairs", "told"),
    [
        ([0.25, -0.5], "under Q0 0.250 under Q1, its own −0.500"),
        ([0.0, -0.75], "under Q0 0.000 under Q1, its own −0.750"),
        ([None, -0.75], "under Q0 not a pair under Q1, its own −0.750"),
    ],
)
def test_the_advantage_is_the_one_that_trained(tmp_path, pairs, told):
    """Whatever `share.levels` and `share.trajectories` were: the stored pairs, not a sum made here."""
    store = RolloutStore(tmp_path)
    row = rows(store, 1, {"a": "one"}, n=1)[1]
    scorers = [replace(scorer, advantage=value) for scorer, value in zip(row.scorers, pairs, strict=True)]
    store.write("train", 1, [replace(row, adv_global=0.25, adv_local=-0.75, scorers=scorers)])
    index = Index([tmp_path])
    page = text(render(index, "?view=response&step=1&problem=p-a&variant=1"))
    assert f"Advantage global 0.250 local −0.750 reward 0.00; trained with {told} Log-prob gap under Q0" in page
    assert "global + local" not in page
    matrix = text(render(index, "?view=problem&step=1&problem=p-a&cell=advantage"))
    assert "advantage, what the pair trained with." in matrix
    assert "– not a pair" in matrix
    assert "not forwarded" not in matrix


def test_one_step_is_no_steps_and_clear_restores_the_order(tmp_path):
    stored(tmp_path, 1, TOTALS)
    index = Index([tmp_path])
    assert "1 step, 20 responses" in text(render(index, "?view=run"))
    page = render(index, "?view=step&step=1&sort=reward&down=1&outcome=mixed&signal=rescued&sheet=1")
    assert re.search(r'href="([^"]*)">Clear<', page)[1] == "?view=step&amp;step=1"
