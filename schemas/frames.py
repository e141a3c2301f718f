"""pandera contracts of the frames that cross a stage boundary.

Messages travel as canonical JSON text (a list of {role, content}): one column, one hash, the same
bytes in Parquet, in the ledger and in a fingerprint. So do references: a list of all right answers,
null where a prompt has none.
"""

from typing import Any

import pandas as pd
import pandera.pandas as pa
import pyarrow
from pandera.typing.pandas import Series

from schemas.filters import DropReason
from schemas.panel import REASONS

SPLITS = ("train", "validation", "gold", "selection", "test")
LABELLED = ("gold", "selection", "test")
RESPONSE_STATES = ("ok", "empty", "truncated", "malformed", "refused", "failed")


_BECAUSE = rf"^({'|'.join(REASONS)})(: .*)?$"


class _Frame(pa.DataFrameModel):  # type: ignore[misc]
    class Config:
        strict = True
        ordered = True
        coerce = False


class PromptFrame(_Frame):
    """Prompts of all splits, valid and ready for a teacher.

    Rows of one `cluster` belong together: of one customer or document where the recipe names such a
    column, else of one conversation, else with the same prompt.
    `slices` is a JSON object of column and text, null where no columns are named.
    """

    prompt_id: Series[str] = pa.Field(str_length={"min_value": 1})
    split: Series[str] = pa.Field(isin=SPLITS)
    messages: Series[str] = pa.Field(str_startswith="[")
    references: Series[str] = pa.Field(nullable=True)
    content_hash: Series[str] = pa.Field(str_length={"min_value": 64, "max_value": 64})
    cluster: Series[str] = pa.Field(str_length={"min_value": 1})
    slices: Series[str] = pa.Field(nullable=True, str_startswith="{")
    source_row: Series[int] = pa.Field(ge=1)


class QuarantineFrame(_Frame):
    """Prompts that were put aside, each with its row in the source and the reason."""

    prompt_id: Series[str] = pa.Field(nullable=True)
    split: Series[str] = pa.Field(isin=SPLITS)
    messages: Series[str] = pa.Field(nullable=True)
    references: Series[str] = pa.Field(nullable=True)
    source_row: Series[int] = pa.Field(ge=1)
    reason: Series[str] = pa.Field(isin=[reason.value for reason in DropReason])
    detail: Series[str]


class RejectedPromptFrame(_Frame):
    """Prompts that were dropped, each with the filter, the reason and what it saw.

    `score` is what the filter compared with its bound, null where it has none.
    """

    prompt_id: Series[str]
    split: Series[str] = pa.Field(isin=("train", "validation", "gold"))
    messages: Series[str]
    references: Series[str] = pa.Field(nullable=True)
    filter: Series[str]
    reason: Series[str] = pa.Field(isin=[reason.value for reason in DropReason])
    detail: Series[str]
    score: Series[float] = pa.Field(nullable=True)


class ResponseFrame(_Frame):
    """A teacher's responses, one row per prompt: the chosen one, where several were asked for.

    `reasoning` is what the teacher thought before it, null where that is not known. `agreement` is
    null where one response was asked for, 0 where none of them passed its verifier. `teacher` is
    whose response it is, a member's name where there is a panel, and `chosen_because` why that one
    was taken, null of a single teacher.
    """

    prompt_id: Series[str] = pa.Field(str_length={"min_value": 1})
    split: Series[str] = pa.Field(isin=("train", "validation"))
    messages: Series[str] = pa.Field(str_startswith="[")
    response: Series[str]
    reasoning: Series[str] = pa.Field(nullable=True)
    state: Series[str] = pa.Field(isin=RESPONSE_STATES)
    prompt_tokens: Series[int] = pa.Field(ge=0)
    completion_tokens: Series[int] = pa.Field(ge=0)
    request_hash: Series[str] = pa.Field(str_length={"min_value": 64, "max_value": 64})
    sample_index: Series[int] = pa.Field(ge=0)
    agreement: Series[float] = pa.Field(ge=0, le=1, nullable=True)
    repaired: Series[bool]
    teacher: Series[str] = pa.Field(str_length={"min_value": 1})
    chosen_because: Series[str] = pa.Field(nullable=True, str_matches=_BECAUSE)


