"""A page: the frame around a view, and what to do when a view cannot be drawn."""

from __future__ import annotations

from dataclasses import replace

from sharevl_explorer.compare_view import comparable, compare_view
from sharevl_explorer.index import Index
from sharevl_explorer.markup import Html, el
from sharevl_explorer.parts import Context, counted, empty
from sharevl_explorer.places import place
from sharevl_explorer.problem_view import problem_view
from sharevl_explorer.prose import shortened
from sharevl_explorer.response_view import response_view
from sharevl_explorer.run_view import run_view
from sharevl_explorer.state import State, parse
from sharevl_explorer.step_view import step_view
from sharevl_explorer.trial import Tryout
from sharevl_explorer.try_view import try_view
from sharevl_lite.store_schema import StoreError

_VIEWS = {
    "run": run_view,
    "step": step_view,
    "problem": problem_view,
    "response": response_view,
    "compare": compare_view,
}
_IN_BAR = {"problem": "step", "response": "step"}
"""Of views without an item in the bar: whose item stands for them."""
_KEYS = (
    ("j  k", "next and previous: problem or response"),
    ("h  l", "previous and next variant; in a step, page"),
    ("[  ]", "previous and next step"),
    ("/", "search in the step"),
    ("?", "this help"),
    ("Esc", "leave a field, close the help"),
)


def render(index: Index, query: str, tryout: Tryout | None = None) -> Html:
    """The page of a URL's query; with a `tryout`, questions of one's own can be asked."""
    revision = index.revision  # before the queries: a change in between is asked for again
    state = settle(index, parse(query))
    context = Context(index, state)
    try:
        view = try_view(tryout) if state.view == "try" else _VIEWS[state.view](context)
    except StoreError as error:
        view = _damaged(context, str(error))
    return el(
        "div.frame",
        el("a.skip", "skip to the content", href="#sharevl"),
        _bar(context, offers_trial=tryout is not None),
        _unreadable(index),
        el("div.content", _heading(context, view), view),
        _help(),
        data_revision=revision,
        data_title=_title(context),
    )


def _damaged(context: Context, why: str) -> Html:
    """A view whose file cannot be read, under the way up from it: a step is listed by what was read before."""
    step = context.link("step", q="", sheet=1)
    stations = [(f"step {context.state.step}", step)] if context.state.view in ("step", "problem", "response") else []
    ways_out = [el("a.button", "the step's problems", href=step)] if stations else []
    return el("section", place(context, *stations), empty("This cannot be read", why, *ways_out))


def _heading(context: Context, view: Html) -> Html | None:
    """What the view is, for those who hear the page; views that show a heading of the page have their own."""
    where = _place(context) or context.index.names[context.state.run]
    told = f"{context.state.view} {where}" if context.state.view in _IN_BAR else where
    return None if "<h1" in view else el("h1.hidden", told[:1].upper() + told[1:], tabindex=-1)


def _title(context: Context) -> str:
    """What the browser calls the page: its view and what is shown in it, then the run."""
    title = f"{_place(context)} · {context.index.names[context.state.run]} · sharevl explorer"
    return title.removeprefix(" · ")


def _place(context: Context) -> str:
    """The view and what is shown in it; nothing for the run itself."""
    state = context.state
    step = f"step {state.step}" + (f" of {state.split}" if state.split != "train" else "")
    return {
        "run": "",
        "step": step,
        "problem": f"{shortened(state.problem, 60)}, {step}",
        "response": f"Q{state.variant}·{state.response} of {shortened(state.problem, 60)}, {step}",
        "compare": f"compare {shortened(state.problem, 60)}".rstrip(),
        "try": "Try it",
    }[state.view]


def settle(index: Index, state: State) -> State:
    """The state with its run, split and step resolved to what there is."""
    state = replace(state, run=state.run if 0 <= state.run < len(index.runs) else 0)
    splits = index.splits(state.run)
    if state.split not in splits and splits and (state.view in ("run", "compare") or state.step == -1):
        state = replace(state, split=splits[0])
    steps = index.steps(state.run, state.split)
    return replace(state, step=steps[-1]) if state.step == -1 and steps else state


def _bar(context: Context, *, offers_trial: bool) -> Html:
    state, index = context.state, context.index
    fresh = Context(index, State(run=state.run, split=state.split))
    offered = comparable(fresh)
    compared = state.split if state.split in offered else next(iter(offered), state.split)
    here = _IN_BAR.get(state.view, state.view)
    links = (
        ("Run", fresh.link("run"), "run"),
        ("Step", fresh.link("step", step=state.step), "step"),
        ("Compare", fresh.link("compare", split=compared), "compare"),
        *([("Try it", fresh.link("try"), "try")] if offers_trial else []),
    )
    names = index.names if len(index.names) > 1 else []
    step = state.step if state.view in ("step", "problem", "response") else -1
    runs = [
        el("a", name, href=context.link(run=n, step=step), aria_current=_current(n == state.run))
        for n, name in enumerate(names)
    ]
    return el(
        "header.bar",
        el("strong", "sharevl", el("span.quiet", " explorer")),
        el(
            "nav",
            [el("a", name, href=href, aria_current=_current(view == here)) for name, href, view in links],
            aria_label="views",
        ),
        el("nav.runs", runs, aria_label="runs") if runs else None,
        el(
            "button",
            "◐ system",
            type="button",
            data_theme=True,
            name="theme",
            title="colours: as the system, light or dark",
        ),
        el("button", "?", type="button", data_help=True, aria_label="help"),
    )


def _current(here: bool) -> str | None:
    return "page" if here else None


def _unreadable(index: Index) -> Html | None:
    if not index.unreadable:
        return None
    lines = [
        el("li", el("code", f"{path.parent.name}/{path.name}"), f" {why}")
        for path, why in sorted(index.unreadable.items())
    ]
    return el(
        "details.note",
        el("summary", f"⚠ {counted(len(lines), 'shard')} cannot be read"),
        el("ul", lines[:50]),
        role="status",
    )


def _help() -> Html:
    return el(
        "dialog",
        el("h2", "Keys"),
        el("dl", [[el("dt", el("kbd", keys)), el("dd", meaning)] for keys, meaning in _KEYS]),
        el("h2", "Rescued"),
        el(
            "p",
            "A variant's group of responses is rescued if its rewards are all equal while those of the whole problem "
            "are not: alone it would teach nothing. A problem is rescued if one of its groups is, as in the metrics. "
            "Would be rescued: the run trains by the local level alone (share.levels), so that nothing is.",
        ),
        el("form", el("button", "Close"), method="dialog"),
        aria_label="help",
    )
