"""The registry in MLflow, against a real server; and what is said when there is none."""

import sys
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from distillery.preflight.registry import check_registry
from distillery.registry import alias_files, open_registry
from distillery.registry import mlflow as module
from distillery.registry.base import standing
from distillery.registry.by_hand import roll_back
from distillery.registry.mlflow import MlflowRegistry
from distillery.storage.store import Store
from schemas import registry as specs
from schemas.errors import RecipeError, RegistryError, StoreError
from schemas.execution import StoreSpec
from tests.fixtures_comparison import TASK
from tests.fixtures_mlflow import mlflow_server
from tests.fixtures_registry import GATE, entry, gate_decides, put_files, student_ref
from tests.ports import free_port

__all__ = ["mlflow_server"]

ALIAS = ("tickets", "champion")


def spec_of(root: Path, address: str, prefix: str = "distillery-") -> StoreSpec:
    registry = specs.MlflowRegistry(tracking_uri=address, prefix=prefix)
    return StoreSpec(root=str(root), registry=registry)


@pytest.fixture
def spec(mlflow_server: str, tmp_path: Path) -> StoreSpec:
    """A store whose registry is a part of the server that nobody else uses."""
    return spec_of(tmp_path / "store", mlflow_server, f"{uuid.uuid4().hex}-")


@pytest.fixture
def registry(spec: StoreSpec) -> Iterator[MlflowRegistry]:
    with open_registry(spec) as opened:
        assert isinstance(opened, MlflowRegistry)
        yield opened


def model_name(spec: StoreSpec) -> str:
    assert isinstance(spec.registry, specs.MlflowRegistry)
    return f"{spec.registry.prefix}tickets"


def die(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


# -- the real server ---------------------------------------------------------------------------


@pytest.mark.slow
def test_promotions_and_rollbacks_are_what_they_are_in_the_database(
    spec: StoreSpec, registry: MlflowRegistry
) -> None:
    store = Store(spec.root)
    check_registry(TASK, GATE, spec)
    before = None
    for student in map(student_ref, "123"):
        put_files(store, student)
        assert gate_decides(student, before, spec).promoted
        before = student
    assert gate_decides(student_ref("3"), student_ref("2"), spec).promoted, "nothing new"
    assert roll_back(registry, store, *ALIAS, "it is rude").student == student_ref("2")
    entries = registry.history(*ALIAS)
    assert [e.student.fingerprint[0] for e in entries] == ["1", "2", "3", "2"]
    assert (entries[-1].kind, entries[-1].reason) == ("rollback", "it is rude")
    refused = gate_decides(student_ref("3"), student_ref("2"), spec)
    assert "the gate does not bring it back" in refused.sentence
    assert roll_back(registry, store, *ALIAS, "rude, too").student == student_ref("1")
    with pytest.raises(RegistryError, match="has pointed to one student only"):
        roll_back(registry, store, *ALIAS, "again")
    assert registry.aliases() == [ALIAS]
    file = store.read_json(alias_files.uri(*ALIAS))
    assert file is not None and file["student"]["uri"] == student_ref("1").uri
    assert registry.needed() == [student_ref("1")]


@pytest.mark.slow
def test_mlflow_shows_a_version_per_promotion_with_its_figures_and_the_alias(
    spec: StoreSpec, registry: MlflowRegistry
) -> None:
    put_files(Store(spec.root), student_ref("1"))
    gate_decides(student_ref("1"), None, spec)
    gate_decides(student_ref("2"), student_ref("1"), spec)
    version = registry._client.get_model_version_by_alias(model_name(spec), "champion")
    assert str(version.version) == "2"
    shown = {name: version.tags[name] for name in ("fingerprint", "uri", "compared", "reason")}
    assert shown == {
        "fingerprint": "2" * 64,
        "uri": student_ref("2").uri,
        "compared": "e" * 64,
        "reason": "passed the gate",
    }
    assert version.tags["accuracy"] == "0.9000"
    assert version.source == f"distillery:/{student_ref('2').uri}"


@pytest.mark.slow
def test_of_two_promotions_the_second_is_refused_and_leaves_no_version(
    spec: StoreSpec, registry: MlflowRegistry
) -> None:
    registry.promote(entry("1"), expected=None)
    looks = registry._look

    def promoted_meanwhile(task: str, alias: str) -> Any:
        registry._look = looks  # type: ignore[method-assign]
        seen = looks(task, alias)
        registry.promote(entry("2"), expected=student_ref("1").uri)
        return seen

    registry._look = promoted_meanwhile  # type: ignore[method-assign]
    with pytest.raises(RegistryError, match="was moved to 'train_student/2"):
        registry.promote(entry("3"), expected=student_ref("1").uri)
    assert [e.student.fingerprint[0] for e in registry.history(*ALIAS)] == ["1", "2"]
    assert len(list(registry._versions(model_name(spec)))) == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dies_in", "happened"),
    [("set_registered_model_alias", False), ("_tag", True)],
)
def test_a_promotion_that_is_killed_happened_once_the_alias_had_moved(
    spec: StoreSpec,
    registry: MlflowRegistry,
    monkeypatch: pytest.MonkeyPatch,
    dies_in: str,
    happened: bool,
) -> None:
    registry.promote(entry("1"), expected=None)
    with monkeypatch.context() as patch:
        target = registry if dies_in == "_tag" else registry._client
        patch.setattr(target, dies_in, die)
        with pytest.raises(KeyboardInterrupt):
            registry.promote(entry("2"), expected=student_ref("1").uri)
    now = "12" if happened else "1"
    assert "".join(e.student.fingerprint[0] for e in registry.history(*ALIAS)) == now
    registry.promote(entry("3"), expected=student_ref(now[-1]).uri)
    found = registry.history(*ALIAS)
    assert "".join(e.student.fingerprint[0] for e in found) == now + "3"
    assert registry.rollback(*ALIAS, "rude").student == student_ref(now[-1])


