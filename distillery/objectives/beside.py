"""A teacher that runs beside the student: what it reads of a row, and what it makes of it."""

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from distillery.data.chat import load_messages
from distillery.models.chat_format import TokenizedRow
from distillery.objectives.base import Batch, Collate, Columns, Inputs, Objective, Row
from distillery.objectives.one_vocabulary import refuse_other_tokens
from schemas.errors import TrainingError

if TYPE_CHECKING:
    from distillery.models.output_layer import SplitModel
    from distillery.objectives.losses import DenseTargets


class Beside(Objective):
    """Reads the rows with the teacher too, in its own chat format and with its own prompt.

    The tokens of a response are the same in both, so that what the two models make of a response
    can be compared token by token.
    """

    whose = "teacher_"
    """Prefix of the columns of what the teacher reads."""

    def __init__(self, inputs: Inputs) -> None:
        """Take what the training has opened; the teacher is among it."""
        super().__init__(inputs)
        assert inputs.teacher is not None
        self._teacher = inputs.teacher

    @functools.cached_property
    def _split(self) -> "SplitModel":
        """The teacher before its output layer; made when it is on its device."""
        from distillery.models.output_layer import SplitModel

        return SplitModel(self._teacher.model)

    def features(self) -> dict[str, Any]:
        """Return the columns of what the teacher reads."""
        from datasets import List, Value

        whole, ints = Value("int32"), List(Value("int32"))
        return self.named(ints, ints, whole)

    def columns(self, split: str) -> Columns:
        """Return what makes these columns."""
        return self._of_row

    def _of_row(self, row: Row, tokens: TokenizedRow) -> Row:
        name, messages = row["prompt_id"], load_messages(row["messages"])
        if (prompt := self._inputs.teacher_prompt) is not None:
            [messages] = prompt.around([messages])
        theirs = self._teacher.chat_format.row(messages, row["response"])
        refuse_other_tokens(name, tokens.response_ids, theirs.response_ids)
        num_tokens, most = len(theirs.input_ids), self._teacher.context_length
        if most is not None and num_tokens > most:
            raise TrainingError(
                f"row {name!r} has {num_tokens} tokens, more than the {most} that the teacher "
                "reads, so it cannot teach it. Lower training.max_length."
            )
        return self.named(theirs.input_ids, theirs.labels, num_tokens)

    def named(self, input_ids: Any, labels: Any, length: Any) -> Row:
        """Return these by the names of their columns."""
        whose = self.whose
        return {f"{whose}input_ids": input_ids, f"{whose}labels": labels, f"{whose}length": length}

    def collate(self, rows: Sequence[Row], tokens: Collate) -> Batch:
        """Return what the teacher reads, with its prefix."""
        return tokens(rows, self.whose)

    def targets(self, batch: Batch) -> "DenseTargets":
        """Return all probabilities of the teacher at the batch's response tokens."""
        import torch

        from distillery.models.output_layer import response_states
        from distillery.objectives.losses import DenseTargets

        split = self._split  # before the forward pass, which then gives hidden states
        with torch.no_grad():
            labels_BT = batch[f"{self.whose}labels"]
            hidden_NE = response_states(self._teacher.model, batch, labels_BT, self.whose)
        return DenseTargets(hidden_NE, split.head)
