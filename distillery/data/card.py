"""The data card: figures of a training set, and how it differs from the last released one.

What needs one pass over columns is computed over all rows; n-grams, languages, near-duplicates and
embeddings over a sample of a fixed size, as they depend on the number of rows.
"""

import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from distillery.data.answer_classes import LABEL, answer_classes
from distillery.data.divergence import by_chance, divergence
from distillery.data.words import runs, words_of
from distillery.storage.sql import querying
from distillery.storage.store import Store
from distillery.task_types import TaskType
from schemas.card import DataCard, Shift, Texts
from schemas.funnel import FunnelStep
from schemas.refs import DatasetRef

if TYPE_CHECKING:
    import numpy as np

SAMPLE_ROWS = 5_000
LANGUAGE_ROWS = 500
"""Of the sample: a language takes milliseconds to tell."""

_WORD_BINS = 512
_SHINGLE_WORDS = 3
_NEAR = 0.8
_PERMUTATIONS, _BANDS = 128, 16
_SIDES = ("prompts", "responses")
_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)

_ROWS = """
    CREATE VIEW rows AS SELECT
        split, prompt_id, coalesce(response, '') AS response, {teacher} AS teacher,
        CASE WHEN json_valid(messages)
            THEN coalesce(json_extract_string(messages, '$[#-1].content'), '') ELSE ''
        END AS prompt
    FROM kept
"""
# Messages are JSON text, which is read once.
_LENGTHS_TABLE = """
    CREATE TABLE lengths AS SELECT
        split, teacher, length(prompt) AS prompts, length(response) AS responses
    FROM rows
"""
_SAMPLE = "SELECT prompt, response FROM rows ORDER BY md5(prompt_id), split LIMIT {limit}"
_LENGTHS = """
    SELECT min({side}), {quantiles}, max({side}), avg({side}) FROM lengths
"""
_LENGTH_BINS = """
    SELECT floor(2 * log2({side}))::INTEGER::VARCHAR, count(*)
    FROM lengths WHERE {side} > 0 GROUP BY ALL ORDER BY ALL
"""

Embed = Callable[[Sequence[str]], "np.ndarray[Any, Any]"]
"""Returns a unit vector for each text, shape (N, D)."""


def make_card(
    kept: DatasetRef,
    task: TaskType,
    funnel: Iterable[FunnelStep],
    tokens: tuple[int, int] | None,
    last: DataCard | None,
    store: Store,
    *,
    embed: Embed | None = None,
) -> DataCard:
    """Return the card of the rows in ``kept``.

    Args:
        kept: A data set of a TrainingFrame.
        task: What its answers are.
        funnel: Where the rows come from.
        tokens: Prompt and completion tokens of the rows, where they are known.
        last: Card of the last released set of the task, to compare with.
        store: Where the rows are.
        embed: The embedding model that the recipe names, if it does.
    """
    classes = answer_classes(task)
    teacher = "teacher" if "teacher" in kept.columns else "NULL"
    with querying(store, kept=kept) as sql:
        sql.execute(_ROWS.format(teacher=teacher))
        sql.execute(_LENGTHS_TABLE)
        sample = sql.sql(_SAMPLE.format(limit=SAMPLE_ROWS)).fetchall()
        rows = _counts(sql, "split")
        teachers = _counts(sql, "teacher")
        labels = {name: _class_counts(sql, name, known) for name, known in classes.items()}
        chars = {side: _lengths(sql, side) for side in _SIDES}
        bins = {
            f"length of {side}": dict(sql.sql(_LENGTH_BINS.format(side=side)).fetchall())
            for side in _SIDES
        }
    texts: dict[str, list[str]] = {
        side: [row[number] for row in sample] for number, side in enumerate(_SIDES)
    }
    languages = {"prompts": _languages(texts["prompts"])}
    languages["responses"] = Counter() if classes else _languages(texts["responses"])
    found = {side: _texts(of_side, chars[side], languages[side]) for side, of_side in texts.items()}
    if classes:  # answers of a few kinds repeat each other, and nothing follows from it
        none = {"near_duplicates": None}
        found["responses"] = found["responses"].model_copy(update=none)
    if embed is not None and sample:
        spread = {"embedding_spread": _spread(embed(texts["prompts"]))}
        found["prompts"] = found["prompts"].model_copy(update=spread)
    distributions: dict[str, Mapping[str, float]] = {
        **{f"answers: {name}": counts for name, counts in labels.items()},
        "teachers": teachers,
        **bins,
        **{f"languages of {side}": counts for side, counts in languages.items()},
        **{f"words of {side}": _word_bins(of_side) for side, of_side in texts.items()},
    }
    seen = {name: dict(counts) for name, counts in distributions.items() if counts}
    prompt_tokens, completion_tokens = tokens or (None, None)
    return DataCard(
        task=task.task.name,
        training_set=kept.fingerprint,
        made_at=datetime.now(UTC),
        rows=rows,
        sampled_rows=len(sample),
        prompts=found["prompts"],
        responses=found["responses"],
        labels=labels,
        imbalance={name: _imbalance(counts) for name, counts in labels.items()},
        teachers=teachers,
        prompt_tokens=prompt_tokens,
        completion_tokens=completion_tokens,
        funnel=tuple(funnel),
        compared_with=last.training_set if last else None,
        drift=shifts(seen, last.distributions) if last else (),
        distributions=seen,
    )


