"""Variants: the m ways of asking a problem, by offline rewrites and online image transforms."""

from sharevl_lite.variants.expand import Difficulty, expand_problem
from sharevl_lite.variants.kinds import PLAIN, ask_each_kind, kind_of
from sharevl_lite.variants.transforms import TRANSFORMS

__all__ = ["PLAIN", "TRANSFORMS", "Difficulty", "ask_each_kind", "expand_problem", "kind_of"]
