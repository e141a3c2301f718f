"""The page of a sweep: who won, all trials, what mattered, and the recipe to commit."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from distillery.evaluation.markdown import markdown_table
from distillery.storage.fingerprint import canonical_json
from distillery.storage.scratch import scratch_folder
from distillery.storage.stage import Attempt, Stage, StageResult, run_stage
from distillery.storage.store import Store
from distillery.sweep.pictures import quality_against, quality_by_trial
from distillery.sweep.space import applied
from distillery.sweep.spending import Spending, spending
from distillery.sweep.study import Study
from distillery.sweep.trial import metric_of, trial_stage
from distillery.sweep.winner import pareto_set
from distillery.sweep.written import recipe_yaml
from schemas.comparison import Interval
from schemas.execution import ExecutionSpec, StageName, StoreSpec
from schemas.refs import DatasetRef
from schemas.sweep import Cost, SweepRecipe, Trial
from schemas.units import MISSING, bytes_text, count_text, seconds_text

if TYPE_CHECKING:
    from rich.table import Table as RichTable

_LOGIC_VERSION = 2
LEAST_TRIALS = 10
"""Completed trials from which on importance says something."""
_BEST_TRIALS = 5  # what PED-ANOVA wants among the best

Row = dict[str, str]


def report_sweep(
    recipe: SweepRecipe,
    study: Study,
    best: Trial,
    asked: Sequence[DatasetRef],
    store: StoreSpec,
    execution: ExecutionSpec,
) -> StageResult:
    """Return output `report`: a folder with the page, the trials as JSON, the recipe as YAML.

    Args:
        recipe: What was tried.
        study: Its trials.
        best: The winner.
        asked: Responses and soft targets that the teacher gave for all trials.
        store: Where everything is.
        execution: What to rerun.
    """
    trials = study.trials()
    written = winning_yaml(recipe, best, study.name)
    stage = Stage(
        StageName.REPORT_SWEEP,
        _LOGIC_VERSION,
        inputs={
            "study": study.name,
            "trials": [trial.model_dump(mode="json") for trial in trials],
            "winner": best.number,
            "recipe": written,
        },
        spec={"sweep": recipe.sweep.model_dump(mode="json")},
    )

    def work(attempt: Attempt) -> None:
        spent = spending([*asked, *_asked(recipe, study, attempt.store)], store)
        importance = importance_of(study)
        files = {
            "sweep.json": json.dumps([trial.model_dump(mode="json") for trial in trials], indent=1),
            "recipe.yaml": written,
            "report.md": sweep_markdown(recipe, trials, best, importance, spent),
            "report.html": render_page(
                recipe, study.name, trials, best, importance, spent, written
            ),
        }
        with scratch_folder("sweep") as folder:
            for name, text in files.items():
                (folder / name).write_text(text, "utf-8")
            attempt.add_folder("report", folder)
        attempt.counts |= {"trials": len(trials), "paid_twice": spent.paid_twice}
        for state in ("complete", "pruned", "failed"):
            attempt.counts[state] = sum(trial.state == state for trial in trials)

    return run_stage(stage, store, execution, work)


def _asked(recipe: SweepRecipe, study: Study, store: Store) -> list[DatasetRef]:
    """Return the teacher's responses and soft targets that completed trials learnt from."""
    found = []
    for trial in study.trials():
        stage = trial_stage(recipe, study.name, dict(trial.values))
        made = store.find(stage.name, stage.fingerprint)
        outputs = [made.outputs.get(name) for name in ("responses", "soft_targets")] if made else []
        found += [ref for ref in outputs if isinstance(ref, DatasetRef)]
    return found


def importance_of(study: Study) -> dict[str, float] | None:
    """Return how much each field mattered; None: too few trials were completed to tell."""
    num_complete = sum(trial.state == "complete" for trial in study.trials())
    if num_complete < LEAST_TRIALS:
        return None
    return study.importance(max(0.1, _BEST_TRIALS / num_complete))


def winning_yaml(recipe: SweepRecipe, best: Trial, study: str) -> str:
    """Return the winner's recipe, ready to be committed: a run of it finds the student trained."""
    varied = "\n".join(f"  {field} = {canonical_json(v)}" for field, v in best.values.items())
    heading = f"Trial {best.number} of the sweep {study}, which chose\n{varied}"
    return recipe_yaml(applied(recipe, best.values), heading)


def verdict(recipe: SweepRecipe, trials: Sequence[Trial], best: Trial) -> str:
    """Return the outcome in a sentence."""
    assert best.quality is not None
    chose = ", ".join(f"{field} {_value_text(value)}" for field, value in best.values.items())
    why = "the best"
    if recipe.sweep.costs:
        why = (
            f"the cheapest by {recipe.sweep.costs[0].replace('_', ' ')} within "
            f"{recipe.sweep.margin:g} of the best"
        )
    return (
        f"Trial {best.number} wins as {why} of {len(trials)}: {metric_of(recipe)} "
        f"{_quality_text(best.quality)} on the selection rows, with {chose}."
    )


def states_sentence(trials: Sequence[Trial]) -> str:
    """Return how the trials ended, and how long they took together."""
    counts = {
        state: sum(trial.state == state for trial in trials)
        for state in ("complete", "pruned", "failed", "running")
    }
    said = ", ".join(f"{count} {state}" for state, count in counts.items() if count)
    return f"{said}; {sum(trial.seconds or 0 for trial in trials) / 60:,.1f} minutes in all."


