"""What each policy of a panel gives: quality of labels and student, and the teachers' tokens.

    python -m benchmarks.panel --store .distillery/bench-panel

The demo's tickets are answered by its small and its large teacher, alone and by every policy; a
vote takes three small ones, of which two are trained first. Each way's responses teach the demo's
student, with three seeds. A second run in the same store asks and trains nothing again.
"""

import argparse
import dataclasses
import importlib.util
import json
import statistics
from pathlib import Path
from typing import Any

from benchmarks.gains import interval
from benchmarks.school import train_teacher
from distillery.data.loading import load_prompts
from distillery.data.validation import prompt_set, validate_prompts
from distillery.evaluation.answers import answer_questions
from distillery.evaluation.contestants import trained_contestant
from distillery.filters.prompts import filter_prompts
from distillery.filters.responses import filter_responses
from distillery.models.hardware import cpu_threads
from distillery.storage.stage import StageResult, find_stage
from distillery.storage.store import Store
from distillery.task_types import task_type
from distillery.teacher.collection import collect_responses
from distillery.teacher.generation import (
    generate_chunk,
    generation_stage,
    open_session,
    plan_chunks,
)
from distillery.training import train_student
from schemas.budget import PriceSpec
from schemas.execution import StoreSpec
from schemas.panel import AnyTeacher, PanelTeacher
from schemas.recipe import Recipe, TeacherTrainingRecipe, load_recipe
from schemas.refs import DatasetRef
from schemas.teacher import TeacherSpec, TransformersTeacher

REPO = Path(__file__).parent.parent
SEEDS = (0, 1, 2)
PRICES = {
    "small": PriceSpec(prompt_per_million=0.1, completion_per_million=0.4, source="stated here"),
    "large": PriceSpec(prompt_per_million=1.0, completion_per_million=4.0, source="stated here"),
}


@dataclasses.dataclass(frozen=True)
class Figures:
    """What one way to ask gives."""

    way: str
    large_rows: float
    """Share of the training rows that the large teacher answered."""
    kept: int
    """Rows that the student learns from."""
    right: float
    """Share of these whose label is right."""
    tokens: int
    """Read and written by all teachers."""
    cost: float
    students: list[float]
    """Accuracy of the students on the test rows, by seed."""

    def row(self) -> str:
        """Return a line of the table."""
        return (
            f"| {self.way} | {self.large_rows:.1%} | {self.kept:,} | {self.right:.2%} | "
            f"{interval(self.students)} | {self.tokens:,} | {self.cost:.3f} |"
        )


class Bench:
    """The demo, taught by several teachers."""

    def __init__(self, store: StoreSpec) -> None:
        """Load the prompts, and train the small teachers that are not in the repository."""
        self.recipe = recipe = load_recipe(REPO / "recipes/demo-panel.yaml", [], Recipe)
        self._here = here = (store, recipe.execution)
        loaded = load_prompts(recipe.task, recipe.data, *here).dataset("prompts")
        valid = prompt_set(validate_prompts(loaded, recipe.task, recipe.data, *here))
        filtered = filter_prompts(valid, recipe.task, recipe.filters, *here)
        self.prompts = filtered.dataset("prompts")
        assert recipe.teacher.is_panel
        self.small, self.large = (each.teacher for each in recipe.teacher.teachers)
        self._truth = true_labels()
        self._kind = task_type(recipe.task)

    def others(self) -> list[TeacherSpec]:
        """Return two more small teachers, which differ in their seed."""
        store = self._here[0]
        trained: list[TeacherSpec] = []
        path = REPO / "recipes/teachers/demo-small.yaml"
        for seed in (1, 2):
            raw = [f"training.seed={seed}", "output=unread"]
            recipe = load_recipe(path, raw, TeacherTrainingRecipe)
            assert isinstance(self.small, TransformersTeacher)
            model = train_teacher(recipe, store)
            trained.append(self.small.model_copy(update={"model": model}))
        return trained

    def figures(self, way: str, teacher: AnyTeacher) -> Figures:
        """Return what ``teacher`` gives."""
        recipe = self.recipe
        made = self._responses(teacher)
        filtered = filter_responses(
            made.dataset("responses"), self.prompts, recipe.task, recipe.filters, *self._here
        )
        kept = filtered.dataset("kept")
        rows = _rows(kept, self._here[0])
        rights = [
            self._kind.score(row["response"], [self._truth[row["prompt_id"]]])["accuracy"] or 0.0
            for row in rows
        ]
        tokens = _tokens(made, teacher, self.large)
        return Figures(
            way=way,
            large_rows=_share_of_large(made, teacher, self.large),
            kept=len(rows),
            right=statistics.mean(rights),
            tokens=sum(read + written for _, read, written in tokens),
            cost=sum(PRICES[who].cost(read, written) for who, read, written in tokens),
            students=[self._student(kept, seed) for seed in SEEDS],
        )

    def _responses(self, teacher: AnyTeacher) -> StageResult:
        store, execution = self._here
        asked = (self.prompts, teacher, self.recipe.task)
        stage = generation_stage(*asked)
        if found := find_stage(stage, store, execution):
            return found
        with open_session(*asked, store) as session, cpu_threads(execution):
            for chunk in plan_chunks(self.prompts, execution.chunk_rows, store):
                generate_chunk(chunk, session, self.recipe.task)
            totals = session.totals
        return collect_responses(stage, *asked, store, execution, totals)

    def _student(self, rows: DatasetRef, seed: int) -> float:
        """Return the accuracy of a student of ``rows``."""
        recipe = self.recipe
        training = recipe.training.with_hard_targets().model_copy(update={"seed": seed})
        learnt = train_student(rows, self.prompts, recipe.student, training, *self._here)
        contestant = trained_contestant(
            recipe.teacher, recipe.student, "student", learnt.model("model")
        )
        asked = (self.prompts, recipe.task, recipe.evaluation, *self._here)
        answers = answer_questions(contestant, *asked).dataset("answers")
        metrics = [json.loads(row["metrics"]) for row in _rows(answers, self._here[0])]
        return statistics.mean(found["accuracy"] or 0.0 for found in metrics)


