"""LaTeX formulas as MathML, which browsers set without any script, in the app and in an exported file.

Formulas are parsed by pylatexenc. One that it cannot parse, that nests deeply, or that uses a command not known here
is shown as it was written.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from sharevl_explorer.markup import Html, el, join, text

FORMULA = re.compile(
    r"\$\$(.+?)\$\$|\\\[(.+?)\\\]|\\\((.+?)\\\)|(?<![\\$\w])\$(?!\s)([^$\n]+?)(?<![\s\\])\$(?![\d$])", re.S
)
LONGEST = 2000
_DEEPEST = 40
_SYMBOL_NAMES = (
    "alpha=α beta=β gamma=γ delta=δ epsilon=ϵ varepsilon=ε zeta=ζ eta=η theta=θ iota=ι kappa=κ lambda=λ mu=μ nu=ν xi=ξ "
    "pi=π rho=ρ sigma=σ tau=τ upsilon=υ phi=ϕ varphi=φ chi=χ psi=ψ omega=ω Gamma=Γ Delta=Δ Theta=Θ Lambda=Λ Xi=Ξ Pi=Π "
    "Sigma=Σ Phi=Φ Psi=Ψ Omega=Ω ell=ℓ infty=∞ emptyset=∅ partial=∂ nabla=∇ degree=° circ=∘ angle=∠ triangle=△"
)
_OPERATOR_NAMES = (
    "cdot~⋅ times~× div~÷ pm~± mp~∓ le~≤ leq~≤ ge~≥ geq~≥ ne~≠ neq~≠ approx~≈ equiv~≡ sim~∼ cong~≅ propto~∝ in~∈ "
    "notin~∉ subset~⊂ subseteq~⊆ cup~∪ cap~∩ to~→ rightarrow~→ Rightarrow~⇒ implies~⇒ iff~⇔ leftarrow~← sum~∑ prod~∏ "
    "int~∫ ldots~… dots~… cdots~⋯ perp~⊥ parallel~∥ mid~∣ forall~∀ exists~∃ lvert~| rvert~| lfloor~⌊ rfloor~⌋ lceil~⌈ "
    "rceil~⌉ langle~⟨ rangle~⟩ therefore~∴ because~∵ neg~¬ land~∧ lor~∨ prime~′ %~% $~$ {~{ }~} &~& #~# _~_ |~‖"
)
_SYMBOLS = dict(pair.split("=") for pair in _SYMBOL_NAMES.split())
_OPERATORS = dict(pair.split("~") for pair in _OPERATOR_NAMES.split())
_SPACES = {",": "0.17em", ":": "0.22em", ";": "0.28em", "!": "0", " ": "0.3em", "quad": "1em", "qquad": "2em"}
_FUNCTION_NAMES = "sin cos tan cot sec csc arcsin arccos arctan log ln exp lim max min gcd det dim mod bmod"
_FUNCTIONS = set(_FUNCTION_NAMES.split())
_WORDS = {"text", "textbf", "mathrm", "operatorname", "textit", "mbox", "mathbf", "mathit"}
_ACCENTS = {"overline": "‾", "bar": "‾", "vec": "→", "hat": "^", "tilde": "~"}
_TABLES = {"matrix": "", "pmatrix": "()", "bmatrix": "[]", "vmatrix": "||", "cases": "{", "aligned": "", "array": ""}


class _Unknown(Exception):
    """The formula holds something that is not set here."""


def formula(latex: str, *, block: bool = False) -> Html:
    """A formula, without its delimiters, as MathML; as the code it is if it cannot be set."""
    from pylatexenc.latexwalker import LatexWalker

    try:
        if len(latex) > LONGEST or _depth(latex) > _DEEPEST:
            raise _Unknown
        nodes, _, _ = LatexWalker(latex, tolerant_parsing=False).get_latex_nodes(pos=0)
        body = _row(nodes)
    except Exception:  # whatever a model writes between dollars, the page shows it
        return el("code.latex", latex)
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
    for node in nodes or ():
        atoms += _atoms(node)
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
    if len(scripts) == 2:
        return el("msubsup", base, scripts["_"], scripts["^"])
    ((kind, script),) = scripts.items()
    return el("msup" if kind == "^" else "msub", base, script)


def _atoms(node: Any) -> list[Any]:
    kind = type(node).__name__
    if kind == "LatexCharsNode":
        return _characters(node.chars)
    if kind == "LatexGroupNode":
        return [_row(node.nodelist)]
    if kind == "LatexSpecialsNode":
        return [el("mo", node.specials_chars)]
    if kind == "LatexMacroNode":
        return _macro(node)
    if kind == "LatexEnvironmentNode":
        return [_table(node)]
    if kind == "LatexCommentNode":
        return []
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
            atoms.append(el("mo", "−" if piece == "-" else piece))
    return atoms


def _macro(node: Any) -> list[Any]:  # noqa: PLR0911 - one return per kind of command
    name = node.macroname
    given = list((node.nodeargd.argnlist if node.nodeargd else []) or [])
    if name in _SYMBOLS:
        return [el("mi", _SYMBOLS[name])]
    if name in _OPERATORS:
        return [el("mo", _OPERATORS[name])]
    if name in _SPACES:
        return [el("mspace", width=_SPACES[name])]
    if name in _FUNCTIONS:
        return [el("mi", name), el("mspace", width="0.17em")]
    if name in ("left", "right", "displaystyle", "limits", "big", "Big", "bigl", "bigr"):
        return []
    if name in ("frac", "dfrac", "tfrac"):
        return [el("mfrac", _row([given[0]]), _row([given[1]]))]
    if name == "sqrt":
        root = _row([given[1]])
        return [el("mroot", root, _row([given[0]])) if given[0] is not None else el("msqrt", root)]
    if name in _WORDS and given and given[-1] is not None:
        return [el("mtext", _plain(given[-1]))]
    if name == "boxed" and given:
        return [el("mrow.boxed", _row(given))]
    if name in _ACCENTS and given:
        return [el("mover", _row(given), el("mo", _ACCENTS[name]))]
    raise _Unknown


def _plain(node: Any) -> str:
    written = node.latex_verbatim()
    inner = written[1:-1] if written.startswith("{") else written
    if "\\" in inner:
        raise _Unknown
    return inner.replace(" ", " ")


def _table(node: Any) -> Html:
    name = node.environmentname.rstrip("*")
    if name not in _TABLES:
        raise _Unknown
    rows: list[list[list[Any]]] = [[[]]]
    for child in node.nodelist:
        if type(child).__name__ == "LatexSpecialsNode" and child.specials_chars == "&":
            rows[-1].append([])
        elif type(child).__name__ == "LatexMacroNode" and child.macroname == "\\":
            rows.append([[]])
        else:
            rows[-1][-1].append(child)
    table = el("mtable", [el("mtr", [el("mtd", _row(cell)) for cell in row]) for row in rows])
    fences = _TABLES[name]
    return el("mrow", fences[:1] and el("mo", fences[0]), table, fences[1:] and el("mo", fences[1]))


def with_formulas(written: str) -> Html:
    """Text with its formulas set. The rest is escaped."""
    parts: list[Any] = []
    end = 0
    for match in FORMULA.finditer(written):
        latex = next(group for group in match.groups() if group is not None)
        parts += [text(written[end : match.start()]), formula(latex, block=match[0].startswith(("$$", "\\[")))]
        end = match.end()
    return join([*parts, text(written[end:])])
