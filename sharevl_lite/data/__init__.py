"""Problems: reading files and Hub datasets, and checking every row of them."""

from sharevl_lite.data.errors import BadRow, BadRowError, DataError, RowFault, RowPlace
from sharevl_lite.data.loading import LoadedProblems, load_problems
from sharevl_lite.data.problem import PLACEHOLDER, Problem, Variant

__all__ = [
    "PLACEHOLDER",
    "BadRow",
    "BadRowError",
    "DataError",
    "LoadedProblems",
    "Problem",
    "RowFault",
    "RowPlace",
    "Variant",
    "load_problems",
]
