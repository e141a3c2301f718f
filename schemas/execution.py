"""Where results are kept and how the run is carried out. Nothing here changes a result."""

from enum import StrEnum
from typing import Literal

from pydantic import Field

from schemas.base import Spec
from schemas.registry import DatabaseRegistry, RegistrySpec


class StageName(StrEnum):
    """The stages, by the names of their tasks and of their folders in the store."""

    READ_LOGS = "read_logs"
    LOAD_PROMPTS = "load_prompts"
    VALIDATE_PROMPTS = "validate_prompts"
    FILTER_PROMPTS = "filter_prompts"
    GENERATE_RESPONSES = "generate_responses"
    FILTER_RESPONSES = "filter_responses"
    RELEASE_DATASET = "release_dataset"
    SCORE_SOFT_TARGETS = "score_soft_targets"
    PRUNE_STUDENT = "prune_student"
    TRAIN_BASELINE = "train_baseline"
    TRAIN_STUDENT = "train_student"
    TRAIN_TEACHER = "train_teacher"
    EXPORT_STUDENT = "export_student"
    ANSWER_SELECTION = "answer_selection"
    TRY_STUDENT = "try_student"
    REPORT_SWEEP = "report_sweep"
    ANSWER_TEST_PROMPTS = "answer_test_prompts"
    RUN_LM_EVAL = "run_lm_eval"
    MEASURE_PERFORMANCE = "measure_performance"
    JUDGE_ANSWERS = "judge_answers"
    COMPARE_MODELS = "compare_models"


_UPSTREAM: dict[StageName, tuple[StageName, ...]] = {
    StageName.LOAD_PROMPTS: (StageName.READ_LOGS,),
    StageName.VALIDATE_PROMPTS: (StageName.LOAD_PROMPTS,),
    StageName.FILTER_PROMPTS: (StageName.VALIDATE_PROMPTS,),
    StageName.GENERATE_RESPONSES: (StageName.FILTER_PROMPTS,),
    StageName.FILTER_RESPONSES: (StageName.GENERATE_RESPONSES,),
    StageName.RELEASE_DATASET: (StageName.FILTER_RESPONSES,),
    StageName.TRAIN_BASELINE: (StageName.FILTER_PROMPTS,),
    StageName.SCORE_SOFT_TARGETS: (StageName.RELEASE_DATASET,),
    StageName.PRUNE_STUDENT: (StageName.RELEASE_DATASET,),
    StageName.TRAIN_STUDENT: (
        StageName.RELEASE_DATASET,
        StageName.SCORE_SOFT_TARGETS,
        StageName.PRUNE_STUDENT,
    ),
    StageName.TRAIN_TEACHER: (StageName.VALIDATE_PROMPTS,),
    # Not the trainings: a model that was trained again is another contestant, and only it answers.
    StageName.ANSWER_TEST_PROMPTS: (StageName.VALIDATE_PROMPTS,),
    StageName.ANSWER_SELECTION: (StageName.VALIDATE_PROMPTS,),
    StageName.MEASURE_PERFORMANCE: (StageName.ANSWER_TEST_PROMPTS, StageName.RUN_LM_EVAL),
    StageName.EXPORT_STUDENT: (StageName.TRAIN_STUDENT,),
    StageName.JUDGE_ANSWERS: (StageName.ANSWER_TEST_PROMPTS,),
    StageName.COMPARE_MODELS: (StageName.MEASURE_PERFORMANCE, StageName.JUDGE_ANSWERS),
}


class StoreSpec(Spec):
    """The store and the ledger."""

    root: str = ".distillery"
    """Path or fsspec URL (`s3://bucket/prefix`) under which everything is kept."""

    ledger_url: str | None = None
    """SQLAlchemy URL of the ledger of teacher responses; its password as `${NAME}`, from the
    environment. None: SQLite inside a local root. A
    remote root needs one, and so do several hosts that write at once: PostgreSQL."""

    registry: RegistrySpec = Field(DatabaseRegistry(), title="Registry")
    """Where promoted students are recorded."""

    browse_url: str | None = Field(None, pattern=r"^https?://[^/\s]+")
    """Address under which browsers reach the files of `root`, such as a bucket's web address or
    that of a file server. Artifacts link to reports there. None: artifacts name the file's place
    (docs/reports.md)."""


class TrialSpec(Spec):
    """The trial of a sweep that a run is."""

    study: str
    """Name of the sweep's study in the ledger's database."""

    number: int = Field(ge=0)
    """Number of the trial."""


class RaySpec(Spec):
    """A Ray cluster that answers the chunks of teacher generation (the extra `ray`).

    Each worker has its own connections to endpoint and ledger, so `teacher.concurrency` counts per
    worker; a request is paid for once all the same.
    """

    address: str | None = None
    """Address of the cluster, such as `ray://head:10001`; its nodes have this package installed.
    None: a Ray of this machine is started, and ends with the stage."""

    num_workers: int | None = Field(None, ge=1)
    """Workers of a Ray that is started here. None: one per core. A cluster has its own number."""


class ExecutionSpec(Spec):
    """How the run is carried out."""

    mode: Literal["inline", "deployment"] = "inline"
    """inline: stages that load a model run in this process. deployment: each goes to its own
    deployment on a work pool (`make up` starts them)."""

    force: tuple[StageName, ...] = ()
    """Stages to rerun although the store has their results, and with them every stage
    downstream. Teacher responses come from the ledger all the same."""

    chunk_rows: int = Field(5000, ge=1)
    """Prompts per chunk of teacher generation. A chunk is a task run, which costs Prefect as much
    as some 80 rows cost us. Set it lower to spread a small run over the workers of Ray."""

    ray: RaySpec | None = Field(None, title="Ray")
    """Where the chunks are answered. None: in threads of the stage's process, which is enough for
    any endpoint that one client can keep busy."""

    cpu_threads: int | None = Field(None, ge=1)
    """Threads of a model that runs on the CPU. None: one per core. Models of a few million
    parameters run faster on 1: their layers are shorter than the threads' handshakes."""

    child_timeout_s: float = Field(86_400.0, gt=0)
    """Longest wait for a child deployment, seconds, queueing included. A day: longer than any
    training that a nightly run should hold, short enough that a dead worker is noticed."""

    trial: TrialSpec | None = Field(None, title="Trial")
    """Set by `sweep_students`: the training reports its validation curve to this trial, and ends
    where the sweep gives the trial up. None: no sweep."""

    def forces(self, stage: StageName) -> bool:
        """Return whether ``stage``, or a stage that it depends on, is to be rerun.

        >>> ExecutionSpec(force=(StageName.RELEASE_DATASET,)).forces(StageName.TRAIN_STUDENT)
        True
        >>> ExecutionSpec(force=(StageName.TRAIN_STUDENT,)).forces(StageName.TRAIN_BASELINE)
        False
        """
        return stage in self.force or any(map(self.forces, _UPSTREAM.get(stage, ())))
