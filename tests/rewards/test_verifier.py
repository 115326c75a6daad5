r"""The answer ladder on pairs that a user would meet, right and wrong, and the form `<think>…</think> … \boxed{…}`."""

import string
import subprocess
import sys
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sharevl_lite.rewards import Verdict, is_well_formed, verify
from sharevl_lite.rewards.formatting import extract_boxed

RIGHT = [  # (boxed answer, gold)
    # roots and expressions
    (r"2\sqrt{221}", r"2 \sqrt{221}"),
    (r"10\sqrt3", r"10\sqrt{3}"),
    (r"\sqrt{8}", r"2\sqrt{2}"),
    ("√3", r"\sqrt{3}"),
    (r"\frac{\sqrt{3}}{3}", r"\frac{1}{\sqrt{3}}"),
    (r"6+8\pi", r"8\pi+6"),
    (r"(x+1)^2", r"x^2+2x+1"),
    ("s(i-1)", "(i-1)s"),
    (r"100 \bmod 7 = 2", "2"),
    (r"100 \bmod 7 = 2", r"2 \pmod 7"),
    (r"101_{2}", "101_2"),
    (r"2^{10}", "1024"),
    (r"6\times 8", "48"),
    (r"25\pi \approx 78.54", r"25\pi"),
    (r"6\pi \text{ cm}^2", r"6\pi"),
    # choices
    ("A", "A"),
    ("(a)", "A"),
    (r"\text{(A)}", "A"),
    ("A) 12", "A"),
    (r"\textbf{(D) } 5", "D"),
    ("option C", "C"),
    ("B", "(B)"),
    ("B. a cat and a dog", "B"),
    ("30", "A. 30"),
    ("A", "A. 30"),
    ("A. 30", "A. 30"),
    (r"\frac{1}{2}", "(C) 0.5"),
    ("B. the lines P and Q", "B"),
    (r"5\text{ (Tom's age)}", "5"),
    ("I", "I. nine"),
    ("(i)", "I. nine"),
    ("nine", "I. nine"),
    ("option I", "I. nine"),
    ("I. 9.0", "I. 9"),
    ("N", "N"),
    ("450", "USD 450"),
    ("USD 1.5", "USD 1.50"),
    # numerals and alleles
    ("iv", "IV"),
    (r"\text{AaBb}", "AaBb"),
    # angles
    (r"\angle CBA", r"\angle ABC"),
    (r"m\angle ABC", r"\angle ABC"),
    ("f'(x) = 2x", "2x"),
    ("∠CBA", r"\angle ABC"),
    (r"\angle A=\angle B", "∠A=∠B"),
    (r"AB \parallel CD", "AB∥CD"),
    (r"\triangle ABC \sim \triangle DEF", "△ABC∽△DEF"),
    # percent, ratio
    ("3∶4", "3:4"),
    ("0.5", r"50\%"),
    (r"50\%", "0.5"),
    ("50", r"50\%"),
    ("45%", "0.45"),
    ("3 : 4", "3:4"),
    ("6:8", "3:4"),
    ("3 to 4", "3:4"),
    ("2:4:6", "1:2:3"),
    # signs and spellings of numbers
    ("−5", "-5"),
    ("- 5", "-5"),
    ("5.", "5"),
    (".5", "0.5"),
    ("5.0", "5"),
    ("1,000", "1000"),
    ("1000", "1{,}000"),
    (r"1\,000", "1000"),
    ("1,234,567.5", "1234567.5"),
    (r"1.2\times 10^{-8}", "1.2e-8"),
    (r"3 \times 10^8", "300000000"),
    (r"\$12.50", "12.5"),
    ("US$12.50", "12.5"),
    ("USD 45", "45"),
    ("Rs. 45", "45"),
    ("45 €", "€45"),
    ("3·10⁸", "3e8"),
    ("6.02×10⁻²³", r"6.02 \times 10^{-23}"),
    # fractions
    (r"\frac{1}{2}", r"\dfrac12"),
    ("2/4", r"\frac{1}{2}"),
    ("0.5", "1/2"),
    (r"\frac{-1}{2}", r"-\frac{1}{2}"),
    ("1 1/2", "3/2"),
    (r"1\frac{1}{2}", "1.5"),
    ("1½", "3/2"),
    ("¾", "0.75"),
    ("0.333333", r"\frac{1}{3}"),
    (r"0.\overline{3}", r"\frac{1}{3}"),
    # decimals at the gold's precision
    ("3.1416", "3.14"),
    ("3.14159", "3.14"),
    (r"\pi", "3.14"),
    (r"\sqrt{2}", "1.41"),
    (r"x \approx 3.14", "3.14"),
    # units and degrees
    ("30", r"30^\circ"),
    ("30°", "30"),
    (r"30^{\circ}", "30°"),
    (r"30\text{ degrees}", r"30^\circ"),
    (r"5\text{ cm}", "5"),
    ("5 centimeters", "5cm"),
    ("5 apples", "5"),
    (r"25\text{ cm}^2", "25"),
    ("12.0 m", "12 m"),
    ("12 m", "12"),
    ("12 sq. cm", "12"),
    ("9.8 m/s^2", "9.8"),
    ("60 miles per hour", "60 mph"),
    (r"20\text{ km/h}", "20 kph"),
    ("5°", "5 °C"),
    ("5 degrees Celsius", "5°C"),
    ("25 cm squared", "25"),
    # words behind a number
    ("5,000,000", "5 million"),
    (r"5\text{ million}", "5000000"),
    ("5 million dollars", r"\$5,000,000"),
    ("1,234,567", "1.2 million"),
    ("24", "2 dozen"),
    ("2 thirds", r"\frac{2}{3}"),
    ("3/2", "3 halves"),
    (r"5\text{ percent}", "0.05"),
    ("5 per cent", r"5\%"),
    # equations, sets, tuples, intervals
    ("3", "x=3"),
    ("x = 3", "x=3"),
    ("x=3", "3"),
    (r"\angle ABC = 30^\circ", "30"),
    ("2x-y+1=0", "y=2x+1"),
    (r"\{2,1\}", r"\{1,2\}"),
    ("2, 1", "1, 2"),
    (r"3\text{ or }4", "3,4"),
    (r"\left( 1, 2 \right)", "(1,2)"),
    ("[0,1)", "[0, 1)"),
    (r"(-\infty,3]", r"x\le 3"),
    (r"x \leq 3", r"(-\infty,3]"),
    (r"\varnothing", "∅"),
    # residues
    (r"5 \bmod 7", r"5 \pmod{7}"),
    ("5 (mod 7)", r"5 \mod 7"),
    (r"5\ (\text{mod } 7)", r"x \equiv 5 \pmod 7"),
    ("x ≡ 5 (mod 7)", "5 modulo 7"),
    (r"x = 5 \mod 7", r"x\equiv 5\pmod{7}"),
    (r"x \equiv -2 \pmod 7", r"x \equiv 5 \pmod 7"),
    (r"5 \pmod 7", r"12 \pmod 7"),
    (r"a \equiv b \pmod n", r"a\equiv b\pmod{n}"),
    (r"5 \pmod{7}", "5"),  # the remainder, and of what
    (r"x \equiv 5 \pmod{7}", "x = 5"),
    # words
    ("None", "None"),
    ("“Yes”", "yes"),
    ("O’Brien", "O'Brien"),
    ("Jose\u0301 García", "josé garcía"),
    ("Germany,France", "Germany, France"),
    ("April, 2019", "april 2019"),
    ("北京", "北京"),
    (r"\text{Yes}", "yes"),
    ("The red cube.", "the red cube"),
    ("Basin", "basin"),
    # as people write them: exact and rounded, roots, units, directions, Chinese, letters, points
    (r"\frac{2}{3} \approx 0.667", r"\frac{2}{3}"),
    (r"\sqrt{2} \approx 1.414", r"\sqrt{2}"),
    (r"\frac{25\pi}{3}\approx 26.18", r"\frac{25\pi}{3}"),
    (r"\pi \approx 3.14", r"\pi"),
    (r"x=\frac{-1\pm\sqrt5}{2}", r"\frac{-1\pm\sqrt5}{2}"),
    (r"\frac{-1\pm\sqrt5}{2}", r"x=\frac{-1\pm\sqrt5}{2}"),
    ("5", "5 N"),
    ("5", "5 J"),
    ("5", "5 A"),
    ("5", "5 W"),
    ("5", r"5\Omega"),
    ("5 Ω", "5"),
    ("5", "5 L"),
    ("20 N/m", "20"),
    ("5 Pa", "5"),
    ("20", "20 N/m"),
    ("60度", "60"),
    ("60度", "60°"),
    ("5厘米", "5"),
    ("5厘米", "5 cm"),
    ("3个", "3"),
    ("20℃", "20"),
    ("x＝5", "x=5"),
    ("（1，2）", "(1,2)"),
    ("（A）", "A"),
    ("A．12", "A"),
    ("AC", "A, C"),
    ("A,B,D", "ABD"),
    ("A、C", "A, C"),
    ("A and C", "AC"),
    ("5万", "50000"),
    (r"25\pi cm^2", r"25\pi"),
    (r"\frac12 ab", r"\frac{1}{2}ab"),
    (r"\text{5 cm}", "5"),
    (r"1,000\pi", r"1000\pi"),
    (r"\frac{AB}{CD}=\frac{2}{3}", r"\frac{2}{3}"),
    (r"\theta=30", "30"),
    (r"AB \approx 3.1", "3.1"),
    (r"\frac{x+1}{2}", "(x+1)/2"),
    (r"\frac{a+b}{c}", r"\frac{b+a}{c}"),
    ("2^{n+1}", "2^{1+n}"),
    (r"\frac{1}{2x}", "1/(2x)"),
    (r"4\sqrt{3} cm", r"4\sqrt{3}"),
    ("45 degrees clockwise", "45"),
    ("2 steps to the left", "2 steps left"),
    ("90 degrees counterclockwise", "90 degrees anticlockwise"),
    ("5%", "5% decrease"),
    ("-5", "5 below zero"),
    ("3 km", "3千米"),
    ("25平方厘米", "25 cm^2"),
    ("12元", "12"),
    (r"\frac{\sqrt{3}}{3}", r"\frac{1}{\sqrt{3}}"),
    ("5 (cm)", "5"),
    ("5(cm)", "5"),
    ("5", "5 (cm)"),
    ("P(1,2)", "(1,2)"),
    ("(1,2)", "B(1,2)"),
    ("选A", "A"),
    ("答案：A", "A"),
    (r"5\text{ }^\circ\text{C}", "5"),
    (r"5\text{ }^\circ\text{C}", r"5^\circ C"),
    ("10～15", "10-15"),
    ("5 μm", "5"),
    ("1.5 kg/m^3", "1.5"),
    ("45度逆时针", "45"),
    ("5 degrees below zero", "-5"),
    (r"20 \text{ N/m}", "20 N/m"),
]

