"""Task: see whether a served teacher still answers as it did."""

import logging

from prefect import task as prefect_task

from schemas.drift import Drift
from schemas.errors import DistilleryError
from schemas.evaluation import EvaluationSpec
from schemas.execution import StoreSpec
from schemas.panel import AnyTeacher
from schemas.refs import DatasetRef
from schemas.task import TaskSpec
from tasks.artifacts import publish_markdown

logger = logging.getLogger("distillery.run")


@prefect_task(name="watch_teacher", task_run_name="watch_teacher", persist_result=False)
def watch_teacher(
    prompts: DatasetRef,
    teacher: AnyTeacher,
    task: TaskSpec,
    evaluation: EvaluationSpec,
    store: StoreSpec,
) -> Drift | None:
    """Return how a served teacher answers the canaries; None when none are asked.

    An endpoint that cannot be reached ends no run: what is in the ledger may be all it needs.
    """
    if not evaluation.canaries or teacher.is_panel or not teacher.is_hosted:
        return None
    from distillery.evaluation.drift import drift_sentence
    from distillery.evaluation.drift import watch_teacher as watch
    from distillery.preflight.endpoint import shutdown_date

    key = f"drift-{task.name}"
    try:
        ends = shutdown_date(teacher)
        drift = watch(prompts, teacher, task, evaluation, store, ends)
    except DistilleryError as error:
        logger.warning("teacher drift is not known: %s", error)
        publish_markdown(key, f"Not known: {error}", "Whether the teacher has changed")
        return None
    lines = [drift_sentence(drift)]
    if drift.shutdown_date is not None:
        lines.append(
            f"The endpoint takes {teacher.model!r} down on {drift.shutdown_date}. Move to another "
            "model before that day; the ledger keeps the responses."
        )
    is_bad = drift.has_drifted or drift.shutdown_date is not None
    for line in lines:
        logger.log(logging.WARNING if is_bad else logging.INFO, line)
    if drift.changed:
        lines.append("Changed: " + ", ".join(f"`{name}`" for name in drift.changed))
    publish_markdown(key, "\n\n".join(lines), "Whether the teacher has changed")
    return drift
