"""Filters over prompts and teacher responses, and the closed lists of what they may do."""

from enum import StrEnum
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from schemas.base import Branch, RegularExpression, Spec
from schemas.prompt_filters import DecontaminationFilter, PromptFilter
from schemas.teacher import TeacherSpec


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
    REPETITION = "repetition"
    LENGTH_OUTLIER = "length_outlier"
    LOW_SCORE = "low_score"
    UNSCORED = "unscored"
    OVER_REPRESENTED = "over_represented"


NOT_RESTORABLE = frozenset(
    {
        DropReason.FOUND_IN_TEST,
        DropReason.FOUND_IN_SELECTION,
        DropReason.TEACHER_FAILED,
        DropReason.TEACHER_REFUSED,
        DropReason.MALFORMED_RESPONSE,
        DropReason.EMPTY,
        DropReason.NOT_A_LABEL,
        DropReason.NO_REGEX_MATCH,
        DropReason.NOT_JSON,
        DropReason.JSON_SCHEMA_VIOLATION,
        DropReason.NO_VALUE,
    }
)
"""Reasons that `filters.restore` cannot overrule: there is no answer to learn, or it is known from
the test."""


class RewriteReason(StrEnum):
    """Why a row was rewritten. Closed, and counted like a drop."""

    CANONICAL_LABEL = "canonical_label"
    BARE_ANSWER = "bare_answer"
    REDACTED = "redacted"


class _ResponseFilter(Branch):
    """Keeps, drops or rewrites a response."""


class TruncatedFilter(_ResponseFilter):
    """Drops responses that were cut at max_new_tokens: the student would learn to stop midway."""

    kind: Literal["truncated"] = "truncated"
    """Drop truncated responses."""


Language = Literal["en", "de", "fr", "es", "it", "pt", "nl", "pl", "ru", "zh", "ja", "ko"]
"""Languages in which it is known how models decline, as ISO 639-1 codes."""


class RefusalFilter(_ResponseFilter):
    """Drops responses in which the teacher declines.

    Patterns are anchored at the beginning, where refusals stand; a customer's quoted apology
    further on is not a refusal, nor is an agent's that goes on otherwise ("I am sorry to hear
    that").
    """

    kind: Literal["refusal"] = "refusal"
    """Drop refusals."""

    languages: tuple[Language, ...] | None = Field(None, min_length=1)
    """In which languages the teacher may decline. None: all that are known here; a text in one is
    not taken for a refusal in another."""

    patterns: tuple[RegularExpression, ...] = ()
    """Further regular expressions, searched in the stripped response without regard to case."""


class RepetitionFilter(_ResponseFilter):
    """Drops prose in which the same lines or runs of words stand again and again.

    By the bounds of Gopher (arXiv:2112.11446, table A1) on repeated lines and on runs of 5 to 10
    words. Code, labels and answers in a format pass.
    """

    kind: Literal["repetition"] = "repetition"
    """Drop repetition."""

    min_words: int = Field(50, ge=1)
    """Shorter responses pass, words. 50, as Gopher looks at no shorter text: in a few words a
    phrase that stands twice is a large share."""

    min_repeats: int = Field(5, ge=2)
    """How often a line or a run of words has to stand to count. Below 4 the filter drops worked
    solutions of GSM8K, whose steps are alike; a model in a loop gets far beyond 5."""


class LengthOutlierFilter(_ResponseFilter):
    """Drops responses whose length is far from that of the references.

    The references are those of the gold rows or, where these are too few, of the selection rows.
    They have to be written as a response is: a bare number says nothing about a worked solution.
    """

    kind: Literal["length_outlier"] = "length_outlier"
    """Drop length outliers."""

    max_deviations: float = Field(5.0, gt=0)
    """How far the log length may be from the median of the references, in units of their spread:
    1.4826 times the median absolute deviation, or a tenth of the length where that is more. 5:
    lengths have long tails, and 3 would drop what is merely long."""

    min_references: int = Field(30, ge=2)
    """References below which all responses pass: a spread of fewer is a guess."""


