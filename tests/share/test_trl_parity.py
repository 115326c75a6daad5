"""With one variant Share-GRPO is GRPO: the same advantages, loss and gradients as TRL's own code on the same tensors.

TRL's trainer is built without its constructor and given only what its step reads. Generation, reward functions and the
model's forward pass are replaced by given tensors; the advantages and the loss are worked out by TRL's methods.
"""

from collections import defaultdict
from types import SimpleNamespace

import pytest
import torch

from sharevl_lite.share import Clipping, hierarchical_advantage, pair_token_weights, policy_loss

PROBLEMS, RESPONSES, LONGEST, MAX_LENGTH = 4, 5, 9, 16
TRL_EPS = 1e-4  # a constant in TRL
AGGREGATIONS = {"grpo": "sequence", "bnpo": "token", "dapo": "token", "dr_grpo": "dr_grpo"}
# The same float64 operations on < 200 tokens, summed in another order.
TOLERANCE = 1e-12


class Batch:
    """Rewards, responses of unequal lengths and log-probs, in float64, far enough apart for every clip to bite."""

    def __init__(self, seed):
        draw = torch.Generator().manual_seed(seed)
        count = PROBLEMS * RESPONSES
        # Rewards with ties, and a first problem without variance whose mean rounds.
        self.rewards = torch.randint(0, 11, (count,), generator=draw).double() / 10
        self.rewards[:RESPONSES] = 0.1
        self.lengths = torch.randint(1, LONGEST + 1, (count,), generator=draw)
        self.lengths[0] = LONGEST
        self.mask = torch.arange(LONGEST) < self.lengths[:, None]
        self.old = -3 * torch.rand(count, LONGEST, generator=draw, dtype=torch.float64)
        self.new = self.old + 0.7 * torch.randn(count, LONGEST, generator=draw, dtype=torch.float64)
        self.ref = self.old + 0.5 * torch.randn(count, LONGEST, generator=draw, dtype=torch.float64)


def bare_trainer(batch, *, loss_type="grpo", delta=None, beta=0.0, clipping=(0.2, 0.3), level="token", training=True):
    from trl.trainer.grpo_trainer import GRPOTrainer

    trainer = object.__new__(GRPOTrainer)
    trainer.__dict__ |= {
        "accelerator": SimpleNamespace(
            device=torch.device("cpu"),
            num_processes=1,
            process_index=0,
            gather=lambda tensor: tensor,
            reduce=lambda tensor, reduction: tensor,
        ),
        "args": SimpleNamespace(
            delta=delta,
            use_bias_correction_kl=False,
            steps_per_generation=1,
            gradient_accumulation_steps=1,
            per_device_train_batch_size=len(batch.rewards),
            per_device_eval_batch_size=len(batch.rewards),
            gradient_checkpointing_kwargs=None,
        ),
        "model": SimpleNamespace(training=training, is_gradient_checkpointing=False),
        "environment_factories": None,
        "environments": None,
        "tools": None,
        "chat_template_kwargs": {},
        "mask_truncated_completions": False,
        "pad_to_multiple_of": None,
        "_tokenizer": SimpleNamespace(pad_token_id=0),
        "num_generations": RESPONSES,
        "num_generations_eval": RESPONSES,
        "num_iterations": 1,
        "multi_objective_aggregation": "sum_then_normalize",
        "scale_rewards": "group",
        "reward_weights": torch.ones(1, dtype=torch.float64),
        "reward_funcs": [None],
        "reward_func_names": ["reward"],
        "use_vllm": False,
        "log_multimodal": False,
        "loss_type": loss_type,
        "epsilon_low": clipping[0],
        "epsilon_high": clipping[1],
        "beta": beta,
        "importance_sampling_level": level,
        "off_policy_mask_threshold": None,
        "top_entropy_quantile": 1.0,
        "max_completion_length": MAX_LENGTH,
        "current_gradient_accumulation_steps": 1,
        "aux_loss_enabled": False,
        "_entropy_bonus_enabled": False,
        "_metrics": defaultdict(lambda: defaultdict(list)),
        "_logs": defaultdict(list) | {"rewards": defaultdict(list), "extra": defaultdict(list)},
        "_pending_extra_logs": {},
        "_pending_metrics": {},
        "_generate": lambda prompts: (
            [[1]] * len(prompts),
            [[2] * length for length in batch.lengths.tolist()],
            None,
            [""] * len(prompts),
            None,
            {},
            None,
            None,
        ),
        "_calculate_rewards": lambda *_: batch.rewards[:, None],
        "ref_model": object(),
        "_get_per_token_logps_and_entropies": lambda *_, **__: (batch.ref, None, None),
    }
    return trainer


def trl_inputs(batch, trainer):
    """What TRL feeds to its loss, advantages included, from the batch's rewards."""
    inputs = trainer._generate_and_score_completions([{"prompt": "Q"}] * len(batch.rewards))
    return inputs | {"old_per_token_logps": batch.old}


def trl_loss(batch, trainer, inputs):
    """TRL's loss and its gradient for every log-prob [B, LONGEST]."""
    logprobs = batch.new.clone().requires_grad_(True)
    zeros = torch.zeros_like(batch.new)
    trainer._get_per_token_logps_and_entropies = lambda *_, **__: (logprobs, zeros, None)
    loss = trainer._compute_loss(trainer.model, inputs)
    (gradient,) = torch.autograd.grad(loss, logprobs)
    return loss.item(), gradient


def our_advantages(batch):
    """A_PKMN for one variant with nothing shared, flat."""
    rewards_PMN = batch.rewards.view(PROBLEMS, 1, RESPONSES)
    return hierarchical_advantage(rewards_PMN, eps=TRL_EPS).as_pairs("local").flatten()


