"""Rewards shared at two levels."""

from sharevl_kernels.hierarchical_advantage.op import hierarchical_advantage
from sharevl_kernels.hierarchical_advantage.reference import SILENT_SPREAD, Advantages

__all__ = ["SILENT_SPREAD", "Advantages", "hierarchical_advantage"]
