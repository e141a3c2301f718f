"""The teacher: who answers the prompts."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from schemas.base import runtime_field
from schemas.openai_teacher import DeclaredModel, OpenAITeacher
from schemas.teacher_base import Dtype, OwnTeacher
from schemas.vllm_teacher import VLLMTeacher

__all__ = [
    "DeclaredModel",
    "Dtype",
    "OpenAITeacher",
    "TeacherSpec",
    "TransformersTeacher",
    "VLLMTeacher",
]


class TransformersTeacher(OwnTeacher):
    """A model that is loaded here with transformers."""

    is_served: ClassVar[Literal[False]] = False

    kind: Literal["transformers"] = "transformers"
    """A local model."""

    batch_size: int = runtime_field(64, ge=1)
    """Prompts per forward pass; lower it when memory runs out."""

    device: str = runtime_field("auto")
    """auto: the GPU when there is one, otherwise the CPU."""

    structured_output: Literal["off", "validate"] = "off"
    """validate: when `task.answer_format` is a JSON schema, a response that breaks it is sent
    back once to be repaired. off, for teachers that do not follow such a conversation: the filter
    `format` drops it."""


TeacherSpec = Annotated[
    TransformersTeacher | OpenAITeacher | VLLMTeacher, Field(discriminator="kind")
]
