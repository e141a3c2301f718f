"""Filters over prompts and teacher responses, and the closed lists of what they may do."""

from enum import StrEnum
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from schemas.base import Branch, RegularExpression, Spec
from schemas.prompt_filters import DecontaminationFilter, PromptFilter


class DropReason(StrEnum):
    """Why a row left the pipeline. Closed: every dropped row carries exactly one of these."""

    # prompts
    UNREADABLE_ROW = "unreadable_row"
    EMPTY_PROMPT = "empty_prompt"
    DUPLICATE_ID = "duplicate_id"
    MISSING_REFERENCE = "missing_reference"
    REFERENCE_NOT_IN_FORMAT = "reference_not_in_format"
    MALFORMED_MESSAGES = "malformed_messages"
    FOUND_IN_TEST = "found_in_test"
    FOUND_IN_SELECTION = "found_in_selection"
    OVERLAPS_TEST = "overlaps_test"
    OVERLAPS_SELECTION = "overlaps_selection"
    NEAR_DUPLICATE = "near_duplicate"
    SEMANTIC_DUPLICATE = "semantic_duplicate"
    LESS_DIVERSE = "less_diverse"
    PERSONAL_DATA = "personal_data"
    OTHER_LANGUAGE = "other_language"
    # responses
    TEACHER_FAILED = "teacher_failed"
    TEACHER_REFUSED = "teacher_refused"
    MALFORMED_RESPONSE = "malformed_response"
    NOT_VERIFIED = "not_verified"
    TEACHERS_DISAGREE = "teachers_disagree"
    LOW_AGREEMENT = "low_agreement"
    EMPTY = "empty"
    TRUNCATED = "truncated"
    REFUSAL = "refusal"
    TOO_SHORT = "too_short"
    TOO_LONG = "too_long"
    NOT_A_LABEL = "not_a_label"
    NO_REGEX_MATCH = "no_regex_match"
    NOT_JSON = "not_json"
    JSON_SCHEMA_VIOLATION = "json_schema_violation"
    NO_VALUE = "no_value"
    DUPLICATE = "duplicate"


class RewriteReason(StrEnum):
    """Why a row was rewritten. Closed, and counted like a drop."""

    CANONICAL_LABEL = "canonical_label"
    BARE_ANSWER = "bare_answer"
    REDACTED = "redacted"


class _ResponseFilter(Branch):
    """Keeps, drops or rewrites a response."""


class EmptyFilter(_ResponseFilter):
    """Drops responses that are empty or white space."""

    kind: Literal["empty"] = "empty"
    """Drop empty responses."""


class TruncatedFilter(_ResponseFilter):
    """Drops responses that were cut at max_new_tokens: the student would learn to stop midway."""

    kind: Literal["truncated"] = "truncated"
    """Drop truncated responses."""


_I_AM = r"(i['\u2019]?m|i am|we['\u2019]?re|we are)"
_I_CANNOT = r"(i|we) (can ?not|can['\u2019]?t|won['\u2019]?t)"
_DO = r" (help|assist|answer|comply|do|provide|fulfil+|discuss|continue|write|create|generate)"


class RefusalFilter(_ResponseFilter):
    """Drops responses in which the teacher declines."""

    kind: Literal["refusal"] = "refusal"
    """Drop refusals."""

    patterns: tuple[RegularExpression, ...] = (
        rf"^{_I_AM} (very |so )?sorry[.!]?$",
        rf"^(({_I_AM} (very |so )?(sorry|afraid)|sorry|unfortunately|my apologies|i apologi[sz]e)"
        rf"[,.]? )?(but )?(that )?({_I_CANNOT}|{_I_AM} (unable|not able) to)({_DO}\b|[.!]?$)",
        r"^as an ai\b",
    )
    """Case-insensitive regular expressions searched in the stripped response. Anchored at its
    start, where refusals stand; a customer's quoted apology further on is not a refusal, nor is an
    agent's that goes on otherwise ("I am sorry to hear that")."""


class LengthFilter(_ResponseFilter):
    """Drops responses outside length bounds."""

    kind: Literal["length"] = "length"
    """Drop responses by length."""

    min_chars: int = Field(1, ge=0)
    """Shortest response kept, characters."""

    max_chars: int = Field(20_000, ge=1)
    """Longest response kept, characters."""

    @model_validator(mode="after")
    def _bounds_leave_room(self) -> Self:
        if self.min_chars > self.max_chars:
            raise ValueError(
                f"min_chars={self.min_chars} is above max_chars={self.max_chars}, so every "
                "response would be dropped. Change one of them."
            )
        return self


class FormatFilter(_ResponseFilter):
    """Drops responses without an answer as the task wants it; of the others the answer is kept.

    A label as the recipe has it, JSON without its fence, a solution that ends in a value.
    """

    kind: Literal["format"] = "format"
    """Drop responses outside the task's answer format."""


class DuplicateFilter(_ResponseFilter):
    """Drops every row after the first with the same prompt and the same response."""

    kind: Literal["duplicate"] = "duplicate"
    """Drop exact duplicates."""


class AgreementFilter(_ResponseFilter):
    """Drops responses that too few of the prompt's samples bear out; one sample alone passes."""

    kind: Literal["agreement"] = "agreement"
    """Drop responses by the agreement of the samples."""

    min_agreement: float = Field(0.5, gt=0, le=1)
    """Lowest agreement kept, as a fraction of `teacher.samples.num_samples`: the samples with the
    same answer, or those that pass the verifier. At a half the answer has no equal rival."""


ResponseFilter = Annotated[
    EmptyFilter
    | TruncatedFilter
    | RefusalFilter
    | LengthFilter
    | FormatFilter
    | DuplicateFilter
    | AgreementFilter,
    Field(discriminator="kind"),
]


class FilterSpec(Spec):
    """What a prompt has to be to be answered, and a response to enter the training set."""

    prompts: tuple[PromptFilter, ...] = Field((DecontaminationFilter(),), title="Prompt filters")
    """Filters over the prompts, in order, before the teacher is asked: what they drop costs
    nothing. The first that drops a row gives the reason."""

    responses: tuple[ResponseFilter, ...] | None = Field(None, title="Response filters")
    """Filters over the responses, in order; the first that drops a row gives the reason. None:
    those of the task's type, mostly empty, truncated, refusal, format, duplicate."""

    min_keep_fraction: float = Field(0.5, ge=0, le=1)
    """Share of responses that has to be kept, or the training set is not released. Below a half
    something is wrong with the teacher, the prompt or a filter."""

    min_train_rows: int = Field(20, ge=1)
    """Training rows that have to be kept, or the training set is not released. Fewer teach
    nothing."""
