"""Flow: a judge says which of two responses is better."""

from prefect import flow

from schemas.execution import ExecutionSpec, StoreSpec
from schemas.judge import JudgeSpec
from schemas.refs import DatasetRef
from schemas.task import TaskSpec
from tasks.evaluation import ask_judge


@flow(name="judge-answers", flow_run_name="{task.name}")
def judge_answers(
    store: StoreSpec,
    execution: ExecutionSpec,
    answers: dict[str, DatasetRef],
    prompts: DatasetRef,
    task: TaskSpec,
    judge: JudgeSpec,
) -> DatasetRef:
    """Return the verdicts on the student's responses beside those of others."""
    return ask_judge(answers, prompts, task, judge, store, execution)
