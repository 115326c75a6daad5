"""The policy objective against plain loops over (p, k, j, i, t), values and gradients."""

import math
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sharevl_lite.share import Clipping, cross_variant_weight, pair_token_weights, policy_loss

# Both sides do the same few float64 operations per token, in another order: 1e-16 each, summed over < 500 tokens.
TOLERANCE = 1e-12
MAX_LENGTH = 16


@dataclass(frozen=True)
class Options:
    """What a recipe's objective can say."""

    aggregation: str
    clipping: Clipping
    beta: float
    correction: str
    cap: float
    level: str = "token"


OPTIONS = st.builds(
    Options,
    aggregation=st.sampled_from(["token", "sequence", "dr_grpo"]),
    clipping=st.sampled_from([Clipping(0.2, 0.3, 3.0), Clipping(0.2, 0.3, None), Clipping(0.1, 0.1, 1.5)]),
    beta=st.sampled_from([0.0, 0.04, 2.0]),
    correction=st.sampled_from(["none", "truncate", "mask"]),
    cap=st.sampled_from([1.0, 1.5, 3.0]),
    level=st.sampled_from(["token", "sequence"]),
)


class Scored:
    """Random log-probs of p·m·m·n pairs of unequal lengths, policies far enough apart for every clip to bite."""

    def __init__(self, seed, p, m, n):
        draw = torch.Generator().manual_seed(seed)
        self.shape = (p, m, m, n)
        self.lengths = torch.randint(1, 9, (p, m, n), generator=draw).tolist()  # a response is as long under any k
        self.advantages = torch.randn(p, m, m, n, generator=draw, dtype=torch.float64)
        self.advantages[torch.rand(p, m, m, n, generator=draw) < 0.15] = 0.0
        self.new, self.old, self.ref = {}, {}, {}
        for pair in self.pairs():
            count = self.length(pair)
            old = -3 * torch.rand(count, generator=draw, dtype=torch.float64)
            self.old[pair] = old
            self.new[pair] = old + 0.7 * torch.randn(count, generator=draw, dtype=torch.float64)
            self.ref[pair] = old + 0.5 * torch.randn(count, generator=draw, dtype=torch.float64)

    def pairs(self):
        p_count, m, _, n = self.shape
        return [(p, k, j, i) for p in range(p_count) for k in range(m) for j in range(m) for i in range(n)]

    def length(self, pair):
        p, _, j, i = pair
        return self.lengths[p][j][i]

    def source(self, pair):
        p, _, j, i = pair
        return (p, j, j, i)

    def flat(self, table):
        return torch.cat([table[pair] for pair in self.pairs()])

    def per_token(self, values):
        return torch.cat([values[number].expand(self.length(pair)) for number, pair in enumerate(self.pairs())])


