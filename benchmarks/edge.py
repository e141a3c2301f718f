"""What a trained student keeps, and wins, as a file for the edge: a table of docs/results.md.

    DISTILLERY_DATA=path/to/data python -m benchmarks.edge RECIPE STUDENT [section.key=value ...]

The student is a folder that a training left in a store (`train_student/.../model`). It is written
in the recipe's `export.formats`, and each file answers the recipe's test rows beside it. In a
whole run of the recipe the same stages do that; this one spares the training.
"""

import json
import sys
import tempfile
from pathlib import Path

import numpy as np

from benchmarks.processes import REPO
from distillery.data.loading import load_prompts
from distillery.data.validation import validate_prompts
from distillery.evaluation.answers import answer_questions
from distillery.evaluation.performance import evaluated, measure_performance, read_figures
from distillery.evaluation.statistics import Bootstrap, mean_sums
from distillery.export.stage import export_student
from distillery.models.local import LocalModel
from distillery.storage.stage import Attempt, Stage, run_stage
from distillery.storage.store import Store
from distillery.task_types import task_type
from schemas.comparison import Measurements
from schemas.contestants import STUDENT, ContestantSpec, ExportedContestant, TrainedContestant
from schemas.execution import StageName, StoreSpec
from schemas.recipe import Recipe, load_recipe

Scores = np.ndarray[tuple[int], np.dtype[np.float64]]


def main(path: str, student: str, *overrides: str) -> None:
    """Print the table."""
    recipe = load_recipe(Path(path), ["student.model=.", *overrides], Recipe)
    with tempfile.TemporaryDirectory(dir=REPO / ".distillery") as root:
        _compare(recipe, Path(student), StoreSpec(root=root))


def _compare(recipe: Recipe, student: Path, store: StoreSpec) -> None:
    task, evaluation, execution = recipe.task, recipe.evaluation, recipe.execution
    loaded = load_prompts(task, recipe.data, store, execution).dataset("prompts")
    prompts = validate_prompts(loaded, task, recipe.data, store, execution).dataset("prompts")
    num_parameters = LocalModel.load(student, dtype="auto", device="cpu").model.num_parameters()

    def keep(attempt: Attempt) -> None:
        attempt.add_model("model", student, num_parameters=num_parameters)

    trained = Stage(StageName.TRAIN_STUDENT, 0, {"folder": str(student)}, {})
    model = run_stage(trained, store, execution, keep).model("model")
    contestants: list[ContestantSpec] = [TrainedContestant(name=STUDENT, model=model, device="cpu")]
    for format in recipe.export.formats:
        made = export_student(model, prompts, format, store, execution)
        print(format.name, made.sentence, json.dumps(made.manifest.facts), flush=True)
        exported = ExportedContestant(name=format.name, model=made.model("model"), format=format)
        contestants.append(exported)
    scores: dict[str, Scores] = {}
    answers = {}
    for spec in contestants:
        made = answer_questions(spec, prompts, task, evaluation, store, execution)
        print(spec.name, made.sentence, flush=True)
        answers[spec.name] = made.dataset("answers")
        frame = Store(store.root).dataset(answers[spec.name]).to_table().to_pandas()
        primary = task_type(task).primary
        scores[spec.name] = np.array(
            [json.loads(metrics)[primary] for metrics in frame.metrics], dtype=float
        )
    measured = measure_performance(
        answers, {}, prompts, tuple(contestants), task, evaluation, store, execution
    )
    figures = read_figures(
        evaluated(measured).measurements, "measurements.json", Measurements, Store(store.root)
    )
    print(
        "| model | score | against the student | p50, ms | first token, ms "
        "| memory, MB | disk, MB |"
    )
    for name, one in figures.contestants.items():
        rows, own = Bootstrap(range(len(scores[name])), evaluation), mean_sums(scores[name])
        mean = rows.interval(own)
        against = rows.compare(own, mean_sums(scores[STUDENT])).difference
        speed, size = one.performance, one.size
        assert mean and against and size and speed.latency_p50_s
        print(
            f"| {name} | {mean.estimate:.1%} [{mean.low:.1%}, {mean.high:.1%}] "
            f"| {against.estimate:+.1%} [{against.low:+.1%}, {against.high:+.1%}] "
            f"| {speed.latency_p50_s * 1000:.0f} | {(speed.first_token_p50_s or 0) * 1000:.0f} "
            f"| {(one.peak_memory_bytes or 0) / 1e6:,.0f} | {(size.disk_bytes or 0) / 1e6:,.0f} |"
        )
    print(json.dumps(figures.hardware))


if __name__ == "__main__":
    main(*sys.argv[1:])
