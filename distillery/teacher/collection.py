"""Collection: what the ledger has for the prompts becomes one data set, and the stage is sealed."""

import collections
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import pyarrow as pa

from distillery.ledger import Ledger, LedgerRow
from distillery.storage.stage import Attempt, Stage, StageResult, run_stage
from distillery.teacher import Request
from distillery.teacher.generation import prompt_rows
from distillery.teacher.panel.rounds import Rounds, Row
from distillery.teacher.panel.shares import Shares
from distillery.teacher.requests import Asker, Said
from distillery.teacher.session import Totals
from schemas.errors import TeacherError
from schemas.execution import ExecutionSpec, StoreSpec
from schemas.panel import AnyTeacher, PanelTeacher
from schemas.refs import DatasetRef
from schemas.task import TaskSpec
from schemas.teacher import TeacherSpec

_NAMED_PROMPTS = 5


class _Final(NamedTuple):
    """What a row gets."""

    said: Said
    teacher: str
    chosen_because: str | None
    agreement: float | None


def collect_responses(
    stage: Stage,
    prompts: DatasetRef,
    teacher: AnyTeacher,
    task: TaskSpec,
    store: StoreSpec,
    execution: ExecutionSpec,
    totals: Totals,
) -> StageResult:
    """Return the sealed stage with the output `responses`, one row per prompt, in order.

    Whose response a row of a panel gets follows from the ledger alone.

    Args:
        stage: What :func:`generation_stage` gives.
        prompts: The prompts that were answered.
        teacher: Who answered.
        task: Which response is chosen may depend on it.
        store: Store and ledger.
        execution: How the run is carried out.
        totals: What the asking took; kept in the manifest as `facts.generation`.

    Raises:
        TeacherError: Some prompts have no response in a final state; the stage stays unsealed.
    """
    from schemas.frames import ResponseFrame, arrow_schema

    def work(attempt: Attempt) -> None:
        with Ledger.open(store) as ledger:
            choose: _OfOne | _OfPanel = (
                _OfPanel(teacher, task, prompts, store, ledger)
                if teacher.is_panel
                else _OfOne(teacher, task, prompts, store, ledger)
            )
            collection = _Collection(choose)
            with attempt.row_writer("responses", arrow_schema(ResponseFrame)) as writer:
                for rows in prompt_rows(prompts, store):
                    if (batch := collection.joined(rows)) is not None:
                        writer.write(batch)
        if collection.num_missing:
            raise TeacherError(collection.missing_message(totals))
        attempt.counts |= {
            **collection.by_state,
            "from_ledger": totals.from_ledger,
            "asked": totals.asked,
        }
        # The asking went on before this attempt at collecting.
        attempt.timings_s["asking"] = totals.seconds or 0.0
        attempt.timings_s["total"] = attempt.timings_s["asking"]
        attempt.cost, attempt.currency = totals.cost, totals.currency
        attempt.facts["bill"] = {**collection.bill}
        attempt.facts["generation"] = totals.facts() | {
            "models_reported": [*sorted(collection.models_reported)]
        }
        if isinstance(choose, _OfPanel):
            num_rows = collection.by_state.total()
            attempt.facts["panel"] = choose.shares.found(num_rows).model_dump(mode="json")

    return run_stage(stage, store, execution, work)


class _OfOne:
    """What one teacher says to rows."""

    def __init__(
        self,
        teacher: TeacherSpec,
        task: TaskSpec,
        prompts: DatasetRef,
        store: StoreSpec,
        ledger: Ledger,
    ) -> None:
        self._asker, self._ledger = Asker(teacher, task, prompts, store), ledger

    def __call__(self, rows: Sequence[dict[str, Any]]) -> list[tuple[_Final | None, list[Said]]]:
        """Return what each row gets, None where it is missing, and all that was said to it."""
        requests = self._asker.requests(rows)
        found = self._ledger.get({r.request_hash for of_row in requests for r in of_row})
        finals: list[tuple[_Final | None, list[Said]]] = []
        for of_row in requests:
            said = self._asker.said(of_row, found)
            name = self._asker.teacher.model
            final = None if said is None else _Final(said, name, None, said.agreement)
            finals.append((final, [said] if said else []))
        return finals


