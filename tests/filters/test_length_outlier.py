"""A response far from the lengths of the references is dropped; too few references judge nobody."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from distillery.storage.stage import StageResult
from schemas.execution import StoreSpec
from schemas.filters import FilterSpec, LengthOutlierFilter
from schemas.refs import DatasetRef
from tests.fixtures_filters import filter_rows, read_rows, response_row, task_with
from tests.fixtures_generation import write_prompts

LENGTHS = [10, 20, 40]  # median 20; log deviations ln 2, 0, ln 2: their median is ln 2
SIGMA = 1.4826 * math.log(2)
TASK = task_with()


def _prompts(folder: Path, **num_rows: int) -> DatasetRef:
    """Store labelled rows whose references have the lengths of LENGTHS in turn."""
    rows: list[tuple[str, str] | tuple[str, str, str]] = [
        (split, f"{split} {n}", "x" * LENGTHS[n % 3])
        for split, number in num_rows.items()
        for n in range(number)
    ]
    return write_prompts(StoreSpec(root=str(folder)), rows)


def _filtered(folder: Path, prompts: DatasetRef, *texts: str, **named: Any) -> StageResult:
    rows = [response_row(text, prompt_id=str(n)) for n, text in enumerate(texts)]
    filters = FilterSpec(responses=(LengthOutlierFilter(**named),))
    return filter_rows(folder, rows, filters, TASK, prompts)


def test_what_is_far_from_the_median_length_is_dropped_with_its_distance(tmp_path: Path) -> None:
    texts = ["y" * 20, "y" * 156, "y" * 157, "yy", "<think>" + "y" * 500 + "</think>" + "y" * 20]
    result = _filtered(tmp_path, _prompts(tmp_path, gold=30), *texts, max_deviations=2)
    kept = [row["prompt_id"] for row in read_rows(tmp_path, result.dataset("kept"))]
    assert kept == ["0", "1", "4"]  # 20 * exp(2 * SIGMA) is 156.2
    short, long = read_rows(tmp_path, result.dataset("rejected"))[::-1]
    assert {short["reason"], long["reason"]} == {"length_outlier"}
    assert long["score"] == pytest.approx(math.log(157 / 20) / SIGMA)
    assert short["detail"] == (
        "2 characters, below 3: 2.2 deviations from the median of the gold references, 20"
    )
    assert result.manifest.facts["filters"] == [
        {
            "filter": "length_outlier",
            "gold_references": 30,
            "median_chars": 20.0,
            "shortest_chars": 2.6,
            "longest_chars": 156.2,
        }
    ]


def test_with_too_few_gold_rows_the_selection_rows_count(tmp_path: Path) -> None:
    prompts = _prompts(tmp_path, gold=29, selection=30)
    result = _filtered(tmp_path, prompts, "y" * 5000)
    assert "median of the selection references" in json.dumps(
        read_rows(tmp_path, result.dataset("rejected"))
    )


def test_with_fewer_than_30_references_every_length_passes(tmp_path: Path) -> None:
    result = _filtered(tmp_path, _prompts(tmp_path, gold=29, selection=2), "y" * 5000, "y")
    assert result.drop_reasons == {}
    found = {"filter": "length_outlier", "gold_references": 29, "selection_references": 2}
    assert result.manifest.facts["filters"] == [found]


def test_references_of_one_length_leave_a_tenth_more_in_peace(tmp_path: Path) -> None:
    rows = [("gold", f"q{n}", "x" * 20) for n in range(30)]
    prompts = write_prompts(StoreSpec(root=str(tmp_path)), [*rows])
    result = _filtered(tmp_path, prompts, "y" * 22, "y" * 33)  # 20 * 1.1 ** 5 is 32.2
    assert result.manifest.counts["kept_train"] == 1


def test_other_gold_rows_filter_again(tmp_path: Path) -> None:
    first = _filtered(tmp_path, _prompts(tmp_path, gold=30), "y")
    other = _filtered(tmp_path, _prompts(tmp_path, gold=31), "y")
    assert first.manifest.fingerprint != other.manifest.fingerprint
