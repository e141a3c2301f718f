"""Flow: the stage alone. Prompts in, the teacher's responses out; nothing is trained."""

from prefect import flow

from distillery.preflight.recipe import check_recipe
from distillery.teacher.generation import generation_stage
from flows.generate_responses import generate_responses
from schemas.data import DataSpec
from schemas.execution import ExecutionSpec, StoreSpec
from schemas.filters import FilterSpec
from schemas.generation import Generation
from schemas.panel import AnyTeacher
from schemas.task import TaskSpec
from tasks.dispatch import dispatch
from tasks.prompts import check_prompts, filter_prompts, finish_logs, load_prompts, validate_prompts


@flow(name="answer-prompts", flow_run_name="{task.name}")
def answer_prompts(
    task: TaskSpec,
    data: DataSpec,
    teacher: AnyTeacher,
    filters: FilterSpec = FilterSpec(),
    store: StoreSpec = StoreSpec(),
    execution: ExecutionSpec = ExecutionSpec(),
) -> Generation:
    """Return the responses of ``teacher`` to the training and validation prompts of ``data``.

    A later run of the spine on the same sections reuses them.
    """
    check_recipe(task, data, teacher, None, None, store, execution, filters=filters)
    loaded = load_prompts(task, data, store, execution)
    valid = validate_prompts(loaded, task, data, store, execution)
    rows = filter_prompts(valid, task, filters, store, execution)
    check_prompts(rows.prompts, task, data, teacher, None, None, store, execution)
    generate = dispatch(generate_responses, generation_stage, store, execution)
    made = generate(rows.prompts, teacher, task)
    finish_logs(rows, store)
    return Generation(
        responses=made.dataset("responses"),
        quarantined=rows.quarantined,
        counts=made.manifest.counts,
        facts=made.manifest.facts["generation"],
        reused=made.reused,
        made_at=made.manifest.created_at,
    )
