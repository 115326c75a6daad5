"""Hierarchical advantage against exact arithmetic, over (p, k, j, i)."""

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from sharevl_kernels.hierarchical_advantage import SILENT_SPREAD

from sharevl_lite.share import hierarchical_advantage

EPS = 1e-6
# A group's spread is worked out in float64 from differences that are rounded once: a dozen operations of 1e-16 each.
# An advantage is at most sqrt(mn - 1) < 5 here, so 1e-13 is far above rounding and far below any wrong formula.
TOLERANCE = 1e-13
SCALES = (1.0, 1e12, 1e-6, 1e-12)  # the last: less than counts as a difference


def differ(values):
    """Whether rewards differ by more than rounding."""
    return bool(values) and max(values) - min(values) > SILENT_SPREAD


@st.composite
def rewards_and_masks(draw):
    """Rewards [P, M, N] with many ties on some scale and offset, and a mask."""
    p, m, n = draw(st.integers(1, 3)), draw(st.integers(1, 3)), draw(st.integers(1, 5))
    level = st.sampled_from([0.0, 0.1, 0.3, 0.9, 1.0]) | st.floats(-2, 2, allow_nan=False)
    scale = draw(st.sampled_from(SCALES))
    offset = draw(st.sampled_from([0.0, 0.0, 1.0, 1e12]))
    count = p * m * n
    rewards = [scale * r + offset for r in draw(st.lists(level, min_size=count, max_size=count))]
    mask = draw(st.lists(st.sampled_from([True, True, True, False]), min_size=count, max_size=count))
    return torch.tensor(rewards, dtype=torch.float64).view(p, m, n), torch.tensor(mask).view(p, m, n)


def exact_level(values, reward, repeats, eps):
    """(reward - mean) / (std + eps) in rational arithmetic but for the root; 0 where silent; 0 repeats: no std."""
    if not differ(values):
        return 0.0
    values = [Fraction(v) for v in values] * max(1, repeats)
    mean = sum(values) / len(values)
    if not repeats:
        return float(Fraction(reward) - mean)
    variance = sum((v - mean) ** 2 for v in values) / (len(values) - 1)
    return float(Fraction(reward) - mean) / (math.sqrt(variance) + eps)


def exact_pairs(rewards_PMN, mask_PMN, repeats_global=1, levels="hierarchical", eps=EPS):
    rewards, mask = rewards_PMN.tolist(), mask_PMN.tolist()
    p_count, m, n = rewards_PMN.shape
    result = torch.zeros(p_count, m, m, n, dtype=torch.float64)
    for p in range(p_count):
        valid = [[rewards[p][j][i] for i in range(n) if mask[p][j][i]] for j in range(m)]
        everywhere = [r for group in valid for r in group]
        for k in range(m):
            for j in range(m):
                for i in range(n):
                    if not mask[p][j][i]:
                        continue
                    if levels != "local":
                        result[p, k, j, i] += exact_level(everywhere, rewards[p][j][i], repeats_global, eps)
                    if levels != "global" and k == j:
                        result[p, k, j, i] += exact_level(valid[j], rewards[p][j][i], min(1, repeats_global), eps)
    return result


@settings(max_examples=300, deadline=None)
@given(
    rewards_and_masks(),
    st.sampled_from(["hierarchical", "global", "local"]),
    st.sampled_from(["plain", "repeated", "none"]),
)
@example(
    (
        torch.tensor([[[0.0, 0.0, 0.0], [0.0, 0.0, 1e11], [3e11, 3.9062e10, -4.375e11]]], dtype=torch.float64),
        torch.ones(1, 3, 3).bool(),
    ),
    "hierarchical",
    "none",
)
@example(
    (torch.tensor([[[1e12, 1e12 + 2**-13, 1e12]]], dtype=torch.float64), torch.ones(1, 1, 3).bool()), "global", "plain"
)
def test_every_pair_has_the_advantage_of_the_equations(case, levels, std):
    rewards_PMN, mask_PMN = case
    advantages = hierarchical_advantage(rewards_PMN, mask_PMN, eps=EPS, std=std)
    repeats = {"plain": 1, "repeated": rewards_PMN.shape[1], "none": 0}[std]
    expected_PKMN = exact_pairs(rewards_PMN, mask_PMN, repeats, levels)
    # Differences that nothing divides are as large as the rewards' spread, and so is what the two levels cancel.
    spread = float(rewards_PMN.max() - rewards_PMN.min()) if std == "none" else 1.0
    torch.testing.assert_close(
        advantages.as_pairs(levels), expected_PKMN, rtol=TOLERANCE, atol=TOLERANCE * max(1.0, spread)
    )
    for p, group_MN in enumerate(rewards_PMN):
        silent = [not differ(group_MN[j][mask_PMN[p, j]].tolist()) for j in range(group_MN.shape[0])]
        assert advantages.silent_PM[p].tolist() == silent
        assert bool(advantages.silent_P[p]) != differ(group_MN[mask_PMN[p]].tolist())


