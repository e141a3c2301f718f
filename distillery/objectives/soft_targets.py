"""Soft targets: the teacher's probabilities at every response token, stored or made beside."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from distillery.models.chat_format import ChatFormat, TokenizedRow
from distillery.models.loading import ModelFiles
from distillery.objectives.base import Batch, Collate, Columns, Inputs, Loss, Objective, Row
from distillery.objectives.beside import Beside
from distillery.objectives.one_vocabulary import (
    ANSWER,
    PROBE,
    no_tokenizer,
    other_tokens,
    refuse_other_tokens,
)
from distillery.objectives.soft.panel import members, panel_obstacle
from distillery.objectives.soft.stored import (
    ScoredRow,
    ScoringRow,
    at_temperature,
    check_meta,
    read_meta,
    read_targets,
    within_vocabulary,
)
from schemas.errors import RecipeError, TrainingError
from schemas.objectives import SoftTargets, SoftTeacher
from schemas.student import StudentSpec
from schemas.teacher import TeacherSpec
from schemas.training import TrainingSpec

if TYPE_CHECKING:
    from distillery.models.output_layer import SplitModel
    from distillery.objectives.losses import Targets


class SoftTargetObjective(Objective):
    """A divergence from the teacher's probabilities, beside the cross-entropy."""

    parts: ClassVar[dict[str, str]] = {"hard_loss": "labels", "soft_loss": "labels"}

    def __init__(self, inputs: Inputs) -> None:
        """Take what the training has opened."""
        super().__init__(inputs)
        assert isinstance(inputs.training.objective, SoftTargets)
        self._spec = inputs.training.objective

    @classmethod
    def open(cls, inputs: Inputs) -> Objective:
        """Return the objective with stored scores, or with a teacher beside the student."""
        if inputs.teacher is None:
            return StoredTargets(inputs)
        if not inputs.panel:
            return _Beside(inputs)
        from distillery.objectives.panel import PanelBeside

        return PanelBeside(inputs)

    @classmethod
    def needs_scores(cls, spec: SoftTargets) -> bool:
        """Return whether probabilities are stored."""
        return spec.source == "offline"

    @classmethod
    def needs_teacher(cls, spec: SoftTargets) -> bool:
        """Return whether probabilities are made in every step."""
        return spec.source == "online"

    @classmethod
    def panel(cls, spec: SoftTargets) -> tuple[SoftTeacher, ...]:
        """Return the panel where its teachers run beside the student."""
        return spec.panel if spec.source == "online" else ()

    @classmethod
    def obstacle(
        cls, training: TrainingSpec, teacher: TeacherSpec, student: StudentSpec
    ) -> str | None:
        """Return why probabilities cannot be had, or not be compared token by token.

        Only tokenizers are loaded, and a served teacher is asked for the probabilities of a few
        tokens.

        Raises:
            RecipeError: k is more than there are tokens.
            TeacherError: The served teacher cannot be reached.
        """
        spec = training.objective
        assert isinstance(spec, SoftTargets)
        if (obstacle := no_tokenizer(student)) is not None:
            return obstacle
        ours = ModelFiles.of(student).chat_format()
        if spec.k > (num_tokens := len(ours.tokenizer.get_vocab())):
            raise RecipeError(
                f"training.objective.k={spec.k} is more than the {num_tokens} tokens of the "
                "student's vocabulary. Lower it."
            )
        everyone = members(teacher, spec)
        if (obstacle := panel_obstacle(everyone, spec)) is not None:
            return obstacle
        for each in everyone:
            if (obstacle := _obstacle_of(each.teacher, spec, ours)) is not None:
                whose = f"training.objective.panel, {each.name!r}: " if each.weight < 1 else ""
                return f"{whose}{obstacle}"
        return None

    def loss(self, model: Any, student: "SplitModel", batch: Batch) -> Loss:
        """Return the weighted sum of cross-entropy and divergence, and both."""
        losses = self._response_losses(
            model, student, batch, soft=self._spec, targets=self.targets(batch)
        )
        return Loss(
            {"labels": losses.loss},
            {"hard_loss": losses.hard_nats, "soft_loss": losses.soft_nats},
        )

    def targets(self, batch: Batch) -> "Targets":
        """Return the teacher's probabilities at the batch's response tokens."""
        raise NotImplementedError


