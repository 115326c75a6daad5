"""Variants: the m ways of asking a problem, by offline rewrites and online image transforms."""

from .expand import expand_problem
from .transforms import TRANSFORMS

__all__ = ["TRANSFORMS", "expand_problem"]
