"""The teacher's prompt: its own instructions and examples, laid around the messages of a row.

Requests, plans, evaluation, timing and soft targets all ask here, so that a teacher reads one and
the same prompt wherever a row turns up. What a student reads is the row itself.
"""

import re
from collections.abc import Sequence
from typing import Any

from distillery.data.chat import Message, split_system_turn, with_system_turn
from distillery.task_types import task_type
from distillery.teacher.examples import GoldRow, GoldRows
from schemas.errors import RecipeError
from schemas.execution import StoreSpec
from schemas.refs import DatasetRef
from schemas.task import TaskSpec
from schemas.teacher import TeacherSpec

_AUTO = "auto"
_LABELS = re.compile(r"^(?P<indent>[ \t]*)\{labels\}[ \t]*$|\{labels\}", re.MULTILINE)


def prompt_inputs(teacher: TeacherSpec, task: TaskSpec) -> dict[str, Any]:
    """Return what decides a teacher's prompt beside the prompts themselves, as plain JSON.

    Raises:
        RecipeError: `teacher.system_prompt` asks for labels that the task does not have.
    """
    examples = teacher.examples and teacher.examples.model_dump()
    return {"system_prompt": instructions(teacher, task), "examples": examples}


def instructions(teacher: TeacherSpec, task: TaskSpec) -> str | None:
    r"""Return the text of `teacher.system_prompt`, whole; None when there is none.

    Raises:
        RecipeError: It asks for labels that the task does not have.

    >>> from schemas.teacher import TransformersTeacher
    >>> task = TaskSpec.model_validate({"name": "t", "type": "classification",
    ...     "answer_format": {"kind": "labels", "labels": ["refund", "repair"]}})
    >>> def told(text):
    ...     return instructions(TransformersTeacher(model="m", system_prompt=text), task)
    >>> told("Choose one of: {labels}.")
    'Choose one of: refund, repair.'
    >>> told("Choose one:\n  {labels}")
    'Choose one:\n  refund\n  repair'
    """
    text = teacher.system_prompt
    if text is None:
        return None
    if text == _AUTO:
        return task_type(task).instructions()
    if not _LABELS.search(text):
        return text
    labels = task_type(task).labels
    if not labels:
        raise RecipeError(
            "teacher.system_prompt holds '{labels}', but the task has none. List them in "
            "task.answer_format (kind: labels), or write out what may be answered."
        )

    def listed(found: re.Match[str]) -> str:
        indent = found["indent"]
        return ", ".join(labels) if indent is None else "\n".join(indent + one for one in labels)

    return _LABELS.sub(listed, text)


class TeacherPrompt:
    """Lays a teacher's instructions and examples around messages."""

    def __init__(
        self, teacher: TeacherSpec, task: TaskSpec, prompts: DatasetRef, store: StoreSpec
    ) -> None:
        """Describe the prompt; gold rows are read when the first example is shown.

        Args:
            teacher: Whose `system_prompt` and `examples` count.
            task: Its labels and its type may stand in the instructions.
            prompts: A PromptFrame with the gold rows.
            store: Where they are.

        Raises:
            RecipeError: The instructions ask for labels that the task does not have.
        """
        self._system, self._examples = instructions(teacher, task), teacher.examples
        self._task, self._prompts, self._store = task, prompts, store

    def around(self, conversations: Sequence[Sequence[Message]]) -> list[list[Message]]:
        """Return what the teacher reads for each of ``conversations``.

        Its instructions come before the system turn of the conversation, in one turn; examples
        between that and the first other turn.

        Raises:
            RecipeError: There are fewer gold rows than examples.
            StoreError: The gold rows cannot be read.
        """
        if self._examples is None:
            return [self._laid(messages, ()) for messages in conversations]
        gold = GoldRows.of(self._prompts, self._store.root)
        shown = gold.before(conversations, self._examples)
        return [self._laid(*pair) for pair in zip(conversations, shown, strict=True)]

    def _laid(self, messages: Sequence[Message], examples: Sequence[GoldRow]) -> list[Message]:
        own, asked = split_system_turn(messages)
        laid = [turn for example in examples for turn in self._shown(example)] + asked
        if own is not None:
            laid = with_system_turn(laid, own)
        return laid if self._system is None else with_system_turn(laid, self._system)

    def _shown(self, example: GoldRow) -> list[Message]:
        right = task_type(self._task).target(example.references)
        return [*example.asked, Message(role="assistant", content=right)]
