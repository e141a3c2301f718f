"""Scores responses with a teacher of this process: one forward pass, no token is generated.

Logits exist for response tokens only, and never for more than one chunk of them at a time: at a
vocabulary of 151,936 those of a whole batch would take more memory than the model.

B = rows, T = longest row, N = response tokens of a batch, C = those of a chunk, D = width,
V = vocabulary.
"""

import contextlib
import gc
import inspect
from collections.abc import Generator, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from distillery.models.byte_offsets import TextBytes
from distillery.models.chat_format import IGNORED, TokenizedRow
from distillery.models.head import Head
from distillery.models.local import LocalModel
from distillery.models.output_layer import SplitModel, response_states
from distillery.models.vocabulary import tokenizer_hash, vocabulary_size
from distillery.objectives.soft.selection import likeliest_tokens
from distillery.objectives.soft.stored import Charged, ScoredRow, ScoringRow, SoftTargetMeta
from schemas.errors import DistilleryError, RecipeError, TeacherError
from schemas.objectives import Scored
from schemas.teacher import TransformersTeacher

_BATCH_TOKENS = 16_384  # filling included
CHUNK_LOGITS = 2**26  # 256 MiB in float32; selection takes up to five times that
_WEIGHT_ROWS = 16_384  # of the output layer, that are float32 at a time


