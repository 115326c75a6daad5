"""The estimators: pass@k, majority votes, and bootstrap intervals over problems.

    pass@k = 1 - C(n - c, k) / C(n, k)      c of n responses right (Chen et al., arXiv 2107.03374, equation 1)
    maj@n  = share of right ones among the answers with the most votes

Every figure of an evaluation is the mean over problems of one number per problem, so an interval comes from drawing
problems, each with all its responses: responses to one problem are not independent of each other.
"""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import comb
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy import stats

from sharevl_lite.evaluation.outcomes import RIGHT
from sharevl_lite.evaluation.settings import RESAMPLES

LEVEL = 0.95
FEW = 20
"""Problems below which a bootstrap's intervals are too narrow: of 4 they hold the truth in 79 to 86 of 100 cases, of 12
in 89 to 97 (docs/LOG.md, 2026-11-28)."""
EVERYWHERE = (-math.inf, math.inf)
_DRAWS_AT_ONCE = 4_000_000
_DECIMALS = 12
_NOISE = 10.0**-_DECIMALS
"""Share of the largest value below which two numbers are one that was added up in two orders."""


@dataclass(frozen=True)
class Figure:
    """A mean over `problems` problems with its interval; None where there is none to give.

    `left_out` problems have no value: none of their responses could be verified, or too few for a pass@k.
    """

    value: float | None
    low: float | None
    high: float | None
    problems: int
    left_out: int = 0

    def as_json(self) -> dict[str, float | int | None]:
        """The fields by name."""
        return asdict(self)


def pass_at_k(right: int, sampled: int, k: int) -> float:
    """Chance that one of k responses, drawn without replacement from `sampled` of which `right` are right, is right.

    Raises ValueError where k is not within 1..sampled or `right` not within 0..sampled.
    """
    if not 1 <= k <= sampled or not 0 <= right <= sampled:
        raise ValueError(f"pass@{k} of {right} right among {sampled} responses")
    return 1.0 - comb(sampled - right, k) / comb(sampled, k)


def leading(groups: Sequence[int | None]) -> list[int]:
    """The classes of answers with the most votes, the first to appear first. None (no answer) has no vote."""
    votes = Counter(group for group in groups if group is not None)
    most = max(votes.values(), default=0)
    return [group for group, count in votes.items() if count == most]


def majority(groups: Sequence[int | None]) -> float:
    """Chance that a majority vote is right, ties broken at random: the share of RIGHT among the leading classes.

    Without any answer it is 0: the vote elects nothing.
    """
    ahead = leading(groups)
    return 1.0 / len(ahead) if RIGHT in ahead else 0.0


def figure(
    values: Sequence[float | None],
    *,
    share: bool = True,
    seed: int = 0,
    resamples: int = RESAMPLES,
    bounds: tuple[float, float] = EVERYWHERE,
) -> Figure:
    """The mean over problems (None: a problem that is left out) and its interval at `LEVEL`.

    The interval is the bias-corrected and accelerated bootstrap (Efron 1987, as in scipy). A bootstrap knows too little
    of fewer than `FEW` problems, and of problems that all have the same value it sees no spread: a `share` gets the
    exact binomial (Clopper-Pearson) interval then, of so many problems with so many of them right, fractions included,
    which is rather too wide than too narrow. What is no share gets what the bootstrap and Student's t together cover,
    within the `bounds` of its values. One problem alone has none, nor have equal values that are no shares.
    """
    known_P = np.asarray([value for value in values if value is not None], dtype=np.float64)
    left_out = len(values) - len(known_P)
    if not len(known_P):
        return Figure(None, None, None, 0, left_out)
    low, high = interval(known_P, share=share, seed=seed, resamples=resamples, bounds=bounds)
    return Figure(float(known_P.mean()), low, high, len(known_P), left_out)


