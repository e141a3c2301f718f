r"""Soft targets in the store: what is kept of the teacher's probabilities at a response token.

The k most likely tokens with their log-probabilities at T = 1, and the log of the mass outside of
them at the distillation temperature T, log_rest(T). With logits z and kept tokens K,

    log p_i = z_i - logsumexp(z), so log p_i / T is z_i / T up to a constant of the token, and
    p_i(T) = exp(z_i/T) / sum_V exp(z_j/T)
           = exp(z_i/T) / sum_K exp(z_j/T)  *  sum_K exp(z_j/T) / sum_V exp(z_j/T)
           = softmax_K(log p / T)_i         *  (1 - exp(log_rest(T))).

That says the same as logits with logsumexp(z/T), but stays normalised although log p is rounded to
16 bits, and neither a small rest nor a small kept mass is a difference of large numbers. Without
log_rest(T) nothing could be tempered: the rest at T does not follow from the kept tokens.

Ids are sorted within a token and kept as differences, and numbers are stored byte plane by byte
plane: 195 bytes per token at k = 64 for ids spread evenly over a vocabulary of 151,936, less for
real ones, where plain numbers would take 392.
"""

import itertools
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import BaseModel, ConfigDict

from distillery.data.chat import Message
from distillery.models.vocabulary import tokenizer_hash
from schemas.errors import StoreError, TrainingError
from schemas.objectives import Scored
from schemas.refs import DatasetRef

if TYPE_CHECKING:
    from torch import Tensor

    from distillery.storage.stage import Attempt
    from distillery.storage.store import Store

_META_KEY = b"soft_targets"
_GROUP_TOKENS = 16_384  # per row group: a few MB in memory, long enough to compress well
_READ_ROWS = 64
_LOWEST = np.finfo(np.float16).min
STORED_ROUNDING = float(np.finfo(np.float16).eps)
"""How far a stored log-probability may be off, as a share of itself: twice what float16 rounds."""

_COLUMNS: dict[str, pa.DataType] = {
    "response_ids": pa.int32(),
    "id_steps": pa.int32(),
    "log_probs": pa.float16(),
    "log_rest": pa.float32(),
    "agreeing": pa.int32(),
    "text_starts": pa.int32(),
}
_ENCODINGS = dict.fromkeys((f"{name}.list.element" for name in _COLUMNS), "BYTE_STREAM_SPLIT")


class SoftTargetMeta(BaseModel):
    """What soft targets were made with; kept in the schema of their files."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    tokenizer_hash: str | None
    """Of the teacher's tokenizer. None: a server does not tell."""

    distillation_temperature: float
    """T at which the rest of the mass is kept."""

    k: int
    """Tokens that are kept per response token, the most likely ones."""


class ScoringRow(NamedTuple):
    """A row whose response the teacher is to score."""

    prompt_id: str
    split: str
    messages: list[Message]
    response: str


class ScoredRow(NamedTuple):
    """The teacher's probabilities along one response.

    N = response tokens, K = kept tokens.
    """

    prompt_id: str
    split: str

    response_ids: list[int]
    """The response as the teacher's tokenizer and template make tokens of it, N of them."""

    ids_NK: npt.NDArray[np.int32]
    """Token ids, distinct within a token; ascending when read."""

    log_probs_NK: npt.NDArray[np.floating[Any]]
    """Their log-probabilities at T = 1, nats. float16 when read."""

    log_rest_N: npt.NDArray[np.float32]
    """Log of the mass outside of them at T; -inf where there is none."""

    agreeing: tuple[int, ...] = ()
    """Of an average of several teachers: at how many of the N tokens each has the average's most
    likely token."""

    text_starts: Sequence[int] = ()
    """At which byte of the response's text each token begins; see `models.byte_offsets`. Empty: the
    teacher's tokenizer is not known."""


class Charged(NamedTuple):
    """What a served teacher has been asked for; each request also writes one token."""

    requests: int = 0
    prompt_tokens: int = 0


class Scorer(Protocol):
    """Who scores responses: a local model or a served one."""

    meta: SoftTargetMeta

    charged: Charged
    """What a server has answered so far. Of a local model nothing."""

    def score(self, rows: Sequence[ScoringRow]) -> Generator[ScoredRow, None, None]:
        """Yield the scores in the order of ``rows``.

        Left out are rows longer than the context, and those that have an :meth:`obstacle`.
        """

    def obstacle(self, row: ScoringRow) -> str | None:
        """Return why the chat format cannot write ``row``; None when it can, or a server does."""

    def close(self) -> None:
        """Let go of the model, or of connections."""


