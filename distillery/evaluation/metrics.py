"""Metrics of a contestant's answers: against the references, or the teacher's answers."""

import json

import pandas as pd

from distillery.evaluation.statistics import Bootstrap, MetricSums, mean_sums, set_sums
from distillery.storage.fingerprint import canonical_json
from distillery.task_types import Answer, ScoredRow, TaskType
from schemas.comparison import Interval


def metric_sums(frame: pd.DataFrame, kind: TaskType) -> dict[str, MetricSums]:
    """Return the metrics of the answers, the primary one first; those of the set come last."""
    found = {name: mean_sums(frame[name].to_numpy(dtype="float64")) for name in kind.metrics}
    if not kind.of_the_set:
        return found
    given = zip(frame["response"], frame["references"], frame["truncated"], strict=True)
    rows = [
        ScoredRow(text if isinstance(text, str) else "", tuple(right), bool(cut)) if right else None
        for text, right, cut in ((text, json.loads(right), cut) for text, right, cut in given)
    ]
    is_scored = found[kind.primary].is_scored_N
    return found | {
        name: set_sums(metric, rows, is_scored) for name, metric in kind.of_the_set.items()
    }


def fidelity(
    frame: pd.DataFrame, teacher: pd.DataFrame, kind: TaskType, bootstrap: Bootstrap
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
    return {name: bootstrap.interval(sums) for name, sums in metric_sums(against, kind).items()}


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
