"""Who scores a row: the teacher, one teacher of several, or all of them together.

C = tokens of a chunk, V = vocabulary that all teachers know, M = teachers.
"""

import contextlib
import math
from abc import ABC, abstractmethod
from collections import Counter, defaultdict
from collections.abc import Generator, Sequence

import torch
from torch import Tensor

from distillery.models.chat_format import TokenizedRow
from distillery.models.hardware import available_memory, resolve_device
from distillery.models.loading import ModelFiles
from distillery.objectives.one_vocabulary import refuse_other_tokens
from distillery.objectives.soft.local import (
    CHUNK_LOGITS,
    LocalScorer,
    batches,
    memory_errors,
    scored_rows,
)
from distillery.objectives.soft.panel import Member, route
from distillery.objectives.soft.selection import likeliest_tokens
from distillery.objectives.soft.stored import Charged, ScoredRow, Scorer, ScoringRow, SoftTargetMeta
from distillery.teacher.prompt import TeacherPrompt
from schemas.errors import DistilleryError, TeacherError
from schemas.objectives import Scored, SoftTargets
from schemas.teacher import TeacherSpec
from schemas.units import bytes_text


def open_scorers(
    of: Sequence[Member], soft: Scored, prompts: Sequence[TeacherPrompt]
) -> "PanelScorer":
    """Return who scores rows, each behind its teacher's prompt; local models are loaded.

    Raises:
        RecipeError: A teacher cannot show what ``soft`` asks for.
        TeacherError: The local models do not fit into memory together.
    """
    check_room([each.teacher for each in of])
    if isinstance(soft, SoftTargets) and len(of) > 1 and soft.combine == "average":
        return AveragedScorer(of, soft, prompts)
    return RoutedScorer(of, soft, prompts)


class PanelScorer(ABC):
    """What scorers of several teachers have in common; one alone is a panel of itself."""

    def __init__(
        self, of: Sequence[Member], scorers: Sequence[Scorer], prompts: Sequence[TeacherPrompt]
    ) -> None:
        """Take the teachers, in one order."""
        self._members, self._scorers, self._prompts = of, scorers, prompts
        # Token ids are compared row by row where one teacher's tokenizer is not told.
        hashes = {scorer.meta.tokenizer_hash for scorer in scorers}
        known = hashes.pop() if len(hashes) == 1 else None
        self.meta: SoftTargetMeta = scorers[0].meta.model_copy(update={"tokenizer_hash": known})

    def charged(self) -> list[Charged]:
        """Return what each of the teachers has been asked for so far."""
        return [scorer.charged for scorer in self._scorers]

    @abstractmethod
    def readers(self, row: ScoringRow) -> Sequence[int]:
        """Return which of the teachers read ``row``."""

    @abstractmethod
    def score(self, rows: Sequence[ScoringRow]) -> Generator[ScoredRow, None, None]:
        """Yield the scores in the order of ``rows``, which have no teacher's prompt yet.

        Left out are rows longer than the context, and those that have an :meth:`obstacle`.
        """

    @abstractmethod
    def obstacle(self, row: ScoringRow) -> str | None:
        """Return why a teacher's chat format cannot write ``row``; None when all can."""

    def close(self) -> None:
        """Let go of models and connections."""
        for scorer in self._scorers:
            scorer.close()

    def _told(self, at: int, rows: Sequence[ScoringRow]) -> list[ScoringRow]:
        """Return ``rows`` as one of the teachers reads them."""
        laid = self._prompts[at].around([row.messages for row in rows])
        return [row._replace(messages=each) for row, each in zip(rows, laid, strict=True)]


class RoutedScorer(PanelScorer):
    """Has each row scored by one teacher."""

    def __init__(
        self, of: Sequence[Member], soft: Scored, prompts: Sequence[TeacherPrompt]
    ) -> None:
        """Open all teachers."""
        with contextlib.ExitStack() as opened:
            scorers = []
            for each in of:
                scorers.append(_open(each.teacher, soft))
                opened.callback(scorers[-1].close)
            super().__init__(of, scorers, prompts)
            opened.pop_all()

    def readers(self, row: ScoringRow) -> Sequence[int]:
        """Return the one that scores it."""
        return [route(self._members, row.messages)]

    def score(self, rows: Sequence[ScoringRow]) -> Generator[ScoredRow, None, None]:
        """Yield the scores in the order of ``rows``; errors are those of the teachers."""
        by_teacher: dict[int, list[int]] = defaultdict(list)
        for n, row in enumerate(rows):
            by_teacher[self.readers(row)[0]].append(n)
        found: dict[int, ScoredRow] = {}
        for at, numbers in by_teacher.items():
            places = {rows[n].prompt_id: n for n in numbers}
            for scored in self._scorers[at].score(self._told(at, [rows[n] for n in numbers])):
                found[places[scored.prompt_id]] = scored
        for n in sorted(found):
            yield found[n]

    def obstacle(self, row: ScoringRow) -> str | None:
        """Return why its teacher's chat format cannot write ``row``; None when it can."""
        [at] = self.readers(row)
        return self._scorers[at].obstacle(self._told(at, [row])[0])


