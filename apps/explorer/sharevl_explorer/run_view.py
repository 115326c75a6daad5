"""Run: the figures over steps, and how many groups carried a signal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from sharevl_explorer.bars import stacked_bars
from sharevl_explorer.charts import Line, line_chart
from sharevl_explorer.evaluation_view import evaluation_view, is_evaluation
from sharevl_explorer.markup import Html, el
from sharevl_explorer.parts import OUTCOMES, Context, counted, empty, scrolling, signals, tabs, trains
from sharevl_explorer.queries import step_groups, step_means
from sharevl_explorer.recipe_file import local_alone
from sharevl_lite.metrics_log import read_sound


class Figure(NamedTuple):
    """A figure, by its name in the means over the store or in metrics.jsonl, whose split it may name."""

    title: str
    name: str
    hint: str
    bounds: tuple[float, float] | None = None
    split: str = ""
    decimals: int | None = None
    """Digits behind the point, at most."""


_SHARE = (0.0, 1.0)
_STORED = {"reward", "accuracy", "format", "length", "gap", "truncated"}
"""Figures that are means over the store; the others stand in metrics.jsonl."""
_OF_RESPONSES = (
    Figure("reward", "reward", "mean total reward"),
    Figure("accuracy", "accuracy", "share of right answers", _SHARE),
    Figure("format", "format", "share of well-formed responses", _SHARE),
    Figure("length", "length", "tokens per response", decimals=1),
)
_OF_TRAINING = (
    *_OF_RESPONSES,
    Figure("entropy", "entropy", "nats per token, from metrics.jsonl"),
    Figure("cross-variant gap", "gap", "mean log-prob under other variants minus under the source, nats per token"),
    Figure("clip low", "clip_low", "share of tokens clipped below, from metrics.jsonl"),
    Figure("clip high", "clip_high", "share of tokens clipped above, from metrics.jsonl"),
    Figure("clip dual", "clip_dual", "share of tokens under the dual clip, from metrics.jsonl"),
)
_CUT = Figure("truncated", "truncated", "share of responses cut at the length limit")
_RESCUED = Figure("rescued", "rescued", "share of problems with such a group whose own rewards differ", _SHARE)
_SPREAD = Figure("reward std", "reward_std", "of a problem's rewards over variants and answers; mean over problems")
"""Shown where it was logged, as older programs did not."""
_MORE_OF_TRAINING = (
    _SPREAD,
    Figure("vanished local", "vanished_local", "share of variant groups whose rewards do not differ", _SHARE),
    Figure("vanished global", "vanished_global", "share of problems whose rewards do not differ", _SHARE),
    _RESCUED,
    _CUT,
    Figure("verifier failures", "verifier_failures", "responses without a verdict"),
    Figure("sampler gap", "sampler_gap", "mean |log-prob of the sampler minus of the trainer|, nats per token"),
)
_HELD_OUT = (
    Figure("held-out, plain", "eval_accuracy_plain", "accuracy on untouched problems", _SHARE, "eval"),
    Figure("held-out, variants", "eval_accuracy_variants", "accuracy on drawn variants", _SHARE, "eval"),
)
_KL = Figure("KL", "kl", "from the reference policy, nats per token, from metrics.jsonl")
"""Shown where it was logged: with objective.beta at 0 there is no reference."""
_OF_OPTIMIZER = (
    Figure("loss", "loss", "of the update, as logged"),
    Figure("learning rate", "learning_rate", "of the update, as logged"),
    Figure("gradient norm", "grad_norm", "norm of the gradient, as logged"),
    Figure("mean ratio", "ratio", "mean importance ratio of the tokens, as logged"),
    Figure("seconds per step", "seconds/step", "wall clock, as logged"),
)
_OF_EVALUATION = (
    *_OF_RESPONSES,
    _CUT,
    Figure("accuracy, plain", "{split}_accuracy_plain", "on untouched problems, from metrics.jsonl", _SHARE),
    Figure("accuracy, variants", "{split}_accuracy_variants", "on drawn variants, from metrics.jsonl", _SHARE),
)
_APPLIED = "/applied"
"""How the name of a share ends in metrics.jsonl that tells what the mean of a reward function is over."""
_CAPTION = (
    "A group is the responses to one variant of a problem. Own signal: its rewards differ. {rescued} No signal: nor do "
    "those of the problem. Problems that dynamic sampling replaced are counted too, as in vanished_local and "
    "vanished_global of the metrics."
)
_RESCUED_GROUP = {
    False: "Rescued: they do not, but those of the problem do, so that only the shared advantage can teach.",
    True: "Would be rescued: they do not, but those of the problem do; this run trains by the local level alone "
    "(share.levels), so that such a group teaches nothing.",
}
"""Of the caption, by whether the run trains by the local level alone."""
_CAPTION_OF_EVALUATION = "A group is the responses to one variant of a problem. No update learns from this split."


@dataclass(frozen=True)
class _Source:
    """What one run knows of a split: means over the store, records of metrics.jsonl by step, and steps that the store
    should have and has not."""

    context: Context
    means: Sequence[Mapping[str, Any]] = ()
    logged: Mapping[int, Mapping[str, Any]] = field(default_factory=dict)
    holes: Sequence[int] = ()

    @property
    def name(self) -> str:
        """Of the run."""
        return self.context.index.names[self.context.state.run]

    def line(self, figure: Figure, *, named: bool) -> Line:
        """A figure's values; None at a step that has none."""
        split = figure.split or self.context.state.split
        wanted = figure.name.format(split=split)
        if wanted in _STORED:
            values = {row["step"]: row[wanted] for row in self.means}
        else:
            values = {step: record[wanted] for step, record in self.logged.items() if wanted in record}
        steps = values if figure.split else {row["step"] for row in self.means} | set(self.holes)
        points = [(step, values.get(step)) for step in sorted(steps)]
        return Line(
            points, lambda step: self.context.link("step", step=step, split=split) or "#", self.name if named else ""
        )


