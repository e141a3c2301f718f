"""What a report is made of: origins with a curve, differing rows, slices, costs, a judge."""

from datetime import UTC, datetime
from typing import Any

from distillery.evaluation.lineage import Origins
from schemas.comparison import (
    Comparison,
    Cost,
    Difference,
    DifferingRow,
    DistillationCost,
    Interval,
    JudgedPair,
    Judgement,
    SliceFigures,
)
from schemas.funnel import FunnelStep
from schemas.manifest import Manifest
from tests.fixtures_comparison import SCORES, comparison

HOSTILE = "</script><img src=x onerror=alert(1)><!-- \u2028 \"'&"


def interval(estimate: float, margin: float = 0.05) -> Interval:
    """Return an interval of twice ``margin``."""
    return Interval(estimate=estimate, low=estimate - margin, high=estimate + margin, num_rows=20)


def manifest(stage: str, **changed: Any) -> Manifest:
    """Return a manifest of a stage that took two seconds."""
    given: dict[str, Any] = {
        "stage": stage,
        "fingerprint": (stage[0] + "f") * 32,
        "attempt": "a",
        "created_at": datetime(2026, 11, 26, 3, 30, tzinfo=UTC),
        "logic_version": 1,
        "inputs": {},
        "spec": {},
        "outputs": {},
        "timings_s": {"total": 2.0},
        "versions": {"torch": "2.13.0"},
        "git_sha": "0123456789" * 4,
    }
    return Manifest(**{**given, **changed})


ORIGINS = Origins(
    {
        "load_prompts": manifest(
            "load_prompts", inputs={"train": "a" * 64, "test": "b" * 64}, counts={"train": 4000}
        ),
        "generate_responses": manifest(
            "generate_responses", spec={"teacher": {"max_new_tokens": 16}}
        ),
        "train_student": manifest(
            "train_student",
            counts={"train_rows": 3700, "validation_rows": 100},
            facts={
                "objective": "hard_targets: as the recipe says",
                "curve": [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.0, "eval_loss": 1.2}],
            },
        ),
    },
    {"train": {"duplicate": 50}, "test": {"no_reference": 2}},
)

FUNNEL = (
    FunnelStep(name="prompts loaded", num_rows=4000, dropped={"found_in_test": 150}),
    FunnelStep(name="kept", num_rows=3850),
)


def differing_row(number: int, **changed: Any) -> DifferingRow:
    """Return a row that the student gets wrong when its number is even."""
    is_loss = number % 2 == 0
    given: dict[str, Any] = {
        "prompt_id": f"test-{number:03d}",
        "prompt": f"please help with case {number}",
        "references": ("yes",),
        "responses": {"teacher": "yes" if is_loss else "no", "student": "no" if is_loss else "yes"},
        "scores": {"teacher": float(is_loss), "student": float(not is_loss)},
        "lead": -1.0 if is_loss else 1.0,
        "slices": ("label=yes",),
    }
    return DifferingRow(**{**given, **changed})


def rich_comparison() -> Comparison:
    """Return a comparison with everything that a report can show."""
    found = comparison({**SCORES, "champion": SCORES["student"]}, funnel=FUNNEL)
    priced = tuple(
        row.model_copy(
            update={"cost": Cost(per_1000=1.0 / (n + 1), currency="EUR", source="a price list")}
        )
        for n, row in enumerate(found.contestants)
    )
    worse = Difference(
        name="student", against="teacher", metric="accuracy", difference=interval(-0.3)
    )
    part = SliceFigures(
        column="label",
        value="maybe <b>",
        num_rows=6,
        quality={row.name: interval(0.5) for row in priced},
        differences=(worse,),
        regressions=("teacher",),
    )
    equal = worse.model_copy(update={"difference": interval(0.01)})
    fine = part.model_copy(update={"value": "yes", "differences": (equal,), "regressions": ()})
    return found.model_copy(
        update={
            "contestants": priced,
            "slices": (fine, part),
            "judgement": Judgement(
                model="some/judge",
                rubric="Prefer the shorter one.",
                pairs=(
                    JudgedPair(
                        against="teacher",
                        wins=4,
                        ties=10,
                        losses=5,
                        unscored=1,
                        win_rate=interval(0.47),
                    ),
                ),
            ),
            "distillation_cost": DistillationCost(
                teacher=12.4,
                training_hours=0.5,
                training=1.0,
                currency="EUR",
                break_even_requests=26_800.0,
            ),
        }
    )
