"""Cards of the student and of its training set, in the Hugging Face format.

Facts of the manifests only; what nobody recorded is said to be unknown.
"""

import re
from pathlib import Path

from distillery.evaluation.findings import findings, notes
from distillery.evaluation.lineage import Origins, licence_of
from distillery.evaluation.markdown import markdown_table
from distillery.evaluation.tables import main_rows, quality_rows
from distillery.evaluation.verdict import verdict
from schemas.comparison import Comparison
from schemas.contestants import BASELINE, STUDENT, TEACHER
from schemas.frames import LABELLED
from schemas.funnel import FunnelStep
from schemas.task import TaskSpec
from schemas.units import count_text

_UNKNOWN = "not known"
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def base_model(comparison: Comparison, origins: Origins) -> str | None:
    """Return the pretrained model that the student grew from; None for one made from scratch."""
    if pruned := origins.manifests.get("prune_student"):
        return str(pruned.facts["model"])
    baseline = comparison.contestant(BASELINE)
    is_trained = "train_baseline" in origins.manifests
    return None if baseline is None or is_trained else baseline.model


def model_card(comparison: Comparison, origins: Origins, task: TaskSpec) -> str:
    """Return the student's `README.md`: metadata first, then what is known of it."""
    from huggingface_hub import EvalResult, ModelCardData

    student, base = comparison.contestant(STUDENT), base_model(comparison, origins)
    teacher = comparison.contestant(TEACHER)
    assert student and teacher, "a comparison without student or teacher"
    licence = licence_of(base) if base else None
    scored = {name: found for name, found in student.metrics.items() if found}
    data = ModelCardData(
        model_name=f"{comparison.task} student",
        # The hub knows models by their ids, not by folders.
        base_model=base if base and _is_hub_id(base) else None,
        license=licence or "unknown",
        tags=["distillation", "distillery", task.type.value],
        metrics=list(scored),
        eval_results=[
            EvalResult(
                task_type=task.type.value,
                dataset_type="held-out",
                dataset_name=f"{comparison.num_rows} held-out rows of {comparison.task}",
                metric_type=name,
                metric_value=round(found.estimate, 4),
            )
            for name, found in scored.items()
        ]
        or None,
    )
    training = origins.manifests.get("train_student")
    facts = {
        "Made from": f"`{base}`, licence: {licence or _UNKNOWN}"
        if base
        else "random weights: it was trained from scratch",
        **({"Pruned": origins.pruned} if origins.pruned else {}),
        "Teacher": f"`{teacher.model}`, licence: {licence_of(teacher.model) or _UNKNOWN}; its "
        "terms may bind models trained on its responses",
        "Parameters": count_text(student.num_parameters),
        "Objective": str(training.facts.get("objective", _UNKNOWN)) if training else _UNKNOWN,
        "Rows learnt from": _rows(comparison, "learnt from"),
        "Training set": "see data-card.md",
        "Fingerprint": f"`{student.identity}`",
        "Made at": f"{training.created_at:%Y-%m-%d %H:%M} UTC" if training else _UNKNOWN,
        "Code": f"`{training.git_sha}`" if training and training.git_sha else _UNKNOWN,
    }
    lines = [
        _front_matter(data.to_yaml()),
        f"# Student for {comparison.task}",
        "",
        verdict(comparison),
        "",
        *_list(facts),
        "",
        "## Evaluation",
        "",
        markdown_table(main_rows(comparison)),
        "",
        *([markdown_table(rows), ""] if (rows := quality_rows(comparison)) else []),
        *[f"- {finding.text}" for finding in findings(comparison)],
        "",
        *[f"{note}  " for note in notes(comparison)],
        "",
        "## Not known",
        "",
        "Intended use, limits and biases beyond these figures: nobody has stated them.",
    ]
    return "\n".join(lines) + "\n"


def data_card(comparison: Comparison, origins: Origins, task: TaskSpec) -> str:
    """Return the card of the training set: files, ways out of it, teacher, what is unknown."""
    from huggingface_hub import DatasetCardData

    data = DatasetCardData(
        pretty_name=f"{comparison.task}: training set",
        license="unknown",
        tags=["distillation", "distillery", "synthetic", task.type.value],
    )
    teacher = comparison.contestant(TEACHER)
    assert teacher, "a comparison without teacher"
    generated = origins.manifests.get("generate_responses")
    asked = generated.spec.get("teacher") if generated else None
    facts = {
        "Responses by": f"`{teacher.model}`, licence: {licence_of(teacher.model) or _UNKNOWN}",
        "Asked with": ", ".join(f"{name} {value}" for name, value in asked.items())
        if isinstance(asked, dict)
        else _UNKNOWN,
        "Task": f"{comparison.task} ({task.type})",
    }
    lines = [
        _front_matter(data.to_yaml()),
        f"# Training set for {comparison.task}",
        "",
        *_list(facts),
        "",
        "## Files",
        "",
        *_files(origins),
        "",
        "## From the files to the student",
        "",
        *_way(comparison.funnel),
        "",
        *_quarantined(origins),
        "## Not known",
        "",
        "Licence and origin of the files, languages, and whether they hold personal data: nobody "
        "has stated them. What the teacher's terms say about its responses is not known here.",
    ]
    return "\n".join(lines) + "\n"


def _front_matter(yaml: str) -> str:
    return f"---\n{yaml.strip()}\n---\n"


def _is_hub_id(model: str) -> bool:
    return bool(_HUB_ID.fullmatch(model)) and not Path(model).is_dir()


def _list(facts: dict[str, str]) -> list[str]:
    return [f"- {name}: {value}" for name, value in facts.items()]


def _rows(comparison: Comparison, step: str) -> str:
    return next((f"{s.num_rows:,}" for s in comparison.funnel if s.name == step), _UNKNOWN)


def _files(origins: Origins) -> list[str]:
    if not origins.files:
        return [f"Files: {_UNKNOWN}, as the store no longer has the stage that read them."]
    return [
        f"- {split}: {num_rows:,} rows; fingerprint `{fingerprint}`"
        for split, num_rows, fingerprint in origins.files
    ]


def _way(steps: tuple[FunnelStep, ...]) -> list[str]:
    lines = []
    for step in steps:
        lines.append(f"- {step.name}: {step.num_rows:,}")
        lines += [f"  - dropped, {reason}: {rows:,}" for reason, rows in step.dropped.items()]
    return lines


def _quarantined(origins: Origins) -> list[str]:
    """Return what was put aside of the rows that nobody learns from."""
    found = [
        f"- {split}, {reason}: {rows:,}"
        for split in LABELLED
        for reason, rows in origins.quarantined.get(split, {}).items()
    ]
    return ["## Put aside of labelled rows", "", *found, ""] if found else []
