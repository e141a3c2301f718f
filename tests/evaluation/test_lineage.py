import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from distillery.evaluation.findings import notes
from distillery.evaluation.lineage import (
    Origins,
    baseline_text,
    funnel,
    licence_of,
    origin_tables,
    read_origins,
)
from distillery.storage.stage import Attempt, Stage, run_stage
from distillery.storage.store import Store
from schemas.execution import ExecutionSpec, StageName, StoreSpec
from schemas.frames import QuarantineFrame, arrow_schema
from schemas.refs import FilteredSet, PromptSet
from tests.fixtures_comparison import STUDENT_REF, comparison, seal_scores
from tests.fixtures_lineage import dataset_ref, lineage_of
from tests.fixtures_report import ORIGINS, manifest

PRUNED = {
    "model": "someone/large",
    "kept_layers": [0],
    "before": {"layers": 2, "intermediate_size": 64, "parameters": 2000},
    "after": {"layers": 1, "intermediate_size": 64, "parameters": 1500},
}


def test_what_the_store_still_has_is_read_and_nothing_else(store: StoreSpec) -> None:
    evaluated = seal_scores(store)
    origins = read_origins(lineage_of(STUDENT_REF), evaluated, None, Store(store.root))
    assert list(origins.manifests) == [
        "answer_test_prompts teacher",
        "answer_test_prompts baseline",
        "answer_test_prompts student",
        "measure_performance",
    ]
    assert (origins.curves, origins.files, origins.counts("train_student")) == ({}, [], {})


def test_the_files_are_found_and_quarantined_rows_are_counted_by_split(store: StoreSpec) -> None:
    def load(attempt: Attempt) -> None:
        attempt.counts |= {"train": 7}

    loading = Stage(StageName.LOAD_PROMPTS, 1, inputs={"train": "f" * 64}, spec={})
    loaded = run_stage(loading, store, ExecutionSpec(), load)

    def validate(attempt: Attempt) -> None:
        schema = arrow_schema(QuarantineFrame)
        for name in ("prompts", "gold"):
            with attempt.row_writer(name, schema):
                pass
        rows = {"prompt_id": None, "messages": None, "references": None, "detail": ""}
        reasons = ["duplicate", "found_in_test", "found_in_test"]
        frame = pd.DataFrame([rows | {"split": "train", "reason": r} for r in reasons])
        frame["source_row"] = range(1, 4)
        with attempt.row_writer("quarantined", schema) as writer:
            writer.write(frame[schema.names])

    stage = Stage(
        StageName.VALIDATE_PROMPTS, 1, inputs={"loaded": loaded.manifest.fingerprint}, spec={}
    )
    made = run_stage(stage, store, ExecutionSpec(), validate)
    names = ("prompts", "gold", "quarantined")
    prompts = PromptSet(**{name: made.dataset(name) for name in names})
    lineage = lineage_of(STUDENT_REF).model_copy(update={"prompts": prompts})
    origins = read_origins(lineage, seal_scores(store), None, Store(store.root))
    assert list(origins.manifests)[:2] == ["load_prompts", "validate_prompts"]
    assert origins.files == [("train", 7, "f" * 64)]
    assert origins.quarantined == {"train": {"found_in_test": 2, "duplicate": 1}}


@pytest.mark.parametrize(
    ("model", "stages", "text"),
    [
        ("someone/small", {}, "someone/small as it comes"),
        ("train_baseline/f/a/model", {}, "the student trained on the gold rows"),
        (
            "prune_student/f/a/model",
            {"prune_student": manifest("prune_student", facts=PRUNED)},
            "someone/large pruned to 1 of its 2 layers (0): 1.50 k of 2.00 k parameters; as it is, "
            "before it learns anything",
        ),
    ],
)
def test_what_the_baseline_is_is_told_in_words(
    model: str, stages: dict[str, Any], text: str
) -> None:
    found = comparison()
    rows = tuple(
        row.model_copy(update={"model": model}) if row.name == "baseline" else row
        for row in found.contestants
    )
    compared = found.model_copy(update={"contestants": rows})
    assert baseline_text(compared, Origins(stages)) == text
    alone = found.model_copy(update={"contestants": rows[:1]})
    assert baseline_text(alone, Origins(stages)) is None
    assert f"Baseline: {text}." in notes(compared.model_copy(update={"baseline": text}))


