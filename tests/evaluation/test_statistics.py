"""The estimators against enumeration, scipy and simulated truth."""

import math
from itertools import combinations, pairwise, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from sharevl_lite.evaluation.statistics import figure, interval, leading, majority, paired_test, pass_at_k


@given(
    st.integers(1, 7).flatmap(lambda n: st.tuples(st.lists(st.booleans(), min_size=n, max_size=n), st.integers(1, n)))
)
def test_pass_at_k_is_the_share_of_all_draws_with_a_right_one(case):
    outcomes, k = case
    draws = list(combinations(outcomes, k))
    expected = sum(any(draw) for draw in draws) / len(draws)
    assert pass_at_k(sum(outcomes), len(outcomes), k) == pytest.approx(expected, abs=1e-12)


def test_pass_at_k_is_unbiased_where_taking_the_first_k_is_exact():
    """Over samples of five with chance p each, its mean is 1 - (1 - p)^k; 1 - (1 - c/n)^k would be too low."""
    p, n, k = 0.3, 5, 3
    weights = [math.comb(n, c) * p**c * (1 - p) ** (n - c) for c in range(n + 1)]
    mean = sum(weight * pass_at_k(c, n, k) for c, weight in enumerate(weights))
    assert mean == pytest.approx(1 - (1 - p) ** k, abs=1e-12)


@pytest.mark.parametrize(("right", "sampled", "k"), [(0, 3, 4), (0, 3, 0), (4, 3, 1)])
def test_pass_at_k_of_what_was_not_sampled_is_refused(right, sampled, k):
    with pytest.raises(ValueError, match="pass@"):
        pass_at_k(right, sampled, k)


@given(st.lists(st.sampled_from([0, 1, 2, None]), max_size=6))
def test_a_majority_with_ties_is_what_random_tie_breaking_gives_on_average(groups):
    votes = [group for group in groups if group is not None]
    best = max((votes.count(group) for group in set(votes)), default=0)
    leaders = [group for group in set(votes) if votes.count(group) == best]
    expected = sum(group == 0 for group in leaders) / len(leaders) if leaders else 0.0
    assert majority(groups) == pytest.approx(expected)
    assert set(leading(groups)) == set(leaders)


def test_the_first_answer_to_appear_leads_a_tie():
    assert leading([2, None, 1, 1, 2, 3]) == [2, 1]


def test_an_interval_is_scipys_bootstrap_over_problems():
    values = np.random.default_rng(1).integers(0, 5, 30) / 4
    expected = stats.bootstrap((values,), np.mean, method="BCa", rng=np.random.default_rng(7)).confidence_interval
    found = figure(list(values), seed=7)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-12)
    assert found == figure(list(values), seed=7), "the same seed gives the same figure"
    assert found != figure(list(values), seed=8)


def test_problems_without_a_value_are_left_out_and_counted():
    found = figure([1.0, None, 0.0, 0.5, None])
    assert (found.value, found.problems, found.left_out) == (0.5, 3, 2)
    assert figure([None]).value is None


def test_where_all_problems_agree_the_interval_is_the_exact_one():
    """20 of 20 right: the lower end is 0.025^(1/20), where a bootstrap would say 100% to 100%."""
    found = figure([1.0] * 20)
    assert found.low == pytest.approx(0.025 ** (1 / 20), rel=1e-9)
    assert found.high == 1.0
    none = figure([0.0] * 20)
    assert (none.low, none.high) == (0.0, pytest.approx(1 - found.low))
    assert figure([17.0] * 5, share=False).low is None
    assert figure([1.0]).low is None