def write_targets(
    attempt: "Attempt", name: str, batches: Iterable[pa.RecordBatch], meta: SoftTargetMeta
) -> DatasetRef:
    """Write ``batches`` of :func:`to_batch` as output ``name`` of ``attempt``, one after the other.

    They are cut into row groups that are long enough to compress well and a few MB in memory.
    """
    uri = f"{attempt.uri}/{name}"
    with attempt.store.row_writer(uri, _schema(meta), encodings=_ENCODINGS) as writer:
        for batch in batches:
            num_tokens = len(batch["response_ids"].values)
            rows = max(1, batch.num_rows * _GROUP_TOKENS // max(1, num_tokens))
            for start in range(0, batch.num_rows, rows):
                writer.write(batch.slice(start, rows))
    ref = writer.ref(attempt.stage.fingerprint)
    attempt.outputs[name] = ref
    return ref


def _schema(meta: SoftTargetMeta) -> pa.Schema:
    return pa.schema(
        [("prompt_id", pa.string()), ("split", pa.string())]
        + [(column, pa.list_(kind)) for column, kind in _COLUMNS.items()],
        metadata={_META_KEY: meta.model_dump_json()},
    )


def to_batch(rows: Sequence[ScoredRow], meta: SoftTargetMeta) -> pa.RecordBatch:
    """Return ``rows`` as they are stored."""
    texts = [[row.prompt_id for row in rows], [row.split for row in rows]]
    lists = [
        _list_array([columns[at] for columns in map(_flat_columns, rows)], kind)
        for at, kind in enumerate(_COLUMNS.values())
    ]
    arrays = [*(pa.array(text, pa.string()) for text in texts), *lists]
    return pa.RecordBatch.from_arrays(arrays, schema=_schema(meta))


def _flat_columns(row: ScoredRow) -> list[npt.NDArray[Any]]:
    """Return the row's numbers in the order of _COLUMNS, sorted by id within each token."""
    assert len(row.response_ids) == len(row.ids_NK) == len(row.log_rest_N)
    order_NK = np.argsort(row.ids_NK, axis=1, kind="stable")

    def in_order(numbers_NK: npt.NDArray[Any]) -> npt.NDArray[Any]:
        return np.take_along_axis(numbers_NK, order_NK, axis=1)

    return [
        np.asarray(row.response_ids, np.int32),
        np.diff(in_order(row.ids_NK), axis=1, prepend=0).ravel().astype(np.int32),
        np.maximum(in_order(row.log_probs_NK), _LOWEST).ravel().astype(np.float16),
        row.log_rest_N.astype(np.float32),
        np.asarray(row.agreeing, np.int32),
        np.asarray(row.text_starts, np.int32),
    ]


def _list_array(parts: Sequence[npt.NDArray[Any]], kind: pa.DataType) -> pa.ListArray:
    offsets = np.cumsum([0, *(len(part) for part in parts)], dtype=np.int32)
    return pa.ListArray.from_arrays(offsets, pa.array(np.concatenate(parts) if parts else [], kind))


def read_meta(store: "Store", ref: DatasetRef) -> SoftTargetMeta:
    """Return what the soft targets ``ref`` were made with.

    Raises:
        StoreError: There are no soft targets at ``ref``.
    """
    kept = (store.dataset(ref).schema.metadata or {}).get(_META_KEY)
    if kept is None:
        raise StoreError(
            f"data set {store.path(ref.uri)!r} with columns {list(ref.columns)} holds no soft "
            "targets. Name the output of score_soft_targets."
        )
    return SoftTargetMeta.model_validate_json(kept)


def read_targets(
    store: "Store", ref: DatasetRef, splits: tuple[str, ...] | None = None
) -> Iterator[ScoredRow]:
    """Yield the rows of ``ref``, only those of ``splits`` when given, in order; streams."""
    meta = read_meta(store, ref)
    for batch in store.batches(ref, splits=splits, batch_rows=_READ_ROWS):
        yield from _to_rows(batch, meta)


def _to_rows(batch: pa.RecordBatch, meta: SoftTargetMeta) -> Iterator[ScoredRow]:
    names, of_splits = (batch.column(name).to_pylist() for name in ("prompt_id", "split"))
    columns = (_cut(batch.column(name)) for name in _COLUMNS)
    for name, split, *numbers in zip(names, of_splits, *columns, strict=True):
        response_ids, steps, log_probs, log_rest, agreeing, text_starts = numbers
        yield ScoredRow(
            name,
            split,
            response_ids.tolist(),
            np.cumsum(steps.reshape(-1, meta.k), axis=1, dtype=np.int32),
            log_probs.reshape(-1, meta.k),
            log_rest,
            tuple(agreeing.tolist()),
            text_starts.tolist(),
        )


def _cut(column: pa.ListArray) -> list[npt.NDArray[Any]]:
    """Return the lists of a column, without a copy."""
    offsets = column.offsets.to_numpy()
    values = column.values.to_numpy()
    return [values[start:stop] for start, stop in itertools.pairwise(offsets)]


def finder(store: "Store", ref: DatasetRef, split: str) -> Callable[[str], ScoredRow | None]:
    """Return what finds the rows of ``split`` in ``ref`` by their `prompt_id`; None: not scored.

    They have to be asked for in the order in which they are stored, each once at most.
    """
    names = {
        name
        for batch in store.batches(ref, splits=(split,))
        for name in batch.column("prompt_id").to_pylist()
    }
    rows = read_targets(store, ref, splits=(split,))

    def find(prompt_id: str) -> ScoredRow | None:
        if prompt_id not in names:
            return None
        return next((row for row in rows if row.prompt_id == prompt_id), None)

    return find


def check_meta(meta: SoftTargetMeta, *, spec: Scored, tokenizer: Any = None) -> None:
    """Refuse soft targets that a student with ``tokenizer`` cannot learn from as ``spec`` says.

    Where the teacher's tokenizer is not known, its token ids are compared row by row instead. No
    ``tokenizer``: the student may have any.

    Raises:
        TrainingError: Tokenizer, temperature or k differ.
    """
    ours = None if tokenizer is None else tokenizer_hash(tokenizer)
    if ours is not None and meta.tokenizer_hash not in (None, ours):
        raise TrainingError(
            f"the soft targets were made with the tokenizer {meta.tokenizer_hash:.12}, the "
            f"student has {ours:.12}, so the same id means another token. Choose a student that "
            "shares the teacher's tokenizer, or set training.objective.kind to hard_targets."
        )
    for setting in ("distillation_temperature", "k"):
        kept, wanted = getattr(meta, setting), getattr(spec, setting)
        if kept != wanted:
            raise TrainingError(
                f"the soft targets were made with {setting} {kept!r}, but "
                f"training.objective.{setting} is {wanted!r}. Rerun score_soft_targets with this "
                "setting."
            )


def at_temperature(
    log_probs_NK: "Tensor", log_rest_N: "Tensor", temperature: float
) -> tuple["Tensor", "Tensor"]:
    """Return the log-probabilities of the stored tokens at T, and that of the rest.

    Normalised, however the stored numbers were rounded: both sum to 1. See the module for the
    algebra.

    N = response tokens, K = stored tokens.

    Args:
        log_probs_NK: At T = 1, nats, any float dtype.
        log_rest_N: Log of the mass outside of them at ``temperature``; -inf where there is none.
        temperature: T > 0, no unit.

    Returns:
        [N, K] and [N], float32.

    >>> import torch
    >>> z = torch.tensor([[4.0, 2.0, 0.0]])
    >>> rest = torch.log_softmax(z / 2, -1)[:, 2]
    >>> log_p, _ = at_temperature(torch.log_softmax(z, -1)[:, :2], rest, 2.0)
    >>> torch.allclose(log_p, torch.log_softmax(z / 2, -1)[:, :2])
    True
    """
    import torch

    log_rest_N = log_rest_N.float()
    # log(1 - exp(x)) without cancellation near either end (Mächler 2012, the R package Rmpfr).
    log_kept_N = torch.where(
        log_rest_N > -0.6931,
        torch.log(-torch.expm1(log_rest_N)),
        torch.log1p(-torch.exp(log_rest_N)),
    )
    log_p_NK = torch.log_softmax(log_probs_NK.float() / temperature, dim=-1)
    return log_p_NK + log_kept_N[:, None], log_rest_N


def within_vocabulary(
    ids_NK: Any, log_probs_NK: Any, log_rest_N: Any, vocab_size: int
) -> tuple[Any, Any, Any]:
    """Return soft targets at T = 1 without tokens beyond the vocabulary.

    A server knows the model's padded vocabulary, not the tokenizer's. The mass of padding counts
    for nobody, so what is left is scaled up. In place of such a token stands one that is not among
    the others, with an equal share of the rest, as nothing else is known of it.

    >>> import numpy as np
    >>> shown = np.log(np.float32([[0.4, 0.2]]))  # of tokens 0 and 9; 0.4 are on other tokens
    >>> ids, log_probs, rest = within_vocabulary(np.array([[0, 9]]), shown, shown[:, 0], 5)
    >>> ids.tolist(), np.exp(log_probs).round(3).tolist(), np.exp(rest).round(3).tolist()
    ([[0, 1]], [[0.5, 0.125]], [0.375])
    """
    beyond_NK = ids_NK >= vocab_size
    if not beyond_NK.any():
        return ids_NK, log_probs_NK, log_rest_N
    ids_NK, log_probs_NK, log_rest_N = ids_NK.copy(), log_probs_NK.copy(), log_rest_N.copy()
    for n in np.flatnonzero(beyond_NK.any(axis=1)):
        at = np.flatnonzero(beyond_NK[n])
        num_others = vocab_size - (ids_NK.shape[1] - len(at))
        scale = -np.log1p(-np.exp(log_probs_NK[n, at].astype(np.float64)).sum())
        log_probs_NK[n] += scale
        log_probs_NK[n, at] = log_rest_N[n] + scale - np.log(num_others)
        log_rest_N[n] += scale + np.log1p(-len(at) / num_others)
        ids_NK[n, at] = np.setdiff1d(np.arange(vocab_size), ids_NK[n])[: len(at)]
    return ids_NK, log_probs_NK, log_rest_N