class StoredTargets(SoftTargetObjective):
    """Probabilities that `score_soft_targets` has stored.

    N = response tokens of a batch, K = tokens stored of a teacher's distribution.
    """

    def features(self) -> dict[str, Any]:
        """Return the columns of stored probabilities."""
        from datasets import List, Value

        return {
            "topk_ids": List(Value("int32")),
            "topk_log_probs": List(Value("float16")),
            "log_rest": List(Value("float32")),
        }

    def columns(self, split: str) -> Columns:
        """Return what finds the probabilities of a row."""
        store, ref = self._inputs.store, self._inputs.scores
        assert ref is not None
        meta = read_meta(store, ref)
        check_meta(meta, tokenizer=self._inputs.chat_format.tokenizer, spec=self._spec)
        scores = read_targets(store, ref, splits=(split,))

        def of_row(row: Row, tokens: TokenizedRow) -> Row:
            name = row["prompt_id"]
            # Both are in one order; rows that are too long to learn from are passed over.
            scored = next((each for each in scores if each.prompt_id == name), None)
            if scored is None:
                raise TrainingError(
                    f"row {name!r} has no soft targets: it was too long for the teacher, or they "
                    "were made from other rows. Lower training.max_length to what the teacher can "
                    "read, or rerun score_soft_targets (execution.force=[score_soft_targets])."
                )
            scored = up_to_the_end(scored, tokens.response_ids)
            ids_NK, log_probs_NK, log_rest_N = within_vocabulary(
                scored.ids_NK, scored.log_probs_NK, scored.log_rest_N, self._inputs.vocab_size
            )
            return {
                "topk_ids": ids_NK.ravel(),
                "topk_log_probs": log_probs_NK.ravel(),
                "log_rest": log_rest_N,
            }

        return of_row

    def collate(self, rows: Sequence[Row], tokens: Collate) -> Batch:
        """Return the probabilities of all response tokens of ``rows``, [N, K] and [N]."""
        import torch

        def joined(name: str, dtype: torch.dtype = torch.float32) -> torch.Tensor:
            return torch.cat([torch.as_tensor(row[name], dtype=dtype) for row in rows])

        return {
            "topk_ids": joined("topk_ids", torch.long).view(-1, self._spec.k),
            "topk_log_probs": joined("topk_log_probs").view(-1, self._spec.k),
            "log_rest": joined("log_rest"),
        }

    def targets(self, batch: Batch) -> "Targets":
        """Return them as the loss takes them."""
        from distillery.objectives.divergence import SparseTargets

        temperature = self._spec.distillation_temperature
        log_p = at_temperature(batch["topk_log_probs"], batch["log_rest"], temperature)
        return SparseTargets(batch["topk_ids"], *log_p)


class _Beside(Beside, SoftTargetObjective):
    """Probabilities of a teacher that runs beside the student."""


def _obstacle_of(teacher: TeacherSpec, spec: SoftTargets, ours: ChatFormat) -> str | None:
    """Return why one teacher cannot teach a student of the chat format ``ours``."""
    if teacher.is_served and spec.source == "online":
        return (
            "training.objective.source 'online' runs the teacher beside the student, which a "
            "server cannot do. Set it to offline, or teacher.kind to transformers."
        )
    if not teacher.is_served:
        return other_tokens(ModelFiles.of(teacher).chat_format(), ours)
    from distillery.objectives.soft.served import check_served, check_settings

    try:
        check_settings(teacher, spec)
        if not teacher.is_hosted:
            return other_tokens(ModelFiles.of(teacher).chat_format(), ours)
        response_ids = ours.row(PROBE, ANSWER).response_ids
        check_served(teacher, spec, ScoringRow("", "", PROBE, ANSWER), response_ids)
    except (RecipeError, TrainingError) as error:
        return str(error)
    return None


def up_to_the_end(scored: ScoredRow, response_ids: list[int]) -> ScoredRow:
    """Return the soft targets of ``response_ids``, which the student is to write.

    A server scores what its template writes after the end of a response too, a line break often.

    Raises:
        TrainingError: They were made of other tokens.
    """
    n = len(response_ids)
    refuse_other_tokens(scored.prompt_id, response_ids, list(scored.response_ids[:n]))
    return scored._replace(
        response_ids=response_ids,
        ids_NK=scored.ids_NK[:n],
        log_probs_NK=scored.log_probs_NK[:n],
        log_rest_N=scored.log_rest_N[:n],
    )
