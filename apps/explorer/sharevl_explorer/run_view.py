"""Run: the figures over steps, and how many groups carried a signal."""

from __future__ import annotations

from typing import Any

from sharevl_explorer.charts import line_chart, stacked_bars
from sharevl_explorer.markup import Html, el
from sharevl_explorer.parts import OUTCOMES, Context, empty, tabs
from sharevl_explorer.queries import step_groups, step_means
from sharevl_lite.metrics_log import MetricsError
from sharevl_lite.metrics_log import read as read_metrics

_FIGURES = (
    ("reward", "mean total reward", None),
    ("accuracy", "share of right answers", (0.0, 1.0)),
    ("format", "share of well-formed responses", (0.0, 1.0)),
    ("length", "tokens per response", None),
    ("entropy", "nats per token, from metrics.jsonl", None),
    ("gap", "mean log-prob under other variants minus under the source, nats per token", None),
    ("clip low", "share of tokens clipped below, from metrics.jsonl", None),
    ("clip high", "share of tokens clipped above, from metrics.jsonl", None),
    ("clip dual", "share of tokens under the dual clip, from metrics.jsonl", None),
)


def run_view(context: Context) -> Html:
    """Small multiples and the bars of groups; every step is a link to its Step view."""
    state, index = context.state, context.index
    means = step_means(index, state.run, state.split)
    if not means:
        return empty(
            "No steps yet", "The run holds no readable rollouts of this split. With --follow they appear here."
        )
    logged, problem = _logged(context)

    def link(step: int) -> str:
        return context.link("step", step=step) or "#"

    charts = [
        line_chart(
            "cross-variant gap" if name == "gap" else name, _series(name, means, logged), link, bounds=bounds, hint=hint
        )
        for name, hint, bounds in _FIGURES
    ]
    kinds = [(key, label) for key, (label, _, _) in OUTCOMES.items()]
    groups = step_groups(index, state.run, state.split)
    legend = [el("li", el(f"span.swatch.{key}"), label, title=OUTCOMES[key][2]) for key, label in kinds]
    splits = [(name, context.link(split=name, step=-1), name == state.split) for name in index.splits(state.run)]
    newest = means[-1]["step"]
    return el(
        "section.run",
        el(
            "header.view",
            el("h2", index.runs[state.run].name),
            el("p.quiet", f"{len(means)} steps, {sum(row['responses'] for row in means):,} responses"),
            tabs("split", splits),
            el("a.button", f"open step {newest}", href=link(newest), data_key="j"),
        ),
        problem and el("p.note", problem),
        el("div.charts", charts),
        el(
            "section.panel",
            el("h3", "Groups per step"),
            el("ul.legend", legend),
            stacked_bars(groups, kinds, link),
            el(
                "p.quiet",
                "A group is the responses to one variant of a problem. Rescued: no reward spread inside the group, "
                "but across the problem's variants, so that only the shared advantage teaches anything.",
            ),
        ),
    )


def _logged(context: Context) -> tuple[dict[int, dict[str, Any]], str | None]:
    """Records of metrics.jsonl by step, and what is wrong with the file."""
    path = context.index.runs[context.state.run] / "metrics.jsonl"
    try:
        return {record["step"]: record for record in read_metrics(path) if "reward" in record}, None
    except FileNotFoundError:
        return {}, "no metrics.jsonl in the run: entropy and clip fractions are not known"
    except (MetricsError, KeyError, OSError) as error:
        return {}, f"metrics.jsonl cannot be used: {error}"


def _series(
    name: str, means: list[dict[str, Any]], logged: dict[int, dict[str, Any]]
) -> list[tuple[int, float | None]]:
    if name in means[0]:
        return [(row["step"], row[name]) for row in means]
    return [(row["step"], logged.get(row["step"], {}).get(name.replace(" ", "_"))) for row in means]
