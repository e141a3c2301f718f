"""The stage score_soft_targets: the teacher's probabilities at every token of the released rows."""

import contextlib
import hashlib
import json
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from distillery.data.chat import load_messages
from distillery.ledger.held import held
from distillery.models.chat_format import refuse_many_not_written
from distillery.models.hardware import cpu_threads
from distillery.objectives.soft.panel import Member, members, panel_inputs, report
from distillery.objectives.soft.stored import Charged, ScoringRow, to_batch, write_targets
from distillery.storage.fingerprint import model_identity, sha256
from distillery.storage.stage import Attempt, Stage, StageResult, find_stage, run_stage
from distillery.storage.store import Store
from distillery.teacher import teacher_identity
from distillery.teacher.prompt import TeacherPrompt, prompt_inputs
from schemas.errors import RecipeError, TeacherError
from schemas.execution import ExecutionSpec, StageName, StoreSpec
from schemas.objectives import CrossTokenizer, Scored, SoftTargets
from schemas.refs import DatasetRef
from schemas.task import TaskSpec
from schemas.teacher import TeacherSpec
from schemas.training import TrainingSpec

if TYPE_CHECKING:
    from distillery.objectives.soft.scorers import PanelScorer

logger = logging.getLogger(__name__)

_LOGIC_VERSION = 7
# Together as far as their scores fit into some 100 MB: a character is at most about a token, of k
# numbers.
_CHUNK_ROWS, _CHUNK_CHARS = 256, 2**25
_NAMED_ROWS = 20
_DIGEST_BYTES = 32
_CHARGED_KEY = b"charged"
_PACKING = pa.ipc.IpcWriteOptions(compression="zstd")


def scoring_stage(
    rows: DatasetRef,
    prompts: DatasetRef,
    teacher: TeacherSpec,
    task: TaskSpec,
    training: TrainingSpec,
) -> Stage:
    """Return the stage that scores ``rows``, behind the prompt that the teacher reads.

    Of the training only what decides which numbers are stored is part of it: another divergence or
    another weight learns from the same soft targets.
    """
    soft = _scored(training)
    spec: dict[str, Any] = {
        "k": soft.k,
        "distillation_temperature": soft.distillation_temperature,
        "prompt": prompt_inputs(teacher, task),
    }
    inputs: dict[str, Any] = {"rows": rows.fingerprint, "teacher": teacher_identity(teacher)}
    if isinstance(soft, SoftTargets) and soft.panel:
        inputs["panel"], spec["combine"] = panel_inputs(soft.panel, task), soft.combine
    if any(each.teacher.examples is not None for each in members(teacher, soft)):
        inputs["gold_rows"] = prompts.identity("gold")
    if isinstance(soft, CrossTokenizer) and soft.tokenizer is not None:
        role = "training.objective.tokenizer"
        inputs["tokenizer"] = model_identity(soft.tokenizer, soft.tokenizer_revision, role=role)
    return Stage(
        name=StageName.SCORE_SOFT_TARGETS,
        logic_version=_LOGIC_VERSION,
        inputs=inputs,
        spec=spec,
    )


