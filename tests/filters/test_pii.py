"""Personal data leaves the prompts, or the prompts leave; what was found is written nowhere."""

import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from schemas.errors import RecipeError
from schemas.prompt_filters import PiiFilter
from tests.fixtures_filters import prompt_row, prompt_rows, texts_of, through

pytest.importorskip("presidio_analyzer")

PRIVATE = [
    ("Mail jo.doe@example.org, please.", "Mail <EMAIL_ADDRESS>, please."),
    ("Charge 4111 1111 1111 1111 again", "Charge <CREDIT_CARD> again"),
    ("Pay to DE89370400440532013000.", "Pay to <IBAN_CODE>."),
    ("Call me on +1 212-555-5555 or 10.0.0.1", "Call me on <PHONE_NUMBER> or <IP_ADDRESS>"),
]
PUBLIC = ["Order 12345 of 2024 is late", "Is 50 % of 1,200 equal to 600?"]


def test_redacted_prompts_say_of_what_kind_the_data_was_and_are_counted(tmp_path: Path) -> None:
    rows = prompt_rows([*(text for text, _ in PRIVATE), *PUBLIC])
    kept, rejected, rewrites = through(tmp_path, PiiFilter(), rows)
    assert texts_of(kept) == [*(text for _, text in PRIVATE), *PUBLIC]
    assert rejected == []
    assert rewrites == {"redacted": 4}


def test_redacting_again_changes_nothing_more(tmp_path: Path) -> None:
    kept, _, _ = through(tmp_path, PiiFilter(), prompt_rows([text for text, _ in PRIVATE]))
    again, _, rewrites = through(tmp_path, PiiFilter(), kept, batch_rows=1)
    assert again == kept and not rewrites


def test_every_turn_is_redacted_and_roles_stay(tmp_path: Path) -> None:
    turns = [
        {"role": "system", "content": "The clerk is a@example.org."},
        {"role": "user", "content": "I am b@example.org."},
        {"role": "assistant", "content": "Hello."},
        {"role": "user", "content": "And c@example.org?"},
    ]
    [kept], _, _ = through(tmp_path, PiiFilter(), [prompt_row(messages=json.dumps(turns))])
    redacted = json.loads(kept["messages"])
    assert [turn["role"] for turn in redacted] == ["system", "user", "assistant", "user"]
    assert [turn["content"] for turn in redacted] == [
        "The clerk is <EMAIL_ADDRESS>.",
        "I am <EMAIL_ADDRESS>.",
        "Hello.",
        "And <EMAIL_ADDRESS>?",
    ]


def test_a_dropped_prompt_is_counted_by_kind_and_nothing_of_it_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level("DEBUG")
    text = "Mail jo@example.org and jim@example.org, or call +1 212-555-5555."
    rows = prompt_rows([text, PUBLIC[0]])
    kept, [rejected], _ = through(tmp_path, PiiFilter(action="drop"), rows)
    assert texts_of(kept) == [PUBLIC[0]]
    assert rejected["reason"] == "personal_data"
    assert rejected["detail"] == "2 EMAIL_ADDRESS, 1 PHONE_NUMBER"
    told = caplog.text + "".join(capsys.readouterr())
    assert "example.org" not in told and "212" not in told


def test_only_what_is_named_is_looked_for(tmp_path: Path) -> None:
    rows = prompt_rows([text for text, _ in PRIVATE])
    kept, _, _ = through(tmp_path, PiiFilter(entities=("IBAN_CODE",)), rows)
    assert texts_of(kept)[2] == "Pay to <IBAN_CODE>."
    assert texts_of(kept)[0] == PRIVATE[0][0]
    strict, _, _ = through(tmp_path, PiiFilter(min_score=0.9), rows)
    assert "+1 212-555-5555" in texts_of(strict)[3], "a telephone number scores 0.4"


def test_names_need_a_model_that_is_installed(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="entities has 'PERSON', which no pattern finds"):
        PiiFilter(entities=("PERSON",))
    spec = PiiFilter(entities=("PERSON",), spacy_model="xx_no_such_model")
    with pytest.raises(RecipeError, match="spacy_model 'xx_no_such_model' is not installed here"):
        through(tmp_path, spec, [])