class BalanceFilter(_ResponseFilter):
    """Keeps of a frequent label no more than a multiple of the rows of the rarest, in each split.

    Put it last: what a filter behind it drops is not made good. The facts and the artifact say of
    which labels more prompts would be needed to keep every row.
    """

    kind: Literal["balance"] = "balance"
    """Balance the labels."""

    max_ratio: float = Field(10.0, ge=1)
    """Most rows of a label, as a multiple of the rows of the rarest one that has any."""

    over: Literal["drop", "keep"] = "drop"
    """What happens to the rows beyond it. keep: nothing; only the facts say what is missing."""

    keep: Literal["random", "first"] = "random"
    """Which rows of a frequent label stay: by the hash of `seed` and id, so that most of them stay
    the same when rows are added; or the first ones."""

    seed: int = 0
    """Seed of the choice."""

    field: str | None = None
    """Property of JSON answers whose values are balanced, one of a list or true and false. None:
    the label."""


class JudgeFilter(_ResponseFilter):
    """Drops responses to which a judge gives a low score, from 1 to 5.

    The judge is asked through the ledger, so no response is paid for twice. Put cheap filters
    before it.
    """

    kind: Literal["judge"] = "judge"
    """Drop what a judge scores low."""

    model: TeacherSpec = Field(title="Judge")
    """Who judges: any single model. It reads `rubric` in place of a system prompt and examples.
    A local one is loaded where the stage runs."""

    rubric: str = Field(
        "It answers what was asked, is true to the given text, leaves out nothing that matters, "
        "and adds nothing that was not asked for.",
        min_length=1,
    )
    """What makes a response good."""

    min_score: int = Field(3, ge=2, le=5)
    """Lowest score kept. A response whose score cannot be read is dropped."""

    check_rows: int = Field(100, ge=0)
    """Gold rows on which the judge is checked: it scores the right answer and that of another row,
    and the facts say how often it keeps the one and drops the other. 0: nobody checks it."""


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
    TruncatedFilter
    | RefusalFilter
    | LengthFilter
    | FormatFilter
    | DuplicateFilter
    | AgreementFilter
    | RepetitionFilter
    | LengthOutlierFilter
    | BalanceFilter
    | JudgeFilter,
    Field(discriminator="kind"),
]


class FilterSpec(Spec):
    """What a prompt has to be to be answered, and a response to enter the training set."""

    prompts: tuple[PromptFilter, ...] = Field((DecontaminationFilter(),), title="Prompt filters")
    """Filters over the prompts, in order, before the teacher is asked: what they drop costs
    nothing. The first that drops a row gives the reason."""

    responses: tuple[ResponseFilter, ...] | None = Field(None, title="Response filters")
    """Filters over the responses, in order; the first that drops a row gives the reason. None:
    those of the task's type, mostly truncated, refusal, format, duplicate."""

    restore: tuple[str, ...] = ()
    """Ids of prompts that pass although a filter would drop them, or their response:
    `distillery data rejected RECIPE --restore ID` prints them. What has no answer to learn, or is
    a test row, is not restored."""

    min_keep_fraction: float = Field(0.5, ge=0, le=1)
    """Share of responses that has to be kept, or the training set is not released. Below a half
    something is wrong with the teacher, the prompt or a filter."""

    min_train_rows: int = Field(20, ge=1)
    """Training rows that have to be kept, or the training set is not released. Fewer teach
    nothing."""

    min_distinct_2: float | None = Field(None, ge=0, le=1)
    """Lowest share of distinct pairs of words among all in a sample of the prompts, or the training
    set is not released. None: only the data card states it, as for the next three."""

    max_near_duplicates: float | None = Field(None, ge=0, le=1)
    """Highest share of a sample of the prompts that nearly repeat another one, or the training set
    is not released."""

    max_imbalance: float | None = Field(None, ge=1)
    """Most rows of a label as a multiple of those of the rarest, or the training set is not
    released. A label without a row breaks it."""

    max_drift: float | None = Field(None, gt=0, le=1)
    """Highest Jensen-Shannon divergence, bits, between this training set and the one released last
    under `task.name`, for each figure of the data card: lengths, languages, words, answers and
    teachers. Or it is not released. 0.1 is much for the first four; see what the card calls
    chance."""