WRONG = [
    ("221", r"2 \sqrt{221}"),
    (r"\sqrt[3]{16}", r"\sqrt{16}"),  # mathruler drops the index
    (r"\foo{ 221}", "221"),  # a number inside LaTeX that does not parse
    ("78.54", r"25\pi"),
    ("5x", "5"),
    ("5^2", "5"),
    ("1/0", "5"),
    ("x^2+2x+2", "(x+1)^2"),
    ("B", "A"),
    ("A and B", "A"),
    ("(A) and (B)", "A"),
    ("(a) or (b)", "A"),
    ("A. 30, B. 40", "A"),
    ("12", "A"),
    ("B. 30", "A. 30"),
    ("31", "A. 30"),
    (r"5\%", r"50\%"),
    ("0.05", r"50\%"),
    ("3/4", "3:4"),
    ("4:3", "3:4"),
    ("3:4", r"\frac{3}{4}"),
    ("1:15", "2:30"),  # a time of day
    ("5", "−5"),
    ("1,00", "100"),
    ("5e-9", "1.2e-8"),  # right to mathruler
    ("0.000000012", "0.00000002"),  # right to both
    ("12345678901234567891", "12345678901234567892"),  # right to mathruler
    ("1 1/2", "11/2"),  # right to mathruler
    ("1010_2", "10102"),  # right to mathruler
    ("0.33", r"\frac{1}{3}"),
    ("0.3", r"0.\overline{3}"),
    ("3.2", "3.14"),
    ("3.1", "3.14"),
    ("1.41", r"\sqrt{2}"),
    ("5.1", "5"),
    ("60°", "30°"),
    (r"5\text{ m}", r"5\text{ cm}"),
    ("12 m", "12 cm"),  # right to math-verify, as are the next five
    ("12cm", "12m"),
    ("12 kg", "12 g"),
    ("12 s", "12 m"),
    ("12 ms", "12 m"),
    (r"12\text{ cm}", "12 m"),
    ("5 thousand", "5 million"),
    ("5 million", "5"),
    ("2 thirds", "2 fifths"),
    ("3 halves", "3"),
    ("3 squared", "3"),
    ("2 dozen", "2"),
    ("2 and a half", "2"),
    ("6 minus two", "6"),
    ("5 not", "5"),
    ("3 alpha", "3"),
    ("J", "I. nine"),
    ("J. nine", "I. nine"),
    ("I. eight", "I. nine"),
    ("J. Adams", "J. Smith"),
    ("U.K.", "U.S."),
    (r"\angle ACB", r"\angle ABC"),  # right to math-verify
    (r"AB \perp CD", "AB∥CD"),
    ("USD 451", "USD 450"),
    ("IV", "VI"),  # right to mathruler, as is the next one
    ("FF", "Ff"),
    ("AaBB", "AaBb"),
    ("5°C", "5°F"),  # right to both
    ("30° N", "30° S"),
    ("30%", "30°"),
    (r"5\text{ m/s}", r"5\text{ km/h}"),
    ("5 m/s", "5 m"),
    ("5v/g", "5"),
    (r"100 \bmod 7 = 3", "2"),
    ("5", r"5 \mod 7"),  # right to math-verify, as are the next three
    (r"5 \mod 8", r"5 \mod 7"),
    (r"5 \pmod 8", r"5 \pmod 7"),
    (r"8 \mod 7", "8"),
    (r"4 \pmod 7", r"5 \pmod 7"),
    (r"y \equiv 5 \pmod 7", r"x \equiv 5 \pmod 7"),
    (r"1234 \bmod 7", "2"),  # the question
    (r"1234 \bmod 7", r"2 \bmod 7"),
    (r"x \equiv 3 \pmod 4 \text{ or } x \equiv 1 \pmod 4", r"x \equiv 3 \pmod 4"),
    ("x<2 and x>5", "x<2 or x>5"),  # right to mathruler
    ("101_2", "101_3"),  # right to math-verify, as are the next four
    ("101_{8}", "101_{10}"),
    ("5_2", "5"),
    (r"2 \text{ hours } 30 \text{ minutes}", "2"),
    ("x'", "x"),
    (r"5\text{ or }6", "5"),  # right to mathruler
    ("x=4", "x=3"),
    ("y=3", "x=3"),  # right to mathruler
    ("(2,1)", "(1,2)"),
    ("[1,2]", "(1,2)"),
    ("5,6", "5"),
    ("5", "5,6"),
    (r"\pm 3", "3"),
    ("act", "cat"),  # right to math-verify
    ("on", "no"),  # right to both
    ("no", "on"),
    ("No", "Yes"),
    ("né", "én"),
    ("京北", "北京"),
    ("Jose", "José"),
    ("Room 12 act", "Room 12 cat"),
    ("", "5"),
    (r"\frac{", "5"),
    ("}{", "5"),
    ("9" * 5000, "5"),
    (r"\frac{1}{" * 60 + "2" + "}" * 60, "5"),  # would parse for minutes
    # what mathruler reads without its braces and commas, directions, units
    (r"1-\frac{\sqrt3}{2}", r"\frac{1-\sqrt3}{2}"),
    (r"\frac{\sqrt{5}-1}{2}", r"\sqrt{5}-\frac{1}{2}"),
    (r"\frac{3\sqrt5}{2}", r"\frac{3}{2\sqrt5}"),
    (r"4+\frac{\pi}{2}", r"\frac{4+\pi}{2}"),
    (r"\frac{1}{x}+2", r"\frac{1}{x+2}"),
    ("2^n-1", "2^{n-1}"),
    ("a_n+1", "a_{n+1}"),
    (r"\frac{10}{3} x", r"\frac{10}{3x}"),
    ("100, 200", "100200"),
    ("100200", "100, 200"),
    ("(100, 250)", "100250"),
    ("45 degrees clockwise", "45 degrees counterclockwise"),
    ("2 steps left", "2 steps right"),
    ("5 south", "5 north"),
    ("5 below zero", "5"),
    ("10 gain", "10 loss"),
    (r"90^\circ \text{ clockwise}", r"90^\circ \text{ counterclockwise}"),
    (r"5 \text{ mA}", r"5 \text{ A}"),
    ("5 kPa", "5 Pa"),
    ("5 nm", "5 m"),
    ("5 mV", "5 V"),
    ("CA", "AC."),
    ("C, A", "AC"),
    ("A, B", "A, C"),
    (r"\frac{2}{3} \approx 0.667", r"\frac{1}{3}"),
    ("x^{2n}", "x^2n"),
    ("20 N/m", "20 N/cm"),
    ("5厘米", "5米"),
    ("5千克", "5千米"),
    ("5万", "5"),
    ("（2，1）", "(1,2)"),
    ("5 (ab)", "5"),
    ("5(x)", "5"),
    ("5 (abc)", "5"),
    ("P(1,2)", "Q(1,2)"),
    ("P(1,3)", "(1,2)"),
    (r"5 \text{ cm}", r"5\text{ }^\circ\text{C}"),
    ("f(1,2)", "(1,2)"),
    ("10 - 15", "10"),
    ("选B", "A"),
    ("5 n/m", "5"),
    ("5ma", "5"),
    ("5a/b", "5"),
    ("5 cm", "5 (m)"),
    ("逆时针", "顺时针"),
    ("45度逆时针", "45度顺时针"),
    ("3个半", "3"),
    ("5以下", "5 N/m "),
    ("10", "10分之一"),
]