class _OfPanel:
    """What a panel says to rows, by what the ledger has; nobody is asked."""

    def __init__(
        self,
        panel: PanelTeacher,
        task: TaskSpec,
        prompts: DatasetRef,
        store: StoreSpec,
        ledger: Ledger,
    ) -> None:
        self._rounds, self._ledger = Rounds(panel, task, prompts, store), ledger
        self.shares = Shares(panel, task)

    def __call__(self, rows: Sequence[dict[str, Any]]) -> list[tuple[_Final | None, list[Said]]]:
        """Return what each row gets, None where it is missing, and all that was said to it."""
        asked = [Row(row) for row in rows]
        self._rounds.settle(asked, self._look_up)
        finals: list[tuple[_Final | None, list[Said]]] = []
        for row in asked:
            said, final, taken = row.said, None, row.taken
            if said is not None and taken is not None:
                self.shares.note(row)
                final = _Final(said, taken.member, taken.because, taken.agreement)
            finals.append((final, [*row.known.said.values()]))
        return finals

    def _look_up(self, name: str, requests: Sequence[Request]) -> Mapping[str, LedgerRow]:
        return self._ledger.get({request.request_hash for request in requests})


class _Collection:
    """Joins prompts with their responses, batch by batch, and counts on the way."""

    def __init__(self, choose: _OfOne | _OfPanel) -> None:
        self._choose = choose
        self.by_state: collections.Counter[str] = collections.Counter()
        self.models_reported: set[str] = set()
        self.bill = {"responses": 0, "prompt_tokens": 0, "completion_tokens": 0}
        """What all samples took, over all attempts, from the ledger or not."""
        self.num_missing = 0
        self._first_missing: list[str] = []

    def joined(self, rows: Sequence[dict[str, Any]]) -> pa.RecordBatch | None:
        """Return rows of the output; those without a response are counted and left out."""
        import pandas as pd

        from schemas.frames import ResponseFrame, arrow_schema, check_frame

        joined = []
        for row, (final, said) in zip(rows, self._choose(rows), strict=True):
            self._add_up(said)
            if final is not None:
                joined.append(self._join(row, final))
                continue
            self.num_missing += 1
            if self.num_missing <= _NAMED_PROMPTS:
                self._first_missing.append(row["prompt_id"])
        if not joined:
            return None
        schema = arrow_schema(ResponseFrame)
        frame = pd.DataFrame(joined, columns=schema.names)
        frame["agreement"] = frame["agreement"].astype("float64")
        check_frame(frame, ResponseFrame)
        return pa.RecordBatch.from_pandas(frame, schema=schema, preserve_index=False)

    def _add_up(self, said: Sequence[Said]) -> None:
        samples = [response for each in said for response in each.samples]
        self.bill["responses"] += len(samples)
        self.bill["prompt_tokens"] += sum(r.billed_prompt_tokens for r in samples)
        self.bill["completion_tokens"] += sum(r.billed_completion_tokens for r in samples)
        self.models_reported |= {r.model_reported for r in samples if r.model_reported}

    def _join(self, row: dict[str, Any], final: _Final) -> dict[str, Any]:
        """Return one row of the output. Tokens that the endpoint did not count are 0."""
        response = final.said.response
        self.by_state[response.state] += 1
        return {
            **{name: row[name] for name in ("prompt_id", "split", "messages")},
            "response": response.text,
            "reasoning": response.reasoning or None,
            "state": response.state,
            "prompt_tokens": response.prompt_tokens or 0,
            "completion_tokens": response.completion_tokens or 0,
            "request_hash": response.request_hash,
            "sample_index": final.said.sample_index,
            "agreement": final.agreement,
            "repaired": response.repaired,
            "teacher": final.teacher,
            "chosen_because": final.chosen_because,
        }

    def missing_message(self, totals: Totals) -> str:
        """Return what to say about prompts without a response."""
        num_rows = self.num_missing + self.by_state.total()
        last = f" Last error: {totals.last_error!r}." if totals.last_error else ""
        return (
            f"{self.num_missing} of {num_rows} prompts have no response yet, the first of them "
            f"{self._first_missing}.{last} The {self.by_state.total()} finished responses are "
            "kept. Run again: only the missing ones are asked."
        )
