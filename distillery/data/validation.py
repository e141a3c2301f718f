"""Put aside the prompts that cannot be used, each with its reason."""

import json
from collections import Counter
from collections.abc import Hashable, Iterator
from itertools import islice
from typing import Any

import pandas as pd

from distillery.data.loading import is_set_aside
from distillery.data.split_hashes import SplitHashes
from distillery.storage.fingerprint import canonical_json
from distillery.storage.sql import querying
from distillery.storage.stage import Attempt, Stage, StageResult, run_stage
from distillery.storage.store import RowWriter, Store
from distillery.task_types import TaskType, task_type
from schemas.data import DataSpec
from schemas.errors import InputDataError
from schemas.execution import ExecutionSpec, StageName, StoreSpec
from schemas.filters import DropReason
from schemas.frames import (
    LABELLED,
    SPLITS,
    PromptFrame,
    QuarantineFrame,
    TrainingFrame,
    arrow_schema,
    check_frame,
)
from schemas.refs import TEST_CLUSTERS, DatasetRef, PromptSet
from schemas.task import TaskSpec

_LOGIC_VERSION = 7
_BATCH_ROWS = 4096
# Not dirt: rows that must not be seen before the students are judged by them.
_FOUND_ELSEWHERE = (DropReason.FOUND_IN_TEST, DropReason.FOUND_IN_SELECTION)

# What no single row can tell. A duplicate keeps its first row.
# Ids are unique within a source; {source} is the split, or what the split was set aside from.
_REPEATED = """
    SELECT {source} AS source, prompt_id, min(source_row) AS first_row
    FROM loaded WHERE hash(prompt_id) % {num_parts} = {part} GROUP BY ALL HAVING count(*) > 1
"""
_IDS_AT_ONCE = 1_000_000  # more do not fit into the memory that DuckDB has

_HELD_OUT = """
    SELECT DISTINCT split, content_hash FROM loaded
    WHERE split IN ('selection', 'test') AND content_hash IS NOT NULL
"""

# No sort: within a split the rows lie in the order of their source, and a sort of millions of
# prompts needs more memory than there is. They keep it as the probing side of the join.
_KEEP_ORDER = "SET disabled_optimizers = 'build_side_probe_side'"
_MARK_ROWS = """
    SELECT loaded.*,
        coalesce(source_row > first_row, false) AS is_repeated,
        split <> 'test' AND content_hash IN
            (SELECT content_hash FROM held_out WHERE split = 'test') AS is_in_test,
        split NOT IN ('selection', 'test') AND content_hash IN
            (SELECT content_hash FROM held_out WHERE split = 'selection') AS is_in_selection
    FROM loaded LEFT JOIN repeated
        ON repeated.source = {source} AND repeated.prompt_id = loaded.prompt_id
    WHERE split = '{split}'
"""


def validate_prompts(
    loaded: DatasetRef, task: TaskSpec, data: DataSpec, store: StoreSpec, execution: ExecutionSpec
) -> StageResult:
    """Return the valid rows as `prompts` and the others, each with its reason, as `quarantined`.

    The gold rows come as `gold` too, ready to learn from, a part of them set aside for early
    stopping.

    Raises:
        InputDataError: More rows than ``data.max_invalid_fraction`` allows are invalid, or a
            split has no valid row. The quarantine file stays in the store and is named.
    """
    kind = task_type(task)
    kind.check()
    stage = Stage(
        StageName.VALIDATE_PROMPTS,
        _LOGIC_VERSION,
        inputs={"loaded": loaded.fingerprint},
        spec={
            "task_type": task.type,
            "answer_format": task.answer_format,
            "set_aside": data.validation is None,
            "validation_fraction": data.validation_fraction,
            "seed": data.seed,
        },
    )

    def work(attempt: Attempt) -> None:
        reasons: Counter[str] = Counter()
        kept: Counter[str] = Counter(dict.fromkeys(SPLITS, 0))
        asked, together = SplitHashes(SPLITS, "references"), SplitHashes(SPLITS, "cluster")
        learnt = SplitHashes(("train", "validation"), "response")
        with (
            attempt.row_writer("prompts", arrow_schema(PromptFrame)) as prompts,
            attempt.row_writer("gold", arrow_schema(TrainingFrame)) as gold,
            attempt.row_writer("quarantined", arrow_schema(QuarantineFrame)) as quarantined,
        ):
            for frame in _marked_rows(attempt, loaded, data):
                valid, invalid = _split_rows(frame, kind)
                kept.update(valid["split"])
                reasons.update(invalid["reason"])
                to_learn = _gold_rows(valid, kind, data)
                for hashes, frame_of in ((asked, valid), (together, valid), (learnt, to_learn)):
                    hashes.update(frame_of[hashes.columns].itertuples(index=False))
                _write(prompts, valid.drop(columns="conversation"), PromptFrame)
                _write(gold, to_learn, TrainingFrame)
                _write(quarantined, invalid, QuarantineFrame)
        clusters = {TEST_CLUSTERS: together.hexdigests()["test"]}
        for name, digests in (
            ("prompts", asked.hexdigests() | clusters),
            ("gold", learnt.hexdigests()),
        ):
            attempt.outputs[name] = attempt.outputs[name].model_copy(update={"hashes": digests})
        attempt.counts |= {**kept, "quarantined": reasons.total()}
        attempt.facts["reasons"] = dict(reasons.most_common())

    result = run_stage(stage, store, execution, work)
    _refuse_broken_data(result, loaded.num_rows, data, store)
    return result


