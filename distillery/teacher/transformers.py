"""A teacher that is loaded here with transformers."""

import contextlib
import dataclasses
import gc
import itertools
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from distillery.fingerprint import sha256
from distillery.local_model import Answer, LocalModel
from distillery.teacher.protocol import (
    Request,
    Response,
    Unfinished,
    response_state,
    teacher_identity,
)
from schemas.errors import TeacherError
from schemas.teacher import TransformersTeacher


@dataclasses.dataclass
class _Loaded:
    """The one model that this process holds, so that chunk tasks share a load."""

    key: str | None = None
    model: LocalModel | None = None
    lock: threading.Lock = dataclasses.field(default_factory=threading.Lock)


_loaded = _Loaded()


def release_models() -> None:
    """Drop the loaded teacher, so that training in this process has the memory."""
    with _loaded.lock:
        _drop()


class LocalTeacher:
    """Answers with a model of this process, one batch at a time."""

    def __init__(self, spec: TransformersTeacher) -> None:
        """Describe the teacher; it is loaded when it is first asked."""
        self._spec = spec

    @property
    def identity(self) -> dict[str, Any]:
        """Return the hash of the weights, or the pinned hub id, and the precision."""
        return teacher_identity(self._spec)

    def answer(
        self, requests: Iterable[Request], on_response: Callable[[Response], None]
    ) -> list[Unfinished]:
        """Answer all requests; the responses of a batch are handed over when it is done.

        Tasks that share the process wait for each other here. Nothing is left unfinished.

        Raises:
            RecipeError: The model cannot be loaded.
            TeacherError: A batch does not fit into memory.
        """
        waiting = list(requests)
        if not waiting:
            return []
        waiting.sort(key=_alike)
        with _loaded.lock:
            model = self._model()
            for _, alike in itertools.groupby(waiting, key=_alike):
                for response in self._respond(model, list(alike)):
                    on_response(response)
        return []

    def _model(self) -> LocalModel:
        """Return the loaded model; the caller holds the lock."""
        spec = self._spec
        key = sha256({"identity": self.identity, "device": spec.device})
        if _loaded.key != key or _loaded.model is None:
            _drop()  # first, as two may not fit
            _loaded.model = LocalModel.load(
                spec.model,
                revision=spec.revision,
                dtype=spec.dtype,
                device=spec.device,
                trust_remote_code=spec.trust_remote_code,
            )
            _loaded.key = key
        return _loaded.model

    def _respond(self, model: LocalModel, alike: list[Request]) -> Iterator[Response]:
        """Yield the responses to requests of the same sampling, batch by batch."""
        sampling, sample_index = alike[0].sampling, alike[0].sample_index
        batches = model.stream(
            [request.messages for request in alike],
            max_new_tokens=sampling.max_new_tokens,
            batch_size=self._spec.batch_size,
            sampling_temperature=sampling.sampling_temperature,
            top_p=sampling.top_p,
            seed=sampling.seed + 1_000_003 * sample_index,
        )
        while True:
            start = time.perf_counter()
            with self._memory_error_explained():
                batch = next(batches, None)
            if batch is None:
                return
            latency_s = time.perf_counter() - start
            for index, answer in batch.items():
                yield _response(alike[index], answer, latency_s)

    @contextlib.contextmanager
    def _memory_error_explained(self) -> Iterator[None]:
        import torch

        try:
            yield
        except torch.OutOfMemoryError as error:
            raise TeacherError(
                f"the GPU ran out of memory at teacher.batch_size={self._spec.batch_size}. "
                "Responses so far are kept. Lower teacher.batch_size and run again."
            ) from error


def _alike(request: Request) -> tuple[float, ...]:
    """Return what requests of one batch have in common."""
    return (*dataclasses.astuple(request.sampling), request.sample_index)


def _response(request: Request, answer: Answer, latency_s: float) -> Response:
    return Response(
        request=request,
        state=response_state(answer.text, answer.finish_reason),
        text=answer.text,
        finish_reason=answer.finish_reason,
        prompt_tokens=answer.prompt_tokens,
        completion_tokens=answer.completion_tokens,
        model_reported=None,
        latency_s=latency_s,
    )


def _drop() -> None:
    """Drop the loaded model; the caller holds the lock."""
    if _loaded.model is None:
        return
    _loaded.key = _loaded.model = None
    gc.collect()
    if (torch := sys.modules.get("torch")) is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()
