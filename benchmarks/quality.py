"""What a student learns from the same teacher tokens: hard targets against each objective.

    python -m benchmarks.quality [--settings demo,banking77-9] [--seeds 5] [--output FILE]

All objectives of a setting learn from the same responses. Each result is a file of the store: what
is finished is not done again, so a run that was killed goes on, and several may share the work.
"""

import argparse
import contextlib
import dataclasses
import functools
import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from filelock import FileLock, Timeout

from benchmarks import gains
from benchmarks.lora import model_folder
from benchmarks.processes import REPO
from benchmarks.results import commit, heading, load_average, result_path
from benchmarks.school import Cost, Learnt, School, Taught, train_teacher
from distillery.data.sources import expand_variables
from schemas.data import FileSource
from schemas.errors import RecipeError
from schemas.execution import StoreSpec
from schemas.objectives import (
    Attention,
    CrossTokenizer,
    HardTargets,
    HiddenStates,
    Objective,
    OnPolicy,
    SoftTargets,
    SoftTeacher,
)
from schemas.recipe import Recipe, TeacherTrainingRecipe, load_recipe
from schemas.student import PretrainedStudent
from schemas.training import TrainingSpec


class Way(NamedTuple):
    """One way to learn from a teacher."""

    title: str
    objective: Objective
    epochs: int = 1
    """Over those of the recipe."""
    two_teachers: bool = False
    """The average of two teachers that differ in their seed."""


WAYS = {
    "hard": Way("hard targets", HardTargets()),
    "hard-2": Way("hard targets, 2 x the epochs", HardTargets(), epochs=2),
    "hard-4": Way("hard targets, 4 x the epochs", HardTargets(), epochs=4),
    "soft": Way("soft targets", SoftTargets()),
    "soft-online": Way("soft targets, teacher beside", SoftTargets(source="online")),
    "two-teachers": Way("soft targets of two teachers", SoftTargets(), two_teachers=True),
    "hidden": Way("hidden states", HiddenStates()),
    "attention": Way("attention", Attention()),
    "cross-tokenizer": Way("cross-tokenizer", CrossTokenizer()),
    "on-policy": Way("on policy", OnPolicy(epochs=0.25, max_new_tokens=64)),
    "soft-alone": Way("soft targets alone", SoftTargets(soft_weight=1.0, hard_weight=0.0)),
    "soft-t2": Way("soft targets at T = 2", SoftTargets(distillation_temperature=2.0)),
    "reverse-kl": Way("soft targets, reverse KL", SoftTargets(divergence="reverse_kl")),
    "jensen-shannon": Way("soft targets, Jensen-Shannon", SoftTargets(divergence="jensen_shannon")),
}
"""What is compared. What is not said is the objective's default."""

HARD = ("hard", "hard-2", "hard-4")


@dataclasses.dataclass(frozen=True)
class Setting:
    """What there is to learn from."""

    name: str
    title: str
    recipe: str
    overrides: tuple[str, ...] = ()
    teacher: tuple[str, ...] | None = None
    """How Gemma 3 270M becomes the teacher, where the setting has no other: settings of the recipe
    in place of its own. It learns the training rows as they are labelled."""
    template: str | None = None
    """The chat template of teacher and students. None: Gemma's own."""

    def obstacle(self) -> str | None:
        """Return why it cannot be run here; None when it can."""
        if self.teacher is None:
            return None
        data = load_recipe(REPO / self.recipe, [], Recipe).data.train
        assert isinstance(data, FileSource)
        needed = (model_folder() / "config.json", Path(expand_variables(data.path)))
        for file in needed:
            if not file.is_file():
                return (
                    f"{self.name} is skipped: {str(file)!r} is not there. Name the folder of Gemma "
                    "3 270M in DISTILLERY_GEMMA and that of the data sets in DISTILLERY_DATA."
                )
        return None

    def read(self, store: StoreSpec) -> Recipe:
        """Return the recipe, with its teacher trained."""
        if self.teacher is None:
            return load_recipe(REPO / self.recipe, self.overrides, Recipe)
        own = [*self.overrides, f"teacher.model={self.trained_teacher(0, store)}"]
        recipe = load_recipe(REPO / self.recipe, own, Recipe)
        student = recipe.student.model_copy(update={"model": recipe.teacher.model})
        return recipe.model_copy(update={"student": student})

    def trained_teacher(self, seed: int, store: StoreSpec) -> str:
        """Return the folder of the teacher that was trained with ``seed``."""
        assert self.teacher is not None
        recipe = load_recipe(REPO / self.recipe, self.teacher, Recipe)
        data = recipe.data.model_copy(update={"gold": recipe.data.train, "train": None})
        training = recipe.training.model_copy(update={"seed": seed})
        student = PretrainedStudent(model=str(model_folder()), chat_template=self.template)
        sections = {"task": recipe.task, "data": data, "student": student, "training": training}
        told = TeacherTrainingRecipe(**sections, execution=recipe.execution, output="unread")
        with lock(Path(store.root, "teachers", f"{recipe.task.name}-{seed}.lock")):
            return train_teacher(told, store)


