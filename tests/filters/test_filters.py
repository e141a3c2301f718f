"""Each filter drops with its reason and what it saw, and keeps what is in order."""

from typing import get_args

import pytest

from distillery.filters import PROMPT_FILTERS, RESPONSE_FILTERS, response_filters
from distillery.filters.base import Drop, Rewrite, RowFilter
from distillery.filters.format import Format
from distillery.filters.refusal import Refusal
from distillery.filters.usable import Usable
from distillery.task_types import task_type
from schemas.filters import (
    AgreementFilter,
    FormatFilter,
    LengthFilter,
    RefusalFilter,
    ResponseFilter,
    RewriteReason,
    TruncatedFilter,
)
from schemas.prompt_filters import PromptFilter
from schemas.task import AnswerFormat, JsonFormat, LabelSet, RegexFormat, TaskKind, TaskSpec
from tests.fixtures_filters import Row, response_row, task_with

YES_NO = LabelSet(labels=("yes", "no"))
INTEGER = JsonFormat(json_schema={"properties": {"a": {"type": "integer"}}})


def _judge(
    rule: ResponseFilter, row: Row, answer_format: AnswerFormat | None = None
) -> Drop | Rewrite | None:
    chosen = RESPONSE_FILTERS[rule.kind](rule)
    assert isinstance(chosen, RowFilter)
    return chosen.row(row, task_type(task_with(answer_format)))


@pytest.mark.parametrize(
    ("row", "rule", "reason", "detail", "score"),
    [
        (
            response_row("half of it", state="truncated", completion_tokens=256),
            TruncatedFilter(),
            "truncated",
            "cut after 256 tokens",
            256,
        ),
        (
            response_row("\n as an AI model"),
            RefusalFilter(patterns=("^as an ai",)),
            "refusal",
            "'as an AI' declines (en)",
            None,
        ),
        (
            response_row("<think>May I?</think>No way"),
            RefusalFilter(patterns=("yes", "^no WAY$")),
            "refusal",
            "'No way' declines (filters.responses)",
            None,
        ),
        (
            response_row(" abc "),
            LengthFilter(min_chars=4),
            "too_short",
            "3 characters, below 4",
            3,
        ),
        (response_row("abc"), LengthFilter(max_chars=2), "too_long", "3 characters, above 2", 3),
        (
            response_row(agreement=1 / 4),
            AgreementFilter(min_agreement=0.4),
            "low_agreement",
            "agreement 0.25, below 0.4",
            0.25,
        ),
    ],
)
def test_a_filter_drops_with_its_reason_what_it_saw_and_its_score(
    row: Row, rule: ResponseFilter, reason: str, detail: str, score: float | None
) -> None:
    found = _judge(rule, row)
    assert isinstance(found, Drop)
    assert (found.reason, found.detail, found.score) == (reason, detail, score)


@pytest.mark.parametrize(
    ("response", "answer_format", "reason", "detail"),
    [
        ("maybe", YES_NO, "not_a_label", "'maybe' is none of the 2 labels"),
        ("<think>yes", YES_NO, "empty", "nothing follows the thoughts"),
        ("a1", RegexFormat(pattern="[a-z]"), "no_regex_match", "'a1' does not match '[a-z]'"),
        ("{'a': 1}", INTEGER, "not_json", "\"{'a': 1}\" is not JSON"),
        ('{"a": "x"}', INTEGER, "json_schema_violation", "at $.a: 'x' is not of type 'integer'"),
        ("", None, "empty", "the response has no text"),
    ],
)
def test_what_has_no_answer_in_the_format_is_dropped(
    response: str, answer_format: AnswerFormat | None, reason: str, detail: str
) -> None:
    found = _judge(FormatFilter(), response_row(response), answer_format)
    assert isinstance(found, Drop)
    assert found.reason == reason
    assert found.detail.startswith(detail)


@pytest.mark.parametrize(
    ("response", "answer_format", "kept", "reason"),
    [
        (" Yes.\n", YES_NO, "yes", "canonical_label"),
        ("**no**", YES_NO, "no", "canonical_label"),
        ("hm</think>\n\nno", YES_NO, "no", "canonical_label"),
        ('```json\n{"a": 1}\n```', INTEGER, '{"a": 1}', "bare_answer"),
        (" 12 ", RegexFormat(pattern=r"\d+"), "12", "bare_answer"),
        ("<think>hm</think>\n\nfine", None, "fine", "bare_answer"),
    ],
)
def test_of_an_answer_in_dress_the_answer_alone_is_kept(
    response: str, answer_format: AnswerFormat | None, kept: str, reason: str
) -> None:
    found = _judge(FormatFilter(), response_row(response), answer_format)
    assert isinstance(found, Rewrite)
    assert (found.columns, found.reason) == ({"response": kept}, reason)


