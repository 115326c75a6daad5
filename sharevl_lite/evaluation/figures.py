"""The figures of an evaluation, from its outcomes.

Headline figures are of the plain questions. n is the number of responses to each way of asking.

    mean@n           share of right responses, averaged over problems
    pass@k           k = 2, 4, 8, ... up to n: some of k responses is right
    maj@n            the answer with the most votes is right; ties count by the share of right ones among the leaders.
                     A response without a boxed answer has no vote; where nobody votes the problem counts as wrong
    format           share of well-formed responses
    truncated        share of responses cut at the longest length
    response_length  mean tokens of a response
    reward, reward/NAME
                     with rewards of the user's own: the whole reward, and each function's, where they are known

Over all ways in which a problem was asked, for problems asked in at least two:

    consistency      share of the problems whose majority answers under all ways say the same, right or wrong. The
                     majority answer of a tie is the one that appeared first; no answer is like no other
    all_right, all_wrong, mixed
                     shares of the problems whose majority answers are right under all ways, under none, or some

A response whose verification failed is left out of everything about right and wrong, and counted; a problem without
enough verified responses is left out of a figure, and counted with it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

from sharevl_lite.evaluation.outcomes import RIGHT, Asked, Outcome
from sharevl_lite.evaluation.settings import RESAMPLES
from sharevl_lite.evaluation.statistics import EVERYWHERE, Figure, figure, leading, majority, paired_test, pass_at_k

PerWay = Callable[[Asked], float | None]
REWARD, LENGTH = "reward", "response_length"
AGREEMENTS = ("consistency", "all_right", "all_wrong", "mixed")
"""The figures over all ways of asking together."""


def is_share(name: str) -> bool:
    """Whether a figure is a share of 0..1: neither a length nor a reward."""
    return name != LENGTH and not name.startswith(REWARD)


@dataclass(frozen=True)
class Bootstrap:
    """How intervals are drawn."""

    seed: int = 0
    resamples: int = RESAMPLES


def measures(samples: int, rewards: Iterable[str] = ()) -> dict[str, PerWay]:
    """Name to the number that one way of asking a problem contributes (None: it is left out), for so many responses.

    `rewards` are names of :attr:`Answer.rewards`.
    """
    powers = [k for k in (2**power for power in range(1, 32)) if k < samples]
    ks = [*powers, samples] if samples > 1 else []
    return {
        f"mean@{samples}": mean_right,
        **{f"pass@{k}": partial(_pass, k=k) for k in ks},
        **({f"maj@{samples}": _majority_right} if samples > 1 else {}),
        "format": lambda way: _mean([answer.well_formed for answer in way.answers]),
        "truncated": lambda way: _mean([answer.truncated for answer in way.answers]),
        LENGTH: lambda way: _mean([answer.tokens for answer in way.answers]),
        **{name: partial(_mean_reward, name=name) for name in rewards},
    }


def rewards_of(ways: Iterable[Asked]) -> list[str]:
    """Names of the rewards that answers have, in order."""
    return list(dict.fromkeys(name for way in ways for answer in way.answers for name in answer.rewards))


def _mean_reward(way: Asked, *, name: str) -> float | None:
    return _mean([value for answer in way.answers if (value := answer.rewards.get(name)) is not None])


def mean_right(way: Asked) -> float | None:
    """Share of right responses among the verified ones; None without any."""
    return _mean(way.known)


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _pass(way: Asked, *, k: int) -> float | None:
    known = way.known
    return pass_at_k(sum(known), len(known), k) if len(known) >= k else None


def _majority_right(way: Asked) -> float | None:
    return majority(_votes(way)) if way.known else None


def _votes(way: Asked) -> list[int | None]:
    return [answer.group for answer in way.answers if answer.correct is not None]


def agreements(outcome: Outcome) -> dict[str, float] | None:
    """1 or 0 for consistency, all_right, all_wrong and mixed; None unless two ways have a verified response."""
    ways = [way for way in outcome.asked if way.known]
    if len(ways) < 2:
        return None
    answers = [next(iter(leading(_votes(way))), None) for way in ways]
    right = [answer == RIGHT for answer in answers]
    return {
        "consistency": float(answers[0] is not None and len(set(answers)) == 1),
        "all_right": float(all(right)),
        "all_wrong": float(not any(right)),
        "mixed": float(any(right) and not all(right)),
    }


def headline(outcomes: Sequence[Outcome], samples: int, draws: Bootstrap) -> dict[str, Figure]:
    """The figures of the module's docstring over these problems, by name."""
    found = _figures([outcome.asked[0] for outcome in outcomes], samples, draws)
    if any(len(outcome.asked) > 1 for outcome in outcomes):
        alike = [agreements(outcome) for outcome in outcomes]
        for name in AGREEMENTS:
            values = [None if each is None else each[name] for each in alike]
            found[name] = figure(values, seed=draws.seed, resamples=draws.resamples)
    return found