@pytest.mark.slow
def test_a_host_whose_clock_is_behind_adds_the_newest_entry_all_the_same(
    registry: MlflowRegistry,
) -> None:
    registry.promote(entry("1"), expected=None)
    registry.promote(entry("2", at=datetime(2020, 1, 1, tzinfo=UTC)), expected=student_ref("1").uri)
    found = registry.history(*ALIAS)
    assert [(e.kind, e.student) for e in found] == [
        ("promotion", student_ref("1")),
        ("promotion", student_ref("2")),
    ]


@pytest.mark.slow
def test_an_alias_that_a_person_moves_in_mlflow_is_believed_and_recorded(
    spec: StoreSpec, registry: MlflowRegistry
) -> None:
    registry.promote(entry("1"), expected=None)
    registry.promote(entry("2"), expected=student_ref("1").uri)
    registry._client.set_registered_model_alias(model_name(spec), "champion", "1")
    moved = registry.champion(*ALIAS)
    assert moved is not None and moved == registry.champion(*ALIAS), "the same each time"
    assert (moved.kind, moved.by, moved.student) == ("manual", "MLflow", student_ref("1"))
    registry.promote(entry("3"), expected=student_ref("1").uri)
    found = registry.history(*ALIAS)
    assert [e.student.fingerprint[0] for e in found] == ["1", "2", "1", "3"]
    assert found[2] == moved
    assert len(standing(found)) == 4


@pytest.mark.slow
def test_a_version_that_a_person_deletes_in_mlflow_is_gone_from_the_history(
    spec: StoreSpec, registry: MlflowRegistry
) -> None:
    before = None
    for digit in "123":
        registry.promote(entry(digit), expected=before)
        before = student_ref(digit).uri
    registry.rollback(*ALIAS, "rude")
    registry._client.delete_model_version(model_name(spec), "1")
    registry._client.delete_model_version(model_name(spec), "3")
    assert [e.student for e in registry.history(*ALIAS)] == [student_ref("2")] * 2
    with pytest.raises(RegistryError, match="has pointed to one student only"):
        registry.rollback(*ALIAS, "rude, too")


@pytest.mark.slow
def test_an_alias_on_a_version_of_somebody_else_is_an_error(
    spec: StoreSpec, registry: MlflowRegistry
) -> None:
    registry.promote(entry("1"), expected=None)
    name = model_name(spec)
    theirs = registry._client.create_model_version(name, "s3://bucket/model")
    registry._client.set_registered_model_alias(name, "champion", str(theirs.version))
    with pytest.raises(RegistryError, match="version 2, which Distillery did not promote"):
        registry.champion(*ALIAS)
    registry._client.delete_registered_model_alias(name, "champion")
    with pytest.raises(RegistryError, match="but that alias is gone"):
        registry.champion(*ALIAS)


# -- without one -------------------------------------------------------------------------------


def test_a_server_that_cannot_be_reached_is_found_before_anything_is_spent(
    tmp_path: Path,
) -> None:
    spec = spec_of(tmp_path / "store", f"http://127.0.0.1:{free_port()}")
    with pytest.raises(StoreError, match=r"cannot read registry 'http://127.*Check store\.reg"):
        check_registry(TASK, GATE, spec)


def test_a_server_that_goes_away_meanwhile_promotes_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_OUTAGE_S", 0.0)
    spec = spec_of(tmp_path / "store", f"http://127.0.0.1:{free_port()}")
    with pytest.raises(StoreError, match="cannot read registry"):
        gate_decides(student_ref("1"), None, spec)
    assert Store(spec.root).read_bytes(alias_files.uri(*ALIAS)) is None


def test_the_extra_that_is_not_installed_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(RecipeError, match=r"pip install 'distillery\[mlflow\]'"):
        check_registry(TASK, GATE, spec_of(tmp_path / "store", "http://127.0.0.1:1"))


@pytest.mark.parametrize("address", ["sqlite:///mlflow.db", "mlflow:5000", "/mlruns", "http://"])
def test_what_is_not_the_address_of_a_server_is_refused(tmp_path: Path, address: str) -> None:
    with pytest.raises(RecipeError, match="is not the address of a server"):
        open_registry(spec_of(tmp_path / "store", address))


def test_a_password_in_the_address_is_refused_and_not_shown(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="MLFLOW_TRACKING_PASSWORD") as caught:
        open_registry(spec_of(tmp_path / "store", "http://me:hunter2@mlflow:5000"))
    assert "hunter2" not in str(caught.value)
