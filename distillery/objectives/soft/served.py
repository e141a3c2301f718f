"""Soft targets from a served vLLM: probabilities of responses that are there, at T = 1."""

import contextlib
import logging
import time
import weakref
from collections.abc import Callable, Coroutine, Generator, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from distillery.data.chat import Message
from distillery.models.byte_offsets import TextBytes
from distillery.models.loading import ModelFiles
from distillery.models.vocabulary import tokenizer_hash
from distillery.objectives.soft.stored import Charged, ScoredRow, ScoringRow, SoftTargetMeta
from distillery.objectives.soft.vllm_api import (
    BYTES_PER_ENTRY,
    CannotShow,
    Probabilities,
    completions_body,
    read_probabilities,
    read_tokens,
    tokenize_body,
    tokenize_url,
)
from distillery.objectives.soft.vllm_client import VllmClient
from distillery.teacher.http.endpoint import Endpoint
from distillery.teacher.http.replies import PassingFault, RefusedRequest
from distillery.teacher.vllm.lease import Lease
from schemas.errors import RecipeError, TeacherError, TrainingError
from schemas.objectives import CrossTokenizer, Scored
from schemas.teacher import OpenAITeacher, VLLMTeacher

logger = logging.getLogger(__name__)

T = TypeVar("T")

# A reply is megabytes of JSON: 5 kB a token at k = 64.
_ROWS_AHEAD = 32
_BYTES_PER_TOKEN_ID = 16
_LOG_S = 30.0
_SMALL_REPLY_BYTES = 2**16


def check_served(
    teacher: OpenAITeacher,
    spec: Scored,
    row: ScoringRow,
    response_ids: list[int] | None = None,
) -> None:
    """Ask the server for the probabilities of one short row, before anything is spent.

    Args:
        teacher: Which server.
        spec: Which soft targets.
        row: Any prompt and response.
        response_ids: The tokens that the student is to write for this response. None: any; it is
            the tokenizer of ``spec`` that has to say the response with the server's tokens.

    Raises:
        RecipeError: Soft targets as ``spec`` says cannot be had from it; the text says why.
        TrainingError: Its chat template renders the prompt of a response differently.
        TeacherError: It does not answer, or refuses the key or the model.
    """
    scorer = ServedScorer(teacher, spec)
    try:
        scorer.probe(row, response_ids)
    finally:
        scorer.close()


class ServedTokens(NamedTuple):
    """A row as the server reads it."""

    ids: list[int]
    """Prompt, response, and what its template writes after that."""

    start: int
    """Where the response begins."""

    max_model_len: int | None
    """Tokens of the server's context, one that it has to write included; None: it does not say."""


