"""Rows to learn from, students and ways to train them that tests of training share."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from distillery.data.chat import content_hash, dump_messages
from distillery.models.chat_format import IGNORED, ChatFormat
from distillery.models.local import LocalModel
from distillery.objectives.choice import needs_scores
from distillery.objectives.soft.stage import score_soft_targets
from distillery.storage.stage import StageResult
from distillery.storage.store import Store
from distillery.training import train_student, training_stage
from distillery.training.launch import processes
from schemas.execution import ExecutionSpec, StageName, StoreSpec
from schemas.frames import PromptFrame, TrainingFrame, arrow_schema
from schemas.objectives import OnPolicy, SoftTargets
from schemas.refs import DatasetRef
from schemas.student import FromScratchStudent, StudentSpec
from schemas.task import TaskSpec
from schemas.teacher import OpenAITeacher, TransformersTeacher
from schemas.training import LoraMethod, TrainingSpec

VOCABULARY = 300
TASK = TaskSpec(name="cards", type="classification")
INLINE = ExecutionSpec()
SCRATCH = FromScratchStudent(
    num_layers=1,
    hidden_size=16,
    intermediate_size=32,
    num_heads=2,
    vocab_size=320,
    max_length=64,
    tokenizer=None,
)
FAST = TrainingSpec(
    learning_rate=1e-2,
    batch_size=8,
    epochs=5,
    evaluations=5,
    max_length=64,
    device="cpu",
)
LORA = FAST.model_copy(update={"method": LoraMethod(r=4, alpha=8), "epochs": 2.0})
# Of different lengths, so that a mean over rows is not the mean over tokens.
ANSWERS = ("no", "yes, the card was sent", "it is on its way and will come tomorrow")
Row = dict[str, Any]


def turns(text: str) -> str:
    return dump_messages([{"role": "user", "content": text}])


def rows_to_learn(
    num_train: int = 24, num_validation: int = 7, *, misleading: bool = False
) -> list[Row]:
    """Return rows of three questions; where misleading, validation asks for other answers."""
    return [
        {
            "prompt_id": str(n),
            "split": "train" if n < num_train else "validation",
            "messages": turns(f"question {n % 3}"),
            "response": ANSWERS[(n + (misleading and n >= num_train)) % 3],
            "reasoning": None,
            "teacher": None,
            "chosen_because": None,
        }
        for n in range(num_train + num_validation)
    ]


class Bench:
    """A store with rows to learn from."""

    def __init__(self, root: Path, rows: list[Row]) -> None:
        self.spec, self.rows = StoreSpec(root=str(root)), rows
        self.store = Store(self.spec.root)
        self.training_rows = self._put("rows", rows, TrainingFrame)
        prompts = [
            {
                "prompt_id": row["prompt_id"],
                "split": row["split"],
                "messages": row["messages"],
                "references": None,
                "content_hash": content_hash(json.loads(row["messages"])),
                "cluster": row["prompt_id"],
                "slices": None,
                "source_row": n,
            }
            for n, row in enumerate(rows, start=1)
        ]
        self.prompts = self._put("prompts", prompts, PromptFrame)

    def _put(self, name: str, rows: list[Row], contract: Any) -> DatasetRef:
        schema = arrow_schema(contract)
        with self.store.row_writer(name, schema) as writer:
            writer.write(pd.DataFrame(rows, columns=schema.names))
        return writer.ref(name)

    def train(
        self, student: StudentSpec = SCRATCH, training: TrainingSpec = FAST, **named: Any
    ) -> StageResult:
        return train_student(
            self.training_rows, self.prompts, student, training, self.spec, INLINE, **named
        )

    def folder(self, student: StudentSpec = SCRATCH, training: TrainingSpec = FAST) -> str:
        """Return where the stage keeps its attempts and checkpoints."""
        name = StageName.TRAIN_STUDENT
        stage = training_stage(name, self.training_rows, self.prompts, student, training)
        return f"{name}/{stage.fingerprint}"

    def checkpoints(
        self, student: StudentSpec = SCRATCH, training: TrainingSpec = FAST
    ) -> list[str]:
        names = self.store.list_folders(f"{self.folder(student, training)}/checkpoints")
        return [name for name in names if name != "tensorboard"]

    def load(self, result: StageResult) -> tuple[Any, Any]:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        folder = self.store.path(result.model("model").uri)
        model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
        return model.eval(), AutoTokenizer.from_pretrained(folder)

    def weights(self, result: StageResult) -> dict[str, Any]:
        return dict(self.load(result)[0].state_dict())

    def loss(self, result: StageResult, split: str) -> float:
        """Return the cross-entropy of the stored model, by hand: nats per response token."""
        model, tokenizer = self.load(result)
        nats, num_tokens = 0.0, 0
        for row in self.rows:
            if row["split"] != split:
                continue
            tokens = ChatFormat(tokenizer).row(json.loads(row["messages"]), row["response"])
            with torch.no_grad():
                logits = model(torch.tensor([tokens.input_ids])).logits[0]
            for position, label in enumerate(tokens.labels):
                if label != IGNORED:
                    scores = logits[position - 1]
                    nats += float(scores.exp().sum().log() - scores[label])
                    num_tokens += 1
        return nats / num_tokens


class School(Bench):
    """Rows, a teacher and a student that shares its tokenizer."""

    def __init__(self, root: Path, folder: str, num_train: int = 24) -> None:
        super().__init__(root, rows_to_learn(num_train))
        self.teacher: TransformersTeacher | OpenAITeacher = TransformersTeacher(
            model=folder, dtype="float32", device="cpu"
        )
        self.student = FromScratchStudent(
            num_layers=1,
            hidden_size=32,
            intermediate_size=64,
            num_heads=2,
            max_length=64,
            tokenizer=folder,
            initializer_std=0.2,
        )

    def score(self, training: TrainingSpec) -> DatasetRef:
        args = (self.training_rows, self.prompts, self.teacher, TASK, training, self.spec, INLINE)
        return score_soft_targets(*args).dataset("soft_targets")

    def teach(self, training: TrainingSpec, **named: Any) -> StageResult:
        named = {"teacher": self.teacher, "task": TASK} | named
        if needs_scores(training):
            named = {"soft_targets": self.score(training)} | named
        return self.train(self.student, training, **named)

    def divergence(self, result: StageResult) -> tuple[float, float]:
        """Return mean KL(teacher || student) over response tokens, and how often argmaxes agree."""
        model, tokenizer = self.load(result)
        teacher = LocalModel.load(self.teacher.model, device="cpu").model
        nats: list[float] = []
        agree: list[bool] = []
        for row in self.rows:
            if row["split"] != "train":
                continue
            tokens = ChatFormat(tokenizer).row(json.loads(row["messages"]), row["response"])
            ids = torch.tensor([tokens.input_ids])
            at = [n - 1 for n, label in enumerate(tokens.labels) if label != IGNORED]
            with torch.no_grad():
                log_p = teacher(ids).logits[0, at].log_softmax(-1)
                log_q = model(ids).logits[0, at].log_softmax(-1)
            nats += (log_p.exp() * (log_p - log_q)).sum(-1).tolist()
            agree += (log_p.argmax(-1) == log_q.argmax(-1)).tolist()
        return sum(nats) / len(nats), sum(agree) / len(agree)


class Killed(BaseException):
    """Stands for whatever ends a process."""


def die_at(step: int) -> Any:
    def on_progress(now: int, _steps: int, _figures: dict[str, float]) -> None:
        if now >= step:
            raise Killed

    return on_progress


def same_weights(one: dict[str, Any], two: dict[str, Any]) -> bool:
    return one.keys() == two.keys() and all(one[name].equal(two[name]) for name in one)


def train_by(target: str, patch: pytest.MonkeyPatch) -> None:
    """Let a target of `training_targets` stand for the worker.

    With `train_to_step_4` short trainings are not over before a busy machine tells of their steps.
    """
    patch.setattr(processes, "_WORKER", "tests.training_targets")
    patch.setenv("TARGET", target)


def soft_targets(**settings: Any) -> SoftTargets:
    return SoftTargets(**({"k": VOCABULARY} | settings))


SOFT = TrainingSpec(
    objective=soft_targets(),
    learning_rate=1e-2,
    batch_size=8,
    epochs=2,
    evaluations=3,
    max_length=64,
    device="cpu",
)


def soft_training(**changes: Any) -> TrainingSpec:
    return SOFT.model_copy(update=changes)


def on_policy(objective: dict[str, Any] | None = None, **training: Any) -> TrainingSpec:
    settings = {"student_fraction": 0.5, "max_new_tokens": 12} | (objective or {})
    return soft_training(objective=OnPolicy(**settings), **training)
