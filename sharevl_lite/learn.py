"""The second half of a step: scoring pairs in packed rows, and the loss of an update.

An update's rows are planned once and used for the old log-probs and for every epoch over them, so that with an
unchanged policy the ratio is exactly 1, whatever the precision. The first update of a rollout finds the policy that
sampled: its own forward pass is the old log-probs, and a pass for them alone is left out where nothing else waits for
it. Pairs without an advantage take no part in an update unless the KL term needs them; they still count in its
normalisation, and are scored once for the figures of a step unless `train.score_skipped` is off. Responses whose reward
is not known, and where the recipe says so those that were cut off, take no part in anything here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sharevl_lite.collect import Rollout
from sharevl_lite.config import Recipe
from sharevl_lite.policy.packed import PackedPolicy, TokenScores
from sharevl_lite.rollout.engine import Response
from sharevl_lite.share import (
    Clipping,
    PackedRow,
    PolicyLoss,
    SegmentGroup,
    cross_variant_weight,
    pack_row,
    pair_token_weights,
    plan_rows,
    policy_loss,
)


class Pair(NamedTuple):
    """Response i of source variant j of problem p (of this process), scored under variant k."""

    p: int
    k: int
    j: int
    i: int


@dataclass
class PairScores:
    """Per pair, in token order: log-probs of the rollout policy, of the reference, and entropies (nats)."""

    old: dict[Pair, Float[Tensor, "R"]] = field(default_factory=dict)
    reference: dict[Pair, Float[Tensor, "R"]] = field(default_factory=dict)
    entropy: dict[Pair, Float[Tensor, "R"]] = field(default_factory=dict)


@dataclass(frozen=True)
class UpdatePlan:
    """One update: rows that are trained, rows that are only scored, and the pairs behind them."""

    active_rows: list[PackedRow[Pair]]
    idle_rows: list[PackedRow[Pair]]
    valid: list[Pair]
    active: frozenset[Pair]
    tokens_packed: int
    tokens_separate: int

    @property
    def trained_rows(self) -> list[PackedRow[Pair]]:
        """The rows of the backward pass. A process with nothing to train still takes part in the gradient's reduction,
        with a row at weight 0."""
        return self.active_rows or self.idle_rows[:1]


@dataclass(frozen=True)
class RowLoss:
    """Loss of one packed row (a share of the update's loss) with its per-token facts, pair by pair."""

    loss: Tensor
    facts: PolicyLoss
    row: PackedRow[Pair]

    def detached(self) -> RowLoss:
        """The same numbers, without what a backward pass needs."""
        loss = self.loss.detach()
        return RowLoss(loss, replace(self.facts, loss=loss), self.row)


class Learner:
    """Plans, scores and differentiates the pairs of one process's rollout."""

    def __init__(self, recipe: Recipe, policy: PackedPolicy, rollout: Rollout) -> None:
        self.recipe = recipe
        self.policy = policy
        self.rollout = rollout
        self.scores = PairScores()
        self.images = rollout.images
        self.pairs_PKMN = rollout.advantages.as_pairs(recipe.share.levels)
        objective = recipe.objective
        self.clipping = Clipping(objective.epsilon, objective.epsilon_high, objective.delta)

    def length_of(self, pair: Pair) -> int:
        """Tokens of the pair's response."""
        return len(self._response(pair).token_ids)

    def plan(self, problems: Sequence[int]) -> UpdatePlan:
        """The update on these problems (indices into the rollout)."""
        valid = [pair for p in problems for pair in self._valid_pairs(p)]
        active = [pair for pair in valid if self.recipe.objective.beta > 0.0 or self.pairs_PKMN[pair] != 0.0]
        chosen = frozenset(active)
        idle = self._idle(valid, chosen)
        if not active and not idle:  # one row is needed at weight 0 (see `losses`), even if every verification failed
            own = [pair for pair in valid if pair.k == pair.j]  # others are compared with scores that are not there
            idle = own[:1] or [Pair(problems[0], 0, 0, 0)]
        active_rows = self._rows(active)
        return UpdatePlan(
            active_rows=active_rows,
            idle_rows=self._rows(idle),
            valid=valid,
            active=chosen,
            tokens_packed=sum(row.ids_T.numel() for row in active_rows),
            tokens_separate=sum(self._separate_length(pair) for pair in active),
        )

    def _idle(self, valid: Sequence[Pair], active: frozenset[Pair]) -> list[Pair]:
        """The pairs that are scored although they train nothing; without `train.score_skipped` those alone whose
        log-probs others are compared with."""
        sources = {pair._replace(k=pair.j) for pair in active}
        keep_all = self.recipe.train.score_skipped
        return [pair for pair in valid if pair not in active and (keep_all or pair in sources)]

    @property
    def scores_while_training(self) -> bool:
        """Whether the first update may find its old log-probs itself: weights between variants or engines need those of
        other rows first, and dropout would make them another model's."""
        objective = self.recipe.objective
        return (
            objective.correction == "none" and objective.sampler_cap is None and self.recipe.model.lora.dropout == 0.0
        )

    @torch.no_grad()
    def score(self, plan: UpdatePlan, *, first: bool = False) -> None:
        """Fills in old (and, with a KL term, reference) log-probs and entropies of the plan's pairs.

        `first`: the plan is trained before the policy changes, and :meth:`losses` fills in what it can itself.
        """
        active_rows = [] if first and self.scores_while_training else plan.active_rows
        for row in (*active_rows, *plan.idle_rows):
            self._keep(row, self.policy(row, self.images, entropy=True))
        if self.recipe.objective.beta > 0.0:
            with self.policy.reference():
                for row in plan.active_rows:
                    self._scatter(row, self.policy(row, self.images).logprobs_S, self.scores.reference)

    def losses(self, model: nn.Module, plan: UpdatePlan, count: int, tokens: int) -> Iterator[RowLoss]:
        """The update's loss, row by row; summed over all rows of all processes it is the loss of the update.

        `model` is the policy or its distributed wrapper. `count` and `tokens` are the update's valid pairs and their
        tokens over all processes. The loss is in float64 on the policy's device. A row without old log-probs gets those
        of this pass.
        """
        for row in plan.trained_rows:
            fresh = row.pairs[0] not in self.scores.old
            scores = model(row, self.images, entropy=fresh)
            if fresh:
                self._keep(row, scores)
            facts = self._row_loss(row, scores.logprobs_S, plan, count, tokens)
            yield RowLoss(facts.loss, facts, row)

    def gaps(self) -> Float[Tensor, "X"]:
        """log π_old(o_t|Qk) - log π_old(o_t|Qj) of every scored token of every cross-variant pair, nats."""
        gaps = [self.gap(pair) for pair in sorted(self.scores.old) if pair.k != pair.j]
        return torch.cat(gaps) if gaps else torch.zeros(0)

    def gap(self, pair: Pair) -> Float[Tensor, "R"]:
        """The gap of one scored pair, token by token."""
        return self.scores.old[pair] - self._source(pair)

    def sampler_gaps(self) -> Float[Tensor, "X"]:
        """log π_old(o_t|Qj) - log π_sampler(o_t|Qj) of every token of every scored own-variant pair, nats."""
        own = [pair for pair in sorted(self.scores.old) if pair.k == pair.j]
        gaps = [self.scores.old[pair].double() - self._sampler(pair) for pair in own]
        return torch.cat(gaps) if gaps else torch.zeros(0, dtype=torch.float64)

    def _sampler(self, pair: Pair) -> Float[Tensor, "R"]:
        return torch.tensor(self._response(pair).logprobs, dtype=torch.float64)

    def _source(self, pair: Pair) -> Float[Tensor, "R"]:
        """log π_old of the pair's tokens under the variant they were sampled from."""
        return self.scores.old[pair._replace(k=pair.j)]

    def _valid_pairs(self, p: int) -> list[Pair]:
        share = self.recipe.share
        variants = range(share.num_variants)
        pairs = (
            Pair(p, k, j, i)
            for k in variants
            for j in ([k] if share.trajectories == "own" else variants)
            for i in range(share.num_responses)
        )
        return [pair for pair in pairs if self.takes_part(pair.p, pair.j, pair.i)]

    def advantage(self, pair: Pair) -> float | None:
        """The advantage of a pair of the objective; None of one that is none."""
        own = pair.k == pair.j or self.recipe.share.trajectories != "own"
        return float(self.pairs_PKMN[pair]) if own and self.takes_part(pair.p, pair.j, pair.i) else None

    def takes_part(self, p: int, j: int, i: int) -> bool:
        """Whether response i of variant j of problem p may train: its reward is known, and it is not left out for being
        cut off."""
        masked = self.recipe.objective.mask_truncated_completions and self.rollout.responses[p][j][i].truncated
        return bool(self.rollout.mask_PMN[p, j, i]) and not masked

    def _response(self, pair: Pair) -> Response:
        return self.rollout.responses[pair.p][pair.j][pair.i]

    def _separate_length(self, pair: Pair) -> int:
        return self.rollout.prompts[pair.p][pair.k].prefix.ids_P.numel() + self.length_of(pair)

    def _rows(self, pairs: Sequence[Pair]) -> list[PackedRow[Pair]]:
        return [pack_row(groups) for groups in plan_rows(self._groups(pairs), self.recipe.train.token_budget)]

    def _groups(self, pairs: Sequence[Pair]) -> list[SegmentGroup[Pair]]:
        """One group per (problem, scoring variant) that has pairs among `pairs`."""
        by_prefix: dict[tuple[int, int], list[Pair]] = {}
        for pair in pairs:
            by_prefix.setdefault((pair.p, pair.k), []).append(pair)
        return [
            SegmentGroup(
                prefix=self.rollout.prompts[p][k].prefix,
                responses=tuple(torch.tensor(self._response(pair).token_ids) for pair in members),
                pairs=tuple(members),
            )
            for (p, k), members in by_prefix.items()
        ]

    def _keep(self, row: PackedRow[Pair], scores: TokenScores) -> None:
        self._scatter(row, scores.logprobs_S, self.scores.old)
        if scores.entropies_S is not None:
            self._scatter(row, scores.entropies_S, self.scores.entropy)

    @staticmethod
    def _scatter(row: PackedRow[Pair], values_S: Tensor, into: dict[Pair, Tensor]) -> None:
        pieces = values_S.detach().cpu().split(row.cu_seqlens_B1.diff().tolist())
        into.update(zip(row.pairs, pieces, strict=True))

    def _correction(self, row: PackedRow[Pair], old_S: Tensor) -> Tensor | None:
        """Weights for who sampled the tokens: another variant, and an engine with other numbers."""
        objective = self.recipe.objective
        if objective.correction == "none" and objective.sampler_cap is None:
            return None
        source_S = torch.cat([self._source(pair) for pair in row.pairs])
        weight_S = cross_variant_weight(old_S, source_S, objective.correction, objective.correction_cap)
        if objective.sampler_cap is not None:
            sampler_S = torch.cat([self._sampler(pair) for pair in row.pairs])
            weight_S = weight_S * cross_variant_weight(source_S, sampler_S, "truncate", objective.sampler_cap)
        return weight_S

    def _row_loss(
        self, row: PackedRow[Pair], logprobs_S: Tensor, plan: UpdatePlan, count: int, tokens: int
    ) -> PolicyLoss:
        objective = self.recipe.objective
        device = logprobs_S.device
        lengths_B = row.cu_seqlens_B1.diff()
        weights_B = pair_token_weights(
            lengths_B, objective.aggregation, self.recipe.rollout.max_completion_length, count=count, tokens=tokens
        )
        weights_B = weights_B * torch.tensor([float(pair in plan.active) for pair in row.pairs])
        advantages_B = torch.tensor([float(self.pairs_PKMN[pair]) for pair in row.pairs], dtype=torch.float64)
        old_S = torch.cat([self.scores.old[pair] for pair in row.pairs])
        correction_S = self._correction(row, old_S)
        reference_S = None
        if objective.beta > 0.0:
            pieces = [self.scores.reference.get(pair, self.scores.old[pair]) for pair in row.pairs]
            reference_S = torch.cat(pieces).to(device)
        return policy_loss(
            logprobs_S.double(),
            old_S.to(device).double(),
            advantages_B.repeat_interleave(lengths_B).to(device),
            weights_B.repeat_interleave(lengths_B).to(device),
            self.clipping,
            sequence_lengths_B=lengths_B if objective.importance_sampling_level == "sequence" else None,
            correction_T=None if correction_S is None else correction_S.to(device).double(),
            ref_logprobs_T=None if reference_S is None else reference_S.double(),
            beta=objective.beta,
        )