def boxed(answer: str) -> str:
    return f"<think>hm</think> The answer is $\\boxed{{{answer}}}$."


@pytest.mark.parametrize(("answer", "gold"), RIGHT)
def test_right_answer(answer, gold):
    verdict = verify(boxed(answer), gold)
    assert verdict.correct, verdict
    assert verdict.rule in {"choice", "exact", "residue", "ratio", "decimal", "angle", "mathruler", "math_verify"}


@pytest.mark.parametrize(("answer", "gold"), WRONG)
def test_wrong_answer(answer, gold):
    verdict = verify(boxed(answer), gold)
    assert not verdict.correct, verdict
    assert verdict.rule in {"none", "no_box"}


@pytest.mark.parametrize(
    ("answer", "gold", "rule"),
    [
        ("b", "B. 30", "choice"),
        ("30", "B. 30", "exact"),
        ("6:8", "3:4", "ratio"),
        ("0.50", "1/2", "decimal"),
        ("x+1", "1+x", "mathruler"),
        (r"\{2,1\}", r"\{1,2\}", "math_verify"),
        (r"2\pi", "6.28", "decimal"),
        (r"5 \bmod 7", r"5 \pmod 7", "residue"),
        ("7", "8", "none"),
    ],
)
def test_the_rule_that_decided_is_named(answer, gold, rule):
    assert verify(boxed(answer), gold).rule == rule