@pytest.mark.parametrize("size", [2, 4, 12, 19])
def test_of_few_problems_more_right_answers_never_lower_an_end(size):
    """From none right to all, in quarters: both ends rise, and the middle is scipy's exact interval."""
    ends = []
    for quarters in range(4 * size + 1):
        values = [min(max(quarters - 4 * place, 0), 4) / 4 for place in range(size)]
        found = figure(values)
        assert found.low <= found.value <= found.high
        ends.append((found.low, found.high))
        if quarters % 4 == 0:
            exact = stats.binomtest(quarters // 4, size).proportion_ci(0.95, method="exact")
            assert (found.low, found.high) == pytest.approx((exact.low, exact.high), abs=1e-9)
    assert all(low <= later and high <= after for (low, high), (later, after) in pairwise(ends))


def test_intervals_of_few_problems_hold_the_truth_at_least_as_often_as_they_say():
    """Of 5 problems, four responses each. 300 trials at 95% miss 15 on average; the bootstrap missed more than 40."""
    rng = np.random.default_rng(5)
    missed = 0
    for _ in range(300):
        right = rng.binomial(4, rng.beta(1.0, 1.0, 5)) / 4
        low, high = interval(right, share=True, seed=0)
        missed += not low <= 0.5 <= high
    assert missed <= 15


@pytest.mark.parametrize("size", [2, 4, 12])
def test_intervals_of_few_lengths_and_differences_hold_the_truth_too(size):
    """A bootstrap alone missed 165, 57 and 36 of 300."""
    rng = np.random.default_rng(11)
    missed = apart = 0
    for trial in range(300):
        lengths = rng.normal(120.0, 30.0, size)
        found = figure(lengths.tolist(), share=False, seed=trial, resamples=200, bounds=(0.0, math.inf))
        missed += not found.low <= 120.0 <= found.high
        assert found.low >= 0.0
        changed = rng.normal(0.3, 0.1, (size, 2)).clip(0.0, 1.0)
        test = paired_test([(a, b) for a, b in changed], seed=trial, resamples=200)
        apart += not test.low <= 0.0 <= test.high
        assert -1.0 <= test.low <= test.high <= 1.0
    assert missed <= 24
    assert apart <= 24


def test_intervals_cover_the_truth_about_as_often_as_they_say():
    """Problems of unlike difficulty, four responses each: 95% intervals of their mean hold the true mean.

    240 trials at 95% miss 12 on average, deviation 3.4; a bootstrap over responses, not problems, misses about 60 here.
    """
    rng = np.random.default_rng(3)
    missed = naive = 0
    for trial in range(240):
        chances = rng.beta(0.4, 0.4, 60)
        right = rng.random((60, 4)) < chances[:, None]
        low, high = interval(right.mean(1), share=True, seed=trial, resamples=400)
        missed += not low <= 0.5 <= high
        naive += abs(right.mean() - 0.5) > 1.96 * right.std() / math.sqrt(right.size)
    assert 2 <= missed <= 24
    assert naive > 40


@settings(deadline=None, max_examples=25)
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=7))
def test_the_permutation_test_is_the_enumeration_of_all_swaps(counts):
    pairs = [(a / 4, b / 4 + 1e-3) for a, b in counts]  # no value is 0 or 1, so it is not McNemar's
    changes = np.array([b - a for a, b in pairs])
    means = [float(np.mean(changes * signs)) for signs in product((1, -1), repeat=len(changes))]
    observed = abs(float(changes.mean()))
    expected = sum(abs(mean) >= observed - 1e-12 for mean in means) / len(means)
    found = paired_test(pairs, resamples=200)
    assert found.test == "permutation"
    assert found.p_value == pytest.approx(min(1.0, expected), abs=1e-9)
    assert found.difference == pytest.approx(float(changes.mean()))


def test_one_response_each_is_mcnemars_exact_test():
    pairs = [(0.0, 1.0)] * 9 + [(1.0, 0.0)] * 2 + [(1.0, 1.0)] * 30 + [(0.0, 0.0)] * 5
    found = paired_test(pairs)
    assert found.test == "McNemar"
    # Eleven changed sides: P(at most 2 or at least 9 heads of 11).
    assert found.p_value == pytest.approx(2 * sum(math.comb(11, c) for c in range(3)) / 2**11, rel=1e-9)
    assert found.difference == pytest.approx(7 / 46)
    assert found.low < 7 / 46 < found.high


def test_two_equal_evaluations_do_not_differ():
    found = paired_test([(0.25, 0.25), (1.0, 1.0)])
    assert (found.p_value, found.difference) == (1.0, 0.0)
    with pytest.raises(ValueError, match="no problem"):
        paired_test([])


def test_p_values_of_no_difference_are_uniform_enough():
    """Of 200 comparisons without a true difference about 5% are below 0.05 (deviation 1.5%)."""
    rng = np.random.default_rng(5)
    low = 0
    for trial in range(200):
        chances = rng.beta(0.5, 0.5, 40)
        first, second = (rng.binomial(4, chances) / 4 for _ in range(2))
        low += paired_test(list(zip(first, second, strict=True)), seed=trial, resamples=300).p_value < 0.05
    assert low <= 20


@pytest.mark.parametrize("scale", [1.0, 1e-3, 1e4])
@pytest.mark.parametrize(
    "pairs",
    [
        [(0.0, 1 / 3), (1.0, 2 / 3), (0.0, 2 / 3), (1.0, 1 / 3)],  # ±1/3 and ±2/3, which are no binary fractions
        [(0.0, 0.1), (0.3, 0.2), (0.7, 0.8), (0.6, 0.5)] * 2,
        [(0.0, 1 / 3), (1 / 3, 2 / 3), (1.0, 1 / 3)],
    ],
)
def test_changes_that_add_up_to_nothing_have_p_1(pairs, scale):
    assert paired_test([(scale * a, scale * b) for a, b in pairs], share=scale == 1.0).p_value == 1.0


def test_one_value_in_two_roundings_is_no_change():
    """Thirteen such problems would make 14 "moved" problems of one, and another p-value for each way of rounding."""
    same = [(0.1 + 0.2, 0.3)] * 13
    assert same[0][0] != same[0][1]
    assert paired_test([*same, (0.0, 1 / 3)]).p_value == 1.0
    assert paired_test([*same, (0.0, 1 / 3), (0.0, 2 / 3)]).p_value == pytest.approx(0.5)


def test_an_interval_excludes_0_only_where_the_test_does():
    """40 problems of which about 5 changed, without a true difference: BCa excluded 0 in one of seven comparisons."""
    rng = np.random.default_rng(7)
    excluded = 0
    for trial in range(200):
        changed = rng.random(40) < 0.125
        first = np.where(changed, rng.integers(0, 4, 40) / 4, 0.5)
        second = np.where(changed, rng.integers(0, 4, 40) / 4, 0.5)
        found = paired_test(list(zip(first, second, strict=True)), seed=trial, resamples=300)
        if found.low is not None and not found.low <= 0.0 <= found.high:
            excluded += 1
            assert found.p_value <= 0.05
    assert excluded <= 12
