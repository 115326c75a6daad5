"""Two evaluations of the same problems, compared problem by problem."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from sharevl_lite.evaluation.alike import Difference, in_words, is_pooled, shown, unlike, unlike_rewards
from sharevl_lite.evaluation.document import Evaluation
from sharevl_lite.evaluation.errors import EvaluationError
from sharevl_lite.evaluation.figures import REWARD, agreements, is_share, mean_right, measures, rewards_of
from sharevl_lite.evaluation.outcomes import Answer, Asked, Outcome
from sharevl_lite.evaluation.settings import RESAMPLES
from sharevl_lite.evaluation.statistics import FEW, LEVEL, PairedTest, paired_test
from sharevl_lite.evaluation.tables import Table, between, chance, number, points

OF_ALL = frozenset({"format", "truncated", "response_length"})
"""Figures of every response, verified or not."""
MOST_MOVERS = 10


@dataclass(frozen=True)
class Measure:
    """What a problem contributes to a figure (None: it is left out), from which ways of asking, and which of the
    responses to these it is of."""

    value: Callable[[Outcome], float | None]
    ways: Callable[[Outcome], Sequence[Asked]]
    is_of: Callable[[Answer], bool] = lambda answer: answer.correct is not None

    def responses(self, outcome: Outcome) -> int:
        """How many responses to a problem the figure stands on."""
        return sum(self.is_of(answer) for way in self.ways(outcome) for answer in way.answers)


@dataclass(frozen=True)
class Mover:
    """A problem that changed: its share of right plain responses in both."""

    id: str
    question: str
    gold: str
    first: float
    second: float


@dataclass(frozen=True)
class Comparison:
    """`tests` by figure, and the responses that each stands on, in the first and the second; `differences` are settings
    that are not alike, as (name, first, second).

    `shared` problems are in both: with their id, question and answer. `only_one` are in one of the two; the ids of
    `other_problem` are in both, for two problems. `not_compared` are figures that were not computed alike.
    """

    tests: dict[str, PairedTest]
    responses: dict[str, tuple[int, int]]
    better: list[Mover]
    worse: list[Mover]
    shared: int
    only_one: int
    differences: list[Difference]
    other_problem: int = 0
    not_compared: list[str] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


def compare(first: Evaluation, second: Evaluation, *, force: bool = False, resamples: int = RESAMPLES) -> Comparison:
    """Tests of second against first over the problems that both have.

    Raises EvaluationError where data or protocol differ, naming what does; with `force` they are compared over the
    shared problems and figures all the same. Raises it too where nothing is shared.
    """
    found = unlike(first, second)
    if found.refused and not force:
        told = "; ".join(in_words(*difference) for difference in found.refused)
        raise EvaluationError(
            f"the evaluations differ in more than the model ({told}); evaluate both alike, or compare the problems and "
            "figures that they share with --force"
        )
    pairs, alone, renamed = _paired(first, second)
    if not pairs:
        raise EvaluationError(
            "the two evaluations share no problem (by id, question and answer); evaluate both on the same data"
        )
    rewards = _shared_rewards(first, second)
    left_out = [] if force else unlike_rewards(rewards, found.told)
    tests, responses = {}, {}
    for name, measure in _measures(first, second, [name for name in rewards if name not in left_out]).items():
        met = [(a, b) for a, b in pairs if _known(measure.value(a), measure.value(b))]
        values = [(measure.value(a), measure.value(b)) for a, b in met]
        if values:
            responses[name] = sum(measure.responses(a) for a, _ in met), sum(measure.responses(b) for _, b in met)
            tests[name] = paired_test(
                values,  # type: ignore[arg-type]
                share=is_share(name),
                seed=int(first.protocol["seed"] or 0),
                resamples=resamples,
            )
    differences = [*found.refused, *found.told]
    if first.kinds.keys() != second.kinds.keys():
        differences.append(("ways of asking", ", ".join(first.kinds), ", ".join(second.kinds)))
    return Comparison(tests, responses, *_movers(pairs), len(pairs), alone, differences, renamed, left_out)


def _paired(first: Evaluation, second: Evaluation) -> tuple[list[tuple[Outcome, Outcome]], int, int]:
    """The problems that both have, how many one has alone, and how many ids are of another problem in each.

    An id may be no more than the number of a row, so question and answer must agree as well.
    """
    known = {outcome.id: outcome for outcome in first.problems}
    met = [(known[outcome.id], outcome) for outcome in second.problems if outcome.id in known]
    pairs = [(a, b) for a, b in met if (a.question, a.gold) == (b.question, b.gold)]
    return pairs, len(first.problems) + len(second.problems) - 2 * len(pairs), len(met) - len(pairs)


def _shared_rewards(first: Evaluation, second: Evaluation) -> list[str]:
    one, other = (rewards_of(outcome.asked[0] for outcome in each.problems) for each in (first, second))
    return [name for name in one if name in other]


def _known(one: float | None, other: float | None) -> bool:
    return one is not None and other is not None


def _measures(first: Evaluation, second: Evaluation, rewards: Sequence[str]) -> dict[str, Measure]:
    """The figures that both have: of the plain questions, mean@n of every other kind and source, and agreement."""
    plain = _plain_measures(first, second, rewards)
    mean = next(iter(plain))
    pooled = is_pooled(first) or is_pooled(second)
    kinds = [kind for kind in first.kinds if kind in second.kinds and kind != "plain"]
    sources = [source for source in first.sources if source in second.sources]
    of_sources = [(name, source) for name in ((mean, "truncated") if pooled else (mean,)) for source in sources]
    return {
        **({} if pooled else plain),
        **{f"{mean} {kind}": _of_kind(kind) for kind in kinds},
        **{f"{name} [{source}]": _of_source(source, plain[name]) for name, source in of_sources},
        **{name: _of_agreement(name) for name in _shared_agreements(first, second)},
    }


def _plain_measures(first: Evaluation, second: Evaluation, rewards: Sequence[str]) -> dict[str, Measure]:
    """The figures of the plain questions, the mean first; of unequal numbers of responses (with --force) only those
    that do not depend on the number."""
    found = measures(min(first.samples, second.samples), rewards)
    if first.samples != second.samples:
        found = {"mean": mean_right, **{name: each for name, each in found.items() if "@" not in name}}
    return {name: _of_plain(name, measure) for name, measure in found.items()}


def _shared_agreements(first: Evaluation, second: Evaluation) -> list[str]:
    """Whether majorities agree depends on how many votes there are, and in how many ways."""
    if first.samples != second.samples or first.kinds.keys() != second.kinds.keys():
        return []
    figures = ("consistency", "all_right", "all_wrong")
    return [name for name in figures if name in first.metrics and name in second.metrics]


def _of_plain(name: str, measure: Callable[[Asked], float | None]) -> Measure:
    plain = Measure(lambda outcome: measure(outcome.asked[0]), lambda outcome: outcome.asked[:1])
    if name.startswith(REWARD):
        return replace(plain, is_of=lambda answer: answer.rewards.get(name) is not None)
    return replace(plain, is_of=lambda answer: True) if name in OF_ALL else plain


def _of_kind(kind: str) -> Measure:
    def ways(outcome: Outcome) -> list[Asked]:
        return [way for way in outcome.asked if way.kind == kind][:1]

    return Measure(lambda outcome: next(map(mean_right, ways(outcome)), None), ways)


def _of_source(source: str, measure: Measure) -> Measure:
    return replace(measure, value=lambda outcome: measure.value(outcome) if outcome.source == source else None)


def _of_agreement(name: str) -> Measure:
    def value(outcome: Outcome) -> float | None:
        alike = agreements(outcome)
        return None if alike is None else alike[name]

    return Measure(value, lambda outcome: outcome.asked)


def _movers(pairs: Sequence[tuple[Outcome, Outcome]]) -> tuple[list[Mover], list[Mover]]:
    """Problems that gained most, and that lost most, largest change first."""
    moved = []
    for one, other in pairs:
        before, after = mean_right(one.asked[0]), mean_right(other.asked[0])
        if before is not None and after is not None and before != after:
            moved.append(Mover(one.id, one.question, one.gold, before, after))
    # Sorting is stable: equal changes stay in the order of the data.
    better = sorted((mover for mover in moved if mover.second > mover.first), key=lambda m: m.first - m.second)
    worse = sorted((mover for mover in moved if mover.second < mover.first), key=lambda m: m.second - m.first)
    return better[:MOST_MOVERS], worse[:MOST_MOVERS]


def tables(comparison: Comparison, names: tuple[str, str]) -> list[Table]:
    """Differences with intervals and p-values, settings that differ, and the problems that moved most."""
    interval = f"{LEVEL:.0%}\u00a0interval"
    rows = [
        (
            name,
            number(test.first, name),
            number(test.second, name),
            _change(test.difference, name),
            between(test.low, test.high, signed=True) if is_share(name) else between(test.low, test.high, name),
            chance(test.p_value) + (" M" if test.test == "McNemar" else ""),
            str(test.problems),
            " / ".join(dict.fromkeys(map(str, comparison.responses[name]))),
        )
        for name, test in comparison.tests.items()
    ]
    header = ("", "A", "B", "B - A", interval, "p", "problems", "responses")
    notes = (
        "B - A: percentage points. p: two-sided; the permutation test that swaps the two values of a problem, or (M) "
        "McNemar's exact test. Not corrected for the number of rows. Intervals: bootstrap over problems (percentiles), "
        f"of fewer than {FEW} with Student's t, drawn out to 0 where the test finds no difference. "
        "Problems: those that have the figure in both. Responses: those to them that the figure is of, in A / B where "
        "not as many; without a verdict they are in none about right and wrong."
    )
    parts = [Table(f"A = {names[0]}, B = {names[1]}", header, rows, notes)]
    if told := _left_out(comparison):
        parts[0] = Table(parts[0].title, header, rows, " ".join([notes, *told]))
    if comparison.differences:
        settings = [(name, shown(name, one), shown(name, other)) for name, one, other in comparison.differences]
        parts.append(Table("Settings that differ", ("", "A", "B"), settings))
    for title, movers in (("Better in B", comparison.better), ("Worse in B", comparison.worse)):
        if movers:
            lines = [(m.id, number(m.first), number(m.second), m.gold, _short(m.question)) for m in movers]
            parts.append(Table(title, ("problem", "A", "B", "answer", "question"), lines, words=("answer", "question")))
    return parts


def _left_out(comparison: Comparison) -> list[str]:
    """What is in no row, in sentences."""
    told = []
    if comparison.only_one:
        told.append(f"{comparison.shared} problems are in both, {comparison.only_one} in one only (left out).")
    if comparison.other_problem:
        told.append(f"{comparison.other_problem} ids are in both with another question or answer: no problem of both.")
    if comparison.not_compared:
        names = ", ".join(comparison.not_compared)
        told.append(f"Not compared, for weights or functions differ: {names} (--force compares them).")
    return told


def _change(difference: float, name: str) -> str:
    if is_share(name):
        return points(difference)
    return f"{difference:+.3f}" if name.startswith(REWARD) else f"{difference:+.1f}"


def _short(text: str, longest: int = 60) -> str:
    line = " ".join(text.split())
    return line if len(line) <= longest else line[: longest - 1] + "…"
