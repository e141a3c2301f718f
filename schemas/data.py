"""Where the prompts come from and how a row becomes a prompt."""

import codecs
import string
from typing import Annotated, ClassVar, Literal

from pydantic import Field, field_validator

from schemas.base import Branch, Spec, runtime_field
from schemas.logs import LogSample
from schemas.prompt_filters import PiiFilter


class ColumnMap(Spec):
    """Which column of the source holds what.

    A task type reads some of the fields `text`, `premise`, `hypothesis`, `question`, `context` and
    `document`; a field whose column is not named here is read from the column of its own name.
    """

    id: str | None = None
    """Unique id of a row. None: made from the split and the row number."""

    messages: str | None = None
    """Chat messages, a list of {role, content}; `conversation` needs them. None: the prompt comes
    from `prompt_template`. A last turn of the assistant is not part of the prompt: it is the
    reference."""

    reference: str | None = None
    """The right answer, or a list of right answers where the task type takes several. `gold`,
    `selection` and `test` need it, here or as the last turn of `messages`; ignored for `train` and
    `validation`."""

    cluster: str | None = None
    """What rows have in common that are no independent evidence, such as the id of a customer or a
    document: intervals and tests count them together. None, and where a row has none: rows of one
    conversation, or with the same prompt, belong together."""
    slices: tuple[str, ...] = ()
    """Columns that divide the rows, such as language or source: of the test rows for
    `evaluation.slices` and the conditions of the gate, of all for the rules of a panel of teachers.
    A row without a value is in no slice of that column."""

    text: str | None = None
    """Classification: what is classified."""

    premise: str | None = None
    """NLI: the premise."""

    hypothesis: str | None = None
    """NLI: what follows from the premise, or does not."""

    question: str | None = None
    """QA and math: the question."""

    context: str | None = None
    """QA: the text with the answer, if there is one."""

    document: str | None = None
    """Summarization: what is summarized, a text or a list of its sentences."""

    def of(self, field: str) -> str:
        """Return the column that holds a field.

        >>> ColumnMap(premise="sentence1").of("premise"), ColumnMap().of("hypothesis")
        ('sentence1', 'hypothesis')
        """
        named = getattr(self, field) if field in ColumnMap.model_fields else None
        return named or field


class _Source(Branch):
    """Rows from somewhere."""


class _Table(_Source):
    """Rows with columns."""

    columns: ColumnMap = Field(ColumnMap(), title="Columns")
    """Which column holds what."""

    label_map: dict[str, str] = Field({}, title="Label map")
    """What a reference of this source means as a label, such as `{"0": entailment}`. Empty: they
    are labels already, or for nli the numbers of SNLI, MNLI, RTE and QNLI; WNLI and CB count
    otherwise. A value that it does not cover is no reference."""

    max_rows: int | None = Field(None, ge=1)
    """Keep a seeded random sample of so many rows. None: all."""


class FileSource(_Table):
    """A JSONL, CSV or Parquet file."""

    kind: Literal["file"] = "file"
    """A file."""

    path: str = runtime_field(...)
    """Path or fsspec URL. `${NAME}` and `${NAME:-default}` stand for environment variables. The
    fingerprint holds the file's content, not its place."""

    format: Literal["auto", "jsonl", "csv", "parquet"] = "auto"
    """auto: by the ending of the path (.jsonl, .ndjson, .csv, .tsv, .tab, .parquet)."""

    delimiter: Literal[",", ";", "\t", "|"] | None = None
    """What separates the columns of a CSV file. None: a tab in .tsv files, otherwise the one that
    the header has most of."""

    encoding: str | None = None
    """Encoding of a JSONL or CSV file, such as latin-1. None: UTF-8, or UTF-16 where a byte order
    mark says so."""

    @field_validator("encoding")
    @classmethod
    def _is_known(cls, encoding: str | None) -> str | None:
        try:
            return None if encoding is None else codecs.lookup(encoding).name
        except LookupError:
            raise ValueError(
                f"{encoding!r} is not an encoding that Python knows. Write utf-8, latin-1, cp1252 "
                "or another of its names."
            ) from None


class HubSource(_Table):
    """A data set of the Hugging Face hub."""

    kind: Literal["hub"] = "hub"
    """A Hugging Face data set."""

    dataset: str
    """Id, such as `PolyAI/banking77`."""

    revision: str = Field(pattern=r"^[0-9a-f]{40}$")
    """Commit hash. A moving revision would serve other rows under the same fingerprint."""

    name: str | None = None
    """Configuration of the data set, if it has several."""

    split: str
    """Split of the data set, such as `train`."""