def by_hand(scored, options):
    """Loss, its gradient for every log-prob, and the clip flags, token by token as in algorithm.md's step 4."""
    pairs = scored.pairs()
    total_tokens = sum(scored.length(pair) for pair in pairs)
    low, high = 1.0 - options.clipping.epsilon, 1.0 + options.clipping.epsilon_high
    delta = options.clipping.delta
    loss, policy_gradients, kl_slopes, flags = 0.0, [], [], []
    for pair in pairs:
        advantage, length = float(scored.advantages[pair]), scored.length(pair)
        token_ratios = [math.exp(float(scored.new[pair][t]) - float(scored.old[pair][t])) for t in range(length)]
        policy_slopes = [0.0] * length
        for t in range(length):
            new, old, ref = (float(table[pair][t]) for table in (scored.new, scored.old, scored.ref))
            ratio = token_ratios[t] if options.level == "token" else math.prod(token_ratios) ** (1 / length)
            clipped = min(max(ratio, low), high)
            objective = min(ratio * advantage, clipped * advantage)
            if advantage < 0 and delta is not None:
                objective = max(objective, delta * advantage)
            # A clipped term does not depend on the policy.
            slope = ratio * advantage if objective == ratio * advantage else 0.0
            importance = math.exp(old - float(scored.old[scored.source(pair)][t]))
            correction = {
                "none": 1.0,
                "truncate": min(importance, options.cap),
                "mask": 1.0 if 1 / options.cap <= importance <= options.cap else 0.0,
            }[options.correction]
            kl = math.exp(ref - new) - (ref - new) - 1.0
            kl_slope = 1.0 - math.exp(ref - new)
            weight = {
                "token": 1.0 / total_tokens,
                "sequence": 1.0 / (len(pairs) * scored.length(pair)),
                "dr_grpo": 1.0 / (len(pairs) * MAX_LENGTH),
            }[options.aggregation]
            loss += weight * (-correction * objective + options.beta * kl)
            # A sequence's ratio moves with the log-prob of each of its tokens, 1 / length as fast as with their sum.
            moved = [t] if options.level == "token" else range(length)
            for s in moved:
                policy_slopes[s] -= weight * correction * slope / len(moved)
            kl_slopes.append(weight * options.beta * kl_slope)
            flags.append(
                (
                    advantage < 0 and ratio < low,
                    advantage > 0 and ratio > high,
                    advantage < 0 and delta is not None and ratio > delta,
                )
            )
        policy_gradients += policy_slopes
    gradients_T = torch.tensor(policy_gradients, dtype=torch.float64) + torch.tensor(kl_slopes, dtype=torch.float64)
    return loss, gradients_T, flags


def token_tensors(scored, options):
    """Arguments of policy_loss, one entry per token, by the functions under test."""
    lengths_B = torch.tensor([scored.length(pair) for pair in scored.pairs()])
    old_T = scored.flat(scored.old)
    source_T = torch.cat([scored.old[scored.source(pair)] for pair in scored.pairs()])
    return {
        "logprobs_T": scored.flat(scored.new).requires_grad_(True),
        "old_logprobs_T": old_T,
        "advantages_T": scored.per_token(scored.advantages.flatten()),
        "weights_T": scored.per_token(pair_token_weights(lengths_B, options.aggregation, MAX_LENGTH)),
        "correction_T": cross_variant_weight(old_T, source_T, options.correction, options.cap),
        "ref_logprobs_T": scored.flat(scored.ref),
        "sequence_lengths_B": lengths_B if options.level == "sequence" else None,
    }


SHAPES = {"seed": st.integers(0, 2**32), "p": st.integers(1, 2), "m": st.integers(1, 3), "n": st.integers(1, 3)}


@settings(max_examples=200, deadline=None)
@given(options=OPTIONS, **SHAPES)
def test_loss_gradient_and_clip_flags_are_those_of_the_loops(options, seed, p, m, n):
    scored = Scored(seed, p, m, n)
    tensors = token_tensors(scored, options)
    result = policy_loss(clipping=options.clipping, beta=options.beta, **tensors)
    loss, gradients_T, flags = by_hand(scored, options)
    assert result.loss.item() == pytest.approx(loss, rel=TOLERANCE, abs=TOLERANCE)
    (found_T,) = torch.autograd.grad(result.loss, tensors["logprobs_T"])
    torch.testing.assert_close(found_T, gradients_T, rtol=TOLERANCE, atol=TOLERANCE)
    found = zip(
        result.clipped_low_T.tolist(), result.clipped_high_T.tolist(), result.clipped_dual_T.tolist(), strict=True
    )
    assert list(found) == flags


