"""Tokens: the heat-map of a response, by how likely each token was, or by what another variant makes of it.

gap(t, k) = log pi_old(o_t | Qk) - log pi_old(o_t | Qj),    j the variant that the response was sampled under
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

from sharevl_explorer.figures import number
from sharevl_explorer.markup import Html, el
from sharevl_explorer.parts import Context, counted, tabs
from sharevl_explorer.queries import token_logprobs
from sharevl_explorer.state import State
from sharevl_explorer.tokenizer import tokenizer_of

_TOKENS = 2000
_FULL = {"logprob": 5.0, "gap": 2.0}
"""Nats from which on a token has the full colour: the same in every response, so that two can be compared."""
_FAINT = 0.01
"""A gap below this is neither more nor less likely."""

_SHADE = 0.2
"""Nats that one shade of a file's map of tokens covers: nearer ones are not told apart by the eye."""
_DEEPEST = round(_FULL["logprob"] / _SHADE)

Values = Sequence[float | None]


def token_view(context: Context, row: Mapping[str, Any]) -> Html:
    """The panel of one response's tokens; `under` of the state chooses what is shown. A file shows them as sampled."""
    state, in_file = context.state, context.anchors is not None
    asked = row["schema_version"] >= 2 and row["scorers"] and not in_file
    kept = token_logprobs(context.index, state) if asked else {}
    source = kept.get(state.variant)
    others = [k for k in kept if k != state.variant] if source is not None else []
    chosen = state.under if state.under in others else -1
    choices = [(-1, "log-prob"), *((k, f"gap under Q{k}") for k in others)]
    links = [(name, context.link(under=k), k == chosen) for k, name in choices]
    limit = len(row["token_ids"]) if state.full else _TOKENS
    tokenizer, why = tokenizer_of(context.index.runs[state.run])
    pieces = _pieces(tokenizer, row["token_ids"][:limit])
    if in_file:
        return _in_file(row, pieces, f"Tokens are shown as their numbers: {why}." if why and pieces else "")
    shown = _sampled(row, pieces) if source is None or chosen < 0 else _gaps(row, pieces, source, kept[chosen], state)
    return el(
        "section.panel",
        el("header.view", el("h2", "Tokens"), tabs("what the colours show", links) if others else None),
        el("p.note", f"Tokens are shown as their numbers: {why}.") if why and pieces else None,
        _missing(row, state.variant, state.under, others),
        shown,
        el("p.note", f"the first {limit:,} of {len(row['token_ids']):,} tokens; ", _all(context))
        if limit < len(row["token_ids"])
        else None,
    )


def _all(context: Context) -> Html:
    return el("a", "show all", href=context.link(full=1))


def _missing(row: Mapping[str, Any], source: int, under: int, others: Sequence[int]) -> Html | None:
    """Why no gap of single tokens is shown, where there is none or the one asked for is not there."""
    if others:
        if under in (-1, *others):
            return None
        own = "the variant it was sampled under: its gap is 0" if under == source else "none it was scored under"
        return el("p.note", f"Q{under} is {own}")
    if row["schema_version"] < 2 and row["scorers"]:
        why = "an older program wrote this step and kept means alone"
    elif not row["scorers"]:
        why = "the response was not scored under variants (an evaluation, no known reward, or a replaced problem)"
    elif all(scorer["mean_logprob"] is None for scorer in row["scorers"]):
        why = "the response trains nothing, and this run scores only what does (train.score_skipped)"
    else:
        why = "the response was scored under its own variant alone"
    return el("p.quiet", f"No gap of single tokens: {why}.")


def _sampled(row: Mapping[str, Any], pieces: Sequence[str]) -> list[Html]:
    """The less likely a token was when it was sampled, the stronger its ground."""
    spans = [
        _token(piece, None if value is None else min(value, 0.0), "logprob", f"token {token}: {number(value, 3)} nats")
        for piece, token, value in zip(pieces, row["token_ids"], row["sampling_logprobs"], strict=False)
    ]
    return [
        el("p.scale", "0", el("span.ramp.likely", aria_hidden="true"), "−5"),
        el("p.tokens", spans, dir="auto"),
        el(
            "p.quiet",
            "log-prob of each token as it was sampled: no colour is certain, full orange −5 nats or less",
        ),
    ]