@pytest.mark.parametrize("reward", [0.0, 0.1, 0.7, 1 / 3, -0.1, 1e12, 1e-12, 1e30, 5e-324])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 2, 1), (2, 1, 7), (3, 2, 6), (1, 4, 11)])
@pytest.mark.parametrize("eps", [EPS, 0.0])
def test_equal_rewards_have_an_advantage_of_exactly_zero(reward, dtype, shape, eps):
    advantages = hierarchical_advantage(torch.full(shape, reward, dtype=dtype), eps=eps)
    assert (advantages.as_pairs() == 0.0).all()
    assert advantages.silent_PM.all()
    assert advantages.silent_P.all()


@pytest.mark.parametrize("std", ["plain", "repeated", "none"])
@pytest.mark.parametrize("eps", [EPS, 0.0])
def test_rewards_that_differ_by_rounding_alone_are_no_signal(std, eps):
    noise = [[0.3, 0.1 + 0.2], [0.1 + 0.2, 0.3]]
    rewards_PMN = torch.tensor([noise, [noise[0], [1.0, 1.0]], [noise[0], [1.0, 0.0]]], dtype=torch.float64)
    advantages = hierarchical_advantage(rewards_PMN, eps=eps, std=std)
    assert advantages.silent_P.tolist() == [True, False, False]
    assert advantages.silent_PM.tolist() == [[True, True], [True, True], [True, False]]
    assert (advantages.as_pairs()[0] == 0.0).all()
    assert (advantages.local_PMN[advantages.silent_PM] == 0.0).all()
    assert (advantages.global_PMN[1:] != 0.0).all()


@pytest.mark.parametrize("spread", [SILENT_SPREAD, math.nextafter(SILENT_SPREAD, 1.0), 2 * SILENT_SPREAD])
def test_where_a_difference_begins(spread):
    advantages = hierarchical_advantage(torch.tensor([[[0.0, spread]]], dtype=torch.float64))
    is_silent = spread == SILENT_SPREAD
    assert advantages.silent_P.tolist() == [is_silent]
    assert advantages.silent_PM.tolist() == [[is_silent]]
    assert (advantages.as_pairs() == 0.0).all() == is_silent


def test_a_variant_without_variance_still_learns_from_the_others():
    rewards_PMN = torch.tensor([[[0.1, 0.1, 0.1], [0.1, 0.1, 1.0]]], dtype=torch.float64)
    advantages = hierarchical_advantage(rewards_PMN)
    assert (advantages.local_PMN[0, 0] == 0.0).all()
    assert (advantages.global_PMN[0, 0] < 0.0).all()
    assert advantages.silent_PM.tolist() == [[True, False]]
    assert advantages.silent_P.tolist() == [False]


def test_masked_responses_neither_count_nor_learn_whatever_their_reward():
    nan, inf = math.nan, math.inf
    rewards_PMN = torch.tensor([[[0.0, 1.0, nan], [inf, 1.0, 0.0]], [[nan, nan, nan], [nan, 0.3, nan]]])
    mask_PMN = torch.isfinite(rewards_PMN)
    advantages = hierarchical_advantage(rewards_PMN, mask_PMN)
    pairs_PKMN = advantages.as_pairs()
    assert torch.isfinite(pairs_PKMN).all()
    assert (pairs_PKMN[:, 0][~mask_PMN] == 0.0).all()
    assert (pairs_PKMN[:, 1][~mask_PMN] == 0.0).all()
    # One response left, or none: no group to compare with.
    assert (pairs_PKMN[1] == 0.0).all()
    assert advantages.silent_P.tolist() == [False, True]
    assert advantages.silent_PM.tolist() == [[False, False], [True, True]]
    kept = hierarchical_advantage(torch.tensor([[[0.0, 1.0], [1.0, 0.0]]])).as_pairs()
    torch.testing.assert_close(pairs_PKMN[0][:, mask_PMN[0]], kept[0].flatten(1), rtol=0, atol=0)


