"""Which answers to a problem say the same: classes of answers for votes and for consistency.

Answers that the verifier accepts are one class. Of the wrong ones, two are of one class when the verifier takes the
second of them as a gold answer and accepts the first: each new answer is held against the first answer of every
class, in the order in which answers appeared, and joins the first class that accepts it. All problems go round by
round together, so that the verifier's processes have enough to do.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

Compare = Callable[[Sequence[tuple[str, str]]], list[bool | None]]
"""Whether the two answers of each pair say the same; None where that could not be found out."""


def group_wrong_answers(answers: Sequence[Sequence[str]], compare: Compare) -> tuple[list[dict[str, int]], int]:
    """Classes, from 1 on, of the distinct wrong answers of each problem; and how many comparisons failed.

    A comparison that failed counts as "not the same".
    """
    groups: list[dict[str, int]] = [{} for _ in answers]
    firsts: list[list[str]] = [[] for _ in answers]
    waiting = [list(dict.fromkeys(row)) for row in answers]
    failed = 0
    for turn in range(max((len(row) for row in waiting), default=0)):
        newcomers = [(p, row[turn]) for p, row in enumerate(waiting) if turn < len(row)]
        pairs = [(answer, first) for p, answer in newcomers for first in firsts[p]]
        verdicts = compare(pairs) if pairs else []
        failed += verdicts.count(None)
        told = iter(verdicts)
        for p, answer in newcomers:
            same = [next(told) for _ in firsts[p]]
            if True in same:
                groups[p][answer] = same.index(True) + 1
            else:
                firsts[p].append(answer)
                groups[p][answer] = len(firsts[p])
    return groups, failed
