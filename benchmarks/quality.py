"""What a student learns from the same teacher tokens: hard targets against each soft objective.

    python -m benchmarks.quality [--settings demo,demo-few] [--seeds 5] [--output FILE]

All objectives of a setting learn from the same responses, in a store: what is finished is not done
again, so a run that was killed goes on.
"""

import argparse
import dataclasses
import os
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.processes import REPO
from benchmarks.results import heading, load_average, result_path, versions
from benchmarks.school import Learnt, School, train_teacher
from schemas.execution import StoreSpec
from schemas.objectives import HardTargets, SoftTargets
from schemas.recipe import Recipe, TeacherTrainingRecipe, load_recipe

HARD = "hard targets"
OBJECTIVES: dict[str, HardTargets | SoftTargets] = {
    HARD: HardTargets(),
    "forward KL": SoftTargets(divergence="forward_kl"),
    "reverse KL": SoftTargets(divergence="reverse_kl"),
    "Jensen-Shannon": SoftTargets(divergence="jensen_shannon"),
    "skew forward KL": SoftTargets(divergence="skew_forward_kl"),
    "skew reverse KL": SoftTargets(divergence="skew_reverse_kl"),
    "forward KL at T = 2": SoftTargets(distillation_temperature=2.0),
    "forward KL alone": SoftTargets(soft_weight=1.0, hard_weight=0.0),
}
"""What is compared. What is not said is the recipe's default: k = 64, T = 1, half of the loss soft
and half of it hard."""

_BANKING77 = "BANKING77_DIR"  # as the recipe reads it


@dataclasses.dataclass(frozen=True)
class Setting:
    """What there is to learn from."""

    name: str
    title: str
    recipe: str
    overrides: tuple[str, ...] = ()
    teacher_recipe: str | None = None
    """What the teacher is trained by, when it is not in the repository."""

    def obstacle(self) -> str | None:
        """Return why it cannot be run here; None when it can."""
        folder = os.environ.get(_BANKING77, "data/banking77")
        if self.teacher_recipe is None or Path(folder, "train.csv").exists():
            return None
        return (
            f"{self.name} is skipped: there is no train.csv in {folder!r}. Set {_BANKING77} to the "
            "folder of the data set."
        )

    def school(self, store: StoreSpec) -> School:
        """Return the teacher with its responses."""
        overrides = list(self.overrides)
        if self.teacher_recipe is not None:
            recipe = load_recipe(REPO / self.teacher_recipe, [], TeacherTrainingRecipe)
            folder = train_teacher(recipe, store)
            overrides += [f"teacher.model={folder}", f"student.tokenizer={folder}"]
        return School(load_recipe(REPO / self.recipe, overrides, Recipe), store)


SETTINGS = (
    Setting(
        "demo-few",
        "Demo: 300 training prompts, as many steps",
        "recipes/demo.yaml",
        ("data.train.max_rows=300", "data.validation.max_rows=60"),
    ),
    Setting("demo", "Demo: 3,000 training prompts", "recipes/demo.yaml"),
    Setting(
        "banking77-few",
        "Banking77: 2,000 training queries",
        "recipes/banking77.yaml",
        ("data.train.max_rows=2000",),
        "recipes/teachers/banking77.yaml",
    ),
    Setting(
        "banking77",
        "Banking77: all 10,003 training queries",
        "recipes/banking77.yaml",
        (),
        "recipes/teachers/banking77.yaml",
    ),
)
_LONG = ("banking77",)
"""Run on demand only: an hour of one core."""


