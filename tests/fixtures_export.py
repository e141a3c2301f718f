"""A tiny student in a store, to be exported."""

from pathlib import Path

import pandas as pd

from distillery.data.chat import Message, dump_messages
from distillery.export.stage import export_student
from distillery.storage.stage import Attempt, Stage, StageResult, run_stage
from schemas.execution import ExecutionSpec, StageName, StoreSpec
from schemas.export import ExportFormat
from schemas.frames import TrainingFrame, arrow_schema
from tests.fixtures_models import make_tiny_model

QUESTIONS = (
    "what is 2 + 2 ?",
    "where is my transfer",
    "It's\n\n\tÜber 123  zwei 🚀",
    "the card was stolen",
)


class TrainedStudent:
    """A random Llama that stands for a trained one, and rows that stand for what it learnt."""

    def __init__(self, folder: Path) -> None:
        self.files = make_tiny_model(folder / "student", hidden_size=64)
        self.store = StoreSpec(root=str(folder / "store"))
        self.conversations = [[Message(role="user", content=text)] for text in QUESTIONS]
        made = run_stage(
            Stage(StageName.TRAIN_STUDENT, 1, {}, {}), self.store, ExecutionSpec(), self._write
        )
        self.student, self.rows = made.model("model"), made.dataset("rows")

    def export(self, format: ExportFormat) -> StageResult:
        execution = ExecutionSpec(cpu_threads=1)
        return export_student(self.student, self.rows, format, self.store, execution)

    def _write(self, attempt: Attempt) -> None:
        rows = pd.DataFrame(
            {
                "prompt_id": [str(number) for number in range(len(QUESTIONS))],
                "split": "train",
                "messages": [dump_messages(messages) for messages in self.conversations],
                "response": "yes",
                "reasoning": None,
            }
        )
        with attempt.row_writer("rows", arrow_schema(TrainingFrame)) as writer:
            writer.write(rows)
        attempt.add_model("model", self.files, num_parameters=123)
