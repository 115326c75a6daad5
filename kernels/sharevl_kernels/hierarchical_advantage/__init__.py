"""Rewards shared at two levels."""

from sharevl_kernels.hierarchical_advantage.op import Advantages, hierarchical_advantage

__all__ = ["Advantages", "hierarchical_advantage"]
