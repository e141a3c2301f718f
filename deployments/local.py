"""A Prefect server on this machine, with both pools, a worker for each, and all deployments.

    python -m deployments.local up        start what is not running, register what has changed
    python -m deployments.local down      stop what `up` started
    python -m deployments.local status    what is running, and where

The server is bound to 127.0.0.1 and keeps everything (SQLite) in `.distillery/prefect-server`;
the Prefect profile of the user is neither read nor written. Environment variables:

    DISTILLERY_PORT     port of the server, 4200 when not set
    DISTILLERY_STATE    folder to use instead of `.distillery`
    PREFECT_SERVER_DATABASE_CONNECTION_URL
                        PostgreSQL instead of SQLite, which locks when many runs write at once

Workers pass the environment of `up` on to the flows: export providers' keys before.
"""

import argparse
import fcntl
import json
import os
import socket
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from http import HTTPStatus
from pathlib import Path
from typing import Any

from deployments.processes import Detached

ROOT = Path(__file__).resolve().parent.parent
HOST = "127.0.0.1"
SERVER = "server"
# As in deployments/pools.yaml; the worker of a pool has the pool's name.
POOLS = ("cpu-pool", "gpu-pool")

# The first start migrates an empty database: 10 s, several times that on a busy machine.
_START_S = 180.0
_STOP_S = 20.0
_TRIES = 20

# Whose server the user's own Prefect talks to is not to reach ours.
_NOT_INHERITED = {"PREFECT_API_KEY", "PREFECT_PROFILE", "PREFECT_PROFILES_PATH"}