def _tokens(
    made: StageResult, teacher: AnyTeacher, large: TeacherSpec
) -> list[tuple[str, int, int]]:
    """Return who of small and large read and wrote how many tokens."""
    facts: Any = made.manifest.facts
    if not teacher.is_panel:
        who = "large" if teacher == large else "small"
        return [(who, facts["bill"]["prompt_tokens"], facts["bill"]["completion_tokens"])]
    return [
        (
            "large" if each["name"] == "large" else "small",
            each["prompt_tokens"],
            each["completion_tokens"],
        )
        for each in facts["panel"]["teachers"]
    ]


def _share_of_large(made: StageResult, teacher: AnyTeacher, large: TeacherSpec) -> float:
    if not teacher.is_panel:
        return float(teacher == large)
    facts: Any = made.manifest.facts["panel"]
    rows = {each["name"]: each["rows"] for each in facts["teachers"]}
    return float(rows.get("large", 0) / sum(rows.values()))


def _rows(ref: DatasetRef, store: StoreSpec) -> list[dict[str, Any]]:
    return [row for batch in Store(store.root).batches(ref) for row in batch.to_pylist()]


def true_labels() -> dict[str, str]:
    """Return the label of every ticket that the demo's teachers are asked, by its id."""
    path = REPO / "recipes/demo/generate_tickets.py"
    spec = importlib.util.spec_from_file_location("generate_tickets", path)
    assert spec is not None and spec.loader is not None
    tickets: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tickets)
    tickets.LABELLED_SPLITS = frozenset(tickets.NUM_ROWS)
    splits = tickets.make_splits(tickets.NUM_ROWS)
    return {row["id"]: row["answer"] for name in ("train", "validation") for row in splits[name]}


def ways(bench: Bench) -> dict[str, AnyTeacher]:
    """Return the ways to ask, by their names in the table."""
    small, large = bench.small, bench.large

    def panel(policy: dict[str, Any], rule: dict[str, Any] | None = None) -> PanelTeacher:
        return PanelTeacher.model_validate(
            {
                "kind": "panel",
                "policy": policy,
                "teachers": [
                    {"name": "small", "teacher": small, "rule": rule},
                    {"name": "large", "teacher": large},
                ],
            }
        )

    three = {
        "kind": "panel",
        "policy": {"kind": "vote"},
        "teachers": [
            {"name": f"small {n}", "teacher": each}
            for n, each in enumerate((small, *bench.others()))
        ],
    }
    short = {"kind": "length", "max_chars": 110}
    return {
        "small alone": small,
        "large alone": large,
        "cascade, log-probability -0.01": panel({"kind": "cascade", "min_log_probability": -0.01}),
        "vote of three small ones": PanelTeacher.model_validate(three),
        "route: up to 110 characters to small": panel({"kind": "route"}, short),
        "cascade, log-probability -0.1": panel({"kind": "cascade", "min_log_probability": -0.1}),
        "best_of, verifier json": panel({"kind": "best_of", "verifier": {"kind": "json"}}),
    }


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--store", default=".distillery/bench-panel", help="where results are kept")
    bench = Bench(StoreSpec(root=parser.parse_args().store))
    print("| way | rows by large | kept | labels right | student | teacher tokens | cost, USD |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    for way, teacher in ways(bench).items():
        print(bench.figures(way, teacher).row(), flush=True)


if __name__ == "__main__":
    main()
