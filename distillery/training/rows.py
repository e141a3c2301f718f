"""Rows to learn from, as tokens: memory-mapped, each with what its objective adds."""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from distillery.data.chat import load_messages
from distillery.models.chat_format import ChatFormat, refuse_many_not_written
from distillery.objectives.base import Objective
from distillery.storage.store import Store
from distillery.training.job import TrainingJob
from schemas.errors import DistilleryError, RowError, TrainingError

logger = logging.getLogger(__name__)

SPLITS = ("train", "validation")
_ROWS_IN_MEMORY = 50


class TokenRows:
    """The rows of both splits as data sets in a scratch folder, and which were left out.

    Columns: row (position among the rows of the split), prompt_id, input_ids, labels (IGNORED at
    prompt tokens), length, response_length, and those of the objective.
    """

    def __init__(
        self, job: TrainingJob, chat_format: ChatFormat, objective: Objective, folder: Path
    ) -> None:
        """Tokenize the rows of ``job`` into ``folder``, unless another process has done so.

        Args:
            job: Its rows and `max_length`.
            chat_format: The student's.
            objective: Adds columns of its own.
            folder: Scratch of all processes.

        Raises:
            TrainingError: More than a few rows cannot be written in the student's chat format, the
                objective cannot learn from one, or no row is left.
        """
        self._job, self._chat_format, self._objective = job, chat_format, objective
        self._store = Store(job.store.root)
        self.too_long: list[str] = []
        self.not_written: dict[str, str] = {}
        self._num_thoughtful = 0
        self.splits: dict[str, Any] = {split: self._written(split, folder) for split in SPLITS}
        self._check()
        self._counted = objective.counts(self.splits)

    @property
    def counts(self) -> dict[str, int]:
        """Return the rows of each split and those left out, for the manifest."""
        rows = {f"{split}_rows": len(self.splits[split]) for split in SPLITS}
        rows["left_out_too_long"] = len(self.too_long)
        rows["left_out_not_written"] = len(self.not_written)
        if self._job.training.learn_reasoning:
            rows["rows_with_thoughts"] = self._num_thoughtful
        return rows | self._counted

    def _check(self) -> None:
        most = self._job.training.max_length
        if self.too_long:
            logger.warning(
                "%d rows are longer than training.max_length=%d tokens and left out, first %s",
                len(self.too_long), most, self.too_long[0],
            )  # fmt: skip
        if self.not_written:
            refuse_many_not_written(self.not_written, self._job.rows.num_rows)
            first, why = next(iter(self.not_written.items()))
            logger.warning(
                "%d rows cannot be learnt and are left out, first %s: %s",
                len(self.not_written), first, why,
            )  # fmt: skip
        if not len(self.splits["train"]):
            raise TrainingError(
                f"no training row is left: {len(self.too_long)} of {self._job.rows.num_rows} rows "
                f"are longer than training.max_length={most} tokens. Raise it, or add rows."
            )

    def _written(self, split: str, folder: Path) -> Any:
        """Return the rows of ``split`` as a memory-mapped data set below ``folder``."""
        import datasets

        path, features = folder / f"{split}.arrow", self._features()
        if not path.exists():
            # With stored probabilities rows are large: few of them wait in memory.
            with datasets.arrow_writer.ArrowWriter(
                path=str(path), features=features, writer_batch_size=_ROWS_IN_MEMORY
            ) as writer:
                for row in self._tokenized(split):
                    writer.write(row)
                writer.finalize()
        return datasets.Dataset.from_file(str(path)).with_format("torch")

    def _features(self) -> Any:
        from datasets import Features, List, Value

        ints, whole = List(Value("int32")), Value("int32")
        names = {"row": whole, "prompt_id": Value("string"), "input_ids": ints, "labels": ints}
        names |= {"length": whole, "response_length": whole}
        return Features(names | self._objective.features())

    def _tokenized(self, split: str) -> Iterator[dict[str, Any]]:
        columns, number, had_thoughts = self._objective.columns(split), 0, False
        for batch in self._store.batches(self._job.rows, splits=(split,)):
            for row in batch.to_pylist():
                reasoning = row["reasoning"] if self._job.training.learn_reasoning else None
                had_thoughts |= reasoning is not None
                try:
                    tokens = self._chat_format.row(
                        load_messages(row["messages"]), row["response"], reasoning
                    )
                except DistilleryError as error:
                    self.not_written[row["prompt_id"]] = str(error)
                    continue
                if len(tokens.input_ids) > self._job.training.max_length:
                    self.too_long.append(row["prompt_id"])
                    continue
                try:
                    added = columns(row, tokens)
                except RowError as error:
                    self.not_written[row["prompt_id"]] = str(error)
                    continue
                self._num_thoughtful += reasoning is not None
                yield {
                    "row": number,
                    "prompt_id": row["prompt_id"],
                    "input_ids": tokens.input_ids,
                    "labels": tokens.labels,
                    "length": len(tokens.input_ids),
                    "response_length": tokens.num_response_tokens,
                } | added
                number += 1
        if self._job.training.learn_reasoning and split == "train" and not had_thoughts:
            raise TrainingError(
                "training.learn_reasoning is true, but no row of the split 'train' has thoughts "
                "of the teacher, which has none or hides them. Set it to false, or choose a "
                "teacher that shows its thoughts."
            )


def lengths(rows: Any, whose: str = "") -> list[int]:
    """Return the number of tokens of each of ``rows``.

    ``whose`` is "" for the student's, "teacher_" for those of a teacher beside it, "rationale_"
    for its second sequences.
    """
    if not len(rows):
        return []
    numbers: list[int] = rows[f"{whose}length"][:].tolist()
    return numbers


def whole_lengths(rows: Any) -> list[int]:
    """Return the tokens of each of ``rows``: of all its sequences, of teachers beside it too."""
    prefixes = [
        name.removesuffix("length")
        for name in rows.column_names
        if name.endswith("length") and name != "response_length"
    ]
    return [sum(each) for each in zip(*(lengths(rows, whose) for whose in prefixes), strict=True)]
