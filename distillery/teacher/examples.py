"""Gold rows as examples: which of them a teacher is shown before a prompt.

Likeness is lexical: the cosine of TF-IDF vectors over runs of three characters, which every script
has. scipy's sparse matrices hold them; an embedding model would be one more to load, or to pay for.
"""

import functools
import json
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from distillery.data.chat import Message, content_hash, load_messages, split_system_turn
from distillery.storage.fingerprint import sha256
from distillery.storage.store import Store
from schemas.errors import RecipeError
from schemas.examples import ExamplesSpec, FixedExamples
from schemas.refs import DatasetRef

if TYPE_CHECKING:
    from scipy.sparse import csr_array

_GRAM = 3
_QUERIES = 256  # whose likeness to all gold rows is in memory at a time: 20 MB for 10,000 rows


@dataclass(frozen=True)
class GoldRow:
    """A labelled row as a teacher is shown it."""

    asked: tuple[Message, ...]
    """The row without its system turn."""

    references: tuple[str, ...]
    """The right answers."""

    content_hash: str
    """Of what is asked, as prompts have it."""

    @property
    def answers(self) -> set[str]:
        """Return the hashes of all prompts whose answer it shows: of earlier turns, too."""
        ends = [at for at, turn in enumerate(self.asked, 1) if turn["role"] == "user"]
        return {self.content_hash} | {content_hash(self.asked[:end]) for end in ends}


class GoldRows:
    """The gold rows that a teacher can be shown."""

    def __init__(self, rows: Sequence[GoldRow]) -> None:
        """Take rows; of those that ask the same the first."""
        first: dict[str, GoldRow] = {}
        for row in rows:
            first.setdefault(row.content_hash, row)
        self._rows = list(first.values())
        self._answering: defaultdict[str, set[int]] = defaultdict(set)
        for at, row in enumerate(self._rows):
            for answered in row.answers:
                self._answering[answered].add(at)
        self._orders: dict[int, list[int]] = {}
        self._most_answering = max(map(len, self._answering.values()), default=0)

    @classmethod
    def of(cls, prompts: DatasetRef, root: str) -> "GoldRows":
        """Return the gold rows of a PromptFrame in the store at ``root``; the last ones are kept.

        None of them is a test row: those are put aside when prompts are validated.
        """
        return _read(prompts, root)

    def before(
        self, conversations: Sequence[Sequence[Message]], spec: ExamplesSpec
    ) -> list[list[GoldRow]]:
        """Return the examples before each of ``conversations``, as many as ``spec`` says.

        A conversation that is a gold row, or the beginning of one, gets another in its place, where
        there is one. What it gets depends on itself and on the gold rows, not on its neighbours.

        Raises:
            RecipeError: There are fewer gold rows than examples.
        """
        num = spec.num_examples
        if len(self._rows) < num:
            raise RecipeError(
                f"teacher.examples.num_examples is {num}, but there are {len(self._rows)} "
                "different gold rows to show. Lower it, or add rows to data.gold."
            )
        enough = num + self._most_answering
        if isinstance(spec, FixedExamples):
            found = [self._drawn(spec.seed)[:enough]] * len(conversations)
        else:
            found = self._likeness.nearest([asked_text(c) for c in conversations], enough)
        shown = []
        for messages, places in zip(conversations, found, strict=True):
            own = self._answering.get(content_hash(messages), set())
            others = [self._rows[at] for at in places if at not in own][:num]
            shown.append(others if isinstance(spec, FixedExamples) else others[::-1])
        return shown

    def _drawn(self, seed: int) -> list[int]:
        """Return all rows in a random order: by their content, so that it stays as others come."""
        if seed not in self._orders:
            draws = [(sha256([seed, row.content_hash]), at) for at, row in enumerate(self._rows)]
            self._orders[seed] = [at for _, at in sorted(draws)]
        return self._orders[seed]

    @functools.cached_property
    def _likeness(self) -> "_Likeness":
        return _Likeness([asked_text(row.asked) for row in self._rows])


