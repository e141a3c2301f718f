"""Before anything is spent: whether the models of a recipe can be used, with its prompts."""

import dataclasses
from collections.abc import Iterator
from typing import NamedTuple

from distillery.data.chat import Message, load_messages, with_system_turn
from distillery.models.chat_format import ChatFormat
from distillery.models.hardware import resolve_device
from distillery.models.loading import ModelFiles
from distillery.models.vocabulary import known_vocabulary
from distillery.objectives.choice import reads_with_teacher
from distillery.preflight.vllm import check_length, check_served_here
from distillery.storage.store import Store
from distillery.teacher.prompt import TeacherPrompt, instructions
from schemas.contestants import IN_CONTEXT
from schemas.data import DataSpec
from schemas.errors import DistilleryError, RecipeError
from schemas.evaluation import EvaluationSpec
from schemas.execution import ExecutionSpec, StoreSpec
from schemas.objectives import SoftTeacher
from schemas.panel import AnyTeacher
from schemas.refs import DatasetRef
from schemas.student import FromScratchStudent, PretrainedStudent, StudentSpec
from schemas.task import TaskSpec
from schemas.teacher import TeacherSpec, TransformersTeacher, VLLMTeacher
from schemas.teacher_base import OwnTeacher
from schemas.training import TrainingSpec

_QUESTION = Message(role="user", content="What is six times seven?")
_RESPONSE, _THOUGHTS = "Forty-two.", "Six sevens are asked for."
_ROWS_PER_SHAPE = 20


class _Reader(NamedTuple):
    """A model that reads the prompts of a recipe."""

    role: str
    spec: StudentSpec | OwnTeacher
    renders_responses: bool
    """Whether responses are rendered with its template too, to learn or to score them."""

    prompt_of: TeacherSpec | None
    """Whose instructions and examples stand around a row. None: nobody's."""

    learns_thoughts: bool = False
    """Whether thoughts are learnt with them."""


def _readers(
    student: StudentSpec | None,
    teacher: AnyTeacher | None,
    training: TrainingSpec | None,
    evaluation: EvaluationSpec | None,
) -> Iterator[_Reader]:
    """Yield the models whose files are here; a new student with a new tokenizer has none yet."""
    is_new = isinstance(student, FromScratchStudent) and student.tokenizer is None
    if student is not None and not is_new:
        thinks = training is not None and training.learn_reasoning
        yield _Reader("student", student, True, prompt_of=None, learns_thoughts=thinks)
    scores = training is not None and reads_with_teacher(training)
    for name, single in _members(teacher).items():
        if not single.is_hosted:
            yield _Reader(name, single, renders_responses=scores, prompt_of=single)
    for each in panel_of(training):
        if not each.teacher.is_hosted:
            role = f"teacher {each.name!r} of training.objective.panel"
            yield _Reader(role, each.teacher, renders_responses=True, prompt_of=each.teacher)
    in_context = evaluation is not None and evaluation.in_context_student
    if teacher is None or teacher.is_panel:
        return
    if in_context and isinstance(student, PretrainedStudent):
        untold = student.model_copy(update={"system_prompt": None})
        yield _Reader(IN_CONTEXT, untold, renders_responses=False, prompt_of=teacher)


def _members(teacher: AnyTeacher | None) -> dict[str, TeacherSpec]:
    """Return the teachers that answer rows, by what messages call them."""
    if teacher is None:
        return {}
    if not teacher.is_panel:
        return {"teacher": teacher}
    return {f"teacher {each.name!r}": each.teacher for each in teacher.teachers}


def panel_of(training: TrainingSpec | None) -> tuple[SoftTeacher, ...]:
    """Return the teachers whose probabilities count beside those of the recipe's."""
    return () if training is None else training.objective.soft_teachers


def check_models(
    student: StudentSpec | None,
    teacher: AnyTeacher | None,
    task: TaskSpec,
    data: DataSpec,
    execution: ExecutionSpec,
    training: TrainingSpec | None = None,
    evaluation: EvaluationSpec | None = None,
) -> list[str]:
    """Return what is wrong with the models, one line each; of them, only small files are opened.

    That is: a tokenizer or a chat template that is missing, a template that cannot render turns as
    the recipe makes them or leaves instructions out, responses that do not end or do not come
    back, thoughts that are to be learnt but have no place, a vocabulary larger than the embedding,
    a device or a vLLM that is not there (looked for only where stages run in this process).
    ``training`` decides whether the teacher renders responses too, to score them, ``evaluation``
    whether the student reads the teacher's prompt.
    """
    problems: list[str] = []
    for reader in _readers(student, teacher, training, evaluation):
        try:
            _check_files(reader, task, data)
            if execution.mode == "inline":
                _check_machine(reader.spec)
        except DistilleryError as error:
            problems.append(str(error))
    return problems


def _check_machine(spec: StudentSpec | OwnTeacher) -> None:
    """Return when this machine can run a teacher; a student is made where there is room."""
    if isinstance(spec, TransformersTeacher):
        resolve_device(spec.device)
    elif isinstance(spec, VLLMTeacher):
        check_served_here(spec)


