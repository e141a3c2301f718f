"""A Prefect server for one run, where the user has none.

It starts while this process is still importing the flows, which Prefect's own temporary server
cannot: that one begins with the first flow, and its starter imports the whole server besides.
It ends with the process that started it, also when that is killed: its standard input closes.
"""

import atexit
import contextlib
import gc
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from schemas.errors import StageError

_START_S = 120.0  # the first start makes the database: 10 s, several times that on a busy machine
_POLL_S = 0.05
_HOST = "127.0.0.1"


class TemporaryServer:
    """The server as a process; `PREFECT_API_URL` names it to whatever is imported from now on."""

    def __init__(self, home: Path, *, with_ui: bool = False) -> None:
        """Start it, with its database and its log in ``home``; it is not ready yet.

        Pages of the UI are served only where a person is to answer a question there.

        Raises:
            StageError: Nothing can be written in ``home``.
        """
        with socket.socket() as probe:
            probe.bind((_HOST, 0))
            port = probe.getsockname()[1]
        self._api_url = f"http://{_HOST}:{port}/api"
        self._log = home / "server.log"
        try:
            home.mkdir(parents=True, exist_ok=True)
            log = self._log.open("wb")
        except OSError as error:
            raise StageError(
                f"the temporary Prefect server cannot keep its database in {str(home)!r}: "
                f"{error.strerror}. Set PREFECT_HOME to a folder that can be written."
            ) from error
        with log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "cli.server", str(port)],
                env=os.environ
                | {"PREFECT_UI_ENABLED": str(int(with_ui)), "PREFECT_UI_API_URL": self._api_url}
                # An ephemeral server has no pages.
                | ({} if with_ui else {"PREFECT__SERVER_EPHEMERAL": "1"})
                # uvicorn is found where this package is.
                | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C is for the run, which then closes the pipe
            )
        # Registered before Prefect is imported, so called after Prefect has sent its last events.
        atexit.register(self.stop)
        os.environ["PREFECT_API_URL"] = self._api_url
        os.environ.setdefault("PREFECT_LOGGING_TO_API_ENABLED", "false")  # nobody reads it there

    def wait(self) -> None:
        """Return when it answers.

        Raises:
            StageError: It ended, or did not answer in time.
        """
        deadline = time.monotonic() + _START_S
        while not self._is_healthy():
            if self._process.poll() is not None or time.monotonic() > deadline:
                lines = self._log.read_text("utf-8", "replace").strip().splitlines()
                raise StageError(
                    f"the temporary Prefect server did not start: {lines[-1] if lines else ''!r}. "
                    f"Read {str(self._log)!r}, or start a server of your own with `make up`."
                )
            time.sleep(_POLL_S)

    def stop(self) -> None:
        """End it at once. What it was told is in its database; nobody waits for its services."""
        if self._process.stdin:
            self._process.stdin.close()
        self._process.wait()

    def _is_healthy(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self._api_url}/health", timeout=5) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False


def _serve(port: int) -> None:
    """Serve until standard input closes."""
    threading.Thread(target=_end_with_input, daemon=True).start()
    with without_collections():
        import uvicorn
        from prefect.server.api.server import create_app

    uvicorn.run(create_app, factory=True, host=_HOST, port=port, log_level="error", lifespan="on")


@contextlib.contextmanager
def without_collections() -> Iterator[None]:
    """Import without garbage collections, of which there are hundreds and none finds anything."""
    gc.disable()
    yield
    gc.freeze()
    gc.enable()


def _end_with_input() -> None:
    sys.stdin.buffer.read()
    os._exit(0)


if __name__ == "__main__":
    _serve(int(sys.argv[1]))
