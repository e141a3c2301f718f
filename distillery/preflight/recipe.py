"""Refuse what cannot work before anything is read, asked or trained.

What only needs the recipe is checked first, by every run. Opening tokenizers takes seconds and
asking an endpoint needs the network, so that is done right before the first request, which an
unchanged run never makes, and whenever the run is refused anyway: then all problems come at once.
"""

import importlib.util
import logging
import re
from collections.abc import Callable

from distillery.evaluation.harness import check_harness
from distillery.filters import prompt_filters
from distillery.preflight.export import unwritable_formats
from distillery.preflight.filters import check_judging_endpoints, filter_problems
from distillery.preflight.gate import unanswerable_conditions
from distillery.preflight.judge import check_judges_endpoint, judge_problems, self_preference
from distillery.preflight.panel import panel_problems, panel_warnings, places
from distillery.storage.fingerprint import model_identity, tokenizer_identity
from distillery.task_types import TaskType, task_type
from distillery.teacher.choice import check_samples
from distillery.teacher.http.keys import read_key
from distillery.teacher.prompt import instructions
from schemas.data import DataSpec
from schemas.errors import DistilleryError, RecipeError
from schemas.evaluation import EvaluationSpec
from schemas.execution import ExecutionSpec, StoreSpec
from schemas.export import ExportSpec
from schemas.filters import FilterSpec
from schemas.gate import GateSpec
from schemas.judge import JudgeSpec
from schemas.panel import AnyTeacher, singles
from schemas.refs import DatasetRef
from schemas.student import FromScratchStudent, PretrainedStudent, PrunedStudent, StudentSpec
from schemas.task import TaskSpec
from schemas.teacher import OpenAITeacher, TeacherSpec
from schemas.training import TrainingSpec

logger = logging.getLogger("distillery.run")

_TWO_BATCHES_S = 2 * 86_400.0

_ALWAYS_READ = ("id", "messages", "reference", "cluster", "slices")


