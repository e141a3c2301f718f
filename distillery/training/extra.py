"""What an objective learns with the student and throws away, such as a projector."""

from pathlib import Path
from typing import Any

import torch

_FILE = "extra.pt"


class Extra:
    """A module beside the student: it has an optimizer of its own, which follows the student's.

    Every process holds all of it, whatever is split of the student, so that its states do not
    depend on `training.parallelism`.
    """

    def __init__(self, module: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Let ``optimizer`` learn the parameters of ``module``."""
        self._module, self._optimizer = module, optimizer

    @property
    def parameters(self) -> list[torch.nn.Parameter]:
        """Return what is learnt; all have gradients, of 0 where they took no part in the step."""
        found = [weight for weight in self._module.parameters() if weight.requires_grad]
        for weight in found:
            if weight.grad is None:
                weight.grad = torch.zeros_like(weight)
        return found

    def average_gradients(self, num_processes: int) -> None:
        """Replace each gradient by its mean over all processes, as DDP does with the student's."""
        for weight in self.parameters:
            assert weight.grad is not None
            if num_processes > 1:
                torch.distributed.all_reduce(weight.grad)
                weight.grad /= num_processes

    def step(self, student: torch.optim.Optimizer, *_: Any) -> None:
        """Learn what the gradients say at the student's learning rate, and forget them."""
        for group in self._optimizer.param_groups:
            group["lr"] = student.param_groups[0]["lr"]
        self._optimizer.step()
        self._optimizer.zero_grad()

    def save(self, folder: Path) -> None:
        """Write weights and the optimizer's states into a checkpoint's ``folder``."""
        states = {"module": self._module.state_dict(), "optimizer": self._optimizer.state_dict()}
        torch.save(states, folder / _FILE)

    def load(self, folder: Path) -> None:
        """Read what :meth:`save` wrote."""
        states = torch.load(folder / _FILE, map_location="cpu", weights_only=True)
        self._module.load_state_dict(states["module"])
        self._optimizer.load_state_dict(states["optimizer"])
