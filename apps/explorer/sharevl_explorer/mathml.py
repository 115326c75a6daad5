"""LaTeX formulas as MathML, which browsers set without any script, in the app and in an exported file.

Formulas are parsed by pylatexenc. One that it cannot parse, that nests deeply, or that uses a command not known here
(`math_commands`) is shown as it was written.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from sharevl_explorer.markup import Html, el, join, text
from sharevl_explorer.math_commands import (
    ABOVE,
    ALPHABETS,
    BELOW,
    BINOMIALS,
    BOLD,
    FRACTIONS,
    FUNCTIONS,
    IGNORED,
    LIMITS,
    OPERATORS,
    SPACES,
    STACKED,
    SYMBOLS,
    TABLES,
    WORDS,
    context,
    lettered,
)

LONGEST = 2000
FORMULA = re.compile(
    r"\$\$(.{1,4000}?)\$\$|\\\[(.{1,4000}?)\\\]|\\\((.{1,4000}?)\\\)"
    r"|(?<![\\$\w])\$(?!\s)([^$\n]+?)(?<![\s\\])\$(?![\d$])"
    r"|(\\begin\{(align|alignat|equation|eqnarray|gather)(\*?)\}.{1,4000}?\\end\{\6\7\})",
    re.S,
)
"""What is between delimiters is in one of the first five groups."""
_DEEPEST = 40

_EQUATIONS = ("text-align:right;padding:.25em 0 .25em .8em", "text-align:left;padding:.25em 0")
_SIDES = {
    **dict.fromkeys(("align", "aligned", "alignat", "split", "eqnarray"), _EQUATIONS),
    **dict.fromkeys(("cases", "dcases"), ("text-align:left",)),
}
"""Where the cells of a table's columns stand, in turn: the equals signs below one another."""


class _Unknown(Exception):
    """The formula holds something that is not set here."""


def formula(latex: str, *, block: bool = False) -> Html:
    """A formula, without its delimiters, as MathML; as the code it is if it cannot be set."""
    return as_mathml(latex, block=block) or el("code.latex", latex)


def as_mathml(latex: str, *, block: bool = False) -> Html | None:
    """A formula, without its delimiters, as MathML; None if it cannot be set."""
    from pylatexenc.latexwalker import LatexWalker

    try:
        if len(latex) > LONGEST or _depth(latex) > _DEEPEST:
            return None
        written = re.sub(r"(?<!\\)%", r"\\%", latex)  # between dollars nobody means a comment
        nodes, _, _ = LatexWalker(written, latex_context=context(), tolerant_parsing=False).get_latex_nodes(pos=0)
        body = _row(nodes)
    except Exception:  # whatever a model writes between dollars, the page shows it
        return None
    return el("math", body, display="block" if block else "inline", title=latex)


def _depth(latex: str) -> int:
    deepest = depth = 0
    for character in latex:
        depth += (character == "{") - (character == "}")
        deepest = max(deepest, depth)
    return max(deepest, latex.count(r"\begin"), latex.count(r"\left"))


def _row(nodes: Sequence[Any]) -> Html:
    """Nodes one after another, with `^` and `_` bound to what stands before them."""
    atoms: list[Any] = []
    fence = False
    for node in nodes or ():
        found = _atoms(node)
        atoms += found[1:] if fence and found[:1] == [el("mo", ".")] else found  # `\left.` is a fence not drawn
        fence = type(node).__name__ == "LatexMacroNode" and node.macroname in ("left", "right", "middle")
    out: list[Html] = []
    place = 0
    while place < len(atoms):
        if atoms[place] not in ("^", "_") or isinstance(atoms[place], Html):
            out.append(atoms[place])
            place += 1
            continue
        base = out.pop() if out else el("mrow")
        scripts: dict[str, Html] = {}
        while place < len(atoms) and atoms[place] in ("^", "_") and not isinstance(atoms[place], Html):
            if place + 1 >= len(atoms) or atoms[place] in scripts:
                raise _Unknown
            scripts[atoms[place]] = atoms[place + 1]
            place += 2
        out.append(_scripted(base, scripts))
    return el("mrow", out)


def _scripted(base: Html, scripts: dict[str, Html]) -> Html:
    bounds = re.sub("<[^>]*>", "", base) in LIMITS and base.startswith("<mo")
    sub, sup, both = ("munder", "mover", "munderover") if bounds else ("msub", "msup", "msubsup")
    if len(scripts) == 2:
        return el(both, base, scripts["_"], scripts["^"])
    ((kind, script),) = scripts.items()
    return el(sup if kind == "^" else sub, base, script)


def _atoms(node: Any) -> list[Any]:
    kind = type(node).__name__
    if kind == "LatexCharsNode":
        return _characters(node.chars)
    if kind == "LatexGroupNode":
        return [_row(node.nodelist)]
    if kind == "LatexSpecialsNode":
        if node.specials_chars == "~":
            return [el("mspace", width=SPACES[" "])]
        return _characters(node.specials_chars)
    if kind == "LatexMacroNode":
        return _macro(node)
    if kind == "LatexEnvironmentNode":
        return [_table(node)]
    raise _Unknown


