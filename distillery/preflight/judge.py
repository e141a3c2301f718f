"""What can be known of a judge before anything is spent."""

from collections.abc import Iterator

from distillery.evaluation.judge import as_the_judges, naming_the_judge
from distillery.preflight.vllm import check_served_here
from distillery.storage.fingerprint import model_identity
from distillery.task_types import TaskType
from distillery.teacher.http.keys import read_key
from distillery.teacher.pair import VERDICT
from schemas.base import nearest
from schemas.contestants import BASELINE, CHAMPION, IN_CONTEXT, TEACHER
from schemas.data import HubSource
from schemas.errors import DistilleryError
from schemas.execution import ExecutionSpec
from schemas.export import ExportSpec
from schemas.judge import JudgeSpec
from schemas.panel import AnyTeacher
from schemas.student import PretrainedStudent, StudentSpec
from schemas.task import TaskKind
from schemas.teacher import TeacherSpec, VLLMTeacher

JUDGED_TYPES = (TaskKind.CONVERSATION, TaskKind.SUMMARIZATION)


def judge_problems(judge: JudgeSpec, kind: TaskType, export: ExportSpec | None) -> list[str]:
    """Return what is wrong with a judge as far as recipe, environment and files tell, by line.

    Preferences of the hub are read by :func:`check_judges_endpoint`: they may not be on this disk.
    """
    return [
        *_wrong_type(kind),
        *unread_settings(judge.model, "evaluation.judge", "the pair, once in each order"),
        *_unknown_contestants(judge, export),
        *_absent_judge(judge),
        *_unusable_preferences(judge, kind, from_hub=False),
    ]


def check_judges_endpoint(judge: JudgeSpec, kind: TaskType, execution: ExecutionSpec) -> list[str]:
    """Return warnings about a judge; asks the network, and pays for nothing.

    Raises:
        DistilleryError: Its endpoint cannot be used, human preferences of the hub cannot, or this
            machine, where stages run in this process, has no vLLM to serve it.
    """
    from distillery.preflight.endpoint import check_endpoint

    if problems := [*_unusable_preferences(judge, kind, from_hub=True)]:
        raise DistilleryError("\n".join(problems))
    with naming_the_judge():
        if isinstance(judge.model, VLLMTeacher) and execution.mode == "inline":
            check_served_here(judge.model)
        if not judge.model.is_hosted:
            return []
        return [as_the_judges(warning) for warning in check_endpoint(judge.model, VERDICT)]


def unread_settings(model: TeacherSpec, judge: str, reads: str) -> Iterator[str]:
    """Yield what ``model`` has set and no judge reads.

    Args:
        model: Who judges.
        judge: Its place in the recipe.
        reads: What it reads beside the rubric, and how often.
    """
    is_set = {
        "system_prompt": model.system_prompt is not None,
        "examples": model.examples is not None,
        "samples": model.samples.num_samples > 1,
    }
    for name in (name for name, found in is_set.items() if found):
        yield (
            f"{judge}.model.{name} is set, but a judge reads nothing but the rubric and {reads}. "
            f"Remove it, or put what it says into {judge}.rubric."
        )


def self_preference(
    judge: JudgeSpec, teacher: AnyTeacher, student: StudentSpec | None
) -> Iterator[str]:
    """Yield a warning for whom the judge would judge its own responses."""
    name = judge.model.model
    own = {TEACHER: teacher.model} if TEACHER in judge.against else {}
    if isinstance(student, PretrainedStudent):
        own["student"] = student.model
    for who, model in own.items():
        if model == name:
            yield (
                f"evaluation.judge.model {name!r} is the {who}'s model too, and models tend to "
                "prefer what they wrote themselves. Choose another one, or see in "
                "evaluation.judge.preferences whether it agrees with people."
            )


def _wrong_type(kind: TaskType) -> Iterator[str]:
    if kind.task.type not in JUDGED_TYPES:
        yield (
            f"evaluation.judge is set, but answers to task.type {kind.task.type.value!r} are right "
            "or wrong, which needs no opinion. Remove evaluation.judge."
        )


def _unknown_contestants(judge: JudgeSpec, export: ExportSpec | None) -> Iterator[str]:
    exported = [found.name for found in export.formats] if export else []
    known = [TEACHER, BASELINE, CHAMPION, IN_CONTEXT, *exported]
    for name in (name for name in judge.against if name not in known):
        yield (
            f"evaluation.judge.against names {name!r}, whom no student can stand beside."
            f"{nearest(name, known)} Name some of {', '.join(known)}."
        )


def _absent_judge(judge: JudgeSpec) -> Iterator[str]:
    model = judge.model
    try:
        if not model.is_hosted:
            model_identity(model.model, model.revision, role="evaluation.judge.model")
        elif model.api_key_env is not None:
            read_key(model)
    except DistilleryError as error:
        yield as_the_judges(str(error))


def _unusable_preferences(judge: JudgeSpec, kind: TaskType, *, from_hub: bool) -> Iterator[str]:
    from distillery.evaluation.preferences import read_preferences  # brings pandas

    preferences = judge.preferences
    if preferences is None or isinstance(preferences.source, HubSource) is not from_hub:
        return
    if not (kind.fields or preferences.source.columns.messages):
        yield (
            "evaluation.judge.preferences.source.columns.messages is missing, and task.type "
            f"{kind.task.type.value!r} reads nothing else. Name the column with the conversations."
        )
        return
    try:
        read_preferences(preferences, kind)
    except DistilleryError as error:
        yield str(error)
