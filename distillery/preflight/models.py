"""Before anything is spent: whether the models of a recipe can be used, with its prompts."""

from collections.abc import Iterator
from typing import NamedTuple

from distillery.data.chat import Message, load_messages
from distillery.models.chat_format import ChatFormat
from distillery.models.hardware import resolve_device
from distillery.models.loading import ModelFiles
from distillery.models.vocabulary import known_vocabulary
from distillery.objectives.choice import reads_with_teacher
from distillery.storage.store import Store
from schemas.data import DataSpec
from schemas.errors import DistilleryError, RecipeError
from schemas.execution import ExecutionSpec, StoreSpec
from schemas.refs import DatasetRef
from schemas.student import FromScratchStudent, PretrainedStudent, StudentSpec
from schemas.teacher import OpenAITeacher, TeacherSpec, TransformersTeacher
from schemas.training import TrainingSpec

_RESPONSE = "Forty-two."
_ROWS_PER_SHAPE = 20


class _Reader(NamedTuple):
    """A model that reads the prompts of a recipe."""

    role: str
    spec: PretrainedStudent | FromScratchStudent | TransformersTeacher
    renders_responses: bool
    """Whether responses are rendered with its template too, to learn or to score them."""


def _readers(
    student: StudentSpec | None, teacher: TeacherSpec | None, training: TrainingSpec | None
) -> Iterator[_Reader]:
    """Yield the models whose files are here; a new student with a new tokenizer has none yet."""
    if isinstance(student, PretrainedStudent) or (student and student.tokenizer is not None):
        yield _Reader("student", student, renders_responses=True)
    if teacher is not None and not isinstance(teacher, OpenAITeacher):
        scores = training is not None and reads_with_teacher(training)
        yield _Reader("teacher", teacher, renders_responses=scores)


def check_models(
    student: StudentSpec | None,
    teacher: TeacherSpec | None,
    data: DataSpec,
    execution: ExecutionSpec,
    training: TrainingSpec | None = None,
) -> list[str]:
    """Return what is wrong with the models, one line each; of them, only small files are opened.

    That is: a tokenizer or a chat template that is missing, a template that cannot render turns as
    the recipe makes them, responses that do not end or do not come back, a vocabulary larger than
    the embedding, a device that is not there (looked for only where stages run in this process).
    ``training`` decides whether the teacher renders responses too, to score them.
    """
    problems: list[str] = []
    for reader in _readers(student, teacher, training):
        try:
            _check_files(reader, data)
            if isinstance(reader.spec, TransformersTeacher) and execution.mode == "inline":
                resolve_device(reader.spec.device)
        except DistilleryError as error:
            problems.append(str(error))
    return problems


def check_prompts(
    prompts: DatasetRef,
    student: StudentSpec | None,
    teacher: TeacherSpec | None,
    store: StoreSpec,
    training: TrainingSpec | None = None,
) -> None:
    """Return when the models can read the prompts; after loading, before the first request.

    Of each sequence of roles the first rows are rendered. ``training`` as in :func:`check_models`.

    Raises:
        RecipeError: The first row that a model cannot read, by its `prompt_id`.
    """
    readers = [
        (reader, ModelFiles.of(reader.spec).chat_format())
        for reader in _readers(student, teacher, training)
    ]
    seen: dict[tuple[str, ...], int] = {}
    for batch in Store(store.root).batches(prompts) if readers else ():
        for row in batch.select(["prompt_id", "split", "messages"]).to_pylist():
            messages = load_messages(row["messages"])
            roles = tuple(message["role"] for message in messages)
            seen[roles] = seen.get(roles, 0) + 1
            if seen[roles] > _ROWS_PER_SHAPE:
                continue
            for reader, chat_format in readers:
                try:
                    _render(reader, chat_format, messages)
                except DistilleryError as error:
                    raise RecipeError(
                        f"the {reader.role} cannot read row {row['prompt_id']!r} (split "
                        f"{row['split']!r}): {error}"
                    ) from error


def _check_files(reader: _Reader, data: DataSpec) -> None:
    files = ModelFiles.of(reader.spec)
    chat_format = files.chat_format()
    turns = [Message(role="user", content="What is six times seven?")]
    if data.system_prompt is not None:
        turns.insert(0, Message(role="system", content=data.system_prompt))
    _render(reader, chat_format, turns)
    if not isinstance(reader.spec, FromScratchStudent):
        known_vocabulary(chat_format.tokenizer, files.config().vocab_size, role=reader.role)


def _render(reader: _Reader, chat_format: ChatFormat, messages: list[Message]) -> None:
    if reader.renders_responses:
        chat_format.row(messages, _RESPONSE)
    else:
        chat_format.prompt_ids(messages)