class _Problems:
    """What is wrong with a recipe, one line each."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def collect(self, check: Callable[..., object], *args: object, **named: object) -> bool:
        """Note what ``check`` raises; return whether it raised nothing."""
        try:
            check(*args, **named)
        except DistilleryError as error:
            self.lines.append(str(error))
            return False
        return True

    def refuse(self) -> None:
        """Raise one RecipeError with all lines; return when there is none."""
        if self.lines:
            raise RecipeError("\n".join(self.lines))


def check_recipe(
    task: TaskSpec,
    data: DataSpec,
    teacher: AnyTeacher,
    student: StudentSpec | None,
    training: TrainingSpec | None,
    store: StoreSpec,
    execution: ExecutionSpec,
    evaluation: EvaluationSpec | None = None,
    export: ExportSpec | None = None,
    gate: GateSpec | None = None,
    filters: FilterSpec | None = None,
) -> None:
    """Return when the sections fit together; otherwise raise one error with all that does not.

    Without a student nothing is trained and nobody compared, so labelled rows are not needed.

    Raises:
        RecipeError: Each problem on its own line, with the one thing to do.
    """
    problems = _Problems()
    kind = task_type(task)
    if problems.collect(kind.check):
        problems.lines += _unknown_labels(kind, data)
    wrong_filters: list[str] = []
    if filters is not None:
        for _, chosen in prompt_filters(filters.prompts):
            problems.collect(chosen.check)
        wrong_filters = [*filter_problems(filters, kind)]
        problems.lines += wrong_filters
    is_instructed = teacher_is_there = True
    for place, each in places(teacher).items():
        is_instructed &= problems.collect(check_samples, each, task)
        is_instructed &= problems.collect(instructions, each, task)
        teacher_is_there &= _check_teacher(problems, each, place)
    if teacher.is_panel:
        judged = student is not None
        problems.lines += panel_problems(teacher, kind, data, evaluation, judges_rows=judged)
        for warning in panel_warnings(teacher):
            logger.warning(warning)
    panel = training.objective.soft_teachers if training else ()
    for number, soft in enumerate(panel):
        problems.collect(instructions, soft.teacher, task)
        _check_teacher(problems, soft.teacher, f"training.objective.panel[{number}].teacher")
    student_is_there = student is not None and _check_student(problems, student)
    if data.train is None:
        problems.lines.append(
            "data.train is missing, so the teacher has nothing to answer. Add it."
        )
    if isinstance(student, FromScratchStudent) and data.gold is None:
        problems.lines.append(
            "data.gold is missing, so a from-scratch student has no baseline to be compared with. "
            "Add the labelled rows that you have."
        )
    shown = [each.examples for each in (*singles(teacher), *(soft.teacher for soft in panel))]
    if any(examples is not None for examples in shown) and data.gold is None:
        problems.lines.append(
            "data.gold is missing, so teacher.examples has no rows to show. Add the labelled rows "
            "that you have, or remove teacher.examples."
        )
    if student is not None:
        problems.lines += _missing_test(data) + _untrained_student(student, evaluation)
        from distillery.preflight.slices import slice_problems

        problems.lines += slice_problems(kind, data, evaluation)
        problems.lines += _unpaid_teacher(teacher, evaluation)
    problems.lines += _missing_columns(kind, data) + _unread_columns(kind, data)
    if evaluation is not None:
        problems.collect(check_harness, evaluation)
        problems.lines += _two_currencies(teacher, evaluation)
    if export is not None and student is not None and student_is_there:
        problems.lines += unwritable_formats(export, student, execution)
    if gate is not None and evaluation is not None:
        problems.lines += unanswerable_conditions(gate, kind, teacher, evaluation)
    problems.lines += _unasked_canaries(teacher, evaluation)
    if teacher.in_batches:
        problems.lines += _impatient_batches(execution, evaluation)
    problems.lines += _no_cluster(teacher, store, execution)
    unusable = _unusable_ledger(store)
    problems.lines += unusable
    if gate is not None and not unusable:
        from distillery.preflight.registry import check_registry

        problems.collect(check_registry, task, gate, store)
    judge = evaluation.judge if evaluation else None
    wrong_judge = judge_problems(judge, kind, export) if judge else []
    problems.lines += wrong_judge
    if judge is not None:
        for warning in self_preference(judge, teacher, student):
            logger.warning(warning)
    if problems.lines:
        there = (
            teacher if teacher_is_there and is_instructed else None,
            student if student_is_there else None,
        )
        _open_and_ask(problems, task, data, *there, training, execution, evaluation)
        if judge is not None and not wrong_judge:
            problems.collect(_ask_judge, judge, task, execution)
        if filters is not None and not wrong_filters:
            problems.collect(_ask_judging_filters, filters)
    problems.refuse()


def check_first_request(
    prompts: DatasetRef,
    task: TaskSpec,
    data: DataSpec,
    teacher: AnyTeacher,
    student: StudentSpec | None,
    training: TrainingSpec | None,
    store: StoreSpec,
    execution: ExecutionSpec,
    evaluation: EvaluationSpec | None = None,
    filters: FilterSpec | None = None,
) -> None:
    """Return when models and endpoint can be used on ``prompts``; the last look before spending.

    Of each sequence of roles in the prompts some are rendered by every model.

    Raises:
        RecipeError: Each problem on its own line, with the one thing to do.
    """
    problems = _Problems()
    _open_and_ask(problems, task, data, teacher, student, training, execution, evaluation)
    if evaluation is not None and evaluation.judge is not None:
        problems.collect(_ask_judge, evaluation.judge, task, execution)
    if filters is not None:
        problems.collect(_ask_judging_filters, filters)
    if not problems.lines:
        from distillery.preflight.models import check_prompts

        read_by = (student, teacher, task, store, training, evaluation)
        problems.collect(check_prompts, prompts, *read_by)
    problems.refuse()


def _open_and_ask(
    problems: _Problems,
    task: TaskSpec,
    data: DataSpec,
    teacher: AnyTeacher | None,
    student: StudentSpec | None,
    training: TrainingSpec | None,
    execution: ExecutionSpec,
    evaluation: EvaluationSpec | None,
) -> None:
    """Note what the models' files tell, and the endpoint; its warnings are logged."""
    from distillery.preflight.models import check_models

    problems.lines += check_models(student, teacher, task, data, execution, training, evaluation)
    teachers = [*singles(teacher)] if teacher else []
    if training is not None:
        teachers += [each.teacher for each in training.objective.soft_teachers]
    for each in teachers:
        if each.is_hosted:
            problems.collect(_ask_endpoint, each, task)


def _ask_endpoint(teacher: OpenAITeacher, task: TaskSpec) -> None:
    from distillery.preflight.endpoint import check_endpoint

    for warning in check_endpoint(teacher, task):
        logger.warning(warning)


def _ask_judge(judge: JudgeSpec, task: TaskSpec, execution: ExecutionSpec) -> None:
    for warning in check_judges_endpoint(judge, task_type(task), execution):
        logger.warning(warning)


def _ask_judging_filters(filters: FilterSpec) -> None:
    for warning in check_judging_endpoints(filters):
        logger.warning(warning)


