"""Sorted probabilities of a teacher with another tokenizer, where tokens begin at one byte."""

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from distillery.data.chat import Message
from distillery.models.byte_offsets import TextBytes, common_positions
from distillery.models.chat_format import ChatFormat, TokenizedRow
from distillery.models.loading import ModelFiles
from distillery.models.vocabulary import tokenizer_hash, vocabulary_size
from distillery.objectives.base import Batch, Collate, Columns, Inputs, Loss, Objective, Row
from distillery.objectives.soft.stored import (
    STORED_ROUNDING,
    ScoringRow,
    at_temperature,
    check_meta,
    finder,
    read_meta,
)
from schemas.errors import RecipeError, RowError, TrainingError
from schemas.objectives import CrossTokenizer
from schemas.student import FromScratchStudent, StudentSpec
from schemas.teacher import TeacherSpec
from schemas.training import TrainingSpec

if TYPE_CHECKING:
    from distillery.models.output_layer import SplitModel

logger = logging.getLogger("distillery.run")

_PROBE = ScoringRow(
    "",
    "",
    [Message(role="user", content="What is six times seven?")],
    "Forty-two: a naïve answer.",
)


class CrossTokenizerObjective(Objective):
    """The distance of sorted probabilities, beside the cross-entropy.

    Both are sums over the same tokens, divided by all response tokens: how often the student's
    tokenizer cuts between two bytes that the teacher keeps together changes neither, so the weights
    mean the same for any two tokenizers. Tokens that are not compared learn from labels alone.

    N = response tokens of a batch, M = those that are compared, K = ranks stored.
    """

    @classmethod
    def needs_scores(cls, spec: CrossTokenizer) -> bool:
        """Return that probabilities are stored."""
        return True

    parts: ClassVar[dict[str, str]] = {
        "hard_loss": "labels",
        "soft_loss": "labels",
        "compared_fraction": "labels",
    }

    def __init__(self, inputs: Inputs) -> None:
        """Take what the training has opened."""
        super().__init__(inputs)
        assert isinstance(inputs.training.objective, CrossTokenizer)
        self._spec = inputs.training.objective

    @classmethod
    def obstacle(
        cls, training: TrainingSpec, teacher: TeacherSpec, student: StudentSpec
    ) -> str | None:
        """Return why probabilities cannot be had, or tokens not be aligned.

        Only tokenizers are loaded, and a served teacher is asked for the probabilities of a few
        tokens. A student may get a new tokenizer: this is what the objective is for.

        Raises:
            RecipeError: k is more than there are tokens, or a tokenizer is named for a local
                teacher.
            TeacherError: The served teacher cannot be reached.
        """
        spec = training.objective
        assert isinstance(spec, CrossTokenizer)
        try:
            theirs = _teachers_tokenizer(spec, teacher)
            if isinstance(student, FromScratchStudent) and student.tokenizer is None:
                _check_k(spec.k, student.vocab_size, "student's new")
                return None
            ours = ModelFiles.of(student).chat_format()
            _check_k(spec.k, vocabulary_size(ours.tokenizer), "student's")
            _check_written(ours, "student")
        except (RecipeError, TrainingError) as error:
            return str(error)
        if tokenizer_hash(theirs) == tokenizer_hash(ours.tokenizer):
            logger.info(
                "teacher and student share a vocabulary, of which cross_tokenizer compares sorted "
                "probabilities alone; soft_targets would say which token is meant"
            )
        return None

    def features(self) -> dict[str, Any]:
        """Return what is stored of the M tokens that are compared, and which of the N they are."""
        from datasets import List, Value

        return {
            "compared": List(Value("int32")),
            "sorted_log_probs": List(Value("float16")),
            "log_rest": List(Value("float32")),
        }

    def columns(self, split: str) -> Columns:
        """Return what aligns the tokens of a row with those of the teacher."""
        store, ref = self._inputs.store, self._inputs.scores
        assert ref is not None
        check_meta(read_meta(store, ref), spec=self._spec)
        if self._spec.k > self._inputs.vocab_size:
            raise TrainingError(
                f"training.objective.k={self._spec.k} is more than the {self._inputs.vocab_size} "
                "tokens of the student's vocabulary. Lower it."
            )
        find, text = finder(store, ref, split), TextBytes(self._inputs.chat_format.tokenizer)

        def of_row(row: Row, tokens: TokenizedRow) -> Row:
            scored = find(row["prompt_id"])
            if scored is None:
                raise RowError(
                    "the teacher has not scored it: it is too long for the teacher, or its chat "
                    "format cannot write it, as the log of score_soft_targets says"
                )
            starts = text.starts(tokens.response_ids, row["response"])
            pairs = common_positions(starts, scored.text_starts)
            if not pairs:
                raise RowError(
                    f"no token of student and teacher begins at the same byte of the response "
                    f"{row['response']!r:.80}"
                )
            ours, theirs = zip(*pairs, strict=True)
            log_probs_MK = scored.log_probs_NK[list(theirs)]
            return {
                "compared": ours,
                "sorted_log_probs": -np.sort(-log_probs_MK, axis=1).ravel(),
                "log_rest": scored.log_rest_N[list(theirs)],
            }

        return of_row

    def collate(self, rows: Sequence[Row], tokens: Collate) -> Batch:
        """Return the same of a batch, whose response tokens are numbered from 0."""
        import torch

        firsts = np.cumsum([0, *(int(row["response_length"]) for row in rows)]).tolist()

        def joined(name: str) -> torch.Tensor:
            return torch.cat([torch.as_tensor(row[name], dtype=torch.float32) for row in rows])

        return {
            "compared": torch.cat(
                [
                    first + torch.as_tensor(row["compared"], dtype=torch.long)
                    for first, row in zip(firsts, rows, strict=False)
                ]
            ),
            "sorted_log_probs": joined("sorted_log_probs").view(-1, self._spec.k),
            "log_rest": joined("log_rest"),
        }

    def loss(self, model: Any, student: "SplitModel", batch: Batch) -> Loss:
        """Return the weighted sum of cross-entropy and distance, and both."""
        import torch

        from distillery.objectives.sorted_probabilities import SortedTargets

        temperature = self._spec.distillation_temperature
        log_p = at_temperature(batch["sorted_log_probs"], batch["log_rest"], temperature)
        rounding = STORED_ROUNDING / min(1.0, temperature)  # what was stored is divided by it
        targets = SortedTargets(batch["compared"], *log_p, log_rounding=rounding)
        losses = self._response_losses(model, student, batch, soft=self._spec, targets=targets)
        parts = {"hard_loss": losses.hard_nats, "soft_loss": losses.soft_nats}
        num_compared = torch.tensor(len(batch["compared"]))
        return Loss({"labels": losses.loss}, parts | {"compared_fraction": num_compared})


