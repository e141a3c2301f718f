"""Rows out of a batch and back, as their responses are written anew in between."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from distillery.models.chat_format import IGNORED
from distillery.objectives.base import Batch

if TYPE_CHECKING:
    from torch import Tensor


class Tokens(NamedTuple):
    """One row of a batch, without filling."""

    input_ids: list[int]
    labels: list[int]

    @property
    def prompt_ids(self) -> list[int]:
        """Return what comes before the response."""
        start = next(at for at, label in enumerate(self.labels) if label != IGNORED)
        return self.input_ids[:start]

    def with_response(self, response_ids: list[int]) -> "Tokens":
        """Return the same prompt before another response.

        >>> Tokens([5, 6, 7], [IGNORED, 6, 7]).with_response([8])
        Tokens(input_ids=[5, 8], labels=[-100, 8])
        """
        prompt = self.prompt_ids
        return Tokens(prompt + response_ids, [IGNORED] * len(prompt) + response_ids)


def tokens_of(batch: Batch, whose: str = "") -> list[Tokens]:
    """Return the rows of a batch that a collator made, padded or packed.

    ``whose`` is the prefix of the columns, as collators write it.
    """
    ids_BT, labels_BT = batch[f"{whose}input_ids"], batch[f"{whose}labels"]
    return [
        Tokens(ids_T.tolist(), labels_T.tolist())
        for ids_T, labels_T in zip(
            _rows(ids_BT, batch, whose), _rows(labels_BT, batch, whose), strict=True
        )
    ]


def _rows(numbers_BT: "Tensor", batch: Batch, whose: str) -> "Iterator[Tensor]":
    if (positions_1T := batch.get(f"{whose}position_ids")) is not None:
        starts = (positions_1T[0] == 0).nonzero()[:, 0]
        yield from numbers_BT[0].tensor_split(starts[1:].cpu())
    else:
        for numbers_T, mask_T in zip(numbers_BT, batch[f"{whose}attention_mask"], strict=True):
            yield numbers_T[mask_T.bool()]