class ServedScorer:
    """Scores responses with a vLLM server, which applies its own tokenizer and template.

    At most `teacher.concurrency` requests are in flight, and 32 rows under way.
    """

    def __init__(
        self, teacher: OpenAITeacher | VLLMTeacher, spec: Scored, *, backoff_s: float = 0.5
    ) -> None:
        """Describe the scorer; nothing is sent yet, but a server of our own is started.

        Args:
            teacher: Which server.
            spec: Which soft targets.
            backoff_s: First pause before a request is sent again; each next one is doubled.

        Raises:
            RecipeError: No server can give these soft targets, this one says that it is not vLLM,
                its address or key cannot be used, or the tokenizer of ``spec`` does not say which
                bytes its tokens stand for.
            TeacherError: A server of our own does not start.
        """
        check_settings(teacher, spec)
        tokenizer = served_tokenizer(spec, teacher)
        self._text = None if tokenizer is None else TextBytes(tokenizer)
        self.meta = SoftTargetMeta(
            tokenizer_hash=None if tokenizer is None else tokenizer_hash(tokenizer),
            distillation_temperature=1.0,
            k=spec.k,
        )
        self.charged = Charged()
        self._lease = Lease(teacher, while_waiting=_log_now_and_then())
        # A training keeps its scorer to the end, and may meet an error on the way.
        self._release = weakref.finalize(self, self._lease.release)
        self._teacher, self._k = self._lease.endpoint, spec.k
        self._endpoint = Endpoint(self._teacher)
        self._client = VllmClient(self._endpoint, backoff_s=backoff_s)

    def score(self, rows: Sequence[ScoringRow]) -> Generator[ScoredRow, None, None]:
        """Yield the scores in the order of ``rows``; rows longer than the context are left out.

        Raises:
            TeacherError: The server cannot show probabilities, has gone away, or refuses a row,
                which is named.
            TrainingError: Its chat template renders the prompt of a response differently.
        """
        with contextlib.closing(self._client.ahead(map(self._score, rows), _ROWS_AHEAD)) as scores:
            for scored in scores:
                if scored is not None:
                    yield scored

    def tokens(self, row: ScoringRow) -> ServedTokens | None:
        """Return how the server reads ``row``; None when it is longer than its context.

        Raises:
            TeacherError, TrainingError: As :meth:`score` does.
        """
        return next(self._client.ahead([self._named(row.prompt_id, self._tokenize(row))], 1))

    def probabilities(
        self, asked: Iterable[tuple[str, list[int], int]]
    ) -> Generator[Probabilities, None, None]:
        """Yield the teacher's probabilities of tokens, in order.

        Args:
            asked: A `prompt_id`, the tokens of prompt and response, and where the latter begins.

        Raises:
            TeacherError: As :meth:`score` does.
        """
        works = (self._named(name, self._probabilities(ids, start)) for name, ids, start in asked)
        with contextlib.closing(self._client.ahead(works, _ROWS_AHEAD)) as shown:
            yield from shown

    def obstacle(self, row: ScoringRow) -> str | None:
        """Return None: the server's template writes what it is given."""
        return None

    def probe(self, row: ScoringRow, response_ids: list[int] | None) -> None:
        """Do what scoring does, with one row. Errors are those of :func:`check_served`."""
        list(self._client.ahead([self._probe(row, response_ids)], 1))

    def close(self) -> None:
        """Close the connections; a server of our own ends, unless others use it."""
        self._client.close()
        self._release()

    async def _probe(self, row: ScoringRow, response_ids: list[int] | None) -> None:
        try:
            if tokens := await self._tokenize(row):
                self._refuse_other_tokens(row, tokens.ids[tokens.start :], response_ids)
                await self._probabilities(tokens.ids, tokens.start)
        except CannotShow as error:
            raise RecipeError(self._quote(error)) from None
        except RefusedRequest as error:
            raise RecipeError(
                f"endpoint '{self._endpoint}' refuses to show probabilities "
                f"({self._said(error)!r}). Serve the teacher with vLLM, or set "
                "training.objective.kind to hard_targets."
            ) from None
        except PassingFault as error:
            raise TeacherError(
                f"endpoint '{self._endpoint}' gave no answer to a short test in "
                f"{self._teacher.max_attempts} attempts; the last failed with "
                f"{self._said(error)!r}. Start the server, or correct teacher.base_url."
            ) from None

    def _refuse_other_tokens(
        self, row: ScoringRow, theirs: list[int], response_ids: list[int] | None
    ) -> None:
        if response_ids is not None and theirs[: len(response_ids)] != response_ids:
            raise RecipeError(
                f"the served teacher reads the response {row.response!r} as the tokens "
                f"{theirs[: len(response_ids)]}, and the student is to write {response_ids}, so "
                "probabilities cannot be compared token by token. Choose models that share a "
                "tokenizer, and give the student the teacher's chat template."
            )
        if self._text is not None and not self._text.says(theirs, row.response):
            raise RecipeError(
                f"the served teacher reads the response {row.response!r} as the tokens {theirs}, "
                "which say something else in the tokenizer of training.objective.tokenizer, so it "
                "is not the teacher's. Name the tokenizer that the server has."
            )

    async def _score(self, row: ScoringRow) -> ScoredRow | None:
        if (tokens := await self._named(row.prompt_id, self._tokenize(row))) is None:
            return None
        ids, start = tokens.ids, tokens.start
        shown = await self._named(row.prompt_id, self._probabilities(ids, start))
        starts = [] if self._text is None else self._text.starts(ids[start:], row.response)
        return ScoredRow(row.prompt_id, row.split, ids[start:], *shown, text_starts=starts)

    async def _named(self, prompt_id: str, asking: Coroutine[Any, Any, T]) -> T:
        """Return what comes of ``asking``; its failure names the row."""
        try:
            return await asking
        except CannotShow as error:
            raise TeacherError(self._quote(error)) from None
        except RefusedRequest as error:
            raise TeacherError(
                f"endpoint '{self._endpoint}' refuses to score the row with prompt_id "
                f"{prompt_id!r}: {self._said(error)!r}. Change what it objects to, or leave "
                "that row out."
            ) from None
        except PassingFault as error:
            raise self._gave_up(prompt_id, error) from None

    async def _tokenize(self, row: ScoringRow) -> ServedTokens | None:
        prompt, _ = await self._tokens(row, answered=False)
        whole, max_model_len = await self._tokens(row, answered=True)
        if whole[: len(prompt)] != prompt or len(whole) == len(prompt):
            whose = f"the prompt of prompt_id {row.prompt_id!r}" if row.prompt_id else "a prompt"
            raise TrainingError(
                f"the served chat template renders {whose} differently once the response follows, "
                "so the scores would belong to other tokens. Serve a template whose generation "
                "prompt is a prefix of the response."
            )
        # One more token has to be written after these.
        if max_model_len is not None and len(whole) >= max_model_len:
            return None
        return ServedTokens(whole, len(prompt), max_model_len)

    async def _tokens(self, row: ScoringRow, *, answered: bool) -> tuple[list[int], int | None]:
        answer = [Message(role="assistant", content=row.response)] if answered else []
        messages = [*row.messages, *answer]
        num_chars = sum(len(message["content"]) for message in messages)
        return await self._client.post(
            tokenize_url(self._endpoint),
            tokenize_body(self._teacher, messages, add_generation_prompt=not answered),
            read_tokens,
            num_bytes=_SMALL_REPLY_BYTES + _BYTES_PER_TOKEN_ID * num_chars,
        )

    async def _probabilities(self, ids: list[int], start: int) -> Probabilities:
        shown = await self._client.post(
            self._endpoint.route("completions"),
            completions_body(self._teacher, ids, self._k),
            lambda content: read_probabilities(content, ids, start, self._k),
            num_bytes=len(ids) * (self._k + 1) * BYTES_PER_ENTRY,
        )
        asked = self.charged  # no other coroutine runs in between
        self.charged = Charged(asked.requests + 1, asked.prompt_tokens + len(ids))
        return shown

    def _said(self, error: Exception) -> str:
        return self._endpoint.redact(str(error))

    def _quote(self, error: CannotShow) -> str:
        return f"endpoint '{self._endpoint}' {self._said(error)}"

    def _gave_up(self, prompt_id: str, error: PassingFault) -> TeacherError:
        return self._lease.why_it_ended() or TeacherError(
            f"endpoint '{self._endpoint}' did not score the row with prompt_id {prompt_id!r} in "
            f"{self._teacher.max_attempts} attempts; the last failed with {self._said(error)!r}. "
            "Scores of earlier parts are kept. Run again when it is well."
        )


