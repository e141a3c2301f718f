"""A causal language model loaded here: teacher, baseline and student answer through the same code.

So that models can be compared, all decode alike: what a model's own ``generation_config.json``
says about sampling or penalties is not used, only the tokens at which it stops are.
"""

import dataclasses
import hashlib
import math
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, Self

from distillery.models.chat_format import ChatFormat, Conversation
from distillery.models.hardware import resolve_device
from distillery.models.loading import ModelFiles, kv_cache_bytes
from schemas.student import PretrainedStudent
from schemas.teacher import TransformersTeacher


@dataclasses.dataclass(frozen=True)
class LocalResponse:
    """What a model responded to one conversation."""

    text: str
    """What it says: without thoughts and special tokens, stripped."""

    reasoning: str
    """Its thoughts before that; empty where it wrote none."""

    finish_reason: Literal["stop", "length"]
    """stop: it ended by itself. length: it was cut, or its prompt left no room to answer."""

    prompt_tokens: int
    """Tokens of the rendered conversation."""

    completion_tokens: int
    """Tokens generated, thoughts and the end included."""

    first_token_s: float | None = dataclasses.field(default=None, compare=False)
    """Seconds until the first token of its batch was there, the prompt's rendering included. None:
    there was no room for one."""

    mean_log_probability: float | None = dataclasses.field(default=None, compare=False)
    """Mean log-probability of the tokens generated, nats, at temperature 1. None: not asked for,
    or there is no token."""


