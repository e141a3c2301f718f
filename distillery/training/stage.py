"""The stage: what identifies a training, and the model that it leaves in the store."""

import logging
from pathlib import Path
from typing import Any

from distillery.models.hardware import cpu_threads
from distillery.models.loading import read_template
from distillery.objectives.choice import needs_scores, needs_teacher
from distillery.objectives.soft.panel import panel_inputs
from distillery.storage.fingerprint import model_identity, sha256, tokenizer_identity
from distillery.storage.scratch import scratch_folder
from distillery.storage.stage import Attempt, Stage, StageResult, run_stage
from distillery.teacher import teacher_identity
from distillery.teacher.prompt import prompt_inputs
from distillery.training.job import OnProgress, TrainingJob, TrainingOutcome
from schemas.errors import TrainingError, TrialPruned
from schemas.execution import ExecutionSpec, StageName, StoreSpec
from schemas.refs import DatasetRef, ModelRef
from schemas.student import PretrainedStudent, PrunedStudent, StudentSpec
from schemas.task import TaskSpec
from schemas.teacher import TeacherSpec
from schemas.training import TrainingSpec

logger = logging.getLogger(__name__)

_LOGIC_VERSION = 6
_READ_OF_PRETRAINED = {"dtype", "chat_template_kwargs", "system_prompt"}


def training_stage(
    name: StageName,
    rows: DatasetRef,
    prompts: DatasetRef,
    student: StudentSpec,
    training: TrainingSpec,
    soft_targets: DatasetRef | None = None,
    teacher: TeacherSpec | None = None,
    task: TaskSpec | None = None,
    start: ModelRef | None = None,
    because: str | None = None,
) -> Stage:
    """Return what identifies the training of ``student`` on ``rows``.

    The prompts count only when a tokenizer is trained on them or a teacher beside the student is
    shown some of them, stored scores and the teacher (with its prompt) only where the objective
    needs them, and its settings only where they are read. ``start`` is the model whose weights it
    starts from in place of the student's own: a pruned one, or one that has learnt hard targets; by
    its attempt, as training again on a GPU may give other weights. ``because``, the
    reason for the objective, is recorded with the result and never counts.

    Raises:
        TrainingError: The objective is not decided, or what it learns from is not given.
    """
    inputs: dict[str, Any] = {"rows": rows.hashes or rows.fingerprint}
    objective = training.objective.as_read()
    panel = objective.soft_teachers  # empty where its scores are stored
    if panel:
        objective = objective.model_copy(update={"panel": ()})
    read = training.model_copy(update={"objective": objective})
    spec: dict[str, Any] = {"training": read, "student": student}
    if needs_scores(training):
        if soft_targets is None:
            raise TrainingError(
                f"training.objective.kind is {training.objective.kind!r}, but no soft targets are "
                "given. Give those of score_soft_targets, or set it to hard_targets."
            )
        inputs["soft_targets"] = soft_targets.fingerprint
    if needs_teacher(training):
        if teacher is None or task is None:
            missing = "teacher" if teacher is None else "task"
            raise TrainingError(
                f"training.objective.kind is {training.objective.kind!r} with a teacher beside the "
                f"student, but no {missing} is given. Give one, or set it to hard_targets."
            )
        inputs["teacher"] = teacher_identity(teacher)
        spec["prompt"] = prompt_inputs(teacher, task)
        if panel:
            inputs["panel"] = panel_inputs(panel, task)
        if any(each.examples is not None for each in (teacher, *(p.teacher for p in panel))):
            inputs["gold_rows"] = prompts.identity("gold")
    if start is not None:
        inputs["start"] = start.uri
    if isinstance(student, PretrainedStudent | PrunedStudent):
        inputs["student"] = model_identity(student.model, student.revision, role="student")
        spec["student"] = student.model_dump(include=_READ_OF_PRETRAINED)
    elif student.tokenizer is not None:
        inputs["tokenizer"] = tokenizer_identity(student.tokenizer)
        spec["student"] = student.model_copy(update={"tokenizer": None})
    else:
        inputs["prompts"] = prompts.identities("train", "gold")
    if student.chat_template is not None:
        inputs["chat_template"] = sha256(read_template(student.chat_template))
    return Stage(name, _LOGIC_VERSION, inputs=inputs, spec=spec)