def _log_now_and_then() -> Callable[[str], None]:
    """Return what logs twice a minute what a server does that has not started yet."""
    due = time.monotonic() + _LOG_S

    def log(note: str) -> None:
        nonlocal due
        if time.monotonic() >= due:
            due = time.monotonic() + _LOG_S
            logger.info(note)

    return log


def served_tokenizer(spec: Scored, teacher: OpenAITeacher | VLLMTeacher) -> Any:
    """Return the tokenizer of a served teacher; None where ``spec`` needs none.

    That of an endpoint is the one that ``spec`` names.

    Raises:
        RecipeError: It names none though it needs one, one of the hub that is not pinned, or one
            that cannot be loaded.
    """
    if not isinstance(spec, CrossTokenizer):
        return None
    if not teacher.is_hosted:
        return ModelFiles.of(teacher).tokenizer()
    if spec.tokenizer is None:
        raise RecipeError(
            "a served teacher does not say which bytes its tokens stand for. Name the folder or "
            "hub id of its tokenizer in training.objective.tokenizer."
        )
    if not Path(spec.tokenizer).expanduser().is_dir() and spec.tokenizer_revision is None:
        raise RecipeError(
            f"training.objective.tokenizer {spec.tokenizer!r} is not a folder, and as a hub id it "
            "has no pinned revision, so it could change under you. Set "
            "training.objective.tokenizer_revision to a commit hash."
        )
    return ModelFiles(spec.tokenizer, spec.tokenizer_revision).tokenizer()


def check_settings(teacher: OpenAITeacher | VLLMTeacher, spec: Scored) -> None:
    """Refuse what no server, or no server of this provider, can give; nothing is asked.

    Raises:
        RecipeError: That is so.
    """
    if teacher.is_hosted and "vllm" not in teacher.provider.lower():
        raise RecipeError(
            f"teacher.provider {teacher.provider!r} is not vLLM, and no other server shows the "
            "probabilities of a given response. Serve the teacher with vLLM, or set "
            "training.objective.kind to hard_targets."
        )
    if spec.distillation_temperature != 1:
        raise RecipeError(
            "training.objective.distillation_temperature is "
            f"{spec.distillation_temperature:g}, but a served teacher shows log-probabilities at "
            "T = 1, which cannot be tempered without the rest of the vocabulary. Set it to 1, or "
            "take a local teacher."
        )