# Of a size that two cores without a GPU can train: minutes a student. All of it is undertrained.
_GEMMA = (
    "student={kind: pruned, model: unread}",
    "training.method={kind: lora, r: 64, alpha: 128}",
    "training.epochs=4",
    "training.evaluations=1",
    "training.patience=null",
)
_BANKING77 = (
    *_GEMMA,
    "teacher={kind: transformers, model: unread, batch_size: 256, max_new_tokens: 24}",
    "data.train.max_rows=500",
    "data.test.max_rows=400",
    "training.learning_rate=1e-3",
    "training.batch_size=16",
    "training.micro_batch_size=16",
    "evaluation.batch_size=100",
)
_SCITLDR = (
    *_GEMMA,
    "teacher={kind: transformers, model: unread, batch_size: 64, max_new_tokens: 64}",
    "data.train.max_rows=160",
    "data.test.max_rows=100",
    "training.learning_rate=1e-3",
    "training.batch_size=8",
    "training.micro_batch_size=8",
    "training.max_length=448",
    "evaluation.batch_size=100",
    "evaluation.max_new_tokens=64",
)

SETTINGS = (
    Setting(
        "demo-few",
        "Demo: 300 training prompts, as many steps",
        "recipes/demo.yaml",
        ("data.train.max_rows=300", "data.validation.max_rows=60"),
    ),
    Setting("demo", "Demo: 3,000 training prompts", "recipes/demo.yaml"),
    *(
        Setting(
            f"banking77-{layers}",
            f"Banking77: Gemma 3 270M to {layers} of its 18 layers",
            "recipes/gemma/banking77.yaml",
            (*_BANKING77, f"student.num_layers={layers}"),
            teacher=(),
        )
        for layers in (9, 6)
    ),
    *(
        Setting(
            f"scitldr-{layers}",
            f"SciTLDR: Gemma 3 270M to {layers} of its 18 layers",
            "recipes/gemma/summarization.yaml",
            (*_SCITLDR, f"student.num_layers={layers}"),
            teacher=(
                "data.train.max_rows=null",
                "training.learning_rate=5e-4",
                "training.epochs=2",
                "training.max_length=448",
                "training.evaluations=1",
                "training.patience=null",
            ),
            template="plain",  # its end is one that a base model knows
        )
        for layers in (9, 6)
    ),
)