def check_teacher_recipe(
    task: TaskSpec, data: DataSpec, student: StudentSpec, training: TrainingSpec
) -> None:
    """Return when a teacher can be trained; otherwise raise one error with all that is wrong.

    Raises:
        RecipeError: Each problem on its own line, with the one thing to do.
    """
    problems = _Problems()
    kind = task_type(task)
    if problems.collect(kind.check):
        problems.lines += _unknown_labels(kind, data)
    if training.objective.kind not in ("hard_targets", "auto"):
        problems.lines.append(
            f"training.objective.kind is {training.objective.kind!r}, but gold rows have no "
            "teacher's probabilities. Set it to hard_targets."
        )
    if isinstance(student, PrunedStudent):
        problems.lines.append(
            "student.kind is 'pruned', but a teacher is trained whole, as its students are made "
            "smaller. Set it to pretrained."
        )
    if data.gold is None:
        problems.lines.append("data.gold is missing, so there is nothing to learn from. Add it.")
    problems.lines += _missing_test(data) + _missing_columns(kind, data)
    problems.lines += _unread_columns(kind, data)
    problems.refuse()


def _check_student(problems: _Problems, student: StudentSpec) -> bool:
    """Note files that are not there, or cannot be pruned; return whether they are and can.

    A pruned student's configuration is opened by every run: it is not among what its responses are
    made of, so an unchanged teacher would not have it looked at.
    """
    if isinstance(student, PrunedStudent):
        from distillery.models.pruning import check_prunable

        read = (student.model, student.revision)
        is_there = problems.collect(model_identity, *read, role="student")
        return is_there and problems.collect(check_prunable, student)
    if isinstance(student, PretrainedStudent):
        return problems.collect(model_identity, student.model, student.revision, role="student")
    return student.tokenizer is None or problems.collect(tokenizer_identity, student.tokenizer)


def _check_teacher(problems: _Problems, teacher: TeacherSpec, role: str) -> bool:
    """Note a local model that is not there, or a key that is not set; return whether it is.

    A secret is not looked up: it may be readable only where the teacher is asked.
    """
    if not teacher.is_hosted:
        return problems.collect(model_identity, teacher.model, teacher.revision, role=role)
    return teacher.api_key_env is None or problems.collect(read_key, teacher)


def _missing_test(data: DataSpec) -> list[str]:
    if data.test is not None:
        return []
    return [
        "data.test is missing, so there is nothing to compare the models on. Add labelled rows "
        "that are in no other split."
    ]


def _untrained_student(student: StudentSpec, evaluation: EvaluationSpec | None) -> list[str]:
    if evaluation is None or not evaluation.in_context_student:
        return []
    if isinstance(student, PretrainedStudent):
        return []
    what = "a student from scratch knows nothing before it is trained"
    if isinstance(student, PrunedStudent):
        what = "a pruned student understands no instructions before it is trained"
    return [
        f"evaluation.in_context_student is set, but {what}. Remove it, or name a pretrained "
        "student."
    ]


def _two_currencies(teacher: AnyTeacher, evaluation: EvaluationSpec) -> list[str]:
    machine = evaluation.machine_price
    tokens = {each.price.currency for each in singles(teacher) if each.price is not None}
    if machine is None or not tokens - {machine.currency}:
        return []
    return [
        f"teacher.price is in {min(tokens - {machine.currency})!r} and evaluation.machine_price in "
        f"{machine.currency!r}, so what teacher and student cost cannot be compared. Give both in "
        "one currency."
    ]


def _unasked_canaries(teacher: AnyTeacher, evaluation: EvaluationSpec | None) -> list[str]:
    if evaluation is None or not evaluation.canaries or teacher.is_panel or teacher.is_hosted:
        return []
    return [
        f"evaluation.canaries is {evaluation.canaries}, but a local teacher cannot change behind "
        "its name: its weights are part of its identity. Remove it."
    ]


def _impatient_batches(execution: ExecutionSpec, evaluation: EvaluationSpec | None) -> list[str]:
    """Return what cannot wait for batches: one takes up to a day, and what it leaves another."""
    problems = []
    if execution.mode == "deployment" and execution.child_timeout_s < _TWO_BATCHES_S:
        problems.append(
            f"execution.child_timeout_s is {execution.child_timeout_s:,.0f}, but teacher.batch may "
            "take 24 hours, and as long again for requests that a batch leaves. Set it to "
            f"{_TWO_BATCHES_S:.0f} or more."
        )
    if evaluation is not None and evaluation.stop_at_width is not None:
        problems.append(
            f"evaluation.stop_at_width is {evaluation.stop_at_width:g}, so the teacher would be "
            "asked for a few test rows at a time, each time in a batch that may take 24 hours. "
            "Remove it, or set teacher.batch to false."
        )
    return problems


