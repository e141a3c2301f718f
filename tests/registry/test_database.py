"""The registry in the ledger's database: alone, at once, and killed in between."""

import contextlib
import multiprocessing
import os
import signal
import time
from collections.abc import Iterator
from multiprocessing.process import BaseProcess
from multiprocessing.queues import Queue
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from distillery.ledger import Ledger
from distillery.registry import alias_files, open_registry, promotion
from distillery.registry.base import standing
from distillery.registry.by_hand import roll_back
from distillery.registry.database import DatabaseRegistry
from distillery.storage.store import Store
from schemas.errors import RegistryError, StoreError
from schemas.execution import StoreSpec
from schemas.refs import ModelRef
from tests.fixtures_registry import entry, gate_decides, put_files, student_ref
from tests.ports import free_port

spawn = multiprocessing.get_context("spawn")
ALIAS = ("tickets", "champion")


def test_entries_come_back_as_they_were_written(registry: DatabaseRegistry) -> None:
    registry.check()
    assert registry.aliases() == [] and registry.history(*ALIAS) == []
    first, second = entry("1"), entry("2", reason="größer ✓")
    registry.promote(first, expected=None)
    registry.promote(second, expected=student_ref("1").uri)
    registry.promote(entry("5", alias="canary"), expected=None)
    assert registry.history(*ALIAS) == [first, second]
    assert registry.champion(*ALIAS) == second
    assert registry.aliases() == [("tickets", "canary"), ("tickets", "champion")]


def test_looking_at_a_registry_makes_no_database(root: str) -> None:
    with DatabaseRegistry(StoreSpec(root=root)) as registry:
        assert registry.champion(*ALIAS) is None and registry.aliases() == []
        registry.check()
    assert not (Path(root) / "ledger.sqlite").exists()


def test_ledger_and_registry_share_a_database(ledger: Ledger, registry: DatabaseRegistry) -> None:
    assert registry.history(*ALIAS) == [], "made by the ledger, it has no table yet"
    registry.promote(entry("1"), expected=None)
    assert ledger.stats() == [] and len(registry.history(*ALIAS)) == 1


def test_a_registry_that_cannot_be_reached_is_a_store_error_at_once() -> None:
    url = f"postgresql+psycopg://me:hunter2@127.0.0.1:{free_port()}/x"
    with (
        DatabaseRegistry(StoreSpec(ledger_url=url), outage_s=0.0) as registry,
        pytest.raises(StoreError, match="refused") as caught,
    ):
        registry.check()
    assert "hunter2" not in str(caught.value)


def test_a_database_that_cannot_be_written_is_found_by_the_check(root: str) -> None:
    with DatabaseRegistry(StoreSpec(root=root)) as registry:
        registry.promote(entry("1"), expected=None)
    with DatabaseRegistry(StoreSpec(root=root), outage_s=0.0) as registry:
        engine = registry._database.engine
        sa.event.listen(engine, "connect", lambda c, _: c.execute("PRAGMA query_only = 1"))
        with pytest.raises(StoreError, match="cannot write ledger"):
            registry.check()


# -- at once ---------------------------------------------------------------------------------


@contextlib.contextmanager
def process(target: Any, *arguments: Any) -> Iterator[BaseProcess]:
    child = spawn.Process(target=target, args=arguments)
    child.start()
    try:
        yield child
    finally:
        child.kill()
        child.join(60)


def _promote_at_once(
    spec: StoreSpec, digit: str, champion: ModelRef, start: Any, done: "Queue[tuple[str, Any]]"
) -> None:
    carry_out = promotion._carry_out

    def carry_out_at_once(*arguments: Any) -> Any:
        start.wait(120)  # all have passed the gate before one of them is promoted
        return carry_out(*arguments)

    promotion._carry_out = carry_out_at_once  # type: ignore[assignment]
    done.put((digit, gate_decides(student_ref(digit), champion, spec)))


