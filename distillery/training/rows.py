"""Rows to learn from, as tokens: memory-mapped, each with the teacher's probabilities if wanted."""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from distillery.data.chat import load_messages
from distillery.models.chat_format import ChatFormat, TokenizedRow
from distillery.models.local import LocalModel
from distillery.models.vocabulary import vocabulary_size
from distillery.objectives.soft.targets import ScoredRow, check_meta, read_meta, read_targets
from distillery.storage.store import Store
from distillery.training.job import TrainingJob
from schemas.errors import TrainingError

logger = logging.getLogger(__name__)

SPLITS = ("train", "validation")
_ROWS_IN_MEMORY = 50


class TokenRows:
    """The rows of both splits as data sets in a scratch folder, and how many did not fit.

    Columns: row (position among the rows of the split), prompt_id, input_ids, labels (IGNORED at
    prompt tokens), length, response_length. With soft targets from the store those of
    ``ScoredRow``, flattened; with a teacher beside the student its own tokens, teacher_input_ids
    and teacher_labels.
    """

    def __init__(
        self, job: TrainingJob, chat_format: ChatFormat, teacher: LocalModel | None, folder: Path
    ) -> None:
        """Tokenize the rows of ``job`` into ``folder``, unless another process has done so.

        Args:
            job: Its rows, soft targets and `max_length`.
            chat_format: The student's.
            teacher: Who runs beside the student.
            folder: Scratch of all processes.

        Raises:
            TrainingError: A row cannot be rendered, its soft targets are missing or were made of
                other tokens, or no row is left.
        """
        self._job, self._chat_format, self._teacher = job, chat_format, teacher
        self._store = Store(job.store.root)
        self._vocab_size = vocabulary_size(chat_format.tokenizer)
        self._has_targets = job.soft_targets is not None
        if job.soft_targets is not None:
            meta, spec = read_meta(self._store, job.soft_targets), job.training.soft_targets
            check_meta(meta, tokenizer=chat_format.tokenizer, spec=spec)
            self._temperature_at = meta.temperatures.index(spec.distillation_temperature)
        self.too_long: list[str] = []
        self.splits: dict[str, Any] = {split: self._written(split, folder) for split in SPLITS}
        self._check()

    @property
    def counts(self) -> dict[str, int]:
        """Return the rows of each split and those left out, for the manifest."""
        rows = {f"{split}_rows": len(self.splits[split]) for split in SPLITS}
        return rows | {"left_out_too_long": len(self.too_long)}

    def _check(self) -> None:
        most = self._job.training.max_length
        if not len(self.splits["train"]) and not self.too_long:
            raise TrainingError(
                f"none of {self._job.rows.num_rows} rows is a training row, so there is nothing to "
                "learn from. Add training rows."
            )
        if self.too_long:
            logger.warning(
                "%d rows are longer than training.max_length=%d tokens and left out, first %s",
                len(self.too_long), most, self.too_long[0],
            )  # fmt: skip
        if not len(self.splits["train"]):
            raise TrainingError(
                f"no training row is left: {len(self.too_long)} of {self._job.rows.num_rows} rows "
                f"are longer than training.max_length={most} tokens. Raise it."
            )

    def _written(self, split: str, folder: Path) -> Any:
        """Return the rows of ``split`` as a memory-mapped data set below ``folder``."""
        import datasets

        path, features = folder / f"{split}.arrow", self._features()
        if not path.exists():
            # Rows with soft targets are large: few of them wait in memory.
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
        if self._has_targets:
            names |= {"topk_ids": ints, "topk_log_probs": List(Value("float16"))}
            names |= {"log_rest": List(Value("float32")), "counts": ints}
        if self._teacher is not None:
            names |= {"teacher_input_ids": ints, "teacher_labels": ints}
        return Features(names)

    def _tokenized(self, split: str) -> Iterator[dict[str, Any]]:
        targets = self._targets(split)
        number = 0
        for batch in self._store.batches(self._job.rows, splits=(split,)):
            for row in batch.to_pylist():
                name, messages = row["prompt_id"], load_messages(row["messages"])
                scored = targets.take(name) if targets else None
                tokens = self._chat_format.row(messages, row["response"])
                if len(tokens.input_ids) > self._job.training.max_length:
                    self.too_long.append(name)
                    continue
                written = {
                    "row": number,
                    "prompt_id": name,
                    "input_ids": tokens.input_ids,
                    "labels": tokens.labels,
                    "length": len(tokens.input_ids),
                    "response_length": tokens.num_response_tokens,
                }
                if targets:
                    written |= self._target_columns(name, tokens, scored)
                if self._teacher is not None:
                    theirs = self._teacher.chat_format.row(messages, row["response"])
                    _refuse_other_tokens(name, tokens.response_ids, theirs.response_ids)
                    _refuse_beyond_context(name, len(theirs.input_ids), self._teacher)
                    written["teacher_input_ids"] = theirs.input_ids
                    written["teacher_labels"] = theirs.labels
                yield written
                number += 1

    def _target_columns(
        self, prompt_id: str, tokens: TokenizedRow, scored: ScoredRow | None
    ) -> dict[str, Any]:
        """Return the soft targets of one row, flattened."""
        if scored is None:
            raise TrainingError(
                f"row {prompt_id!r} has no soft targets: it was too long for the teacher, or they "
                "were made from other rows. Lower training.max_length to what the teacher can "
                "read, or do score_soft_targets again (execution.force=[score_soft_targets])."
            )
        _refuse_other_tokens(prompt_id, tokens.response_ids, list(scored.response_ids))
        counts_NK = scored.counts_NK
        log_rest_N = scored.log_rest_NT[:, self._temperature_at]
        ids_NK, log_probs_NK, log_rest_N = within_vocabulary(
            scored.ids_NK, scored.log_probs_NK, log_rest_N, self._vocab_size
        )
        return {
            "topk_ids": ids_NK.ravel(),
            "topk_log_probs": log_probs_NK.ravel(),
            "log_rest": log_rest_N,
            "counts": [] if counts_NK is None else counts_NK.ravel().astype("int32"),
        }

    def _targets(self, split: str) -> "_InOrder | None":
        if self._job.soft_targets is None:
            return None
        return _InOrder(read_targets(self._store, self._job.soft_targets, splits=(split,)))


