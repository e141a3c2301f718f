"""A student that passes the gate is promoted when a person says so, and not otherwise."""

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import UUID

import pytest
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State
from prefect.client.schemas.responses import SetStateStatus
from prefect.runtime import flow_run
from prefect.states import Cancelled

from distillery.registry import open_registry
from schemas.execution import StoreSpec
from schemas.gate import GateSpec
from schemas.promotion import HistoryEntry, Promotion
from tasks.evaluation import promote_student
from tests.fixtures_comparison import STUDENT_REF, TASK, comparison
from tests.fixtures_lineage import lineage_of

pytestmark = pytest.mark.usefixtures("prefect_server")

GATE = GateSpec(min_retention=0.7, approval_timeout_s=60)


@pytest.fixture
def store(tmp_path: Path) -> StoreSpec:
    return StoreSpec(root=str(tmp_path / "store"))


@pytest.fixture(autouse=True)
def short_polls(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr("tasks.approval._POLL_S", 0.1)
    yield


def promote(
    store: StoreSpec, gate: GateSpec = GATE, person: Callable[[UUID], None] | None = None
) -> State[Promotion]:
    """Return the end of a flow that promotes a student, while ``person`` does something."""
    started: list[UUID] = []

    @flow(name="promotes", persist_result=False)
    def promotes() -> Promotion:
        started.append(UUID(str(flow_run.get_id())))
        return promote_student(comparison(), lineage_of(STUDENT_REF), TASK, gate, store)

    def act() -> None:
        assert person
        with get_client(sync_client=True) as client:
            deadline = time.monotonic() + 60
            while time.monotonic() < deadline:
                if started:
                    state = client.read_flow_run(started[0]).state
                    if state and state.is_paused() and form(started[0]):
                        break
                time.sleep(0.05)
        person(started[0])

    thread = threading.Thread(target=act) if person else None
    if thread:
        thread.start()
    state: State[Promotion] = promotes(return_state=True)
    if thread:
        thread.join()
    with get_client(sync_client=True) as client:
        ended = client.read_flow_run(started[0]).state
        assert ended and ended.type == state.type
    return state


def form(run_id: UUID) -> str | None:
    """Return what stands above the form that a paused run shows; None: there is none yet."""
    with get_client(sync_client=True) as client:
        found = client.filter_flow_run_input(run_id, "paused-", 5, set())
    # Saved last.
    return next((str(one.decoded_value) for one in found if "description" in one.key), None)


def answer(**said: str) -> Callable[[UUID], None]:
    def resume(run_id: UUID) -> None:
        with get_client(sync_client=True) as client:
            client.resume_flow_run(run_id, run_input=said)

    return resume


def champion(store: StoreSpec) -> HistoryEntry | None:
    with open_registry(store) as registry:
        return registry.champion(TASK.name, "champion")


def test_a_student_that_somebody_approves_is_promoted_and_the_record_says_who(
    store: StoreSpec,
) -> None:
    person = answer(approve="yes", name="Ada", comment="looked at 50 rows")
    promotion = promote(store, person=person).result()
    assert promotion.promoted and promotion.approval
    assert promotion.sentence.endswith("; Ada approved it: looked at 50 rows")
    entry = champion(store)
    assert entry and entry.approval == promotion.approval
    assert (entry.approval.by, entry.approval.comment) == ("Ada", "looked at 50 rows")
    # It stands already, so nobody is asked again.
    assert promote(store).result().approval == promotion.approval


def test_a_student_that_somebody_refuses_is_not_promoted(store: StoreSpec) -> None:
    promotion = promote(store, person=answer(approve="no", name="Ada")).result()
    assert promotion.sentence == "not promoted: Ada refused it"
    assert champion(store) is None


def test_no_answer_in_time_is_a_no_and_the_run_goes_on(store: StoreSpec) -> None:
    gate = GATE.model_copy(update={"approval_timeout_s": 0.5})
    promotion = promote(store, gate).result()
    assert promotion.sentence == (
        "not promoted: nobody approved it within gate.approval_timeout_s=0.5"
    )
    assert champion(store) is None


def test_nobody_is_asked_about_a_student_that_fails_a_condition(store: StoreSpec) -> None:
    promotion = promote(store, GateSpec(min_retention=0.99, approval_timeout_s=60)).result()
    assert not promotion.promoted and promotion.approval is None


def test_the_person_reads_the_conditions_and_has_to_give_a_name(store: StoreSpec) -> None:
    read: list[str | None] = []

    def person(run_id: UUID) -> None:
        read.append(form(run_id))
        with get_client(sync_client=True) as client:
            refused = client.resume_flow_run(run_id, run_input={"approve": "yes"})
            assert refused.status == SetStateStatus.REJECT
        answer(approve="no", name="Ada")(run_id)

    promote(store, person=person)
    assert read[0] and read[0].startswith(
        "The student meets every condition. Promote it to **tickets/champion**?"
    )
    assert "- lower end of the interval of student / teacher 0.8" in read[0]


def test_a_run_that_is_cancelled_meanwhile_promotes_nobody(store: StoreSpec) -> None:
    def person(run_id: UUID) -> None:
        with get_client(sync_client=True) as client:
            client.set_flow_run_state(run_id, Cancelled(), force=True)

    gate = GATE.model_copy(update={"approval_timeout_s": 3})
    promote(store, gate, person)
    assert champion(store) is None
