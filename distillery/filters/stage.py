"""Filters over teacher responses: each dropped row has one reason and is kept."""

import re
from collections import Counter
from collections.abc import Hashable
from typing import Any

import pandas as pd

from distillery.storage.sql import querying
from distillery.storage.stage import Attempt, Stage, StageResult, run_stage
from distillery.task_types.answer_formats import format_violation
from schemas.execution import ExecutionSpec, StageName, StoreSpec
from schemas.filters import (
    AgreementFilter,
    DropReason,
    DuplicateFilter,
    EmptyFilter,
    Filter,
    FilterSpec,
    FormatFilter,
    LengthFilter,
    RefusalFilter,
    TruncatedFilter,
)
from schemas.frames import RejectedFrame, TrainingFrame, arrow_schema, check_frame
from schemas.refs import DatasetRef
from schemas.task import TaskSpec

_LOGIC_VERSION = 2
_BATCH_ROWS = 4096

_MARK_DUPLICATES = """
    SELECT *,
        row_number() OVER (
            PARTITION BY split, state, messages, response, agreement IS NOT DISTINCT FROM 0
            ORDER BY position
        ) > 1 AS is_duplicate
    FROM (SELECT *, row_number() OVER () AS position FROM responses)
    ORDER BY position
"""

Drop = tuple[DropReason, str]

_UNUSABLE: dict[str, Drop] = {
    "failed": (DropReason.TEACHER_FAILED, "the teacher could not answer this row"),
    "refused": (DropReason.TEACHER_REFUSED, "the teacher declines this prompt for good"),
    "malformed": (
        DropReason.MALFORMED_RESPONSE,
        "the response breaks the schema of task.answer_format",
    ),
}
_NOT_VERIFIED = (
    "teacher",
    DropReason.NOT_VERIFIED.value,
    "no sample of this prompt has what teacher.samples.choice asks for",
)


def filter_responses(
    responses: DatasetRef,
    task: TaskSpec,
    filters: FilterSpec,
    store: StoreSpec,
    execution: ExecutionSpec,
) -> StageResult:
    """Return the responses that pass all filters as `kept`, the others as `rejected`.

    Rows without a usable answer are rejected whatever the filters: those that the teacher failed
    at or refused, those that break the response schema, and those of which no sample passed its
    verifier. Counts by reason are in the manifest's facts.
    """
    stage = Stage(
        StageName.FILTER_RESPONSES,
        _LOGIC_VERSION,
        inputs={"responses": responses.fingerprint},
        spec={"rules": filters.rules, "answer_format": task.answer_format},
    )

    def work(attempt: Attempt) -> None:
        reasons: Counter[str] = Counter()
        splits: Counter[str] = Counter()
        with (
            attempt.row_writer("kept", arrow_schema(TrainingFrame)) as kept,
            attempt.row_writer("rejected", arrow_schema(RejectedFrame)) as rejected,
            querying(responses=attempt.store.dataset(responses)) as sql,
        ):
            for batch in sql.sql(_MARK_DUPLICATES).to_arrow_reader(_BATCH_ROWS):
                passed, dropped = apply_filters(batch.to_pandas(), task, filters.rules)
                splits.update(passed["split"])
                reasons.update(dropped["reason"])
                for writer, frame, contract in (
                    (kept, passed, TrainingFrame),
                    (rejected, dropped, RejectedFrame),
                ):
                    if len(frame):
                        writer.write(check_frame(frame, contract))
        attempt.counts |= {
            "responses": responses.num_rows,
            "kept_train": splits["train"],
            "kept_validation": splits["validation"],
            "rejected": reasons.total(),
        }
        attempt.facts["reasons"] = dict(reasons.most_common())

    return run_stage(stage, store, execution, work)


def apply_filters(
    frame: pd.DataFrame, task: TaskSpec, rules: tuple[Filter, ...]
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the rows that pass as a TrainingFrame, and the others as a RejectedFrame.

    Args:
        frame: A ResponseFrame with one column more, `is_duplicate`.
        task: Its answer format is what the filter `format` asks for.
        rules: Filters in order; the first that drops a row names its reason.
    """
    found = [_first_drop(row, task, rules) for row in frame.to_dict("records")]
    is_kept = pd.Series([drop is None for drop in found], index=frame.index, dtype=bool)
    drops = [drop for drop in found if drop is not None]
    kept = frame.loc[is_kept, list(TrainingFrame.to_schema().columns)].reset_index(drop=True)
    columns = ["prompt_id", "split", "messages", "response"]
    rejected = frame.loc[~is_kept, columns].reset_index(drop=True)
    for position, name in enumerate(("filter", "reason", "detail")):
        rejected[name] = pd.array([drop[position] for drop in drops], dtype="str")
    return kept, rejected


def _first_drop(
    row: dict[Hashable, Any], task: TaskSpec, rules: tuple[Filter, ...]
) -> tuple[str, str, str] | None:
    """Return filter, reason and detail of the first rule that drops ``row``, or None."""
    if drop := _UNUSABLE.get(row["state"]):
        return "teacher", drop[0].value, drop[1]
    if row["state"] == "ok" and row["agreement"] == 0:
        return _NOT_VERIFIED
    for rule in rules:
        if drop := _drop(row, task, rule):
            return rule.kind, drop[0].value, drop[1]
    if not row["response"].strip():
        # A response without a token to learn from can never enter the training set.
        return "empty", DropReason.EMPTY.value, "the response has no text"
    if row["agreement"] == 0:  # truncated: the filter of that name would have said so better
        return _NOT_VERIFIED
    return None


def _drop(row: dict[Hashable, Any], task: TaskSpec, rule: Filter) -> Drop | None:
    """Return why ``rule`` drops ``row``, or None."""
    text: str = row["response"].strip()
    match rule:
        case EmptyFilter():
            return (DropReason.EMPTY, "the response has no text") if not text else None
        case TruncatedFilter():
            if row["state"] == "truncated":
                return DropReason.TRUNCATED, f"cut after {row['completion_tokens']} tokens"
        case RefusalFilter(patterns=patterns):
            for pattern in patterns:
                if match := re.search(pattern, text, re.IGNORECASE):
                    return DropReason.REFUSAL, f"{match.group()!r:.80} matches {pattern!r}"
        case LengthFilter(min_chars=shortest, max_chars=longest):
            if len(text) < shortest:
                return DropReason.TOO_SHORT, f"{len(text)} characters, below {shortest}"
            if len(text) > longest:
                return DropReason.TOO_LONG, f"{len(text)} characters, above {longest}"
        case FormatFilter():
            return format_violation(text, task)
        case DuplicateFilter():
            if row["is_duplicate"]:
                return DropReason.DUPLICATE, "the same prompt with the same response came before"
        case AgreementFilter(min_agreement=lowest):
            if row["agreement"] < lowest:  # null compares as false: one sample alone passes
                return DropReason.LOW_AGREEMENT, f"agreement {row['agreement']:.3g}, below {lowest}"
    return None
