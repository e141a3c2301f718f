"""A vLLM server on this machine with a model of one letter's memory, which fails on command.

Tokens are bytes; the probabilities of a token depend on the one before it, so what each position
must show is known.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from schemas.teacher import OpenAITeacher
from tests.stub_endpoint import Reply, StubEndpoint

USER, ASSISTANT, END, SYSTEM = 256, 257, 258, 259
VOCABULARY = 300
PATHS = ("/v1/completions", "/tokenize")
_MARKS = {"user": USER, "assistant": ASSISTANT, "system": SYSTEM}

_logits = np.random.default_rng(0).normal(0, 3, (VOCABULARY, VOCABULARY))
LOG_PROBS: NDArray[np.float64] = _logits - np.log(np.exp(_logits).sum(1, keepdims=True))
"""Log-probability of the column's token after the row's token."""

Template = Callable[[list[dict[str, str]], bool], list[int]]
Failure = Callable[[dict[str, Any]], Reply | None]


def render(messages: list[dict[str, str]], answer_follows: bool) -> list[int]:
    """Return the tokens of a conversation."""
    ids = []
    for message in messages:
        ids += [_MARKS[message["role"]], *message["content"].encode(), END]
    return [*ids, ASSISTANT] if answer_follows else ids


def save_tokenizer(folder: Path) -> Path:
    """Return ``folder`` with a tokenizer that reads text as the server does, byte for byte."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    tokens = {character: byte for byte, character in bytes_to_unicode().items()}
    tokens |= {"<|user|>": USER, "<|assistant|>": ASSISTANT, "<|end|>": END, "<|system|>": SYSTEM}
    tokens |= {f"<|unused {n}|>": n for n in range(len(tokens), VOCABULARY)}
    bpe = Tokenizer(models.BPE(vocab=tokens, merges=[]))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    bpe.decoder = decoders.ByteLevel()
    names = ["<|user|>", "<|assistant|>", "<|system|>"]
    PreTrainedTokenizerFast(
        tokenizer_object=bpe, eos_token="<|end|>", extra_special_tokens=names
    ).save_pretrained(folder)
    return folder


class StubVllm:
    """Serves the model; `fail` may put another reply in place of one to `/v1/completions`."""

    def __init__(
        self,
        *,
        fail: Failure = lambda body: None,
        script: Sequence[Reply] = (),
        template: Template = render,
        shown: NDArray[np.float64] = LOG_PROBS,
        max_logprobs: int = 20,
        max_model_len: int = 4096,
        paths: Sequence[str] = PATHS,
    ) -> None:
        self._fail, self._script, self._template = fail, list(script), template
        self._shown, self._max_logprobs, self._max_model_len = shown, max_logprobs, max_model_len
        self.stub = StubEndpoint(respond=self._respond, paths=paths)
        self.completions: list[dict[str, Any]] = []

    def __enter__(self) -> Self:
        self.stub.__enter__()
        return self

    def __exit__(self, *failure: object) -> None:
        self.stub.__exit__(*failure)

    def spec(self, **changes: Any) -> OpenAITeacher:
        """Return the teacher that it serves."""
        settings = {"model": "big", "base_url": self.stub.base_url, "concurrency": 4}
        return OpenAITeacher(**{**settings, **changes})

    def _respond(self, body: dict[str, Any]) -> Reply:
        if "messages" in body:
            ids = self._template(body["messages"], body["add_generation_prompt"])
            return _json({"tokens": ids, "count": len(ids), "max_model_len": self._max_model_len})
        self.completions.append(body)
        if self._script:
            return self._script.pop(0)
        return self._fail(body) or self._complete(body)

    def _complete(self, body: dict[str, Any]) -> Reply:
        if (k := body["prompt_logprobs"]) > self._max_logprobs:
            said = f"which is greater than max allowed: {self._max_logprobs} (parameter=x)"
            return Reply(status=400, error=f"Requested prompt logprobs of {k}, {said}")
        positions = [None, *self._positions(body["prompt"], k)]
        return _json({"choices": [{"index": 0, "text": "x", "prompt_logprobs": positions}]})

    def _positions(self, prompt: list[int], k: int) -> list[dict[str, Any]]:
        after = zip(self._log_probs(prompt), prompt[1:], strict=True)
        return [_position(log_probs_V, token, k) for log_probs_V, token in after]

    def _log_probs(self, prompt: list[int]) -> NDArray[np.float64]:
        """Return the model's log-probabilities after each token of ``prompt`` but the last."""
        return self._shown[prompt[:-1]]


def _position(log_probs_V: NDArray[np.float64], token: int, k: int) -> dict[str, Any]:
    """Return the k most likely tokens, after the prompt's own, as vLLM does."""
    ranked = np.argsort(-log_probs_V).tolist()
    entries = {token: ranked.index(token) + 1}
    entries |= {other: rank for rank, other in enumerate(ranked[:k], 1)}
    return {
        str(other): {
            "logprob": float(np.float32(log_probs_V[other])),
            "rank": rank,
            "decoded_token": "t",
        }
        for other, rank in entries.items()
    }


def _json(body: Any) -> Reply:
    return Reply(body=json.dumps(body), headers={"Content-Type": "application/json"})
