"""The temporary server lives exactly as long as the run that started it."""

import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from cli.server import TemporaryServer
from schemas.errors import StageError
from tests.waiting import wait_until

ROOT = Path(__file__).parents[2]
SCRIPT = """
import sys, time
from pathlib import Path
from cli.server import TemporaryServer
server = TemporaryServer(Path(sys.argv[1]))
server.wait()
print(server._process.pid, flush=True)
time.sleep(600)
"""


@pytest.mark.slow
def test_a_killed_run_leaves_no_server(tmp_path: Path) -> None:
    run = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(tmp_path / "no" / "home")],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert run.stdout is not None
    server = psutil.Process(int(run.stdout.readline()))
    assert server.is_running()
    run.send_signal(signal.SIGKILL)
    run.wait()
    run.stdout.close()
    wait_until(lambda: not _lives(server))


PAGES = """
import os, sys, urllib.request
from pathlib import Path
from cli.server import TemporaryServer
server = TemporaryServer(Path(sys.argv[1]), with_ui=True)
server.wait()
page = urllib.request.urlopen(os.environ["PREFECT_API_URL"].removesuffix("api"), timeout=30)
print(page.read().decode())
"""


@pytest.mark.slow
def test_a_server_on_which_a_person_is_asked_has_pages(tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-c", PAGES, str(tmp_path)], cwd=ROOT, capture_output=True, text=True
    )
    assert "<title>" in run.stdout, run.stderr


def test_a_home_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "home").write_text("a file")
    with pytest.raises(StageError, match=r"home': .*Set PREFECT_HOME to a folder"):
        TemporaryServer(tmp_path / "home")


def _lives(process: psutil.Process) -> bool:
    return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