def _in_file(row: Mapping[str, Any], pieces: Sequence[str], note: str) -> Html:
    """The panel in a file, which holds many responses: closed, and neighbours of one shade are one element."""
    shown = [
        el("p.scale", "0", el("span.ramp.likely", aria_hidden="true"), "−5"),
        el("p.tokens", _runs(pieces, row["token_ids"], row["sampling_logprobs"]), dir="auto"),
        el(
            "p.quiet",
            f"log-prob as it was sampled: no colour is −{_SHADE / 2} nats or more, full orange −5 or less; tokens of "
            "one colour that follow each other are shown together",
        ),
    ]
    return el(
        "section.panel",
        el("details.map", el("summary", el("h2", "Tokens")), el("p.note", note) if note else None, shown),
    )


def _runs(pieces: Sequence[str], ids: Sequence[int], values: Values) -> list[Html | str]:
    """Tokens of one shade that follow each other as one; those without a shade are bare text."""
    shades = [None if value is None else min(round(max(-value, 0.0) / _SHADE), _DEEPEST) for value in values]
    runs: list[Html | str] = []
    for shade, group in groupby(zip(shades, pieces, ids, values, strict=False), key=lambda token: token[0]):
        held = list(group)
        text = "".join(piece for _, piece, _, _ in held)
        if shade == 0:
            runs.append(text)
            continue
        named = f"token {held[0][2]}" if len(held) == 1 else counted(len(held), "token")
        share = 100 * (shade or 0) // _DEEPEST
        told = f"{named}: {_between([value for *_, value in held])}"
        runs.append(el("span.token.likely", text, style=f"--v:{share}%", title=told))
    return runs


def _between(values: Values) -> str:
    """From the least to the most of log-probs, which are all known or all unknown."""
    known = [value for value in values if value is not None]
    if not known:
        return "not known"
    least, most = number(min(known), 3), number(max(known), 3)
    return f"{least} nats" if least == most else f"{least} to {most} nats"


def _gaps(row: Mapping[str, Any], pieces: Sequence[str], source: Values, other: Values, state: State) -> list[Html]:
    j, k = state.variant, state.under
    gaps = [None if a is None or b is None else b - a for a, b in zip(source, other, strict=True)]
    spans = [
        _token(
            piece,
            gap,
            "gap",
            f"token {token}: gap {number(gap, 3)} nats; {number(b, 3)} under Q{k}, {number(a, 3)} under Q{j}",
        )
        for piece, token, gap, a, b in zip(pieces, row["token_ids"], gaps, source, other, strict=False)
    ]
    known = [(-abs(gap), place) for place, gap in enumerate(gaps[: len(pieces)]) if gap is not None]
    widest = [place for size, place in sorted(known)[:5] if -size >= _FAINT]
    return [
        el("p.scale", "−2", el("span.ramp", aria_hidden="true"), "2"),
        el("p.tokens", spans, dir="auto"),
        el(
            "p.quiet",
            f"log-prob under Q{k} minus log-prob under Q{j}, nats: orange with a dotted line is less "
            f"likely under Q{k}, blue with a solid line likelier; full from 2 nats on",
        ),
        el(
            "p.widest",
            "widest: ",
            [el("span", el("code", pieces[place]), " ", el("b", number(gaps[place], 2))) for place in widest]
            or f"no token differs by {_FAINT} nats",
        ),
    ]


def _token(piece: str, value: float | None, kind: str, title: str) -> Html:
    size = 0.0 if value is None else abs(value)
    sign = "" if value is None or size < _FAINT else ".neg" if value < 0 else ".pos"
    share = min(size / _FULL[kind], 1.0)
    return el(f"span.token{sign if kind == 'gap' else '.likely'}", piece, style=f"--v:{100 * share:.0f}%", title=title)


def _pieces(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    """The text of each token, or its number where there is no tokenizer.

    Where tokens share a character, the last of them has it and those before have nothing.
    """
    if tokenizer is None:
        return [f"{token} " for token in ids]
    from tokenizers.decoders import DecodeStream

    stream = DecodeStream(skip_special_tokens=False)
    pieces = [stream.step(tokenizer, token) or "" for token in ids]
    told = max((place for place, piece in enumerate(pieces) if piece), default=-1) + 1
    if told < len(pieces):  # the text ends inside a character
        pieces[-1] = tokenizer.decode(list(ids[told:]), skip_special_tokens=False)
    return pieces
