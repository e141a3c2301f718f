"""A nightly run on a log, its teacher asked by the batch: each row once, at half the price."""

import functools
import json
from pathlib import Path
from typing import Any

import pytest

from distillery.teacher.http.batch.teacher import BatchTeacher
from schemas.data import DataSpec
from schemas.errors import InputDataError
from schemas.execution import ExecutionSpec, StoreSpec
from schemas.task import TaskSpec
from schemas.teacher import OpenAITeacher
from tests.stub_batches import StubOpenAI
from tests.stub_endpoint import listing

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("prefect_server")]

TASK = TaskSpec(name="nightly", type="conversation")
PRICE = {"prompt_per_million": 1e6, "completion_per_million": 1e6}


def line(content: str, at: float) -> str:
    request = {"model": "m", "messages": [{"role": "user", "content": content}]}
    return json.dumps({"request": request, "timestamp": at}) + "\n"


def test_next_night_asks_for_what_is_new_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flows.answer_prompts import answer_prompts

    hasty = functools.partial(BatchTeacher, poll_s=0.01)
    monkeypatch.setattr("distillery.teacher.http.batch.teacher.BatchTeacher", hasty)
    log = tmp_path / "app.jsonl"
    log.write_text("".join(line(f"question {n}", at=1_000.0 + n) for n in range(30)))
    source = {"kind": "log", "path": str(log), "redact": None, "watermark": "nightly"}
    data = DataSpec.model_validate({"train": source, "validation_fraction": 0.3})
    store = StoreSpec(root=str(tmp_path / "store"))

    def run(stub: StubOpenAI) -> Any:
        settings = {"model": "big", "base_url": stub.base_url, "batch": True, "price": PRICE}
        teacher = OpenAITeacher.model_validate(settings)
        return answer_prompts(TASK, data, teacher, store=store, execution=ExecutionSpec())

    with StubOpenAI(models=listing("big")) as stub:
        first = run(stub)
        assert (first.counts["ok"], first.facts["cost"]) == (30, 30 * 4.5)
        with pytest.raises(InputDataError, match="no rows after"):
            run(stub)
        with log.open("a") as file:
            file.writelines(line(f"another {n}", at=2_000.0 + n) for n in range(20))
        second = run(stub)
    assert (second.counts["ok"], second.counts["asked"]) == (20, 20)
    assert [len(made.requests) for made in stub.made] == [30, 20]
    assert set(stub.asked.values()) == {1}