def main() -> None:
    """Run the subcommand of the command line."""
    commands: dict[str, Callable[[], None]] = {"up": up, "down": down, "status": status}
    parser = argparse.ArgumentParser(
        prog="python -m deployments.local",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", choices=commands)
    commands[parser.parse_args().command]()


def up() -> None:
    """Start what is not running and register pools, deployments and automations."""
    processes = _processes()
    with _alone(processes):
        port = _port()
        os.environ.update(_environment(port))
        # Prefect makes this folder, but not its parents.
        Path(os.environ["PREFECT_HOME"]).mkdir(parents=True, exist_ok=True)
        if not processes.find(SERVER):
            _refuse_taken_port(port)
            prefect = [sys.executable, "-m", "prefect"]
            options = ["--host", HOST, "--port", str(port)]
            processes.start(SERVER, [*prefect, "server", "start", *options], os.environ)
        # Reads the environment when imported; meanwhile the server starts.
        from prefect.client.orchestration import get_client

        from deployments import register

        _wait(processes, SERVER, lambda: _is_healthy(port), f"answer on port {port}")
        with get_client(sync_client=True) as client:
            register.apply_pools(client)
            deploying = register.start_deploy()
            register.apply_automations(client)
            for pool in POOLS:
                if not processes.find(pool):
                    processes.start(pool, _worker_command(pool), os.environ)
            register.finish_deploy(deploying)
            for pool in POOLS:
                _wait(processes, pool, partial(register.is_served, client, pool), "be online")
    _print_addresses(port)


def down() -> None:
    """Stop the workers with their runs, then the server.

    A run of which nobody says that it ended would hold its pool's slot after the next `up`.
    """
    processes = _processes()
    with _alone(processes):
        stopped = processes.stop(POOLS, grace_s=_STOP_S)
        if stopped and processes.find(SERVER):
            _mark_runs_crashed(_port())
        stopped += processes.stop([SERVER], grace_s=_STOP_S)
    print(f"stopped {', '.join(stopped)}" if stopped else "nothing is running")


def status() -> None:
    """Print what is running."""
    processes = _processes()
    for name in (SERVER, *POOLS):
        process = processes.find(name)
        print(f"{name:10} {f'pid {process.pid}' if process else 'not running'}")
    if processes.find(SERVER):
        _print_addresses(_port())
    else:
        sys.exit(1)


def _processes() -> Detached:
    return Detached(_state() / "local")


def _state() -> Path:
    return Path(os.environ.get("DISTILLERY_STATE", ROOT / ".distillery")).absolute()


@contextmanager
def _alone(processes: Detached) -> Iterator[None]:
    """Hold a lock, so that of two `up` at the same time the second finds everything running."""
    processes.folder.mkdir(parents=True, exist_ok=True)
    with (processes.folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _port() -> int:
    """Return the port of the running server, else the one to use."""
    wanted = os.environ.get("DISTILLERY_PORT")
    file = _state() / "local" / "port"
    if _processes().find(SERVER):
        port = int(file.read_text())
        if wanted not in (None, str(port)):
            sys.exit(
                f"the server runs on port {port}, but DISTILLERY_PORT is {wanted}. Run `make down` "
                "first, or unset DISTILLERY_PORT."
            )
        return port
    port = int(wanted or 4200)
    file.write_text(str(port))
    return port


def _environment(port: int) -> dict[str, str]:
    for name in _NOT_INHERITED:
        os.environ.pop(name, None)
    return {
        "DISTILLERY_HOME": str(ROOT),
        "DO_NOT_TRACK": "1",
        "PREFECT_API_URL": _api_url(port),
        "PREFECT_HOME": str(_state() / "prefect-server"),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        # A worker looks for new runs so often; the default of 10 s is felt at every stage.
        "PREFECT_WORKER_QUERY_SECONDS": os.environ.get("PREFECT_WORKER_QUERY_SECONDS", "2"),
    }


def _api_url(port: int) -> str:
    return f"http://{HOST}:{port}/api"


def _worker_command(pool: str) -> list[str]:
    options = ["--pool", pool, "--name", f"local-{pool}", "--type", "process"]
    never = ["--install-policy", "never", "--no-create-pool-if-not-found"]
    return [sys.executable, "-m", "prefect", "worker", "start", *options, *never]


def _refuse_taken_port(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            sys.exit(
                f"port {port} of {HOST} cannot be used: {error.strerror}. Something that `make up` "
                "did not start is there. Set DISTILLERY_PORT to a free port."
            )


def _is_healthy(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"{_api_url(port)}/health", timeout=5) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def _mark_runs_crashed(port: int) -> None:
    """Tell the server that the runs of its pools are no more; their next try resumes."""
    under_way = {"state": {"type": {"any_": ["PENDING", "RUNNING", "CANCELLING"]}}}
    ours = {"flow_runs": under_way, "work_pools": {"name": {"any_": POOLS}}}
    crashed = {"type": "CRASHED", "name": "Crashed", "message": "Its worker was stopped (`down`)."}
    for run in _post(port, "flow_runs/filter", ours):
        _post(port, f"flow_runs/{run['id']}/set_state", {"state": crashed, "force": True})


def _post(port: int, path: str, body: dict[str, Any]) -> Any:
    request = urllib.request.Request(
        f"{_api_url(port)}/{path}", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    for _ in range(_TRIES):
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            # SQLite is locked by another writer.
            if error.code != HTTPStatus.SERVICE_UNAVAILABLE:
                raise
            time.sleep(0.5)
    sys.exit(f"the server answers {path!r} with 503 again and again. See {_processes().folder}.")


def _wait(processes: Detached, name: str, is_ready: Callable[[], bool], what: str) -> None:
    """Wait until ``is_ready``, or end with the log's last lines."""
    deadline = time.monotonic() + _START_S
    while not is_ready():
        if processes.find(name) is None or time.monotonic() > deadline:
            log = processes.log(name)
            tail = "\n".join(log.read_text(errors="replace").splitlines()[-20:])
            sys.exit(f"{tail}\n{name} did not {what}. The whole log: {log}")
        time.sleep(0.2)


def _print_addresses(port: int) -> None:
    print(f"UI:    http://{HOST}:{port}")
    print(f"Logs:  {_processes().folder}/*.log")
    print("Run the demo on it:")
    print(f"  export PREFECT_API_URL={_api_url(port)}")
    print("  prefect deployment run 'distill-student/demo' --watch")


if __name__ == "__main__":
    main()
