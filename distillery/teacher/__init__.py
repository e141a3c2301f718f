"""Teachers: one protocol, one backend per kind of teacher. Opening one loads nothing yet."""

from distillery.teacher.protocol import (
    Request,
    Response,
    Sampling,
    Teacher,
    Unfinished,
    make_request,
    teacher_identity,
)
from schemas.teacher import OpenAITeacher, TeacherSpec

__all__ = [
    "Request",
    "Response",
    "Sampling",
    "Teacher",
    "Unfinished",
    "make_request",
    "open_teacher",
    "teacher_identity",
]


def open_teacher(spec: TeacherSpec) -> Teacher:
    """Return the teacher that ``spec`` describes; its weights are loaded when it is first asked."""
    if isinstance(spec, OpenAITeacher):
        from distillery.teacher.openai import EndpointTeacher

        return EndpointTeacher(spec)
    from distillery.teacher.transformers import LocalTeacher

    return LocalTeacher(spec)
