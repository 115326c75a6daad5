"""Texts as they are shown: thinking, boxed answers, formulas."""

import re
import time

import pytest
from sharevl_explorer.mathml import formula, with_formulas
from sharevl_explorer.prose import SHOWN, response


def shown(written, full=False):
    return str(response(written, full=full, all_of_it="?full=1"))


def words(html):
    """What a reader sees of the text, without what MathML says about layout."""
    return re.sub(r"<[^>]*>", "", html)


@pytest.mark.parametrize(
    "latex",
    [
        r"\dfrac{1}{2} + \tfrac12",
        r"x = \boxed{\dfrac{\sqrt{3}}{2}}",
        r"\operatorname{lcm}(4, 6) = 12",
        r"\operatorname*{argmax}_x f",
        r"x \in \mathbb{R}, \mathcal{L}",
        r"\binom{n}{k}",
        r"\overrightarrow{AB} \perp \widehat{ABC}",
        r"\boldsymbol{\alpha}",
        r"a \lt b \ll c \gg d \odot e",
        r"\begin{align*} a &= b \\ c &= d \end{align*}",
        r"\left. \frac{a}{b} \right|_{x=0}",
        r"50% \text{ of 5\%}",
        r"\overset{a}{b} \underset{c}{d} \mathrm{\frac{1}{2}}",
    ],
)
def test_commands_of_mathematical_answers_are_set(latex):
    made = str(formula(latex))
    assert made.startswith("<math"), made
    assert "\\" not in words(made)


def test_what_a_formula_says_is_kept():
    assert words(formula(r"50% \text{ of } x")).replace("\u00a0", " ") == "50% of x"
    assert words(formula(r"\left. a \right|")) == "a|"
    assert words(formula(r"\mathbb{R} \mathbb{A}")) == "ℝ𝔸"
    assert "<munder>" in formula(r"\lim_{x \to 0} x")
    assert str(formula(r"\notknown{x}")).startswith("<code")
    assert "<mtable>" in with_formulas("so\n\\begin{align}a&=1\\\\b&=2\\end{align}\nthus")


@pytest.mark.parametrize(
    ("written", "seen"),
    [
        (r"$A = \boxed{12}$", "A=12"),
        (r"$$x=\boxed{\dfrac{1}{2}}$$", "x=12"),
        (r"\[ x = \boxed{3} \]", "x=3"),
        (r"so $\boxed{7}$.", "so 7."),
        (r"so \boxed{$x$}.", "so x."),
        (r"$5 and \boxed{$7}", "$5 and $7"),
        (r"$\notknown = \boxed{3}$!", r"\notknown = 3!"),
        (r"\boxed{a} then $b$, \boxed{c}", "a then b, c"),
    ],
)
def test_a_boxed_answer_is_marked_and_leaves_no_delimiters(written, seen):
    made = shown(written)
    assert 'class="boxed"' in made
    assert words(made) == seen


def test_a_long_response_is_cut_in_its_middle():
    made = shown("<think>" + "so " * SHOWN + r"</think> The answer is $\boxed{42}$")
    assert "<h3>thinking</h3>" in made
    assert "never closed" not in made
    assert re.search(r'<mark class="boxed"[^>]*><math', made)
    assert re.search(r"… [\d,]+ characters …", made)
    assert "20,000 of 60,042 characters" in made
    assert len(words(made)) < SHOWN + 200
    early = shown("a" * SHOWN + r"\boxed{42}" + "b" * SHOWN)
    assert '<mark class="boxed"' in early, "the last box is shown wherever it stands"
    whole = shown("<think>" + "so " * SHOWN + "</think> end", full=True)
    assert "characters" not in whole
    assert words(whole).endswith("end")


def test_thinking_may_begin_in_the_prompt():
    made = shown("First I count.</think>It is \\boxed{4}")
    assert words(made) == "thinkingFirst I count.It is 4"
    assert words(shown("a <think>b")) == "a thinking, never closedb"


def test_an_empty_response_says_so():
    assert "empty" in words(shown(""))
    assert "3 characters of white space" in words(shown(" \n "))


@pytest.mark.parametrize("piece", ["\\boxed{x ", "\\boxed{", "{", "<think>", "$ a", "\\boxed{$x$} $y$ "])
def test_no_text_takes_long(piece):
    start = time.perf_counter()
    shown(piece * (60_000 // len(piece)), full=True)
    assert time.perf_counter() - start < 5, "a machine shared with others; the time is to grow with the length alone"


def test_a_boxed_word_is_no_product_of_letters():
    assert '<mark class="boxed" title="boxed:  even">even</mark>' in shown(r"\boxed{ even}")
    assert "<mi>" not in shown(r"\boxed{right triangle}")
    assert "<mi>" in shown(r"\boxed{ab}")
    assert "<mi>" in shown(r"\boxed{2x}")
