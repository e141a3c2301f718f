"""An objective is one class behind one door: the trainer, the rows and the log follow it."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, get_args

import pandas as pd
import pytest

from distillery.data.chat import content_hash, dump_messages
from distillery.objectives.base import Batch, Collate, Columns, Loss, Objective, Row
from distillery.objectives.choice import OBJECTIVES, needs_scores, needs_teacher
from distillery.storage.store import Store
from distillery.training import train_student
from schemas import objectives
from schemas.execution import ExecutionSpec, StoreSpec
from schemas.frames import PromptFrame, TrainingFrame, arrow_schema
from schemas.objectives import HardTargets, SoftTargets
from schemas.refs import DatasetRef
from schemas.student import FromScratchStudent
from schemas.training import TrainingSpec

STUDENT = FromScratchStudent(
    num_layers=1, hidden_size=16, intermediate_size=32, num_heads=2, vocab_size=320, max_length=64
)


class Doubled(Objective):
    """Twice the cross-entropy, with a column of its own: the length of the response in letters."""

    parts: ClassVar[dict[str, str]] = {"half_loss": "labels", "letters": "labels"}

    def features(self) -> dict[str, Any]:
        from datasets import Value

        return {"letters": Value("int32")}

    def columns(self, split: str) -> Columns:
        return lambda row, tokens: {"letters": len(row["response"])}

    def collate(self, rows: Sequence[Row], tokens: Collate) -> Batch:
        import torch

        return {"letters": torch.tensor([float(row["letters"]) for row in rows])}

    def loss(self, model: Any, student: Any, batch: Batch) -> Loss:
        losses = self._response_losses(model, student, batch)
        parts = {"half_loss": losses.hard_nats, "letters": batch["letters"].sum()}
        return Loss({"labels": 2 * losses.loss}, parts)


@pytest.mark.usefixtures("one_thread")
def test_an_objective_of_ones_own_is_learnt_and_told_of_in_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(OBJECTIVES, "hard_targets", Doubled)
    store = Store(str(tmp_path))
    messages = dump_messages([{"role": "user", "content": "where is it?"}])
    rows: list[Row] = [
        {
            "prompt_id": str(n),
            "split": "train" if n < 8 else "validation",
            "messages": messages,
            "response": "on its way",
            "reasoning": None,
            "teacher": None,
            "chosen_because": None,
            "references": None,
            "content_hash": content_hash(json.loads(messages)),
            "cluster": str(n),
            "slices": None,
            "source_row": n + 1,
        }
        for n in range(10)
    ]

    def put(name: str, contract: Any) -> DatasetRef:
        schema = arrow_schema(contract)
        with store.row_writer(name, schema) as writer:
            writer.write(pd.DataFrame(rows, columns=schema.names))
        return writer.ref(name)

    training = TrainingSpec(batch_size=8, epochs=2, evaluations=1, max_length=64, device="cpu")
    result = train_student(
        put("rows", TrainingFrame),
        put("prompts", PromptFrame),
        STUDENT,
        training,
        StoreSpec(root=str(tmp_path)),
        ExecutionSpec(),
    )
    curve: Any = result.manifest.facts["curve"]
    assert {"loss", "half_loss", "eval_letters"} <= {name for entry in curve for name in entry}
    for prefix in ("", "eval_"):
        entry = next(entry for entry in curve if f"{prefix}loss" in entry)
        assert entry[f"{prefix}loss"] == pytest.approx(2 * entry[f"{prefix}half_loss"], rel=1e-5)
        # 10 letters, over the response tokens of a row: more than one, at most letters and end.
        assert 10 / 11 <= entry[f"{prefix}letters"] <= 10


def test_every_branch_of_a_recipe_has_its_objective() -> None:
    branches = get_args(get_args(objectives.Objective)[0])
    kinds = {branch.model_fields["kind"].default for branch in branches}
    assert kinds - {"auto"} == set(OBJECTIVES)


@pytest.mark.parametrize(
    ("objective", "scores", "teacher"),
    [
        (HardTargets(), False, False),
        (SoftTargets(), True, False),
        (SoftTargets(source="online"), False, True),
    ],
)
def test_an_objective_says_what_it_needs(objective: Any, scores: bool, teacher: bool) -> None:
    training = TrainingSpec(objective=objective)
    assert (needs_scores(training), needs_teacher(training)) == (scores, teacher)


def test_settings_of_another_objective_are_passed_over_and_unknown_ones_refused() -> None:
    hard = TrainingSpec.model_validate({"objective": {"kind": "hard_targets", "k": 8}})
    assert hard == TrainingSpec()
    soft = TrainingSpec.model_validate({"objective": {"kind": "soft_targets", "k": 8}})
    assert soft.objective == SoftTargets(k=8)
    with pytest.raises(ValueError, match="temprature\n  Extra inputs are not permitted"):
        TrainingSpec.model_validate({"objective": {"kind": "auto", "temprature": 2}})