@functools.lru_cache(maxsize=1)
def _read(prompts: DatasetRef, root: str) -> GoldRows:
    """Read once for all chunks of a stage."""
    rows = []
    for batch in Store(root).batches(prompts, splits=("gold",)):
        for row in batch.select(["messages", "references", "content_hash"]).to_pylist():
            _, asked = split_system_turn(load_messages(row["messages"]))
            right = tuple(json.loads(row["references"]))
            rows.append(GoldRow(tuple(asked), right, row["content_hash"]))
    return GoldRows(rows)


def asked_text(messages: Sequence[Message]) -> str:
    """Return the text of a conversation without its system turn."""
    return "\n".join(turn["content"] for turn in split_system_turn(messages)[1])


class _Likeness:
    """How like texts are to others that are known beforehand."""

    def __init__(self, texts: Sequence[str]) -> None:
        """Index ``texts``."""
        self._columns: dict[str, int] = {}
        counted = [_grams(text) for text in texts]
        for grams in counted:
            for gram in grams:
                self._columns.setdefault(gram, len(self._columns))
        counts = self._matrix(counted)
        in_texts = np.bincount(counts.indices, minlength=len(self._columns))
        # As scikit-learn's TfidfVectorizer with sublinear_tf.
        self._idf = np.log((1 + len(texts)) / (1 + in_texts)) + 1
        weights = self._weighted(counts)
        norms = np.sqrt(weights.multiply(weights).sum(axis=1))
        weights.data /= np.repeat(norms, np.diff(weights.indptr))
        self._known = weights.T.tocsr()

    def nearest(self, texts: Sequence[str], num: int) -> list[list[int]]:
        """Return the ``num`` nearest known texts of each, nearest first, by their positions.

        Of equally near ones the first.
        """
        found: list[list[int]] = []
        for start in range(0, len(texts), _QUERIES):
            queries = self._matrix([_grams(text) for text in texts[start : start + _QUERIES]])
            likeness = (self._weighted(queries) @ self._known).toarray()
            found += [_highest(row, num) for row in likeness]
        return found

    def _matrix(self, counted: Sequence["Counter[str]"]) -> "csr_array":
        """Return how often each known gram is in each text."""
        from scipy.sparse import csr_array

        columns: list[int] = []
        counts: list[int] = []
        ends = [0]
        for grams in counted:
            known = [(self._columns[gram], n) for gram, n in grams.items() if gram in self._columns]
            columns += [column for column, _ in known]
            counts += [n for _, n in known]
            ends.append(len(columns))
        shape = (len(counted), len(self._columns))
        parts = np.array(counts, np.float64), np.array(columns, np.int32), np.array(ends, np.int64)
        return csr_array(parts, shape=shape)

    def _weighted(self, counts: "csr_array") -> "csr_array":
        weights = counts.copy()
        weights.data = (1 + np.log(counts.data)) * self._idf[counts.indices]
        return weights


def _grams(text: str) -> "Counter[str]":
    """Return the runs of three characters, case and white space aside.

    >>> sorted(_grams("An  egg"))
    [' an', ' eg', 'an ', 'egg', 'gg ', 'n e']
    """
    text = f" {' '.join(text.casefold().split())} "
    return Counter(text[at : at + _GRAM] for at in range(len(text) - _GRAM + 1))


def _highest(values: Any, num: int) -> list[int]:
    """Return the positions of the ``num`` highest values, highest first; of equal ones the first.

    >>> _highest(np.array([0.5, 0.9, 0.5, 0.1]), 2)
    [1, 0]
    """
    least = np.partition(values, -min(num, len(values)))[-min(num, len(values))]
    places = np.flatnonzero(values >= least)
    order = np.argsort(-values[places], kind="stable")
    found: list[int] = places[order][:num].tolist()
    return found
