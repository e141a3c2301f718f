"""The states between the teacher's layers beside its probabilities.

Shapes: B = rows, T = tokens, N = response tokens, D and E = width of student and teacher.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from distillery.objectives.base import Batch
from distillery.objectives.inner import InnerObjective, text_config
from schemas.objectives import HiddenStates
from schemas.training import TrainingSpec

if TYPE_CHECKING:
    from torch import Tensor


class HiddenStatesObjective(InnerObjective):
    """The distance of what pairs of layers pass on, where a response token is predicted.

    That is the residual stream after a layer; after the last one, before the final norm, whose
    scale is part of the output layer and not of what the layers have found.

    Sources: DistilBERT, arXiv:1910.01108, section 3, for the cosine; TinyBERT, arXiv:1909.10351,
    equation 8, for squared differences and a learnt map where the widths differ.
    """

    parts: ClassVar[dict[str, str]] = {
        "hard_loss": "labels",
        "soft_loss": "labels",
        "hidden_loss": "labels",
    }
    part = "hidden_loss"

    @property
    def _spec(self) -> HiddenStates:
        assert isinstance(self._settings, HiddenStates)
        return self._settings

    @classmethod
    def layers_obstacle(
        cls, training: TrainingSpec, student: tuple[list[Any], Any], teacher: tuple[list[Any], Any]
    ) -> str | None:
        """Return that widths differ and no projector is learnt."""
        spec = training.objective
        assert isinstance(spec, HiddenStates)
        ours, theirs = student[1].hidden_size, teacher[1].hidden_size
        if ours == theirs or spec.projector:
            return None
        return (
            f"the student's states have {ours} numbers and the teacher's {theirs}, so they cannot "
            "be compared as they are. Set training.objective.projector to true."
        )

    def attach(self, model: Any) -> None:
        """Find the layers; make a projector for each pair, if there are any.

        Between equal widths it starts as what changes nothing, otherwise as a random rotation.
        """
        import torch

        super().attach(model)
        ours, theirs = self._widths = (
            int(text_config(model).hidden_size),
            int(text_config(self._teacher.model).hidden_size),
        )
        self._projectors: Any = None
        if not self._spec.projector:
            return
        self._projectors = torch.nn.ModuleList(
            torch.nn.Linear(ours, theirs, bias=False, dtype=torch.float32) for _ in self._ours
        )
        for projector in self._projectors:
            start = torch.nn.init.eye_ if ours == theirs else torch.nn.init.orthogonal_
            start(projector.weight)

    def extra(self) -> Any:
        """Return the projectors."""
        return self._projectors

    def held_bytes(
        self, training: TrainingSpec, num_rows: int, num_tokens: int, num_response: int
    ) -> int:
        """Return the bytes of states, or of the gradients in their place that wait for layers."""
        ours, theirs = self._widths
        states = ours + (theirs if self._projectors is not None else 0)
        # Both models' states, as they are and at length 1, in float32.
        compared = num_response * 4 * (states + 3 * theirs)
        return num_rows * len(self._ours) * max(num_tokens * 4 * ours, compared)

    @property
    def weight(self) -> float:
        """Return the weight of the distance."""
        return self._spec.hidden_weight

    def of_teacher(self, output: Any, batch: Batch) -> "Tensor":
        """Return the teacher's states [N, E] where a response token is predicted."""
        return _predicting(self.output(output), batch["teacher_labels"])

    def distance(self, ours: Sequence[Any], theirs: Sequence[Any], batch: Batch) -> "Tensor":
        """Return the distance, summed over pairs and response tokens."""
        import torch

        total = torch.zeros((), device=batch["labels"].device)
        for pair, (states_BTD, teacher_NE) in enumerate(zip(ours, theirs, strict=True)):
            states_ND = _exact(_predicting(states_BTD, batch["labels"]))
            if self._projectors is not None:
                with torch.autocast(states_ND.device.type, enabled=False):
                    states_ND = self._projectors[pair](states_ND)
            total = total + state_distance(self._spec, states_ND, _exact(teacher_NE))
        return total


def state_distance(spec: HiddenStates, ours_NE: "Tensor", theirs_NE: "Tensor") -> "Tensor":
    """Return the distance of states, summed over tokens; each token's is a number of its own.

    >>> import torch
    >>> ours, theirs = torch.tensor([[3.0, 4.0]]), torch.tensor([[5.0, 0.0]])
    >>> [
    ...     round(float(state_distance(HiddenStates(distance=name), ours, theirs)), 4)
    ...     for name in ("cosine", "mse")
    ... ]  # 1 - 3/5; (2² + 4²) / 5²
    [0.4, 0.8]
    """
    import torch

    if spec.distance == "cosine":
        return (1 - torch.nn.functional.cosine_similarity(ours_NE, theirs_NE, dim=-1)).sum()
    squares_N = (ours_NE - theirs_NE).square().sum(-1)
    tiny = torch.finfo(theirs_NE.dtype).tiny
    return (squares_N / theirs_NE.square().sum(-1).clamp_min(tiny)).sum()


def _predicting(states_BTD: "Tensor", labels_BT: "Tensor") -> "Tensor":
    """Return the states [N, D] at the positions that predict a response token."""
    return states_BTD[:, :-1][labels_BT[:, 1:] >= 0]


def _exact(tensor: "Tensor") -> "Tensor":
    """Return a tensor in float32, or as it is where that is more."""
    import torch

    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