class LocalModel:
    """A causal LM and its chat format, ready to answer. Make one with :meth:`load`."""

    def __init__(
        self, model: Any, chat_format: ChatFormat, *, disk_bytes: int | None = None
    ) -> None:
        """Take over a transformers model and its chat format, and the size of its files."""
        self.model = model.eval()
        self.chat_format = chat_format
        self.disk_bytes = disk_bytes
        self._config = model.config.get_text_config(decoder=True)

    @classmethod
    def load(
        cls,
        model: str | Path | ModelFiles,
        *,
        dtype: str = "float32",
        device: str = "auto",
    ) -> Self:
        """Return a model on its device, ready to answer.

        Args:
            model: Folder that ``save_pretrained`` wrote, or files.
            dtype: Precision of the weights: float32, bfloat16, float16, or auto (as saved).
            device: auto (the GPU when there is one, otherwise the CPU), cpu, cuda or cuda:1.

        Raises:
            RecipeError: The device is not there, the model cannot be loaded, weights are missing,
                or the tokenizer has no chat template.
        """
        target = resolve_device(device)
        if not isinstance(model, ModelFiles):
            model = ModelFiles(str(model))
        weights = model.weights(dtype).to(target)
        return cls(weights, model.chat_format(), disk_bytes=model.weight_bytes())

    @classmethod
    def of(cls, spec: PretrainedStudent | TransformersTeacher, *, device: str) -> Self:
        """Return the model that a section of the recipe names. See :meth:`load`."""
        return cls.load(ModelFiles.of(spec), dtype=spec.dtype, device=device)

    @property
    def tokenizer(self) -> Any:
        """Return the tokenizer of the chat format."""
        return self.chat_format.tokenizer

    @property
    def context_length(self) -> int | None:
        """Return the longest sequence, prompt and answer, tokens; None when there is no limit."""
        limit = getattr(self._config, "max_position_embeddings", None)
        return int(limit) if limit else None

    def kv_cache_bytes(self, context_tokens: int) -> int:
        """Return the bytes of the KV cache for one sequence of ``context_tokens``."""
        return kv_cache_bytes(self._config, context_tokens, itemsize=self.model.dtype.itemsize)

    def answer(self, conversations: Sequence[Conversation], **how: Any) -> list[LocalResponse]:
        """Return the responses, in the order of ``conversations``.

        See :meth:`stream` for the arguments.
        """
        responses: dict[int, LocalResponse] = {}
        for finished in self.stream(conversations, **how):
            responses.update(finished)
        return [responses[index] for index in range(len(conversations))]

    def stream(
        self,
        conversations: Sequence[Conversation],
        *,
        max_new_tokens: int,
        batch_size: int,
        sampling_temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
        with_log_probability: bool = False,
    ) -> Iterator[dict[int, LocalResponse]]:
        """Yield the responses of one batch after the other, by their index in ``conversations``.

        Conversations of similar length share a batch, the longest first, so that a batch that
        does not fit into memory shows at once. One that has no room for ``max_new_tokens`` in the
        context is answered up to the end of the context.

        In float32 an answer does not depend on what else is in its batch; in half precision the
        last bits of the sums do, and with them now and then a token.

        Args:
            conversations: Lists of {role, content}.
            max_new_tokens: Longest answer, tokens.
            batch_size: Conversations per forward pass.
            sampling_temperature: 0 is greedy.
            top_p: Nucleus; matters above temperature 0 only.
            seed: With the conversation it decides the random numbers, so a sampled answer is
                reproduced in whatever batch it comes (on the same kind of device).
            with_log_probability: Whether responses say how probable the model held their tokens.

        Raises:
            RecipeError: The chat template refuses the messages.
        """
        start = time.perf_counter()
        prompts = [self.chat_format.prompt_ids(messages) for messages in conversations]
        limits = [max_new_tokens] * len(prompts)
        for batch, limit in self._batches(prompts, limits, batch_size):
            if limit < 1:
                yield {i: LocalResponse("", "", "length", len(prompts[i]), 0) for i in batch}
                continue
            first_token = _FirstToken(self.model.device)
            processors: list[Any] = [first_token]
            if sampling_temperature > 0:
                keys = [f"{seed}:{prompts[i]}" for i in batch]
                sampler = _GumbelSampler(keys, sampling_temperature, top_p, self.model.device)
                processors = [sampler, first_token]
            log_probabilities = _LogProbabilities(processors)
            if with_log_probability:
                processors = [log_probabilities]
            generated = self._generate([prompts[i] for i in batch], limit, processors)
            means = log_probabilities.means([len(new_ids) for new_ids in generated])
            first_token_s = first_token.at - start
            yield {
                i: self._response(len(prompts[i]), new_ids, first_token_s, mean)
                for i, new_ids, mean in zip(batch, generated, means, strict=True)
            }
            start = time.perf_counter()

    def sample(
        self,
        prompts: Sequence[list[int]],
        *,
        limits: Sequence[int],
        keys: Sequence[str],
        sampling_temperature: float,
        vocab_size: int,
        batch_size: int,
    ) -> list[list[int]]:
        """Return the tokens that the model writes after each of ``prompts``, its end included.

        Args:
            prompts: Token ids.
            limits: Most tokens to write after each, at least 1.
            keys: What decides the random numbers of each, whatever batch it is in.
            sampling_temperature: Above 0.
            vocab_size: Token ids from there on, padding of the output layer, are not written.
            batch_size: Prompts per forward pass; see :meth:`stream`.
        """

        def within_vocabulary(input_ids: Any, scores_BV: Any) -> Any:
            scores_BV[:, vocab_size:] = -math.inf
            return scores_BV

        written: list[list[int]] = [[]] * len(prompts)
        for batch, limit in self._batches(prompts, limits, batch_size):
            of_batch = [keys[i] for i in batch]
            sampler = _GumbelSampler(of_batch, sampling_temperature, 1.0, self.model.device)
            processors = [within_vocabulary, sampler]
            new_ids = self._generate([prompts[i] for i in batch], limit, processors)
            for i, ids in zip(batch, new_ids, strict=True):
                written[i] = ids
        return written

    def _batches(
        self, prompts: Sequence[list[int]], limits: Sequence[int], batch_size: int
    ) -> Iterator[tuple[list[int], int]]:
        """Yield indices that share a batch, longest first, and how many tokens they may add."""
        if (most := self.context_length) is not None:
            limits = [min(each, most - len(p)) for each, p in zip(limits, prompts, strict=True)]
        order = sorted(range(len(prompts)), key=lambda i: (-len(prompts[i]), i))
        batch: list[int] = []
        for index in order:
            if batch and (len(batch) == batch_size or limits[index] != limits[batch[0]]):
                yield batch, limits[batch[0]]
                batch = []
            batch.append(index)
        if batch:
            yield batch, limits[batch[0]]

    def _generate(
        self, prompts: list[list[int]], limit: int, processors: list[Any]
    ) -> list[list[int]]:
        """Return the generated ids of one batch, cut after their end of sequence."""
        import torch
        from transformers import GenerationConfig, LogitsProcessorList

        width, pad_id = max(map(len, prompts)), self.tokenizer.pad_token_id or 0
        end_ids = sorted(self.chat_format.end_ids)
        ids_BT = torch.tensor([[pad_id] * (width - len(p)) + p for p in prompts])
        mask_BT = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
        self.model.generation_config = GenerationConfig(
            do_sample=False,
            max_new_tokens=limit,
            eos_token_id=end_ids or None,
            pad_token_id=pad_id,
        )
        device = self.model.device
        with torch.inference_mode():
            sequences_BT = self.model.generate(
                input_ids=ids_BT.to(device),
                attention_mask=mask_BT.to(device),
                logits_processor=LogitsProcessorList(processors),
            )
        return [_through_end(row, end_ids) for row in sequences_BT[:, width:].tolist()]

    def _response(
        self, prompt_tokens: int, new_ids: list[int], first_token_s: float, mean: float | None
    ) -> LocalResponse:
        stopped = bool(new_ids) and new_ids[-1] in self.chat_format.end_ids
        reasoning, text = self.chat_format.split(new_ids)
        reason: Literal["stop", "length"] = "stop" if stopped else "length"
        count = len(new_ids)
        return LocalResponse(text, reasoning, reason, prompt_tokens, count, first_token_s, mean)