@settings(max_examples=100, deadline=None)
@given(options=OPTIONS, parts=st.integers(1, 6), **SHAPES)
def test_any_split_of_the_pairs_has_the_same_total_loss(options, parts, seed, p, m, n):
    scored = Scored(seed, p, m, n)
    tensors = token_tensors(scored, options)
    whole = policy_loss(clipping=options.clipping, beta=options.beta, **tensors).loss
    (gradient_T,) = torch.autograd.grad(whole, tensors["logprobs_T"])
    owner_B = torch.randint(parts, (len(scored.pairs()),), generator=torch.Generator().manual_seed(seed))
    owner_T = scored.per_token(owner_B)
    pieces = []
    for part in owner_B.unique().tolist():
        chosen = {
            name: x[(owner_B if name.endswith("_B") else owner_T) == part]
            for name, x in tensors.items()
            if x is not None
        }
        pieces.append(policy_loss(clipping=options.clipping, beta=options.beta, **chosen).loss)
    assert sum(pieces).item() == pytest.approx(whole.item(), rel=TOLERANCE, abs=TOLERANCE)
    (split_T,) = torch.autograd.grad(sum(pieces), tensors["logprobs_T"])
    torch.testing.assert_close(split_T, gradient_T, rtol=0, atol=0)  # each token's term is the same arithmetic


def test_autograd_agrees_with_finite_differences():
    scored = Scored(3, 1, 2, 2)
    options = Options("sequence", Clipping(0.2, 0.3, 3.0), 0.04, "truncate", 1.5)
    tensors = token_tensors(scored, options)
    logprobs_T = tensors.pop("logprobs_T")
    assert torch.autograd.gradcheck(
        lambda x: policy_loss(x, clipping=options.clipping, beta=options.beta, **tensors).loss, logprobs_T
    )


@pytest.mark.parametrize("aggregation", ["token", "sequence", "dr_grpo"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_at_ratio_one_the_gradient_is_minus_advantage_times_weight(aggregation, dtype):
    scored = Scored(5, 2, 2, 3)
    tensors = token_tensors(scored, Options(aggregation, Clipping(0.2, 0.3, 3.0), 0.0, "none", 1.0))
    tensors = {name: tensor.detach().to(dtype) for name, tensor in tensors.items() if name.endswith("_T")}
    logprobs_T = tensors.pop("old_logprobs_T").requires_grad_(True)
    tensors["logprobs_T"] = logprobs_T
    result = policy_loss(old_logprobs_T=logprobs_T.detach(), clipping=Clipping(0.2, 0.3, 3.0), **tensors)
    (gradient_T,) = torch.autograd.grad(result.loss, logprobs_T)
    # exp(0) is 1 and no other rounding happens before the product: equal to the last bit.
    assert torch.equal(gradient_T, -tensors["advantages_T"] * tensors["weights_T"])
    assert (result.ratio_T == 1.0).all()
    assert not (result.clipped_low_T | result.clipped_high_T | result.clipped_dual_T).any()


def test_a_clipped_token_has_no_gradient_and_any_other_the_policy_gradient():
    scored = Scored(7, 2, 3, 3)
    options = Options("token", Clipping(0.2, 0.3, 3.0), 0.0, "none", 1.0)
    tensors = token_tensors(scored, options)
    result = policy_loss(clipping=options.clipping, **tensors)
    (gradient_T,) = torch.autograd.grad(result.loss, tensors["logprobs_T"])
    clipped_T = result.clipped_low_T | result.clipped_high_T | result.clipped_dual_T
    for flag_T in (result.clipped_low_T, result.clipped_high_T, result.clipped_dual_T):
        assert flag_T.any()
    assert (gradient_T[clipped_T] == 0.0).all()
    expected_T = -result.ratio_T * tensors["advantages_T"] * tensors["weights_T"]
    torch.testing.assert_close(gradient_T[~clipped_T], expected_T[~clipped_T], rtol=TOLERANCE, atol=0)


def test_facts_are_detached():
    scored = Scored(8, 1, 2, 2)
    result = policy_loss(
        clipping=Clipping(0.2, 0.3, 3.0), beta=0.1, **token_tensors(scored, Options("token", None, 0.1, "none", 1.0))
    )
    assert result.loss.requires_grad
    facts = (result.ratio_T, result.clipped_low_T, result.clipped_high_T, result.clipped_dual_T, result.kl_T)
    assert not any(fact.requires_grad for fact in facts)


def test_kl_keeps_its_accuracy_near_zero():
    gap_T = torch.tensor([1e-4, -1e-4, 1e-6, -1e-6, 0.0], dtype=torch.float64)
    zeros_T = torch.zeros_like(gap_T)
    result = policy_loss(zeros_T, zeros_T, zeros_T, zeros_T, Clipping(0.2, 0.3, 3.0), ref_logprobs_T=gap_T, beta=1.0)
    # gap²/2 + gap³/6, whose next term is below 1e-16; exp(gap) - gap - 1 would be off by 1e-16, here 2e-4 of 5e-13.
    expected_T = gap_T**2 / 2 + gap_T**3 / 6
    torch.testing.assert_close(result.kl_T, expected_T, rtol=1e-8, atol=1e-22)


def test_kl_needs_reference_log_probs():
    zeros_T = torch.zeros(3)
    with pytest.raises(ValueError, match="ref_logprobs_T"):
        policy_loss(zeros_T, zeros_T, zeros_T, zeros_T, Clipping(0.2, 0.3, 3.0), beta=0.1)
    assert policy_loss(zeros_T, zeros_T, zeros_T, zeros_T, Clipping(0.2, 0.3, 3.0)).kl_T is None


def test_the_correction_leaves_the_kl_term_alone():
    scored = Scored(9, 1, 2, 2)
    tensors = token_tensors(scored, Options("token", None, 0.0, "none", 1.0))
    tensors["correction_T"] = torch.zeros_like(tensors["old_logprobs_T"])
    result = policy_loss(clipping=Clipping(0.2, 0.3, 3.0), beta=0.5, **tensors)
    expected = 0.5 * (tensors["weights_T"] * result.kl_T).sum()
    torch.testing.assert_close(result.loss.detach(), expected, rtol=TOLERANCE, atol=0)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=20),
    st.sampled_from(["token", "sequence", "dr_grpo"]),
    st.data(),
)
def test_weights_of_any_part_of_an_update_are_those_of_the_whole(lengths, aggregation, data):
    whole_B = pair_token_weights(torch.tensor(lengths), aggregation, 64)
    assert whole_B.dtype == torch.float64
    chosen = data.draw(st.lists(st.integers(0, len(lengths) - 1), unique=True, min_size=1))
    part_B = pair_token_weights(
        torch.tensor([lengths[b] for b in chosen]), aggregation, 64, count=len(lengths), tokens=sum(lengths)
    )
    assert part_B.tolist() == [whole_B[b].item() for b in chosen]
    mass = sum(length * weight for length, weight in zip(lengths, whole_B.tolist(), strict=True))
    expected = sum(lengths) / (len(lengths) * 64) if aggregation == "dr_grpo" else 1.0
    assert mass == pytest.approx(expected, rel=TOLERANCE)


