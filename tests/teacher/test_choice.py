"""Of several samples the one that most bear out is chosen, and it is said how many do."""

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distillery.teacher.choice import Chosen, Sample, check_samples, choose
from schemas.errors import RecipeError
from schemas.samples import (
    Choice,
    JsonChoice,
    LabelChoice,
    MajorityChoice,
    RegexChoice,
    SamplesSpec,
)
from schemas.task import JsonFormat, LabelSet, RegexFormat, TaskKind, TaskSpec
from schemas.teacher import TransformersTeacher

CLASSIFICATION = TaskSpec(name="t", type=TaskKind.CLASSIFICATION)
MATH = TaskSpec(name="t", type=TaskKind.MATH)
YES_NO = LabelSet(labels=("yes", "no"))
ANY_JSON = JsonFormat(json_schema={})
OBJECT = JsonFormat(json_schema={"required": ["a"], "type": "object"})


def _task(answer_format: Any) -> TaskSpec:
    return CLASSIFICATION.model_copy(update={"answer_format": answer_format})


def _samples(*texts: str) -> list[Sample]:
    """Return samples; a text that begins with a state in brackets has that state."""
    found = []
    for text in texts:
        state, _, rest = text[1:].partition("]") if text.startswith("[") else ("ok", "", text)
        found.append(Sample(state, rest))
    return found


def _choose(samples: Sequence[Sample], choice: Choice, answer_format: Any = None) -> Chosen:
    return choose(samples, choice, task=_task(answer_format))


@pytest.mark.parametrize(
    ("answer_format", "texts", "chosen"),
    [
        (None, ["a", "b", " B ", "c"], Chosen(1, 2 / 4)),
        (None, ["one  two", "One\ntwo", "three"], Chosen(0, 2 / 3)),
        (None, ["b", "a", "a", "b"], Chosen(0, 2 / 4)),  # a tie: the earliest
        (None, ["[truncated]a", "[failed]", "b", "[truncated]a"], Chosen(2, 1 / 4)),
        (None, ["[malformed]a", "[malformed]a", "a"], Chosen(2, 1 / 3)),
        (None, ["[refused]", "[truncated]a"], Chosen(0, 0.0)),
        (None, ["b", "a", "B"], Chosen(0, 2 / 3)),
        (YES_NO, ["maybe", "maybe", "Yes.", "no", "**yes**"], Chosen(2, 2 / 5)),
        (ANY_JSON, ['{"a":1}', '{"a": 2}', '{ "a" : 2.0 }', "x"], Chosen(1, 2 / 4)),
        (ANY_JSON, ["true", "1", "true"], Chosen(0, 2 / 3)),
        (ANY_JSON, ["2", "```json\n1\n```", "1.0"], Chosen(1, 2 / 3)),
        (ANY_JSON, ["1e999", "NaN"], Chosen(0, 0.0)),
        (ANY_JSON, ["[" * 100_000, "2"], Chosen(1, 1 / 2)),
    ],
)
def test_majority_chooses_the_first_of_the_most_common_answer(
    answer_format: Any, texts: list[str], chosen: Chosen
) -> None:
    samples = [Sample("ok", text) if text.startswith("[[") else _samples(text)[0] for text in texts]
    assert _choose(samples, MajorityChoice(), answer_format) == chosen


@pytest.mark.parametrize(
    ("texts", "chosen"),
    [
        (["It is 3.", "so 4", "thus $4.00", "none"], Chosen(1, 2 / 4)),
        ([r"\boxed{2\sqrt{3}}", r"#### \sqrt{12}", "3"], Chosen(0, 2 / 3)),
        (["no idea", "nor I"], Chosen(0, 0.0)),
        (["[empty]", "no idea", "nor I"], Chosen(1, 0.0)),
    ],
)
def test_solutions_agree_where_their_values_do(texts: list[str], chosen: Chosen) -> None:
    assert choose(_samples(*texts), MajorityChoice(), task=MATH) == chosen


@pytest.mark.parametrize(
    ("choice", "answer_format", "texts", "chosen"),
    [
        (LabelChoice(), YES_NO, ["maybe", " yes ", "no"], Chosen(1, 2 / 3)),
        (LabelChoice(), YES_NO, ["perhaps", "[truncated]yes"], Chosen(0, 0.0)),
        (RegexChoice(pattern=r"\d+"), None, ["a1", " 12 ", "3"], Chosen(1, 2 / 3)),
        (RegexChoice(pattern=r"\d+"), None, ["[truncated]7", "[failed]", "7"], Chosen(2, 1 / 3)),
        (RegexChoice(pattern="7"), None, ["[failed]", "8", "9"], Chosen(1, 0.0)),
        (RegexChoice(pattern="7"), None, ["[failed]", "[truncated]7"], Chosen(0, 0.0)),
        (JsonChoice(), OBJECT, ["{}", '{"a":1}', "x", '{"a":2}'], Chosen(1, 2 / 4)),
        (JsonChoice(), OBJECT, ["{}", '```json\n{"a":1}\n```'], Chosen(1, 1 / 2)),
    ],
)
def test_a_verifier_chooses_the_first_that_passes(
    choice: Choice, answer_format: Any, texts: list[str], chosen: Chosen
) -> None:
    assert _choose(_samples(*texts), choice, answer_format) == chosen


