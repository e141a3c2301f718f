"""The judge: a model that says which of two responses is better."""

from pydantic import Field

from schemas.base import Spec, runtime_field
from schemas.data import Table
from schemas.teacher import TeacherSpec


class PreferencesSpec(Spec):
    """Rows on which people have said which of two responses is better."""

    source: Table
    """Where they are. Its `columns` name the prompt as they do for `data`, whose prompt template
    and system prompt are not added."""

    first: str = "response_a"
    """Column with one response."""

    second: str = "response_b"
    """Column with the other."""

    preferred: str = "preferred"
    """Column with what people preferred: `first`, `second` or `tie`, or the names of the columns
    in place of the first two."""

    student_first: bool = False
    """Whether `first` holds responses of the student, or of one like it, and `second` those of
    whom it is judged against. Then the judge's liking for one side shows, and the corrected win
    rate is free of it. false: the rows are of any two models, or of a chosen and a rejected
    response."""


class PairJudge(Spec):
    """A model that says which of two responses is better; each pair is shown in both orders."""

    model: TeacherSpec = Field(title="Judge")
    """Who judges: any single teacher. Verdicts are kept in the ledger, so none is paid for twice,
    and its `budget` caps them. It reads `rubric` in place of a system prompt and examples."""

    rubric: str = Field(
        "Prefer the response that answers what was asked, is true to the given text, leaves out "
        "nothing that matters, and adds nothing that was not asked for.",
        min_length=1,
    )
    """What makes a response better."""


class JudgeSpec(PairJudge):
    """Pairwise verdicts on the test rows: the student's response beside another's.

    Each pair is shown in both orders; where the two verdicts disagree, it is a tie.
    """

    against: tuple[str, ...] = ("teacher", "baseline", "champion")
    """Contestants whose responses stand beside the student's; of teacher, baseline, champion and
    in-context student those that take no part are left out. An exported form goes by its name,
    such as `onnx int4`."""

    max_rows: int | None = Field(None, ge=1)
    """Most test rows that are judged; the same ones whoever is judged. None: all."""

    preferences: PreferencesSpec | None = Field(None, title="Human preferences")
    """Rows to check the judge on. None: the report says that nobody has checked it."""

    batch_size: int = runtime_field(64, ge=1)
    """Pairs asked at a time."""