class Comparison:
    """One setting: its school, and the files with what was found."""

    def __init__(self, setting: Setting, store: StoreSpec) -> None:
        """Nothing is done yet."""
        self.setting, self._store = setting, store
        self._folder = Path(store.root) / "found" / setting.name
        self._taught = self._folder / "taught.json"
        self._refused = self._folder / "refused.json"

    @functools.cached_property
    def school(self) -> School:
        """The school, once its teacher has answered; one process at a time prepares it."""
        with lock(self._folder / "school.lock"):
            school = School(self.setting.read(self._store), self._store)
            if self._taught.exists():
                school.taught = Taught.read(self._taught.read_text("utf-8"))
            else:
                write(self._taught, school.taught)
        return school

    def possible(self, ways: list[str]) -> list[str]:
        """Return those that teacher and student allow; why others are refused is kept."""
        refused = {}
        for name in ways:
            try:
                self.school.check(self._training(name, seed=0))
            except RecipeError as error:
                refused[name] = str(error)
        write(self._refused, refused)
        return [name for name in ways if name not in refused]

    def measure_costs(self, ways: list[str]) -> None:
        """Measure what a step costs, the way that others are compared with first."""
        with lock(self._folder / "costs.lock"):
            for name in ways:
                if name not in HARD[1:] and not (file := self._file(name, "cost")).exists():
                    cost = self.school.cost(self._training(name, seed=0))
                    write(file, cost)
                    took = f"{1e3 * cost.step_s:.0f} ms, {cost.peak_bytes / 2**30:.1f} GiB"
                    self._say(f"{name}: {took} a step")

    def learn(self, name: str, seed: int) -> None:
        """Train one student, unless it was trained before or another process is at it."""
        file = self._file(name, str(seed))
        with contextlib.suppress(Timeout), lock(file.with_suffix(".lock"), blocking=False):
            if not file.exists():
                began = time.monotonic()
                learnt = self.school.teach(self._training(name, seed))
                write(file, dataclasses.replace(learnt, commit=commit()))
                found = f"{learnt.quality:.2%}, {learnt.agreement:.2%} as the teacher"
                self._say(f"seed {seed}, {name}: {found}, {time.monotonic() - began:.0f} s")

    def section(self, ways: list[str]) -> str:
        """Return what was found so far, Markdown."""
        found = {
            name: {int(file.stem): Learnt(**json.loads(file.read_text())) for file in files}
            for name in ways
            if (files := sorted(self._folder.glob(f"{name}/[0-9]*.json")))
        }
        costs = {
            name: Cost(**json.loads(file.read_text()))
            for name in ways
            if (file := self._file(HARD[0] if name in HARD else name, "cost")).exists()
        }
        taught = Taught.read(self._taught.read_text("utf-8"))
        facts = (
            f"{taught.num_rows:,} responses, {taught.num_response_tokens:,} tokens. The teacher's "
            f"{taught.metric} is {taught.quality:.1%} on {len(taught.answers):,} test rows."
        )
        titles = {name: way.title for name, way in WAYS.items()}
        lines = gains.table(found, costs, titles, HARD, taught.metric)
        refused = json.loads(self._refused.read_text("utf-8")) if self._refused.exists() else {}
        notes = [f"\n- {titles[name]}: left out, {why}\n" for name, why in refused.items()]
        commits = sorted(
            {run.commit or "unknown" for runs in found.values() for run in runs.values()}
        )
        if len(commits) > 1:
            notes.append(f"\n- Trained by the code of several commits: {', '.join(commits)}.\n")
        return f"## {self.setting.title}\n\n{facts}\n\n{lines}\n{''.join(notes)}"

    def _training(self, name: str, seed: int) -> TrainingSpec:
        way, training = WAYS[name], self.school.recipe.training
        objective = way.objective
        if way.two_teachers:
            teacher = self.school.recipe.teacher
            assert not teacher.is_panel and not teacher.is_served
            other = {"model": self.setting.trained_teacher(1, self._store)}
            panel = (SoftTeacher(name="other", teacher=teacher.model_copy(update=other)),)
            objective = objective.model_copy(update={"panel": panel})
        longer = {name: way.epochs * getattr(training, name) for name in ("epochs", "min_steps")}
        return training.model_copy(update=longer | {"seed": seed, "objective": objective})

    def _file(self, name: str, what: str) -> Path:
        return self._folder / name / f"{what}.json"

    def _say(self, what: str) -> None:
        print(f"{self.setting.name}, {what}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def lock(file: Path, *, blocking: bool = True) -> Iterator[None]:
    """Hold ``file``; a process that dies lets go of it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(file, blocking=blocking):
        yield


def write(file: Path, found: Learnt | Cost | Taught | dict[str, str]) -> None:
    """Write what was found, in one piece."""
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(f".{os.getpid()}")
    plain = found if isinstance(found, dict) else dataclasses.asdict(found)
    partial.write_text(json.dumps(plain), "utf-8")
    partial.replace(file)


def main() -> int:
    """Run the settings; print and write what is known."""
    arguments = _parse_arguments()
    began, load = time.monotonic(), load_average()
    commit()  # of the code that runs, whatever is committed within the hour
    store = StoreSpec(root=str(arguments.store))
    chosen = [setting for setting in SETTINGS if setting.name in arguments.settings]
    sections = [f"{why}\n" for setting in chosen if (why := setting.obstacle())]
    comparisons = [Comparison(setting, store) for setting in chosen if not setting.obstacle()]
    print(*sections, sep="", end="", file=sys.stderr, flush=True)
    if not arguments.report_only:
        possible = {each: each.possible(arguments.objectives) for each in comparisons}
        for comparison, ways in possible.items():
            comparison.measure_costs(ways)
        # Seed by seed, so that a run that is stopped has something to say of each.
        for seed in range(arguments.seeds):
            for name in arguments.objectives:
                for comparison, ways in possible.items():
                    if name in ways:
                        comparison.learn(name, seed)
    sections += [comparison.section(arguments.objectives) for comparison in comparisons]
    minutes = (time.monotonic() - began) / 60
    head = heading(
        "Objectives at equal teacher tokens", "benchmarks.quality", load=load, minutes=minutes
    )
    arguments.output.write_text("\n".join([*head, *sections]), "utf-8")
    print(arguments.output.read_text("utf-8"))
    return 0


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quality", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    names = [setting.name for setting in SETTINGS]
    for option, known in (("settings", names), ("objectives", list(WAYS))):
        parser.add_argument(
            f"--{option}",
            type=lambda text: text.split(","),
            default=known,
            help=f"with commas between them, of: {', '.join(known)}",
        )
    parser.add_argument("--seeds", type=int, default=5, help="trainings of each objective")
    parser.add_argument("--store", type=Path, default=Path(".distillery/quality"))
    parser.add_argument("--output", type=Path, help="Markdown file (default: a dated one)")
    parser.add_argument("--report-only", action="store_true", help="nothing is measured")
    arguments = parser.parse_args()
    for given, known in ((arguments.settings, names), (arguments.objectives, list(WAYS))):
        if unknown := set(given) - set(known):
            parser.error(f"there are no {sorted(unknown)}. Known: {', '.join(known)}.")
    arguments.output = arguments.output or result_path("quality")
    return arguments


if __name__ == "__main__":
    sys.exit(main())
