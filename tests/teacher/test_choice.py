"""Of several samples the one that most bear out is chosen, and it is said how many do."""

import time
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distillery.task_types.numbers import last_number, numbers_equal
from distillery.teacher.choice import Chosen, Sample, check_samples, choose
from schemas.errors import RecipeError
from schemas.samples import (
    Choice,
    JsonChoice,
    LabelChoice,
    MajorityChoice,
    NumberChoice,
    RegexChoice,
    SamplesSpec,
)
from schemas.task import JsonFormat, LabelSet, RegexFormat, TaskSpec
from schemas.teacher import TransformersTeacher

MATH = TaskSpec(name="t", type="math")  # type: ignore[arg-type]
YES_NO = LabelSet(labels=("yes", "no"))
OBJECT = JsonFormat(json_schema={"required": ["a"], "type": "object"})


def _task(answer_format: Any) -> TaskSpec:
    return MATH.model_copy(update={"answer_format": answer_format})


def _samples(*texts: str) -> list[Sample]:
    """Return samples; a text that begins with a state in brackets has that state."""
    found = []
    for text in texts:
        state, _, rest = text[1:].partition("]") if text.startswith("[") else ("ok", "", text)
        found.append(Sample(state, rest))
    return found


def _choose(
    samples: Sequence[Sample], choice: Choice, answer_format: Any = None, reference: Any = None
) -> Chosen:
    return choose(samples, choice, task=_task(answer_format), reference=reference)


@pytest.mark.parametrize(
    ("answer", "texts", "chosen"),
    [
        ("text", ["a", "b", " B ", "c"], Chosen(1, 2 / 4)),
        ("text", ["one  two", "One\ntwo", "three"], Chosen(0, 2 / 3)),
        ("text", ["b", "a", "a", "b"], Chosen(0, 2 / 4)),  # a tie: the earliest
        ("text", ["[truncated]a", "[failed]", "b", "[truncated]a"], Chosen(2, 1 / 4)),
        ("text", ["[malformed]a", "[malformed]a", "a"], Chosen(2, 1 / 3)),
        ("text", ["[refused]", "[truncated]a"], Chosen(0, 0.0)),
        ("number", ["It is 3.", "so 4", "thus 4.00", "none"], Chosen(1, 2 / 4)),
        ("number", ["no idea", "nor I"], Chosen(0, 0.0)),
        ("number", ["[empty]", "no idea", "nor I"], Chosen(1, 0.0)),
        ("json", ['{"a":1}', '{"a": 2}', '{ "a" : 2.0 }', "x"], Chosen(1, 2 / 4)),
        ("json", ["true", "1", "true"], Chosen(0, 2 / 3)),
        ("json", ["```json\n1\n```", "1e999", "NaN"], Chosen(0, 0.0)),
        ("json", ["[" * 100_000, "2"], Chosen(1, 1 / 2)),
    ],
)
def test_majority_chooses_the_first_of_the_most_common_answer(
    answer: Any, texts: list[str], chosen: Chosen
) -> None:
    samples = [Sample("ok", text) if text.startswith("[[") else _samples(text)[0] for text in texts]
    assert _choose(samples, MajorityChoice(answer=answer)) == chosen


@pytest.mark.parametrize(
    ("choice", "answer_format", "reference", "texts", "chosen"),
    [
        (LabelChoice(), YES_NO, None, ["maybe", " yes ", "no"], Chosen(1, 2 / 3)),
        (LabelChoice(), YES_NO, "no", ["maybe", "yes", "no"], Chosen(2, 1 / 3)),
        (LabelChoice(), YES_NO, ' "No". ', ["No.", "yes", "no"], Chosen(2, 1 / 3)),
        (LabelChoice(), YES_NO, "perhaps", ["perhaps", "yes", "no"], Chosen(0, 0.0)),
        (LabelChoice(), YES_NO, " ", ["yes", "no"], Chosen(0, 1.0)),
        (LabelChoice(), LabelSet(labels=("a", "A")), "A", ["a", "A"], Chosen(1, 1 / 2)),
        (LabelChoice(), LabelSet(labels=("a", "A")), "A.", ["a", "A"], Chosen(0, 0.0)),
        (LabelChoice(), None, None, ["yes", "no"], Chosen(0, 0.0)),
        (RegexChoice(pattern=r"\d+"), None, None, ["a1", " 12 ", "3"], Chosen(1, 2 / 3)),
        (NumberChoice(), None, "#### 1,000", ["1", "So $1000.", "1"], Chosen(1, 1 / 3)),
        (NumberChoice(), None, None, ["1", "1"], Chosen(0, 0.0)),
        (NumberChoice(), None, "unknown", ["none", "none"], Chosen(0, 0.0)),
        (NumberChoice(relative_tolerance=0.01), None, "200", ["203", "198"], Chosen(1, 1 / 2)),
        (JsonChoice(), OBJECT, None, ["{}", '{"a":1}', "x", '{"a":2}'], Chosen(1, 2 / 4)),
        (NumberChoice(), None, "7", ["[truncated]7", "[failed]", "7"], Chosen(2, 1 / 3)),
        (NumberChoice(), None, "7", ["[failed]", "8", "9"], Chosen(1, 0.0)),
        (NumberChoice(), None, "7", ["[failed]", "[truncated]7"], Chosen(0, 0.0)),
    ],
)
def test_a_verifier_chooses_the_first_that_passes(
    choice: Choice, answer_format: Any, reference: Any, texts: list[str], chosen: Chosen
) -> None:
    assert _choose(_samples(*texts), choice, answer_format, reference) == chosen