def _figures(
    ways: Sequence[Asked], samples: int, draws: Bootstrap, names: Sequence[str] | None = None
) -> dict[str, Figure]:
    return {
        name: figure(
            [measure(way) for way in ways],
            share=is_share(name),
            seed=draws.seed,
            resamples=draws.resamples,
            bounds=(0.0, math.inf) if name == LENGTH else EVERYWHERE,
        )
        for name, measure in measures(samples, rewards_of(ways)).items()
        if names is None or name in names
    }


def by_source(outcomes: Sequence[Outcome], samples: int, draws: Bootstrap) -> dict[str, dict[str, Figure]]:
    """Headline figures of each source, by name of the source; empty where the problems name none."""
    sources = sorted({outcome.source for outcome in outcomes if outcome.source is not None})
    return {
        source: headline([outcome for outcome in outcomes if outcome.source == source], samples, draws)
        for source in sources
    }


def by_kind(outcomes: Sequence[Outcome], samples: int, draws: Bootstrap) -> dict[str, dict[str, Figure]]:
    """Figures of each kind of asking, in order of appearance, over the problems that were asked so.

    `change` is mean@n of the kind minus mean@n of the same problems' plain question, with the interval of that
    difference.
    """
    kinds = dict.fromkeys(way.kind for outcome in outcomes for way in outcome.asked)
    return {kind: _kind(outcomes, samples, draws, partial(_is_of_kind, kind=kind)) for kind in kinds}


def by_transform(outcomes: Sequence[Outcome], samples: int, draws: Bootstrap) -> dict[str, dict[str, Figure]]:
    """mean@n and `change` by the exact transform, such as `rotate_90_cw`."""
    names = sorted({way.transform for outcome in outcomes for way in outcome.asked if way.transform is not None})
    mean = (f"mean@{samples}",)
    return {name: _kind(outcomes, samples, draws, partial(_is_of_transform, name=name), mean) for name in names}


def _is_of_kind(way: Asked, *, kind: str) -> bool:
    return way.kind == kind


def _is_of_transform(way: Asked, *, name: str) -> bool:
    return way.transform == name


def _kind(
    outcomes: Sequence[Outcome],
    samples: int,
    draws: Bootstrap,
    wanted: Callable[[Asked], bool],
    names: Sequence[str] | None = None,
) -> dict[str, Figure]:
    ways = [(outcome.asked[0], way) for outcome in outcomes for way in outcome.asked if wanted(way)]
    found = _figures([way for _, way in ways], samples, draws, names)
    if all(plain is way for plain, way in ways):
        return found
    return {**found, "change": _change([(mean_right(plain), mean_right(way)) for plain, way in ways], draws)}


def _change(pairs: Sequence[tuple[float | None, float | None]], draws: Bootstrap) -> Figure:
    """The mean difference, with the interval of a comparison: a bootstrap alone is too sure of few problems."""
    known = [(before, after) for before, after in pairs if before is not None and after is not None]
    if not known:
        return Figure(None, None, None, 0, len(pairs))
    found = paired_test(known, seed=draws.seed, resamples=draws.resamples)
    return Figure(found.difference, found.low, found.high, len(known), len(pairs) - len(known))


def counts(outcomes: Sequence[Outcome], comparisons_failed: int) -> dict[str, int]:
    """What was asked and what went wrong, as numbers of problems or responses."""
    ways = [way for outcome in outcomes for way in outcome.asked]
    answers = [answer for way in ways for answer in way.answers]
    return {
        "problems": len(outcomes),
        "responses": len(answers),
        "truncated": sum(answer.truncated for answer in answers),
        "not_verified": sum(answer.correct is None for answer in answers),
        "without_answer": sum(answer.correct is not None and answer.group is None for answer in answers),
        "tied_votes": sum(len(leading(_votes(way))) > 1 for way in ways),
        "comparisons_failed": comparisons_failed,
    }