def _unpaid_teacher(teacher: AnyTeacher, evaluation: EvaluationSpec | None) -> list[str]:
    if evaluation is None or evaluation.stop_at_width is None or teacher.is_hosted:
        return []
    return [
        f"evaluation.stop_at_width is {evaluation.stop_at_width:g}, but the teacher is loaded here "
        "and not paid by the request, so it answers every test row. Remove it."
    ]


def _unusable_ledger(store: StoreSpec) -> list[str]:
    problems = []
    if "://" in store.root and store.ledger_url is None:
        problems.append(
            f"store.root {store.root!r} is remote but store.ledger_url is missing: teacher "
            "responses need a database that all hosts reach. Set it to a PostgreSQL URL."
        )
    if store.ledger_url and re.search(r"://[^/@:]*:(?!\$\{)[^@/]+@", store.ledger_url):
        problems.append(
            "store.ledger_url holds a password, which would stand in manifests and the UI. Write "
            "${NAME} in its place, the name of an environment variable."
        )
    return problems


def _no_cluster(teacher: AnyTeacher, store: StoreSpec, execution: ExecutionSpec) -> list[str]:
    """Return why the chunks cannot be answered on Ray."""
    if execution.ray is None:
        return []
    problems = []
    if importlib.util.find_spec("prefect_ray") is None:
        problems.append(
            "execution.ray needs prefect-ray, which is not installed here. Run "
            "pip install 'distillery[ray]', on the nodes of a cluster too."
        )
    if store.ledger_url is None:
        problems.append(
            "execution.ray is set but store.ledger_url is missing: the workers keep one ledger, "
            "and SQLite's file is for one machine. Set it to a PostgreSQL URL."
        )
    if not all(each.is_hosted for each in singles(teacher)):
        problems.append(
            "execution.ray is set, but the teacher runs here, and each worker would load it "
            "again. Name the endpoint of a server, or remove execution.ray."
        )
    return problems


def _missing_columns(kind: TaskType, data: DataSpec) -> list[str]:
    """Return the columns that a source has to name and does not."""
    from schemas.frames import LABELLED, SPLITS

    sources = {split: getattr(data, split) for split in SPLITS}
    columns = {split: source.columns for split, source in sources.items() if source is not None}
    labelled = {split: columns[split] for split in LABELLED if split in columns}
    missing = [
        f"data.{split}.columns.messages is missing, and task.type {kind.task.type.value!r} reads "
        "nothing else. Name the column with the conversations."
        for split, named in columns.items()
        if not named.messages and not kind.fields
    ]
    missing += [
        f"data.{split}.columns.reference is missing, so no answer of this split can be scored. "
        "Name the column with the right answers."
        for split, named in labelled.items()
        if not (named.reference or named.messages)
    ]
    return missing + [
        f"data.turns is 'every' but data.{split}.columns.reference names one answer for a whole "
        "conversation. Remove it, so that each turn of the assistant is the answer to what came "
        "before it, or set data.turns to last."
        for split, named in labelled.items()
        if data.turns == "every" and named.messages and named.reference
    ]


def _unread_columns(kind: TaskType, data: DataSpec) -> list[str]:
    """Return a line for every column that is named and would not be read."""
    from distillery.data.loading import prompt_fields
    from schemas.frames import SPLITS

    lines = []
    sources = {split: getattr(data, split) for split in SPLITS}
    for split, columns in ((split, s.columns) for split, s in sources.items() if s is not None):
        read = prompt_fields(columns, kind, data)
        if columns.messages:
            why = "columns.messages holds the whole prompt"
        else:
            reader = f"task.type {kind.task.type.value!r}"
            if data.prompt_template is not None:
                reader = "data.prompt_template"
            why = f"{reader} reads {' and '.join(read) or 'messages'}"
        lines += [
            f"data.{split}.columns.{name} is {getattr(columns, name)!r}, but {why}, so that column "
            "would be ignored. Remove it, or choose otherwise."
            for name in type(columns).model_fields
            if name not in (*_ALWAYS_READ, *read) and getattr(columns, name)
        ]
    return lines


def _unknown_labels(kind: TaskType, data: DataSpec) -> list[str]:
    """Return a line for every label map that leads to something other than a label."""
    from schemas.frames import LABELLED

    return [
        f"data.{split}.label_map makes {key!r} {label!r}, which is none of the labels "
        f"{', '.join(map(repr, kind.labels)):.200}. Correct it."
        for split, source in ((split, getattr(data, split)) for split in LABELLED)
        for key, label in (source.label_map.items() if source and kind.labels else ())
        if kind.parse(label) is None
    ]
