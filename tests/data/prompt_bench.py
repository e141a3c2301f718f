"""Loading and validation over rows that a test writes to files."""

import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from distillery.data.chat import (
    load_messages,
)
from distillery.data.loading import load_prompts
from distillery.data.validation import validate_prompts
from distillery.storage.stage import StageResult
from distillery.storage.store import Store
from schemas.data import ColumnMap, DataSpec, FileSource
from schemas.execution import ExecutionSpec, StoreSpec
from schemas.task import LabelSet, TaskSpec

INLINE = ExecutionSpec()


QA = TaskSpec(name="t", type="classification")


LABELS = TaskSpec(name="t", type="classification", answer_format=LabelSet(labels=("yes", "no")))


Row = dict[str, Any]


class Bench:
    """Runs both stages over rows that are written to files."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.store = StoreSpec(root=str(folder / "store"))

    def source(self, name: str, rows: list[Row], **columns: str | None) -> FileSource:
        path = self.folder / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return FileSource(path=str(path), columns=ColumnMap(**columns))

    def data(
        self,
        train: list[Row] | FileSource,
        test: list[Row] | FileSource | None = None,
        *,
        columns: Mapping[str, str] = MappingProxyType({}),
        **named: Any,
    ) -> DataSpec:
        """Return a data section whose invalid rows are all let through."""
        if isinstance(train, list):
            train = self.source("train", train, **columns)
        if not isinstance(test, FileSource):
            rows = [{"text": "held out", "answer": "yes"}] if test is None else test
            test = self.source("test", rows, reference="answer")
        if "validation" not in named:
            named["validation"] = self.source("validation", [{"text": "for early stopping"}])
        return DataSpec(train=train, test=test, **{"max_invalid_fraction": 1.0} | named)

    def run(self, data: DataSpec, task: TaskSpec = QA) -> StageResult:
        loaded = load_prompts(task, data, self.store, INLINE).dataset("prompts")
        return validate_prompts(loaded, task, data, self.store, INLINE)

    def rows(self, result: StageResult, name: str = "prompts") -> list[Row]:
        batches = Store(self.store.root).batches(result.dataset(name))
        return [row for batch in batches for row in batch.to_pylist()]

    def train_prompts(self, data: DataSpec) -> list[str]:
        rows = [row for row in self.rows(self.run(data)) if row["split"] == "train"]
        return [load_messages(row["messages"])[-1]["content"] for row in rows]

    def reasons(self, data: DataSpec, task: TaskSpec = QA) -> dict[tuple[str, int], str]:
        """Return the reasons by split and row, after a check of all counts."""
        result = self.run(data, task)
        aside = self.rows(result, "quarantined")
        prompts = self.rows(result)
        num_loaded = sum(load_prompts(task, data, self.store, INLINE).manifest.counts.values())
        assert len(prompts) + len(aside) == num_loaded
        assert sum(result.drop_reasons.values()) == len(aside)
        return {(row["split"], row["source_row"]): row["reason"] for row in aside}


TURNS = [
    {"role": "user", "content": "hi"},
    {"role": "assistant", "content": "hello"},
    {"role": "user", "content": "and {now}?"},
]

TEXTS = [f"prompt {n}" for n in range(400)]