def test_the_stages_of_a_pruned_student_that_learnt_twice_are_all_found(store: StoreSpec) -> None:
    def of(name: StageName) -> Any:
        stage = Stage(name, 1, inputs={}, spec={})

        def work(attempt: Attempt) -> None:
            attempt.facts["stage"] = name

        made = run_stage(stage, store, ExecutionSpec(), work).manifest
        uri = f"{name}/{made.fingerprint}/{made.attempt}/model"
        return STUDENT_REF.model_copy(update={"uri": uri, "fingerprint": made.fingerprint})

    lineage = lineage_of(STUDENT_REF, baseline=of(StageName.PRUNE_STUDENT)).model_copy(
        update={"first": of(StageName.TRAIN_STUDENT)}
    )
    found = read_origins(lineage, seal_scores(store), None, Store(store.root)).manifests
    assert found["prune_student"].facts == {"stage": "prune_student"}
    assert found["train_student on hard targets"].facts == {"stage": "train_student"}
    assert "train_baseline" not in found and "train_student" not in found


def test_funnel_leads_from_the_files_to_the_training_with_every_reason() -> None:
    kept = dataset_ref("filter_responses", 3800)
    lineage = lineage_of(STUDENT_REF).model_copy(
        update={
            "filtered": FilteredSet(
                kept=kept, rejected=kept, num_responses=3900, drop_reasons={"refusal": 100}
            )
        }
    )
    counts = {"train": 3900, "validation": 50, "gold": 7, "test": 9}
    trained = ORIGINS.manifests["train_student"]
    origins = Origins(
        {
            **ORIGINS.manifests,
            "validate_prompts": manifest("validate_prompts", counts=counts),
            "train_student": trained.model_copy(
                update={"counts": trained.counts | {"left_out_too_long": 3}}
            ),
        },
        ORIGINS.quarantined,
        {"train": {"overlaps_test": 30}, "validation": {"overlaps_test": 20}, "gold": {"pii": 1}},
    )
    assert [(s.name, s.num_rows, s.dropped) for s in funnel(lineage, origins)] == [
        ("prompts loaded", 4000, {"duplicate": 50}),
        ("valid prompts", 3950, {"overlaps_test": 50}),
        ("responses", 3900, {"refusal": 100}),
        ("kept", 3800, {"too_long": 3}),
        ("learnt from", 3700, {}),
        ("for validation", 100, {}),
    ]
    assert [step.name for step in funnel(lineage, Origins())] == ["responses", "kept"]


@pytest.mark.parametrize(
    ("files", "stated"),
    [
        ({"README.md": "---\nlicense: gemma\n---\nText"}, "gemma"),
        ({"README.md": "No metadata", "config.json": json.dumps({"license": "mit"})}, "mit"),
        ({"config.json": "{}"}, None),
    ],
)
def test_licence_is_what_the_folder_states(
    tmp_path: Path, files: dict[str, Any], stated: str | None
) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert licence_of(str(tmp_path)) == stated


def test_licence_of_a_model_elsewhere_is_not_known() -> None:
    assert licence_of("someone/model") is None


def test_the_rows_that_prompts_were_kept_apart_from_are_in_the_report() -> None:
    hashes = {"selection": "e" * 64, "test": "a1b2" * 16}
    origins = Origins(
        {
            "validate_prompts": manifest("validate_prompts", counts={"selection": 0, "test": 1200}),
            "filter_prompts": manifest("filter_prompts", inputs={"held_out": hashes}),
        }
    )
    assert origin_tables(comparison(), origins)["Held out from the prompts"] == [
        {"split": "test", "rows": "1,200", "hash": "a1b2a1b2a1b2"}
    ]
    assert "Held out from the prompts" not in origin_tables(comparison(), Origins())