def trial_rows(recipe: SweepRecipe, trials: Sequence[Trial], best: Trial) -> list[Row]:
    """Return the trials as rows of a table: completed ones first, the best of them on top."""
    fields = [parameter.field for parameter in recipe.sweep.parameters]
    front = {trial.number for trial in pareto_set(trials, recipe.sweep)}
    ordered = sorted(
        trials, key=lambda t: (-t.quality.estimate if t.quality else float("inf"), t.number)
    )

    def row(trial: Trial) -> Row:
        state: str = "winner" if trial.number == best.number else trial.state
        if recipe.sweep.costs and trial.number in front and state != "winner":
            state = "Pareto set"
        return {
            "trial": str(trial.number),
            **{_short(field, fields): _value_text(trial.values[field]) for field in fields},
            metric_of(recipe): _quality_text(trial.quality),
            "latency": seconds_text(trial.costs.get("latency")),
            "parameters": count_text(trial.costs.get("parameters")),
            "weights": bytes_text(trial.costs.get("disk_bytes")),
            "took": MISSING if trial.seconds is None else seconds_text(trial.seconds),
            "state": state,
        }

    return [row(trial) for trial in ordered]


def reasons(trials: Sequence[Trial]) -> dict[str, str]:
    """Return why trials ended without a student, by trial."""
    without = (each for each in trials if each.state in ("pruned", "failed"))
    return {f"trial {each.number}": each.reason for each in without if each.reason}


def sweep_markdown(
    recipe: SweepRecipe,
    trials: Sequence[Trial],
    best: Trial,
    importance: Mapping[str, float] | None,
    spent: Spending,
) -> str:
    """Return the sweep as Markdown."""
    lines = [
        f"# Sweep of {recipe.task.name}",
        "",
        f"**{verdict(recipe, trials, best)}**",
        "",
        states_sentence(trials),
        "",
        spent.sentence(len(trials)),
        "",
        markdown_table(trial_rows(recipe, trials, best)),
        "",
        *[f"- {name}: {reason}" for name, reason in reasons(trials).items()],
        "",
        "## What mattered",
        "",
        *(
            [_too_few(trials)]
            if importance is None
            else [f"- {field}: {share:.0%}" for field, share in importance.items()]
        ),
    ]
    return "\n".join(lines) + "\n"


def render_page(
    recipe: SweepRecipe,
    study: str,
    trials: Sequence[Trial],
    best: Trial,
    importance: Mapping[str, float] | None,
    spent: Spending,
    written: str,
) -> str:
    """Return the page as HTML text; all that comes from files is escaped."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    here = Path(__file__).parent
    environment = Environment(
        loader=FileSystemLoader([here, here.parent / "evaluation"]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    metric = metric_of(recipe)
    costs: tuple[Cost, ...] = recipe.sweep.costs or ("latency",)
    pictures = [quality_by_trial(trials, best, metric)]
    pictures += [quality_against(cost, trials, best, metric) for cost in costs]
    return environment.get_template("report.html.jinja").render(
        task=recipe.task.name,
        study=study,
        verdict=verdict(recipe, trials, best),
        states=states_sentence(trials),
        spent=spent.sentence(len(trials)),
        confidence=recipe.evaluation.confidence,
        metric=metric,
        rows=trial_rows(recipe, trials, best),
        reasons=reasons(trials),
        winner=str(best.number),
        importance=importance,
        too_few=_too_few(trials),
        pictures=[picture for picture in pictures if picture],
        written=written,
    )


def _too_few(trials: Sequence[Trial]) -> str:
    num = sum(trial.state == "complete" for trial in trials)
    return (
        f"{num} completed trials are too few to tell which field mattered; it takes {LEAST_TRIALS}."
    )


def _short(field: str, fields: Sequence[str]) -> str:
    """Return the last part of a field's place, or all of it where two end alike.

    >>> _short("training.epochs", ["training.epochs", "student.num_layers"])
    'epochs'
    """
    last = field.rpartition(".")[2]
    return field if sum(each.endswith(f".{last}") for each in fields) > 1 else last


def _value_text(value: object) -> str:
    """Return a value as a table shows it.

    >>> _value_text({"kind": "soft_targets", "k": 8}), _value_text(0.00123456)
    ('soft_targets (k 8)', '0.00123')
    """
    if isinstance(value, float):
        return f"{value:.3g}"
    if isinstance(value, dict) and "kind" in value:
        rest = ", ".join(f"{k} {_value_text(v)}" for k, v in value.items() if k != "kind")
        return f"{value['kind']} ({rest})" if rest else str(value["kind"])
    return value if isinstance(value, str) else canonical_json(value)


def _quality_text(quality: Interval | None) -> str:
    if quality is None:
        return MISSING
    if quality.low is None or quality.high is None:
        return f"{quality.estimate:.4f}"
    return f"{quality.estimate:.4f} [{quality.low:.4f}, {quality.high:.4f}]"


def terminal_trials(recipe: SweepRecipe, trials: Sequence[Trial], best: Trial) -> "RichTable":
    """Return the trials as a table for a terminal."""
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    rows = [
        {name: text for name, text in row.items() if name not in ("weights", "took")}
        for row in trial_rows(recipe, trials, best)
    ]
    for name in rows[0]:
        table.add_column(name.replace("_", " "), no_wrap=name == metric_of(recipe))
    for row in rows:
        table.add_row(*map(escape, row.values()))
    return table
