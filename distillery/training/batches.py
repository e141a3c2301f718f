"""In which order rows are learnt from, and how a few of them become one batch of tensors."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers.trainer_pt_utils import LengthGroupedSampler

from distillery.models.chat_format import IGNORED
from distillery.objectives.base import Batch, Objective, Row
from distillery.storage.fingerprint import sha256
from schemas.training import TrainingSpec


def num_steps(num_rows: int, training: TrainingSpec) -> int:
    """Return the most optimizer steps that training on ``num_rows`` rows takes.

    >>> num_steps(100, TrainingSpec(batch_size=16, epochs=3))
    19
    """
    steps = math.ceil(training.epochs * num_rows / training.batch_size)
    return max(1, training.min_steps, steps)


def micro_batch(training: TrainingSpec, num_processes: int) -> int:
    """Return how many rows a forward pass holds: the largest divisor of a process's share.

    >>> micro_batch(TrainingSpec(batch_size=48, micro_batch_size=32), num_processes=1)
    24
    """
    share = training.batch_size // num_processes
    sizes = range(1, min(share, training.micro_batch_size) + 1)
    return max(size for size in sizes if share % size == 0)


class RowOrder(torch.utils.data.Sampler[int]):
    """The rows of a whole training, one epoch after the other, as one sequence.

    It follows from the seed alone: however the rows of a step are spread over micro-batches and
    processes, and wherever a killed training resumes, a step learns from the same rows.
    Every step is full: the last of an epoch takes rows from the next. Rows of similar length are
    near each other, so that there is little padding.
    """

    def __init__(self, lengths: list[int], *, batch_size: int, steps: int, seed: int) -> None:
        """Order rows of ``lengths`` tokens for ``steps`` steps of ``batch_size`` rows each."""
        self._lengths, self._batch_size, self._steps, self._seed = lengths, batch_size, steps, seed

    def __len__(self) -> int:
        """Return the number of rows over all steps."""
        return self._batch_size * self._steps

    def __iter__(self) -> Iterator[int]:
        """Yield the positions of the rows."""
        left = len(self)
        for epoch in range(math.ceil(left / len(self._lengths))):
            generator = torch.Generator()
            generator.manual_seed(int(sha256([self._seed, epoch])[:15], 16))
            order = LengthGroupedSampler(
                self._batch_size, lengths=self._lengths, generator=generator
            )
            for row in order:
                if left == 0:
                    return
                yield row
                left -= 1


class PadRight:
    """Collates tokenized rows into one batch, padded on the right.

    B = rows, T = longest row.
    """

    def __init__(self, pad_token_id: int, objective: Objective | None = None) -> None:
        """Fill input ids up with ``pad_token_id``; ``objective`` adds to a batch, if given."""
        self._pad_token_id, self._objective = pad_token_id, objective

    def __call__(self, rows: Sequence[Row]) -> Batch:
        """Return input_ids, attention_mask and labels, each [B, T]; row [B]; the objective's."""
        batch = self._tokens(rows, "")
        batch["row"] = torch.tensor([int(row["row"]) for row in rows])
        return batch | (self._objective.collate(rows, self._tokens) if self._objective else {})

    def _tokens(self, rows: Sequence[Row], whose: str) -> Batch:
        ids = [_tensor(row[f"{whose}input_ids"]) for row in rows]
        labels = [_tensor(row[f"{whose}labels"]) for row in rows]
        lengths_B1 = torch.tensor([[len(row)] for row in ids])
        ids_BT = pad_sequence(ids, batch_first=True, padding_value=self._pad_token_id)
        return {
            f"{whose}input_ids": ids_BT,
            # By length, not by id: the padding token may be one that rows hold too.
            f"{whose}attention_mask": (torch.arange(ids_BT.shape[1]) < lengths_B1).long(),
            f"{whose}labels": pad_sequence(labels, batch_first=True, padding_value=IGNORED),
        }


class Pack(PadRight):
    """Collates tokenized rows into one sequence without filling.

    Positions start again at every row, by which transformers keeps attention within a row.
    """

    def _tokens(self, rows: Sequence[Row], whose: str) -> Batch:
        ids = [_tensor(row[f"{whose}input_ids"]) for row in rows]
        return {
            f"{whose}input_ids": torch.cat(ids)[None],
            f"{whose}position_ids": torch.cat([torch.arange(len(row)) for row in ids])[None],
            f"{whose}labels": torch.cat([_tensor(row[f"{whose}labels"]) for row in rows])[None],
        }


def collator(training: TrainingSpec, pad_token_id: int, objective: Objective) -> PadRight:
    """Return what makes a batch of rows, as `training.batching` says."""
    kind: Callable[..., PadRight] = Pack if training.batching == "packed" else PadRight
    return kind(pad_token_id, objective)


def _tensor(values: Any) -> torch.Tensor:
    return torch.as_tensor(values, dtype=torch.long)
