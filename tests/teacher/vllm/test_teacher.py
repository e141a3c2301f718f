"""A teacher that is served here: asked through one server, which is there only as long."""

import json
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from distillery.ledger import Ledger
from distillery.teacher import Sampling, make_request, open_teacher, teacher_identity
from distillery.teacher.protocol import Request, Response, kept
from distillery.teacher.session import AskedFor, TeacherSession
from distillery.teacher.vllm.lease import Lease
from schemas.errors import TeacherError
from schemas.execution import StoreSpec
from schemas.teacher import VLLMTeacher
from tests.fixtures_vllm import StubPython
from tests.waiting import wait_until


def requests(teacher: VLLMTeacher, *texts: str) -> list[Request]:
    identity, sampling = teacher_identity(teacher), Sampling.of(teacher)
    return [
        make_request(identity, [{"role": "user", "content": text}], sampling, prompt_id=text)
        for text in texts
    ]


def asked_for(teacher: VLLMTeacher, *texts: str) -> AskedFor:
    found = AskedFor()
    for request in requests(teacher, *texts):
        found.add([request])
    return found


def test_opening_it_starts_nothing(stub_python: StubPython) -> None:
    open_teacher(stub_python.teacher()).close()
    assert stub_python.servers == []


def test_requests_are_answered_by_a_server_that_ends_with_its_teacher(
    stub_python: StubPython,
) -> None:
    teacher = stub_python.teacher()
    backend = open_teacher(teacher)
    responses: list[Response] = []

    def note(response: Response) -> object:
        responses.append(response)
        return kept()

    backend.answer(requests(teacher, "a", "b"), note)  # type: ignore[arg-type]
    backend.answer(requests(teacher, "c"), note)  # type: ignore[arg-type]
    assert sorted(r.text for r in responses) == ["answer to a", "answer to b", "answer to c"]
    assert len(stub_python.servers) == 1 and stub_python.running
    backend.close()
    assert stub_python.running == []


def test_every_request_says_how_it_is_sampled(stub_python: StubPython, store: StoreSpec) -> None:
    teacher = stub_python.teacher(
        chat_template_kwargs={"enable_thinking": False}, extra_body={"min_p": 0.1}
    )
    with TeacherSession(teacher, store, purpose="test") as session:
        session.answer(asked_for(teacher, "a"))
    [body] = stub_python.bodies
    assert body["temperature"] == 0 and body["repetition_penalty"] == 1 and body["top_k"] == 0
    assert body["min_p"] == 0.1
    assert body["chat_template_kwargs"] == {"enable_thinking": False}


def test_what_the_ledger_has_needs_no_server(stub_python: StubPython, store: StoreSpec) -> None:
    teacher = stub_python.teacher()
    for _ in range(2):
        with TeacherSession(teacher, store, purpose="test") as session:
            session.answer(asked_for(teacher, "a"))
    assert len(stub_python.servers) == 1 and stub_python.asked == ["a"]


def test_users_of_one_process_share_a_server_until_the_last_has_gone(
    stub_python: StubPython,
) -> None:
    teacher = stub_python.teacher(load_s=0.3)
    with ThreadPoolExecutor(3) as threads:
        leases = [*threads.map(Lease, [teacher, teacher, teacher])]
    assert len({lease.endpoint.base_url for lease in leases}) == 1
    assert len(stub_python.servers) == 1
    for lease in leases[:2]:
        lease.release()
    assert stub_python.running
    leases[2].release()
    leases[2].release()  # once is enough
    assert stub_python.running == []


def test_a_server_that_breaks_down_says_why_and_loses_no_finished_row(
    stub_python: StubPython, store: StoreSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("distillery.teacher.vllm.lease._MAX_OUTAGE_S", 0.5)
    teacher = stub_python.teacher(ends_after=3, concurrency=1)
    texts = "abcdef"
    with (
        TeacherSession(teacher, store, purpose="test") as session,
        pytest.raises(TeacherError, match="the engine is dead"),
    ):
        session.answer(asked_for(teacher, *texts))
    with Ledger.open(store) as ledger:
        assert len(ledger.get([r.request_hash for r in requests(teacher, *texts)])) == 3
    again = stub_python.teacher()
    with TeacherSession(again, store, purpose="test") as session:
        assert session.answer(asked_for(again, *texts)) == {"ok": 6}
    assert len(stub_python.asked) == 3 + 1 + 3  # of which the last of the first run had no answer


def test_a_prompt_that_max_model_len_cuts_off_is_an_error_and_not_a_refusal(
    stub_python: StubPython, store: StoreSpec
) -> None:
    short = stub_python.teacher(max_model_len=100)
    with (
        TeacherSession(short, store, purpose="test") as session,
        pytest.raises(TeacherError, match=r"do not fit into teacher\.max_model_len=100"),
    ):
        session.answer(asked_for(short, "a", "x" * 2000))
    as_the_model_is = stub_python.teacher()
    with TeacherSession(as_the_model_is, store, purpose="test") as session:
        states = session.answer(asked_for(as_the_model_is, "a", "x" * 2000))
    assert states == {"ok": 1, "refused": 1}


def test_closing_it_ends_a_start_that_nobody_waits_for(stub_python: StubPython) -> None:
    teacher = stub_python.teacher(is_never_healthy=True)
    backend = open_teacher(teacher)
    errors: list[BaseException] = []

    def ask() -> None:
        try:
            backend.answer(requests(teacher, "a"), lambda response: kept())
        except TeacherError as error:
            errors.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    wait_until(lambda: backend.activity.note and stub_python.servers)
    assert "vLLM starts" in str(backend.activity.note)
    backend.close()
    thread.join()
    assert "nobody waits for it" in str(errors[0])
    assert stub_python.running == []


def test_where_and_how_it_runs_is_no_part_of_its_identity(stub_python: StubPython) -> None:
    teacher = stub_python.teacher()
    moved = teacher.model_copy(
        update={"python": None, "image": "i", "tensor_parallel_size": 4, "max_model_len": 512}
    )
    assert teacher_identity(moved) == teacher_identity(teacher)
    for change in (
        {"dtype": "float32"},
        {"quantization": "fp8"},
        {"revision": 40 * "0"},
        {"extra_args": ("--kv-cache-dtype", "fp8")},
        {"extra_body": {"top_k": 5}},
        {"chat_template_kwargs": {"enable_thinking": False}},
    ):
        changed = teacher.model_copy(update=change)
        assert json.loads(json.dumps(teacher_identity(changed))) == teacher_identity(changed)
        assert teacher_identity(changed) != teacher_identity(teacher), change