def check_prompts(
    prompts: DatasetRef,
    student: StudentSpec | None,
    teacher: AnyTeacher | None,
    task: TaskSpec,
    store: StoreSpec,
    training: TrainingSpec | None = None,
    evaluation: EvaluationSpec | None = None,
) -> None:
    """Return when the models can read the prompts; after loading, before the first request.

    Of each sequence of roles the first rows are rendered, as each model reads them. ``training``
    and ``evaluation`` as in :func:`check_models`.

    Raises:
        RecipeError: The first row that a model cannot read, by its `prompt_id`; or there are fewer
            gold rows than examples to show.
    """

    def prompt_of(spec: TeacherSpec) -> TeacherPrompt:
        return TeacherPrompt(spec, task, prompts, store)

    for spec in (*_members(teacher).values(), *(each.teacher for each in panel_of(training))):
        prompt_of(spec).around([[_QUESTION]])
    readers = [
        (
            reader,
            ModelFiles.of(reader.spec).chat_format(),
            prompt_of(reader.prompt_of) if reader.prompt_of else None,
        )
        for reader in _readers(student, teacher, training, evaluation)
    ]
    seen: dict[tuple[str, ...], int] = {}
    for batch in Store(store.root).batches(prompts) if readers else ():
        for row in batch.select(["prompt_id", "split", "messages"]).to_pylist():
            messages = load_messages(row["messages"])
            roles = tuple(message["role"] for message in messages)
            seen[roles] = seen.get(roles, 0) + 1
            if seen[roles] > _ROWS_PER_SHAPE:
                continue
            for reader, chat_format, prompt in readers:
                try:
                    told = prompt.around([messages])[0] if prompt else messages
                    _render(reader, chat_format, told)
                    if isinstance(reader.spec, VLLMTeacher):
                        check_length(reader.spec, len(chat_format.prompt_ids(told)))
                    _refuse_lost_system_turn(chat_format, told)
                except DistilleryError as error:
                    raise RecipeError(
                        f"the {reader.role} cannot read row {row['prompt_id']!r} (split "
                        f"{row['split']!r}): {error}"
                    ) from error


def _check_files(reader: _Reader, task: TaskSpec, data: DataSpec) -> None:
    files = ModelFiles.of(reader.spec)
    chat_format, asked = files.chat_format(), [_QUESTION]
    if reader.prompt_of is not None and reader.prompt_of.examples is not None:
        asked = [_QUESTION, Message(role="assistant", content=_RESPONSE), _QUESTION]
    told, fields = asked, []
    if data.system_prompt is not None:
        told, fields = with_system_turn(told, data.system_prompt), ["data.system_prompt"]
    if reader.prompt_of and (text := instructions(reader.prompt_of, task)) is not None:
        told, fields = with_system_turn(told, text), ["teacher.system_prompt", *fields]
    if files.system_prompt is not None:  # which the template puts there
        fields = ["student.system_prompt", *fields]
    try:
        _render(reader, chat_format, told)
    except DistilleryError as error:
        source = f" The system turn comes from {' and '.join(fields)}." if fields else ""
        raise RecipeError(f"{error}{source}") from error
    if fields:
        _check_system_turn(reader, chat_format, files, (asked, told), fields)
    if not isinstance(reader.spec, FromScratchStudent):
        known_vocabulary(chat_format.tokenizer, files.config().vocab_size, role=reader.role)


def _check_system_turn(
    reader: _Reader,
    chat_format: ChatFormat,
    files: ModelFiles,
    turns: tuple[list[Message], list[Message]],
    fields: list[str],
) -> None:
    """Refuse a template that passes over system turns, as some do without an error."""
    untold = dataclasses.replace(files, system_prompt=None).chat_format()
    text = files.system_prompt or turns[1][0]["content"]
    if _is_lost(text, chat_format, untold.prompt_ids(turns[0]), chat_format.prompt_ids(turns[1])):
        raise RecipeError(
            f"the {reader.role}'s chat template ({files.model!r}) leaves system turns out, so "
            f"{' and '.join(fields)} would never be read. Put the instructions into "
            "data.prompt_template, or choose a model whose template has system turns."
        )


def _render(reader: _Reader, chat_format: ChatFormat, messages: list[Message]) -> None:
    if reader.renders_responses:
        chat_format.row(messages, _RESPONSE)
    else:
        chat_format.prompt_ids(messages)
    if reader.learns_thoughts:
        chat_format.row(messages, _RESPONSE, _THOUGHTS)


def _refuse_lost_system_turn(chat_format: ChatFormat, messages: list[Message]) -> None:
    """Refuse a template that passes over the system turn of a row."""
    first = messages[0]
    if first["role"] != "system":
        return
    untold, told = chat_format.prompt_ids(messages[1:]), chat_format.prompt_ids(messages)
    if _is_lost(first["content"], chat_format, untold, told):
        raise RecipeError(
            "the chat template leaves the system turn out, so it would never be read. Put its "
            "text into the user's turn, or choose a model whose template has system turns."
        )


def _is_lost(text: str, chat_format: ChatFormat, untold: list[int], told: list[int]) -> bool:
    """Return whether a system turn changes nothing, and not because it is the usual one."""
    return untold == told and text.strip() not in chat_format.tokenizer.decode(told)
