"""The page says who won, what it cost and why trials ended; all of it is escaped."""

import dataclasses
import re
from pathlib import Path

import pyarrow as pa
import yaml

from distillery.ledger import Ledger
from distillery.storage.stage import Attempt, Stage, run_stage
from distillery.sweep.report import (
    importance_of,
    render_page,
    report_sweep,
    sweep_markdown,
    terminal_trials,
    trial_rows,
    verdict,
    winning_yaml,
)
from distillery.sweep.space import applied
from distillery.sweep.spending import Spending, spending
from distillery.sweep.study import Study
from schemas.execution import ExecutionSpec, StageName, StoreSpec
from schemas.recipe import Recipe, load_recipe
from schemas.refs import DatasetRef
from schemas.sweep import Trial
from tests.fixtures_ledger import commit, row
from tests.fixtures_sweep import LEARNING_RATE, complete, costs_of, interval, sweep_recipe

RECIPE = sweep_recipe(parameters=[LEARNING_RATE])
SPENT = Spending(240, 240, 0, 0, 5_000, 480, 0.5, "USD")
FAILED = Trial(
    number=2,
    values={"training.learning_rate": 0.1},
    state="failed",
    reason="the loss <b>is not</b> finite",
    seconds=3.0,
)
TRIALS = (complete(0, 0.8), complete(1, 0.9, latency=0.2), FAILED)


def test_the_best_trials_come_first_and_the_winner_is_named() -> None:
    rows = trial_rows(RECIPE, TRIALS, TRIALS[1])
    assert [row["trial"] for row in rows] == ["1", "0", "2"]
    assert [row["state"] for row in rows] == ["winner", "complete", "failed"]
    assert rows[0]["accuracy"] == "0.9000 [0.8800, 0.9200]"
    assert rows[0]["learning_rate"] == "0.01" and rows[2]["latency"] == "–"  # noqa: RUF001


def test_what_was_asked_of_the_teacher_is_said_once_for_all_trials() -> None:
    assert SPENT.sentence(3) == (
        "3 trials learnt from 240 responses of the teacher: 240 requests, 5,000 tokens read, "
        "480 written, 0.5 USD; 0 paid twice."
    )
    scored = dataclasses.replace(SPENT, scoring_requests=480)
    assert "240 requests and 480 for its probabilities, 5,000 tokens read" in scored.sentence(3)


def test_the_page_has_everything_and_nothing_from_outside_is_markup() -> None:
    page = render_page(RECIPE, "study", TRIALS, TRIALS[1], None, SPENT, "task:\n  name: <t>\n")
    assert "Trial 1 wins as the best of 3: accuracy 0.9000" in page
    assert "the loss &lt;b&gt;is not&lt;/b&gt; finite" in page
    assert "name: &lt;t&gt;" in page
    assert "2 completed trials are too few" in page
    assert page.count("<svg") == 2  # by trial, and against latency
    assert "0 paid twice" in page
    assert not re.search(r'(src|href)="[^#]', page)


def test_the_markdown_says_the_same() -> None:
    text = sweep_markdown(RECIPE, TRIALS, TRIALS[1], {"training.learning_rate": 1.0}, SPENT)
    assert "- trial 2: the loss <b>is not</b> finite" in text
    assert "- training.learning_rate: 100%" in text


def test_with_costs_the_verdict_says_what_decided() -> None:
    recipe = sweep_recipe(parameters=[LEARNING_RATE], costs=["latency"], pruning=False)
    assert "as the cheapest by latency within 0.01 of the best" in verdict(
        recipe, TRIALS, TRIALS[1]
    )
    assert [row["state"] for row in trial_rows(recipe, TRIALS, TRIALS[1])] == [
        "winner",
        "Pareto set",
        "failed",
    ]