@pytest.mark.slow
def test_of_two_promotions_at_once_one_wins_and_the_other_is_refused(
    ledger_spec: StoreSpec, store: Store, registry: DatabaseRegistry
) -> None:
    put_files(store, student_ref("1"))
    gate_decides(student_ref("1"), None, ledger_spec)
    done: Queue[tuple[str, Any]] = spawn.Queue()
    start = spawn.Barrier(3)
    with contextlib.ExitStack() as stack:
        for digit in ("2", "3", "4"):
            arguments = (ledger_spec, digit, student_ref("1"), start, done)
            stack.enter_context(process(_promote_at_once, *arguments))
        verdicts = dict(done.get(timeout=300) for _ in range(3))
    (winner,) = [digit for digit, verdict in verdicts.items() if verdict.promoted]
    for digit in {"2", "3", "4"} - {winner}:
        *passed, refusal = verdicts[digit].checks
        assert passed and all(check.passed for check in passed)
        assert (refusal.condition, refusal.passed) == ("alias", False)
        assert f"moved to 'train_student/{winner * 64}" in verdicts[digit].sentence
    entries = registry.history(*ALIAS)
    assert [e.student for e in entries] == [student_ref("1"), student_ref(winner)]
    assert _file(store) == (student_ref(winner), tuple(e.id for e in entries))


def _roll_back_at_once(spec: StoreSpec, start: Any, done: "Queue[str]") -> None:
    with open_registry(spec) as registry:
        look = registry.history

        def history(task: str, alias: str) -> Any:
            entries = look(task, alias)
            registry.history = look  # type: ignore[method-assign]
            start.wait(120)  # both have looked before one of them writes
            return entries

        registry.history = history  # type: ignore[method-assign]
        try:
            done.put(roll_back(registry, Store(spec.root), *ALIAS, "rude").student.uri)
        except RegistryError as error:
            done.put(str(error))


@pytest.mark.slow
def test_two_rollbacks_at_once_go_one_step_back(
    ledger_spec: StoreSpec, store: Store, registry: DatabaseRegistry
) -> None:
    before = None
    for student in map(student_ref, "123"):
        put_files(store, student)
        gate_decides(student, before, ledger_spec)
        before = student
    done: Queue[str] = spawn.Queue()
    start = spawn.Barrier(2)
    with (
        process(_roll_back_at_once, ledger_spec, start, done),
        process(_roll_back_at_once, ledger_spec, start, done),
    ):
        said = {done.get(timeout=300) for _ in range(2)}
    assert student_ref("2").uri in said
    assert any("was moved to" in text for text in said)
    assert [e.kind for e in registry.history(*ALIAS)] == [*["promotion"] * 3, "rollback"]
    assert _file(store)[0] == student_ref("2")


# -- killed ----------------------------------------------------------------------------------


def _file(store: Store) -> tuple[ModelRef, tuple[str, ...]]:
    """Return the student that the alias's file names, and the history that it lists."""
    raw = store.read_json(alias_files.uri(*ALIAS))
    assert raw is not None
    return ModelRef.model_validate(raw["student"]), tuple(raw["history"])


def _kill_me(*_: object, **__: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)


def _promote_and_die(spec: StoreSpec, moment: str) -> None:
    write = Store.write_bytes

    def write_and_die(self: Store, uri: str, content: bytes) -> None:
        write(self, uri, content)
        _kill_me()

    if moment == "before the commit":
        sa.event.listen(sa.Engine, "commit", _die_with_an_entry)
    elif moment == "before the file":
        alias_files.refresh = _kill_me  # type: ignore[assignment]
    else:
        Store.write_bytes = write_and_die  # type: ignore[method-assign]
    gate_decides(student_ref("2"), student_ref("1"), spec)


def _die_with_an_entry(connection: sa.Connection) -> None:
    """Die when the entry of the second student is about to be committed."""
    rows = connection.exec_driver_sql("SELECT count(*) FROM registry_history").scalar()
    if rows == 2:
        _kill_me()


@pytest.mark.parametrize("moment", ["before the commit", "before the file", "after the file"])
def test_a_promotion_that_is_killed_happened_or_did_not(
    ledger_spec: StoreSpec, store: Store, registry: DatabaseRegistry, moment: str
) -> None:
    first, second = student_ref("1"), student_ref("2")
    put_files(store, first)
    gate_decides(first, None, ledger_spec)
    with process(_promote_and_die, ledger_spec, moment) as child:
        child.join(120)
        assert child.exitcode == -signal.SIGKILL
    now = [e.student for e in registry.history(*ALIAS)]
    assert now == ([first] if moment == "before the commit" else [first, second])
    assert _file(store)[0] == (second if moment == "after the file" else first)
    # What follows puts the file right, and the same run again promotes what it has to.
    alias_files.refresh_all(registry, store)
    assert _file(store)[0] == now[-1]
    assert gate_decides(second, first, ledger_spec).promoted
    assert [e.student for e in registry.history(*ALIAS)] == [first, second]
    assert _file(store)[0] == second
    assert len(standing(registry.history(*ALIAS))) == 2