def prompt_set(validated: StageResult) -> PromptSet:
    """Return the outputs of :func:`validate_prompts`."""
    return PromptSet(
        **{name: validated.dataset(name) for name in ("prompts", "gold", "quarantined")}
    )


def _marked_rows(attempt: Attempt, loaded: DatasetRef, data: DataSpec) -> Iterator[pd.DataFrame]:
    """Yield the loaded rows in order, with `is_repeated`, `is_in_test` and `is_in_selection`."""
    with querying(attempt.store, loaded=loaded) as sql:
        source = "replace(split, 'validation', 'train')" if data.validation is None else "split"
        sql.execute("CREATE TABLE repeated (source VARCHAR, prompt_id VARCHAR, first_row BIGINT)")
        num_parts = 1 + loaded.num_rows // _IDS_AT_ONCE
        for part in range(num_parts):
            found = _REPEATED.format(source=source, num_parts=num_parts, part=part)
            sql.execute(f"INSERT INTO repeated {found}")
        sql.execute(f"CREATE TABLE held_out AS {_HELD_OUT}")
        sql.execute(_KEEP_ORDER)
        for split in SPLITS:
            query = sql.sql(_MARK_ROWS.format(source=source, split=split))
            for batch in query.to_arrow_reader(_BATCH_ROWS):
                yield batch.to_pandas()