def _characters(chars: str) -> list[Any]:
    atoms: list[Any] = []
    for piece in re.findall(r"\d+(?:\.\d+)?|\s+|.", chars, re.S):
        if piece in "^_":
            atoms.append(piece)
        elif piece[0].isdigit():
            atoms.append(el("mn", piece))
        elif piece[0].isalpha():
            atoms.append(el("mi", piece))
        elif not piece.isspace():
            atoms.append(el("mo", {"-": "−", "'": "′"}.get(piece, piece)))
    return atoms


def _macro(node: Any) -> list[Any]:
    name = node.macroname
    if name in SYMBOLS:
        return [el("mi", SYMBOLS[name])]
    if name in OPERATORS:
        return [el("mo", OPERATORS[name])]
    if name in SPACES:
        return [el("mspace", width=SPACES[name])]
    if name in FUNCTIONS:
        return [_function(name)]
    if name in ("left", "right", "middle") or name in IGNORED:
        return []
    given = list((node.nodeargd.argnlist if node.nodeargd else []) or [])
    if not given or given[-1] is None:
        raise _Unknown
    return [_applied(name, given)]


def _function(name: str) -> Html:
    return el("mo", name, form="prefix", lspace="0", rspace="0.17em", movablelimits="true" if name in LIMITS else None)


def _applied(name: str, given: list[Any]) -> Html:  # noqa: PLR0911 - one return per kind of command
    """A command with its arguments."""
    if name in FRACTIONS:
        return el("mfrac", _row([given[0]]), _row([given[1]]), displaystyle=FRACTIONS[name])
    if name in BINOMIALS:
        parts = el("mfrac", _row([given[0]]), _row([given[1]]), linethickness=0, displaystyle=BINOMIALS[name])
        return el("mrow", el("mo", "("), parts, el("mo", ")"))
    if name == "sqrt":
        root = _row([given[1]])
        return el("mroot", root, _row([given[0]])) if given[0] is not None else el("msqrt", root)
    if name in WORDS:
        return _words(name, given[-1])
    if name == "operatorname":
        return _function(_plain(given[-1]))
    if name in ("boxed", "fbox"):
        return el("mrow.boxed", _row(given))
    if name in ALPHABETS:
        return el("mi", lettered(name, _plain(given[-1])))
    if name in BOLD:
        return el("mrow", _row(given), style="font-weight:bold")
    if name in ABOVE:
        return el("mover", _row(given), el("mo", ABOVE[name]))
    if name in BELOW:
        return el("munder", _row(given), el("mo", BELOW[name]))
    if name in STACKED:
        return el(STACKED[name], _row([given[1]]), _row([given[0]]))
    if name == "pmod":
        return el("mrow", el("mspace", width="1em"), el("mo", "("), _function("mod"), _row(given), el("mo", ")"))
    raise _Unknown


def _words(name: str, node: Any) -> Html:
    if name.startswith("math") and "\\" in node.latex_verbatim():
        return _row([node])
    return el("mtext", _plain(node), style="font-weight:bold" if name in ("textbf", "mathbf") else None)


def _plain(node: Any) -> str:
    written = node.latex_verbatim()
    inner = re.sub(r"\\([%$&#_{} ])", r"\1", written[1:-1] if written.startswith("{") else written)
    if "\\" in inner or "$" in written.replace(r"\$", ""):
        raise _Unknown
    return re.sub("[ ~]", "\u00a0", inner)


def _table(node: Any) -> Html:
    name = node.environmentname.rstrip("*")
    if name not in TABLES:
        raise _Unknown
    rows: list[list[list[Any]]] = [[[]]]
    for child in node.nodelist:
        if type(child).__name__ == "LatexSpecialsNode" and child.specials_chars == "&":
            rows[-1].append([])
        elif type(child).__name__ == "LatexMacroNode" and child.macroname == "\\":
            rows.append([[]])
        else:
            rows[-1][-1].append(child)
    sides = _SIDES.get(name, ("",))
    table = el(
        "mtable",
        [
            el("mtr", [el("mtd", _row(cell), style=sides[n % len(sides)] or None) for n, cell in enumerate(row)])
            for row in rows
        ],
    )
    fences = TABLES[name]
    return el("mrow", fences[:1] and el("mo", fences[0]), table, fences[1:] and el("mo", fences[1]))


def with_formulas(written: str) -> Html:
    """Text with its formulas set. The rest is escaped."""
    parts: list[Any] = []
    end = 0
    for match in FORMULA.finditer(written):
        parts += [text(written[end : match.start()]), formula(inside(match), block=is_block(match))]
        end = match.end()
    return join([*parts, text(written[end:])])


def inside(match: re.Match[str]) -> str:
    """The formula of a match of `FORMULA`, without its delimiters."""
    return next(group for group in match.groups()[:5] if group is not None)


def is_block(match: re.Match[str]) -> bool:
    """Whether the formula stands on a line of its own."""
    return match[0].startswith(("$$", "\\[", "\\begin"))
