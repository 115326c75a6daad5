"""Variants: the m ways of asking a problem, by offline rewrites and online image transforms."""

from .expand import Difficulty, expand_problem
from .kinds import PLAIN, ask_each_kind, kind_of
from .transforms import TRANSFORMS

__all__ = ["PLAIN", "TRANSFORMS", "Difficulty", "ask_each_kind", "expand_problem", "kind_of"]
