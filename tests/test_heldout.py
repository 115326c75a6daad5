"""Held-out evaluation: the same questions and random numbers at any step, however many processes share it."""

import dataclasses
import math
from pathlib import Path

import pytest
import torch

from sharevl_lite import heldout, load_recipe
from sharevl_lite.collect import Collector
from sharevl_lite.data import load_problems
from sharevl_lite.heldout import Evaluator
from sharevl_lite.metrics import Tally
from sharevl_lite.policy.hf import load_policy
from sharevl_lite.policy.prompts import PromptEncoder
from sharevl_lite.rewards import RewardScorer
from sharevl_lite.rollout.hf import HFRolloutEngine

DEMO = Path(__file__).parents[1] / "configs" / "digits_cpu.yaml"
NEVER_VERIFIED = r"\frac{1}{0}"  # the grader cannot evaluate it, so no answer can be compared with it


@pytest.fixture(scope="module")
def recipe():
    # Float64: rows of another batch are padded differently, and no rounding of that size changes a drawn token.
    knobs = {"model.dtype": "float64", "eval.problems": 5, "eval.samples": 2, "reward.workers": 1}
    return load_recipe(DEMO, knobs)


@pytest.fixture(scope="module")
def collector(recipe):
    policy = load_policy(recipe.model, seed=recipe.seed)
    encoder = PromptEncoder(policy.processor, policy.base.model.get_rope_index, recipe.data.prompt_template)
    with RewardScorer(recipe.reward) as scorer:
        yield Collector(recipe, encoder, HFRolloutEngine(policy, recipe.rollout.batch_size), scorer)


@pytest.fixture(scope="module")
def problems(recipe):
    return load_problems("builtin:digits", recipe.data, split="test", limit=recipe.eval.problems).problems


@pytest.fixture(scope="module")
def evaluation(recipe, collector, problems):
    return Evaluator(recipe, collector, problems).evaluate(0)


def said(rollout):
    """What was asked and answered, in full."""
    return [
        (problem.id, variant.text, variant.transform, [(r.token_ids, r.logprobs) for r in responses])
        for problem, variants, block in zip(rollout.problems, rollout.variants, rollout.responses, strict=True)
        for variant, responses in zip(variants, block, strict=True)
    ]


def test_two_evaluations_of_a_policy_are_identical(recipe, collector, problems, evaluation):
    """Whatever was sampled in between, and whatever the step is called."""
    torch.manual_seed(123)
    collector.collect(3, problems[1:3])
    again = Evaluator(recipe, collector, problems).evaluate(17)
    assert again.rollout.number == 17
    assert said(again.rollout) == said(evaluation.rollout)
    assert again.record == evaluation.record


def test_plain_questions_and_a_variant_of_each(recipe, problems, evaluation):
    rollout = evaluation.rollout
    assert [problem.id for problem in rollout.problems] == [problem.id for problem in problems]
    for problem, (plain, variant) in zip(rollout.problems, rollout.variants, strict=True):
        assert (plain.text, plain.transform, plain.images) == (problem.text, None, problem.images)
        assert variant.text != problem.text
    assert any(variant.transform for _, variant in rollout.variants)
    assert {len(responses) for block in rollout.responses for responses in block} == {recipe.eval.samples}


def test_figures_are_those_of_the_responses(recipe, evaluation):
    record, scores = evaluation.record, evaluation.rollout.scores

    def mean(values):
        return pytest.approx(sum(values) / len(values), abs=1e-12)

    assert record["accuracy_plain"] == mean([score.accuracy for block in scores for score in block[0]])
    assert record["accuracy_variants"] == mean([score.accuracy for block in scores for score in block[1]])
    assert record["accuracy"] == mean([score.accuracy for block in scores for row in block for score in row])
    assert record["format"] == mean([score.format for block in scores for row in block for score in row])
    assert record["responses"] == recipe.eval.problems * 2 * recipe.eval.samples
    assert record["verifier_failures"] == 0
    assert record["verified_plain"] == record["verified_variants"] == recipe.eval.problems * recipe.eval.samples
    assert 0.0 < record["accuracy"] < 1.0, "the shipped model knows some answers, or this test shows little"


@pytest.mark.parametrize("world", [2, 7])
def test_several_processes_equal_one(recipe, collector, problems, evaluation, world):
    """Seven processes are more than there are problems: two of them have nothing to ask."""
    tallies, rollouts = [], []

    def gather(tally):
        tallies.append(tally)
        return [tally]

    for rank in range(world):
        evaluator = Evaluator(recipe, collector, problems, rank=rank, world=world, gather=gather)
        rollouts.append(evaluator.evaluate(0).rollout)
    everything = sorted(line for rollout in rollouts for line in said(rollout))
    alone = sorted(said(evaluation.rollout))
    assert [line[:3] for line in everything] == [line[:3] for line in alone]
    assert [[r[0] for r in line[3]] for line in everything] == [[r[0] for r in line[3]] for line in alone]
    merged = Tally.merged(tallies).as_record()
    assert merged == pytest.approx(evaluation.record, abs=1e-12)


def test_problems_are_asked_in_blocks(recipe, collector, problems, evaluation, monkeypatch):
    """Five problems in blocks of two: the order and the figures are those of one block."""
    monkeypatch.setattr(heldout, "BLOCK", 2)
    parts = Evaluator(recipe, collector, problems).evaluate(0)
    asked = [[line[:3], [ids for ids, _ in line[3]]] for line in said(parts.rollout)]
    assert asked == [[line[:3], [ids for ids, _ in line[3]]] for line in said(evaluation.rollout)]
    assert parts.record == pytest.approx(evaluation.record, abs=1e-12)


def test_another_temperature_is_only_of_the_evaluation(recipe, collector, problems):
    """At temperature 0 the samples of a question are equal; training goes on sampling at its own temperature."""
    greedy = recipe.model_copy(update={"eval": recipe.eval.model_copy(update={"temperature": 0.0})})
    rollout = Evaluator(greedy, collector, problems[:2]).evaluate(0).rollout
    assert all(first.token_ids == second.token_ids for block in rollout.responses for first, second in block)


def test_failed_verifications_leave_figures_undefined_not_wrong(recipe, collector, problems):
    """A response in the right form whose gold cannot be graded counts as unknown; without others the share is NaN."""
    ungraded = [dataclasses.replace(problem, answer=NEVER_VERIFIED) for problem in problems[:1]]
    one = recipe.model_copy(update={"eval": recipe.eval.model_copy(update={"temperature": 0.0})})
    evaluation = Evaluator(one, collector, ungraded).evaluate(0)
    scores = [score for block in evaluation.rollout.scores for row in block for score in row]
    assert {score.failure for score in scores} == {"ValueError: Can't evaluate nan or zoo"}
    record = evaluation.record
    assert record["verifier_failures"] == len(scores) == record["responses"]
    assert all(math.isnan(record[name]) for name in ("accuracy", "accuracy_plain", "accuracy_variants"))
    assert record["format"] == 1.0
