"""What teacher and student compute within, layer by layer, beside the teacher's probabilities.

Shapes: N = response tokens, D and E = width of student and teacher.
"""

from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from distillery.models.layers import attention_obstacle, decoder_layers, noted
from distillery.models.loading import ModelFiles
from distillery.models.pruning import kept_layers
from distillery.models.students import layers_beforehand
from distillery.objectives.base import Batch, Inputs, Loss
from distillery.objectives.beside import Beside
from distillery.objectives.one_vocabulary import no_tokenizer, other_tokens
from distillery.storage.fingerprint import model_identity
from schemas.errors import RecipeError
from schemas.objectives import Attention, HiddenStates, LayerPair, SoftTargets
from schemas.student import PrunedStudent, StudentSpec
from schemas.teacher import TeacherSpec
from schemas.training import TrainingSpec

if TYPE_CHECKING:
    from torch import Tensor

    from distillery.models.output_layer import SplitModel
    from distillery.objectives.losses import DenseTargets

Spec = HiddenStates | Attention


class InnerObjective(Beside):
    """A distance between pairs of layers, the divergence from the teacher, and cross-entropy.

    The teacher's forward pass comes first, without gradients, and all that it made is gone once the
    loss of the micro-batch has been computed.
    """

    part: ClassVar[str]
    """The distance, in the log."""

    def __init__(self, inputs: Inputs) -> None:
        """Take what the training has opened."""
        super().__init__(inputs)
        spec = inputs.training.objective
        assert isinstance(spec, HiddenStates | Attention)
        self._settings = spec
        self._soft = None
        if spec.soft_weight > 0:
            shared = set(type(spec).model_fields) & set(SoftTargets.model_fields) - {"kind"}
            self._soft = SoftTargets(**spec.model_dump(include=shared))

    @classmethod
    def needs_teacher(cls, spec: Spec) -> bool:
        """Return True: layers are compared in every step."""
        return True

    @classmethod
    def obstacle(
        cls, training: TrainingSpec, teacher: TeacherSpec, student: StudentSpec
    ) -> str | None:
        """Return why layers cannot be compared. Only configurations and tokenizers are read.

        Raises:
            RecipeError: Layers are named that are not there, or in an order that crosses.
        """
        if teacher.is_served:
            return (
                "an endpoint does not show what its model computes within. Set teacher.kind to "
                "transformers."
            )
        if (obstacle := no_tokenizer(student)) is not None:
            return obstacle
        theirs, ours = ModelFiles.of(teacher).chat_format(), ModelFiles.of(student).chat_format()
        if (obstacle := other_tokens(theirs, ours)) is not None:
            return obstacle
        spec = training.objective
        assert isinstance(spec, HiddenStates | Attention)
        of_student, student_model = layers_beforehand(student)
        of_teacher, teacher_model = layers_beforehand(teacher)
        pairs = paired_layers(spec, student, teacher, len(of_student), len(of_teacher))
        for model in (student_model, teacher_model):
            wanted = cls.attention(spec)
            if wanted and (obstacle := attention_obstacle(model, wanted)) is not None:
                return obstacle
        return cls.layers_obstacle(
            training,
            ([of_student[pair.student] for pair in pairs], text_config(student_model)),
            ([of_teacher[pair.teacher] for pair in pairs], text_config(teacher_model)),
        )

    @classmethod
    @abstractmethod
    def layers_obstacle(
        cls, training: TrainingSpec, student: tuple[list[Any], Any], teacher: tuple[list[Any], Any]
    ) -> str | None:
        """Return why pairs of layers cannot be compared.

        Args:
            training: With the objective's spec.
            student: The student's layers of the pairs, without weights, and its configuration.
            teacher: The teacher's.
        """

    def attach(self, model: Any) -> None:
        """Find the layers of both models."""
        ours, theirs = decoder_layers(model)[1], decoder_layers(self._teacher.model)[1]
        who = self._inputs.student_spec, self._inputs.teacher_spec
        pairs = paired_layers(self._settings, *who, len(ours), len(theirs))
        self._ours = [self.watched(ours[pair.student]) for pair in pairs]
        self._theirs = [self.watched(theirs[pair.teacher]) for pair in pairs]

    def watched(self, layer: Any) -> Any:
        """Return the module of a layer whose output is compared."""
        return layer

    def loss(self, model: Any, student: "SplitModel", batch: Batch) -> Loss:
        """Return the weighted sum of cross-entropy, divergence and distance, and all three."""
        spec = self._settings
        _ = self._split  # made by a forward pass of its own
        with noted(self._theirs, lambda output: self.of_teacher(output, batch)) as theirs:
            targets: DenseTargets | None = self.targets(batch)
        if self._soft is None:
            targets = None
        with noted(self._ours, self.output) as ours:
            losses = self._response_losses(model, student, batch, soft=self._soft, targets=targets)
        distance = self.distance(ours, theirs, batch) / len(ours)
        total = losses.loss if self._soft is not None else spec.hard_weight * losses.loss
        parts = {"hard_loss": losses.hard_nats, "soft_loss": losses.soft_nats}
        return Loss(
            {"labels": total + self.weight * distance},
            parts | {self.part: distance.detach()},
        )

    @property
    @abstractmethod
    def weight(self) -> float:
        """Return the weight of the distance."""

    def output(self, output: Any) -> "Tensor":
        """Return what is compared of a watched module's output; nothing is computed."""
        tensor: Tensor = output[0] if isinstance(output, tuple) else output
        return tensor

    @abstractmethod
    def of_teacher(self, output: Any, batch: Batch) -> Any:
        """Return what is kept of the output of the teacher's module until the student's is there.

        Taken while the teacher runs, so that no more is kept.
        """

    @abstractmethod
    def distance(self, ours: Sequence[Any], theirs: Sequence[Any], batch: Batch) -> "Tensor":
        """Return the distance, summed over pairs and response tokens."""


