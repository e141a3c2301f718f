"""What only a GPU shows of measuring: its memory, and when a first token is really there.

    pytest --noconftest -m gpu tests/evaluation/test_gpu.py

runs on a machine with torch, transformers, numpy, pydantic, psutil and pytest alone: the model is
made in memory, and what `distillery` has of stores and endpoints is not imported.
"""

import time
from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from distillery.evaluation.peak_memory import MemoryWatch
from distillery.models.local import LocalModel
from schemas.comparison import Size

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not torch.cuda.is_available(), reason="this machine has no GPU that torch can use"
    ),
]

VOCAB_SIZE, PROMPT_TOKENS, NEW_TOKENS = 32_000, 1024, 64
ROWS: list[Any] = [[{"role": "user", "content": str(number)}] for number in range(16)]


class RandomTokens:
    """Stands in for a chat format: every conversation is so many tokens, and nothing ends one."""

    tokenizer = SimpleNamespace(pad_token_id=0)
    end_ids: frozenset[int] = frozenset()

    def prompt_ids(self, messages: list[dict[str, str]]) -> list[int]:
        draws = torch.Generator().manual_seed(int(messages[0]["content"]))
        return torch.randint(1, VOCAB_SIZE, (PROMPT_TOKENS,), generator=draws).tolist()

    def split(self, new_ids: list[int]) -> tuple[str, str]:
        return "", str(new_ids)


def new_model() -> LocalModel:
    """Return some 120 M parameters on the GPU, 240 MB in bfloat16."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=768,
        intermediate_size=2048,
        num_hidden_layers=10,
        num_attention_heads=12,
        num_key_value_heads=12,
        max_position_embeddings=2 * PROMPT_TOKENS,
    )
    weights = LlamaForCausalLM(config).to("cuda", torch.bfloat16)
    return LocalModel(weights, RandomTokens())  # type: ignore[arg-type]


def opened(model: LocalModel) -> Any:
    """Return ``model`` as contestants are opened, as far as its memory is concerned."""

    def answer(rows: Sequence[Any], concurrency: int) -> Any:
        return model.answer(rows, max_new_tokens=NEW_TOKENS, batch_size=concurrency)

    size = Size(
        num_parameters=model.model.num_parameters(),
        weight_bytes=model.model.get_memory_footprint(return_buffers=False),
        kv_cache_bytes=model.kv_cache_bytes(PROMPT_TOKENS + NEW_TOKENS),
    )
    return SimpleNamespace(answer=answer, size=size, is_served=False, max_concurrency=None)


@pytest.fixture
def watch() -> Iterator[MemoryWatch]:
    torch.cuda.empty_cache()
    yield MemoryWatch()
    torch.cuda.empty_cache()


def test_peak_memory_holds_the_weights_and_the_cache_of_every_row(watch: MemoryWatch) -> None:
    one = opened(new_model())
    peak = watch.peak_bytes(one, ROWS)
    assert peak is not None
    least = one.size.weight_bytes + len(ROWS) * one.size.kv_cache_bytes
    print(f"peak {peak / 2**20:,.0f} MiB, weights and cache {least / 2**20:,.0f} MiB")
    assert least <= peak < 3 * least


def test_more_rows_at_once_take_more_memory(watch: MemoryWatch) -> None:
    one = opened(new_model())
    few, many = watch.peak_bytes(one, ROWS[:2]), watch.peak_bytes(one, ROWS)
    assert few is not None and many is not None
    assert many - few >= 14 * one.size.kv_cache_bytes * 0.9


def test_what_another_model_holds_does_not_count() -> None:
    other = new_model()
    watch = MemoryWatch()
    one = opened(new_model())
    peak = watch.peak_bytes(one, ROWS[:1])
    assert peak is not None and peak < 2 * one.size.weight_bytes
    del other


def test_the_first_token_takes_the_whole_prompt_and_none_of_the_rest() -> None:
    model = new_model()
    ids_BT = torch.tensor([model.chat_format.prompt_ids(row) for row in ROWS], device="cuda")

    def forward_s() -> float:
        torch.cuda.synchronize()
        start = time.perf_counter()
        with torch.inference_mode():
            model.model(input_ids=ids_BT, logits_to_keep=1)
        torch.cuda.synchronize()
        return time.perf_counter() - start

    def answer_s() -> tuple[float, float]:
        start = time.perf_counter()
        answers = model.answer(ROWS, max_new_tokens=NEW_TOKENS, batch_size=len(ROWS))
        [first_token_s] = {answer.first_token_s for answer in answers}
        assert first_token_s is not None
        return first_token_s, time.perf_counter() - start

    answer_s()  # the first call sets the GPU up
    least_s = min(forward_s() for _ in range(5))
    first_token_s, seconds = min(answer_s() for _ in range(3))
    print(f"forward {least_s:.4f} s, first token {first_token_s:.4f} s of {seconds:.4f} s")
    assert 0.9 * least_s <= first_token_s < seconds / 2
