"""A real MLflow server: in an environment of its own, because it does not fit beside ours."""

import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from filelock import FileLock

from tests.ports import free_port

_VERSION = "3.17.2"
_PATIENCE_S = 180.0


def _environment() -> Path:
    """Return the folder of an environment with MLflow, made once and kept for later sessions."""
    folder = Path.home() / ".cache" / "distillery" / f"mlflow-server-{_VERSION}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if (folder / "complete").exists():
            return folder
        steps = (
            [sys.executable, "-m", "venv", "--clear", str(folder)],
            [str(folder / "bin" / "pip"), "install", "--quiet", f"mlflow=={_VERSION}"],
        )
        for step in steps:
            done = subprocess.run(step, capture_output=True, text=True, check=False)
            if done.returncode != 0:
                last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
                pytest.skip(f"no MLflow server: {' '.join(step[1:])} failed: {last}")
        (folder / "complete").touch()
    return folder


@pytest.fixture(scope="session")
def mlflow_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of a running server with nothing in it."""
    folder, port = tmp_path_factory.mktemp("mlflow"), free_port()
    address = f"http://127.0.0.1:{port}"
    environment = _environment()
    options = {
        "host": "127.0.0.1",
        "port": str(port),
        "workers": "1",
        "backend-store-uri": f"sqlite:///{folder}/mlflow.sqlite",
        "default-artifact-root": str(folder / "artifacts"),
    }
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen(
            [
                str(environment / "bin" / "mlflow"),
                "server",
                *(f"--{name}={value}" for name, value in options.items()),
            ],
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true", "PYTHONPATH": ""},
            start_new_session=True,
        )
        try:
            _wait_for(address, server, folder / "log")
            yield address
        finally:
            os.killpg(server.pid, 15)  # its worker, too
            server.wait(60)


def _wait_for(address: str, server: "subprocess.Popen[bytes]", log: Path) -> None:
    give_up_at = time.monotonic() + _PATIENCE_S
    while True:
        try:
            with urllib.request.urlopen(f"{address}/health", timeout=5):
                return
        except OSError:
            if server.poll() is not None or time.monotonic() > give_up_at:
                raise RuntimeError(f"MLflow does not start:\n{log.read_text()[-3000:]}") from None
            time.sleep(0.2)
