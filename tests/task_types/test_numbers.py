"""The number that a text answers with, however it is written."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distillery.task_types.numbers import last_number


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("The answer is 42.", "42"),
        ("first 3, then 4", "4"),
        ("1,234,567", "1234567"),
        ("1,234.50 dollars", "1234.5"),
        ("1.234,50 \u20ac", "1234.5"),
        ("12,34,567 rupees", "1234567"),
        ("1\u202f000\u00a0km", "1000 km"),
        ("1'000.5", "1000.5"),
        ("3,14", "3.14"),
        ("0,125", "0.125"),
        ("sets 10,20,30", "30"),
        ("-7", "-7"),
        ("x = -7", "-7"),
        ("\u22127 \u00b0C", "-7"),
        ("10-7", "7"),
        ("(3)-2", "2"),
        ("-$5.25", "-5.25"),
        ("$-5.25", "-5.25"),
        ("+5", "5"),
        ("50%", "50 %"),
        ("50 percent of it", "50 %"),
        ("\\$1{,}200", "1200"),
        (".5", "0.5"),
        ("Rs.500", "500"),
        ("1e3", "1000"),
        ("2.5E-3", "0.0025"),
        (r"3 \times 10^{5}", "300000"),
        ("1/2", "0.5"),
        (r"-\frac{1}{4}", "-0.25"),
        (r"so \dfrac{3}{4}", "0.75"),
        ("5/0", None),
        ("25 m^2 of H2O", "25 m"),
        ("**72**", "72"),
        ("$72$", "72"),
        ("on 2024-05-01", "1"),
        ("\u0664\u0662", "42"),
        ("no number", None),
        ("", None),
        ("GPT4", None),
        ("18 or 20", None),
        ("18 apples or 20.", None),
        ("6 hours 30 minutes", None),
        ("after 6 hours, 30", "30"),
        ("2 1/2 cups", "2.5"),
        ("-2\u00bd", "-2.5"),
        ("1 234 567,8", "1234567.8"),
        ("\u4ed6\u8d70\u4e863.5\u516c\u91cc", "3.5"),  # he walked 3.5 kilometres
        ("\u603b\u5171\u9700\u89811,200\u5143", "1200"),  # 1,200 yuan in all
        ("\u7b54\u6848\u662f-3/4\u3002", "-0.75"),  # the answer is -3/4
        ("\u305d\u308c\u306f42\u5186\u3067\u3059\u3002", "42"),  # it is 42 yen
        ("\ucd1d42\uac1c\uc785\ub2c8\ub2e4", "42"),  # it is 42 pieces in all
        ("18\u621620\u4e2a", None),  # 18 or 20 of them
        ("2\u5c0f\u65f630\u5206\u949f", None),  # 2 hours 30 minutes
    ],
)
def test_the_number_of_a_text_is_what_it_answers_with(text: str, number: str | None) -> None:
    value, _, unit = (number or "").partition(" ")
    expected = f"{Fraction(value)} {unit}".strip() if number else None
    assert last_number(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "9" * 1_000_000,
        *(part * 100_000 for part in ("1,", "a1", "1 ", "$-", "1/", "^{", "#### ", "#### 1\n")),
        r"\boxed{" * 100_000,
        "1\x00 2",
        "\ud800 5",
    ],
    ids=lambda text: repr(text[:7]),
)
def test_a_long_or_odd_text_is_read_to_its_end(text: str) -> None:
    last_number(text)  # work that grows with the square would take hours


@given(
    st.integers(-(10**12), 10**12), st.sampled_from(["{:,}", "{}", "{}.00", "${}$", "= {} apples"])
)
def test_a_number_is_read_however_it_is_written(number: int, written: str) -> None:
    assert last_number(written.format(number)) == str(number)
