"""The algorithm: pure functions on tensors, without a trainer, files or models."""

from sharevl_kernels.hierarchical_advantage import Advantages, hierarchical_advantage

from sharevl_lite.share.objective import (
    Clipping,
    PolicyLoss,
    cross_variant_weight,
    pair_token_weights,
    policy_loss,
)
from sharevl_lite.share.packing import PackedRow, Prefix, SegmentGroup, pack_row
from sharevl_lite.share.row_plan import packed_length, plan_rows

__all__ = [
    "Advantages",
    "Clipping",
    "PackedRow",
    "PolicyLoss",
    "Prefix",
    "SegmentGroup",
    "cross_variant_weight",
    "hierarchical_advantage",
    "pack_row",
    "packed_length",
    "pair_token_weights",
    "plan_rows",
    "policy_loss",
]
