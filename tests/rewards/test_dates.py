"""Dates, times and numbers with zeros in front, which documents are full of: neither grader may calculate with them."""

import pytest

from sharevl_lite.rewards import verify


def boxed(answer):
    return rf"\boxed{{{answer}}}"


@pytest.mark.parametrize(
    ("answer", "gold"),
    [
        ("2024-01-03", "2024-01-03"),
        ("2024-1-3", "2024-01-03"),
        ("2024/01/03", "2024-01-03"),
        ("5/12/1998", "05/12/1998"),
        (r"\text{05.12.1998}", "05.12.1998"),
        ("05.12.1998.", "05.12.1998"),
        ("May 12th, 2019", "12 May 2019"),
        ("12 may", "May 12"),
        ("12 of Sept.", "September 12"),
        ("12", "12 May"),
        ("Mar 2020", "March 2020"),
        ("Aug.", "August"),
        ("3:45 p.m.", "3:45 PM"),
        ("03:45 pm", "3:45 p.m."),
        ("03:45", "3:45"),
        ("12 am", "12 a.m."),
        ("007", "7"),
        ("0.05", "0.05"),
        ("1,005", "1005"),
        ("100-5", "95"),
        ("30-7", "23"),
        ("5-12", "5-12"),
        ("5 - 12", "5-12"),
        ("5–12", "5-12"),
        ("555-1234", "555-1234"),
    ],
)
def test_right(answer, gold):
    assert verify(boxed(answer), gold).correct


@pytest.mark.parametrize(
    ("answer", "gold"),
    [
        ("2024-02-04", "2024-01-03"),  # mathruler: 0 times 2, 0 times 4
        ("05/13/1998", "05/12/1998"),
        ("1998-06-11", "1998-05-12"),  # math-verify: 1981
        ("03-01-2024", "2024-01-03"),
        ("05/12/1998", "12/05/1998"),
        ("1981", "1998-05-12"),
        ("2024", "2024-01-03"),
        ("12 Apr", "12 May"),
        ("May 21", "May 12"),
        ("May 20", "May 2020"),
        ("Feb 2020", "Mar 2020"),
        ("May 1998", "May 5, 1998"),
        ("May 12, 2018", "May 12, 2019"),
        ("3:45 a.m.", "3:45 PM"),
        ("12 am", "12 pm"),  # right to math-verify
        ("3:40", "3:04"),
        ("09-04", "09-03"),
        ("6-13", "5-12"),
        ("-7", "5-12"),
        ("556-1235", "555-1234"),
        ("010-07", "010-05"),
        (r"3 \cdot 05", r"7 \cdot 08"),
    ],
)
@pytest.mark.parametrize("tolerance", [0.0, 0.05])
def test_wrong(answer, gold, tolerance):
    assert not verify(boxed(answer), gold, tolerance).correct
