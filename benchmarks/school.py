"""A teacher with its responses, students that learn from them, and the test rows for both.

The stages of the spine as calls of the library, without Prefect. What is in the store is not done
again.
"""

import contextlib
import dataclasses
import functools
import json
import math
import statistics
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Self

from distillery.data.chat import load_messages
from distillery.data.loading import load_prompts
from distillery.data.release import release_dataset
from distillery.data.validation import prompt_set, validate_prompts
from distillery.filters.prompts import filter_prompts
from distillery.filters.responses import filter_responses
from distillery.models.hardware import cpu_threads
from distillery.models.local import LocalModel
from distillery.objectives.choice import choose_objective, needs_scores
from distillery.objectives.soft.stage import score_soft_targets
from distillery.storage.export import export_model
from distillery.storage.stage import StageResult, find_stage
from distillery.storage.store import Store
from distillery.task_types import task_type
from distillery.teacher.collection import collect_responses
from distillery.teacher.generation import (
    generate_chunk,
    generation_stage,
    open_session,
    plan_chunks,
)
from distillery.training import train_student
from distillery.training.job import OnProgress
from distillery.training.pruning import prune_student
from schemas.execution import StageName, StoreSpec
from schemas.objectives import HardTargets, SoftTargets
from schemas.recipe import Recipe, TeacherTrainingRecipe
from schemas.refs import DatasetRef, FilteredSet, ModelRef
from schemas.student import PrunedStudent
from schemas.training import TrainingSpec

_CLOCKED_STEPS, _DROPPED_STEPS = 12, 4


@dataclasses.dataclass(frozen=True)
class Answer:
    """What a model answered to one test row."""

    text: str
    truncated: bool


@dataclasses.dataclass(frozen=True)
class Taught:
    """What all students of a school learn from."""

    metric: str
    """The task's primary metric."""
    num_rows: int
    num_response_tokens: int
    """Of all rows, each with its end."""
    quality: float
    """The teacher's."""
    answers: list[Answer]
    """The teacher's, to the test rows."""

    @classmethod
    def read(cls, text: str) -> Self:
        """Return what JSON text holds."""
        found = json.loads(text)
        return cls(**found | {"answers": [Answer(**answer) for answer in found["answers"]]})


@dataclasses.dataclass(frozen=True)
class Learnt:
    """What became of one training; means over the test rows."""

    quality: float
    """The task's primary metric."""
    agreement: float
    """The same with the teacher's answers as the references."""
    steps: int
    """Optimizer steps by the objective itself."""
    steps_before: int
    """Those on hard targets, where the objective follows them."""
    commit: str = ""
    """Of the code that trained it."""


@dataclasses.dataclass(frozen=True)
class Cost:
    """What one optimizer step takes while nothing else runs."""

    step_s: float
    peak_bytes: int
    """The most GPU memory that the training held; on a CPU the most memory of the process."""