def run_view(context: Context) -> Html:
    """Small multiples and the bars of groups; every step is a link to its Step view. An evaluation has a page of its
    own."""
    state, index = context.state, context.index
    if is_evaluation(index, state.run, state.split):
        return evaluation_view(context)
    own, problem = _source(context)
    if not own.means:
        return empty(
            "No steps yet", "The run holds no readable rollouts of this split. With --follow they appear here."
        )
    sources = [own]
    for other in range(len(index.runs)):
        if other != state.run:
            sources.append(_source(context.at(run=other))[0])
    trained = trains(state.split)
    newest = own.means[-1]["step"]
    responses = sum(row["responses"] for row in own.means)
    splits = [(name, context.link(split=name, step=-1), name == state.split) for name in index.splits(state.run)]
    return el(
        "section.run",
        el(
            "header.view",
            el("h1", index.names[state.run], tabindex=-1),
            el("p.quiet", f"{counted(len(own.means), 'step')}, {counted(responses, 'response')}"),
            tabs("split", splits),
            el("a.button", f"open step {newest}", href=context.link("step", step=newest), data_key="j"),
        ),
        problem and el("p.note", problem),
        _against(sources),
        _charts([*(_of_training(sources) if trained else _OF_EVALUATION), *_of_functions(sources)], sources),
        _folded(sources) if trained else None,
        _groups(context, sources),
    )


def _of_training(sources: Sequence[_Source]) -> list[Figure]:
    return [*_OF_TRAINING, *([_KL] if _logged(_KL, sources) else [])]


def _folded(sources: Sequence[_Source]) -> list[Html]:
    """Figures that are looked for when something is wrong."""
    held_out = [figure for figure in _HELD_OUT if _logged(figure, sources)]
    title = "more figures: signal, truncation, verifier, sampler" + (", held-out accuracy" if held_out else "")
    rescued = _RESCUED._replace(title=" or ".join(sorted({signals(of.context)["rescued"][0] for of in sources})))
    figures = [rescued if figure is _RESCUED else figure for figure in (*_MORE_OF_TRAINING, *held_out)]
    figures = [figure for figure in figures if figure is not _SPREAD or _logged(figure, sources)]
    more: list[tuple[str, Sequence[Figure]]] = [(title, figures)]
    if any(_logged(figure, sources) for figure in _OF_OPTIMIZER):
        more.append(("optimizer: loss, learning rate, gradient norm, ratio, seconds per step", _OF_OPTIMIZER))
    return [el("details.more", el("summary", told), _charts(shown, sources)) for told, shown in more]


def _logged(figure: Figure, sources: Sequence[_Source]) -> bool:
    """Whether a run has a figure of metrics.jsonl at any step."""
    return any(record.get(figure.name) is not None for source in sources for record in source.logged.values())


def _against(sources: Sequence[_Source]) -> Html | None:
    if len(sources) < 2:
        return None
    first, second = (source.name for source in sources)
    return el("p.newest", "figures: ", el("b", first), el("b.other", second))


