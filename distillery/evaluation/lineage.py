"""What a comparison rests on, read from the manifests of the stages before it."""

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from distillery.data.journey import LEARNT_SPLITS, filter_steps, priced, reasons_by_split
from distillery.evaluation.tables import Row
from distillery.storage.store import Store
from distillery.teacher.summary import SHARE_COLUMNS, panel_shares, saved_sentence, share_rows
from distillery.training.pruning import pruning_text
from schemas.base import Ref
from schemas.budget import PriceSpec
from schemas.comparison import Comparison
from schemas.contestants import BASELINE, TEACHER
from schemas.funnel import FunnelStep
from schemas.manifest import Manifest
from schemas.refs import DatasetRef, Evaluated, Lineage
from schemas.units import seconds_text


@dataclass(frozen=True)
class Origins:
    """Manifests of the stages behind a comparison, in the order of the journey.

    A stage whose result was removed from the store is missing; nothing is made up for it.
    """

    manifests: Mapping[str, Manifest] = field(default_factory=dict)
    """By stage; with its subject where one ran for several, such as `answer_test_prompts teacher`
    or `export_student gguf q8_0`."""

    quarantined: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    """Prompts put aside, by split and reason, the most frequent first."""

    rejected: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    """Prompts that a filter dropped, likewise."""

    @property
    def pruned(self) -> str | None:
        """Return what the student was pruned to, in words; None where it was not."""
        made = self.manifests.get("prune_student")
        return None if made is None else pruning_text(made.facts)

    @property
    def curves(self) -> dict[str, list[dict[str, float]]]:
        """Return the training curves by stage, as the loop logged them."""
        found: dict[str, Any] = {n: made.facts.get("curve") for n, made in self.manifests.items()}
        return {name: curve for name, curve in found.items() if curve}

    @property
    def files(self) -> list[tuple[str, int, str]]:
        """Return the files that were read: split, rows, fingerprint."""
        loaded = self.manifests.get("load_prompts")
        if loaded is None:
            return []
        return [(name, loaded.counts.get(name, 0), str(f)) for name, f in loaded.inputs.items()]

    @property
    def held_out(self) -> dict[str, str]:
        """Return the hashes of the held-out rows that prompts were compared with, by split."""
        made = self.manifests.get("filter_prompts")
        hashes: Any = made.inputs.get("held_out", {}) if made else {}
        num_rows = self.counts("validate_prompts")
        return {split: text for split, text in hashes.items() if num_rows.get(split)}

    def counts(self, stage: str) -> dict[str, int]:
        """Return what a stage counted, or nothing."""
        made = self.manifests.get(stage)
        return made.counts if made else {}


def read_origins(
    lineage: Lineage, evaluated: Evaluated, judged: DatasetRef | None, store: Store
) -> Origins:
    """Return what the store still knows of everything that a comparison rests on."""
    stages: dict[str, Ref] = {
        "validate_prompts": lineage.prompts.quarantined,
        "filter_prompts": lineage.prompts.prompts,
        "generate_responses": lineage.responses,
        "filter_responses": lineage.filtered.kept,
        "train_student": lineage.student,
        **({"score_soft_targets": lineage.soft_targets} if lineage.soft_targets else {}),
        **({"train_student on hard targets": lineage.first} if lineage.first else {}),
        **({lineage.baseline.uri.partition("/")[0]: lineage.baseline} if lineage.baseline else {}),
        **{f"export_student {name}": ref for name, ref in lineage.exported.items()},
        **{f"answer_test_prompts {name}": ref for name, ref in evaluated.answers.items()},
        "measure_performance": evaluated.measurements,
        **{f"run_lm_eval {name}": ref for name, ref in evaluated.harness.items()},
        **({"judge_answers": judged} if judged else {}),
    }
    found = {name: store.manifest_of(ref) for name, ref in stages.items()}
    known = {name: made for name, made in found.items() if made is not None}
    if validated := known.get("validate_prompts"):
        loaded = store.find("load_prompts", str(validated.inputs.get("loaded")))
        known = ({"load_prompts": loaded} if loaded else {}) | known
    aside = (lineage.prompts.quarantined, lineage.prompts.rejected)
    return Origins(known, *(reasons_by_split(ref, store) for ref in aside))


def funnel(
    lineage: Lineage, origins: Origins, price: PriceSpec | None = None
) -> tuple[FunnelStep, ...]:
    """Return the rows to learn from, from the files to the training; steps not known are left out.

    Rows for tests and gold rows are not counted: they take another way. What the responses that
    were dropped had cost is known by the teacher's ``price``.
    """
    filtered = lineage.filtered
    loaded = _sum(origins.counts("load_prompts"), *LEARNT_SPLITS)
    valid = _sum(origins.counts("validate_prompts"), *LEARNT_SPLITS)
    training = origins.counts("train_student")
    by_prompt_filter = _filter_steps(origins, "filter_prompts")
    by_filter = _filter_steps(origins, "filter_responses")
    left_out = {
        name.removeprefix("left_out_"): count
        for name, count in training.items()
        if name.startswith("left_out") and count
    }
    rejected = {} if by_prompt_filter else _learnt(origins.rejected)
    dropped = {} if by_filter else filtered.drop_reasons
    steps = [
        _step("prompts loaded", loaded, _learnt(origins.quarantined)),
        _step("valid prompts", valid, rejected),
        *by_prompt_filter,
        _step("responses", filtered.num_responses, dropped),
        *by_filter,
        _step("kept", filtered.kept.num_rows, left_out),
        _step("learnt from", training.get("train_rows")),
        _step("for validation", training.get("validation_rows")),
    ]
    return priced((step for step in steps if step is not None), lambda _: price)


