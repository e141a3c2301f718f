"""Answers beside what the references say: the most frequent one, recall, confusions."""

import json
from collections import Counter
from collections.abc import Iterable, Mapping

import numpy as np
import pandas as pd

from distillery.evaluation.statistics import Scores
from distillery.task_types import TaskType
from schemas.comparison import Confusion, LabelRecall

_NUM_CONFUSIONS = 20


def majority_answer(references: Iterable[str], kind: TaskType) -> tuple[str | None, Scores]:
    """Return the most frequent right answer, and what always giving it scores by row.

    None where every row has another.
    """
    right = [json.loads(text) for text in references]
    values = [_value(texts[0], kind) for texts in right]
    value, num_rows = Counter(values).most_common(1)[0]
    if num_rows == 1 and len(values) > 1:
        return None, np.full(len(values), np.nan)
    answer = right[values.index(value)][0]
    scores = [kind.score(answer, texts)[kind.primary] for texts in right]
    return min(answer, value, key=len), np.array(scores, dtype="float64")


def _value(text: str, kind: TaskType) -> str:
    """Return what a reference says; its text where it has no answer."""
    answer = kind.parse(text)
    return answer.value if answer else text


def row_labels(references: Iterable[str], kind: TaskType) -> list[str]:
    """Return the label of every row; of spellings that mean the same, the first."""
    texts = [json.loads(right)[0] for right in references]
    value_of = {text: _value(text, kind) for text in dict.fromkeys(texts)}
    text_of: dict[str, str] = {}
    for text, value in value_of.items():
        text_of.setdefault(value, text)
    return [text_of[value_of[text]] for text in texts]


def label_recalls(
    references: Iterable[str], scores: Mapping[str, Scores], kind: TaskType
) -> tuple[LabelRecall, ...]:
    """Return the recall of every label that is right somewhere, the most frequent first."""
    labels = row_labels(references, kind)
    keys = np.array(labels, dtype=object)  # a list could be taken for names of columns
    means = pd.DataFrame(scores).groupby(keys).mean()  # leaves unscored rows out
    recalls = means.astype(object).where(means.notna(), None).to_dict("index")
    return tuple(
        LabelRecall(label=label, num_rows=num_rows, recall=recalls[label])
        for label, num_rows in Counter(labels).most_common()
    )


def student_confusions(answers: pd.DataFrame, kind: TaskType) -> tuple[Confusion, ...]:
    """Return what wrong answers are given for which labels, the most frequent first."""
    wrong: Counter[tuple[str, str | None]] = Counter()
    labels = np.array(row_labels(answers["references"], kind), dtype=object)
    label_of = {_value(label, kind): label for label in labels}
    is_wrong = (answers[kind.primary] < 1).to_numpy()
    scored = answers[is_wrong]
    for text, label, cut in zip(
        scored["response"], labels[is_wrong], scored["truncated"], strict=True
    ):
        answer = None if cut else kind.parse(text)
        wrong[label, label_of.get(answer.value, answer.value) if answer else None] += 1
    return tuple(
        Confusion(label=label, taken_for=answer, num_rows=num_rows)
        for (label, answer), num_rows in wrong.most_common(_NUM_CONFUSIONS)
    )