class TrainingFrame(_Frame):
    """Rows to learn from: a prompt and the response to give.

    `reasoning` is what the teacher thought before it, null where that is not known; `teacher` is
    null where the response is a reference, `chosen_because` where there was nothing to choose.
    """

    prompt_id: Series[str] = pa.Field(str_length={"min_value": 1})
    split: Series[str] = pa.Field(isin=("train", "validation"))
    messages: Series[str] = pa.Field(str_startswith="[")
    response: Series[str] = pa.Field(str_length={"min_value": 1})
    reasoning: Series[str] = pa.Field(nullable=True)
    teacher: Series[str] = pa.Field(nullable=True)
    chosen_because: Series[str] = pa.Field(nullable=True)


class RejectedFrame(_Frame):
    """Responses that were dropped, each with the filter, the reason and what it saw.

    `score` is what the filter compared with its bound, null where it has none.
    """

    prompt_id: Series[str]
    split: Series[str] = pa.Field(isin=("train", "validation"))
    messages: Series[str]
    response: Series[str]
    filter: Series[str]
    reason: Series[str] = pa.Field(isin=[reason.value for reason in DropReason])
    detail: Series[str]
    score: Series[float] = pa.Field(nullable=True)
    teacher: Series[str]
    chosen_because: Series[str] = pa.Field(nullable=True)


class ScoreFrame(_Frame):
    """One contestant's responses to the test rows, scored.

    `metrics` is a JSON object of metric and value; a value is null where the row is unscored.
    """

    prompt_id: Series[str] = pa.Field(str_length={"min_value": 1})
    references: Series[str] = pa.Field(str_startswith="[")
    response: Series[str] = pa.Field(nullable=True)
    metrics: Series[str] = pa.Field(str_startswith="{")
    truncated: Series[bool]


VERDICTS = ("win", "tie", "loss")


class VerdictFrame(_Frame):
    """A judge's verdicts on pairs of responses, from the side of the first: the student's.

    `against` is the other contestant. It is null on the rows of `judge.preferences`, where
    `preferred` is what people said. `shown_first` and `shown_second` are the verdicts with the
    response in that place, null where nobody was asked or nothing could be read; `verdict` is what
    follows from both, null where the row is unscored.
    """

    prompt_id: Series[str] = pa.Field(str_length={"min_value": 1})
    against: Series[str] = pa.Field(nullable=True)
    shown_first: Series[str] = pa.Field(isin=VERDICTS, nullable=True)
    shown_second: Series[str] = pa.Field(isin=VERDICTS, nullable=True)
    verdict: Series[str] = pa.Field(isin=VERDICTS, nullable=True)
    preferred: Series[str] = pa.Field(isin=VERDICTS, nullable=True)


def check_frame(frame: pd.DataFrame, contract: type[pa.DataFrameModel]) -> pd.DataFrame:
    """Return ``frame`` unchanged when it keeps ``contract``.

    Raises:
        pandera.errors.SchemaErrors: With every broken rule and row, not only the first. A broken
            contract between stages is a bug of ours, not of the user's data.
    """
    validated: Any = contract.validate(frame, lazy=True)
    return pd.DataFrame(validated)


def arrow_schema(contract: type[pa.DataFrameModel]) -> pyarrow.Schema:
    """Return the Arrow schema in which frames of ``contract`` are stored.

    >>> arrow_schema(TrainingFrame).names[:4]
    ['prompt_id', 'split', 'messages', 'response']
    """
    types = {"int64": pyarrow.int64(), "float64": pyarrow.float64(), "bool": pyarrow.bool_()}
    columns = contract.to_schema().columns
    return pyarrow.schema(
        [(name, types.get(str(c.dtype), pyarrow.string())) for name, c in columns.items()]
    )
