"""The stage that asks a judge which of two responses is better.

Each pair is shown blind, as A and B, in both orders. The judge sees the prompt and the two
responses but no reference: how near a response comes to that, the metrics say already.
"""

import functools
import heapq
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from distillery.data.sources import source_identity
from distillery.evaluation.answers import questions
from distillery.models.hardware import cpu_threads
from distillery.storage.fingerprint import sha256
from distillery.storage.stage import Attempt, Stage, StageResult, run_stage
from distillery.storage.store import Store
from distillery.task_types import TaskType, task_type
from distillery.teacher import teacher_identity
from distillery.teacher.generation import ROWS_PER_BATCH
from distillery.teacher.local import release_models
from distillery.teacher.naming import named_as, naming_as
from distillery.teacher.pair import Pair, PairAsker, judging_inputs
from distillery.teacher.session import AskedFor, TeacherSession
from distillery.teacher.summary import progress_note
from schemas.base import versioned
from schemas.contestants import STUDENT
from schemas.errors import TeacherError
from schemas.execution import ExecutionSpec, StageName, StoreSpec
from schemas.judge import JudgeSpec
from schemas.refs import DatasetRef
from schemas.task import TaskSpec

if TYPE_CHECKING:
    import pandas as pd

_LOGIC_VERSION = 1

OnProgress = Callable[[int, int, Callable[[], str]], None]
"""Called with the pairs judged so far, those in all, and what says what else goes on."""


def judging_stage(
    answers: Mapping[str, DatasetRef], prompts: DatasetRef, task: TaskSpec, judge: JudgeSpec
) -> Stage:
    """Return what identifies a judge's verdicts: who judges whose answers, by what rubric.

    The test rows are part of the answers' identity.
    """
    preferences = judge.preferences
    return Stage(
        StageName.JUDGE_ANSWERS,
        _LOGIC_VERSION,
        inputs={
            "answers": {name: ref.fingerprint for name, ref in _judged(answers, judge).items()},
            "judge": teacher_identity(judge.model),
            "preferences": preferences and source_identity(preferences.source),
        },
        spec={
            **judging_inputs(judge),
            "max_rows": judge.max_rows,
            "preferences": preferences and versioned(preferences),
            "task_type": task.type,
        },
    )


def judge_answers(
    answers: Mapping[str, DatasetRef],
    prompts: DatasetRef,
    task: TaskSpec,
    judge: JudgeSpec,
    store: StoreSpec,
    execution: ExecutionSpec,
    *,
    on_progress: OnProgress | None = None,
) -> StageResult:
    """Return output `verdicts`: a row per test row and pair, and one per human preference.

    The judge is asked through the ledger: the same two texts are never paid for twice, and a run
    that was stopped asks only what is missing.

    Raises:
        BudgetError: A cap of the judge's budget is reached.
        InputDataError: A human preference cannot be used.
        RecipeError: The judge cannot be used as the recipe describes it.
        TeacherError: The judge left requests without an answer.
    """
    stage = judging_stage(answers, prompts, task, judge)

    def work(attempt: Attempt) -> None:
        from schemas.frames import VerdictFrame, arrow_schema, check_frame

        kind = task_type(task)
        people = _preferences(judge, kind)
        responses = _responses(_judged(answers, judge), kind, judge, attempt.store)
        num_pairs = len(people) + sum(
            len(theirs) for name, theirs in responses.items() if name != STUDENT
        )
        pairs = itertools.chain(people, _pairs(responses, prompts, attempt.store))
        counts = attempt.counts
        counts |= {"pairs": 0, "unscored": 0}
        with (
            cpu_threads(execution),
            naming_the_judge(),
            TeacherSession(judge.model, store, purpose=stage.fingerprint) as session,
            attempt.row_writer("verdicts", arrow_schema(VerdictFrame)) as writer,
        ):
            asking = _Asking(session, judge)

            def show() -> None:
                if on_progress is not None:
                    on_progress(counts["pairs"], num_pairs, lambda: progress_note(session))

            show()
            try:
                at_once = max(judge.batch_size, ROWS_PER_BATCH if judge.model.in_batches else 0)
                while batch := list(itertools.islice(pairs, at_once)):
                    rows = asking.judged(batch)
                    writer.write(check_frame(_verdict_frame(rows), VerdictFrame))
                    counts["pairs"] += len(rows)
                    counts["unscored"] += sum(row["verdict"] is None for row in rows)
                    show()
            finally:
                release_models()
            asking.refuse_missing()
            totals = session.totals
            counts |= {"from_ledger": totals.from_ledger, "asked": totals.asked}
            attempt.cost, attempt.currency = totals.cost, totals.currency
            attempt.facts["judging"] = totals.facts()

    return run_stage(stage, store, execution, work)


