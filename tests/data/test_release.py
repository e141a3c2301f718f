"""A training set is released only when every expectation was checked and holds."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from distillery.data.release import release_dataset
from distillery.storage.fingerprint import sha256
from distillery.storage.stage import StageResult
from distillery.storage.store import Store
from schemas.errors import ReleaseError
from schemas.execution import ExecutionSpec, StoreSpec
from schemas.filters import FilterSpec
from schemas.frames import TrainingFrame, arrow_schema
from schemas.refs import DatasetRef, FilteredSet, PromptSet
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
        # Nothing leads from here to the files.
        unknown = filtered.kept.model_copy(update={"uri": "validate_prompts/0/a/prompts"})
        prompts = PromptSet(prompts=unknown, gold=unknown, quarantined=unknown)
        return release_dataset(filtered, prompts, task, filters, self.store, ExecutionSpec())

    def filtered(self, rows: list[Row], num_responses: int) -> FilteredSet:
        schema = arrow_schema(TrainingFrame)
        fingerprint = sha256(rows)
        uri = f"filter_responses/{fingerprint}/a/kept"
        with Store(self.store.root).row_writer(uri, schema) as writer:
            if rows:
                writer.write(pd.DataFrame(rows, columns=schema.names))
        kept = writer.ref(fingerprint)
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


def _varied(num_rows: int, label: str = "yes") -> list[Row]:
    """Return rows whose prompts differ."""
    rows = _rows(num_rows, 2)
    for n, row in enumerate(rows):
        text = f"how is colour {n} with number {n * 7}"
        row |= {"messages": f'[{{"content":"{text}","role":"user"}}]', "response": label}
    rows[0]["response"] = "no"
    return rows


@pytest.mark.parametrize(
    ("bounds", "failure"),
    [
        (
            {"min_distinct_2": 0.9},
            "distinct_2 of prompts has to be at least 0.9, but is 0.",
        ),
        ({"max_imbalance": 5}, "imbalance of label has to be at most 5, but is 7"),
        (
            {"max_near_duplicates": 0.1},
            "near_duplicates of prompts has to be at most 0.1, but is 0.875",
        ),
    ],
)
def test_bounds_on_the_data_card_are_expectations(
    bench: Bench, bounds: dict[str, float], failure: str
) -> None:
    rows = _varied(6)
    if "max_near_duplicates" in bounds:
        rows = [row | {"messages": rows[0]["messages"]} for row in rows]
    assert failure in bench.refusal(rows, filters=FILTERS.model_copy(update=bounds))


def test_a_figure_that_cannot_be_computed_breaks_its_bound(bench: Bench) -> None:
    filters = FILTERS.model_copy(update={"max_imbalance": 100.0})
    rows = [row | {"response": "yes"} for row in _varied(6)]
    assert "imbalance of label has to be there, but is " in bench.refusal(rows, filters=filters)


def test_drift_is_measured_against_the_set_released_last(bench: Bench) -> None:
    filters = FILTERS.model_copy(update={"max_drift": 0.2})
    first = bench.release(_varied(6), filters=filters)  # there is nothing to compare with
    assert first.manifest.facts["compared_with"] is None
    message = bench.refusal(_varied(40, "no"), filters=filters)
    assert "drift: answers: label has to be at most 0.2, but is " in message
    looser = FILTERS.model_copy(update={"max_drift": 1.0})
    accepted = bench.release(_varied(40, "no"), filters=looser)
    assert accepted.manifest.facts["compared_with"] == first.dataset("training_set").fingerprint
    card = Store(bench.store.root).read_json(f"{accepted.report('data_card').uri}/card.json")
    assert card == Store(bench.store.root).read_json("released/t.json")


def test_a_refused_set_is_not_what_the_next_is_compared_with(bench: Bench) -> None:
    bench.release(_varied(6))
    before = Store(bench.store.root).read_json("released/t.json")
    bench.refusal(_varied(1))
    assert Store(bench.store.root).read_json("released/t.json") == before
