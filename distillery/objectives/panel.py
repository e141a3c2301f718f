"""Soft targets of several teachers that run beside the student."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from distillery.data.chat import load_messages
from distillery.models.chat_format import IGNORED, TokenizedRow
from distillery.objectives.base import Batch, Collate, Columns, Inputs, Loss, Row
from distillery.objectives.beside import Beside
from distillery.objectives.soft.panel import members, report, route
from distillery.objectives.soft_targets import SoftTargetObjective

if TYPE_CHECKING:
    from torch import Tensor

    from distillery.models.output_layer import SplitModel
    from distillery.objectives.losses import Targets


class _Reader(Beside, SoftTargetObjective):
    """One of the teachers: what it reads, and all its probabilities."""


class PanelBeside(SoftTargetObjective):
    """The average of the teachers' probabilities, or those of one teacher for each row.

    N = response tokens of a batch.
    """

    def __init__(self, inputs: Inputs) -> None:
        """Take what the training has opened; the teachers are among it."""
        super().__init__(inputs)
        assert inputs.teacher_spec is not None
        self._members = members(inputs.teacher_spec, self._spec)
        self._readers = [_Reader(inputs)]
        for at, (model, prompt) in enumerate(inputs.panel):
            reader = _Reader(inputs._replace(teacher=model, teacher_prompt=prompt))
            reader.whose = f"panel{at}_"
            self._readers.append(reader)

    def features(self) -> dict[str, Any]:
        """Return the columns of what each teacher reads."""
        return {name: kind for each in self._readers for name, kind in each.features().items()}

    def columns(self, split: str) -> Columns:
        """Return what makes them; empty for teachers that do not read a row."""
        of_readers = [each.columns(split) for each in self._readers]

        def of_row(row: Row, tokens: TokenizedRow) -> Row:
            chosen = None
            if self._spec.combine == "route":
                chosen = route(self._members, load_messages(row["messages"]))
            found: Row = {}
            for at, (reader, of_reader) in enumerate(zip(self._readers, of_readers, strict=True)):
                reads = chosen is None or at == chosen
                found |= of_reader(row, tokens) if reads else reader.named([], [], 0)
            return found

        return of_row

    def counts(self, splits: Mapping[str, Any]) -> dict[str, int]:
        """Return nothing; warn of a teacher that teaches few of the rows."""
        train = splits["train"]
        rows = {
            each.name: int((train[f"{reader.whose}length"][:] > 0).sum())
            for each, reader in zip(self._members, self._readers, strict=True)
        }
        self._taught = report(self._members, self._spec, rows)
        return {}

    def facts(self) -> dict[str, Any]:
        """Return each teacher's part."""
        return {"teachers": self._taught}

    def collate(self, rows: Sequence[Row], tokens: Collate) -> Batch:
        """Return what each teacher reads and, of routed rows, who reads each response token."""
        import torch

        batch: Batch = {}
        for reader in self._readers:
            theirs = [row for row in rows if len(row[f"{reader.whose}input_ids"])]
            if theirs:
                batch |= tokens(theirs, reader.whose)
        if self._spec.combine == "route":
            lengths = [[int(row[f"{each.whose}length"]) for row in rows] for each in self._readers]
            numbers = [int((torch.as_tensor(row["labels"]) != IGNORED).sum()) for row in rows]
            readers_B = torch.tensor(lengths).argmax(0)
            batch["reader_N"] = readers_B.repeat_interleave(torch.tensor(numbers))
        return batch

    def targets(self, batch: Batch) -> "Targets":
        """Return the average of all teachers' probabilities at the batch's response tokens."""
        from distillery.objectives.losses import MixedTargets

        return MixedTargets(
            tuple(each.targets(batch) for each in self._readers),
            tuple(each.weight for each in self._members),
        )

    def loss(self, model: Any, student: "SplitModel", batch: Batch) -> Loss:
        """Return the weighted sum of cross-entropy and divergence, and both."""
        if self._spec.combine == "average":
            return super().loss(model, student, batch)
        from distillery.models.output_layer import response_states

        labels_BT = batch["labels"]
        hidden_ND = response_states(model, batch, labels_BT)
        labels_N = labels_BT[:, 1:][labels_BT[:, 1:] != IGNORED]
        total: Tensor | None = None
        parts: dict[str, Tensor] = {}
        for at, reader in enumerate(self._readers):
            is_theirs_N = batch["reader_N"] == at
            if not bool(is_theirs_N.any()):
                continue
            losses = self._losses_at(
                hidden_ND[is_theirs_N],
                student,
                labels_N[is_theirs_N],
                soft=self._spec,
                targets=reader.targets(batch),
            )
            total = losses.loss if total is None else total + losses.loss
            for name, nats in (("hard_loss", losses.hard_nats), ("soft_loss", losses.soft_nats)):
                parts[name] = parts[name] + nats if name in parts else nats
        assert total is not None
        return Loss({"labels": total}, parts)
