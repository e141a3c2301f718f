"""The teacher's thoughts as a second task: the student answers at once and, asked, explains."""

import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from distillery.data.chat import Message, load_messages
from distillery.models.chat_format import IGNORED, TokenizedRow
from distillery.models.loading import ModelFiles
from distillery.objectives.base import Batch, Collate, Columns, Inputs, Loss, Objective, Row
from schemas.errors import DistilleryError, TrainingError
from schemas.objectives import Rationales
from schemas.student import StudentSpec
from schemas.teacher import TeacherSpec
from schemas.training import TrainingSpec

if TYPE_CHECKING:
    from distillery.models.output_layer import SplitModel

logger = logging.getLogger(__name__)


class RationalesObjective(Objective):
    """Cross-entropy on responses, and on the thoughts behind them as responses of their own.

    A row with thoughts becomes two sequences, of one forward pass: processes, which meet in each
    pass, make as many whatever rows they have.

    Source: Hsieh et al. 2023, arXiv:2305.02301, section 3.2.
    """

    parts: ClassVar[dict[str, str]] = {"hard_loss": "labels", "rationale_loss": "rationale_labels"}
    counted: ClassVar[tuple[str, ...]] = ("labels", "rationale_labels")

    def __init__(self, inputs: Inputs) -> None:
        """Take what the training has opened."""
        super().__init__(inputs)
        assert isinstance(inputs.training.objective, Rationales)
        self._spec = inputs.training.objective
        self._too_long: list[str] = []
        self._not_written: dict[str, str] = {}

    @classmethod
    def reads_thoughts(cls, spec: Rationales) -> bool:
        """Return True: they are the second task."""
        return True

    @classmethod
    def obstacle(
        cls, training: TrainingSpec, teacher: TeacherSpec, student: StudentSpec
    ) -> str | None:
        """Return why the teacher's responses come without thoughts; None where they may have some.

        Only a local teacher's template is read. What an endpoint's model does shows in its
        responses.
        """
        if teacher.is_hosted:
            if (switch := _switch_off(teacher.extra_body)) is None:
                return None
            return (
                f"teacher.extra_body switches thoughts off ({switch}), so there would be none to "
                "learn. Remove that."
            )
        why = ModelFiles.of(teacher).chat_format().thoughtless
        return why and (
            f"{why}, so there would be no thoughts to learn. Choose a teacher that thinks, or "
            "switch thoughts on in teacher.chat_template_kwargs (often enable_thinking: true)."
        )

    def features(self) -> dict[str, Any]:
        """Return the columns of the second sequence, empty where a row has none."""
        from datasets import List, Value

        whole, ints = Value("int32"), List(Value("int32"))
        return {"rationale_input_ids": ints, "rationale_labels": ints, "rationale_length": whole}

    def columns(self, split: str) -> Columns:
        """Return what makes the second sequence of a row."""
        return self._of_row

    def _of_row(self, row: Row, tokens: TokenizedRow) -> Row:
        asked = self._asked(row)
        ids = asked.input_ids if asked else []
        labels = asked.labels if asked else []
        return {
            "rationale_input_ids": ids,
            "rationale_labels": labels,
            "rationale_length": len(ids),
        }

    def _asked(self, row: Row) -> TokenizedRow | None:
        """Return the row that asks for the thoughts; None where there are none to learn."""
        thoughts = (row["reasoning"] or "").strip()
        if not thoughts:
            return None
        messages = asking(load_messages(row["messages"]), self._spec.instruction)
        try:
            tokens = self._inputs.chat_format.row(messages, thoughts)
        except DistilleryError as error:
            self._not_written[row["prompt_id"]] = str(error)
            return None
        if len(tokens.input_ids) > self._inputs.training.max_length:
            self._too_long.append(row["prompt_id"])
            return None
        return tokens

    def counts(self, splits: Mapping[str, Any]) -> dict[str, int]:
        """Return how many rows have thoughts to learn, and how many of these are left out.

        Raises:
            TrainingError: Fewer training rows than `objective.min_fraction` have some.
        """
        by_split = {split: _num_rationales(rows) for split, rows in splits.items()}
        self._warn()
        learnt, num_rows = by_split["train"], len(splits["train"])
        if learnt < self._spec.min_fraction * num_rows:
            raise TrainingError(
                f"{learnt} of {num_rows} training rows have thoughts of the teacher to learn from, "
                f"fewer than training.objective.min_fraction={self._spec.min_fraction:g} asks for "
                f"({len(self._too_long)} are longer than training.max_length="
                f"{self._inputs.training.max_length} tokens). Choose a teacher that shows its "
                "thoughts, or set training.objective.kind to hard_targets."
            )
        return {
            "rationales": sum(by_split.values()),
            "rationales_too_long": len(self._too_long),
            "rationales_not_written": len(self._not_written),
        }

    def _warn(self) -> None:
        if self._too_long:
            logger.warning(
                "the thoughts of %d rows are longer than training.max_length=%d tokens and left "
                "out, first %s",
                len(self._too_long), self._inputs.training.max_length, self._too_long[0],
            )  # fmt: skip
        if self._not_written:
            first, why = next(iter(self._not_written.items()))
            logger.warning(
                "the thoughts of %d rows cannot be learnt and are left out, first %s: %s",
                len(self._not_written), first, why,
            )  # fmt: skip

    def collate(self, rows: Sequence[Row], tokens: Collate) -> Batch:
        """Return a batch in which the second sequences follow the first ones.

        Each label stands in one of `labels` and `rationale_labels`, and is IGNORED in the other.
        """
        second = [row for row in rows if len(row["rationale_input_ids"])]
        ids = [
            *(row["input_ids"] for row in rows),
            *(row["rationale_input_ids"] for row in second),
        ]
        labels = [
            *(row["labels"] for row in rows),
            *(row["rationale_labels"] for row in second),
        ]
        parts = []
        for is_second in (False, True):
            kept = [
                each if (at >= len(rows)) == is_second else [IGNORED] * len(each)
                for at, each in enumerate(labels)
            ]
            pairs = zip(ids, kept, strict=True)
            parts.append(tokens([{"input_ids": i, "labels": each} for i, each in pairs], ""))
        return parts[0] | {"rationale_labels": parts[1]["labels"]}

    def loss(self, model: Any, student: "SplitModel", batch: Batch) -> Loss:
        """Return the cross-entropy of responses, and the weighted one of thoughts, nats."""
        import torch

        from distillery.models.output_layer import response_states

        rationale_BT = batch["rationale_labels"]
        labels_BT = torch.maximum(batch["labels"], rationale_BT)  # IGNORED is below all tokens
        hidden_ND = response_states(model, batch, labels_BT)
        is_token_BT = labels_BT[:, 1:] != IGNORED
        labels_N = labels_BT[:, 1:][is_token_BT]
        is_thought_N = rationale_BT[:, 1:][is_token_BT] != IGNORED
        answers = self._losses_at(hidden_ND[~is_thought_N], student, labels_N[~is_thought_N])
        sums = {"labels": answers.loss}
        nats = torch.zeros_like(answers.hard_nats)
        if bool(is_thought_N.any()):
            found = self._losses_at(hidden_ND[is_thought_N], student, labels_N[is_thought_N])
            sums["rationale_labels"] = self._spec.rationale_weight * found.loss
            nats = found.hard_nats
        return Loss(sums, {"hard_loss": answers.hard_nats, "rationale_loss": nats})


