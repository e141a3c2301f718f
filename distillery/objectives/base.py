"""The door of objectives: what each says of itself before, and does during, a training.

An objective is one file beside this one, one branch of ``schemas.objectives.Objective`` and one
entry of :data:`distillery.objectives.choice.OBJECTIVES`.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from distillery.models.chat_format import ChatFormat, TokenizedRow
from distillery.teacher.prompt import TeacherPrompt
from schemas.objectives import SoftTeacher
from schemas.refs import DatasetRef
from schemas.student import StudentSpec
from schemas.teacher import TeacherSpec
from schemas.training import TrainingSpec

if TYPE_CHECKING:
    from torch import Tensor

    from distillery.models.local import LocalModel
    from distillery.models.output_layer import SplitModel
    from distillery.objectives.losses import Losses
    from distillery.storage.store import Store

Row = dict[str, Any]
Batch = dict[str, "Tensor"]
Columns = Callable[[Row, TokenizedRow], Row]
Collate = Callable[[Sequence[Row], str], Batch]


class Inputs(NamedTuple):
    """What one process of a training has opened."""

    training: TrainingSpec
    store: "Store"
    chat_format: ChatFormat
    """The student's."""

    vocab_size: int
    """Tokens that student and teacher share; logits beyond are padding of either model."""

    scores: DatasetRef | None
    """What `score_soft_targets` stored, where the objective needs it."""

    teacher: "LocalModel | None"
    """Who runs beside the student, where the objective needs it and it is local; on the CPU at
    first."""

    teacher_spec: TeacherSpec | None = None
    """Who that is; a served teacher is asked by the objective itself."""

    student_spec: StudentSpec | None = None
    """Who learns: of a pruned one, which layers were kept."""

    teacher_prompt: TeacherPrompt | None = None
    """What stands around the rows that it reads. None: nothing."""

    panel: "tuple[tuple[LocalModel, TeacherPrompt | None], ...]" = ()
    """Those that run beside the student besides that teacher, and what stands around the rows that
    they read; in the order of `Objective.panel`."""


class Loss(NamedTuple):
    """The loss of one batch, as sums over tokens; the trainer divides them."""

    sums: dict[str, "Tensor"]
    """What is differentiated, by the names of `Objective.counted`. Each is divided by how many
    tokens of that name the whole step has, over micro-batches and processes."""

    parts: dict[str, "Tensor"]
    """Detached sums, by the names of `Objective.parts`."""