def test_one_response_alone_is_chosen_without_agreement() -> None:
    assert _choose(_samples("a"), MajorityChoice()) == Chosen(0, None)


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
    [MajorityChoice(), LabelChoice(), RegexChoice(pattern="[a-z]+"), JsonChoice()]
)


def _key(sample: Sample, answer_format: Any) -> Any:
    """Return what a majority compares, worked out in the plainest way."""
    text = sample.text.strip().casefold()
    plain = {"4.0": "4", '{"a":1.0}': '{"a": 1}'}.get(text, text)
    if answer_format is ANY_JSON:
        return plain if plain in ("4", "5", '{"a": 1}') else None
    return text or None


@given(_DRAWN, _CHOICES, st.sampled_from([None, ANY_JSON]), st.randoms(use_true_random=False))
def test_order_decides_between_equals_only(
    drawn: list[Sample], choice: Choice, answer_format: Any, random: Any
) -> None:
    answer_format = {"label": YES_NO, "json": OBJECT}.get(choice.kind, answer_format)
    shuffled = drawn[:]
    random.shuffle(shuffled)
    here, there = (_choose(s, choice, answer_format) for s in (drawn, shuffled))
    assert here.agreement == there.agreement
    assert here.agreement is not None
    assert 0 <= here.agreement <= 1
    if here.agreement > 0:
        assert drawn[here.index].state == shuffled[there.index].state == "ok"
    if isinstance(choice, MajorityChoice) and here.agreement > 0:
        keys = [_key(s, answer_format) if s.state == "ok" else None for s in drawn]
        winner = _key(drawn[here.index], answer_format)
        other = _key(shuffled[there.index], answer_format)
        assert keys.count(winner) == keys.count(other) == here.agreement * len(drawn)
        assert all(keys.count(key) <= keys.count(winner) for key in keys if key is not None)
        assert here.index == keys.index(winner)


@given(_DRAWN, st.sampled_from([None, ANY_JSON]))
def test_agreement_is_one_exactly_when_all_agree(drawn: list[Sample], answer_format: Any) -> None:
    keys = {_key(s, answer_format) if s.state == "ok" else None for s in drawn}
    all_agree = len(keys) == 1 and None not in keys
    assert (_choose(drawn, MajorityChoice(), answer_format).agreement == 1) == all_agree


def _teacher(choice: Choice, num_samples: int = 3) -> TransformersTeacher:
    samples = SamplesSpec(num_samples=num_samples, choice=choice)
    return TransformersTeacher(model="m", sampling_temperature=1.0, samples=samples)


@pytest.mark.parametrize(
    ("choice", "answer_format", "message"),
    [
        (LabelChoice(), None, "has kind='label' but task.answer_format is missing"),
        (LabelChoice(), OBJECT, "is of kind 'json', so no response could be chosen"),
        (JsonChoice(), YES_NO, "Set task.answer_format to kind 'json', or choose otherwise"),
        (LabelChoice(), RegexFormat(pattern="a"), "has kind='label' but task.answer_format is of"),
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
        (MajorityChoice(), OBJECT),
        (MajorityChoice(), None),
        (RegexChoice(pattern="a+"), None),
    ],
)
def test_a_choice_that_fits_the_task_is_accepted(choice: Choice, answer_format: Any) -> None:
    check_samples(_teacher(choice), _task(answer_format))


def test_an_nli_task_knows_its_labels_without_an_answer_format() -> None:
    task = TaskSpec(name="t", type=TaskKind.NLI)
    check_samples(_teacher(LabelChoice()), task)
    samples = [Sample("ok", text) for text in ("yes", "Entails.", "neutral", "entailment")]
    assert choose(samples, LabelChoice(), task=task) == Chosen(1, 0.75)
    assert choose(samples, MajorityChoice(), task=task) == Chosen(1, 0.5)


def test_a_pattern_that_does_not_compile_is_refused_where_it_stands() -> None:
    with pytest.raises(ValueError, match=r"'\(' is not a regular expression: missing \)"):
        RegexChoice(pattern="(")