def shifts(
    seen: Mapping[str, Mapping[str, float]], last: Mapping[str, Mapping[str, float]]
) -> tuple[Shift, ...]:
    """Return how distributions differ from those of the last set, figure by figure."""
    found = []
    for figure in dict.fromkeys([*seen, *last]):
        now, before = seen.get(figure), last.get(figure)
        both = (now, before) if now and before else None
        found.append(
            Shift(
                figure=figure,
                divergence=divergence(*both) if both else None,
                by_chance=by_chance(*both) if both else None,
            )
        )
    return tuple(found)


def _counts(sql: Any, column: str) -> dict[str, int]:
    """Return the rows by value of a column, most frequent first."""
    query = f"SELECT {column}, count(*) FROM lengths WHERE {column} IS NOT NULL GROUP BY ALL"
    return dict(sql.sql(f"{query} ORDER BY 2 DESC, 1").fetchall())


def _class_counts(sql: Any, name: str, known: Sequence[str]) -> dict[str, int]:
    """Return the rows by class, most frequent first; classes without a row last."""
    value, pointer = "response", ""
    if name != LABEL or not known:
        escaped = name.replace("~", "~0").replace("/", "~1")
        value, pointer = "json_extract_string(response, $pointer)", f"/{escaped}"
    query = f"SELECT {value} AS class, count(*) FROM rows WHERE class IS NOT NULL GROUP BY ALL"
    found = sql.execute(
        f"{query} ORDER BY 2 DESC, 1", {"pointer": pointer} if pointer else None
    ).fetchall()
    return {**dict(found), **{name: 0 for name in known if name not in dict(found)}}


def _lengths(sql: Any, side: str) -> dict[str, float]:
    """Return the lengths of a side over all rows, in characters."""
    quantiles = ", ".join(f"quantile_cont({side}, {at})" for at in _QUANTILES)
    (row,) = sql.sql(_LENGTHS.format(side=side, quantiles=quantiles)).fetchall()
    names = ["shortest", *(f"{at:.0%}" for at in _QUANTILES), "longest", "mean"]
    return {
        name: round(float(value), 1)
        for name, value in zip(names, row, strict=True)
        if value is not None
    }


def _texts(sample: Sequence[str], chars: dict[str, float], languages: Counter[str]) -> Texts:
    found = [words_of(text) for text in sample]
    return Texts(
        chars=chars,
        distinct={str(n): _distinct(found, n) for n in (1, 2, 3)},
        languages={name: round(n / languages.total(), 4) for name, n in languages.most_common()},
        near_duplicates=_near_duplicates(found),
    )


def _distinct(sample: Sequence[Sequence[str]], n: int) -> float | None:
    """Return the share of distinct n-grams among all; None where there are none.

    Source: Li et al. 2016, arXiv:1510.03055, section 5.1 (distinct-1 and distinct-2).
    """
    counts = Counter(gram for found in sample for gram in runs(found, n))
    return len(counts) / counts.total() if counts else None


def _languages(sample: Sequence[str]) -> Counter[str]:
    """Return how many texts of a sample are in which language."""
    from py3langid import langid

    texts = [text for text in sample[:LANGUAGE_ROWS] if text.strip()]
    return Counter(langid.classify(text)[0] for text in texts)


def _word_bins(sample: Sequence[str]) -> dict[str, int]:
    """Return the words of a sample, counted by the bin of their hash."""
    counts = Counter(
        zlib.crc32(word.encode("utf-8", "surrogatepass")) % _WORD_BINS
        for text in sample
        for word in words_of(text)
    )
    return {str(number): counts[number] for number in sorted(counts)}


def _near_duplicates(sample: Sequence[Sequence[str]]) -> float | None:
    """Return the share of rows that share four fifths of their runs of words with an earlier one.

    Estimated by MinHash over runs of three words; texts with fewer are one run.
    """
    import rensa

    if not sample:
        return None
    index = rensa.RMinHashLSH(_NEAR, _PERMUTATIONS, _BANDS)
    kept: list[Any] = []
    for found in sample:
        shingles = [*runs(found, _SHINGLE_WORDS)] or [" ".join(found)]
        hashes = rensa.RMinHash(_PERMUTATIONS, 0)
        hashes.update(shingles)
        if not any(hashes.jaccard(kept[number]) >= _NEAR for number in index.query(hashes)):
            index.insert(len(kept), hashes)
            kept.append(hashes)
    return 1 - len(kept) / len(sample)


def _spread(vectors_ND: "np.ndarray[Any, Any]") -> float | None:
    """Return the mean cosine distance of two different rows; None below two rows."""
    n = len(vectors_ND)
    if n < 2:
        return None
    total = vectors_ND.sum(axis=0)
    return float(1 - (total @ total - n) / (n * (n - 1)))


def _imbalance(counts: Mapping[str, int]) -> float | None:
    least = min(counts.values(), default=0)
    return max(counts.values()) / least if least else None
