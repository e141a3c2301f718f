"""A new student: its tokenizer keeps every text, its weights depend on the seed alone."""

import functools
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distillery.models.chat_format import ChatFormat
from distillery.models.loading import ModelFiles
from distillery.models.students import open_student, train_tokenizer
from schemas.errors import TrainingError
from schemas.student import FromScratchStudent
from tests.fixtures_models import make_tiny_model

USER = [{"role": "user", "content": "where is my card?"}]
SYSTEM = [{"role": "system", "content": "Be brief."}, *USER]
TURNS = [
    *SYSTEM,
    {"role": "assistant", "content": "On its way."},
    {"role": "user", "content": "since when?"},
]
RESPONSE = "since the second of May"


@settings(deadline=None)
@given(st.text(min_size=1).filter(lambda text: text.strip() and "<|" not in text))
def test_any_text_is_a_response_that_comes_back_whole(text: str) -> None:
    tokenizer = _own_tokenizer()
    row = ChatFormat(tokenizer).row(SYSTEM, text)
    assert tokenizer.decode(row.response_ids) == text + "<|end|>"


SCRATCH = FromScratchStudent(
    num_layers=1,
    hidden_size=16,
    intermediate_size=32,
    num_heads=2,
    vocab_size=320,
    max_length=64,
    whole_tokens=("card_arrival", "lost card", '{"city": "'),
)


@functools.cache
def _own_tokenizer() -> Any:
    return train_tokenizer(["a few words", "and more of them"], SCRATCH)


def test_a_trained_tokenizer_spends_one_token_per_role() -> None:
    tokenizer = _own_tokenizer()
    row = ChatFormat(tokenizer).row(SYSTEM, "ok")
    tokens = tokenizer.convert_ids_to_tokens(row.input_ids)
    assert [token for token in tokens if token.startswith("<|")] == [
        "<|system|>",
        "<|user|>",
        "<|assistant|>",
        "<|end|>",
    ]


@pytest.mark.parametrize("label", SCRATCH.whole_tokens)
def test_a_whole_token_is_one_token_of_the_response_and_comes_back(label: str) -> None:
    tokenizer = _own_tokenizer()
    row = ChatFormat(tokenizer).row(USER, label)
    assert row.num_response_tokens == 2
    assert tokenizer.decode(row.labels[-2:], skip_special_tokens=True) == label


def test_a_whole_token_that_would_come_back_as_another_text_is_refused() -> None:
    spec = SCRATCH.model_copy(update={"whole_tokens": ("size", "Größe")})
    with pytest.raises(TrainingError, match=r"holds 'Größe', .*Use ASCII characters only\."):
        train_tokenizer(["a"], spec)


def test_a_trained_tokenizer_survives_being_saved(tmp_path: Path) -> None:
    tokenizer = _own_tokenizer()
    tokenizer.save_pretrained(tmp_path)
    again = ModelFiles(str(tmp_path)).chat_format().tokenizer
    assert ChatFormat(again).row(TURNS, RESPONSE) == ChatFormat(tokenizer).row(TURNS, RESPONSE)
    assert (again.pad_token, again.eos_token) == ("<|pad|>", "<|end|>")
    assert again.model_max_length == 64


def test_a_new_student_reads_its_instructions_before_the_prompt() -> None:
    spec = SCRATCH.model_copy(update={"system_prompt": "Answer."})
    tokenizer = train_tokenizer(["a few words"], spec)
    prompt = tokenizer.decode(ChatFormat(tokenizer).prompt_ids(SYSTEM))
    assert prompt == "<|system|>Answer.\n\nBe brief.<|user|>where is my card?<|assistant|>"


def test_a_new_student_depends_on_the_seed_and_the_corpus_alone() -> None:
    import torch

    def made(seed: int, corpus: list[str]) -> tuple[Any, Any]:
        torch.manual_seed(seed)
        return open_student(SCRATCH, corpus, dtype=torch.float32)

    (one, chat_format), (same, _), (other, _) = (made(seed, ["a b c"]) for seed in (0, 0, 1))
    weights = [model.model.embed_tokens.weight for model in (one, same, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    assert one.config.vocab_size == len(chat_format.tokenizer)
    tied = SCRATCH.model_copy(update={"tie_embeddings": True})
    model, _ = open_student(tied, ["a"], dtype=torch.float32)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert one.generation_config.eos_token_id == chat_format.tokenizer.eos_token_id


def test_a_new_student_takes_a_tokenizer_that_is_given(tmp_path: Path) -> None:
    import torch

    folder = make_tiny_model(tmp_path / "tiny")
    spec = SCRATCH.model_copy(update={"tokenizer": str(folder)})

    def unread() -> Any:
        raise AssertionError("the corpus was read")
        yield

    model, chat_format = open_student(spec, unread(), dtype=torch.bfloat16)
    theirs = ModelFiles(str(folder)).chat_format().tokenizer
    assert chat_format.tokenizer.get_vocab() == theirs.get_vocab()
    assert model.dtype == torch.bfloat16
