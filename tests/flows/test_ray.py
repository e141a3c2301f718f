"""Chunks on a Ray of this machine: real workers, a PostgreSQL ledger, a stub endpoint."""

from pathlib import Path

import pytest

from schemas.execution import ExecutionSpec, RaySpec, StageName, StoreSpec
from schemas.teacher import OpenAITeacher
from tests.fixtures_generation import TASK, write_prompts
from tests.fixtures_postgresql import PostgresqlServer
from tests.stub_endpoint import Reply, StubEndpoint

NUM_PROMPTS = 240


@pytest.mark.slow
def test_two_workers_on_one_ledger_pay_for_no_request_twice(
    tmp_path: Path, prefect_server: str, postgresql: PostgresqlServer
) -> None:
    pytest.importorskip("prefect_ray", reason="the extra `ray` is not installed")
    from distillery.storage.stage import find_stage
    from distillery.teacher.generation import generation_stage
    from flows.generate_responses import generate_responses

    store = StoreSpec(root=str(tmp_path / "store"), ledger_url=postgresql.new_database())
    # Each prompt stands twice, far enough apart that both workers meet it.
    contents = [f"question {n % (NUM_PROMPTS // 2)}" for n in range(NUM_PROMPTS)]
    prompts = write_prompts(store, [("train", content) for content in contents])
    with StubEndpoint(default=Reply(delay_s=0.02)) as endpoint:
        teacher = OpenAITeacher(base_url=endpoint.base_url, model="stub", concurrency=4)
        execution = ExecutionSpec(chunk_rows=20, ray=RaySpec(num_workers=2))
        responses = generate_responses(store, execution, prompts, teacher, TASK)
        asked = [str(request["messages"]) for request in endpoint.requests]
        assert len(asked) == len(set(asked)) == NUM_PROMPTS // 2
        assert responses.num_rows == NUM_PROMPTS
        made = find_stage(generation_stage(prompts, teacher, TASK), store, ExecutionSpec())
        assert made is not None
        assert made.manifest.counts["asked"] == NUM_PROMPTS // 2
        assert made.manifest.counts["from_ledger"] == NUM_PROMPTS // 2
        # Whoever comes next finds everything.
        forced = execution.model_copy(update={"force": (StageName.GENERATE_RESPONSES,)})
        generate_responses(store, forced, prompts, teacher, TASK)
        assert endpoint.num_requests == NUM_PROMPTS // 2