class _InOrder:
    """Soft targets in the order of the rows; a row may lack them."""

    def __init__(self, scored: Iterator[ScoredRow]) -> None:
        self._scored = scored
        self._next = next(scored, None)

    def take(self, prompt_id: str) -> ScoredRow | None:
        """Return the targets of ``prompt_id`` if they come next, otherwise None."""
        if self._next is None or self._next.prompt_id != prompt_id:
            return None
        taken, self._next = self._next, next(self._scored, None)
        return taken


def within_vocabulary(
    ids_NK: Any, log_probs_NK: Any, log_rest_N: Any, vocab_size: int
) -> tuple[Any, Any, Any]:
    """Return soft targets at T = 1 without tokens beyond the vocabulary.

    A server knows the model's padded vocabulary, not the tokenizer's. The mass of padding counts
    for nobody, so what is left is scaled up. In place of such a token stands one that is not among
    the others, with an equal share of the rest, as nothing else is known of it.

    >>> import numpy as np
    >>> shown = np.log(np.float32([[0.4, 0.2]]))  # of tokens 0 and 9; 0.4 are on other tokens
    >>> ids, log_probs, rest = within_vocabulary(np.array([[0, 9]]), shown, shown[:, 0], 5)
    >>> ids.tolist(), np.exp(log_probs).round(3).tolist(), np.exp(rest).round(3).tolist()
    ([[0, 1]], [[0.5, 0.125]], [0.375])
    """
    import numpy as np

    beyond_NK = ids_NK >= vocab_size
    if not beyond_NK.any():
        return ids_NK, log_probs_NK, log_rest_N
    ids_NK, log_probs_NK, log_rest_N = ids_NK.copy(), log_probs_NK.copy(), log_rest_N.copy()
    for n in np.flatnonzero(beyond_NK.any(axis=1)):
        at = np.flatnonzero(beyond_NK[n])
        num_others = vocab_size - (ids_NK.shape[1] - len(at))
        scale = -np.log1p(-np.exp(log_probs_NK[n, at].astype(np.float64)).sum())
        log_probs_NK[n] += scale
        log_probs_NK[n, at] = log_rest_N[n] + scale - np.log(num_others)
        log_rest_N[n] += scale + np.log1p(-len(at) / num_others)
        ids_NK[n, at] = np.setdiff1d(np.arange(vocab_size), ids_NK[n])[: len(at)]
    return ids_NK, log_probs_NK, log_rest_N


def _refuse_beyond_context(prompt_id: str, num_tokens: int, teacher: LocalModel) -> None:
    """Raise when a row is longer than what the teacher beside the student can read."""
    if teacher.context_length is not None and num_tokens > teacher.context_length:
        raise TrainingError(
            f"row {prompt_id!r} has {num_tokens} tokens, more than the {teacher.context_length} "
            "that the teacher reads, so it cannot teach it. Lower training.max_length."
        )


def lengths(rows: Any) -> list[int]:
    """Return the number of tokens of each of ``rows``."""
    if not len(rows):
        return []
    numbers: list[int] = rows["length"][:].tolist()
    return numbers


def _refuse_other_tokens(prompt_id: str, ours: list[int], theirs: list[int]) -> None:
    """Raise when the teacher reads other tokens in a response than the student is to write."""
    if ours == theirs:
        return
    at = next((n for n, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), -1)
    raise TrainingError(
        f"row {prompt_id!r}: the student's tokenizer and chat template make {len(ours)} tokens of "
        f"the response, the teacher's {len(theirs)}"
        + (f", other ones from token {at}" if at >= 0 else "")
        + ". Soft targets cannot be compared token by token. Give the student the teacher's "
        "tokenizer and chat template, or set training.objective to hard_targets."
    )
