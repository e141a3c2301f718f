"""A training set is released only when every expectation was checked and holds."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from distillery.data.release import release_dataset
from distillery.storage.stage import StageResult
from distillery.storage.store import Store
from schemas.errors import ReleaseError
from schemas.execution import ExecutionSpec, StoreSpec
from schemas.filters import FilterSpec
from schemas.frames import TrainingFrame, arrow_schema
from schemas.refs import DatasetRef, FilteredSet
from schemas.task import LabelSet, TaskKind, TaskSpec

QA = TaskSpec(name="t", type="classification")
LABELS = QA.model_copy(update={"answer_format": LabelSet(labels=("yes", "no"))})
FILTERS = FilterSpec(min_train_rows=3, min_keep_fraction=0.5)
Row = dict[str, Any]


def _rows(num_train: int = 6, num_validation: int = 2, **columns: Any) -> list[Row]:
    splits = ["train"] * num_train + ["validation"] * num_validation
    return [
        {
            "prompt_id": f"p{n}",
            "split": split,
            "messages": '[{"content":"q","role":"user"}]',
            "response": "yes",
            "reasoning": None,
            "teacher": None,
            "chosen_because": None,
        }
        | columns
        for n, split in enumerate(splits)
    ]


class Bench:
    def __init__(self, root: Path) -> None:
        self.store = StoreSpec(root=str(root))

    def release(
        self,
        rows: list[Row],
        *,
        num_responses: int | None = None,
        task: TaskSpec = LABELS,
        filters: FilterSpec = FILTERS,
    ) -> StageResult:
        filtered = self.filtered(rows, num_responses or len(rows))
        return release_dataset(filtered, task, filters, self.store, ExecutionSpec())

    def filtered(self, rows: list[Row], num_responses: int) -> FilteredSet:
        schema = arrow_schema(TrainingFrame)
        with Store(self.store.root).row_writer("filter_responses/0/a/kept", schema) as writer:
            if rows:
                writer.write(pd.DataFrame(rows, columns=schema.names))
        kept = writer.ref("kept-fingerprint")
        dropped = {"truncated": num_responses - len(rows)}
        return FilteredSet(
            kept=kept, rejected=kept, num_responses=num_responses, drop_reasons=dropped
        )

    def refusal(self, rows: list[Row], **named: Any) -> str:
        with pytest.raises(ReleaseError) as caught:
            self.release(rows, **named)
        return str(caught.value)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path / "store")


def test_a_released_set_is_the_kept_rows_themselves_with_docs_for_people(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("distillery.data.release._SAMPLE_ROWS", 20)
    rows = _rows(200, 10)
    result = bench.release(rows)
    assert result.dataset("training_set") == bench.filtered(rows, 210).kept
    assert result.manifest.counts == {"rows": 210, "sampled_rows": 20}
    aggregates: Any = result.manifest.facts["aggregates"]
    assert (aggregates["num_train_rows"], aggregates["keep_fraction"]) == (200, 1.0)
    with Store(bench.store.root).local_copy(result.report("data_docs")) as docs:
        assert "Data Docs" in (docs / "index.html").read_text()


def test_another_threshold_that_holds_trains_no_student_again(bench: Bench) -> None:
    first = bench.release(_rows())
    looser = bench.release(_rows(), filters=FilterSpec(min_train_rows=1))
    assert not looser.reused
    assert looser.dataset("training_set") == first.dataset("training_set")


_CHANGES: list[dict[str, str | None]] = [
    {"response": ""},
    {"response": None},
    {"split": "test"},
    {"messages": "q"},
    {},
    {},
    {},
]
MIXED = [
    row | change
    for row, change in zip(
        _rows(5),
        _CHANGES,
        strict=True,
    )
]


@pytest.mark.parametrize(
    ("rows", "named", "failures"),
    [
        (
            _rows(2, 0, prompt_id="same"),
            {"num_responses": 10},
            [
                "num_train_rows has to be at least 3, but is 2",
                "num_validation_rows has to be at least 1, but is 0",
                "keep_fraction has to be at least 0.5 and at most 1, but is 0.2",
                "num_repeated_ids has to be at most 0, but is 1",
            ],
        ),
        (
            MIXED,
            {"task": QA},
            [
                "response has to be there, but is nan",
                "response has to have at least 1 characters, but is ''",
                "messages has to match '^\\\\[\\\\{.*\\\\}\\\\]$', but is 'q'",
                "split has to be one of ['train', 'validation'], but is 'test'",
            ],
        ),
        (
            _rows(response="maybe"),
            {},
            ["response has to be one of ['yes', 'no'], but is 'maybe', 'maybe', 'maybe' in 8 rows"],
        ),
        (
            [],
            {},
            [
                "num_train_rows has to be at least 3, but is 0",
                "num_validation_rows has to be at least 1, but is 0",
                "keep_fraction has to be at least 0.5 and at most 1, but is 0",
            ],
        ),
    ],
    ids=["counts", "rows", "labels", "nothing"],
)
def test_a_set_is_refused_with_every_broken_expectation_and_what_was_observed(
    bench: Bench, rows: list[Row], named: dict[str, Any], failures: list[str]
) -> None:
    message = bench.refusal(rows, **named)
    told = message.removeprefix("the training set is not released: ").split(". Kept ")[0]
    assert told.split("; ") == failures


def test_a_refused_set_is_not_sealed_but_its_docs_and_reasons_are_kept(bench: Bench) -> None:
    message = bench.refusal(_rows(4), num_responses=20)
    assert "Kept 6 responses (30.0%); dropped 'truncated' 14. A student would learn" in message
    page = Path(message.split("Read ")[1].split(" and the rejected rows")[0])
    assert "Data Docs" in page.read_text()
    assert list(Path(bench.store.root).rglob("manifest.json")) == []


# Importing Great Expectations warns of what it uses itself.
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_suite_that_cannot_be_evaluated_releases_nothing(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    from great_expectations.execution_engine import PandasExecutionEngine

    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("no metric today")

    monkeypatch.setattr(PandasExecutionEngine, "resolve_metrics", broken)
    message = bench.refusal(_rows())
    assert message.count("could not be checked: ") == 9
    assert "traceback" not in message.casefold()
    assert list(Path(bench.store.root).rglob("manifest.json")) == []


# Importing Great Expectations warns of what it uses itself.
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_expectations_that_were_not_checked_release_nothing(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    import great_expectations as gx

    run = gx.Checkpoint.run

    def forgetful(self: Any, *args: Any, **named: Any) -> Any:
        outcome = run(self, *args, **named)
        for validation in outcome.run_results.values():
            validation.results.pop()
        return outcome

    monkeypatch.setattr(gx.Checkpoint, "run", forgetful)
    assert "only 7 of 9 expectations could be checked" in bench.refusal(_rows())


def test_refs_of_a_filtered_set_survive_json(bench: Bench) -> None:
    filtered = bench.filtered(_rows(), 9)
    assert FilteredSet.model_validate_json(filtered.model_dump_json()) == filtered
    assert isinstance(filtered.kept, DatasetRef)


def test_the_labels_of_nli_are_expected_without_an_answer_format(tmp_path: Path) -> None:
    task = TaskSpec(name="t", type=TaskKind.NLI)
    Bench(tmp_path / "a").release(_rows(response="neutral"), task=task)
    with pytest.raises(ReleaseError, match=r"has to be one of .*'contradiction'"):
        Bench(tmp_path / "b").release(_rows(response="maybe"), task=task)
