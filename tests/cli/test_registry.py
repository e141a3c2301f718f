"""`distillery registry`: who is in production, how that came about, and the way back."""

import json
import os
import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from cli.app import app
from distillery.registry import open_registry
from distillery.registry.database import DatabaseRegistry
from distillery.storage.store import Store
from schemas.execution import StoreSpec
from schemas.refs import ModelRef
from tests.fixtures_registry import entry, gate_decides, put_files, sealed_student, student_ref
from tests.ports import free_port


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["registry", *arguments])


def printed(*arguments: str) -> str:
    done = run(*arguments)
    assert done.exit_code == 0, done.output
    return done.stdout


def refused(*arguments: str) -> str:
    done = run(*arguments)
    assert done.exit_code == 1 and done.stderr.count("\n") == 1, done.output
    return done.stderr


def place(spec: StoreSpec) -> list[str]:
    where = ["--root", spec.root]
    return where if spec.ledger_url is None else [*where, "--ledger-url", spec.ledger_url]


@pytest.fixture
def students(ledger_spec: StoreSpec) -> tuple[ModelRef, ModelRef]:
    """Two students of the store, promoted one after the other."""
    first, second = sealed_student(ledger_spec, "first"), sealed_student(ledger_spec, "second")
    assert gate_decides(first, None, ledger_spec).promoted
    assert gate_decides(second, first, ledger_spec).promoted
    return first, second


def test_every_command_that_the_guide_shows_works(
    ledger_spec: StoreSpec, students: tuple[ModelRef, ModelRef]
) -> None:
    put_files(Store(ledger_spec.root), student_ref("9"))
    with DatabaseRegistry(ledger_spec) as registry:
        forms = {"gguf q8_0": student_ref("9")}
        current = registry.history("tickets", "champion")[-1]
        changes = {"id": "3", "forms": forms}
        registry.promote(current.model_copy(update=changes), expected=None)
    guide = Path("docs/deploying.md").read_text().replace("support-triage", "tickets")
    guide = guide.replace("c925cec3", students[1].fingerprint[:8])
    commands = re.findall(r"distillery (registry (?:list|show|rollback|promote)[^\n`)]*)", guide)
    assert len(commands) >= 9
    for command in commands:
        arguments = shlex.split(command.partition(")")[0])
        done = CliRunner().invoke(app, [*arguments, *place(ledger_spec)])
        assert done.exit_code == 0, (command, done.output)


def test_list_and_show_say_who_is_in_production_and_since_when(
    ledger_spec: StoreSpec, students: tuple[ModelRef, ModelRef]
) -> None:
    first, second = students
    listed = printed("list", *place(ledger_spec))
    assert "tickets/champion" in listed and second.fingerprint[:12] in listed
    assert "0.900 accuracy, 94.7% kept" in listed
    shown = printed("show", "tickets", *place(ledger_spec))
    assert shown.startswith(f"tickets/champion: {second.fingerprint}\n")
    assert Store(ledger_spec.root).location(second.uri) in shown
    assert shown.index(second.fingerprint[:12]) < shown.index(first.fingerprint[:12])
    assert "✓ lower end of the interval" in shown and "passed the gate" in shown


def test_tables_fit_100_columns(
    ledger_spec: StoreSpec, students: tuple[ModelRef, ModelRef]
) -> None:
    reason = "customers in Lyon were told that their parcels had been delivered to the moon"
    printed("rollback", "tickets", "--reason", reason, *place(ledger_spec))
    printed("promote", "tickets", students[1].fingerprint, "--reason", reason, *place(ledger_spec))
    tables = printed("list", *place(ledger_spec)) + printed("show", "tickets", *place(ledger_spec))
    rows = [line for line in tables.splitlines() if set("│┃━─") & set(line)]
    assert len(rows) > 10 and max(map(len, rows)) <= 100


def test_a_path_is_all_that_a_script_reads(ledger_spec: StoreSpec) -> None:
    store, form = Store(ledger_spec.root), student_ref("9")
    put_files(store, student_ref("1"), form)
    with DatabaseRegistry(ledger_spec) as registry:
        registry.promote(entry("1", forms={"gguf q8_0": form}), expected=None)
    where = place(ledger_spec)
    path = printed("show", "tickets", "--path", *where)
    assert path == f"{Path(ledger_spec.root).absolute() / student_ref('1').uri}\n"
    assert (Path(path.strip()) / "config.json").exists()
    of_form = printed("show", "tickets", "--path", "--form", "gguf q8_0", *where)
    assert of_form.strip().endswith(form.uri)
    said = refused("show", "tickets", "--path", "--form", "gguf q8", *where)
    assert "Did you mean 'gguf q8_0'? It has: 'gguf q8_0'." in said
    store.delete(student_ref("1").uri)
    assert "is gone from store" in refused("show", "tickets", "--path", *where)
    assert "files" in printed("show", "tickets", *where)


