"""Teachers: one protocol, one backend per kind. Opening one loads and starts nothing yet."""

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
    from distillery.ledger import Batches
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


def open_teacher(
    spec: TeacherSpec, *, budget: "Budget | None" = None, batches: "Batches | None" = None
) -> Teacher:
    """Return the teacher that ``spec`` describes; its weights are loaded when it is first asked.

    Args:
        spec: Who answers.
        budget: What an endpoint's responses may cost. None: no cap.
        batches: Where it is noted what is in which batch. None: requests go by themselves, such
            as those that are timed.
    """
    if spec.is_hosted:
        if spec.in_batches and batches is not None:
            from distillery.teacher.http.batch.teacher import BatchTeacher

            return BatchTeacher(spec, batches, budget=budget)
        from distillery.teacher.http.openai import EndpointTeacher

        return EndpointTeacher(spec, budget=budget)
    if spec.is_served:
        from distillery.teacher.vllm.teacher import ServerTeacher

        return ServerTeacher(spec)
    from distillery.teacher.local import LocalTeacher

    return LocalTeacher(spec)