class LocalScorer:
    """Scores with a transformers model of this process, which renders rows by its own template.

    Scores depend on what else is in a batch by no more than the rounding of the model's precision.
    """

    charged = Charged()

    def __init__(self, teacher: TransformersTeacher, spec: Scored) -> None:
        """Load ``teacher``.

        Raises:
            RecipeError: The model cannot be loaded, or its vocabulary has fewer than k tokens.
        """
        self._teacher, self._spec = teacher, spec
        self._local = LocalModel.of(teacher, device=teacher.device)
        tokenizer = self._local.tokenizer
        self._text: TextBytes | None = None
        with contextlib.suppress(RecipeError):  # cross_tokenizer needs it, and has asked before
            self._text = TextBytes(tokenizer)
        self._split = SplitModel(self._local.model)
        num_logits = len(self._local.model.get_output_embeddings().weight)
        # Some tokenizers have a token for padding that the model does not know.
        self.vocab_size = min(vocabulary_size(tokenizer), num_logits)
        if spec.k > self.vocab_size:
            raise RecipeError(
                f"training.objective.k is {spec.k}, but the vocabulary of teacher "
                f"{teacher.model!r} has {self.vocab_size} tokens. Set it to at most that."
            )
        self.meta = SoftTargetMeta(
            tokenizer_hash=tokenizer_hash(tokenizer),
            distillation_temperature=spec.distillation_temperature,
            k=spec.k,
        )

    def score(self, rows: Sequence[ScoringRow]) -> Generator[ScoredRow, None, None]:
        """Yield the scores in the order of ``rows``.

        Left out are rows longer than the context, and those that have an :meth:`obstacle`.

        Raises:
            TeacherError: A batch does not fit into memory, or logits are not finite.
        """
        written: list[tuple[ScoringRow, TokenizedRow]] = []
        for row in rows:
            with contextlib.suppress(DistilleryError):
                written.append((row, self.tokens(row)))
        fitting = [(row, tokens) for row, tokens in written if self.fits(tokens)]
        scored: dict[int, ScoredRow] = {}
        for batch in batches([len(tokens.input_ids) for _, tokens in fitting], self.most_rows):
            with memory_errors(self._teacher.batch_size):
                found = self._score_batch([fitting[n] for n in batch])
            scored |= zip(batch, found, strict=True)
        for n in sorted(scored):
            yield scored[n]

    def obstacle(self, row: ScoringRow) -> str | None:
        """Return why the teacher's chat format cannot write ``row``; None when it can."""
        try:
            self.tokens(row)
        except DistilleryError as error:
            return str(error)
        return None

    def tokens(self, row: ScoringRow) -> TokenizedRow:
        """Return how the teacher reads ``row``.

        Raises:
            RecipeError, TrainingError: Its chat format cannot write it.
        """
        return self._local.chat_format.row(row.messages, row.response)

    def fits(self, tokens: TokenizedRow) -> bool:
        """Return whether a row is within the teacher's context."""
        limit = self._local.context_length
        return limit is None or len(tokens.input_ids) <= limit

    @property
    def most_rows(self) -> int:
        """Return how many rows share a forward pass."""
        return 1 if self._split.holds_logits else self._teacher.batch_size

    def close(self) -> None:
        """Drop the model, so that training in this process has the memory."""
        del self._local, self._split
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _score_batch(self, rows: list[tuple[ScoringRow, TokenizedRow]]) -> list[ScoredRow]:
        chunks = []
        k, temperature = self._spec.k, self._spec.distillation_temperature
        size = max(1, CHUNK_LOGITS // self.vocab_size)
        with torch.inference_mode():
            for logits_CV in self.logits(rows, size):
                kept = likeliest_tokens(logits_CV, k, temperature)
                chunks.append([part.cpu() for part in kept])
        return [
            scored._replace(text_starts=self._text_starts(scored.response_ids, row.response))
            for scored, (row, _) in zip(scored_rows(rows, chunks), rows, strict=True)
        ]

    def _text_starts(self, ids: list[int], response: str) -> list[int]:
        return [] if self._text is None else self._text.starts(ids, response)

    def logits(
        self, rows: Sequence[tuple[ScoringRow, TokenizedRow]], size: int
    ) -> Iterator[Tensor]:
        """Yield the logits of the response tokens in float32, ``size`` at a time, [C, V].

        Those of the vocabulary's padding are cut off.

        Raises:
            TeacherError: They are not finite.
        """
        for logits_CV in self._logits([tokens for _, tokens in rows], size):
            self._refuse_broken(logits_CV, [row for row, _ in rows])
            yield logits_CV

    def _logits(self, rows: list[TokenizedRow], size: int) -> Iterator[Tensor]:
        device = self._local.model.device

        def padded(lists: list[list[int]], filling: int) -> Tensor:
            tensors = [torch.tensor(ids) for ids in lists]
            return pad_sequence(tensors, batch_first=True, padding_value=filling).to(device)

        ids_BT = padded([row.input_ids for row in rows], 0)
        mask_BT = padded([[1] * len(row.input_ids) for row in rows], 0)
        labels_BT = padded([row.labels for row in rows], IGNORED)
        if self._split.holds_logits:
            logits_NV = self._own_logits(ids_BT, labels_BT[:, 1:] != IGNORED)
            yield from (chunk.float() for chunk in torch.split(logits_NV, size))
            return
        batch = {"input_ids": ids_BT, "attention_mask": mask_BT}
        hidden_ND = response_states(self._local.model, batch, labels_BT)
        for hidden_CD in torch.split(hidden_ND, size):
            yield _float_logits(hidden_CD, self._split.head, self.vocab_size)

    def _own_logits(self, ids_BT: Tensor, is_asked_BT: Tensor) -> Tensor:
        """Return the logits [N, V] as the model makes them, of the response tokens of one row."""
        model = self._local.model
        first = int(is_asked_BT[0].nonzero()[0])
        named = inspect.signature(model.forward).parameters
        few = {"logits_to_keep": ids_BT.shape[1] - first} if "logits_to_keep" in named else {}
        logits_TV = model(input_ids=ids_BT, use_cache=False, **few).logits[0]
        kept_TV = logits_TV[-(ids_BT.shape[1] - first) : -1, : self.vocab_size]
        asked: Tensor = kept_TV[is_asked_BT[0, first:]]
        return asked

    def _refuse_broken(self, logits_CV: Tensor, rows: list[ScoringRow]) -> None:
        if not bool(logits_CV.amax(-1).isfinite().all()):  # NaN is the highest of all
            raise TeacherError(
                f"teacher {self._teacher.model!r} gives logits that are not finite in "
                f"{self._teacher.dtype}, among rows {rows[0].prompt_id!r} to "
                f"{rows[-1].prompt_id!r}. Set teacher.dtype to float32 or bfloat16."
            )


def _float_logits(hidden_CD: Tensor, head: Head, vocab_size: int) -> Tensor:
    """Return the logits [C, V] in float32, whatever the precision of the layer.

    Half precision would round logits near 20 to steps of 0.125. A float32 copy of the whole layer
    would take gigabytes, so it is made a part at a time.
    """
    weight_VD, bias_V = head
    assert weight_VD is not None
    hidden_CD = hidden_CD.float()
    logits_CV = hidden_CD.new_empty(len(hidden_CD), vocab_size)
    for start in range(0, vocab_size, _WEIGHT_ROWS):
        part = slice(start, min(start + _WEIGHT_ROWS, vocab_size))
        bias = None if bias_V is None else bias_V[part].float()
        logits_CV[:, part] = torch.nn.functional.linear(hidden_CD, weight_VD[part].float(), bias)
    return logits_CV


def batches(lengths: Sequence[int], most_rows: int) -> Iterator[list[int]]:
    """Yield the positions of rows that share a forward pass, longest first.

    A batch that does not fit into memory so shows at once.
    """
    batch: list[int] = []
    for n in sorted(range(len(lengths)), key=lambda n: (-lengths[n], n)):
        is_full = len(batch) == most_rows
        if batch and (is_full or (len(batch) + 1) * lengths[batch[0]] > _BATCH_TOKENS):
            yield batch
            batch = []
        batch.append(n)
    if batch:
        yield batch


@contextlib.contextmanager
def memory_errors(batch_size: int) -> Iterator[None]:
    """Say what to do when memory runs out inside."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise TeacherError(
            "the GPU ran out of memory while responses were scored at teacher.batch_size="
            f"{batch_size}. Lower teacher.batch_size and run again."
        ) from error


def scored_rows(
    rows: Sequence[tuple[ScoringRow, TokenizedRow]], chunks: Sequence[Sequence[Tensor]]
) -> list[ScoredRow]:
    """Return what was kept of a batch, by row.

    Args:
        rows: Those of the batch.
        chunks: Ids [C, K], log-probabilities [C, K] and log of the rest [C] of its response tokens,
            a chunk after the other.
    """
    starts = np.cumsum([tokens.num_response_tokens for _, tokens in rows])[:-1]
    by_row = [np.split(torch.cat(parts).numpy(), starts) for parts in zip(*chunks, strict=True)]
    return [
        ScoredRow(
            row.prompt_id,
            row.split,
            tokens.response_ids,
            ids_NK.astype(np.int32),
            log_probs_NK,
            log_rest_N,
        )
        for (row, tokens), ids_NK, log_probs_NK, log_rest_N in zip(rows, *by_row, strict=True)
    ]
