"""What an evaluation says to people: the same tables in `<name>.md` and in the terminal."""

from __future__ import annotations

from collections.abc import Mapping

from sharevl_lite.evaluation.document import Evaluation
from sharevl_lite.evaluation.figures import AGREEMENTS
from sharevl_lite.evaluation.statistics import FEW, LEVEL, Figure
from sharevl_lite.evaluation.tables import Table, markdown, value_and_interval

INTERVAL = f"{LEVEL:.0%}\u00a0interval"
MEANINGS = """\
mean@n: share of right responses. pass@k: chance that one of k responses is right (unbiased, arXiv 2107.03374). maj@n:
the answer with the most votes is right; a tie counts by the share of right ones among its leaders. consistency: share
of the problems whose majority answers under all ways of asking say the same. Two answers say the same when the verifier
accepts one as the other. Responses that could not be verified are left out of all of these, and counted above.
Intervals: bootstrap over problems (BCa), {resamples} draws, seed {seed}; of fewer than {few} problems, and where all
agree, the exact binomial one; of other figures than shares then also as wide as Student's t makes it."""
TITLES = {"not_verified": "not verified (left out)", "without_answer": "without a boxed answer", "tied_votes": "ties"}


def tables(evaluation: Evaluation) -> list[Table]:
    """Headline figures, kinds of asking, sources, and what went wrong."""
    samples = evaluation.samples
    asked = evaluation.counts["problems"]
    header = ("", "value", INTERVAL, "problems")
    plain, alike = (
        [_row(name, found) for name, found in evaluation.metrics.items() if (name in AGREEMENTS) == over_all]
        for over_all in (False, True)
    )
    parts = [
        Table(
            f"Plain questions: {asked} problems, {samples} {'response' if samples == 1 else 'responses'} each",
            header,
            plain,
        )
    ]
    if alike:
        parts.append(Table("All ways of asking a problem together", header, alike))
    if len(evaluation.kinds) > 1:
        parts.append(_groups("Ways of asking", evaluation.kinds, samples, "kind"))
    if len(evaluation.transforms) > 1:
        parts.append(_groups("Image transforms", evaluation.transforms, samples, "transform"))
    if evaluation.sources:
        parts.append(_sources(evaluation.sources, samples))
    skipped = evaluation.protocol.get("bad_rows_skipped")
    told = [] if skipped is None else [("bad rows, skipped", str(skipped))]
    told += [(TITLES.get(name, name.replace("_", " ")), str(count)) for name, count in evaluation.counts.items()]
    parts.append(Table("Counts", ("", "number"), told))
    return parts


def _row(name: str, found: Figure) -> tuple[str, ...]:
    of = str(found.problems) + (f" ({found.left_out} left out)" if found.left_out else "")
    return (name, *value_and_interval(found, name), of)


def _groups(title: str, groups: Mapping[str, Mapping[str, Figure]], samples: int, head: str) -> Table:
    name = f"mean@{samples}"
    nothing = Figure(None, None, None, 0)
    rows = [
        (
            group,
            str(figures[name].problems),
            *value_and_interval(figures[name]),
            *value_and_interval(figures.get("change", nothing), signed=True),
        )
        for group, figures in groups.items()
    ]
    header = (head, "problems", name, INTERVAL, "vs plain", INTERVAL)
    told = (
        "vs plain: percentage points, over the problems asked in both ways; the interval as of --compare (percentiles "
        "of a bootstrap, of few problems with Student's t, drawn out to 0 where the test finds no difference)."
    )
    return Table(title, header, rows, told)


def _sources(sources: Mapping[str, Mapping[str, Figure]], samples: int) -> Table:
    mean = f"mean@{samples}"
    more = [name for name in (f"maj@{samples}", "consistency") if any(name in figures for figures in sources.values())]
    nothing = Figure(None, None, None, 0)
    rows = [
        (
            source,
            str(figures[mean].problems),
            *value_and_interval(figures[mean]),
            *(value_and_interval(figures.get(name, nothing))[0] for name in more),
        )
        for source, figures in sources.items()
    ]
    return Table("Sources", ("source", "problems", mean, INTERVAL, *more), rows)


def as_markdown(evaluation: Evaluation) -> str:
    """The whole report."""
    protocol = evaluation.protocol
    meanings = MEANINGS.format(few=FEW, resamples=protocol["bootstrap_resamples"], seed=protocol["seed"])
    settings = [(name, "" if value is None else str(value)) for name, value in protocol.items()]
    return (
        f"# Evaluation of {protocol['target']}\n\n"
        + markdown(tables(evaluation))
        + f"\n{meanings}\n\n"
        + markdown([Table("Protocol", ("", "setting"), settings, words=("setting",))])
    )