def test_the_labels_of_nli_need_no_answer_format() -> None:
    kind = task_type(TaskSpec(name="t", type=TaskKind.NLI))
    spelled, other = response_row("Contradicts."), response_row("maybe")
    rewrite = Rewrite({"response": "contradiction"}, RewriteReason.CANONICAL_LABEL)
    assert Format(FormatFilter()).row(spelled, kind) == rewrite
    dropped = Format(FormatFilter()).row(other, kind)
    assert isinstance(dropped, Drop)
    assert dropped.reason == "not_a_label"
    never = Refusal(RefusalFilter(patterns=("contradict", "maybe")))
    assert never.row(spelled, kind) is None  # a label is an answer, however it reads
    assert isinstance(never.row(other, kind), Drop)


@pytest.mark.parametrize(
    ("response", "rule", "answer_format"),
    [
        ("The customer wrote: I'm sorry, I cannot help", RefusalFilter(), None),
        ("I can help with that", RefusalFilter(), None),
        ("yes", FormatFilter(), YES_NO),
        ("12", FormatFilter(), RegexFormat(pattern=r"\d+")),
        (" anything\n", FormatFilter(), None),
        ("abc", LengthFilter(min_chars=3, max_chars=3), None),
        ("fine", AgreementFilter(min_agreement=1), None),  # one sample alone: no agreement
    ],
)
def test_what_is_in_order_is_kept_as_it_is(
    response: str, rule: ResponseFilter, answer_format: AnswerFormat | None
) -> None:
    assert _judge(rule, response_row(response), answer_format) is None


@pytest.mark.parametrize(
    "response",
    [
        "I'm sorry, but I can't",
        "Sorry, I cannot",
        "I won't help with that",
        "As an AI, I",
        "I\u2019m sorry, but I can\u2019t assist with that request.",
        "I'm unable to provide legal advice.",
        "I am sorry.",
        "Unfortunately, I cannot comply.",
        "I apologize, but I can't discuss that.",
    ],
)
def test_usual_refusals_are_found(response: str) -> None:
    assert isinstance(_judge(RefusalFilter(), response_row(response)), Drop)


@pytest.mark.parametrize(
    "response",
    [
        "I'm sorry to hear that. Let me check your order.",
        "I am sorry, I don't quite understand what you mean.",
        "Unfortunately, I can't find a flight at 5 pm.",
        "Sorry, the Hilton is full. Is there another hotel you like?",
        "I'm not able to see a booking under that name. Could you spell it?",
    ],
)
def test_what_an_agent_regrets_is_no_refusal(response: str) -> None:
    assert _judge(RefusalFilter(), response_row(response)) is None


@pytest.mark.parametrize(("agreement", "is_kept"), [(0.5, True), (0.49, False), (1.0, True)])
def test_agreement_is_kept_from_its_bound_upwards(agreement: float, is_kept: bool) -> None:
    assert (_judge(AgreementFilter(), response_row(agreement=agreement)) is None) == is_kept


@pytest.mark.parametrize(
    ("row", "reason", "detail"),
    [
        (response_row("", state="failed"), "teacher_failed", "could not answer this row"),
        (response_row("", state="refused"), "teacher_refused", "declines this prompt for good"),
        (response_row("{", state="malformed"), "malformed_response", "breaks the schema"),
        (response_row("{", state="malformed", agreement=0.0), "malformed_response", "breaks"),
        (response_row(agreement=0.0), "not_verified", "no response to this prompt has what"),
        # Raising max_new_tokens is what helps.
        (response_row("cut", state="truncated", agreement=0.0), "truncated", "cut after 2 tokens"),
        (response_row("", state="truncated"), "empty", "has no text, cut after 2 tokens"),
        (response_row(""), "empty", "the response has no text"),
        (response_row(" \n", agreement=0.0), "empty", "the response has no text"),
    ],
)
def test_a_row_without_a_usable_response_is_dropped(row: Row, reason: str, detail: str) -> None:
    found = Usable(None).row(row, task_type(task_with()))
    assert isinstance(found, Drop)
    assert found.reason == reason
    assert detail in found.detail


@pytest.mark.parametrize("state", ["ok", "truncated"])
@pytest.mark.parametrize("agreement", [None, 0.2])
def test_what_other_filters_judge_is_usable(state: str, agreement: float | None) -> None:
    row = response_row(state=state, agreement=agreement)
    assert Usable(None).row(row, task_type(task_with())) is None


def test_every_filter_of_a_recipe_has_its_class() -> None:
    kinds = [spec.model_fields["kind"].default for spec in get_args(get_args(ResponseFilter)[0])]
    assert sorted(RESPONSE_FILTERS) == sorted(kinds)
    kinds = [spec.model_fields["kind"].default for spec in get_args(get_args(PromptFilter)[0])]
    assert sorted(PROMPT_FILTERS) == sorted(kinds)


def test_no_recipe_can_leave_out_what_makes_a_row_usable() -> None:
    names = [name for name, _ in response_filters([LengthFilter()])]
    assert names == ["teacher", "length"]
