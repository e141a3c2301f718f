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
from contextlib import contextmanager, suppress
from functools import partial
from http import HTTPStatus
from pathlib import Path
from typing import Any

import yaml

from deployments.processes import Detached

ROOT = Path(__file__).resolve().parent.parent
HOST = "127.0.0.1"
SERVER = "server"

# The first start migrates an empty database: 10 s, several times that on a busy machine.
_START_S = 180.0
_STOP_S = 20.0
_TRIES = 20

# These say which server the user's own Prefect talks to.
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
    processes, pools = _processes(), _pools()
    with _alone(processes):
        port = _settle_port(processes)
        _set_environment(port)
        prefect = [sys.executable, "-m", "prefect"]
        if not processes.find(SERVER):
            _refuse_taken_port(port)
            options = ["--host", HOST, "--port", str(port)]
            processes.start(SERVER, [*prefect, "server", "start", *options], os.environ)
        # Prefect reads the environment when it is imported; meanwhile the server starts.
        from prefect.client.orchestration import get_client

        from deployments import register

        _wait(processes, SERVER, partial(_is_healthy, port), f"answer on port {port}")
        with get_client(sync_client=True) as client:
            register.apply_pools(client)
            deploying = register.start_deploy()
            register.apply_automations(client)
            for pool, kind in pools.items():
                if not processes.find(pool):
                    options = ["--pool", pool, "--type", kind, "--name", f"local-{pool}"]
                    options += ["--install-policy", "never"]
                    processes.start(pool, [*prefect, "worker", "start", *options], os.environ)
            register.finish_deploy(deploying)
            for pool in pools:
                _wait(processes, pool, partial(register.is_served, client, pool), "come online")
    _print_addresses(port)


def down() -> None:
    """Stop the workers with their runs, then the server.

    A run of which nobody says that it ended would hold its pool's slot after the next `up`.
    """
    processes, pools = _processes(), _pools()
    with _alone(processes):
        stopped = processes.stop([*pools], grace_s=_STOP_S)
        if processes.find(SERVER):
            # A server that does not answer is stopped all the same.
            with suppress(OSError):
                _mark_runs_crashed(_read_port(), [*pools])
        stopped += processes.stop([SERVER], grace_s=_STOP_S)
    print(f"stopped {', '.join(stopped)}" if stopped else "nothing is running")


def status() -> None:
    """Print what is running; end with 1 when the server is not."""
    processes = _processes()
    for name in (SERVER, *_pools()):
        process = processes.find(name)
        print(f"{name:10} {f'pid {process.pid}' if process else 'not running'}")
    if not processes.find(SERVER):
        sys.exit(1)
    _print_addresses(_read_port())


def _pools() -> dict[str, str]:
    """Return the type of every pool; the worker of a pool goes by the pool's name."""
    pools = yaml.safe_load((ROOT / "deployments" / "pools.yaml").read_text(encoding="utf-8"))
    return {name: pool["type"] for name, pool in pools.items()}


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


def _settle_port(processes: Detached) -> int:
    """Return the port of what is running, else the one to use."""
    wanted = os.environ.get("DISTILLERY_PORT")
    if any(map(processes.find, (SERVER, *_pools()))):
        port = _read_port()
        if wanted not in (None, str(port)):
            sys.exit(
                f"what runs here uses port {port}, but DISTILLERY_PORT is {wanted!r}. Run "
                "`make down` first, or unset DISTILLERY_PORT."
            )
        return port
    if not (wanted or "4200").isdecimal():
        sys.exit(f"DISTILLERY_PORT {wanted!r} is not a port. Set it to a number such as 4201.")
    _port_file().write_text(wanted or "4200")
    return _read_port()


def _read_port() -> int:
    return int(_port_file().read_text())


def _port_file() -> Path:
    return _state() / "local" / "port"


def _set_environment(port: int) -> None:
    """Set what server, workers and `prefect deploy` need to know."""
    for name in _NOT_INHERITED:
        os.environ.pop(name, None)
    home = _state() / "prefect-server"
    # Prefect makes this folder, but not its parents.
    home.mkdir(parents=True, exist_ok=True)
    os.environ |= {
        "DISTILLERY_HOME": str(ROOT),
        "DO_NOT_TRACK": "1",
        "PREFECT_API_URL": _api_url(port),
        "PREFECT_HOME": str(home),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
    }
    # How often a worker looks for new runs; the default of 10 s is felt at every stage.
    os.environ.setdefault("PREFECT_WORKER_QUERY_SECONDS", "2")


def _api_url(port: int) -> str:
    return f"http://{HOST}:{port}/api"


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


def _mark_runs_crashed(port: int, pools: list[str]) -> None:
    """Tell the server that the runs of ``pools`` are no more; their next try resumes."""
    under_way = {"state": {"type": {"any_": ["PENDING", "RUNNING", "CANCELLING"]}}}
    ours = {"flow_runs": under_way, "work_pools": {"name": {"any_": pools}}}
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
    raise TimeoutError(path)


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
    prefect = os.path.relpath(Path(sys.executable).parent / "prefect")
    print(f"  {prefect} deployment run 'distill-student/demo' --watch")


if __name__ == "__main__":
    main()
