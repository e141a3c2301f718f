"""What to change in a training that does not fit its device's memory."""

import dataclasses
from collections.abc import Callable, Iterator

from distillery.training.memory_plan import MemoryPlan
from schemas.units import bytes_text

_MOST_PROCESSES = 64
_CHECKPOINTING = "training.gradient_checkpointing to true"
_BFLOAT16 = "training.dtype to bfloat16"
_LORA = "training.method.kind to lora"
# They go together, and none leaves rows out or wants more devices.
_LOSSLESS_CHANGES: tuple[tuple[str, Callable[[MemoryPlan], MemoryPlan]], ...] = (
    (_CHECKPOINTING, lambda plan: plan.with_training(gradient_checkpointing=True)),
    ("training.micro_batch_size to 1", lambda plan: plan.with_training(micro_batch_size=1)),
    (_BFLOAT16, lambda plan: plan.with_training(dtype="bfloat16")),
    (_LORA, lambda plan: plan.with_lora() if plan.trains_all else plan),
)


def memory_advice(plan: MemoryPlan, room: int, *, on_cpu: bool) -> str:
    """Return the first change with which ``plan`` fits, several where no single one is enough."""
    for what, changed in _single_changes(plan, on_cpu=on_cpu):
        if changed.peak <= room:
            return f"Set {what}: about {bytes_text(changed.peak)}."
    names: list[str] = []
    smallest = plan
    for what, change in _LOSSLESS_CHANGES:
        changed = change(smallest)
        if changed.peak < smallest.peak:
            names.append(what)
            smallest = changed
        if smallest.peak <= room:
            return f"Set {_listed(names)}: about {bytes_text(smallest.peak)}."
    for tokens in range(plan.max_length - 16, 15, -16):
        changed = dataclasses.replace(plan, max_length=tokens)
        if changed.peak <= room:
            return (
                f"Set training.max_length to {tokens}, which leaves longer rows out: about "
                f"{bytes_text(changed.peak)}."
            )
    return (
        "Choose a smaller student: with every setting that saves memory this one would still take "
        f"about {bytes_text(smallest.peak)}."
    )


def _single_changes(plan: MemoryPlan, *, on_cpu: bool) -> Iterator[tuple[str, MemoryPlan]]:
    """Yield changes and what comes of each, those that cost least first."""
    if not plan.training.gradient_checkpointing:
        yield _CHECKPOINTING, plan.with_training(gradient_checkpointing=True)
    for rows in range(plan.rows - 1, 0, -1):
        changed = plan.with_training(micro_batch_size=rows)
        if changed.rows == rows:  # the batch can be made of it
            yield f"training.micro_batch_size to {rows}", changed
    if plan.itemsize == 4:
        yield _BFLOAT16, plan.with_training(dtype="bfloat16")
    if plan.trains_all:
        yield _LORA, plan.with_lora()
    if not on_cpu:
        for count in range(max(2, plan.num_processes), _MOST_PROCESSES + 1):
            if plan.training.batch_size % count == 0:
                yield (
                    f"training.parallelism to fsdp2 and training.num_processes to {count}, on as "
                    "many GPUs",
                    dataclasses.replace(
                        plan.with_training(parallelism="fsdp2", num_processes=count),
                        num_processes=count,
                    ),
                )


def _listed(names: list[str]) -> str:
    return ", ".join(names[:-1]) + " and " * (len(names) > 1) + names[-1]