def compare(setting: Setting, names: Sequence[str], num_seeds: int, store: StoreSpec) -> str:
    """Return the section of one setting, Markdown. Objectives take turns, seed by seed."""
    school = setting.school(store)
    found: dict[str, list[Learnt]] = {name: [] for name in names}
    for seed in range(num_seeds):
        for name in names:
            learnt = school.teach(OBJECTIVES[name], seed)
            found[name].append(learnt)
            shares = f"{learnt.accuracy:.2%} right, {learnt.agreement:.2%} as the teacher"
            line = f"{setting.name}, seed {seed}, {name}: {shares}, {learnt.train_s:.1f} s"
            print(line, file=sys.stderr, flush=True)
    facts = (
        f"{school.rows.num_rows:,} responses, {school.num_response_tokens:,} tokens. The teacher "
        f"is right on {school.teacher_accuracy:.1%} of {len(school.references):,} test rows."
    )
    return f"## {setting.title}\n\n{facts}\n\n{table(found)}\n"


def table(found: Mapping[str, Sequence[Learnt]]) -> str:
    """Return the table of one setting: means over seeds with their 95 % intervals.

    Differences are paired: students of one seed start from the same weights and meet the rows in
    the same order.
    """
    lines = [
        "| objective | accuracy, % | minus hard targets | agreement with the teacher, % |",
        "|---|---:|---:|---:|",
    ]
    for name, runs in found.items():
        gains = "-"
        if name != HARD and HARD in found:
            pairs = zip(runs, found[HARD], strict=True)
            gains = interval([run.accuracy - hard.accuracy for run, hard in pairs], sign="+")
        cells = [
            name,
            interval([run.accuracy for run in runs]),
            gains,
            interval([run.agreement for run in runs]),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def interval(shares: Sequence[float], *, sign: str = "") -> str:
    """Return mean ± half of the 95 % interval, by Student's t, in percent.

    >>> interval([0.5, 0.7]), interval([0.25], sign="+")
    ('60.00 ± 127.06', '+25.00')
    """
    from scipy.stats import t

    mean = f"{100 * statistics.mean(shares):{sign}.2f}"
    if len(shares) < 2:
        return mean
    error = statistics.stdev(shares) / len(shares) ** 0.5
    return f"{mean} ± {100 * error * float(t.ppf(0.975, len(shares) - 1)):.2f}"


def main() -> int:
    """Run the settings; print and write what is known after each of them."""
    arguments = _parse_arguments()
    began, load = time.monotonic(), load_average()
    versions()  # of the code that runs, whatever is committed within the hour
    store = StoreSpec(root=str(arguments.store))
    sections: list[str] = []
    for setting in (setting for setting in SETTINGS if setting.name in arguments.settings):
        if obstacle := setting.obstacle():
            sections.append(f"## {setting.title}\n\n{obstacle}\n")
            print(obstacle, file=sys.stderr, flush=True)
        else:
            sections.append(compare(setting, arguments.objectives, arguments.seeds, store))
        minutes = (time.monotonic() - began) / 60
        head = heading(
            "Objectives at equal teacher tokens", "benchmarks.quality", load=load, minutes=minutes
        )
        seeds = f"- Means over {arguments.seeds} seeds of training ± half of their 95 % interval"
        arguments.output.write_text("\n".join([*head[:-1], seeds, "", *sections]), "utf-8")
    print(arguments.output.read_text("utf-8"))
    return 0


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quality", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    names = [setting.name for setting in SETTINGS]
    usual = [name for name in names if name not in _LONG]
    for option, known, default in (
        ("settings", names, usual),
        ("objectives", list(OBJECTIVES), list(OBJECTIVES)),
    ):
        parser.add_argument(
            f"--{option}",
            type=lambda text: text.split(","),
            default=default,
            help=f"with commas between them, of: {', '.join(known)}",
        )
    parser.add_argument("--seeds", type=int, default=5, help="trainings of each objective")
    parser.add_argument("--store", type=Path, default=Path(".distillery/quality"))
    parser.add_argument("--output", type=Path, help="Markdown file (default: a dated one)")
    arguments = parser.parse_args()
    for given, known in ((arguments.settings, names), (arguments.objectives, list(OBJECTIVES))):
        if unknown := set(given) - set(known):
            parser.error(f"there are no {sorted(unknown)}. Known: {', '.join(known)}.")
    arguments.output = arguments.output or result_path("quality")
    return arguments


if __name__ == "__main__":
    sys.exit(main())