def text_config(model: Any) -> Any:
    """Return the configuration of a model's decoder."""
    return model.config.get_text_config(decoder=True)


def paired_layers(
    spec: Spec,
    student: StudentSpec | None,
    teacher: TeacherSpec | None,
    num_student: int,
    num_teacher: int,
) -> tuple[LayerPair, ...]:
    """Return which layer learns from which.

    By default layer i of n learns from that at the same depth, the last from the last; a layer of a
    student that was pruned from its teacher, from the one that it was.

    Args:
        spec: Of the objective; its pairs, where it names some.
        student: Who learns.
        teacher: Beside it.
        num_student: Its layers.
        num_teacher: The teacher's layers.

    Raises:
        RecipeError: A layer is not there, pairs cross or repeat a layer, or the student has more
            layers than the teacher and no pairs are named.
    """
    if spec.layers:
        _check_pairs(spec.layers, num_student, num_teacher)
        return spec.layers
    of_teacher = [_at_depth(place, num_student, num_teacher) for place in range(num_student)]
    if isinstance(student, PrunedStudent) and is_made_of(student, teacher):
        of_teacher = list(kept_layers(student, num_teacher))
    elif num_student > num_teacher:
        raise RecipeError(
            f"the student has {num_student} layers, the teacher {num_teacher}, so not every layer "
            "has one to learn from. Name pairs in training.objective.layers, such as "
            f"[{{student: {num_student - 1}, teacher: {num_teacher - 1}}}]."
        )
    return tuple(LayerPair(student=place, teacher=layer) for place, layer in enumerate(of_teacher))


def _at_depth(place: int, num_student: int, num_teacher: int) -> int:
    """Return the teacher's layer after which the same share of the model is behind.

    >>> [_at_depth(place, 6, 18) for place in range(6)]
    [2, 5, 8, 11, 14, 17]
    """
    return (2 * (place + 1) * num_teacher + num_student) // (2 * num_student) - 1


def is_made_of(student: PrunedStudent, teacher: TeacherSpec | None) -> bool:
    """Return whether the student was pruned from its local teacher, however its folder is spelt."""
    if teacher is None or teacher.is_served:
        return False
    both = (student.model, student.revision), (teacher.model, teacher.revision)
    if both[0] == both[1] or not all(Path(model).expanduser().is_dir() for model, _ in both):
        return both[0] == both[1]
    ours, theirs = (model_identity(*each, role="model") for each in both)
    return ours == theirs


def _check_pairs(pairs: Sequence[LayerPair], num_student: int, num_teacher: int) -> None:
    for number, (whose, num_layers) in enumerate(
        (("student", num_student), ("teacher", num_teacher))
    ):
        layers = [(pair.student, pair.teacher)[number] for pair in pairs]
        if (last := max(layers)) >= num_layers:
            raise RecipeError(
                f"training.objective.layers names layer {last} of the {whose}, which has "
                f"{num_layers} layers, numbered from 0. Name layers up to {num_layers - 1}."
            )
        if layers != sorted(set(layers)):
            raise RecipeError(
                f"training.objective.layers names the layers {layers} of the {whose}, which cross "
                "or repeat: a layer would learn from one that comes before that of its "
                "predecessor. Name pairs in rising order on both sides."
            )
