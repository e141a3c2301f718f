"""A teacher with its responses, students that learn from them, and the test rows for both.

The stages of the spine as calls of the library, without Prefect. What is in the store is not done
again.
"""

import dataclasses
import functools
import json
import statistics
from collections.abc import Sequence
from pathlib import Path

from distillery.data.chat import load_messages
from distillery.data.loading import load_prompts
from distillery.data.release import release_dataset
from distillery.data.validation import validate_prompts
from distillery.filters.stage import filter_responses
from distillery.models.hardware import cpu_threads
from distillery.models.local import LocalModel, LocalResponse
from distillery.objectives.choice import ChosenObjective, choose_objective
from distillery.objectives.soft.stage import score_soft_targets
from distillery.storage.export import export_model
from distillery.storage.stage import StageResult, find_stage
from distillery.storage.store import Store
from distillery.task_types import task_type
from distillery.teacher.generation import (
    collect_responses,
    generate_chunk,
    generation_stage,
    open_session,
    plan_chunks,
)
from distillery.training import train_student
from schemas.execution import StageName, StoreSpec
from schemas.objectives import HardTargets, SoftTargets
from schemas.recipe import Recipe, TeacherTrainingRecipe
from schemas.refs import DatasetRef, FilteredSet
from schemas.teacher import TransformersTeacher
from schemas.training import TrainingSpec


@dataclasses.dataclass(frozen=True)
class Learnt:
    """What became of one training; shares of the test rows."""

    accuracy: float
    agreement: float
    """With the teacher's answers."""
    train_s: float


class School:
    """One recipe, taught again and again."""

    def __init__(self, recipe: Recipe, store: StoreSpec) -> None:
        """Have the teacher of ``recipe`` answer its prompts."""
        assert isinstance(recipe.teacher, TransformersTeacher)
        self._recipe, self._teacher, self._store = recipe, recipe.teacher, store
        self._here = here = (store, recipe.execution)
        loaded = load_prompts(recipe.task, recipe.data, *here).dataset("prompts")
        valid = validate_prompts(loaded, recipe.task, recipe.data, *here)
        self._prompts = valid.dataset("prompts")
        filtered = filter_responses(self._responses(), recipe.task, recipe.filters, *here)
        kept = FilteredSet(
            kept=filtered.dataset("kept"),
            rejected=filtered.dataset("rejected"),
            num_responses=filtered.manifest.counts["responses"],
            drop_reasons=filtered.drop_reasons,
        )
        released = release_dataset(kept, recipe.task, recipe.filters, *here)
        self.rows = released.dataset("training_set")
        self._read_test_rows()

    def _responses(self) -> DatasetRef:
        recipe, (store, execution) = self._recipe, self._here
        asked = (self._prompts, self._teacher, recipe.task)
        stage = generation_stage(*asked)
        if found := find_stage(stage, store, execution):
            return found.dataset("responses")
        with open_session(*asked, store) as session, cpu_threads(execution):
            for chunk in plan_chunks(self._prompts, execution.chunk_rows, store):
                generate_chunk(chunk, session, recipe.task)
        collected = collect_responses(stage, *asked, store, execution, session.totals)
        return collected.dataset("responses")

    def _read_test_rows(self) -> None:
        batches = Store(self._store.root).batches(self._prompts, splits=("test",))
        columns = ["messages", "references"]
        rows = [row for batch in batches for row in batch.select(columns).to_pylist()]
        self.references = [json.loads(row["references"]) for row in rows]
        self._conversations: list[list[dict[str, str]]] = [
            [{"role": m["role"], "content": m["content"]} for m in load_messages(row["messages"])]
            for row in rows
        ]

    @functools.cached_property
    def teacher_accuracy(self) -> float:
        """The teacher's share of right answers."""
        return self._share_right(self._teacher_answers, self.references)

    @functools.cached_property
    def num_response_tokens(self) -> int:
        """Tokens of the responses that students learn from, each with its end."""
        training = self._chosen(SoftTargets(), seed=0).training
        return self._scored(training).manifest.counts["response_tokens"]

    def teach(self, objective: HardTargets | SoftTargets, seed: int) -> Learnt:
        """Return what a student learns by ``objective``."""
        chosen = self._chosen(objective, seed)
        targets = None
        if chosen.needs_scores:
            targets = self._scored(chosen.training).dataset("soft_targets")
        result = train_student(
            self.rows,
            self._prompts,
            self._recipe.student,
            chosen.training,
            *self._here,
            soft_targets=targets,
            because=chosen.because,
        )
        answers = self._answers_of(result)
        return Learnt(
            accuracy=self._share_right(answers, self.references),
            agreement=self._share_right(answers, [[a.text] for a in self._teacher_answers]),
            train_s=result.manifest.timings_s["total"],
        )

    def _chosen(self, objective: HardTargets | SoftTargets, seed: int) -> ChosenObjective:
        wanted = {"seed": seed, "objective": objective}
        training = self._recipe.training.model_copy(update=wanted)
        return choose_objective(self._teacher, self._recipe.student, training)

    def _scored(self, training: TrainingSpec) -> StageResult:
        return score_soft_targets(
            self.rows, self._prompts, self._teacher, self._recipe.task, training, *self._here
        )

    @functools.cached_property
    def _teacher_answers(self) -> list[LocalResponse]:
        return self._answers(LocalModel.of(self._teacher, device=self._teacher.device))

    def _answers_of(self, trained: StageResult) -> list[LocalResponse]:
        student, store = self._recipe.student, Store(self._store.root)
        with store.local_copy(trained.model("model")) as folder:
            device = self._teacher.device
            return self._answers(LocalModel.load(folder, dtype=student.dtype, device=device))

    def _answers(self, model: LocalModel) -> list[LocalResponse]:
        spec = self._recipe.evaluation
        with cpu_threads(self._recipe.execution):
            return model.answer(
                self._conversations, max_new_tokens=spec.max_new_tokens, batch_size=spec.batch_size
            )

    def _share_right(
        self, answers: Sequence[LocalResponse], references: Sequence[Sequence[str]]
    ) -> float:
        """Return the share of answers that equal their references, as an evaluation judges it."""
        kind = task_type(self._recipe.task)
        scores = [
            kind.score(answer.text, right, truncated=answer.finish_reason == "length")["accuracy"]
            for answer, right in zip(answers, references, strict=True)
        ]
        return statistics.mean(score for score in scores if score is not None)


def train_teacher(recipe: TeacherTrainingRecipe, store: StoreSpec) -> str:
    """Return the folder, beside the store's stages, of the teacher that ``recipe`` describes."""
    here = (store, recipe.execution)
    loaded = load_prompts(recipe.task, recipe.data, *here).dataset("prompts")
    valid = validate_prompts(loaded, recipe.task, recipe.data, *here)
    taught = (valid.dataset("gold"), valid.dataset("prompts"), recipe.student, recipe.training)
    trained = train_student(*taught, *here, name=StageName.TRAIN_TEACHER)
    folder = Path(store.root).resolve() / "teachers" / recipe.task.name
    if not (trained.reused and folder.exists()):
        export_model(trained.model("model"), str(folder), store)
    return str(folder)
