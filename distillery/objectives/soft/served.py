"""Soft targets from a served vLLM: probabilities of responses that are there, at T = 1."""

import contextlib
from collections.abc import Generator, Iterable, Iterator, Sequence
from typing import NamedTuple

from distillery.data.chat import Message
from distillery.objectives.soft.stored import ScoredRow, ScoringRow, SoftTargetMeta
from distillery.objectives.soft.vllm_api import (
    BYTES_PER_ENTRY,
    Addresses,
    CannotShow,
    Probabilities,
    Tokens,
    TooMuch,
    completions_body,
    read_probabilities,
    read_tokens,
    tokenize_body,
)
from distillery.objectives.soft.vllm_client import VllmClient
from distillery.storage.fingerprint import canonical_json
from distillery.teacher.http.endpoint import Endpoint
from distillery.teacher.http.replies import PassingFault, RefusedRequest
from distillery.teacher.protocol import teacher_identity
from schemas.errors import RecipeError, TeacherError, TrainingError
from schemas.objectives import SoftTargets
from schemas.teacher import OpenAITeacher

# The reply to one request, JSON: 3,200 tokens at k = 64. vLLM cuts its work itself.
_REPLY_BYTES = 16 * 2**20
_BATCHES_AHEAD = 4
_BYTES_PER_TOKEN_ID = 16
_SMALL_REPLY_BYTES = 2**16


class _Row(NamedTuple):
    """A row as the served model reads it."""

    prompt_id: str
    split: str
    ids: list[int]
    start: int
    """Where the response begins."""