def test_repeated_std_is_that_of_rewards_repeated_for_every_variant():
    torch.manual_seed(0)
    for m, n in ((1, 4), (2, 6), (3, 2), (4, 4)):
        rewards_PMN = torch.rand(5, m, n, dtype=torch.float64)
        repeated = hierarchical_advantage(rewards_PMN, std="repeated")
        for p, rewards_MN in enumerate(rewards_PMN):
            flat = rewards_MN.flatten().repeat(m)
            expected_MN = (rewards_MN - flat.mean()) / (torch.std(flat) + EPS)
            torch.testing.assert_close(repeated.global_PMN[p], expected_MN, rtol=TOLERANCE, atol=TOLERANCE)
        # Within a variant nothing is repeated.
        torch.testing.assert_close(repeated.local_PMN, hierarchical_advantage(rewards_PMN).local_PMN, rtol=0, atol=0)


def test_repeated_std_at_the_papers_setting_is_0_978_of_the_plain_one():
    rewards_PMN = torch.rand(4, 2, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    plain = hierarchical_advantage(rewards_PMN, eps=0.0).global_PMN
    repeated = hierarchical_advantage(rewards_PMN, eps=0.0, std="repeated").global_PMN
    ratio = math.sqrt(22 / 23)  # (mn - 1)·m / (m·mn - 1)
    torch.testing.assert_close(plain / repeated, torch.full_like(plain, ratio), rtol=TOLERANCE, atol=0)


def test_own_variant_sees_both_levels_and_the_others_the_global_one():
    advantages = hierarchical_advantage(torch.rand(3, 4, 5, generator=torch.Generator().manual_seed(2)))
    both, shared, own = (advantages.as_pairs(level) for level in ("hierarchical", "global", "local"))
    for k in range(4):
        for j in range(4):
            expected_PN = advantages.global_PMN[:, j] + (advantages.local_PMN[:, j] if k == j else 0.0)
            assert torch.equal(both[:, k, j], expected_PN)
            assert torch.equal(shared[:, k, j], advantages.global_PMN[:, j])
            assert torch.equal(own[:, k, j], advantages.local_PMN[:, j] if k == j else torch.zeros(3, 5))


def test_advantages_do_not_alias_each_other():
    advantages = hierarchical_advantage(torch.rand(2, 2, 3))
    before = advantages.global_PMN.clone()
    advantages.as_pairs("global").zero_()
    assert torch.equal(advantages.global_PMN, before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_results_have_the_rewards_dtype_and_float64_accuracy(dtype):
    rewards_PMN = torch.tensor([[[1e12, 1e12 + 65536.0, 1e12], [1e12, 1e12, 1e12 + 131072.0]]], dtype=dtype)
    advantages = hierarchical_advantage(rewards_PMN)
    assert advantages.global_PMN.dtype == advantages.as_pairs().dtype == dtype
    expected = exact_pairs(rewards_PMN, torch.ones_like(rewards_PMN).bool()).to(dtype)
    # One rounding of each level to the dtype, one of their sum.
    torch.testing.assert_close(advantages.as_pairs(), expected, rtol=2 * torch.finfo(dtype).eps, atol=0)


def test_wrong_shapes_are_refused():
    with pytest.raises(ValueError, match=r"\[P, M, N\].*\(2, 3\)"):
        hierarchical_advantage(torch.zeros(2, 3))
    with pytest.raises(ValueError, match="differ in shape"):
        hierarchical_advantage(torch.zeros(1, 2, 3), torch.ones(1, 2, 2, dtype=torch.bool))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_reward_that_counts_must_be_finite(bad):
    rewards_PMN = torch.zeros(1, 2, 2)
    rewards_PMN[0, 1, 0] = bad
    with pytest.raises(ValueError, match="not finite"):
        hierarchical_advantage(rewards_PMN)
    with pytest.raises(ValueError, match="not finite"):
        hierarchical_advantage(rewards_PMN, torch.ones(1, 2, 2, dtype=torch.bool))


def test_integers_are_rewards_too():
    advantages = hierarchical_advantage(torch.tensor([[[0, 1, 1], [1, 1, 1]]]))
    assert advantages.global_PMN.dtype == torch.get_default_dtype()
    expected = hierarchical_advantage(torch.tensor([[[0.0, 1.0, 1.0], [1.0, 1.0, 1.0]]]))
    torch.testing.assert_close(advantages.global_PMN, expected.global_PMN)
    assert advantages.global_PMN[0, 0, 0] < -2.0
    with pytest.raises(ValueError, match="M and N above 0, got shape"):
        hierarchical_advantage(torch.zeros(2, 3, 0))