def train_student(
    rows: DatasetRef,
    prompts: DatasetRef,
    student: StudentSpec,
    training: TrainingSpec,
    store: StoreSpec,
    execution: ExecutionSpec,
    *,
    soft_targets: DatasetRef | None = None,
    teacher: TeacherSpec | None = None,
    task: TaskSpec | None = None,
    start: ModelRef | None = None,
    because: str | None = None,
    name: StageName = StageName.TRAIN_STUDENT,
    on_progress: OnProgress | None = None,
) -> StageResult:
    """Return `model`: ``student`` fine-tuned on the responses of ``rows``.

    Checkpoints go to the store as they are made; an attempt that finds some resumes from the
    newest, and its losses are those of a training that was never stopped. The curve and the best
    step are in the manifest's facts, the curve for TensorBoard is the output `tensorboard`.

    Args:
        rows: A TrainingFrame; its validation rows decide early stopping.
        prompts: A PromptFrame; a new tokenizer is trained on its training and gold prompts.
        student: What is trained.
        training: How.
        store: Where everything is.
        execution: How the run is carried out.
        soft_targets: The teacher's probabilities of ``rows``; for objectives that need them.
        teacher: Who runs beside the student, for objectives that need it.
        task: What the instructions of that teacher may name.
        start: The model whose weights it starts from in place of the student's own.
        because: Why the objective was chosen, for the manifest.
        name: Under which stage name the result is kept.
        on_progress: Called at every logged step.

    Raises:
        TrainingError: There is no such device, what is asked for does not fit its memory, a row
            cannot be learnt from, its soft targets are missing or of another kind, or the loss is
            not finite.
        TrialPruned: ``on_progress`` raises it: the training is given up, and its checkpoints are
            deleted.
    """
    stage = training_stage(
        name, rows, prompts, student, training, soft_targets, teacher, task, start
    )

    def work(attempt: Attempt) -> None:
        job = TrainingJob(
            rows=rows,
            prompts=prompts,
            soft_targets=soft_targets if needs_scores(training) else None,
            teacher=teacher if needs_teacher(training) else None,
            task=task,
            start=start,
            student=student,
            training=training,
            store=store,
            execution=execution,
            checkpoints_uri=attempt.checkpoints_uri,
        )
        with scratch_folder("train") as scratch:
            try:
                outcome = _train(job, scratch, on_progress)
            except TrialPruned:
                attempt.store.delete(attempt.checkpoints_uri)  # nobody will go on from them
                raise
            attempt.counts |= outcome.counts
            attempt.timings_s |= outcome.timings_s
            attempt.facts |= outcome.facts
            attempt.facts["objective"] = because or f"{training.objective.kind}: as the recipe says"
            attempt.add_folder("tensorboard", scratch / "checkpoints" / "tensorboard")
            if (scratch / "kept").exists():
                kept = attempt.add_folder("kept", scratch / "kept")
                logger.info("what was written on the way is in %s", attempt.store.path(kept.uri))
            attempt.add_model("model", scratch / "model", num_parameters=outcome.num_parameters)

    return run_stage(stage, store, execution, work)


def _train(job: TrainingJob, scratch: Path, on_progress: OnProgress | None) -> TrainingOutcome:
    """Return the outcome of ``job``: trained here, or in as many processes as it asks for."""
    from distillery.training.launch.processes import train_in_processes
    from distillery.training.preflight import default_num_processes

    training = job.training
    if job.teacher is not None and job.teacher.is_served and not job.teacher.is_hosted:
        # Each process would serve it for itself.
        training = training.model_copy(update={"num_processes": 1})
    num_processes = default_num_processes(training)
    if num_processes > 1:
        return train_in_processes(job, scratch, num_processes, on_progress)
    from distillery.training.loop import train

    with cpu_threads(job.execution):
        return train(job, scratch, on_progress)