def test_a_rollback_and_a_promotion_by_hand_are_recorded_with_their_reasons(
    ledger_spec: StoreSpec, students: tuple[ModelRef, ModelRef]
) -> None:
    first, second = students
    where = place(ledger_spec)
    said = printed("rollback", "tickets", "--reason", "it is rude", *where)
    assert said == (
        f"tickets/champion points to {first.fingerprint[:12]} now (before: "
        f"{second.fingerprint[:12]})\n"
    )
    file = Path(ledger_spec.root) / "aliases" / "tickets" / "champion.json"
    assert json.loads(file.read_text())["student"]["uri"] == first.uri
    said = printed("promote", "tickets", second.fingerprint[:8], "--reason", "no, polite", *where)
    assert f"points to {second.fingerprint[:12]} now" in said
    shown = printed("show", "tickets", *where)
    assert "rollback" in shown and "it is rude" in shown
    assert "manual" in shown and "no, polite" in shown
    assert json.loads(file.read_text())["kind"] == "manual"


@pytest.mark.parametrize("verb", [["rollback", "tickets"], ["promote", "tickets", "abc"]])
def test_a_move_by_hand_needs_a_reason(verb: list[str]) -> None:
    done = run(*verb)
    assert done.exit_code == 2 and "--reason" in done.output


def test_an_unknown_task_or_alias_is_named_with_the_nearest(
    ledger_spec: StoreSpec, students: tuple[ModelRef, ModelRef]
) -> None:
    where = place(ledger_spec)
    assert "Did you mean 'tickets/champion'?" in refused("show", "tikets", *where)
    said = refused("rollback", "tickets", "--alias", "champ", "--reason", "r", *where)
    assert "no 'tickets/champ'. Did you mean 'tickets/champion'?" in said


def test_there_may_be_nothing_to_go_back_to(ledger_spec: StoreSpec) -> None:
    where = place(ledger_spec)
    assert printed("list", *where) == "no student was ever promoted\n"
    assert "is empty" in refused("rollback", "tickets", "--reason", "r", *where)
    first = sealed_student(ledger_spec, "first")
    gate_decides(first, None, ledger_spec)
    said = refused("rollback", "tickets", "--reason", "r", *where)
    assert "has pointed to one student only" in said


def test_looking_puts_an_old_alias_file_right(
    ledger_spec: StoreSpec, students: tuple[ModelRef, ModelRef]
) -> None:
    file = Path(ledger_spec.root) / "aliases" / "tickets" / "champion.json"
    right = file.read_bytes()
    file.write_bytes(b"{}")
    printed("list", *place(ledger_spec))
    assert file.read_bytes() == right


def test_looking_at_a_store_makes_nothing(tmp_path: Path) -> None:
    printed("list", "--root", str(tmp_path / "store"))
    assert not (tmp_path / "store").exists() or os.listdir(tmp_path / "store") == []


def test_a_registry_that_cannot_be_reached_is_one_line_without_the_password() -> None:
    url = f"postgresql+psycopg://me:hunter2@127.0.0.1:{free_port()}/x"
    assert "hunter2" not in refused("list", "--ledger-url", url)


def test_gc_keeps_what_a_rollback_can_reach_and_stops_at_a_wrong_registry(
    ledger_spec: StoreSpec, students: tuple[ModelRef, ModelRef]
) -> None:
    store = Store(ledger_spec.root)
    other = sealed_student(ledger_spec, "other")
    gc = ["store", "gc", "--results-older-than", "0h", "--older-than", "0h"]
    if ledger_spec.ledger_url is not None:
        done = CliRunner().invoke(app, [*gc, "--root", ledger_spec.root])
        assert done.exit_code == 1
        assert "knows nothing: tickets/champion" in done.stderr and store.holds(other)
    done = CliRunner().invoke(app, [*gc, *place(ledger_spec)])
    assert done.exit_code == 0, done.output
    assert store.holds(students[0]) and store.holds(students[1]) and not store.holds(other)
    with open_registry(ledger_spec) as registry:
        assert registry.needed() == [students[1], students[0]]
