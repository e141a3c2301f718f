"""Filters that cannot work are refused before anything is spent."""

from pathlib import Path
from typing import Any

import pytest

from distillery.preflight.filters import check_judging_endpoints, filter_problems
from distillery.task_types import task_type
from schemas.errors import DistilleryError
from schemas.filters import FilterSpec
from schemas.task import LabelSet
from tests.fixtures_filters import task_with
from tests.stub_endpoint import StubEndpoint, listing

LABELS = task_type(task_with(LabelSet(labels=("yes", "no"))))
SERVED = {"kind": "openai", "model": "arbiter", "base_url": "http://127.0.0.1:9/v1"}


def _with(*responses: dict[str, Any]) -> FilterSpec:
    return FilterSpec.model_validate({"responses": responses})


@pytest.mark.parametrize(
    ("found", "problem"),
    [
        (
            {"kind": "balance", "field": "urgent"},
            "balance.field in filters.responses is 'urgent', but answers can be balanced by label. "
            "Set it to one of them.",
        ),
        (
            {"kind": "judge", "model": SERVED | {"system_prompt": "Be strict."}},
            "filters.responses[judge].model.system_prompt is set, but a judge reads nothing but "
            "the rubric and the prompt with its response, once. Remove it, or put what it says "
            "into filters.responses[judge].rubric.",
        ),
    ],
)
def test_what_a_filter_cannot_use_is_named(found: dict[str, Any], problem: str) -> None:
    assert [*filter_problems(_with(found), LABELS)] == [problem]


def test_open_answers_cannot_be_balanced() -> None:
    [problem] = filter_problems(_with({"kind": "balance"}), task_type(task_with()))
    assert "answers of this task are open" in problem


def test_a_judge_that_is_not_there_is_named_as_the_judge(tmp_path: Path) -> None:
    model = {"kind": "transformers", "model": str(tmp_path / "none")}
    [problem] = filter_problems(_with({"kind": "judge", "model": model}), LABELS)
    assert "filters.responses[judge].model" in problem


def test_the_key_of_a_judge_has_to_be_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    model = SERVED | {"api_key_env": "NO_SUCH_KEY"}
    [problem] = filter_problems(_with({"kind": "judge", "model": model}), LABELS)
    assert "NO_SUCH_KEY" in problem


def test_an_endpoint_that_does_not_know_the_judge_is_refused() -> None:
    with StubEndpoint(models=listing("other")) as endpoint:
        model = SERVED | {"base_url": endpoint.base_url}
        with pytest.raises(DistilleryError, match=r"filters\.responses\[judge\]\.model\.model"):
            check_judging_endpoints(_with({"kind": "judge", "model": model}))


def test_default_filters_are_in_order() -> None:
    assert [*filter_problems(FilterSpec(), task_type(task_with()))] == []