def our_loss(batch, advantages_B, aggregation, clipping, beta, level="token"):
    weights_B = pair_token_weights(batch.lengths, aggregation, MAX_LENGTH)
    logprobs = batch.new.clone().requires_grad_(True)
    result = policy_loss(
        logprobs[batch.mask],
        batch.old[batch.mask],
        advantages_B.repeat_interleave(batch.lengths),
        weights_B.repeat_interleave(batch.lengths),
        clipping,
        sequence_lengths_B=batch.lengths if level == "sequence" else None,
        ref_logprobs_T=batch.ref[batch.mask],
        beta=beta,
    )
    (gradient,) = torch.autograd.grad(result.loss, logprobs)
    return result, gradient


@pytest.mark.parametrize("seed", range(5))
def test_advantages_are_trls_group_normalised_ones(seed):
    batch = Batch(seed)
    theirs = trl_inputs(batch, bare_trainer(batch))["advantages"].double()
    ours = our_advantages(batch)
    # Where a group's rewards are equal ours is exactly 0; TRL keeps the rounding of the mean, divided by 1e-4: 1e-13.
    torch.testing.assert_close(ours, theirs, rtol=TOLERANCE, atol=1e-12)
    assert (ours[:RESPONSES] == 0.0).all()
    assert (ours[RESPONSES:] != 0.0).any()


@pytest.mark.parametrize("levels", ["hierarchical", "global"])
def test_one_variant_makes_the_levels_the_same(levels):
    batch = Batch(0)
    advantages = hierarchical_advantage(batch.rewards.view(PROBLEMS, 1, RESPONSES), eps=TRL_EPS)
    factor = {"hierarchical": 2.0, "global": 1.0}[levels]
    torch.testing.assert_close(advantages.as_pairs(levels), factor * advantages.as_pairs("local"), rtol=1e-15, atol=0)


@pytest.mark.parametrize("loss_type", AGGREGATIONS)
@pytest.mark.parametrize("delta", [None, 3.0, 1.5])
@pytest.mark.parametrize("beta", [0.0, 0.04])
@pytest.mark.parametrize("seed", range(3))
def test_loss_gradients_and_clip_fractions_are_trls(loss_type, delta, beta, seed):
    batch = Batch(seed)
    trainer = bare_trainer(batch, loss_type=loss_type, delta=delta, beta=beta)
    inputs = trl_inputs(batch, trainer)
    theirs, their_gradient = trl_loss(batch, trainer, inputs)
    clipping = Clipping(0.2, 0.3, delta)
    # TRL's advantages, so that the losses are compared on equal terms.
    result, gradient = our_loss(batch, inputs["advantages"], AGGREGATIONS[loss_type], clipping, beta)
    assert result.loss.item() == pytest.approx(theirs, rel=TOLERANCE, abs=TOLERANCE)
    torch.testing.assert_close(gradient, their_gradient, rtol=TOLERANCE, atol=TOLERANCE)
    metrics = trainer._metrics["train"]
    for name, flag_T in (("low", result.clipped_low_T), ("high", result.clipped_high_T)):
        # TRL averages its flags in float32.
        assert flag_T.double().mean().item() == pytest.approx(metrics[f"clip_ratio/{name}_mean"][0], rel=1e-6)
        assert flag_T.any()
    if beta > 0.0:
        assert result.kl_T.mean().item() == pytest.approx(metrics["kl"][0], rel=1e-6)


@pytest.mark.parametrize("loss_type", AGGREGATIONS)
def test_a_whole_step_from_rewards_to_gradients_is_trls(loss_type):
    batch = Batch(11)
    trainer = bare_trainer(batch, loss_type=loss_type, delta=3.0, beta=0.04)
    theirs, their_gradient = trl_loss(batch, trainer, trl_inputs(batch, trainer))
    result, gradient = our_loss(
        batch, our_advantages(batch), AGGREGATIONS[loss_type], Clipping(0.2, 0.3, 3.0), beta=0.04
    )
    assert result.loss.item() == pytest.approx(theirs, rel=TOLERANCE, abs=TOLERANCE)
    torch.testing.assert_close(gradient, their_gradient, rtol=TOLERANCE, atol=TOLERANCE)


@pytest.mark.parametrize("loss_type", AGGREGATIONS)
@pytest.mark.parametrize(("bounds", "delta"), [((0.2, 0.3), 3.0), ((0.2, 0.3), 1.35), ((3e-4, 4e-4), None)])
def test_one_ratio_for_a_sequence_is_trls(loss_type, bounds, delta):
    batch = Batch(0)
    trainer = bare_trainer(batch, loss_type=loss_type, delta=delta, beta=0.04, clipping=bounds, level="sequence")
    inputs = trl_inputs(batch, trainer)
    theirs, their_gradient = trl_loss(batch, trainer, inputs)
    clipping = Clipping(*bounds, delta)
    result, gradient = our_loss(
        batch, inputs["advantages"], AGGREGATIONS[loss_type], clipping, beta=0.04, level="sequence"
    )
    assert result.loss.item() == pytest.approx(theirs, rel=TOLERANCE, abs=TOLERANCE)
    torch.testing.assert_close(gradient, their_gradient, rtol=TOLERANCE, atol=TOLERANCE)
    for flag_T in (result.clipped_low_T, result.clipped_high_T):
        assert flag_T.any()
        per_sequence = flag_T.split(batch.lengths.tolist())
        assert all(flag_R.all() or not flag_R.any() for flag_R in per_sequence), "a sequence is clipped as a whole"
