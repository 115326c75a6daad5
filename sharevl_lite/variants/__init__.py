"""Variants: the m ways of asking a problem, by offline rewrites and online image transforms."""

from .expand import Difficulty, expand_problem
from .transforms import TRANSFORMS

__all__ = ["TRANSFORMS", "Difficulty", "expand_problem"]
