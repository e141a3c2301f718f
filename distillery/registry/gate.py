"""The gate: a student is promoted only when every condition holds."""

import dataclasses
from collections.abc import Iterator

from distillery.registry.conditions import (
    Trial,
    check,
    lead_figure,
    limit_figure,
    loss_figure,
    quality_figure,
    regressions_figure,
    retention_figure,
    unscored_figure,
)
from schemas.contestants import CHAMPION, TEACHER
from schemas.gate import Condition, GateSpec, LimitCondition, LimitFigure, QualityCondition
from schemas.promotion import GateCheck


def check_forms(trial: Trial, gate: GateSpec) -> dict[str, tuple[GateCheck, ...]]:
    """Return the conditions of every exported form, by its name; see :func:`check_gate`."""
    return {
        name: tuple(check_gate(dataclasses.replace(trial, candidate=name), gate))
        for name in trial.forms
    }


def check_gate(trial: Trial, gate: GateSpec) -> Iterator[GateCheck]:
    """Yield every condition that the gate asks of the candidate, with what was measured.

    All have to hold, so each may be decided at the level of its own interval: a student that falls
    short in one of them passes no more often than that one condition errs (an intersection-union
    test, Berger 1982, Technometrics 24(4)). The slices of `regressions_against`, any of which
    closes the gate, are corrected for their number where they are measured.
    """
    yield check("min_retention", retention_figure(trial), "at least", gate.min_retention)
    if gate.min_gain is not None:
        gained = QualityCondition(against="baseline", at_least=gate.min_gain)
        yield _check("min_gain", trial, gained)
    if gate.min_lead_over_majority is not None and trial.comparison.majority_answer is not None:
        for who in (TEACHER, trial.candidate):
            lead = lead_figure(trial, who)
            yield check("min_lead_over_majority", lead, "above", gate.min_lead_over_majority)
    if gate.max_loss_to_champion is not None and trial.champion is not None:
        loss = loss_figure(trial, CHAMPION)
        yield check("max_loss_to_champion", loss, "below", gate.max_loss_to_champion)
    unscored = unscored_figure(trial)
    if unscored.value:
        yield check("max_unscored_fraction", unscored, "at most", gate.max_unscored_fraction)
    yield from _ratios(trial, gate)
    for against in gate.regressions_against:
        # Where nothing was sliced there is nothing to be worse in.
        if trial.comparison.slices and _is_asked(trial, against):
            regressions = regressions_figure(trial, against)
            yield check("regressions_against", regressions, "at most", 0)
    for number, condition in enumerate(gate.conditions):
        if _is_asked(trial, condition.against):
            yield _check(f"conditions[{number}]", trial, condition)


def _ratios(trial: Trial, gate: GateSpec) -> Iterator[GateCheck]:
    limits: tuple[tuple[str, LimitFigure, float | None], ...] = (
        ("max_latency_ratio", "latency_p50_s", gate.max_latency_ratio),
        ("max_memory_ratio", "memory_bytes", gate.max_memory_ratio),
        ("max_cost_ratio", "cost_per_1000", gate.max_cost_ratio),
    )
    for field, figure, most in limits:
        if most is not None:
            asked = LimitCondition(figure=figure, against="teacher", at_most=most)
            yield _check(field, trial, asked)


def _is_asked(trial: Trial, against: str | None) -> bool:
    """Return whether a condition against ``against`` is asked: not while there is no champion."""
    return against != CHAMPION or trial.champion is not None


def _check(field: str, trial: Trial, asked: Condition) -> GateCheck:
    """Return whether a condition holds that ``field`` of the gate asks for."""
    is_listed = field.startswith("conditions")
    if isinstance(asked, LimitCondition):
        bound = f"{field}.at_most" if is_listed else field
        return check(bound, limit_figure(trial, asked), "at most", asked.at_most)
    bound = f"{field}.at_least" if is_listed else field
    relation = "at least" if asked.against is None else "above"
    return check(bound, quality_figure(trial, asked), relation, asked.at_least)