def _split_rows(frame: pd.DataFrame, kind: TaskType) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the valid rows, with `conversation`, and the invalid ones, with reason and detail.

    References of valid rows are written as the task has its answers: a label as in the recipe.
    """
    found = [_violation(row, kind) for row in frame.to_dict("records")]
    frame["reason"] = pd.array([f[0].value if f else None for f in found], dtype="str")
    frame["detail"] = pd.array([f[1] if f else None for f in found], dtype="str")
    is_valid = frame["reason"].isna()
    given = frame.loc[is_valid, "references"].dropna()
    frame.loc[given.index, "references"] = [_canonical(text, kind) for text in given]
    prompt_columns = [*PromptFrame.to_schema().columns, "conversation"]
    quarantine_columns = list(QuarantineFrame.to_schema().columns)
    return (
        frame.loc[is_valid, prompt_columns].reset_index(drop=True),
        frame.loc[~is_valid, quarantine_columns].reset_index(drop=True),
    )


def _canonical(references: str, kind: TaskType) -> str:
    """Return references as the task writes them, each once."""
    answers = [kind.parse(text) for text in json.loads(references)]
    return canonical_json(list(dict.fromkeys(answer.text for answer in answers if answer)))


def _gold_rows(valid: pd.DataFrame, kind: TaskType, data: DataSpec) -> pd.DataFrame:
    """Return the gold rows as a TrainingFrame, those of one conversation in one split."""
    gold = valid[valid["split"] == "gold"].reset_index(drop=True)
    split = ["validation" if is_set_aside(c, data) else "train" for c in gold["conversation"]]
    gold["split"] = pd.array(split, dtype="str")
    learnt = [kind.target(json.loads(references)) for references in gold["references"]]
    gold["response"] = pd.array(learnt, dtype="str")
    for name in ("reasoning", "teacher", "chosen_because"):
        gold[name] = pd.array([None] * len(gold), dtype="str")
    return gold[list(TrainingFrame.to_schema().columns)]


def _violation(row: dict[Hashable, Any], kind: TaskType) -> tuple[DropReason, str] | None:
    """Return why a loaded row cannot be used, or None. The first reason counts."""
    if isinstance(row["reason"], str):
        return DropReason(row["reason"]), row["detail"]
    if not isinstance(row["prompt_id"], str) or not row["prompt_id"]:
        return DropReason.UNREADABLE_ROW, "the row has no id"
    if row["is_repeated"]:
        return DropReason.DUPLICATE_ID, f"id {row['prompt_id']!r:.80} was seen before"
    if row["is_in_test"]:
        return DropReason.FOUND_IN_TEST, "the same prompt is a test row"
    if row["is_in_selection"]:
        return DropReason.FOUND_IN_SELECTION, "the same prompt is a selection row"
    if row["split"] in LABELLED:
        references = json.loads(row["references"]) if isinstance(row["references"], str) else []
        if not references:
            return DropReason.MISSING_REFERENCE, "a labelled split needs a reference in every row"
        for reference in references:
            if violation := kind.violation(reference):
                return DropReason.REFERENCE_NOT_IN_FORMAT, violation[1]
    return None


def _write(writer: RowWriter, frame: pd.DataFrame, contract: Any) -> None:
    if len(frame):
        writer.write(check_frame(frame, contract))


def _refuse_broken_data(
    result: StageResult, num_rows: int, data: DataSpec, store: StoreSpec
) -> None:
    """Raise when too many rows are invalid; checked on every run, as it costs no seal."""
    reasons = result.drop_reasons
    invalid = sum(n for reason, n in reasons.items() if reason not in _FOUND_ELSEWHERE)
    listed = ", ".join(f"{reason} {n}" for reason, n in reasons.items())
    quarantined = f"{store.root}/{result.dataset('quarantined').uri}"
    if invalid > data.max_invalid_fraction * num_rows:
        raise InputDataError(
            f"{invalid} of {num_rows} rows ({invalid / num_rows:.1%}) cannot be used, above "
            f"data.max_invalid_fraction={data.max_invalid_fraction}: {listed}. First: "
            f"{_first_rows(result, store)}. No teacher was asked. Correct the rows listed in "
            f"{quarantined}, or raise data.max_invalid_fraction."
        )
    for split in SPLITS:
        wanted = split == "validation" or getattr(data, split) is not None
        if split == "validation" and data.train is None:
            wanted = False
        if wanted and not result.manifest.counts[split]:
            if elsewhere := _found_elsewhere(split, result, store):
                raise InputDataError(
                    f"all {elsewhere:,} rows of data.{split} have prompts of test or selection "
                    "rows, by which students are judged, so none is left. Give it rows that are "
                    "in no other split."
                )
            advice = f"give data.{split} more rows"
            if split == "validation" and data.validation is None:
                advice = "give data.train more rows, or raise data.validation_fraction"
            raise InputDataError(
                f"no row of the split {split!r} can be used ({listed or 'none was there'}). See "
                f"{quarantined} and {advice}."
            )


def _found_elsewhere(split: str, result: StageResult, store: StoreSpec) -> int:
    """Return how many rows of ``split`` were left out as test or selection rows, if all were."""
    batches = Store(store.root).batches(result.dataset("quarantined"))
    rows = (row for batch in batches for row in batch.to_pylist())
    reasons = [row["reason"] for row in rows if row["split"] == split]
    return len(reasons) if all(reason in _FOUND_ELSEWHERE for reason in reasons) else 0


def _first_rows(result: StageResult, store: StoreSpec, limit: int = 3) -> str:
    """Return the first quarantined rows in words."""
    batches = Store(store.root).batches(result.dataset("quarantined"))
    rows = (row for batch in batches for row in batch.to_pylist())
    broken = (row for row in rows if row["reason"] not in _FOUND_ELSEWHERE)
    return "; ".join(
        f"{row['split']} row {row['source_row']}: {row['detail']}" for row in islice(broken, limit)
    )