class LogSource(_Source):
    """The log of an application in production: OpenAI-style requests with their responses.

    Each request is a prompt. Its response is the right answer where one is needed (`gold`,
    `selection` and `test`), if it is whole. What is no text, or offers or calls tools, is put
    aside with its reason.
    """

    kind: Literal["log"] = "log"
    """A log of requests and responses."""

    path: str = runtime_field(...)
    """Path or fsspec URL of a JSONL file, gzipped or not; `*` stands for several. `${NAME}` stands
    for an environment variable."""

    timestamp: str | None = None
    """Field of a line that says when it was asked: a Unix time, or ISO 8601. None: `timestamp`,
    `created_at`, `created` or `time`, or else `created` of the response."""

    watermark: str | None = runtime_field(None, min_length=1, max_length=200)
    """Name under which the newest timestamp is kept that a finished run has read. A run reads only
    what is newer; one that was killed has not finished. `execution.force: [read_logs]` reads
    everything again. None: every run reads everything."""

    redact: PiiFilter | None = Field(PiiFilter(), title="Redact")
    """What is taken out of requests and responses before anything of them is stored. None:
    nothing."""

    sample: LogSample | None = Field(None, title="Sample")
    """Part of the rows to take. None: all."""

    columns: ClassVar[ColumnMap] = ColumnMap(id="id", messages="messages")
    """What the rows of a log hold."""


Table = Annotated[FileSource | HubSource, Field(discriminator="kind")]
Source = Annotated[FileSource | HubSource | LogSource, Field(discriminator="kind")]


class DataSpec(Spec):
    """The rows of the splits."""

    train: Source | None = Field(None, title="Training prompts")
    """Prompts that the teacher answers for the student to learn from. Their references, if any,
    are not read. Needed by everything but `train_teacher`, which learns from `gold` alone."""

    validation: Source | None = Field(None, title="Validation prompts")
    """Prompts that the teacher answers for early stopping. None: `validation_fraction` of train."""

    gold: Source | None = Field(None, title="Gold rows")
    """The labelled rows that you have. A from-scratch baseline is trained on them, with
    `validation_fraction` of them set aside for early stopping."""

    selection: Source | None = Field(None, title="Selection rows")
    """Labelled rows on which a sweep chooses among students (model selection), so that nobody but
    the winner meets the test rows. Never trained on. Needed by `sweep_students`."""

    test: Source | None = Field(None, title="Test rows")
    """Held-out labelled rows on which teacher, baseline and student are compared. Never trained
    on; a training prompt that equals one of them is dropped. Needed by everything but
    `answer_prompts`."""

    validation_fraction: float = Field(0.1, gt=0, lt=0.5)
    """Share of the training prompts set aside when `validation` is not given, and of the gold rows
    always. 0.1 keeps the early-stopping signal steady from about a thousand prompts on."""

    prompt_template: str | None = None
    """How a row becomes the user message; `{name}` stands for a field of the task type or a column
    of the source, `{{` and `}}` for braces. None: as the task type has it."""

    turns: Literal["last", "every"] = "last"
    """Which turns of the assistant in `columns.messages` are to be learnt or scored. last: the
    final one. every: each is the answer to what came before it, a row of its own with the id
    `<id>-turn-<n>`, n being the turns before it; what a user wrote after the last of them is left
    out, and all rows of a conversation stay in one split."""

    system_prompt: str | None = None
    """System message put before every prompt, except where a row's messages begin with one of their
    own. None: none."""

    max_invalid_fraction: float = runtime_field(0.01, ge=0, le=1)
    """Share of quarantined rows above which the run stops before any teacher is asked. One row in
    a hundred is dirt; more is a broken export."""

    seed: int = 0
    """Seed of the samples and of the validation split."""

    @field_validator("prompt_template")
    @classmethod
    def _names_columns(cls, template: str | None) -> str | None:
        if template is None:
            return None
        advice = "Write {column} for a column, {{ and }} for braces that are text."
        try:
            fields = [
                field[1:] for field in string.Formatter().parse(template) if field[1] is not None
            ]
        except ValueError as error:
            raise ValueError(f"{template!r:.80} cannot be read: {error}. {advice}") from None
        if odd := [name for name, form, conversion in fields if not name or form or conversion]:
            raise ValueError(f"{template!r:.80} has braces around no column: {odd[0]!r}. {advice}")
        if not fields:
            raise ValueError(
                f"{template!r:.80} names no column, so all prompts would be the same. {advice}"
            )
        return template