def interval(
    values_P: Float[np.ndarray, "P"],
    *,
    share: bool,
    seed: int,
    resamples: int = RESAMPLES,
    methods: Sequence[str] = ("BCa", "percentile"),
    bounds: tuple[float, float] = EVERYWHERE,
) -> tuple[float | None, float | None]:
    """(low, high) of the mean; see :func:`figure`. Of scipy's `methods` the first that has an answer counts."""
    size = len(values_P)
    if size < 2:
        return None, None
    if share and (size < FEW or np.ptp(values_P) == 0.0):
        return _clopper_pearson(float(values_P.sum()), size)
    if np.ptp(values_P) == 0.0:
        return None, None
    drawn: Any = None
    for method in methods:  # BCa has no answer where nearly all resamples are alike
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", stats.DegenerateDataWarning)
            drawn = stats.bootstrap(
                (values_P,),
                np.mean,
                n_resamples=resamples,
                batch=max(1, _DRAWS_AT_ONCE // size),
                confidence_level=LEVEL,
                method=method,
                rng=np.random.default_rng(seed),
            ).confidence_interval
        if np.isfinite(drawn).all():
            break
    if size >= FEW:
        return float(drawn.low), float(drawn.high)
    low, high = _student(values_P)
    return max(bounds[0], min(low, drawn.low)), min(bounds[1], max(high, drawn.high))


def _student(values_P: Float[np.ndarray, "P"]) -> tuple[float, float]:
    found = stats.ttest_1samp(values_P, 0.0).confidence_interval(LEVEL)
    return float(found.low), float(found.high)


def _clopper_pearson(right: float, size: int) -> tuple[float, float]:
    tail = (1.0 - LEVEL) / 2
    low = stats.beta.ppf(tail, right, size - right + 1) if right > 0.0 else 0.0
    high = stats.beta.ppf(1.0 - tail, right + 1, size - right) if right < size else 1.0
    return float(low), float(high)


@dataclass(frozen=True)
class PairedTest:
    """`difference` is the mean over problems of second minus first; `p_value` is two-sided."""

    first: float
    second: float
    difference: float
    low: float | None
    high: float | None
    p_value: float
    problems: int
    test: str
    """"permutation", or "McNemar" where every value is 0 or 1."""


def paired_test(
    pairs: Sequence[tuple[float, float]], *, share: bool = True, seed: int = 0, resamples: int = RESAMPLES
) -> PairedTest:
    """Tests whether two evaluations of the same problems differ in the mean, problem by problem.

    Where every value is 0 or 1 (one response each, a vote without ties): McNemar's exact test, the binomial one on the
    problems that changed sides. Otherwise the permutation test that swaps the two values of problems (all 2^P ways
    where those are no more than `resamples`). The interval of the difference is the percentile bootstrap over problems,
    of fewer than `FEW` together with Student's t, drawn out to 0 where the test finds no difference at `LEVEL`: of a
    few changed problems a bootstrap knows too little and excludes 0 too often, BCa, which suits single evaluations,
    most of all.
    Raises ValueError without a pair.
    """
    if not pairs:
        raise ValueError("no problem is in both")
    first_P, second_P = np.asarray(pairs, dtype=np.float64).T
    change_P = second_P - first_P
    binary = share and bool(np.isin(pairs, (0.0, 1.0)).all())
    p_value = _mcnemar(change_P) if binary else _permutation(first_P, second_P, seed, resamples)
    bounds, methods = (-1.0, 1.0) if share else EVERYWHERE, ("percentile",)
    low, high = interval(change_P, share=False, seed=seed, resamples=resamples, methods=methods, bounds=bounds)
    if low is not None and high is not None and p_value > 1.0 - LEVEL:
        low, high = min(low, 0.0), max(high, 0.0)
    return PairedTest(
        float(first_P.mean()),
        float(second_P.mean()),
        float(change_P.mean()),
        low,
        high,
        p_value,
        len(pairs),
        "McNemar" if binary else "permutation",
    )


def _mcnemar(change_P: Float[np.ndarray, "P"]) -> float:
    better, worse = int((change_P > 0).sum()), int((change_P < 0).sum())
    return float(stats.binomtest(better, better + worse).pvalue) if better + worse else 1.0


def _permutation(first_P: Float[np.ndarray, "P"], second_P: Float[np.ndarray, "P"], seed: int, resamples: int) -> float:
    largest = max(float(np.abs(first_P).max()), float(np.abs(second_P).max()))
    moved = np.abs(second_P - first_P) > _NOISE * largest  # swapping equal values changes nothing
    if moved.sum() < 2:  # both ways of swapping one problem are as far from 0
        return 1.0

    def mean_change(second: np.ndarray[Any, Any], first: np.ndarray[Any, Any], axis: int) -> np.ndarray[Any, Any]:
        # The mean is rounded, not each change: rounded thirds no longer add up to 0.
        return np.round(np.mean(second - first, axis=axis) / largest, _DECIMALS)

    found = stats.permutation_test(
        (second_P[moved], first_P[moved]),
        mean_change,
        permutation_type="samples",
        vectorized=True,
        n_resamples=resamples,
        batch=max(1, _DRAWS_AT_ONCE // int(moved.sum())),
        rng=np.random.default_rng(seed),
    )
    return float(found.pvalue)
