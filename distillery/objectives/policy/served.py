"""A served teacher that is asked in every step for its probabilities of what was written."""

from collections.abc import Sequence
from typing import Any

from distillery.data.chat import load_messages
from distillery.models.chat_format import IGNORED, TokenizedRow
from distillery.objectives.base import Batch, Collate, Columns, Inputs, Row
from distillery.objectives.one_vocabulary import refuse_other_tokens
from distillery.objectives.policy.batches import Tokens, tokens_of
from distillery.objectives.policy.samples import Samples
from distillery.objectives.soft.served import ServedScorer
from distillery.objectives.soft.stored import ScoringRow, within_vocabulary
from distillery.objectives.soft_targets import StoredTargets
from schemas.errors import TrainingError


class ServedTargets(StoredTargets):
    """Probabilities that a vLLM server is asked for, of responses that nobody knew before.

    Those of validation rows, which stay as they are, are asked for once.
    """

    def __init__(self, inputs: Inputs, samples: Samples) -> None:
        """Take what the training has opened; nothing is sent yet. ``samples`` keeps the count."""
        super().__init__(inputs)
        assert inputs.teacher_spec is not None and inputs.teacher_spec.is_served
        self._scorer = ServedScorer(inputs.teacher_spec, self._spec)
        self._samples = samples
        self._known: dict[str, Row] = {}
        self.context_length: int | None = None
        """Tokens that the server reads; known once it has read a row. None: it does not say."""

    def features(self) -> dict[str, Any]:
        """Return the columns of a row as the teacher reads it."""
        from datasets import List, Value

        whole, ints = Value("int32"), List(Value("int32"))
        return {"teacher_input_ids": ints, "teacher_labels": ints, "teacher_length": whole}

    def columns(self, split: str) -> Columns:
        """Return what has the server read a row."""
        return self._of_row

    def _of_row(self, row: Row, tokens: TokenizedRow) -> Row:
        name, messages = row["prompt_id"], load_messages(row["messages"])
        if (prompt := self._inputs.teacher_prompt) is not None:
            [messages] = prompt.around([messages])
        theirs = self._scorer.tokens(ScoringRow(name, row["split"], messages, row["response"]))
        if theirs is None:
            raise TrainingError(
                f"row {name!r} is longer than what the served teacher reads, so it cannot teach "
                "it. Lower training.max_length, or serve the teacher with a longer context."
            )
        if theirs.max_model_len is not None:
            self.context_length = theirs.max_model_len - 1  # it has to write one token more
        prompt_ids, response_ids = theirs.ids[: theirs.start], tokens.response_ids
        refuse_other_tokens(name, response_ids, theirs.ids[theirs.start :][: len(response_ids)])
        return {
            "teacher_input_ids": prompt_ids + response_ids,
            "teacher_labels": [IGNORED] * len(prompt_ids) + response_ids,
            "teacher_length": len(prompt_ids) + len(response_ids),
        }

    def collate(self, rows: Sequence[Row], tokens: Collate) -> Batch:
        """Return the teacher's tokens, and its probabilities where they have been asked for."""
        scored = super().collate(rows, tokens) if "topk_ids" in rows[0] else {}
        return tokens(rows, "teacher_") | scored

    def ask(self, names: Sequence[str], rows: Sequence[Tokens]) -> list[Row]:
        """Return the teacher's probabilities of ``rows``, as columns; ``names`` name them.

        Raises:
            TeacherError: The server does not answer, or refuses; the row is named.
        """
        self._samples.tokens_asked += sum(len(row.input_ids) for row in rows)
        asked = zip(names, rows, strict=True)
        found = []
        for shown in self._scorer.probabilities(
            (name, row.input_ids, len(row.prompt_ids)) for name, row in asked
        ):
            ids_NK, log_probs_NK, log_rest_N = within_vocabulary(*shown, self._inputs.vocab_size)
            columns = {"topk_ids": ids_NK.ravel(), "topk_log_probs": log_probs_NK.ravel()}
            found.append(columns | {"log_rest": log_rest_N})
        return found

    def ask_once(self, names: Sequence[str], batch: Batch) -> Batch:
        """Return the same of the rows of ``batch``, which are asked for only the first time."""
        rows = dict(zip(names, tokens_of(batch, "teacher_"), strict=True))
        new = [name for name in rows if name not in self._known]
        found = self.ask(new, [rows[name] for name in new])
        self._known |= dict(zip(new, found, strict=True))
        scored = super().collate([self._known[name] for name in names], lambda *_: {})
        return {name: column.to(batch["row"].device) for name, column in scored.items()}
