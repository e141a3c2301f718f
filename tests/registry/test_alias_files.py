"""The file that deployers read says what the registry says."""

import json

from distillery.registry import alias_files
from distillery.registry.database import DatabaseRegistry
from distillery.storage.store import Store
from schemas.promotion import AliasFile
from tests.fixtures_registry import entry, student_ref


def test_the_file_names_student_forms_and_history(registry: DatabaseRegistry, store: Store) -> None:
    form = student_ref("9")
    first = registry.promote(entry("1"), expected=None)
    second = registry.promote(entry("2", forms={"gguf q8_0": form}), expected=student_ref("1").uri)
    assert alias_files.refresh(registry, store, "tickets", "champion")
    raw = store.read_json("aliases/tickets/champion.json")
    assert raw is not None
    assert raw["student"]["uri"] == student_ref("2").uri
    assert raw["forms"]["gguf q8_0"]["uri"] == form.uri
    assert raw["history"] == [first.id, second.id]
    assert AliasFile.model_validate(raw).student == student_ref("2")


def test_a_file_that_is_right_is_not_written_again_and_a_wrong_one_is(
    registry: DatabaseRegistry, store: Store
) -> None:
    assert not alias_files.refresh(registry, store, "tickets", "champion")
    assert store.read_bytes("aliases/tickets/champion.json") is None
    registry.promote(entry("1"), expected=None)
    alias_files.refresh_all(registry, store)
    assert not alias_files.refresh(registry, store, "tickets", "champion")
    store.write_bytes("aliases/tickets/champion.json", b"{half")
    alias_files.refresh_all(registry, store)
    assert json.loads(store.read_bytes("aliases/tickets/champion.json") or b"")["kind"] == (
        "promotion"
    )


def test_a_slow_writer_does_not_leave_an_old_file(registry: DatabaseRegistry, store: Store) -> None:
    registry.promote(entry("1"), expected=None)
    write, num_writes = store.write_bytes, 0

    def promoted_meanwhile(uri: str, content: bytes) -> None:
        nonlocal num_writes
        num_writes += 1
        if num_writes == 1:
            registry.promote(entry("2"), expected=student_ref("1").uri)
        write(uri, content)

    store.write_bytes = promoted_meanwhile  # type: ignore[method-assign]
    alias_files.refresh(registry, store, "tickets", "champion")
    raw = store.read_json("aliases/tickets/champion.json")
    assert raw is not None and raw["student"]["uri"] == student_ref("2").uri


def test_files_of_another_registry_are_orphans(registry: DatabaseRegistry, store: Store) -> None:
    registry.promote(entry("1"), expected=None)
    alias_files.refresh_all(registry, store)
    assert alias_files.orphans(registry, store) == []
    store.write_bytes("aliases/other-task/champion.json", b"{}")
    assert alias_files.orphans(registry, store) == ["other-task/champion"]