@pytest.mark.parametrize(
    ("answer", "gold", "rule"),
    [
        ("100", "100", "exact"),
        ("100.0", "100", "decimal"),
        ("3.14159", "3.14", "decimal"),
        ("105", "100", "tolerance"),
        ("95", "100", "tolerance"),
        ("105.01", "100", "none"),
        ("-95", "-100", "tolerance"),
        ("95", "-100", "none"),
        ("0.52", r"50\%", "tolerance"),
        ("52", r"50\%", "tolerance"),
        (r"52\%", "0.50", "tolerance"),
        ("103 cm", "100 cm", "tolerance"),
        ("103 m", "100 cm", "none"),
        (r"\$1.02 \text{ million}", "1,000,000", "tolerance"),
        ("x = 21", "20", "tolerance"),
        (r"\frac{52}{100}", r"\frac{1}{2}", "tolerance"),
        ("0.001", "0", "none"),
        ("2031", "2024", "tolerance"),  # a year is a number: see docs/rewards.md
        ("31", "B. 30", "none"),  # the text of a choice, next to which another may stand
        ("31", "K. 30", "none"),
        ("103:100", "1:1", "none"),
        (r"\sqrt{104}", "10", "none"),
        ("cats", "cat", "none"),
        ("5:31", "5:30", "none"),
    ],
)
def test_a_tolerance_is_for_numbers(answer, gold, rule):
    assert verify(boxed(answer), gold, tolerance=0.05).rule == rule


