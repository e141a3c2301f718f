"""Flow: many students of one teacher, to find the recipe; the winner alone meets the test rows."""

from prefect import flow

from distillery.sweep.space import shared_recipes
from distillery.sweep.trial import metric_of, trial_stage
from distillery.sweep.trials import open_study, run_trials, settle
from flows.distill_student import distill_student
from flows.teach_student import gather_material, read_prompts
from flows.try_student import try_student
from schemas.data import DataSpec
from schemas.evaluation import EvaluationSpec
from schemas.execution import ExecutionSpec, StageName, StoreSpec, TrialSpec
from schemas.export import ExportSpec
from schemas.filters import FilterSpec
from schemas.gate import GateSpec
from schemas.panel import AnyTeacher
from schemas.student import StudentSpec
from schemas.sweep import Sweep, SweepRecipe, SweepSpec, Trial
from schemas.task import TaskSpec
from schemas.training import TrainingSpec
from tasks.dispatch import dispatch
from tasks.sweep import check_sweep, report_sweep


@flow(name="sweep-students", flow_run_name="{task.name}")
def sweep_students(
    task: TaskSpec,
    data: DataSpec,
    teacher: AnyTeacher,
    student: StudentSpec,
    sweep: SweepSpec,
    filters: FilterSpec = FilterSpec(),
    training: TrainingSpec = TrainingSpec(),
    export: ExportSpec = ExportSpec(),
    evaluation: EvaluationSpec = EvaluationSpec(),
    gate: GateSpec = GateSpec(),
    store: StoreSpec = StoreSpec(),
    execution: ExecutionSpec = ExecutionSpec(),
) -> Sweep:
    """Try students as ``sweep`` says, and run the spine on the recipe of the best one.

    The same sweep goes on where it was killed: trials that have ended are kept, one that was under
    way goes on from its checkpoint.
    """
    recipe = SweepRecipe(
        task=task,
        data=data,
        teacher=teacher,
        student=student,
        filters=filters,
        training=training,
        export=export,
        evaluation=evaluation,
        gate=gate,
        store=store,
        execution=execution,
        sweep=sweep,
    )
    check_sweep(recipe)
    rows = read_prompts(recipe)
    with open_study(recipe, rows.prompts) as study:
        shared = [gather_material(each, rows) for each in shared_recipes(recipe)]
        asked = [each.responses for each in shared]
        asked += [each.soft_targets for each in shared if each.soft_targets]

        def try_one(trial: Trial) -> None:
            spec = TrialSpec(study=study.name, number=trial.number)
            # What is read is forced or not for all of them alike.
            force = tuple(stage for stage in execution.force if stage == StageName.READ_LOGS)
            of_trial = execution.model_copy(update={"trial": spec, "force": force})
            run = dispatch(try_student, trial_stage, store, of_trial)
            settle(study, trial.number, lambda: run(recipe, study.name, trial.values))

        run_trials(study, metric_of(recipe), try_one)
        trials, winner, best, report = report_sweep(recipe, study, asked, store, execution)
        name = study.name
    return Sweep(
        study=name,
        trials=trials,
        winner=winner,
        report=report,
        distillation=distill_student(**best.parameters()),
    )
