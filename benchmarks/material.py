"""The first half of the spine as a flow: prompts in, a training set out; nothing is trained.

python -m benchmarks.material RECIPE
"""

import sys
from typing import TYPE_CHECKING

from cli.runs import run_flow
from schemas.recipe import Recipe, load_recipe

if TYPE_CHECKING:
    from prefect import Flow


def _load() -> "Flow[..., None]":
    from prefect import flow

    from flows.teach_student import gather_material, read_prompts
    from schemas.data import DataSpec
    from schemas.execution import ExecutionSpec, StoreSpec
    from schemas.filters import FilterSpec
    from schemas.panel import AnyTeacher
    from schemas.student import StudentSpec
    from schemas.task import TaskSpec
    from schemas.training import TrainingSpec

    @flow(name="gather-material")
    def gather(
        task: TaskSpec,
        data: DataSpec,
        teacher: AnyTeacher,
        student: StudentSpec,
        filters: FilterSpec,
        training: TrainingSpec,
        store: StoreSpec,
        execution: ExecutionSpec,
    ) -> None:
        """Load, validate, filter, ask, filter, release."""
        sections = {
            "task": task,
            "data": data,
            "teacher": teacher,
            "student": student,
            "filters": filters,
            "training": training,
            "store": store,
            "execution": execution,
        }
        recipe = Recipe(**sections)
        gather_material(recipe, read_prompts(recipe))

    return gather


if __name__ == "__main__":
    run_flow(load_recipe(sys.argv[1], sys.argv[2:], Recipe), _load)