def asking(messages: Sequence[Message], instruction: str) -> list[Message]:
    r"""Return ``messages`` with ``instruction`` behind the text of the last user turn.

    >>> asking([{"role": "user", "content": "Where is it?"}], "Explain.")
    [{'role': 'user', 'content': 'Where is it?\n\nExplain.'}]
    """
    at = max(n for n, message in enumerate(messages) if message["role"] == "user")
    asked = Message(role="user", content=f"{messages[at]['content']}\n\n{instruction}")
    return [*messages[:at], asked, *messages[at + 1 :]]


def _num_rationales(rows: Any) -> int:
    return int((rows["rationale_length"][:] > 0).sum()) if len(rows) else 0


_OFF: dict[str, tuple[Any, ...]] = {
    "enable_thinking": (False,),
    "thinking": (False, "disabled"),
    "think": (False,),
    "type": ("disabled",),
    "enabled": (False,),
    "exclude": (True,),
    "effort": ("none",),
    "reasoning_effort": ("none",),
    "include_reasoning": (False,),
}
"""How fields of a request switch thoughts off or hide them: vLLM and SGLang, DeepSeek and GLM,
Ollama, OpenRouter, OpenAI."""
_HOLDERS = ("chat_template_kwargs", "thinking", "reasoning")


def _switch_off(body: Mapping[str, Any]) -> str | None:
    """Return the field of a request that leaves its response without thoughts, if there is one.

    >>> _switch_off({"chat_template_kwargs": {"enable_thinking": False}})
    'chat_template_kwargs.enable_thinking: False'
    >>> _switch_off({"reasoning_effort": "high"}) is None
    True
    """
    for name, value in body.items():
        if isinstance(value, Mapping):
            if name in _HOLDERS and (inner := _switch_off(value)):
                return f"{name}.{inner}"
        elif any(
            value is off or (value == off and isinstance(off, str)) for off in _OFF.get(name, ())
        ):
            return f"{name}: {value!r}"
    return None
