"""Rows whose responses a small teacher scores, and ways to score them."""

from pathlib import Path
from typing import Any

import pandas as pd

from distillery.data.chat import dump_messages
from distillery.objectives.soft.local import LocalScorer
from distillery.objectives.soft.stored import ScoredRow, ScoringRow
from distillery.storage.stage import Stage
from distillery.storage.store import Store
from schemas.execution import ExecutionSpec, StageName, StoreSpec
from schemas.frames import TrainingFrame, arrow_schema
from schemas.objectives import SoftTargets
from schemas.refs import DatasetRef
from schemas.task import TaskSpec
from schemas.teacher import TransformersTeacher
from schemas.training import TrainingSpec

INLINE = ExecutionSpec()
TASK = TaskSpec(name="cards", type="classification")
PROMPTS = DatasetRef(uri="prompts", fingerprint="prompts", num_rows=0, columns=())
STAGE = Stage(StageName.SCORE_SOFT_TARGETS, 1, inputs={}, spec={})
TOP_4 = TrainingSpec(objective=SoftTargets(k=4, distillation_temperature=2.0), seed=3)
CONTEXT = 96  # tokens, of the teacher


def soft_of(training: TrainingSpec) -> SoftTargets:
    assert isinstance(training.objective, SoftTargets)
    return training.objective


def local_teacher(folder: Path, **named: Any) -> TransformersTeacher:
    given: dict[str, Any] = {"dtype": "float32", "device": "cpu", "batch_size": 4} | named
    return TransformersTeacher(model=str(folder), **given)


def rows_to_score(num_rows: int = 7) -> list[ScoringRow]:
    """Return rows of different lengths, prompt and response."""
    return [
        ScoringRow(
            f"row {n}",
            "validation" if n % 3 == 2 else "train",
            [{"role": "user", "content": "where is my " + "card " * (n * 5 % 8)}],
            "it was stolen" + " and I need it" * (n * 3 % 5),
        )
        for n in range(num_rows)
    ]


def put_rows(spec: StoreSpec, asked: list[ScoringRow], name: str = "rows") -> DatasetRef:
    rows = [
        row._asdict()
        | {"messages": dump_messages(row.messages)}
        | dict.fromkeys(("reasoning", "teacher", "chosen_because"))
        for row in asked
    ]
    schema = arrow_schema(TrainingFrame)
    with Store(spec.root).row_writer(name, schema) as writer:
        writer.write(pd.DataFrame(rows, columns=schema.names))
    return writer.ref(name)


def score_here(
    folder: Path, training: TrainingSpec, asked: list[ScoringRow], **named: Any
) -> list[ScoredRow]:
    scorer = LocalScorer(local_teacher(folder, **named), soft_of(training))
    return list(scorer.score(asked))


def tokenizer_of(folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


def changed(training: TrainingSpec, **soft: Any) -> TrainingSpec:
    targets = soft_of(training).model_copy(update=soft)
    return training.model_copy(update={"objective": targets})