@pytest.mark.parametrize("aggregation", ["token", "sequence", "dr_grpo"])
def test_a_process_without_pairs_has_no_weights(aggregation):
    empty_B = torch.zeros(0, dtype=torch.long)
    assert pair_token_weights(empty_B, aggregation, 64, count=3, tokens=20).shape == (0,)


def test_own_variant_tokens_are_never_corrected():
    old_T = torch.tensor([-0.1, -30.0, -700.0])
    for correction in ("none", "truncate", "mask"):
        assert cross_variant_weight(old_T, old_T, correction, 1.0).tolist() == [1.0, 1.0, 1.0]


def test_the_correction_bounds_the_importance_ratio():
    log_importance_T = torch.tensor([-1000.0, math.log(0.4), math.log(0.6), 0.0, math.log(1.9), math.log(2.1), 1000.0])
    zeros_T = torch.zeros_like(log_importance_T)
    none, truncated, masked = (
        cross_variant_weight(log_importance_T, zeros_T, correction, 2.0) for correction in ("none", "truncate", "mask")
    )
    assert none.tolist() == [1.0] * 7
    # float32 exp and log, one rounding each
    assert truncated.tolist() == pytest.approx([0.0, 0.4, 0.6, 1.0, 1.9, 2.0, 2.0], rel=3e-7)
    assert masked.tolist() == [0.0, 0.0, 1.0, 1.0, 1.0, 0.0, 0.0]
