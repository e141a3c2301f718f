"""Metrics of a contestant's answers: against the references, or the teacher's answers."""

import json

import pandas as pd

from distillery.evaluation.statistics import Scores, mean_interval, set_interval
from distillery.storage.fingerprint import canonical_json
from distillery.task_types import Answer, ScoredRow, TaskType
from schemas.comparison import Interval
from schemas.evaluation import EvaluationSpec


def metric_scores(frame: pd.DataFrame, metric: str) -> Scores:
    """Return the scores in one metric by row; NaN where unscored."""
    return frame[metric].to_numpy(dtype="float64")


def metric_intervals(
    frame: pd.DataFrame, kind: TaskType, evaluation: EvaluationSpec
) -> dict[str, Interval | None]:
    """Return the metrics of the answers, the primary one first; those of the set come last."""
    scored = frame[frame[kind.primary].notna()]
    given = zip(scored["response"], scored["references"], scored["truncated"], strict=True)
    rows = [ScoredRow(text, tuple(json.loads(right)), bool(cut)) for text, right, cut in given]
    return {
        name: mean_interval(metric_scores(frame, name), evaluation) for name in kind.metrics
    } | {name: set_interval(metric, rows, evaluation) for name, metric in kind.of_the_set.items()}


def fidelity(
    frame: pd.DataFrame, teacher: pd.DataFrame, kind: TaskType, evaluation: EvaluationSpec
) -> dict[str, Interval | None]:
    """Return the metrics with the teacher's answers as the references.

    A row is unscored where the teacher gave no answer, also where its response was cut and the
    task type takes such a one to be wrong.
    """
    said = [
        _answer(text, kind, is_cut=bool(cut))
        for text, cut in zip(teacher["response"], teacher["truncated"], strict=True)
    ]
    against = frame[["response", "truncated"]].assign(
        references=[canonical_json([answer.text] if answer else []) for answer in said]
    )
    scores = [
        kind.score(
            text if isinstance(text, str) and answer else None,
            [answer.text] if answer else [],
            truncated=bool(cut),
        )
        for text, cut, answer in zip(against["response"], against["truncated"], said, strict=True)
    ]
    against = against.join(pd.DataFrame(scores, index=frame.index, dtype="float64"))
    return metric_intervals(against, kind, evaluation)


def _answer(response: object, kind: TaskType, *, is_cut: bool) -> Answer | None:
    """Return the answer in a response, if there is one that can be right."""
    answer = kind.parse(response) if isinstance(response, str) else None
    if (
        answer
        and is_cut
        and not kind.score(answer.text, [answer.text], truncated=True)[kind.primary]
    ):
        return None
    return answer
