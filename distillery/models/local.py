"""A causal language model loaded here: teacher, baseline and student answer through the same code.

So that models can be compared, all decode alike: what a model's own ``generation_config.json``
says about sampling or penalties is not used, only its end-of-sequence tokens are.
"""

import contextlib
import dataclasses
import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, Self

from schemas.errors import RecipeError

Message = dict[str, str]


@dataclasses.dataclass(frozen=True)
class Answer:
    """What a model answered to one conversation."""

    text: str
    """Decoded without special tokens, stripped."""

    finish_reason: Literal["stop", "length"]
    """stop: it ended by itself. length: it was cut, or its prompt left no room to answer."""

    prompt_tokens: int
    """Tokens of the rendered conversation."""

    completion_tokens: int
    """Tokens generated, the end-of-sequence token included."""


class LocalModel:
    """A causal LM and its tokenizer, ready to answer. Make one with :meth:`load`."""

    def __init__(self, model: Any, tokenizer: Any, *, name: str) -> None:
        """Take over a transformers model and tokenizer; ``name`` is for messages only."""
        self.model = model.eval()
        self.tokenizer = tokenizer
        self._name = name
        self._config = model.config.get_text_config(decoder=True)
        self._eos_ids = _eos_ids(model, tokenizer)
        self._pad_id = tokenizer.pad_token_id
        if self._pad_id is None:
            self._pad_id = self._eos_ids[0] if self._eos_ids else 0

    @classmethod
    def load(
        cls,
        model: str | Path,
        *,
        revision: str | None = None,
        dtype: str = "float32",
        device: str = "auto",
        trust_remote_code: bool = False,
    ) -> Self:
        """Return the model of a local folder or of the hub, on its device, ready to answer.

        Args:
            model: Folder that ``save_pretrained`` wrote, or hub id.
            revision: Commit hash of a hub model.
            dtype: Precision of the weights: float32, bfloat16 or float16.
            device: auto (the GPU when there is one, otherwise the CPU), cpu, cuda or cuda:1.
            trust_remote_code: Run code from the model's repository.

        Raises:
            RecipeError: The device is not there, the model cannot be loaded, weights are missing
                (they would be random), or the tokenizer has no chat template.
        """
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        target = _resolve_device(device)
        name = str(model)
        source = str(Path(name).expanduser()) if Path(name).expanduser().is_dir() else name
        shared: dict[str, Any] = {"revision": revision, "trust_remote_code": trust_remote_code}
        with _quiet_transformers():
            try:
                loaded, info = AutoModelForCausalLM.from_pretrained(
                    source,
                    dtype=getattr(torch, dtype),
                    use_safetensors=True,
                    output_loading_info=True,
                    **shared,
                )
                tokenizer = AutoTokenizer.from_pretrained(source, **shared)
            except (OSError, ValueError) as error:
                raise RecipeError(
                    f"model {name!r} cannot be loaded: {error}. Name a folder that "
                    "save_pretrained wrote (with safetensors), or a hub id with its revision."
                ) from error
        if absent := sorted(info["missing_keys"]) or sorted(map(str, info["mismatched_keys"])):
            raise RecipeError(
                f"model {name!r} lacks {len(absent)} weights, such as {absent[0]!r}; they would be "
                "random. Name a complete causal language model."
            )
        if not tokenizer.chat_template:
            raise RecipeError(
                f"the tokenizer of {name!r} has no chat template, so messages cannot become text. "
                "Name an instruction-tuned model, or set chat_template and save the tokenizer."
            )
        return cls(loaded.to(target), tokenizer, name=name)

    @property
    def num_parameters(self) -> int:
        """Return the parameters in all; tied weights count once."""
        return sum(parameter.numel() for parameter in self.model.parameters())

    @property
    def weight_bytes(self) -> int:
        """Return the bytes that the parameters take in their precision."""
        return sum(p.numel() * p.element_size() for p in self.model.parameters())

    @property
    def context_length(self) -> int | None:
        """Return the longest sequence, prompt and answer, tokens; None when there is no limit."""
        limit = getattr(self._config, "max_position_embeddings", None)
        return int(limit) if limit else None

    def kv_cache_bytes(self, context_tokens: int) -> int:
        """Return the bytes of the KV cache for one sequence of ``context_tokens``.

        2 (keys and values) x layers x KV heads x head size x bytes per number x tokens. Sliding
        windows are ignored: this is the bound that a server has to plan with.
        """
        config = self._config
        heads = config.num_attention_heads
        kv_heads = getattr(config, "num_key_value_heads", None) or heads
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
        per_token = 2 * config.num_hidden_layers * kv_heads * head_dim * self.model.dtype.itemsize
        return int(per_token * context_tokens)

    def answer(
        self,
        conversations: Sequence[list[Message]],
        *,
        max_new_tokens: int,
        batch_size: int,
        sampling_temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
    ) -> list[Answer]:
        """Return the answers, in the order of ``conversations``.

        See :meth:`stream` for the arguments.
        """
        answers: dict[int, Answer] = {}
        for finished in self.stream(
            conversations,
            max_new_tokens=max_new_tokens,
            batch_size=batch_size,
            sampling_temperature=sampling_temperature,
            top_p=top_p,
            seed=seed,
        ):
            answers.update(finished)
        return [answers[index] for index in range(len(conversations))]

    def stream(
        self,
        conversations: Sequence[list[Message]],
        *,
        max_new_tokens: int,
        batch_size: int,
        sampling_temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
    ) -> Iterator[dict[int, Answer]]:
        """Yield the answers of one batch after the other, by their index in ``conversations``.

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

        Raises:
            RecipeError: The chat template refuses the messages.
        """
        prompts = self._tokenize(conversations)
        for batch, limit in self._batches(prompts, max_new_tokens, batch_size):
            if limit < 1:
                yield {i: Answer("", "length", len(prompts[i]), 0) for i in batch}
                continue
            sampler = (sampling_temperature, top_p, seed) if sampling_temperature > 0 else None
            generated = self._generate([prompts[i] for i in batch], limit, sampler)
            yield {
                i: self._answer(len(prompts[i]), new_ids)
                for i, new_ids in zip(batch, generated, strict=True)
            }

    def _tokenize(self, conversations: Sequence[list[Message]]) -> list[list[int]]:
        """Return the token ids of the rendered conversations."""
        import jinja2

        rendered = []
        for conversation in conversations:
            try:
                rendered.append(
                    self.tokenizer.apply_chat_template(
                        conversation, tokenize=False, add_generation_prompt=True
                    )
                )
            except jinja2.TemplateError as error:
                roles = [message.get("role") for message in conversation]
                raise RecipeError(
                    f"the chat template of {self._name!r} refuses messages with roles {roles}: "
                    f"{error}. Change the messages (some models know no system role)."
                ) from error
        if not rendered:
            return []
        with _quiet_transformers():
            ids: list[list[int]] = self.tokenizer(rendered, add_special_tokens=False)["input_ids"]
        return ids

    def _batches(
        self, prompts: list[list[int]], max_new_tokens: int, batch_size: int
    ) -> Iterator[tuple[list[int], int]]:
        """Yield indices that share a batch, longest first, and how many tokens they may add."""
        limits = [max_new_tokens] * len(prompts)
        if self.context_length is not None:
            limits = [min(max_new_tokens, self.context_length - len(ids)) for ids in prompts]
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
        self, prompts: list[list[int]], limit: int, sampler: tuple[float, float, int] | None
    ) -> list[list[int]]:
        """Return the generated ids of one batch, cut after their end of sequence."""
        import torch
        from transformers import GenerationConfig, LogitsProcessorList

        width = max(map(len, prompts))
        ids_BT = torch.tensor([[self._pad_id] * (width - len(p)) + p for p in prompts])
        mask_BT = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
        self.model.generation_config = GenerationConfig(
            do_sample=False,
            max_new_tokens=limit,
            eos_token_id=self._eos_ids or None,
            pad_token_id=self._pad_id,
        )
        device = self.model.device
        processors = LogitsProcessorList()
        if sampler is not None:
            processors.append(_GumbelSampler(prompts, *sampler, device=device))
        with torch.inference_mode(), _quiet_transformers():
            sequences_BT = self.model.generate(
                input_ids=ids_BT.to(device),
                attention_mask=mask_BT.to(device),
                logits_processor=processors,
            )
        return [_through_eos(row, self._eos_ids) for row in sequences_BT[:, width:].tolist()]

    def _answer(self, prompt_tokens: int, new_ids: list[int]) -> Answer:
        text = self.tokenizer.decode(
            new_ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        stopped = bool(new_ids) and new_ids[-1] in self._eos_ids
        return Answer(text.strip(), "stop" if stopped else "length", prompt_tokens, len(new_ids))


class _GumbelSampler:
    """Turns greedy decoding into sampling with random numbers of each row's own.

    The argmax of log p + Gumbel noise is a draw from p. transformers draws all rows of a batch
    from one generator, so there an answer would depend on its neighbours.
    """

    def __init__(
        self, prompts: list[list[int]], temperature: float, top_p: float, seed: int, *, device: Any
    ) -> None:
        import torch
        from transformers import TopPLogitsWarper

        self._temperature = temperature
        self._nucleus = TopPLogitsWarper(top_p) if top_p < 1 else None
        self._generators = []
        for ids in prompts:
            digest = hashlib.sha256(f"{seed}:{ids}".encode()).digest()
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


def _eos_ids(model: Any, tokenizer: Any) -> list[int]:
    """Return every token id that ends an answer.

    Chat models often name one in the tokenizer and more in ``generation_config.json``.
    """
    named = model.generation_config.eos_token_id if model.generation_config else None
    found = {*(named if isinstance(named, list) else [named]), tokenizer.eos_token_id} - {None}
    return sorted(int(token) for token in found)


def _through_eos(ids: list[int], eos_ids: list[int]) -> list[int]:
    """Return ``ids`` up to and with the first end of sequence; all of them when there is none.

    >>> _through_eos([7, 8, 2, 0, 0], [2])
    [7, 8, 2]
    """
    end = next((place for place, token in enumerate(ids) if token in eos_ids), len(ids))
    return ids[: end + 1]


def _resolve_device(device: str) -> str:
    """Return ``device`` with 'auto' resolved, or raise when it is not there."""
    import torch

    num_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device == "auto":
        return "cuda" if num_gpus else "cpu"
    try:
        wanted = torch.device(device)
    except RuntimeError:
        raise RecipeError(
            f"device {device!r} is not one that torch knows. Write auto, cpu, cuda or cuda:1."
        ) from None
    if wanted.type == "cuda" and (wanted.index or 0) >= num_gpus:
        raise RecipeError(
            f"device {device!r} asked for, but torch sees {num_gpus} GPUs here. Set device to auto "
            "or cpu, or run where a GPU is."
        )
    return device


@contextlib.contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Hold back the progress bars and advice of transformers; our own progress is shown above."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
