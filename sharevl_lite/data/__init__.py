"""Problems: reading files and Hub datasets, and checking every row of them."""

from .errors import BadRow, BadRowError, DataError, RowFault, RowPlace
from .loading import LoadedProblems, load_problems
from .problem import PLACEHOLDER, Problem, Variant

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
