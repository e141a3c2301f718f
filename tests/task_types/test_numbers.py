"""The number of a text, and when two are equal."""

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distillery.task_types.numbers import last_number, numbers_equal


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("The answer is 42.", "42"),
        ("first 3, then 4", "4"),
        ("1,234,567", "1234567"),
        ("1,234.50 dollars", "1234.5"),
        ("1.234,50 \u20ac", "1234.5"),
        ("12,34,567 rupees", "1234567"),
        ("1\u202f000\u00a0km", "1000"),
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
        ("50%", "50"),
        ("50 % of it", "50"),
        ("\\$1{,}200", "1200"),
        (".5", "0.5"),
        ("Rs.500", "500"),
        ("1e3", "1000"),
        ("2.5E-3", "0.0025"),
        (r"3 \times 10^{5}", "300000"),
        ("1/2", "0.5"),
        (r"-\frac{1}{4}", "-0.25"),
        (r"2 or \dfrac{3}{4}", "0.75"),
        ("5/0", "0"),
        ("25 m^2 of H2O", "25"),
        ("**72**", "72"),
        ("$72$", "72"),
        ("on 2024-05-01", "1"),
        ("\u0664\u0662", "42"),
        (r"\boxed{7} since 3 + 4 = 8 - 1", "7"),
        (r"\boxed{1}, no: \boxed{\text{about } 2}", "2"),
        (r"\boxed{\frac{1}{2}} of 8", "0.5"),
        ("#### 72\nAs step 3 shows.", "72"),
        ("#### $1,200.\nDone in 2 steps", "1200"),
        ("#### 2. Adding up\nThat makes 9", "9"),
        ("#### Step 2\nThat makes 9", "9"),
        ("<<48/2=24>>24 clips\n#### 0", "0"),
        ("no number", None),
        ("", None),
        ("GPT4", None),
        (r"4 is wrong: \boxed{\text{none}}", None),
    ],
)
def test_the_number_of_a_text_is_what_it_answers_with(text: str, number: str | None) -> None:
    assert last_number(text) == (None if number is None else Decimal(number))


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
    number = last_number(text)  # work that grows with the square would take hours
    assert numbers_equal(number, number, 0.1) == (number is not None)


@given(st.integers(-(10**12), 10**12), st.sampled_from(["{:,}", "{}", "{}.00", "${}$", "= {} km"]))
def test_a_number_is_read_however_it_is_written(number: int, written: str) -> None:
    assert last_number(written.format(number)) == number


def test_equality_is_exact_unless_a_tolerance_is_given() -> None:
    a, b = Decimal("1" * 60), Decimal("1" * 59 + "2")
    assert not numbers_equal(a, b)
    assert numbers_equal(a, b, 1e-9)
    assert numbers_equal(Decimal("0.10"), Decimal("0.1"))
    assert not numbers_equal(Decimal("1e-9"), Decimal(0), 0.5)
    assert numbers_equal(Decimal("-101"), Decimal("-100"), 0.01)
