"""Who takes part in a comparison: a name, and how the model is opened."""

from typing import Annotated, Literal

from pydantic import Field

from schemas.base import Spec, runtime_field
from schemas.export import ExportFormat
from schemas.panel import AnyTeacher
from schemas.refs import ModelRef
from schemas.student import PretrainedStudent
from schemas.teacher import TeacherSpec

TEACHER, BASELINE, CHAMPION, STUDENT = "teacher", "baseline", "champion", "student"
IN_CONTEXT = "in-context student"
"""Names in the spine. A comparison may have others; its columns do not depend on them."""


class _Contestant(Spec):
    """A model that answers the test prompts."""

    name: str
    """What tables call it; one of a kind in a comparison."""


class TeacherContestant(_Contestant):
    """The teacher, asked through the ledger and with its own sampling."""

    kind: Literal["teacher"] = "teacher"
    """A teacher."""

    teacher: AnyTeacher = Field(title="Teacher")
    """Who answers."""


class _LocalContestant(_Contestant):
    """A model that is loaded here and decodes greedily, as it will be deployed."""

    device: str = runtime_field("auto")
    """auto, cpu, cuda or cuda:1."""


class PretrainedContestant(_LocalContestant):
    """A pretrained student as it comes."""

    kind: Literal["pretrained"] = "pretrained"
    """A pretrained model."""

    student: PretrainedStudent
    """The model."""


class InContextContestant(_LocalContestant):
    """A pretrained student as it comes, asked with a teacher's system prompt and examples."""

    kind: Literal["in_context"] = "in_context"
    """A pretrained model with a teacher's prompt."""

    student: PretrainedStudent
    """The model."""

    teacher: TeacherSpec = Field(title="Teacher")
    """Whose prompt it reads, in place of the student's own."""


class TrainedContestant(_LocalContestant):
    """A model that a training stage left in the store, in the precision in which it was saved."""

    kind: Literal["trained"] = "trained"
    """A trained model."""

    model: ModelRef
    """Where it is."""

    trust_remote_code: bool = False
    """Run code that was saved with the model."""


class ExportedContestant(_Contestant):
    """A student in an exported format, opened by the runtime that will serve it."""

    kind: Literal["exported"] = "exported"
    """An exported model."""

    model: ModelRef
    """Where its files are."""

    format: ExportFormat
    """What they are."""


ContestantSpec = Annotated[
    TeacherContestant
    | PretrainedContestant
    | InContextContestant
    | TrainedContestant
    | ExportedContestant,
    Field(discriminator="kind"),
]
