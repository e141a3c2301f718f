"""A template and the values of its columns become a prompt."""

from hypothesis import given
from hypothesis import strategies as st

from distillery.task_types.prompt_templates import render_prompt

_VALUES = st.text(st.characters(exclude_categories=["Cs"]))


@given(st.lists(_VALUES, min_size=3, max_size=3))
def test_a_template_is_filled_in_whatever_the_values_hold(values: list[str]) -> None:
    columns = dict(zip(("a", "b c", "d.e"), values, strict=True))
    expected = f"{{x}} {values[0]}|{values[1]}|{values[2]} }}{values[0]}"
    rendered = render_prompt("{{x}} {a}|{b c}|{d.e} }}{a}", columns)
    assert rendered == (expected if any(value.strip() for value in values) else "")


@given(st.text(st.characters(exclude_characters="{}")), _VALUES.filter(str.strip))
def test_text_around_a_column_stays_as_it_is(around: str, value: str) -> None:
    assert render_prompt(f"{around}{{text}}{around}", {"text": value}) == around + value + around


def test_lists_in_a_column_are_shown_as_json() -> None:
    assert render_prompt("{q} {options}", {"q": 1, "options": ["ü", None]}) == '1 ["ü", null]'