class _FirstToken:
    """Notes when the scores of the first token are there, which is the greatest of them."""

    def __init__(self, device: Any) -> None:
        self._device, self.at = device, 0.0

    def __call__(self, input_ids: Any, scores_BV: Any) -> Any:
        import torch

        if not self.at:
            if self._device.type == "cuda":  # which has them when all that it was given is done
                torch.cuda.synchronize(self._device)
            self.at = time.perf_counter()
        return scores_BV


class _LogProbabilities:
    """Notes how probable each token was that other processors of a greedy decoding let through."""

    def __init__(self, processors: Sequence[Any]) -> None:
        self._processors = processors
        self._of_tokens: list[Any] = []

    def __call__(self, input_ids: Any, scores_BV: Any) -> Any:
        raw_BV = scores_BV.float().clone()  # a sampler may work in place
        for processor in self._processors:
            scores_BV = processor(input_ids, scores_BV)
        chosen_B = scores_BV.argmax(-1, keepdim=True)
        self._of_tokens.append(raw_BV.log_softmax(-1).gather(-1, chosen_B)[:, 0])
        return scores_BV

    def means(self, lengths: Sequence[int]) -> list[float | None]:
        """Return the mean over the first so many tokens of each row; None where none was noted."""
        import torch

        if not self._of_tokens:
            return [None] * len(lengths)
        noted_BT = torch.stack(self._of_tokens, dim=1)
        return [
            float(row_T[:length].mean()) if length else None
            for row_T, length in zip(noted_BT, lengths, strict=True)
        ]


class _GumbelSampler:
    """Turns greedy decoding into sampling with random numbers of each row's own.

    The argmax of log p + Gumbel noise is a draw from p. transformers draws all rows of a batch
    from one generator, so there an answer would depend on its neighbours.
    """

    def __init__(self, keys: Sequence[str], temperature: float, top_p: float, device: Any) -> None:
        import torch
        from transformers import TopPLogitsWarper

        self._temperature = temperature
        self._nucleus = TopPLogitsWarper(top_p) if top_p < 1 else None
        self._generators = []
        for key in keys:
            digest = hashlib.sha256(key.encode()).digest()
            generator = torch.Generator(device=device)
            generator.manual_seed(int.from_bytes(digest[:8], "big") >> 1)
            self._generators.append(generator)

    def __call__(self, input_ids: Any, scores_BV: Any) -> Any:
        import torch

        scores_BV = scores_BV.float() / self._temperature
        if self._nucleus is not None:
            scores_BV = self._nucleus(input_ids, scores_BV)
        for scores_V, generator in zip(scores_BV, self._generators, strict=True):
            # The log of an exponential variable, negated, is a Gumbel one.
            exponential_V = torch.empty_like(scores_V).exponential_(generator=generator)
            scores_V -= exponential_V.clamp_min_(1e-30).log_()
        return scores_BV


def _through_end(ids: list[int], end_ids: list[int]) -> list[int]:
    """Return ``ids`` up to and with the first end; all of them when there is none.

    >>> _through_end([7, 8, 2, 0, 0], [2])
    [7, 8, 2]
    """
    end = next((place for place, token in enumerate(ids) if token in end_ids), len(ids))
    return ids[: end + 1]
