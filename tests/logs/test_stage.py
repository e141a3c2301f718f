"""A log becomes prompts: redacted first, put aside with a reason, and each row once."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from distillery.data.loading import load_prompts
from distillery.data.validation import prompt_set, validate_prompts
from distillery.logs.stage import finish_logs, read_logs
from distillery.storage.store import Store
from schemas.data import ColumnMap, DataSpec, FileSource, LogSource
from schemas.errors import InputDataError
from schemas.execution import ExecutionSpec, StageName, StoreSpec
from schemas.logs import LogSample
from schemas.prompt_filters import PiiFilter
from schemas.refs import PromptSet
from schemas.task import TaskSpec

TASK = TaskSpec(name="chat", type="conversation")
AGAIN = ExecutionSpec(force=(StageName.READ_LOGS,))
INLINE = ExecutionSpec()


def line(content: Any, *, at: float | None = 1_000.0, answer: str = "fine", **more: Any) -> Any:
    message = {"role": "assistant", "content": answer}
    return {
        "request": {"model": "m", "messages": [{"role": "user", "content": content}]} | more,
        "response": {"choices": [{"message": message, "finish_reason": "stop"}]},
        **({} if at is None else {"timestamp": at}),
    }


class Case:
    """A log in a folder, and what becomes of it."""

    def __init__(self, folder: Path) -> None:
        self.path, self.store = folder / "log.jsonl", StoreSpec(root=str(folder / "store"))
        other = folder / "validation.jsonl"
        other.write_text(json.dumps({"messages": [{"role": "user", "content": "stop?"}]}))
        columns = ColumnMap(messages="messages")
        self.validation = FileSource(path=str(other), columns=columns)

    def append(self, *lines: Any) -> None:
        with self.path.open("a") as file:
            for each in lines:
                file.write((each if isinstance(each, str) else json.dumps(each)) + "\n")

    def load(
        self, *, split: str = "train", execution: ExecutionSpec = INLINE, **source: Any
    ) -> PromptSet:
        """Return what the rows of the log are told apart into."""
        settings: dict[str, Any] = {"path": str(self.path), "redact": None}
        splits = {split: LogSource(**settings | source), "validation": self.validation}
        data = DataSpec(**splits, max_invalid_fraction=1.0)
        read = read_logs(data, self.store, execution)
        loaded = load_prompts(TASK, read, self.store, execution).dataset("prompts")
        return prompt_set(validate_prompts(loaded, TASK, data, self.store, execution))

    def rows(self, rows: PromptSet) -> list[dict[str, Any]]:
        batches = Store(self.store.root).batches(rows.prompts)
        found = [row for batch in batches for row in batch.to_pylist()]
        return [row for row in found if row["split"] != "validation"]

    def asked(self, **source: Any) -> list[str]:
        turns = [json.loads(row["messages"])[-1] for row in self.rows(self.load(**source))]
        return [turn["content"] for turn in turns]

    def quarantined(self, rows: PromptSet) -> list[tuple[str, str]]:
        batches = Store(self.store.root).batches(rows.quarantined)
        return [(r["reason"], r["detail"]) for batch in batches for r in batch.to_pylist()]


@pytest.fixture
def case(tmp_path: Path) -> Case:
    return Case(tmp_path)


def test_requests_become_prompts_without_their_responses(case: Case) -> None:
    case.append(line("one"), line("two"))
    assert case.asked() == ["one", "two"]


def test_response_is_the_reference_where_one_is_needed(case: Case) -> None:
    case.append(line("one", answer="eins"))
    [row] = case.rows(case.load(split="test"))
    assert json.loads(row["references"]) == ["eins"]


def test_what_cannot_be_a_prompt_is_put_aside_with_its_reason(case: Case) -> None:
    image = [{"type": "image_url", "image_url": {"url": "data:secret"}}]
    case.append(line("one"), line(image), line("two", tools=[{"x": 1}]), "{not JSON", {"a": 1})
    rows = case.load()
    assert len(case.rows(rows)) == 1
    found = dict(enumerate(case.quarantined(rows)))
    assert "has a part 'image_url'" in found[0][1]
    assert "the row has 'tools'" in found[1][1]
    assert [reason for reason, _ in found.values()] == [
        *("malformed_messages", "malformed_messages", "unreadable_row", "malformed_messages")
    ]


@pytest.mark.slow
def test_personal_data_is_taken_out_before_anything_is_stored(case: Case, tmp_path: Path) -> None:
    pytest.importorskip("presidio_analyzer")
    parts = [{"type": "text", "text": "I am jo@example.org"}]
    case.append(line(parts, answer="Dear jo@example.org"), line("no name"))
    rows = case.load(redact=PiiFilter(), split="test")
    [first, _] = case.rows(rows)
    assert json.loads(first["messages"])[-1]["content"] == "I am <EMAIL_ADDRESS>"
    assert json.loads(first["references"]) == ["Dear <EMAIL_ADDRESS>"]
    stored = [file for file in (tmp_path / "store").rglob("*") if file.is_file()]
    assert stored and not any(b"jo@example" in file.read_bytes() for file in stored)


@pytest.mark.slow
def test_rows_with_personal_data_can_be_dropped(case: Case) -> None:
    pytest.importorskip("presidio_analyzer")
    case.append(line("I am jo@example.org"), line("no name"))
    assert case.asked(redact=PiiFilter(action="drop")) == ["no name"]


def test_redaction_is_what_a_recipe_gets_unless_it_says_otherwise() -> None:
    assert LogSource(path="a.jsonl").redact == PiiFilter()


def test_files_of_a_pattern_are_read_in_order_gzipped_or_not(case: Case, tmp_path: Path) -> None:
    (tmp_path / "app-2.jsonl").write_text(json.dumps(line("two")) + "\n")
    with gzip.open(tmp_path / "app-1.jsonl.gz", "wt") as file:
        file.write(json.dumps(line("one")) + "\n")
    assert case.asked(path=str(tmp_path / "app-*.jsonl*")) == ["one", "two"]
    with pytest.raises(InputDataError, match=r"no file matches .*Correct data.train.path"):
        case.load(path=str(tmp_path / "other-*.jsonl"))


def test_sample_is_taken_of_all_rows(case: Case) -> None:
    case.append(*(line(f"where is parcel {n}") for n in range(40)), line("lentil soup"))
    asked = case.asked(sample=LogSample(rows=6, num_clusters=3))
    assert len(asked) == 6 and "lentil soup" in asked


def test_run_reads_what_is_newer_than_the_last_run_that_finished(case: Case) -> None:
    case.append(line("one", at=1_000), line("two", at=2_000))
    first = case.load(watermark="nightly")
    assert len(case.rows(first)) == 2
    case.append(line("three", at=3_000))
    assert case.asked(watermark="nightly") == ["one", "two", "three"]  # the first was killed
    finish_logs(case.load(watermark="nightly"), case.store)
    case.append(line("four", at=4_000), line("late", at=1_500))
    assert case.asked(watermark="nightly") == ["four"]
    assert len(case.asked(watermark="other")) == 5


def test_killed_run_that_read_less_does_not_move_the_watermark_when_another_finishes(
    case: Case,
) -> None:
    case.append(line("one", at=1_000))
    first = case.load(watermark="nightly")
    case.append(line("two", at=2_000))
    case.load(watermark="nightly")  # killed
    finish_logs(first, case.store)
    assert case.asked(watermark="nightly") == ["two"]


def test_nothing_new_is_told_and_everything_can_be_read_again(case: Case) -> None:
    case.append(line("one", at=1_000))
    finish_logs(case.load(watermark="nightly"), case.store)
    with pytest.raises(InputDataError, match=r"no rows after 1970-01-01 00:16:40 UTC.*'nightly'"):
        case.load(watermark="nightly")
    assert case.asked(watermark="nightly", execution=AGAIN) == ["one"]


def test_row_whose_time_is_not_known_is_put_aside_and_not_lost(case: Case) -> None:
    case.append(line("one", at=1_000), line("two", at=None))
    rows = case.load(watermark="nightly")
    assert [reason for reason, _ in case.quarantined(rows)] == ["unreadable_row"]
    assert len(case.asked()) == 2


def test_clock_that_is_ahead_does_not_hide_what_comes_later(case: Case) -> None:
    case.append(line("one", at=1_000), line("from the future", at=9e9))
    finish_logs(case.load(watermark="nightly"), case.store)
    case.append(line("two", at=2_000))
    assert case.asked(watermark="nightly") == ["from the future", "two"]


def test_log_without_rows_is_refused(case: Case) -> None:
    case.append()
    with pytest.raises(InputDataError, match=r"has no rows. Name a file"):
        case.load()