def _filter_steps(origins: Origins, stage: str) -> list[FunnelStep]:
    made = origins.manifests.get(stage)
    return filter_steps(made) if made else []


def _step(
    name: str, num_rows: int | None, dropped: dict[str, int] | None = None
) -> FunnelStep | None:
    if num_rows is None:
        return None
    return FunnelStep(name=name, num_rows=num_rows, dropped=dropped or {})


def _learnt(reasons: Mapping[str, Mapping[str, int]]) -> dict[str, int]:
    """Return reasons over the splits to learn from, the most frequent first."""
    found: Counter[str] = Counter()
    for split in LEARNT_SPLITS:
        found.update(reasons.get(split, {}))
    return dict(found.most_common())


def _sum(counts: Mapping[str, int], *names: str) -> int | None:
    """Return the sum of the named counts; None where there are no counts."""
    return sum(counts.get(name, 0) for name in names) if counts else None


def baseline_text(comparison: Comparison, origins: Origins) -> str | None:
    """Return what the baseline of a comparison is, in words; None where there is none."""
    if (row := comparison.contestant(BASELINE)) is None:
        return None
    if origins.pruned is not None:
        return f"{origins.pruned}; as it is, before it learns anything"
    if row.model.startswith("train_baseline/"):
        return "the student trained on the gold rows"
    return f"{row.model} as it comes"


def origin_tables(comparison: Comparison, origins: Origins) -> dict[str, list[Row]]:
    """Return tables of stages, models, files and libraries, by heading."""
    stages = [
        {
            "stage": name,
            "made, UTC": f"{made.created_at:%Y-%m-%d %H:%M}",
            "took": seconds_text(made.timings_s.get("total")),
            "counted": ", ".join(f"{n:,} {what}" for what, n in made.counts.items()).replace(
                "_", " "
            ),
            "code": (made.git_sha or "not known")[:10],
            "fingerprint": made.fingerprint[:12],
        }
        for name, made in origins.manifests.items()
    ]
    models = [
        {
            "contestant": row.name,
            "model": row.model,
            "licence": licence_of(row.model) or "not known",
            "identity": row.identity[:12],
        }
        for row in comparison.contestants
    ]
    files = [
        {"file of": split, "rows": f"{num_rows:,}", "fingerprint": fingerprint[:12]}
        for split, num_rows, fingerprint in origins.files
    ]
    held_out = [
        {
            "split": split,
            "rows": f"{origins.counts('validate_prompts')[split]:,}",
            "hash": text[:12],
        }
        for split, text in origins.held_out.items()
    ]
    versions: dict[str, set[str]] = {}
    for made in origins.manifests.values():
        for name, version in made.versions.items():
            versions.setdefault(name, set()).add(version)
    libraries = [{"library": name, "version": ", ".join(sorted(v))} for name, v in versions.items()]
    found = {
        **_panel_tables(origins),
        **{"Stages": stages, "Models": models, "Files": files},
        **{"Held out from the prompts": held_out, "Libraries": libraries},
    }
    return {title: rows for title, rows in found.items() if rows}


def _panel_tables(origins: Origins) -> dict[str, list[Row]]:
    """Return what each member of a panel did for the training rows and the test rows."""
    found = {}
    stages = {"training rows": "generate_responses", "test rows": f"answer_test_prompts {TEACHER}"}
    for rows, stage in stages.items():
        made = origins.manifests.get(stage)
        if made is None or (shares := panel_shares(made)) is None:
            continue
        saved = saved_sentence(shares)
        title = f"Teachers of the panel, {rows}" + (f". {saved}" if saved else "")
        found[title] = [dict(zip(SHARE_COLUMNS, row, strict=True)) for row in share_rows(shares)]
    return found


def licence_of(model: str) -> str | None:
    """Return the licence that a model's folder states: in its card, or in its configuration.

    None: it states none, or ``model`` is not a folder of this machine.
    """
    folder = Path(model).expanduser()
    if (card := folder / "README.md").is_file():
        from huggingface_hub.repocard import metadata_load

        stated = (metadata_load(card) or {}).get("license")
        if stated:
            return str(stated)
    if (config := folder / "config.json").is_file():
        stated = json.loads(config.read_text("utf-8")).get("license")
        return str(stated) if stated else None
    return None
