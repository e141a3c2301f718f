"""Soft targets: the teacher's probabilities at every token of a response."""

from distillery.objectives.soft.stage import score_soft_targets, scoring_stage
from distillery.objectives.soft.targets import (
    ScoredRow,
    Scorer,
    ScoringRow,
    SoftTargetMeta,
    at_temperature,
    check_meta,
    read_meta,
    read_targets,
    write_targets,
)

__all__ = [
    "ScoredRow",
    "Scorer",
    "ScoringRow",
    "SoftTargetMeta",
    "at_temperature",
    "check_meta",
    "read_meta",
    "read_targets",
    "score_soft_targets",
    "scoring_stage",
    "write_targets",
]
