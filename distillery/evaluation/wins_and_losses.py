"""Wins and losses: test rows on which the student and others score differently."""

import json
from collections.abc import Mapping

import pandas as pd
import pyarrow as pa
import pyarrow.dataset as pads

from distillery.data.chat import load_messages
from distillery.storage.store import Store
from schemas.comparison import DifferingRow
from schemas.contestants import CHAMPION, STUDENT, TEACHER
from schemas.refs import DatasetRef

_MOST_ROWS = 5000
_MOST_CHARS_OF_TEXT = 4000


def differing_rows(
    answers: Mapping[str, pd.DataFrame],
    metric: str,
    prompts: DatasetRef,
    store: Store,
    slices: Mapping[str, pd.Series] | None = None,
) -> tuple[list[DifferingRow], int]:
    """Return rows on which teacher or champion and student differ, and how many there are.

    Those that differ most come first, rows that differ alike in the order of their ids.

    Args:
        answers: By contestant, what `read_answers` returns.
        metric: By which they are scored.
        prompts: Where the conversations are.
        store: Holds them.
        slices: By column, the value of each row by prompt id.
    """
    names = [name for name in (TEACHER, CHAMPION, STUDENT) if name in answers]
    scores = pd.DataFrame({name: answers[name][metric] for name in names})
    gaps = scores.drop(columns=STUDENT).rsub(scores[STUDENT], axis=0)
    size = gaps.abs().max(axis=1)  # where one is unscored the other counts
    differing = size[size > 0].sort_values(ascending=False, kind="stable").index
    worst = gaps.min(axis=1)
    leads = worst.where(worst < 0, gaps.max(axis=1))
    chosen = differing[:_MOST_ROWS]
    # Missing is None from here on: JSON has no NaN.
    shown = scores.loc[chosen].astype(object)
    given = shown.where(shown.notna(), None).to_dict("index")
    texts = _last_turns(prompts, list(chosen), store)
    rows = [
        DifferingRow(
            prompt_id=prompt_id,
            prompt=_cut(texts[prompt_id]),
            references=tuple(
                _cut(text) for text in json.loads(str(answers[STUDENT].at[prompt_id, "references"]))
            ),
            responses={name: _response(answers[name].at[prompt_id, "response"]) for name in names},
            scores=given[prompt_id],
            lead=leads[prompt_id],
            slices=tuple(
                f"{column}={values[prompt_id]}"
                for column, values in (slices or {}).items()
                if pd.notna(values.get(prompt_id))
            ),
        )
        for prompt_id in chosen
    ]
    return rows, len(differing)


def _last_turns(prompts: DatasetRef, prompt_ids: list[str], store: Store) -> dict[str, str]:
    # Typed, as an empty list would be of nulls.
    wanted = pads.field("prompt_id").isin(pa.array(prompt_ids, pa.string()))
    table = store.dataset(prompts).to_table(
        columns=["prompt_id", "messages"], filter=(pads.field("split") == "test") & wanted
    )
    return {
        row["prompt_id"]: load_messages(row["messages"])[-1]["content"] for row in table.to_pylist()
    }


def _response(value: object) -> str | None:
    return _cut(value) if isinstance(value, str) else None


def _cut(text: str) -> str:
    """Return ``text``; of a very long one its beginning, and how long it is."""
    if len(text) <= _MOST_CHARS_OF_TEXT:
        return text
    return f"{text[:_MOST_CHARS_OF_TEXT]} … ({len(text):,} characters)"
