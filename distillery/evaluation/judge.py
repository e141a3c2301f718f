"""The stage that asks a judge which of two responses is better."""

from collections.abc import Mapping

from distillery.storage.stage import Attempt, Stage, StageResult, run_stage
from schemas.execution import ExecutionSpec, StageName, StoreSpec
from schemas.judge import JudgeSpec
from schemas.refs import DatasetRef
from schemas.task import TaskSpec

_LOGIC_VERSION = 1


def judging_stage(
    answers: Mapping[str, DatasetRef], prompts: DatasetRef, task: TaskSpec, judge: JudgeSpec
) -> Stage:
    """Return what identifies a judge's verdicts."""
    return Stage(
        StageName.JUDGE_ANSWERS,
        _LOGIC_VERSION,
        inputs={"answers": {name: ref.fingerprint for name, ref in answers.items()}},
        spec={"judge": judge, "task": task.name},
    )


def judge_answers(
    answers: Mapping[str, DatasetRef],
    prompts: DatasetRef,
    task: TaskSpec,
    judge: JudgeSpec,
    store: StoreSpec,
    execution: ExecutionSpec,
) -> StageResult:
    """Return output `verdicts`: one row per test row and pair."""

    def work(attempt: Attempt) -> None:
        raise NotImplementedError

    return run_stage(judging_stage(answers, prompts, task, judge), store, execution, work)