def test_the_winning_recipe_is_read_as_the_one_that_won(tmp_path: Path) -> None:
    text = winning_yaml(RECIPE, TRIALS[1], "colours-0123")
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    assert load_recipe(path, [], Recipe) == applied(RECIPE, TRIALS[1].values)
    assert text.splitlines()[2:5] == [
        "# Trial 1 of the sweep colours-0123, which chose",
        "#   training.learning_rate = 0.01",
        "",
    ]
    assert list(yaml.safe_load(text)["student"]) == ["kind", "model"]


def test_importance_takes_ten_trials_and_finds_the_field_that_matters(
    sqlite_spec: StoreSpec,
) -> None:
    with Study(sqlite_spec, "s", sweep_recipe(num_trials=30).sweep) as study:
        for number in range(30):
            trial = study.next_trial()
            assert trial is not None
            rate = trial.values["training.learning_rate"]
            assert isinstance(rate, float)
            study.complete(trial.number, interval(1 / (1 + 100 * rate)), costs_of(0.1))
            if number == 8:
                assert importance_of(study) is None
        found = importance_of(study)
    assert found is not None
    assert abs(sum(found.values()) - 1) < 1e-9
    assert max(found, key=lambda field: found[field]) == "training.learning_rate"


def test_a_terminal_shows_the_trials() -> None:
    assert terminal_trials(RECIPE, TRIALS, TRIALS[1]).row_count == 3


def test_a_page_of_another_gate_is_another_page(tmp_path: Path) -> None:
    """The recipe to commit is written as it is now, though no trial has changed."""
    store, execution = StoreSpec(root=str(tmp_path)), ExecutionSpec()
    recipe = sweep_recipe(store)
    stricter = recipe.model_copy(
        update={"gate": recipe.gate.model_copy(update={"min_retention": 0.99})}
    )
    with Study(store, "s", recipe.sweep) as study:
        trial = study.next_trial()
        assert trial is not None
        study.complete(0, interval(0.9), costs_of(0.1))
        [best] = study.trials()
        pages = [
            report_sweep(each, study, best, [], store, execution)
            for each in (recipe, recipe, stricter)
        ]
    assert [page.reused for page in pages] == [False, True, False]
    [report] = Path(tmp_path).glob(f"*/{pages[2].manifest.fingerprint}/**/recipe.yaml")
    assert "min_retention: 0.99" in report.read_text("utf-8")


def test_what_is_paid_twice_is_beyond_one_for_each_sample_of_each_teacher(tmp_path: Path) -> None:
    store = StoreSpec(root=str(tmp_path))
    made = [
        _responses(store, "of one", samples=3, charged={"of one": 7}),  # two rows: one too many
        _responses(
            store,
            "of panel",
            samples=1,
            charged={"of panel:a": 2, "of panel:b": 1, "of panel:judge": 4},
        ),
        _responses(store, "known", samples=1, charged={}),
    ]
    found = spending(made, store)
    assert (found.responses, found.requests, found.paid_twice) == (6, 14, 2)
    assert "6 responses of the teacher: 14 requests" in found.sentence(1)


def _responses(store: StoreSpec, name: str, *, samples: int, charged: dict[str, int]) -> DatasetRef:
    """Return two rows of responses, with what the ledger was charged for them."""
    stage = Stage(StageName.GENERATE_RESPONSES, 1, inputs={"name": name}, spec={})

    def work(attempt: Attempt) -> None:
        with attempt.row_writer("responses", pa.schema([("id", pa.string())])) as writer:
            writer.write(pa.RecordBatch.from_pydict({"id": ["a", "b"]}))
        attempt.facts["bill"] = {"responses": 2 * samples}
        attempt.facts["generation"] = {"prompt_tokens": 1, "completion_tokens": 1}
        if len(charged) > 1:
            attempt.facts["panel"] = {"teachers": [{"name": name} for name in ("a", "b", "judge")]}

    ref = run_stage(stage, store, ExecutionSpec(), work).dataset("responses")
    with Ledger.open(store) as ledger:
        for purpose, number in charged.items():
            told = purpose.replace(name, ref.fingerprint)
            commit(ledger, *(row(f"{purpose}{n}") for n in range(number)), purpose=told)
    return ref
