"""A teacher that is loaded here with transformers."""

import collections
import dataclasses
import gc
import itertools
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future

from distillery.models.local import LocalModel, LocalResponse
from distillery.storage.fingerprint import sha256
from distillery.teacher.attempts import Attempts
from distillery.teacher.protocol import (
    Activity,
    OnResponse,
    Request,
    Response,
    read_response,
    teacher_identity,
)
from distillery.teacher.thinking import ThoughtsOnly
from schemas.errors import TeacherError
from schemas.teacher import TransformersTeacher

# Apart by more than any sample index, so that no attempt draws what another sample draws.
_SEED_PER_SAMPLE = 1_000_003
_SEED_PER_ATTEMPT = 7_919 * _SEED_PER_SAMPLE


@dataclasses.dataclass
class _Loaded:
    """The models that this process holds, so that chunk tasks share a load.

    Beside each other are those of teachers that are open at once, such as the members of a panel.
    """

    models: dict[str, LocalModel] = dataclasses.field(default_factory=dict)
    in_use: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    """Open teachers, by the key of their model."""
    lock: threading.Lock = dataclasses.field(default_factory=threading.Lock)


_loaded = _Loaded()


def release_models() -> None:
    """Drop the loaded teacher, so that training in this process has the memory."""
    with _loaded.lock:
        _drop([*_loaded.models])


class LocalTeacher:
    """Answers with a model of this process, one batch at a time."""

    def __init__(self, spec: TransformersTeacher) -> None:
        """Describe the teacher; it is loaded when it is first asked."""
        self._spec = spec
        self._key: str | None = None
        self._in_flight = 0
        self._retries = 0
        self._thoughts = ThoughtsOnly(
            f"teacher {spec.model!r}",
            "switch thoughts off in teacher.chat_template_kwargs (often enable_thinking: false)",
        )

    @property
    def activity(self) -> Activity:
        """Return how many requests are in the batch that is being answered."""
        return Activity(
            in_flight=self._in_flight, limit=self._spec.batch_size, retries=self._retries
        )

    def answer(self, requests: Sequence[Request], on_response: OnResponse) -> None:
        """Answer all requests; a batch is kept for good before the next one is generated.

        Tasks that share the process wait for each other here. A sampled response without text is
        asked for again, one that breaks its schema is asked to be repaired. A prompt that leaves
        the model no room for an answer is `refused`.

        Raises:
            RecipeError: The model cannot be loaded, or its chat template refuses the messages.
            TeacherError: A batch does not fit into memory, or the model thinks and never responds.
        """
        if not requests:
            return
        with _loaded.lock:
            model = self.model()
            for _, alike in itertools.groupby(sorted(requests, key=_alike), key=_alike):
                left = [Attempts(request) for request in alike]
                while left:
                    left = self._round(model, left, on_response)

    def close(self) -> None:
        """Keep the model for the next one to ask; :func:`release_models` drops it."""
        if self._key is not None:
            _loaded.in_use[self._key] -= 1
            self._key = None

    def model(self) -> LocalModel:
        """Return the loaded model; one who shares the process holds its lock."""
        spec = self._spec
        if self._key is None:
            self._key = sha256({"identity": teacher_identity(spec), "device": spec.device})
            _loaded.in_use[self._key] += 1
        if self._key not in _loaded.models:
            # First, as two may not fit.
            _drop([key for key in _loaded.models if not _loaded.in_use[key]])
            _loaded.models[self._key] = LocalModel.of(spec, device=spec.device)
        return _loaded.models[self._key]

    def _round(
        self, model: LocalModel, asked: list[Attempts], on_response: OnResponse
    ) -> list[Attempts]:
        """Make one attempt at each, pass on what is final, and return the rest."""
        left: list[Attempts] = []
        self._retries += sum(attempts.count > 0 for attempts in asked)
        for batch in self._generate(model, asked):
            final = []
            for attempts, answer, latency_s in batch:
                response = _outcome(attempts, answer, latency_s, model.context_length)
                if response is None:
                    left.append(attempts)
                else:
                    final.append(response)
            for response in sorted(final, key=lambda response: not response.text):
                self._thoughts.check(response)
            _hand_over(final, on_response)
        return left

    def _generate(
        self, model: LocalModel, asked: list[Attempts]
    ) -> Iterator[list[tuple[Attempts, LocalResponse, float]]]:
        """Yield the answers to requests of the same sampling, batch by batch, with its seconds."""
        import torch

        request = asked[0].request
        sampling = request.sampling
        batches = model.stream(
            [attempts.messages for attempts in asked],
            max_new_tokens=sampling.max_new_tokens,
            batch_size=self._spec.batch_size,
            sampling_temperature=sampling.sampling_temperature,
            top_p=sampling.top_p,
            seed=sampling.seed
            + _SEED_PER_SAMPLE * request.sample_index
            + _SEED_PER_ATTEMPT * asked[0].count,
            with_log_probability=request.with_log_probability,
        )
        left = len(asked)
        while left:
            start = time.perf_counter()
            self._in_flight = min(left, self._spec.batch_size)
            try:
                batch = next(batches)
            except torch.OutOfMemoryError as error:
                raise TeacherError(
                    f"the GPU ran out of memory at teacher.batch_size={self._spec.batch_size}. "
                    "Responses so far are kept. Lower teacher.batch_size and run again."
                ) from error
            finally:
                self._in_flight = 0
            left -= len(batch)
            latency_s = time.perf_counter() - start
            yield [(asked[index], answer, latency_s) for index, answer in batch.items()]


def _alike(request: Request) -> tuple[float, ...]:
    """Return what requests of one batch have in common."""
    how = dataclasses.astuple(request.sampling)
    return (*how, request.sample_index, request.with_log_probability)


def _hand_over(responses: list[Response], on_response: OnResponse) -> None:
    """Hand responses over and wait until they are kept for good."""
    kept: list[Future[None]] = [on_response(response) for response in responses]
    for future in kept:
        future.result()


def _outcome(
    attempts: Attempts, said: LocalResponse, latency_s: float, context_length: int | None
) -> Response | None:
    """Return the final response to a request, or None when it is asked again."""
    request = attempts.request
    if said.completion_tokens == 0 and said.finish_reason == "length":  # no room for one
        if attempts.broken is not None:
            return attempts.final(attempts.broken)
        error = (
            f"the prompt has {said.prompt_tokens} tokens, and the teacher's context of "
            f"{context_length} leaves no room for an answer"
        )
        return Response(request, "refused", "", error=error)
    attempts.count += 1
    attempts.spend(said.prompt_tokens, said.completion_tokens)
    response = read_response(
        request,
        said.text,
        said.finish_reason,
        reasoning=said.reasoning or None,
        prompt_tokens=said.prompt_tokens,
        completion_tokens=said.completion_tokens,
        latency_s=latency_s,
        mean_log_probability=said.mean_log_probability,
    )
    # Greedy decoding repeats itself.
    return attempts.take(response, may_differ=request.sampling.sampling_temperature > 0)


def _drop(keys: list[str]) -> None:
    """Drop loaded models; the caller holds the lock."""
    if not keys:
        return
    for key in keys:
        del _loaded.models[key]
    gc.collect()
    if (torch := sys.modules.get("torch")) is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()
