"""Teachers: one protocol, one backend per kind of teacher. Opening one loads nothing yet."""

from typing import TYPE_CHECKING

from distillery.teacher.protocol import (
    Request,
    Response,
    ResponseSchema,
    Sampling,
    Teacher,
    make_request,
    teacher_identity,
)
from schemas.teacher import TeacherSpec

if TYPE_CHECKING:
    from distillery.teacher.budget import Budget

__all__ = [
    "Request",
    "Response",
    "ResponseSchema",
    "Sampling",
    "Teacher",
    "make_request",
    "open_teacher",
    "teacher_identity",
]


def open_teacher(spec: TeacherSpec, *, budget: "Budget | None" = None) -> Teacher:
    """Return the teacher that ``spec`` describes; its weights are loaded when it is first asked.

    Args:
        spec: Who answers.
        budget: What an endpoint's responses may cost. None: no cap.
    """
    if spec.is_served:
        from distillery.teacher.http.openai import EndpointTeacher

        return EndpointTeacher(spec, budget=budget)
    from distillery.teacher.local import LocalTeacher

    return LocalTeacher(spec)
