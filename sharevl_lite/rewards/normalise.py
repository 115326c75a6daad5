r"""Spelling of an answer: the same mathematics written the same way, before anything is parsed.

`clean` only rewrites what cannot change the meaning (Unicode signs, LaTeX spacing, `\dfrac`), so its result goes on to
the symbolic graders. `text_key` goes further (trailing stop, degrees, `\text{}`, case of words) and is only ever
compared with another key.
"""

from __future__ import annotations

import re
import unicodedata

_WIDER = 0xFEE0
"""From a sign of ASCII to its full-width form."""
_SIGNS = str.maketrans(
    {
        "−": "-",  # minus sign
        "–": "-",  # en dash
        "—": "-",  # em dash
        "﹣": "-",
        "×": r"\times ",
        "·": r"\cdot ",
        "⋅": r"\cdot ",
        "÷": "/",
        "°": r"^\circ ",
        "º": r"^\circ ",
        "π": r"\pi ",
        "∞": r"\infty ",
        "≤": r"\le ",
        "≥": r"\ge ",
        "≠": r"\ne ",
        "≈": r"\approx ",
        "∪": r"\cup ",
        "∩": r"\cap ",
        "≡": r"\equiv ",
        "∅": r"\emptyset ",
        "∠": r"\angle ",
        "△": r"\triangle ",
        "∥": r"\parallel ",
        "⊥": r"\perp ",
        "≅": r"\cong ",
        "∼": r"\sim ",
        "∽": r"\sim ",
        "¼": r"\frac{1}{4}",
        "½": r"\frac{1}{2}",
        "¾": r"\frac{3}{4}",
        "⅓": r"\frac{1}{3}",
        "⅔": r"\frac{2}{3}",
        "∶": ":",  # ratio
        "′": "'",
        "’": "'",
        "‘": "'",
        "“": '"',
        "”": '"',
        **{chr(wide): chr(wide - _WIDER) for wide in range(0xFF01, 0xFF5E) if chr(wide) not in "＄｛｝＼"},
        "。": ".",
        "、": ",",
        "～": "-",  # a range
        "Ω": r"\Omega ",
        "℃": r"^\circ C",
        "℉": r"^\circ F",
        "\u00a0": " ",
        "\u2009": " ",
        "\u202f": " ",
    }
)

_SUPERSCRIPT = re.compile("[⁺⁻]?[⁰¹²³⁴-⁹]+")
_LOWERED = str.maketrans("⁺⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "+-0123456789")

# In order: each pattern sees what the ones before it left.
_REWRITES: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"√\s*(\d+|[A-Za-z])", r"\\sqrt{\1}"),
        (r"√\s*\(([^()]*)\)", r"\\sqrt{\1}"),
        (r"(?:(?<![A-Za-z])US(?=\\?\$\s?\d))?\\?\$", ""),  # currency and math delimiters
        (r"(?<!\\)\\[()\[\]]", ""),
        (r"\{,\}", ","),
        (r"\\text\s*\{\s*\}", " "),
        (r"\\!", ""),
        (r"(?<!\\)\\[,;: ]|\\q?quad(?![A-Za-z])|~|\s", " "),
        (r"\\(?:left|right)(?![A-Za-z])\.?|\\(?:display|text)style(?![A-Za-z])", ""),
        (r"\\(?:mathbf|textbf|boldsymbol|bm|textit|mathit)\s*\{([^{}]*)\}", r"\1"),
        (r"\\[dtc]frac(?![A-Za-z])", r"\\frac"),
        (r"\\frac\s*(\d)\s*(\d)", r"\\frac{\1}{\2}"),
        (r"\\frac\s*(\d)\s*(?=\{)", r"\\frac{\1}"),
        (r"(\\frac\s*\{[^{}]*\})\s*(\d)", r"\1{\2}"),
        (r"\\sqrt\s*([0-9A-Za-z])", r"\\sqrt{\1}"),
        (r"\\(?:leq|leqslant)(?![A-Za-z])", r"\\le"),
        (r"\\(?:geq|geqslant)(?![A-Za-z])", r"\\ge"),
        (r"(?:\^\s*\{\s*\\circ\s*\}|\\degree(?![A-Za-z]))", r"^\\circ "),
        (r"\\varnothing(?![A-Za-z])", r"\\emptyset"),
        (r" {2,}", " "),
    )
)
_TEXT = re.compile(r"\\(?:text|textrm|mathrm|rm|operatorname)\s*\{([^{}]*)\}")
_BRACED_INDEX = re.compile(r"_\s*\{\s*([0-9A-Za-z])\s*\}")
_LOOSE_SPACE = re.compile(r" (?![0-9A-Za-z])|(?<![0-9A-Za-z]) ")
_FOREIGN = "À-ÖØ-öø-ɏЀ-ӿ぀-ヿ一-鿿가-힣"  # of words alone; Greek letters are symbols
_NO_FORMULA = r"(?!.*\b(?i:sin|cos|tan|log|exp|sqrt)\b)"
_WORDS = rf"(?=.*[A-Za-z]{{3}}|[nN][oO]$|.*[{_FOREIGN}])[A-Za-z{_FOREIGN}][A-Za-z{_FOREIGN} ,.;'!?()-]*"
_WORDS_AND_NUMBERS = rf"(?!(?:USD|EUR|GBP|INR)\b)[A-Za-z{_FOREIGN}]{{3,}}(?:[ ,.]+(?:[A-Za-z{_FOREIGN}]+|\d+))*"
# Without IGNORECASE, for which i and s are cases of foreign letters.
_PROSE = re.compile(rf"{_NO_FORMULA}(?:{_WORDS}|{_WORDS_AND_NUMBERS})")
_SYMBOL = re.compile(r"[A-Za-z\\][A-Za-z0-9\\_{}' ()]*")
_CONSTANT = re.compile(r"\\(?:frac|sqrt|pi|infty|cdot|times)(?![A-Za-z])")
_ASSIGNMENT = re.compile(r"(?<![<>!=:\\])=(?!=)")
_SEVERAL = re.compile(r"[,;]|\b(?:or|and)\b")


