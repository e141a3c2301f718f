"""Refuse what cannot work before anything is read, asked or trained."""

import os
import re

from distillery.answers import check_answer_format
from distillery.fingerprint import model_identity, tokenizer_identity
from distillery.metrics import refuse_unsupported_task
from schemas.data import DataSpec
from schemas.errors import DistilleryError, RecipeError
from schemas.execution import StoreSpec
from schemas.student import PretrainedStudent, StudentSpec
from schemas.task import TaskSpec
from schemas.teacher import OpenAITeacher, TeacherSpec


def check_recipe(
    task: TaskSpec, data: DataSpec, teacher: TeacherSpec, student: StudentSpec, store: StoreSpec
) -> None:
    """Return when the sections fit together; otherwise raise one error with all that does not.

    Raises:
        RecipeError: Each problem on its own line, with the one thing to do.
    """
    problems: list[str] = []

    def collect(check: object, *args: object, **named: object) -> None:
        try:
            check(*args, **named)  # type: ignore[operator]
        except DistilleryError as error:
            problems.append(str(error))

    collect(refuse_unsupported_task, task)
    collect(check_answer_format, task)
    if isinstance(teacher, OpenAITeacher):
        if teacher.api_key_env and not os.environ.get(teacher.api_key_env):
            problems.append(
                f"teacher.api_key_env names {teacher.api_key_env!r}, which is not set, so the "
                "endpoint would refuse every request. Set it in the environment of the worker."
            )
    else:
        collect(model_identity, teacher.model, teacher.revision, role="teacher")
    if isinstance(student, PretrainedStudent):
        collect(model_identity, student.model, student.revision, role="student")
    elif student.tokenizer is not None:
        collect(tokenizer_identity, student.tokenizer)
    if data.train is None:
        problems.append("data.train is missing, so the teacher has nothing to answer. Add it.")
    if data.gold is None and not isinstance(student, PretrainedStudent):
        problems.append(
            "data.gold is missing, so a from-scratch student has no baseline to be compared with. "
            "Add the labelled rows that you have."
        )
    problems += _missing_references(data)
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
    if problems:
        raise RecipeError("\n".join(problems))


def check_teacher_recipe(task: TaskSpec, data: DataSpec) -> None:
    """Return when a teacher can be trained; otherwise raise one error with all that is wrong.

    Raises:
        RecipeError: Each problem on its own line, with the one thing to do.
    """
    check_answer_format(task)
    problems = _missing_references(data)
    if data.gold is None:
        problems.append("data.gold is missing, so there is nothing to learn from. Add it.")
    if problems:
        raise RecipeError("\n".join(problems))


def _missing_references(data: DataSpec) -> list[str]:
    labelled = {"gold": data.gold, "test": data.test}
    return [
        f"data.{split}.columns.reference is missing, so no answer of this split can be scored. "
        "Name the column with the right answers."
        for split, source in labelled.items()
        if source is not None and source.columns.reference is None
    ]
