"""Why training in several processes has failed: one error out of what all of them left."""

import json
import signal
from pathlib import Path

from distillery.training.launch.messages import Message, own_error
from schemas.errors import DistilleryError, TrainingError

_TAIL_LINES = 20
_AGAIN = "Correct the cause and run again: training goes on from its last checkpoint."


def failure(
    folder: Path, num_processes: int, errors: dict[int, Message], agent_code: int
) -> DistilleryError:
    """Return the error to raise for processes that have failed.

    An error of ours comes as it was raised; the first, where there are several.

    Args:
        folder: Where the agent and the processes have put down how they ended.
        num_processes: How many there were.
        errors: Messages of kind `error`, by rank.
        agent_code: How the agent ended.
    """
    own = [message for message in errors.values() if message["is_own"]]
    if own:
        return own_error(min(own, key=lambda message: float(message["at"])))
    report = folder / "exit-codes.json"
    if not report.exists():
        return TrainingError(
            f"the agent of the training processes {_ended(agent_code)}, and they with it. "
            f"{_AGAIN}{_tail([folder / 'agent.log'])}"
        )
    exit_codes = {int(rank): code for rank, code in json.loads(report.read_bytes()).items()}
    rank = _culprit(exit_codes, errors)
    if rank in errors:
        how = f"raised {errors[rank]['type']}: {errors[rank]['text'].rstrip('.')}"
    else:
        how = _ended(exit_codes[rank])
    outputs = sorted(folder.glob(f"*/attempt_0/{rank}/*.log"))
    return TrainingError(
        f"training process {rank} (of 0 to {num_processes - 1}) {how}. {_AGAIN}{_tail(outputs)}"
    )


def _culprit(exit_codes: dict[int, int], errors: dict[int, Message]) -> int:
    """Return the rank that failed by itself; the others fail because it is gone.

    One that was killed, or ended at once, tells nothing, and the others complain of it. Two
    signals are but consequences: SIGTERM comes from the agent, SIGABRT from NCCL.

    >>> _culprit({0: 1, 1: -9}, {0: {"at": 1.0}})
    1
    >>> _culprit({0: 1, 1: 7}, {0: {"at": 1.0}})
    1
    >>> _culprit({0: -6, 1: 1, 2: 1}, {1: {"at": 2.0}, 2: {"at": 1.0}})
    2
    """
    consequences = (-signal.SIGTERM, -signal.SIGABRT)
    silent = [
        rank for rank, code in exit_codes.items() if code not in consequences and rank not in errors
    ]
    told = sorted(errors, key=lambda rank: float(errors[rank]["at"]))
    return [*silent, *told, *exit_codes][0]


def _ended(exit_code: int) -> str:
    """Return how a process ended, in words.

    >>> _ended(-11), _ended(3)
    ('was ended by SIGSEGV', 'ended with exit code 3')
    """
    if exit_code >= 0:
        return f"ended with exit code {exit_code}"
    name = signal.Signals(-exit_code).name
    hint = ", as machines do that run out of memory" if -exit_code == signal.SIGKILL else ""
    return f"was ended by {name}{hint}"


def _tail(outputs: list[Path]) -> str:
    """Return the last lines of output, to follow a message; nothing if there are none."""
    written = [path.read_text(encoding="utf-8", errors="replace") for path in outputs]
    lines = "\n".join(written).strip().splitlines()[-_TAIL_LINES:]
    return "\n".join([" The end of its output:", *lines]) if lines else ""