class School:
    """One recipe, taught again and again."""

    def __init__(self, recipe: Recipe, store: StoreSpec) -> None:
        """Have the teacher of ``recipe`` answer its prompts."""
        assert not recipe.teacher.is_panel and not recipe.teacher.is_served
        self.recipe, self._teacher, self._store = recipe, recipe.teacher, store
        self._here = here = (store, recipe.execution)
        self._task_type = task_type(recipe.task)
        loaded = load_prompts(recipe.task, recipe.data, *here).dataset("prompts")
        valid = prompt_set(validate_prompts(loaded, recipe.task, recipe.data, *here))
        prompts = filter_prompts(valid, recipe.task, recipe.filters, *here)
        self._prompts = prompts.dataset("prompts")
        rows = valid.model_copy(update={"prompts": self._prompts})
        filtered = filter_responses(
            self._responses(), self._prompts, recipe.task, recipe.filters, *here
        )
        kept = FilteredSet(
            kept=filtered.dataset("kept"),
            rejected=filtered.dataset("rejected"),
            num_responses=filtered.manifest.counts["responses"],
            drop_reasons=filtered.drop_reasons,
        )
        released = release_dataset(kept, rows, recipe.task, recipe.filters, *here)
        self._rows = released.dataset("training_set")
        self._start = self._pruned()
        self._read_test_rows()

    def _responses(self) -> DatasetRef:
        recipe, (store, execution) = self.recipe, self._here
        asked = (self._prompts, self._teacher, recipe.task)
        stage = generation_stage(*asked)
        if found := find_stage(stage, store, execution):
            return found.dataset("responses")
        with open_session(*asked, store) as session, cpu_threads(execution):
            for chunk in plan_chunks(self._prompts, execution.chunk_rows, store):
                generate_chunk(chunk, session, recipe.task)
        collected = collect_responses(stage, *asked, store, execution, session.totals)
        return collected.dataset("responses")

    def _pruned(self) -> ModelRef | None:
        """Return the model that students start from; None: the student's own."""
        if not isinstance(self.recipe.student, PrunedStudent):
            return None
        return prune_student(self._rows, self.recipe.student, *self._here).model("model")

    def _read_test_rows(self) -> None:
        batches = Store(self._store.root).batches(self._prompts, splits=("test",))
        columns = ["messages", "references"]
        rows = [row for batch in batches for row in batch.select(columns).to_pylist()]
        self._references = [json.loads(row["references"]) for row in rows]
        self._conversations: list[list[dict[str, str]]] = [
            [{"role": m["role"], "content": m["content"]} for m in load_messages(row["messages"])]
            for row in rows
        ]

    @functools.cached_property
    def taught(self) -> Taught:
        """What students learn from; may be set to what it was before."""
        soft = self.recipe.training.model_copy(update={"objective": SoftTargets()})
        num_tokens = self._scored(soft).manifest.counts["response_tokens"]
        answers = self._answers(LocalModel.of(self._teacher, device=self._teacher.device))
        quality = self._mean(answers, self._references)
        return Taught(self._task_type.primary, self._rows.num_rows, num_tokens, quality, answers)

    def check(self, training: TrainingSpec) -> None:
        """Return when ``training`` is possible; a RecipeError says why it is not."""
        choose_objective(self._teacher, self.recipe.student, training)

    def teach(self, training: TrainingSpec) -> Learnt:
        """Return what a student learns by ``training``.

        Students of hard targets stay in the store, as others start from them; the rest, of which a
        table takes a hundred, goes once it has answered.
        """
        first, trained = self._train(training)
        store, model = Store(self._store.root), trained.model("model")
        with store.local_copy(model) as folder:
            student = self.recipe.student
            answers = self._answers(
                LocalModel.load(folder, dtype=student.dtype, device=self._teacher.device)
            )
        is_start = training.epochs == self.recipe.training.epochs
        if not (is_start and isinstance(training.objective, HardTargets)):
            _forget(trained, store)
        return Learnt(
            quality=self._mean(answers, self._references),
            agreement=self._mean(answers, [[answer.text] for answer in self.taught.answers]),
            steps=trained.manifest.counts["steps"],
            steps_before=first.manifest.counts["steps"] if first else 0,
        )

    def cost(self, training: TrainingSpec) -> Cost:
        """Return what a step of ``training`` takes; call it while nothing else runs."""
        ends_s: dict[int, float] = {}

        def note(step: int, *_: object) -> None:
            ends_s.setdefault(step, time.perf_counter())  # a validation reports its step once more

        with _most_memory() as peak:
            _, trained = self._train(training, steps=_CLOCKED_STEPS, on_progress=note)
        _forget(trained, Store(self._store.root))
        counted = _CLOCKED_STEPS - _DROPPED_STEPS
        return Cost((ends_s[_CLOCKED_STEPS] - ends_s[_DROPPED_STEPS]) / counted, peak[0])

    def _train(
        self,
        training: TrainingSpec,
        *,
        steps: int | None = None,
        on_progress: OnProgress | None = None,
    ) -> tuple[StageResult | None, StageResult]:
        """Return the training on hard targets before, if there is one, and the training itself.

        ``steps`` is in place of the epochs of the latter.
        """
        chosen = choose_objective(self._teacher, self.recipe.student, training)
        learnt = (self._rows, self._prompts, self.recipe.student)
        first, start = None, self._start
        if chosen.first is not None:
            first = train_student(*learnt, chosen.first, *self._here, start=start)
            start = first.model("model")
        training = chosen.training
        if steps is not None:
            few = {"epochs": 1e-9, "min_steps": steps, "warmup_fraction": 0.5}
            training = training.model_copy(update=few)
        targets = None
        if needs_scores(training):
            targets = self._scored(training).dataset("soft_targets")
        trained = train_student(
            *learnt,
            training,
            *self._here,
            soft_targets=targets,
            teacher=self._teacher,
            task=self.recipe.task,
            start=start,
            because=chosen.because,
            on_progress=on_progress,
        )
        return first, trained

    def _scored(self, training: TrainingSpec) -> StageResult:
        return score_soft_targets(
            self._rows, self._prompts, self._teacher, self.recipe.task, training, *self._here
        )

    def _answers(self, model: LocalModel) -> list[Answer]:
        spec = self.recipe.evaluation
        with cpu_threads(self.recipe.execution):
            responses = model.answer(
                self._conversations, max_new_tokens=spec.max_new_tokens, batch_size=spec.batch_size
            )
        return [Answer(each.text, each.finish_reason == "length") for each in responses]

    def _mean(self, answers: Sequence[Answer], references: Sequence[Sequence[str]]) -> float:
        """Return the mean of the primary metric, as an evaluation computes it; NaN: of nothing."""
        metric = self._task_type.primary
        scores = [
            self._task_type.score(answer.text, right, truncated=answer.truncated)[metric]
            for answer, right in zip(answers, references, strict=True)
        ]
        scored = [score for score in scores if score is not None]
        return statistics.mean(scored) if scored else math.nan


def train_teacher(recipe: TeacherTrainingRecipe, store: StoreSpec) -> str:
    """Return the folder, beside the store's stages, of the teacher that ``recipe`` describes."""
    here = (store, recipe.execution)
    loaded = load_prompts(recipe.task, recipe.data, *here).dataset("prompts")
    valid = validate_prompts(loaded, recipe.task, recipe.data, *here)
    taught = (valid.dataset("gold"), valid.dataset("prompts"), recipe.student, recipe.training)
    trained = train_student(*taught, *here, name=StageName.TRAIN_TEACHER)
    name = f"{recipe.task.name}-{recipe.training.seed}"
    folder = Path(store.root).resolve() / "teachers" / name
    if not (trained.reused and folder.exists()):
        export_model(trained.model("model"), str(folder), store)
    return str(folder)


def _forget(trained: StageResult, store: Store) -> None:
    """Delete a student and the record of its training."""
    stage, fingerprint, _ = trained.model("model").uri.split("/", 2)
    store.delete(f"{stage}/{fingerprint}")


@contextlib.contextmanager
def _most_memory() -> Iterator[list[int]]:
    """Yield a list that holds the most bytes held inside, afterwards: of the GPU if there is one.

    On a CPU it is the resident memory of the process, looked up now and then.
    """
    import torch

    from distillery.evaluation.peak_memory import most_resident

    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    with most_resident() as seen:
        yield seen
    if torch.cuda.is_available():
        seen[0] = torch.cuda.max_memory_allocated()