def test_one_response_alone_is_chosen_without_agreement() -> None:
    assert _choose(_samples("a"), MajorityChoice()) == Chosen(0, None)
    with pytest.raises(ValueError, match="no response to choose from"):
        _choose([], MajorityChoice())


_DRAWN = st.lists(
    st.builds(
        Sample,
        st.sampled_from(["ok", "ok", "ok", "truncated", "empty", "failed"]),
        st.sampled_from(["4", " 4.0", "5", "yes", "YES", '{"a": 1}', '{"a":1.0}', "", "no"]),
    ),
    min_size=2,
    max_size=9,
)
_CHOICES = st.sampled_from(
    [
        *(MajorityChoice(answer=answer) for answer in ("text", "number", "json")),
        LabelChoice(),
        RegexChoice(pattern="[a-z]+"),
        NumberChoice(),
        JsonChoice(),
    ]
)


def _key(sample: Sample, choice: Choice) -> Any:
    """Return what the choice compares, worked out in the plainest way."""
    text = sample.text.strip().casefold()
    plain = {"4.0": "4", '{"a":1.0}': '{"a": 1}'}.get(text, text)
    if isinstance(choice, MajorityChoice) and choice.answer == "number":
        plain = "1" if "a" in plain else plain
        return plain if plain in ("1", "4", "5") else None
    if isinstance(choice, MajorityChoice) and choice.answer == "json":
        return plain if plain in ("4", "5", '{"a": 1}') else None
    return text or None


@given(_DRAWN, _CHOICES, st.randoms(use_true_random=False))
def test_order_decides_between_equals_only(
    drawn: list[Sample], choice: Choice, random: Any
) -> None:
    answer_format = {"label": YES_NO, "json": OBJECT}.get(choice.kind)
    shuffled = drawn[:]
    random.shuffle(shuffled)
    here, there = (_choose(s, choice, answer_format, "4") for s in (drawn, shuffled))
    assert here.agreement == there.agreement
    assert here.agreement is not None
    assert 0 <= here.agreement <= 1
    if here.agreement > 0:
        assert drawn[here.index].state == shuffled[there.index].state == "ok"
    if isinstance(choice, MajorityChoice) and here.agreement > 0:
        keys = [_key(s, choice) if s.state == "ok" else None for s in drawn]
        winner, other = _key(drawn[here.index], choice), _key(shuffled[there.index], choice)
        assert keys.count(winner) == keys.count(other) == here.agreement * len(drawn)
        assert all(keys.count(key) <= keys.count(winner) for key in keys if key is not None)
        assert here.index == keys.index(winner)


@given(_DRAWN, st.sampled_from(["text", "number", "json"]))
def test_agreement_is_one_exactly_when_all_agree(drawn: list[Sample], answer: Any) -> None:
    choice = MajorityChoice(answer=answer)
    keys = {_key(sample, choice) if sample.state == "ok" else None for sample in drawn}
    all_agree = len(keys) == 1 and None not in keys
    assert (_choose(drawn, choice).agreement == 1) == all_agree


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
def test_a_long_or_odd_text_is_read_at_once(text: str) -> None:
    start = time.process_time()
    samples = [Sample("ok", text), Sample("ok", text)]
    _choose(samples, MajorityChoice(answer="number"))
    _choose(samples, NumberChoice(relative_tolerance=0.1), None, text)
    assert time.process_time() - start < 60  # work that grows with the square would take hours


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


def _teacher(choice: Choice, num_samples: int = 3) -> TransformersTeacher:
    samples = SamplesSpec(num_samples=num_samples, choice=choice)
    return TransformersTeacher(model="m", sampling_temperature=1.0, samples=samples)


@pytest.mark.parametrize(
    ("choice", "answer_format", "message"),
    [
        (LabelChoice(), None, "has kind='label' but task.answer_format is missing"),
        (LabelChoice(), OBJECT, "is of kind 'json', so no response could be chosen"),
        (JsonChoice(), YES_NO, "Set task.answer_format to kind 'json', or choose otherwise"),
        (MajorityChoice(answer="json"), RegexFormat(pattern="a"), "has answer='json' but"),
        (RegexChoice(pattern="("), None, r"pattern '(' is no regular expression: missing )"),
    ],
)
def test_a_choice_that_nothing_could_pass_is_refused(
    choice: Choice, answer_format: Any, message: str
) -> None:
    with pytest.raises(RecipeError) as caught:
        check_samples(_teacher(choice), _task(answer_format))
    assert message in str(caught.value)
    check_samples(_teacher(choice, num_samples=1), _task(answer_format))  # never read


@pytest.mark.parametrize(
    ("choice", "answer_format"),
    [
        (LabelChoice(), YES_NO),
        (JsonChoice(), OBJECT),
        (MajorityChoice(answer="json"), OBJECT),
        (MajorityChoice(), None),
        (NumberChoice(), None),
        (RegexChoice(pattern="a+"), None),
    ],
)
def test_a_choice_that_fits_the_task_is_accepted(choice: Choice, answer_format: Any) -> None:
    check_samples(_teacher(choice), _task(answer_format))