def test_a_tolerance_is_meant_as_it_is_written():
    """As doubles 0.03 and 1.1 * 0.1 are not what they say."""
    assert verify(boxed("103"), "100", tolerance=0.03).correct
    assert verify(boxed("1.21"), "1.1", tolerance=0.1).correct
    assert not verify(boxed("103.000001"), "100", tolerance=0.03).correct


@pytest.mark.parametrize(("answer", "gold"), RIGHT)
def test_a_tolerance_takes_nothing_away(answer, gold):
    assert verify(boxed(answer), gold, tolerance=0.05) == verify(boxed(answer), gold)


@pytest.mark.parametrize("gold", ["5", "None", "none", r"\boxed{5}"])
def test_answer_without_a_box_is_wrong(gold):
    assert verify("<think>so</think> it is 5", gold) == Verdict(False, "no_box", None)


def test_boxed_none_is_an_answer():
    assert verify(boxed("None"), "None") == Verdict(True, "exact", "None")


@pytest.mark.parametrize(
    ("text", "content"),
    [
        (r"\boxed{5}", "5"),
        (r"\boxed{5} no, \boxed{6}", "6"),
        (r"\boxed{\boxed{5}}", "5"),
        (r"\boxed{ \frac{1}{2} }", r"\frac{1}{2}"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed{\left\{ x \right.}", r"\left\{ x \right."),
        (r"\boxed {7}", "7"),
        (r"\boxed{}", ""),
        (r"\boxed{5} no, \boxed{6", None),
        (r"\boxed", None),
        ("5", None),
    ],
)
def test_last_box_counts(text, content):
    assert extract_boxed(text) == content
    assert verify(text, "gold").extracted == content


def test_empty_gold_is_an_error_of_the_data():
    with pytest.raises(ValueError, match="gold answer is empty"):
        verify(boxed("5"), "  ")


def test_gold_that_the_graders_cannot_take_is_an_error():
    with pytest.raises(ValueError, match="nan or zoo"):
        verify(boxed("5"), "1/0")


def test_verification_works_off_the_main_thread():
    verdicts = []
    thread = threading.Thread(target=lambda: verdicts.append(verify(boxed(r"\{2,1\}"), r"\{1,2\}")))
    thread.start()
    thread.join()
    assert verdicts[0].correct


GOLDS = st.one_of(
    st.integers().map(str),
    st.decimals(allow_nan=False, allow_infinity=False, places=3, min_value=-(10**6), max_value=10**6).map(str),
    st.builds(r"\frac{{{}}}{{{}}}".format, st.integers(-999, 999), st.integers(1, 999)),
    st.builds("{}/{}".format, st.integers(-999, 999), st.integers(1, 999)),
    st.sampled_from(string.ascii_letters),
    st.builds("{}. {}".format, st.sampled_from("ABCDEFGH"), st.integers(0, 99)),
    st.builds(r"{}\sqrt{{{}}}".format, st.integers(2, 99), st.integers(2, 99)),
)


@given(GOLDS)
@settings(max_examples=300, deadline=None)
def test_the_gold_itself_is_right(gold):
    assert verify(boxed(gold), gold).correct


@given(st.integers(), st.integers())
@settings(max_examples=200, deadline=None)
def test_another_integer_is_wrong(answer, gold):
    assert verify(boxed(str(answer)), str(gold)).correct == (answer == gold)


@given(st.integers(-99, 99), st.integers(1, 99), st.integers(1, 99))
@settings(max_examples=200, deadline=None)
def test_an_expanded_fraction_is_right(numerator, denominator, factor):
    answer = rf"\frac{{{numerator * factor}}}{{{denominator * factor}}}"
    assert verify(boxed(answer), f"{numerator}/{denominator}").correct


@given(st.text(alphabet=r"\{}()[]$^_%=,.:/ 159xyE" + "\n", max_size=40))
@settings(max_examples=200, deadline=None)
def test_garbage_is_wrong_and_no_error(answer):
    assert not verify(boxed(answer), r"\frac{\sqrt{7919}}{7907}").correct


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (r"<think>a</think> so \boxed{5}", True),
        ("  \n<think>a\nb</think>\n\\boxed{\\frac{1}{2}}.\n", True),
        (r"<think></think>\boxed{5} as asked", True),
        (r"so <think>a</think> \boxed{5}", False),
        (r"<think>a \boxed{5}", False),
        (r"<think>a \boxed{5}</think> five", False),
        (r"<think>a</think><think>b</think> \boxed{5}", False),
        (r"<think>a</think></think> \boxed{5}", False),
        (r"<think>a</think> \boxed{}", False),
        (r"<think>a</think> \boxed{ }", False),
        (r"<think>a</think> \boxed{5", False),
        (r"<think>a</think> 5", False),
        (r"</think>a<think> \boxed{5}", False),
        (r"\boxed{5}", False),
        ("", False),
    ],
)
def test_form_of_a_response(text, expected):
    assert is_well_formed(text) is expected


def test_importing_the_room_is_light():
    code = (
        "import sys, sharevl_lite.rewards, sharevl_lite.rewards.functions\n"
        "heavy = {'torch', 'transformers', 'sympy', 'math_verify', 'mathruler', 'pydantic'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