def _teachers_tokenizer(spec: CrossTokenizer, teacher: TeacherSpec) -> Any:
    """Return the teacher's tokenizer once it is known to say which bytes it writes.

    Raises:
        RecipeError, TrainingError: It does not; or a server cannot show what is to be stored.
        TeacherError: The server cannot be reached.
    """
    from distillery.objectives.soft.served import check_served, check_settings, served_tokenizer

    if teacher.is_served:
        check_settings(teacher, spec)
    if not teacher.is_hosted:
        if spec.tokenizer is not None:
            raise RecipeError(
                f"training.objective.tokenizer names {spec.tokenizer!r}, but teacher.kind is "
                f"{teacher.kind!r}, whose tokenizer is its own. Leave it out."
            )
        chat_format = ModelFiles.of(teacher).chat_format()
        _check_k(spec.k, vocabulary_size(chat_format.tokenizer), "teacher's")
        _check_written(chat_format, "teacher")
        return chat_format.tokenizer
    theirs = served_tokenizer(spec, teacher)
    _check_k(spec.k, vocabulary_size(theirs), "teacher's")
    check_served(teacher, spec, _PROBE)
    return theirs


def _check_k(k: int, num_tokens: int, whose: str) -> None:
    if k > num_tokens:
        raise RecipeError(
            f"training.objective.k={k} is more than the {num_tokens} tokens of the {whose} "
            "vocabulary. Lower it."
        )


def _check_written(chat_format: ChatFormat, whose: str) -> None:
    ids = chat_format.row(_PROBE.messages, _PROBE.response).response_ids
    if not TextBytes(chat_format.tokenizer).says(ids, _PROBE.response):
        raise RecipeError(
            f"the tokens of the {whose}'s tokenizer do not give back the bytes of "
            f"{_PROBE.response!r}, so they cannot be aligned. Choose another model."
        )
