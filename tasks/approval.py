"""A person's word on a student that meets every condition, asked for in the Prefect UI."""

import logging
import math
from datetime import UTC, datetime, timedelta
from typing import Literal
from uuid import UUID

from prefect import pause_flow_run
from prefect.client.orchestration import get_client
from prefect.exceptions import FlowPauseTimeout
from prefect.input import RunInput
from prefect.runtime import flow_run
from prefect.states import Running
from prefect.utilities.urls import url_for
from pydantic import Field

from schemas.promotion import Approval, Verdict

logger = logging.getLogger("distillery.run")

_POLL_S = 2


class Decision(RunInput):
    """The form that opens with the button Resume."""

    approve: Literal["yes", "no"] = Field(description="Whether the student may be promoted.")
    name: str = Field(min_length=1, description="Who says so; it is kept with the promotion.")
    comment: str = Field("", description="Why, if that is not obvious.")


def ask_for_approval(verdict: Verdict, alias: str, timeout_s: float) -> Approval:
    """Return what a person says in the Prefect UI, within ``timeout_s``; no answer is a no.

    The flow run pauses and keeps its process, and its slot of the work pool. Called in the flow
    itself: a task cannot pause it.

    Args:
        verdict: What the person reads above the form.
        alias: What the student would be promoted to, such as `tickets/champion`.
        timeout_s: How long to wait, seconds.
    """
    until = datetime.now(UTC) + timedelta(seconds=timeout_s)
    where = url_for("flow-run", obj_id=str(flow_run.get_id())) or "the Prefect UI"
    logger.info("waiting until %s for approval: press Resume at %s", f"{until:%F %T} UTC", where)
    form = Decision.with_initial_data(description=_description(verdict, alias))
    try:
        said = pause_flow_run(form, timeout=math.ceil(timeout_s), poll_interval=_POLL_S)
    except FlowPauseTimeout:
        _go_on()
        sentence = f"nobody approved it within gate.approval_timeout_s={timeout_s:g}"
        return Approval(approved=False, by=None, sentence=sentence)
    approved = said.approve == "yes"
    sentence = f"{said.name} {'approved' if approved else 'refused'} it"
    if said.comment:
        sentence += f": {said.comment}"
    return Approval(approved=approved, by=said.name, comment=said.comment, sentence=sentence)


def _description(verdict: Verdict, alias: str) -> str:
    """Return what stands above the form."""
    lines = [f"The student meets every condition. Promote it to **{alias}**?", ""]
    lines += [f"- {check.sentence}" for check in verdict.checks]
    return "\n".join(lines)


def _go_on() -> None:
    """Have the server take the run for running again: it holds a pause that ran out for a failure.

    A run that somebody cancelled meanwhile stays cancelled.
    """
    run_id = UUID(str(flow_run.get_id()))
    with get_client(sync_client=True) as client:
        state = client.read_flow_run(run_id).state
        if state is not None and (state.is_paused() or state.is_failed()):
            client.set_flow_run_state(run_id, Running(), force=True)
