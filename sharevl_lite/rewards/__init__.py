"""Rewards: is the answer right, has the response the asked form, and what do the user's own functions say.

Importing this package loads neither torch nor sympy: the graders run in worker processes (`pool`), and each imports
them there.
"""

from sharevl_lite.rewards.formatting import is_well_formed
from sharevl_lite.rewards.pool import VerifierPool
from sharevl_lite.rewards.scorer import RewardScorer, Sample, Score, known
from sharevl_lite.rewards.verifier import Verdict, VerifierFailure, verify

__all__ = [
    "RewardScorer",
    "Sample",
    "Score",
    "Verdict",
    "VerifierFailure",
    "VerifierPool",
    "is_well_formed",
    "known",
    "verify",
]
