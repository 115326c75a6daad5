"""The LaTeX commands that are set as MathML: which symbol each stands for, and which arguments it takes."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

_SYMBOL_NAMES = (
    "alpha=α beta=β gamma=γ delta=δ epsilon=ϵ varepsilon=ε zeta=ζ eta=η theta=θ iota=ι kappa=κ lambda=λ mu=μ nu=ν xi=ξ "
    "pi=π rho=ρ sigma=σ tau=τ upsilon=υ phi=ϕ varphi=φ chi=χ psi=ψ omega=ω Gamma=Γ Delta=Δ Theta=Θ Lambda=Λ Xi=Ξ Pi=Π "
    "Sigma=Σ Phi=Φ Psi=Ψ Omega=Ω Upsilon=Υ vartheta=ϑ varpi=ϖ varrho=ϱ varsigma=ς ell=ℓ hbar=ℏ imath=ı jmath=ȷ Re=ℜ "
    "Im=ℑ aleph=ℵ wp=℘ infty=∞ emptyset=∅ varnothing=∅ partial=∂ nabla=∇ degree=° circ=∘ angle=∠ measuredangle=∡ "
    "triangle=△ square=□ Box=□ blacksquare=■ top=⊤ bot=⊥ checkmark=✓ dagger=† ddagger=‡ pounds=£ S=§ P=¶"
)
_OPERATOR_NAMES = (
    "cdot~⋅ times~× div~÷ pm~± mp~∓ le~≤ leq~≤ leqslant~⩽ ge~≥ geq~≥ geqslant~⩾ lt~< gt~> ll~≪ gg~≫ ne~≠ neq~≠ nless~≮ "
    "ngtr~≯ approx~≈ equiv~≡ sim~∼ simeq~≃ cong~≅ asymp~≍ doteq~≐ triangleq~≜ propto~∝ prec~≺ succ~≻ preceq~⪯ succeq~⪰ "
    "in~∈ ni~∋ notin~∉ subset~⊂ subseteq~⊆ subsetneq~⊊ supset~⊃ supseteq~⊇ cup~∪ cap~∩ setminus~∖ smallsetminus~∖ "
    "to~→ rightarrow~→ longrightarrow~⟶ Rightarrow~⇒ Longrightarrow~⟹ implies~⟹ impliedby~⟸ iff~⟺ gets~← leftarrow~← "
    "longleftarrow~⟵ Leftarrow~⇐ leftrightarrow~↔ Leftrightarrow~⇔ Longleftrightarrow~⟺ mapsto~↦ uparrow~↑ downarrow~↓ "
    "hookrightarrow~↪ nearrow~↗ searrow~↘ rightleftharpoons~⇌ odot~⊙ oplus~⊕ ominus~⊖ otimes~⊗ oslash~⊘ star~⋆ ast~∗ "
    "bullet~∙ diamond~⋄ wr~≀ sum~∑ prod~∏ coprod~∐ bigcup~⋃ bigcap~⋂ bigoplus~⨁ bigotimes~⨂ int~∫ iint~∬ oint~∮ "
    "ldots~… dots~… dotsc~… dotsb~⋯ cdots~⋯ vdots~⋮ ddots~⋱ perp~⊥ parallel~∥ nparallel~∦ mid~∣ nmid~∤ forall~∀ "
    "exists~∃ nexists~∄ vert~| Vert~‖ lvert~| rvert~| lVert~‖ rVert~‖ lfloor~⌊ rfloor~⌋ lceil~⌈ rceil~⌉ langle~⟨ "
    "rangle~⟩ lbrace~{ rbrace~} lbrack~[ rbrack~] therefore~∴ because~∵ neg~¬ lnot~¬ land~∧ wedge~∧ lor~∨ vee~∨ "
    "vdash~⊢ iiint~∭ models~⊨ colon~: prime~′ backslash~\\ %~% $~$ {~{ }~} &~& #~# _~_ |~‖"
)
SYMBOLS = dict(pair.split("=") for pair in _SYMBOL_NAMES.split())
OPERATORS = dict(pair.split("~") for pair in _OPERATOR_NAMES.split())
SPACES = {
    ",": "0.17em",
    "thinspace": "0.17em",
    ":": "0.22em",
    ";": "0.28em",
    "!": "0",
    " ": "0.3em",
    "enspace": "0.5em",
    "quad": "1em",
    "qquad": "2em",
}
_FUNCTION_NAMES = (
    "sin cos tan cot sec csc sinh cosh tanh coth arcsin arccos arctan log ln lg exp lim limsup liminf max min sup inf "
    "arg deg dim hom ker gcd lcm det Pr mod bmod"
)
FUNCTIONS = set(_FUNCTION_NAMES.split())
LIMITS = {*"∑∏∐⋃⋂⨁⨂", "lim", "limsup", "liminf", "max", "min", "sup", "inf", "gcd", "det", "Pr"}
"""What has its bounds below and above it in a formula on its own line."""
WORDS = {"text", "textbf", "textit", "textrm", "mbox", "mathrm", "mathbf", "mathit", "mathsf", "mathtt"}
BOLD = {"boldsymbol", "bm", "pmb"}
FRACTIONS = {"frac": None, "dfrac": "true", "cfrac": "true", "tfrac": "false"}
"""Whether the fraction is set large (MathML's displaystyle)."""
BINOMIALS = {"binom": None, "dbinom": "true", "tbinom": "false"}
ABOVE = {
    "overline": "‾",
    "bar": "‾",
    "vec": "→",
    "overrightarrow": "→",
    "overleftarrow": "←",
    "overleftrightarrow": "↔",
    "hat": "^",
    "widehat": "^",
    "tilde": "~",
    "widetilde": "~",
    "dot": "˙",
    "ddot": "¨",
    "overbrace": "⏞",
    "overarc": "⏜",
}
BELOW = {"underline": "_", "underbrace": "⏟"}
STACKED = {"overset": "mover", "stackrel": "mover", "underset": "munder"}
_IGNORED_NAMES = (
    "displaystyle textstyle scriptstyle limits nolimits nonumber notag hline big Big bigg Bigg bigl Bigl biggl Biggl "
    "bigr Bigr biggr Biggr bigm Bigm"
)
IGNORED = set(_IGNORED_NAMES.split())
TABLES = {
    "matrix": "",
    "smallmatrix": "",
    "pmatrix": "()",
    "bmatrix": "[]",
    "Bmatrix": "{}",
    "vmatrix": "||",
    "Vmatrix": "‖‖",
    "cases": "{",
    "dcases": "{",
    "array": "",
    **dict.fromkeys(("align", "aligned", "alignat", "split", "gather", "gathered", "equation", "eqnarray"), ""),
}
"""Environments, and the fences around them."""

_LETTERS = {
    "mathbb": (0x1D538, 0x1D552, "C=ℂ H=ℍ N=ℕ P=ℙ Q=ℚ R=ℝ Z=ℤ"),
    "mathcal": (0x1D49C, 0x1D4B6, "B=ℬ E=ℰ F=ℱ H=ℋ I=ℐ L=ℒ M=ℳ R=ℛ e=ℯ g=ℊ o=ℴ"),
    "mathscr": (0x1D49C, 0x1D4B6, "B=ℬ E=ℰ F=ℱ H=ℋ I=ℐ L=ℒ M=ℳ R=ℛ e=ℯ g=ℊ o=ℴ"),
    "mathfrak": (0x1D504, 0x1D51E, "C=ℭ H=ℌ I=ℑ R=ℜ Z=ℨ"),
}
ALPHABETS = set(_LETTERS)


def lettered(alphabet: str, written: str) -> str:
    """Latin letters as those of an alphabet of `ALPHABETS`; Unicode holds some of them out of their row."""
    capitals, smalls, odd = _LETTERS[alphabet]
    out_of_row = dict(pair.split("=") for pair in odd.split())

    def one(letter: str) -> str:
        if letter in out_of_row:
            return out_of_row[letter]
        if letter.isascii() and letter.isalpha():
            return chr(capitals + ord(letter) - ord("A")) if letter.isupper() else chr(smalls + ord(letter) - ord("a"))
        return letter

    return "".join(one(letter) for letter in written)


@lru_cache(maxsize=1)
def context() -> Any:
    """pylatexenc's commands with the arguments of those that it does not know."""
    from pylatexenc.latexwalker import get_default_latex_context_db
    from pylatexenc.macrospec import std_environment, std_macro

    one = {"boxed", "fbox", "pmod", *BOLD, *WORDS, *ABOVE, *BELOW, *ALPHABETS}
    two = {*FRACTIONS, *BINOMIALS, *STACKED}
    macros = [std_macro(name, "{") for name in sorted(one)] + [std_macro(name, "{{") for name in sorted(two)]
    tables = [std_environment("array", "[{"), std_environment("alignat", "{"), std_environment("alignat*", "{")]
    known = get_default_latex_context_db()
    known.add_context_category(
        "sharevl", macros=[*macros, std_macro("operatorname", "*{")], environments=tables, prepend=True
    )
    return known
