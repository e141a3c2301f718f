"""A ledger that is locked, full, damaged, or gone for a while: nothing finished is lost."""

import contextlib
import logging
import shutil
import socket
import sqlite3
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from distillery.ledger import Ledger
from distillery.ledger import database as database_module
from distillery.ledger import engine as engine_module
from distillery.ledger.tables import meta
from schemas.errors import StoreError
from schemas.execution import StoreSpec
from tests.fixtures_ledger import commit, kept, row
from tests.fixtures_postgresql import PostgresqlServer
from tests.waiting import wait_until


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Locks and outages are given up within a second."""
    monkeypatch.setattr(engine_module, "BUSY_TIMEOUT_S", 0.1)
    monkeypatch.setattr(database_module, "_OUTAGE_S", 0.5)
    monkeypatch.setattr(database_module, "_PAUSE_S", 0.05)


@pytest.fixture
def postgresql_spec(postgresql: PostgresqlServer) -> StoreSpec:
    return StoreSpec(ledger_url=postgresql.new_database())


def ledger_file(spec: StoreSpec) -> Path:
    return Path(spec.root) / "ledger.sqlite"


@contextlib.contextmanager
def locked(spec: StoreSpec) -> Iterator[None]:
    """Another program writes, and does not come to an end."""
    with contextlib.closing(sqlite3.connect(ledger_file(spec), isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        yield
        other.execute("ROLLBACK")


# -- bad files -------------------------------------------------------------------------------


def test_file_that_is_no_database_is_a_store_error(tmp_path: Path) -> None:
    (tmp_path / "ledger.sqlite").write_bytes(b"this is text, not a database. " * 100)
    with pytest.raises(StoreError, match=r"not an SQLite database \(file is not"):
        Ledger.open(StoreSpec(root=str(tmp_path)))


@pytest.mark.parametrize("damage", ["overwritten", "cut short"])
def test_damaged_file_is_a_store_error_that_says_how_to_go_on(
    sqlite_spec: StoreSpec, damage: str
) -> None:
    with Ledger.open(sqlite_spec) as ledger:
        commit(ledger, *(row("a", request_hash=f"{n:064}") for n in range(1000)))
    file = ledger_file(sqlite_spec)
    content = file.read_bytes()
    first_page, rest = content[:4096], content[4096:]
    file.write_bytes(first_page + (b"\xff" * len(rest) if damage == "overwritten" else b""))
    with pytest.raises(StoreError, match=r"is damaged: database disk image is malformed\. Put a"):
        Ledger.open(sqlite_spec)


def test_page_damaged_while_the_ledger_is_open_fails_the_read(sqlite_spec: StoreSpec) -> None:
    with Ledger.open(sqlite_spec) as ledger:
        commit(ledger, *(row("a", request_hash=f"{n:064}") for n in range(1000)))
    file = ledger_file(sqlite_spec)
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2] + b"\xff" * (len(content) // 2))
    with Ledger.open(sqlite_spec) as ledger, pytest.raises(StoreError, match="is damaged"):
        ledger.get([f"{n:064}" for n in range(1000)])


@pytest.mark.parametrize("version", [2, 99])
def test_tables_of_another_version_are_refused(ledger_spec: StoreSpec, version: int) -> None:
    with Ledger.open(ledger_spec) as opened, opened._database.engine.begin() as connection:
        connection.execute(sa.update(meta).values(schema_version=version))
    with pytest.raises(StoreError, match=f"has schema_version {version}, and .* reads 4 only"):
        Ledger.open(ledger_spec)


def test_ledger_in_a_place_that_is_no_folder_is_a_store_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="Give this user write access, or name another"):
        Ledger.open(StoreSpec(root=str(tmp_path / "file" / "store")))


# -- locked ----------------------------------------------------------------------------------


@pytest.mark.usefixtures("impatient")
def test_file_locked_by_another_program_cannot_be_opened(sqlite_spec: StoreSpec) -> None:
    Ledger.open(sqlite_spec).close()
    with contextlib.closing(sqlite3.connect(ledger_file(sqlite_spec))) as other:
        other.execute("PRAGMA locking_mode = EXCLUSIVE")
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(StoreError, match=r"locked by another program for 0\.1 s .* End that"):
            Ledger.open(sqlite_spec)


@pytest.mark.usefixtures("impatient")
def test_claim_behind_a_lasting_lock_is_a_store_error_and_reads_go_on(
    sqlite_spec: StoreSpec,
) -> None:
    with Ledger.open(sqlite_spec) as ledger, ledger.working() as owner:
        commit(ledger, row("a"))
        with locked(sqlite_spec):
            with pytest.raises(StoreError, match="locked by another program"):
                ledger.claim(["b"], owner, max_new_tokens=64)
            assert kept(ledger, "a").text == "yes"
        assert ledger.claim(["b"], owner, max_new_tokens=64) == {"b"}


def test_lock_is_waited_for_longer_than_sqlite_does(
    sqlite_spec: StoreSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_module, "BUSY_TIMEOUT_S", 0.05)
    monkeypatch.setattr(database_module, "_PAUSE_S", 0.05)
    with Ledger.open(sqlite_spec) as ledger:
        with locked(sqlite_spec):
            futures = [ledger.commit_soon(row("a")), ledger.commit_soon(row("b"))]
            assert not wait(futures, 0.6).done
        for future in futures:
            future.result(60)
        assert kept(ledger, "a").attempts == kept(ledger, "b").attempts == 1


@pytest.mark.usefixtures("impatient")
def test_responses_that_cannot_be_written_in_time_fail_with_their_number(
    sqlite_spec: StoreSpec, caplog: pytest.LogCaptureFixture
) -> None:
    with Ledger.open(sqlite_spec) as ledger:
        rows = [row(str(n)) for n in range(30)]
        with locked(sqlite_spec), caplog.at_level(logging.WARNING):
            futures = [ledger.commit_soon(r) for r in rows]
            done = wait(futures, 60).done
        assert len(done) == 30
        messages = {str(future.exception()) for future in futures}
        assert sum(int(m.split()[1]) for m in messages) == 30
        assert all("paid response(s): ledger " in m and "locked" in m for m in messages)
        assert caplog.text.count("is away") == 1
        ledger.commit_soon(row("later")).result(60)
        assert kept(ledger, "later").text == "yes"


# -- full ------------------------------------------------------------------------------------


@contextlib.contextmanager
def full_disk(ledger: Ledger) -> Iterator[None]:
    """SQLite reports a full disk as soon as the file would grow."""

    def limit(connection: Any, *_: object) -> None:
        num_pages = connection.execute("PRAGMA page_count").fetchone()[0]
        connection.execute(f"PRAGMA max_page_count = {num_pages}")

    def lift(connection: Any, *_: object) -> None:
        connection.execute("PRAGMA max_page_count = 1000000")

    engine = ledger._database.engine
    sa.event.listen(engine, "checkout", limit)
    try:
        yield
    finally:
        sa.event.remove(engine, "checkout", limit)
        sa.event.listen(engine, "checkout", lift)


def test_full_disk_ends_the_run_at_once_with_one_message_and_what_was_committed_stays(
    sqlite_spec: StoreSpec, caplog: pytest.LogCaptureFixture
) -> None:
    file = str(ledger_file(sqlite_spec).absolute())
    expected = (
        f"the disk of ledger {file!r} is full (database or disk is full). Responses committed so "
        "far are kept. Free some space there, then run again: only the missing ones are asked."
    )
    with Ledger.open(sqlite_spec) as ledger:
        commit(ledger, row("a"))
        with full_disk(ledger):
            with ledger.working() as owner:
                ledger.claim([row("b").request_hash], owner, max_new_tokens=64)
                futures = [ledger.commit_soon(row(n, text="x" * 100_000)) for n in "bcd"]
                messages = {str(future.exception(10)) for future in futures}
            assert all(m.startswith("lost ") and m.endswith(f": {expected}") for m in messages)
            with pytest.raises(StoreError) as caught:
                ledger._database.write(
                    lambda c: c.execute(sa.text("CREATE TABLE big AS SELECT zeroblob(1000000)"))
                )
        assert str(caught.value) == expected
        assert kept(ledger, "a").text == "yes"
        commit(ledger, row("b", text="x" * 100_000))
    assert caplog.messages == []


def test_log_that_cannot_grow_is_a_full_disk_only_when_the_disk_is_full(
    sqlite_spec: StoreSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: sa.Connection) -> None:
        raise sa.exc.OperationalError("", {}, sqlite3.OperationalError("disk I/O error"))

    with Ledger.open(sqlite_spec) as ledger:
        with pytest.raises(StoreError, match=r"cannot write ledger .*: disk I/O error"):
            ledger._database.write(refuse)
        usage = shutil.disk_usage(sqlite_spec.root)._replace(free=4096)
        monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
        with pytest.raises(StoreError, match=r"the disk of ledger .* is full"):
            ledger._database.write(refuse)


# -- gone ------------------------------------------------------------------------------------


def test_unreachable_server_is_a_store_error_at_once_without_its_password() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        url = f"postgresql+psycopg://me:hunter2@127.0.0.1:{port}/x?password=hunter2"
        with pytest.raises(StoreError, match=r"me:\*\*\*@127\.0\.0\.1:\d+/x'.*refused") as caught:
            Ledger.open(StoreSpec(ledger_url=url))
    assert "hunter2" not in str(caught.value)


def test_server_that_crashes_and_comes_back_loses_nothing_and_counts_nothing_twice(
    postgresql: PostgresqlServer, postgresql_spec: StoreSpec
) -> None:
    stop = threading.Event()
    num_done = [0] * 8

    def commit(thread: int) -> list[str]:
        hashes = []
        with Ledger.open(postgresql_spec) as mine, mine.working() as owner:
            for n in range(1_000_000):
                if stop.is_set():
                    break
                request_hash = f"{thread}{n:063}"
                won = mine.claim([request_hash], owner, max_new_tokens=64)
                assert won == {request_hash}
                future = mine.commit_soon(row("a", request_hash=request_hash), purpose="p")
                future.result(180)
                assert mine.get([request_hash])
                hashes.append(request_hash)
                num_done[thread] += 1
        return hashes

    def all_go_on() -> None:
        """Wait until every writer has done some more, or has failed."""
        before = list(num_done)
        wait_until(
            lambda: all(
                now > then + 2 or writer.done()
                for now, then, writer in zip(num_done, before, writers, strict=True)
            ),
            within_s=180,
        )

    with Ledger.open(postgresql_spec) as ledger, ThreadPoolExecutor(8) as pool:
        writers = [pool.submit(commit, thread) for thread in range(8)]
        all_go_on()
        postgresql.stop(immediately=True)
        time.sleep(2)
        postgresql.start()
        all_go_on()
        stop.set()
        hashes = [h for writer in writers for h in writer.result(180)]
        found = ledger.get(hashes)
        assert set(found) == set(hashes)
        assert {r.attempts for r in found.values()} == {1}
        assert ledger.spent("p").requests == len(hashes)


@pytest.mark.usefixtures("impatient")
def test_server_that_stays_away_is_a_store_error(
    postgresql: PostgresqlServer, postgresql_spec: StoreSpec
) -> None:
    with Ledger.open(postgresql_spec) as ledger:
        commit(ledger, row("a"))
        postgresql.stop(immediately=True)
        try:
            with pytest.raises(StoreError, match=r"lost 1 paid response\(s\): cannot write ledger"):
                ledger.commit_soon(row("b")).result(60)
            with pytest.raises(StoreError, match=r"cannot read ledger .*Check that the database"):
                kept(ledger, "a")
        finally:
            postgresql.start()
        assert kept(ledger, "a").text == "yes"


class CuttingProxy:
    """Stands before a server, and cuts the connection at the next COMMIT."""

    def __init__(self, port: int) -> None:
        self._server_port = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.cut: str | None = None
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join(60)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = socket.create_connection(("127.0.0.1", self._server_port))
            for target in (self._to_server, self._to_client):
                thread = threading.Thread(target=target, args=(client, server))
                self._threads.append(thread)
                thread.start()

    def _to_server(self, client: socket.socket, server: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while sent := client.recv(65536):
                if self.cut is None or b"COMMIT" not in sent:
                    server.sendall(sent)
                    continue
                if self.cut == "after":
                    client.shutdown(socket.SHUT_RDWR)
                    server.sendall(sent)
                self.cut = None
                time.sleep(0.2)  # let the server commit
                break
        _hang_up(server, client)

    def _to_client(self, client: socket.socket, server: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while sent := server.recv(65536):
                client.sendall(sent)
        _hang_up(client, server)


def _hang_up(*sockets: socket.socket) -> None:
    for each in sockets:
        with contextlib.suppress(OSError):
            each.shutdown(socket.SHUT_RDWR)
        each.close()


@pytest.mark.parametrize("cut", ["before", "after"])
def test_commit_whose_answer_is_lost_counts_once(
    postgresql: PostgresqlServer, postgresql_spec: StoreSpec, cut: str
) -> None:
    proxy = CuttingProxy(postgresql.port)
    url = str(postgresql_spec.ledger_url).replace(f":{postgresql.port}/", f":{proxy.port}/")
    try:
        with Ledger.open(StoreSpec(ledger_url=url)) as ledger:
            proxy.cut = cut
            ledger.commit_soon(row("a"), purpose="p").result(60)
            assert proxy.cut is None
            assert (kept(ledger, "a").attempts, ledger.spent("p").requests) == (1, 1)
    finally:
        proxy.close()
