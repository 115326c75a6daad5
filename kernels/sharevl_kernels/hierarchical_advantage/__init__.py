"""Rewards shared at two levels."""

from sharevl_kernels.hierarchical_advantage.op import hierarchical_advantage
from sharevl_kernels.hierarchical_advantage.reference import Advantages

__all__ = ["Advantages", "hierarchical_advantage"]