class Objective(ABC):
    """What a student learns from, in one process of a training."""

    parts: ClassVar[dict[str, str]] = {}
    """Parts of the loss, as they stand in the log beside the loss itself, and which of `counted`
    each is a sum over."""

    counted: ClassVar[tuple[str, ...]] = ("labels",)
    """Columns of a batch whose tokens (those that are not IGNORED) sums are divided by."""

    def __init__(self, inputs: Inputs) -> None:
        """Take what the training has opened."""
        self._inputs = inputs

    @classmethod
    def open(cls, inputs: Inputs) -> "Objective":
        """Return the objective for one process of a training."""
        return cls(inputs)

    @classmethod
    def needs_scores(cls, spec: Any) -> bool:
        """Return whether the stage `score_soft_targets` has to come first."""
        return False

    @classmethod
    def needs_teacher(cls, spec: Any) -> bool:
        """Return whether the teacher runs beside the student."""
        return False

    @classmethod
    def attention(cls, spec: Any) -> str | None:
        """Return the implementation of attention that both models need; None: any."""
        return None

    @classmethod
    def panel(cls, spec: Any) -> tuple[SoftTeacher, ...]:
        """Return the teachers that run beside the student besides the recipe's."""
        return ()

    @classmethod
    def reads_thoughts(cls, spec: Any) -> bool:
        """Return whether the teacher's thoughts are learnt, so that a new tokenizer knows them."""
        return False

    @classmethod
    def follows_hard_targets(cls, spec: Any) -> bool:
        """Return whether the student learns hard targets first, in a training of its own."""
        return False

    @classmethod
    def obstacle(
        cls, training: TrainingSpec, teacher: TeacherSpec, student: StudentSpec
    ) -> str | None:
        """Return why it is not possible, and what would help; None when it is. Nothing is spent.

        ``training`` has the objective's own spec as its objective.

        Raises:
            RecipeError: A setting is wrong whatever the objective.
            TeacherError: The served teacher cannot be reached, so nobody knows.
        """
        return None

    def attach(self, model: Any) -> None:
        """Take the student, before it is wrapped for several processes; again when opened anew.

        What is learnt with the student and thrown away, such as a projector, is made here and
        named by :meth:`extra`.
        """
        return

    def extra(self) -> Any:
        """Return the torch module that is learnt with the student and thrown away; None: none.

        The trainer has the optimizer learn it, keeps it in checkpoints, and averages its gradients
        over processes.
        """
        return None

    def held_bytes(
        self, training: TrainingSpec, num_rows: int, num_tokens: int, num_response: int
    ) -> int:
        """Return what it holds of a micro-batch until the backward pass, besides what models do.

        Args:
            training: Settings that may save memory, which may be others than its own.
            num_rows: Rows of a forward pass.
            num_tokens: Of the longest row.
            num_response: Response tokens of the longest response.
        """
        return 0

    def features(self) -> dict[str, Any]:
        """Return the columns that it adds to a row, as features of ``datasets``."""
        return {}

    def columns(self, split: str) -> Columns:
        """Return what makes these columns; called with the rows of ``split`` in order.

        It takes a row of the training set and its tokens. A RowError leaves the row out, as far as
        there are few; another TrainingError, which names the row, ends the training.

        Raises:
            TrainingError: The inputs do not go with the objective's settings.
        """
        return lambda row, tokens: {}

    def counts(self, splits: Mapping[str, Any]) -> dict[str, int]:
        """Return what the manifest counts of the tokenized rows, besides their number.

        Called in every process, with the rows of each split. Of what was left out only the process
        that tokenized them knows.

        Raises:
            TrainingError: There is too little to learn from.
        """
        return {}

    def collate(self, rows: Sequence[Row], tokens: Collate) -> Batch:
        """Return what it adds to a batch; ``tokens`` collates columns with a prefix as tokens."""
        return {}

    def rewrite(
        self, model: Any, student: "SplitModel", batches: list[Batch], step: int
    ) -> list[Batch]:
        """Return the micro-batches of one step to learn from, before their tokens are counted.

        Called once per step, numbered from 0, with what the collator made; not in validation. What
        it returns depends on weights, rows and step alone: a resumed training does the same.
        """
        return batches

    def save_state(self, folder: Path) -> None:
        """Write what a resumed training needs besides weights into a checkpoint's ``folder``.

        Called in every process; the first writes.
        """
        return

    def load_state(self, folder: Path) -> None:
        """Read what :meth:`save_state` wrote."""
        return

    def keep(self, folder: Path) -> None:
        """Write what people may want to look at into ``folder``; in the first process, at the end.

        It becomes the output `kept` of the stage when there is any.
        """
        return

    def facts(self) -> dict[str, Any]:
        """Return what the manifest should say; of the first process, at the end."""
        return {}

    @abstractmethod
    def loss(self, model: Any, student: "SplitModel", batch: Batch) -> Loss:
        """Return the loss of ``batch``.

        Args:
            model: The student, wrapped or not, which gives hidden states in place of logits.
            student: Its split. Its head is read after the forward pass: weights that are divided
                between processes are whole only then.
            batch: What the collator made.
        """

    def _response_losses(
        self, model: Any, student: "SplitModel", batch: Batch, whose: str = "", **soft: Any
    ) -> "Losses":
        """Return the sums at the batch's response tokens; ``soft`` is for soft targets.

        ``whose`` is the prefix of the columns that are read, as ``Collate`` writes them.
        """
        from distillery.models.output_layer import response_states

        labels_BT = batch[f"{whose}labels"]
        hidden_ND = response_states(model, batch, labels_BT, whose)
        return self._losses_at(hidden_ND, student, labels_BT[:, 1:][labels_BT[:, 1:] >= 0], **soft)

    def _losses_at(
        self, hidden_ND: "Tensor", student: "SplitModel", labels_N: "Tensor", **soft: Any
    ) -> "Losses":
        """Return the sums at response tokens whose hidden states are known."""
        import torch

        from distillery.objectives.losses import response_losses

        return response_losses(
            # Several processes hand out float32 whatever precision the model computed in.
            hidden_ND.to(getattr(torch, self._inputs.training.dtype)),
            student.head,  # read after the forward pass
            labels_N,
            vocab_size=self._inputs.vocab_size,
            normaliser=1,
            **soft,
        )