def score_soft_targets(
    rows: DatasetRef,
    prompts: DatasetRef,
    teacher: TeacherSpec,
    task: TaskSpec,
    training: TrainingSpec,
    store: StoreSpec,
    execution: ExecutionSpec,
    *,
    on_progress: Callable[[int, int], None] | None = None,
) -> StageResult:
    """Return `soft_targets`: the teacher's probabilities along the responses of ``rows``.

    One process at a time makes the same: trials beside each other, say, pay once. Rows that do not
    fit the teacher's context are left out, as are a few that its chat format
    cannot write; both are counted, and the first named in the manifest. Scores are kept a part at a
    time, so a stage that was killed goes on where it was; one that is forced does not.

    Args:
        rows: A TrainingFrame.
        prompts: A PromptFrame with the gold rows that the teacher may be shown.
        teacher: Who scores; it need not have written the responses.
        task: What the teacher's instructions may name.
        training: Its objective says what is stored.
        store: Where everything is.
        execution: How the run is carried out.
        on_progress: Called with the rows done and the rows in all.

    Raises:
        RecipeError: The objective is not soft targets, or the teacher cannot show them.
        TrainingError: The teacher's chat template changes a prompt, or too many responses.
        TeacherError: The teacher fails, or no row fits its context.
    """
    stage = scoring_stage(rows, prompts, teacher, task, training)
    soft = _scored(training)
    teachers = members(teacher, soft)
    told = [TeacherPrompt(each.teacher, task, prompts, store) for each in teachers]
    progress = on_progress or (lambda *_: None)

    def work(attempt: Attempt) -> None:
        if execution.forces(stage.name):
            attempt.store.delete(attempt.checkpoints_uri)
        with cpu_threads(execution), contextlib.closing(_open(teachers, soft, told)) as scorer:
            scoring = _Scoring(attempt.store, attempt.checkpoints_uri, scorer, rows.num_rows)
            chunks = _chunks(attempt.store, rows, most_chars=_CHUNK_CHARS // soft.k)

            def batches() -> Iterator[pa.RecordBatch]:
                done = 0
                for chunk in chunks:
                    yield scoring.scored(chunk)
                    done += len(chunk)
                    progress(done, rows.num_rows)

            ref = write_targets(attempt, "soft_targets", batches(), scorer.meta)
        scoring.log()
        if not scoring.num_tokens:
            raise TeacherError(
                f"none of {rows.num_rows} rows fits the context of teacher {teacher.model!r}. "
                "Choose a teacher that reads longer texts, or set training.objective.kind to "
                "hard_targets."
            )
        attempt.counts |= {
            "rows": ref.num_rows,
            "response_tokens": scoring.num_tokens,
            "left_out_too_long": len(scoring.too_long),
            "left_out_not_written": len(scoring.not_written),
        }
        num_bytes = attempt.store.fs.du(attempt.store.path(ref.uri))
        attempt.facts |= {
            "soft_targets": scorer.meta.model_dump(mode="json"),
            "mean_kept_mass": scoring.kept_mass / scoring.num_tokens,
            "bytes_per_token": num_bytes / scoring.num_tokens,
            "left_out_first_ids": [*scoring.too_long[:_NAMED_ROWS]],
            "rows_scored_before": scoring.num_found,
        }
        if isinstance(soft, SoftTargets) and soft.panel:
            names = [each.name for each in teachers]
            tokens = scoring.num_tokens
            attempt.facts["teachers"] = report(
                teachers,
                soft,
                {name: scoring.num_read[at] for at, name in enumerate(names)},
                {name: scoring.num_agreeing[at] / tokens for at, name in enumerate(names)},
            )
        if scoring.requests.total():
            attempt.facts["served"] = {
                "requests": scoring.requests.total(),
                "prompt_tokens": scoring.prompt_tokens.total(),
                "completion_tokens": scoring.requests.total(),
            }
            attempt.cost, attempt.currency = _cost(teachers, scoring)
        if scoring.not_written:
            attempt.facts["not_written"] = dict(islice(scoring.not_written.items(), _NAMED_ROWS))

    if found := find_stage(stage, store, execution):
        return found
    with held(store, f"{stage.name} {stage.fingerprint}", wait=True):
        return run_stage(stage, store, execution, work)


class _Scoring:
    """Has rows scored, keeps their scores until all rows are, and counts on the way.

    A file of the store is named by its rows, what they say, and what they are scored with: rows
    that have changed in the meantime are scored again. It begins with the SHA-256 of the rest, as
    Arrow reads damaged numbers without noticing.
    """

    def __init__(self, store: Store, uri: str, scorer: "PanelScorer", num_rows: int) -> None:
        """Keep files below ``uri``; there will be ``num_rows`` rows."""
        self._store, self._uri, self._scorer, self._num_rows = store, uri, scorer, num_rows
        self.num_found, self.num_tokens, self.kept_mass = 0, 0, 0.0
        self.too_long: list[str] = []
        self.not_written: dict[str, str] = {}
        self.num_read: Counter[int] = Counter()
        """Rows that each of the teachers has scored."""
        self.requests: Counter[int] = Counter()
        """Requests to each of those that are served, by all attempts at the stage."""
        self.prompt_tokens: Counter[int] = Counter()
        """Tokens that each of those read."""
        self.num_agreeing: Counter[int] = Counter()
        """Response tokens at which each of them has the average's most likely token."""

    def scored(self, rows: Sequence[ScoringRow]) -> pa.RecordBatch:
        """Return the scores of ``rows`` as far as they have any, in order: found, or made and kept.

        Errors are those of the scorer, and:

        Raises:
            TrainingError: Too many rows cannot be written in the teacher's chat format.
        """
        meta = self._scorer.meta
        uri = f"{self._uri}/{sha256([meta.model_dump(mode='json'), rows])}.arrow"
        if packed := self._found(uri):
            self.num_found += len(rows)
            with pa.ipc.open_file(packed) as file:
                batch = file.get_batch(0)
        else:
            before = self._scorer.charged()
            batch, sink = to_batch(list(self._scorer.score(rows)), meta), pa.BufferOutputStream()
            charged = _difference(self._scorer.charged(), before)
            if any(requests for requests, _ in charged):
                told = {**batch.schema.metadata, _CHARGED_KEY: json.dumps(charged)}
                batch = batch.replace_schema_metadata(told)
            with pa.ipc.new_file(sink, batch.schema, options=_PACKING) as file:
                file.write_batch(batch)
            packed = sink.getvalue().to_pybytes()
            self._store.write_bytes(uri, hashlib.sha256(packed).digest() + packed)
        told = dict(batch.schema.metadata)
        for at, asked in enumerate(json.loads(told.pop(_CHARGED_KEY, b"[]"))):
            self.requests[at] += asked[0]
            self.prompt_tokens[at] += asked[1]
        batch = batch.replace_schema_metadata(told)
        log_rest_N = batch["log_rest"].values.to_numpy()
        self.num_tokens += len(log_rest_N)
        self.kept_mass += float(-np.expm1(log_rest_N, dtype=np.float64).sum())
        for agreeing in batch["agreeing"].to_pylist():
            self.num_agreeing.update(dict(enumerate(agreeing)))
        scored = set(batch["prompt_id"].to_pylist())
        for row in rows:
            if row.prompt_id in scored:
                self.num_read.update(self._scorer.readers(row))
                continue
            if why := self._scorer.obstacle(row):
                self.not_written[row.prompt_id] = why
            else:
                self.too_long.append(row.prompt_id)
        refuse_many_not_written(self.not_written, self._num_rows)
        return batch

    def _found(self, uri: str) -> bytes | None:
        """Return what a file keeps; None where there is none, or it is damaged."""
        content = self._store.read_bytes(uri)
        if content is None:
            return None
        digest, packed = content[:_DIGEST_BYTES], content[_DIGEST_BYTES:]
        if hashlib.sha256(packed).digest() == digest:
            return packed
        logger.warning("%s is damaged; its rows are scored again", self._store.path(uri))
        return None

    def log(self) -> None:
        """Say what was found, and what was left out."""
        if self.num_found:
            logger.info("%d rows had been scored before", self.num_found)
        if self.too_long:
            logger.warning(
                "%d rows do not fit the teacher's context and have no soft targets, first %s",
                len(self.too_long), self.too_long[0],
            )  # fmt: skip
        if self.not_written:
            first, why = next(iter(self.not_written.items()))
            logger.warning(
                "%d rows cannot be written by the teacher and have no soft targets, first %s: %s",
                len(self.not_written), first, why,
            )  # fmt: skip


def _difference(after: Sequence[Charged], before: Sequence[Charged]) -> list[list[int]]:
    return [
        [a.requests - b.requests, a.prompt_tokens - b.prompt_tokens]
        for a, b in zip(after, before, strict=True)
    ]


def _cost(teachers: Sequence[Member], scoring: _Scoring) -> tuple[float | None, str | None]:
    """Return what the served teachers cost, and the currency; None where not all have a price."""
    served = {at: each.teacher for at, each in enumerate(teachers) if each.teacher.is_served}
    prices = {at: teacher.price for at, teacher in served.items() if teacher.price is not None}
    currencies = {price.currency for price in prices.values()}
    if len(prices) < len(served) or len(currencies) > 1:
        return None, None
    costs = (p.cost(scoring.prompt_tokens[n], scoring.requests[n]) for n, p in prices.items())
    return sum(costs), currencies.pop()


def _open(
    teachers: Sequence[Member], soft: Scored, prompts: Sequence[TeacherPrompt]
) -> "PanelScorer":
    from distillery.objectives.soft.scorers import open_scorers

    return open_scorers(teachers, soft, prompts)


def _scored(training: TrainingSpec) -> Scored:
    if isinstance(training.objective, SoftTargets | CrossTokenizer):
        return training.objective
    raise RecipeError(
        f"training.objective.kind is {training.objective.kind!r}, for which nothing is stored. Set "
        "it to soft_targets or cross_tokenizer to score responses."
    )


def _chunks(store: Store, rows: DatasetRef, *, most_chars: int) -> Iterator[list[ScoringRow]]:
    """Yield rows together until they are _CHUNK_ROWS, or have ``most_chars`` of responses."""
    chunk: list[ScoringRow] = []
    num_chars = 0
    for batch in store.batches(rows):
        for row in batch.to_pylist():
            messages, response = load_messages(row["messages"]), row["response"]
            is_full = len(chunk) == _CHUNK_ROWS or num_chars + len(response) > most_chars
            if chunk and is_full:
                yield chunk
                chunk, num_chars = [], 0
            chunk.append(ScoringRow(row["prompt_id"], row["split"], messages, response))
            num_chars += len(response)
    if chunk:
        yield chunk