class AveragedScorer(PanelScorer):
    """Scores with the weighted average of all probabilities of local models.

    The logarithm of the average stands for the logits: at another temperature than 1 the average
    is tempered, not each teacher.
    """

    def __init__(
        self, of: Sequence[Member], soft: SoftTargets, prompts: Sequence[TeacherPrompt]
    ) -> None:
        """Load all models."""
        self._soft, self._locals = soft, [_local(each.teacher, soft) for each in of]
        super().__init__(of, self._locals, prompts)
        self._vocab_size = min(scorer.vocab_size for scorer in self._locals)
        self._log_weights = [math.log(each.weight) for each in of]

    def readers(self, row: ScoringRow) -> Sequence[int]:
        """Return all of them."""
        return range(len(self._members))

    def score(self, rows: Sequence[ScoringRow]) -> Generator[ScoredRow, None, None]:
        """Yield the scores in the order of ``rows``.

        Raises:
            TeacherError: A batch does not fit into memory, or logits are not finite.
        """
        told = [self._told(at, rows) for at in range(len(self._members))]
        written: list[list[tuple[ScoringRow, TokenizedRow]]] = []
        for versions in zip(*told, strict=True):
            with contextlib.suppress(DistilleryError):
                read = self._read(versions)
                if all(s.fits(t) for s, (_, t) in zip(self._locals, read, strict=True)):
                    written.append(read)
        lengths = [max(len(tokens.input_ids) for _, tokens in read) for read in written]
        most = min(scorer.most_rows for scorer in self._locals)
        scored: dict[int, ScoredRow] = {}
        for batch in batches(lengths, most):
            with memory_errors(most):
                scored |= zip(batch, self._score_batch([written[n] for n in batch]), strict=True)
        for n in sorted(scored):
            yield scored[n]

    def obstacle(self, row: ScoringRow) -> str | None:
        """Return why it cannot be written by all in the same tokens; None when it can."""
        try:
            self._read([self._told(at, [row])[0] for at in range(len(self._members))])
        except DistilleryError as error:
            return str(error)
        return None

    def _read(self, versions: Sequence[ScoringRow]) -> list[tuple[ScoringRow, TokenizedRow]]:
        """Return one row as each teacher reads it; the tokens of the response are the same."""
        read = [(row, s.tokens(row)) for s, row in zip(self._locals, versions, strict=True)]
        for row, tokens in read[1:]:
            refuse_other_tokens(row.prompt_id, read[0][1].response_ids, tokens.response_ids)
        return read

    def _score_batch(
        self, written: Sequence[list[tuple[ScoringRow, TokenizedRow]]]
    ) -> list[ScoredRow]:
        chunks, agreeing = [], []
        size = max(1, CHUNK_LOGITS // (self._vocab_size * len(self._locals)))
        by_teacher = list(zip(*written, strict=True))
        with torch.inference_mode():
            made = (s.logits(rows, size) for s, rows in zip(self._locals, by_teacher, strict=True))
            for logits in zip(*made, strict=True):
                mixture_CV, agreeing_MC = mixture(
                    [logits_CV[:, : self._vocab_size] for logits_CV in logits], self._log_weights
                )
                kept = likeliest_tokens(
                    mixture_CV, self._soft.k, self._soft.distillation_temperature
                )
                chunks.append([part.cpu() for part in kept])
                agreeing.append(agreeing_MC.cpu())
        rows = scored_rows(by_teacher[0], chunks)
        sizes = [len(row.response_ids) for row in rows]
        counts = [part.sum(1).tolist() for part in torch.cat(agreeing, 1).split(sizes, 1)]
        return [row._replace(agreeing=tuple(n)) for row, n in zip(rows, counts, strict=True)]


def mixture(logits: Sequence[Tensor], log_weights: Sequence[float]) -> tuple[Tensor, Tensor]:
    """Return log Σ wᵢ pᵢ of teachers with these logits, [C, V], and who has its most likely token.

    Never more than three tensors of that size besides the logits.

    Returns:
        The mixture, and bool [M, C].

    >>> both = [torch.tensor([[3.0, 1.0]]).log(), torch.tensor([[1.0, 7.0]]).log()]
    >>> mixed, agrees = mixture(both, [math.log(0.5)] * 2)
    >>> mixed.exp().round(decimals=4).tolist(), agrees.tolist()
    ([[0.4375, 0.5625]], [[False], [True]])
    """
    device = logits[0].device
    best_MC = torch.stack([each_CV.argmax(-1).to(device) for each_CV in logits])
    mixed_CV: Tensor | None = None
    for each_CV, log_weight in zip(logits, log_weights, strict=True):
        log_p_CV = each_CV.log_softmax(-1).to(device).add_(log_weight)
        if mixed_CV is None:
            mixed_CV = log_p_CV
        else:
            torch.logaddexp(mixed_CV, log_p_CV, out=mixed_CV)
    assert mixed_CV is not None
    return mixed_CV, best_MC == mixed_CV.argmax(-1)


def check_room(teachers: Sequence[TeacherSpec]) -> None:
    """Return when the weights of the local ones fit into memory together.

    Raises:
        TeacherError: They do not, with what they take.
    """
    needed: Counter[str] = Counter()
    local = [each for each in teachers if not each.is_served]
    for each in local:
        needed[str(resolve_device(each.device))] += ModelFiles.of(each).loaded_bytes(each.dtype)
    for device, num_bytes in needed.items():
        room = available_memory(device)
        if len(local) > 1 and num_bytes > room:
            raise TeacherError(
                f"the {len(local)} local teachers take {bytes_text(num_bytes)} of memory together, "
                f"but {device} has {bytes_text(room)}. Leave one out of training.objective.panel, "
                "or set its dtype to bfloat16."
            )


def _open(teacher: TeacherSpec, soft: Scored) -> Scorer:
    if teacher.is_served:
        from distillery.objectives.soft.served import ServedScorer

        return ServedScorer(teacher, soft)
    return LocalScorer(teacher, soft)


def _local(teacher: TeacherSpec, soft: SoftTargets) -> LocalScorer:
    assert not teacher.is_served  # panel_obstacle made sure
    return LocalScorer(teacher, soft)
