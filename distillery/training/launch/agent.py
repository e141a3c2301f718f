"""Starts training processes and watches over them: torchrun's agent, for one machine.

The agent stops all processes when one fails, and when it is told to stop. It is not `torchrun`
itself, because that opens a port to the whole network, says in prose only which process failed
how, and outlives a parent that is killed.
"""

import json
import os
import sys
from pathlib import Path

from torch.distributed import HashStore  # type: ignore[attr-defined]
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException, Std
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.elastic.rendezvous import (
    RendezvousHandler,
    RendezvousInfo,
    RendezvousParameters,
    RendezvousStoreInfo,
    rendezvous_handler_registry,
)
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from distillery.training.launch.lifeline import end_with_parent

# For processes that are told to stop; then they are killed.
_GRACE_S = 3


def main() -> None:
    """Run a module in several processes until all have ended.

    Arguments: process id of the parent, module, folder, number of processes. The output of the
    process n goes to files `folder/*/attempt_0/n/*.log`; the exit codes of those that fail to
    `folder/exit-codes.json`, the first that failed first.
    """
    parent_pid, module, folder, num_processes = sys.argv[1:]
    end_with_parent(int(parent_pid))
    os.environ["DISTILLERY_AGENT_PID"] = str(os.getpid())
    # All agents (the only one) start the same: there is no need to compare notes.
    os.environ["TORCH_ELASTIC_WORKER_IDENTICAL"] = "1"
    rendezvous_handler_registry.register("alone", _Alone)
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=int(num_processes),
        run_id="training",
        rdzv_backend="alone",
        local_addr="127.0.0.1",
        max_restarts=0,
        logs_specs=DefaultLogsSpecs(log_dir=folder, redirects=Std.ALL),
        shutdown_timeout=_GRACE_S,
    )
    command = ("-u", "-P", "-m", module, folder)
    try:
        elastic_launch(config, sys.executable)(*command)
    except ChildFailedError as error:
        failures = sorted(error.failures.items(), key=lambda item: item[1].timestamp)
        exit_codes = {rank: failure.exitcode for rank, failure in failures}
        (Path(folder) / "exit-codes.json").write_text(json.dumps(exit_codes), encoding="utf-8")
        sys.exit(1)
    except SignalException:
        sys.exit(1)


class _Alone(RendezvousHandler):
    """A meeting of agents at which there is only one; it needs no port."""

    def __init__(self, parameters: RendezvousParameters) -> None:
        self._run_id = parameters.run_id

    def get_backend(self) -> str:
        return "alone"

    def next_rendezvous(self) -> RendezvousInfo:
        # The processes meet elsewhere; the address is for readers of the environment only.
        nowhere = RendezvousStoreInfo("127.0.0.1", 0)
        return RendezvousInfo(HashStore(), 0, 1, nowhere)

    def is_closed(self) -> bool:
        return False

    def set_closed(self) -> None:
        pass

    def num_nodes_waiting(self) -> int:
        return 0

    def get_run_id(self) -> str:
        return self._run_id

    def shutdown(self) -> bool:
        return True


if __name__ == "__main__":
    main()
