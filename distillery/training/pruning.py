"""The stage that makes a student from a larger model, before it learns anything."""

from typing import Any

from distillery.storage.fingerprint import model_identity
from distillery.storage.stage import Stage, StageResult
from schemas.execution import ExecutionSpec, StageName, StoreSpec
from schemas.refs import DatasetRef
from schemas.student import PrunedStudent

_LOGIC_VERSION = 1


def pruning_stage(rows: DatasetRef, student: PrunedStudent) -> Stage:
    """Return what identifies a pruned model; the rows count only where activations are measured."""
    inputs: dict[str, Any] = {
        "model": model_identity(student.model, student.revision, role="student")
    }
    spec = student.model_dump(include={"num_layers", "layers", "dtype"})
    if student.intermediate_size is not None:
        inputs["rows"] = rows.identity("train")
        spec |= student.model_dump(include={"intermediate_size", "calibration_rows"})
    return Stage(StageName.PRUNE_STUDENT, _LOGIC_VERSION, inputs=inputs, spec=spec)


def prune_student(
    rows: DatasetRef, student: PrunedStudent, store: StoreSpec, execution: ExecutionSpec
) -> StageResult:
    """Return output `model`: the pruned model with its tokenizer and chat template."""
    raise NotImplementedError
