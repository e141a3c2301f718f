"""A judge scores through the ledger, says how far it can be trusted, and is asked nothing twice."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from distillery.storage.stage import StageResult
from schemas.errors import TeacherError
from schemas.execution import StoreSpec
from schemas.filters import FilterSpec, JudgeFilter, LengthFilter
from schemas.refs import DatasetRef
from schemas.task import TaskKind, TaskSpec
from tests.fixtures_filters import filter_rows, read_rows, response_row
from tests.fixtures_generation import quick_retries, write_prompts
from tests.stub_endpoint import Reply, StubEndpoint

__all__ = ["quick_retries"]

TASK = TaskSpec(name="t", type=TaskKind.SUMMARIZATION)


def _shown(body: dict[str, Any]) -> tuple[str, str]:
    """Return the prompt and the response that a request shows."""
    text = body["messages"][-1]["content"]
    found = re.search(r"<prompt>\n(.*)\n</prompt>\n\n<response>\n(.*)\n</response>", text, re.S)
    assert found is not None
    return found[1], found[2]


def _scores(score: Callable[[str, str], str]) -> Callable[[dict[str, Any]], Reply]:
    return lambda body: Reply(text=score(*_shown(body)))


def _by_length(prompt: str, response: str) -> str:
    return str(min(5, len(response)))


@pytest.fixture
def judging() -> Iterator[StubEndpoint]:
    with StubEndpoint(respond=_scores(_by_length)) as endpoint:
        yield endpoint


def _judge(endpoint: StubEndpoint, **changes: Any) -> JudgeFilter:
    model: dict[str, Any] = {"kind": "openai", "model": "arbiter", "base_url": endpoint.base_url}
    model |= {"structured_output": "off", "concurrency": 2, "max_attempts": 1}
    model |= {"price": {"prompt_per_million": 1.0, "completion_per_million": 1.0}}
    return JudgeFilter.model_validate({"model": model, "check_rows": 0, **changes})


def _filtered(
    folder: Path, judge: JudgeFilter, *texts: str, prompts: DatasetRef | None = None
) -> StageResult:
    rows = [response_row(text, prompt_id=str(n)) for n, text in enumerate(texts)]
    return filter_rows(folder, rows, FilterSpec(responses=(judge,)), TASK, prompts)


def _facts(result: StageResult) -> Any:
    filters: Any = result.manifest.facts["filters"]
    return filters[0]


def test_a_response_below_the_bound_is_dropped_with_its_score(
    tmp_path: Path, judging: StubEndpoint
) -> None:
    result = _filtered(tmp_path, _judge(judging, min_score=4), "xxxx", "xxx", "<think>y</think>x")
    rejected = read_rows(tmp_path, result.dataset("rejected"))
    assert [(r["prompt_id"], r["reason"], r["detail"], r["score"]) for r in rejected] == [
        ("1", "low_score", "score 3, below 4", 3.0),
        ("2", "low_score", "score 1, below 4", 1.0),  # thoughts are not shown
    ]
    assert _facts(result)["scores"] == {"4": 1, "3": 1, "1": 1}
    assert result.manifest.cost is not None
    assert result.manifest.cost > 0


@pytest.mark.parametrize("said", ["good", "6", "4 or 5", '{"score": 9}', ""])
def test_a_response_whose_score_cannot_be_read_is_dropped(tmp_path: Path, said: str) -> None:
    with StubEndpoint(respond=_scores(lambda *_: said)) as endpoint:
        result = _filtered(tmp_path, _judge(endpoint), "x")
    assert result.drop_reasons == {"unscored": 1}


@pytest.mark.parametrize("said", ["4", "**4**.", '{"score": 4}', '{"score": 4.0}'])
def test_a_score_is_read_in_every_dress(tmp_path: Path, said: str) -> None:
    with StubEndpoint(respond=_scores(lambda *_: said)) as endpoint:
        assert _filtered(tmp_path, _judge(endpoint, min_score=4), "x").drop_reasons == {}


def test_a_rerun_pays_for_no_score_again(tmp_path: Path, judging: StubEndpoint) -> None:
    _filtered(tmp_path, _judge(judging), "xxxx", "xxx")
    asked = judging.num_requests
    again = _filtered(tmp_path, _judge(judging, min_score=5), "xxxx", "xxx", "xxxx")
    assert judging.num_requests == asked
    assert (_facts(again)["asked"], _facts(again)["from_ledger"]) == (0, 3)


def test_what_an_earlier_filter_drops_is_not_judged(tmp_path: Path, judging: StubEndpoint) -> None:
    rows = [response_row("x", prompt_id="1"), response_row("xxxx", prompt_id="2")]
    filters = FilterSpec(responses=(LengthFilter(min_chars=2), _judge(judging)))
    filter_rows(tmp_path, rows, filters, TASK)
    assert [_shown(body)[1] for body in judging.requests] == ["xxxx"]


@pytest.mark.usefixtures("quick_retries")
def test_a_judge_that_leaves_rows_unscored_seals_nothing_and_keeps_the_others(
    tmp_path: Path,
) -> None:
    def fails(body: dict[str, Any]) -> Reply:
        return Reply(status=500) if _shown(body)[1] == "bad" else Reply(text="5")

    with StubEndpoint(respond=fails) as endpoint:
        with pytest.raises(TeacherError, match="1 of 2 responses have no score from the judge yet"):
            _filtered(tmp_path, _judge(endpoint), "good", "bad")
        asked = endpoint.num_requests
        _filtered(tmp_path, _judge(endpoint), "good")
        assert endpoint.num_requests == asked


def test_the_judge_is_checked_on_gold_rows_and_on_answers_to_other_prompts(tmp_path: Path) -> None:
    store = StoreSpec(root=str(tmp_path))
    rows = [("gold", f"say {word}", word) for word in ("one", "two", "three", "four")]
    prompts = write_prompts(store, [*rows])

    def right(prompt: str, response: str) -> str:
        if prompt == "say four":
            return "1"  # it does not like four, whoever says it
        return "5" if prompt.endswith(f" {response}") else "2"

    with StubEndpoint(respond=_scores(right)) as endpoint:
        result = _filtered(tmp_path, _judge(endpoint, check_rows=10), "x", prompts=prompts)
    assert _facts(result)["agreement"] == {
        "gold_rows": 4,
        "right_kept": 0.75,
        "wrong_dropped": 1.0,
        "right_above_wrong": 0.75,
    }


def test_without_gold_rows_nobody_has_checked_the_judge(
    tmp_path: Path, judging: StubEndpoint
) -> None:
    prompts = write_prompts(StoreSpec(root=str(tmp_path)), [("train", "q")])
    result = _filtered(tmp_path, _judge(judging, check_rows=10), "xxx", prompts=prompts)
    assert _facts(result)["agreement"] is None