def _charts(figures: Sequence[Figure], sources: Sequence[_Source]) -> Html:
    return el(
        "div.charts",
        [
            line_chart(
                figure.title,
                [source.line(figure, named=len(sources) > 1) for source in sources],
                bounds=figure.bounds,
                hint=figure.hint,
                decimals=figure.decimals,
            )
            for figure in figures
        ],
    )


def _of_functions(sources: Sequence[_Source]) -> list[Figure]:
    """Of the user's reward functions: the mean, what share of the responses it is over where not of all, and what they
    log themselves."""
    split = sources[0].context.state.split
    start = "reward/" if trains(split) else f"{split}_reward/"
    logged = [record for source in sources for record in source.logged.values()]
    keys = {key for record in logged for key in record if key.startswith(start)}
    figures = []
    for name in sorted({key.removeprefix(start).removesuffix(_APPLIED) for key in keys}):
        mean, share = f"{start}{name}", f"{start}{name}{_APPLIED}"
        figures.append(Figure(f"reward/{name}", mean, "mean over the responses that the function gave a number for"))
        if any(record.get(share, 1.0) < 1.0 for record in logged):
            figures.append(Figure(f"reward/{name}, applied", share, "share of the responses that have one", _SHARE))
    own = "log_metric/" if trains(split) else f"{split}_log_metric/"
    names = {key.removeprefix(own) for record in logged for key in record if key.startswith(own)}
    return figures + [
        Figure(f"log_metric/{name}", f"{own}{name}", "logged by a reward function") for name in sorted(names)
    ]


def _groups(context: Context, sources: Sequence[_Source]) -> Html:
    """The bars: signal first, then right or wrong; of an evaluation, right or wrong alone."""
    state = context.state
    trained = trains(state.split)
    rows: dict[int, dict[str, Any]] = {}
    for found in step_groups(context.index, state.run, state.split):
        key = f"{found['signal']}-{found['outcome']}" if trained else found["outcome"]
        row = rows.setdefault(found["step"], {"step": found["step"]})
        row[key] = row.get(key, 0) + found["n"]
    kinds = [(outcome, label) for outcome, (label, _, _) in OUTCOMES.items()]
    if trained:
        kinds = [
            (f"{signal}-{outcome}", f"{told}, {label}")
            for signal, (told, _, _) in signals(context).items()
            for outcome, label in kinds
        ]
    kinds = [(key, label) for key, label in kinds if any(row.get(key) for row in rows.values())]
    counts = [{key: 0 for key, _ in kinds} | row for row in rows.values()]
    steps = [step for source in sources for step in (*(row["step"] for row in source.means), *source.holes)]
    bars = stacked_bars(
        counts, kinds, lambda step: context.link("step", step=step) or "#", over=(min(steps), max(steps))
    )
    caption = _CAPTION.format(rescued=_RESCUED_GROUP[local_alone(context.index.runs[state.run])])
    return el(
        "section.panel",
        el("h2", "Groups per step"),
        el("ul.legend", [el("li", el(f"span.swatch.{key}"), label) for key, label in kinds]),
        scrolling("groups per step", bars),
        el("p.quiet", caption if trained else _CAPTION_OF_EVALUATION),
    )


def _source(context: Context) -> tuple[_Source, str | None]:
    """What the state's run knows, and what is wrong with its metrics.jsonl."""
    state, index = context.state, context.index
    means, logged, problem = step_means(index, state.run, state.split), {}, None
    try:
        records, faults = read_sound(index.runs[state.run] / "metrics.jsonl")
        logged = _by_step(records)
        if faults:
            problem = f"{counted(len(faults), 'line')} of metrics.jsonl left out of the figures: {faults[0]}"
    except FileNotFoundError:
        problem = "no metrics.jsonl in the run: what only it holds is not shown"
    except OSError as error:
        problem = f"metrics.jsonl cannot be read: {error}"
    mark = "reward" if trains(state.split) else f"{state.split}_accuracy"
    expected = {*index.damaged(state.run, state.split), *(step for step in logged if mark in logged[step])}
    return _Source(context, means, logged, sorted(expected - {row["step"] for row in means})), problem


def _by_step(records: Sequence[Mapping[str, Any]]) -> dict[int, dict[str, Any]]:
    """What was logged at each step; training and evaluation name their figures apart."""
    logged: dict[int, dict[str, Any]] = {}
    for record in records:
        logged.setdefault(record["step"], {}).update(record)
    return logged