PLACE = "evaluation.judge.model"
naming_the_judge = functools.partial(naming_as, PLACE)
as_the_judges = functools.partial(named_as, PLACE)


class _Asking:
    """The judge at work, pairs after pairs."""

    def __init__(self, session: TeacherSession, judge: JudgeSpec) -> None:
        self._session, self._asker = session, PairAsker(judge)
        self._num_pairs = self._num_missing = 0

    def judged(self, pairs: Sequence[Pair]) -> list[dict[str, Any]]:
        """Return a row of the output for each pair; one that lacks an answer is counted."""
        both_orders = [self._asker.requests(pair) for pair in pairs]
        asked_for = AskedFor()
        for requests in both_orders:
            asked_for.add(requests)
        self._session.answer(asked_for)
        found = self._session.ledger.get(asked_for.requests)
        rows = []
        for pair, requests in zip(pairs, both_orders, strict=True):
            self._num_pairs += bool(requests)
            row = self._asker.judged(pair, requests, found)
            self._num_missing += row is None
            rows.append(row or pair.judged([]))
        return rows

    def refuse_missing(self) -> None:
        """Raise TeacherError when some pair lacks an answer; what is there is in the ledger."""
        if self._num_missing:
            raise TeacherError(
                f"{self._num_missing} of {self._num_pairs} pairs have no verdict from the judge "
                f"yet. Last error: {self._session.totals.last_error!r}. The finished ones are "
                "kept. Run again: only the missing ones are asked."
            )


def _judged(answers: Mapping[str, DatasetRef], judge: JudgeSpec) -> dict[str, DatasetRef]:
    """Return the answers of those whom the judge looks at."""
    return {name: answers[name] for name in (STUDENT, *judge.against) if name in answers}


def _preferences(judge: JudgeSpec, kind: TaskType) -> list[Pair]:
    from distillery.evaluation.preferences import read_preferences  # brings pandas

    if judge.preferences is None:
        return []
    return [
        Pair(
            prompt_id=row.prompt_id,
            against=None,
            conversation=row.conversation,
            first=row.first.strip(),
            second=row.second.strip(),
            preferred=row.verdict,
        )
        for row in read_preferences(judge.preferences, kind)
    ]


def _responses(
    judged: Mapping[str, DatasetRef], kind: TaskType, judge: JudgeSpec, store: Store
) -> dict[str, dict[str, str | None]]:
    """Return the responses of each by prompt id, on the test rows that are judged."""
    tables = {
        name: store.dataset(ref).to_table(columns=["prompt_id", "response"]).to_pylist()
        for name, ref in judged.items()
    }
    by_name = {
        name: {row["prompt_id"]: _without_thoughts(row["response"], kind) for row in rows}
        for name, rows in tables.items()
    }
    ids = sorted(set.intersection(*(set(responses) for responses in by_name.values())))
    if judge.max_rows is not None:
        ids = heapq.nsmallest(judge.max_rows, ids, key=sha256)
    return {
        name: {prompt_id: responses[prompt_id] for prompt_id in ids}
        for name, responses in by_name.items()
    }


def _without_thoughts(response: str | None, kind: TaskType) -> str | None:
    """Return what a user would read of a response; "" where only thoughts are there."""
    if response is None:
        return None
    answer = kind.parse(response)
    return answer.text.strip() if answer else ""


def _pairs(
    responses: Mapping[str, Mapping[str, str | None]], prompts: DatasetRef, store: Store
) -> Iterator[Pair]:
    """Yield the student's response beside everybody else's, test row after test row."""
    student = responses[STUDENT]
    for row in itertools.chain.from_iterable(questions(prompts, store)):
        if row.prompt_id not in student:
            continue
        for name, theirs in responses.items():
            if name != STUDENT:
                both = student[row.prompt_id], theirs[row.prompt_id]
                yield Pair(row.prompt_id, name, row.conversation, *both)


def _verdict_frame(rows: Sequence[Mapping[str, Any]]) -> "pd.DataFrame":
    import pandas as pd

    return pd.DataFrame(
        {name: pd.array([row[name] for row in rows], dtype="str") for name in rows[0]}
    )