def clean(answer: str) -> str:
    """`answer` with Unicode signs and LaTeX variants in one spelling, without math delimiters; same meaning."""
    answer = _SUPERSCRIPT.sub(_exponent, unicodedata.normalize("NFC", answer)).translate(_SIGNS)
    for pattern, replacement in _REWRITES:
        answer = pattern.sub(replacement, answer)
    return answer.strip()


def _exponent(raised: re.Match[str]) -> str:
    digits = raised[0].translate(_LOWERED)
    return f"^{digits}" if len(digits) == 1 else f"^{{{digits}}}"


def unwrap_text(answer: str) -> str:
    r"""Replace each `\text{…}` (and `\mathrm{…}`, …) by what it holds."""
    return _TEXT.sub(r"\1", answer)


def text_key(answer: str) -> str:
    """Key of the exact rule, from a cleaned answer.

    White space between two letters or digits stays, as one space: without it the mixed number `1 1/2` would be `11/2`.
    """
    key = unwrap_text(answer).strip().rstrip(".,;").removesuffix(r"^\circ").strip()
    while key.startswith("{") and key.endswith("}") and "{" not in key[1:] and "}" not in key[:-1]:
        key = key[1:-1].strip()
    if key.startswith('"') and key.endswith('"'):
        key = key[1:-1].strip()
    key = _LOOSE_SPACE.sub("", _BRACED_INDEX.sub(r"_\1", re.sub(r"\s+", " ", key)))
    return key.lower().replace(",", " ") if is_prose(key) else key


def is_prose(answer: str) -> bool:
    """Whether the answer is words rather than a formula: letters only, at least one run of three, or "no"; or such a
    word, which is no currency, before further words and whole numbers (`May 5, 1998`). Accents and other scripts are of
    words, Greek is not.

    The symbolic graders read words as products of letters, in which "act" equals "cat".
    """
    return _PROSE.fullmatch(unwrap_text(answer).strip()) is not None


def is_symbol(answer: str) -> bool:
    r"""Whether this names a quantity, as the left side of an assignment does: `x`, `AB`, `m\angle ABC`, `f(3)`. Not
    `\frac{2}{3}`, `\sqrt{2}` or `\pi`, which are numbers."""
    named = _SYMBOL.fullmatch(answer) is not None
    return named and re.search(r"[A-Za-z]", _CONSTANT.sub("", answer)) is not None


def drop_approximation(answer: str) -> str:
    r"""The better side of `\approx`: the exact one of `25\pi \approx 78.54`, the only one of `x \approx 3.1`."""
    exact, _, rounded = (side.strip() for side in answer.partition(r"\approx"))
    return rounded if rounded and (not exact or is_symbol(exact)) else exact


def split_assignment(answer: str) -> tuple[str, str]:
    """(left, right) of one equation or chain `a = b = c` (first and last part); ("", answer) for anything else."""
    parts = _ASSIGNMENT.split(answer)
    if len(parts) == 1 or _SEVERAL.search(unwrap_text(answer)):
        return "", answer
    return parts[0].strip(), parts[-1].strip()
