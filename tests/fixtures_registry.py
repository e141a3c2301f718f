"""Students as a store holds them, comparisons of them, and entries of an alias's history."""

from typing import Any

from distillery.registry.base import here_and_now
from distillery.registry.promotion import promote_student
from distillery.storage.scratch import scratch_folder
from distillery.storage.stage import Attempt, Stage, run_stage
from distillery.storage.store import Store
from schemas.comparison import Comparison
from schemas.execution import ExecutionSpec, StageName, StoreSpec
from schemas.gate import GateSpec
from schemas.promotion import EntryKind, HistoryEntry, Promotion
from schemas.refs import ModelRef
from tests.fixtures_comparison import SCORES, TASK, comparison, measurement, measurements
from tests.fixtures_lineage import lineage_of

# Of twenty rows, on which two students tie: that leaves room for a loss of 16.8 points.
GATE = GateSpec(min_retention=0.7, max_loss_to_champion=0.2)


def student_ref(digit: str, attempt: str = "a") -> ModelRef:
    """Return a ref to a student whose fingerprint is 64 times ``digit``."""
    uri = f"train_student/{digit * 64}/{attempt}/model"
    return ModelRef(uri=uri, fingerprint=digit * 64, num_parameters=100_000)


def put_files(store: Store, *models: ModelRef) -> None:
    """Give models a file each."""
    for model in models:
        store.write_bytes(f"{model.uri}/config.json", b"{}")


def sealed_student(store: StoreSpec, name: str) -> ModelRef:
    """Return a student that a training stage has left in the store."""

    def work(attempt: Attempt) -> None:
        with scratch_folder("student") as folder:
            (folder / "config.json").write_text("{}")
            attempt.add_model("model", folder, num_parameters=7)

    stage = Stage(StageName.TRAIN_STUDENT, 1, inputs={"name": name}, spec={})
    return run_stage(stage, store, ExecutionSpec(), work).model("model")


def entry(digit: str, kind: EntryKind = "promotion", **changes: Any) -> HistoryEntry:
    """Return the entry by which a student is promoted to tickets/champion."""
    fields: dict[str, Any] = {
        **here_and_now(),
        "kind": kind,
        "task": "tickets",
        "alias": "champion",
        "student": student_ref(digit),
        "reason": "passed the gate",
        "compared": "e" * 64,
    }
    return HistoryEntry(**fields | changes)


def compared(student: ModelRef, champion: ModelRef | None = None) -> Comparison:
    """Return a comparison in which ``student`` and ``champion`` are equally good."""
    scores = dict(SCORES)
    known = {"student": measurement(100_000, 2**15, 0.01, student)}
    if champion is not None:
        scores["champion"] = SCORES["student"]
        known["champion"] = measurement(100_000, 2**15, 0.01, champion)
    return comparison(scores, measured=measurements(**known))


def gate_decides(
    student: ModelRef, champion: ModelRef | None, spec: StoreSpec, gate: GateSpec = GATE
) -> Promotion:
    """Return what becomes of ``student`` after a comparison with ``champion``."""
    return promote_student(compared(student, champion), lineage_of(student), TASK, gate, spec)