def check_served(
    teacher: OpenAITeacher, spec: SoftTargets, row: ScoringRow, response_ids: list[int]
) -> None:
    """Ask the server for the probabilities of one short row, before anything is spent.

    Args:
        teacher: Which server.
        spec: Which soft targets.
        row: Any prompt and response.
        response_ids: The tokens that the student is to write for this response.

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


class ServedScorer:
    """Scores responses with a vLLM server, which applies its own tokenizer and template.

    A request that the server cannot bear, or refuses, is halved until it passes or until one row
    is left. What is under way is bounded: `teacher.concurrency` requests, and four batches of rows.
    """

    def __init__(
        self, teacher: OpenAITeacher, spec: SoftTargets, *, backoff_s: float = 0.5
    ) -> None:
        """Describe the scorer; nothing is sent yet.

        Args:
            teacher: Which server.
            spec: Which soft targets.
            backoff_s: First pause before a request is sent again; each next one is doubled.

        Raises:
            RecipeError: No server can give these soft targets, this one says that it is not vLLM,
                or its address or key cannot be used.
        """
        _check_settings(teacher, spec)
        self.meta = SoftTargetMeta(
            teacher=canonical_json(teacher_identity(teacher)),
            tokenizer_hash=None,
            distillation_temperature=1.0,
            selection="top_k",
            k=spec.k,
        )
        self._teacher, self._k = teacher, spec.k
        self._endpoint = Endpoint(teacher)
        self._addresses = Addresses(self._endpoint)
        self._client = VllmClient(self._endpoint, backoff_s=backoff_s)
        self._bytes_per_token = (spec.k + 1) * BYTES_PER_ENTRY
        self._most_tokens = max(1, _REPLY_BYTES // self._bytes_per_token)

    def score(self, rows: Sequence[ScoringRow]) -> Generator[ScoredRow, None, None]:
        """Yield the scores in the order of ``rows``; rows longer than the context are left out.

        Raises:
            TeacherError: The server cannot show probabilities, has gone away, or refuses a row,
                which is named.
            TrainingError: Its chat template renders the prompt of a response differently.
        """
        tokenizing = self._client.ahead(map(self._tokenize, rows), self._teacher.concurrency)
        with contextlib.closing(tokenizing) as tokenized:
            works = map(self._score, self._batches(row for row in tokenized if row is not None))
            try:
                for scored in self._client.ahead(works, _BATCHES_AHEAD):
                    yield from scored
            except CannotShow as error:
                raise TeacherError(self._quote(error)) from None

    def probe(self, row: ScoringRow, response_ids: list[int]) -> None:
        """Do what scoring does, with one row. Errors are those of :func:`check_served`."""
        list(self._client.ahead([self._probe(row, response_ids)], 1))

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    async def _probe(self, row: ScoringRow, response_ids: list[int]) -> None:
        try:
            if read := await self._read(row):
                theirs = read.ids[read.start :][: len(response_ids)]
                if theirs != response_ids:
                    raise RecipeError(
                        f"the served teacher reads the response {row.response!r} as the tokens "
                        f"{theirs}, and the student is to write {response_ids}, so probabilities "
                        "cannot be compared token by token. Choose models that share a tokenizer, "
                        "and give the student the teacher's chat template."
                    )
                await self._probabilities([read])
        except CannotShow as error:
            raise RecipeError(self._quote(error)) from None
        except RefusedRequest as error:
            raise RecipeError(
                f"endpoint '{self._addresses}' refuses to show probabilities "
                f"({self._said(error)!r}). Serve the teacher with vLLM, or set "
                "training.objective.kind to hard_targets."
            ) from None
        except PassingFault as error:
            raise self._gave_up([row.prompt_id], error) from None

    # -- one row becomes tokens --------------------------------------------------------------

    async def _tokenize(self, row: ScoringRow) -> _Row | None:
        """Return the row as tokens; None when it is longer than the server's context."""
        try:
            return await self._read(row)
        except RefusedRequest as error:
            raise self._refused(row.prompt_id, error) from None
        except PassingFault as error:
            raise self._gave_up([row.prompt_id], error) from None

    async def _read(self, row: ScoringRow) -> _Row | None:
        prompt = (await self._tokens(row, answered=False)).ids
        whole, max_model_len = await self._tokens(row, answered=True)
        if whole[: len(prompt)] != prompt or len(whole) == len(prompt):
            raise TrainingError(
                f"the served chat template renders the prompt of prompt_id {row.prompt_id!r} "
                "differently once the response follows, so the scores would belong to other "
                "tokens. Serve a template whose generation prompt is a prefix of the response."
            )
        # One more token has to be written after these.
        if max_model_len is not None and len(whole) >= max_model_len:
            return None
        return _Row(row.prompt_id, row.split, whole, len(prompt))

    async def _tokens(self, row: ScoringRow, *, answered: bool) -> Tokens:
        answer = [Message(role="assistant", content=row.response)] if answered else []
        messages = [*row.messages, *answer]
        num_chars = sum(len(message["content"]) for message in messages)
        return await self._client.post(
            self._addresses.tokenize,
            tokenize_body(self._teacher, messages, add_generation_prompt=not answered),
            read_tokens,
            num_bytes=_SMALL_REPLY_BYTES + _BYTES_PER_TOKEN_ID * num_chars,
        )

    # -- several rows become scores ----------------------------------------------------------

    def _batches(self, rows: Iterable[_Row]) -> Iterator[list[_Row]]:
        """Yield neighbouring rows with as many tokens as one request may have, or single rows."""
        batch: list[_Row] = []
        for row in rows:
            num_tokens = sum(len(other.ids) for other in batch) + len(row.ids)
            if batch and num_tokens > self._most_tokens:
                yield batch
                batch = []
            batch.append(row)
        if batch:
            yield batch

    async def _score(self, rows: list[_Row]) -> list[ScoredRow]:
        """Return the scores of ``rows``, asked for together or in halves."""
        try:
            return [
                ScoredRow(row.prompt_id, row.split, row.ids[row.start :], *shown)
                for row, shown in zip(rows, await self._probabilities(rows), strict=True)
            ]
        except RefusedRequest as error:
            if len(rows) == 1:
                raise self._refused(rows[0].prompt_id, error) from None
        except PassingFault as error:
            if len(rows) == 1 or not isinstance(error, TooMuch):
                raise self._gave_up([row.prompt_id for row in rows], error) from None
            # What did not fit now would not fit the next time.
            num_tokens = sum(len(row.ids) for row in rows)
            self._most_tokens = max(1, min(self._most_tokens, num_tokens // 2))
        middle = len(rows) // 2
        return [*await self._score(rows[:middle]), *await self._score(rows[middle:])]

    async def _probabilities(self, rows: list[_Row]) -> list[Probabilities]:
        prompts, starts = [row.ids for row in rows], [row.start for row in rows]
        num_bytes = sum(len(ids) for ids in prompts) * self._bytes_per_token
        return await self._client.post(
            self._addresses.completions,
            completions_body(self._teacher, prompts, self._k),
            lambda content: read_probabilities(content, prompts, starts, self._k),
            num_bytes=num_bytes,
            is_divisible=len(rows) > 1,
        )

    # -- what is said of failures ------------------------------------------------------------

    def _said(self, error: Exception) -> str:
        return self._endpoint.redact(str(error))

    def _quote(self, error: CannotShow) -> str:
        return f"endpoint '{self._addresses}' {self._said(error)}"

    def _refused(self, prompt_id: str, error: RefusedRequest) -> TeacherError:
        return TeacherError(
            f"endpoint '{self._addresses}' refuses to score the row with prompt_id {prompt_id!r}: "
            f"{self._said(error)!r}. Change what it objects to, or leave that row out."
        )

    def _gave_up(self, prompt_ids: list[str], error: PassingFault) -> TeacherError:
        others = f" and {len(prompt_ids) - 1} more" if len(prompt_ids) > 1 else ""
        return TeacherError(
            f"endpoint '{self._addresses}' did not score the row with prompt_id {prompt_ids[0]!r}"
            f"{others} in {self._teacher.max_attempts} attempts; the last failed with "
            f"{self._said(error)!r}. Scores of earlier parts are kept. Run again when it is well."
        )


def _check_settings(teacher: OpenAITeacher, spec: SoftTargets) -> None:
    """Refuse what no server, or no server of this provider, can give."""
    if "vllm" not in teacher.provider.lower():
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
    if spec.selection != "top_k":
        raise RecipeError(
            f"training.objective.selection {spec.selection!r} needs all of the teacher's "
            "probabilities, of which a served teacher shows the largest. Set it to top_k, or "
            "take a local teacher."
        )
