"""A student sees a row as at inference, and learns from the response alone."""

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distillery.models.students import (
    IGNORED,
    export_model,
    load_tokenizer,
    open_student,
    tokenize_row,
    train_tokenizer,
)
from distillery.storage.store import Store
from schemas.errors import RecipeError, TrainingError
from schemas.execution import StoreSpec
from schemas.refs import ModelRef
from schemas.student import FromScratchStudent, PretrainedStudent
from tests.fixtures_models import make_tiny_model

USER = [{"role": "user", "content": "where is my card?"}]
SYSTEM = [{"role": "system", "content": "Be brief."}, *USER]
TURNS = [
    *SYSTEM,
    {"role": "assistant", "content": "On its way."},
    {"role": "user", "content": "since when?"},
]
RESPONSE = "since the second of May"

# The shapes that matter of templates in use; <|end|> is the end-of-sequence token.
_LOOP = "{% for m in messages %}"
_END = "{% endfor %}{% if add_generation_prompt %}"
TEMPLATES = {
    "chatml": _LOOP
    + "<|user|>{{ m['role'] }}\n{{ m['content'] }}<|end|>\n"
    + _END
    + "<|user|>assistant\n{% endif %}",
    "roles": _LOOP
    + "<|{{ m['role'] }}|>{{ m['content'] }}<|end|>"
    + _END
    + "<|assistant|>{% endif %}",
    "trimmed": _LOOP
    + "<|{{ m['role'] }}|>{{ m['content'] | trim }}<|end|>"
    + _END
    + "<|assistant|>{% endif %}",
    "empty thoughts before the last answer": _LOOP
    + "<|{{ m['role'] }}|>{% if loop.last and m['role'] == 'assistant' %}<think></think>{% endif %}"
    + "{{ m['content'] }}<|end|>"
    + _END
    + "<|assistant|>{% endif %}",
    "a header before everything": "Today is Monday.<|end|>"
    + _LOOP
    + "<|{{ m['role'] }}|>{{ m['content'] }}<|end|>"
    + _END
    + "<|assistant|>{% endif %}",
}
REFUSED = {
    "renders the prompt differently": _LOOP
    + "{% if loop.last %}<|user|>{% endif %}{{ m['content'] }}<|end|>"
    + _END
    + "<|assistant|>{% endif %}",
    "ends a response without '<|end|>'": _LOOP
    + "<|{{ m['role'] }}|>{{ m['content'] }}"
    + _END
    + "<|assistant|>{% endif %}",
    "does not keep the response": _LOOP
    + "<|{{ m['role'] }}|>{{ m['content'] | upper }}<|end|>"
    + _END
    + "<|assistant|>{% endif %}",
    "cannot render turns of": _LOOP
    + "{% if m['role'] == 'system' %}{{ raise_exception('no system turns') }}{% endif %}"
    + "<|{{ m['role'] }}|>{{ m['content'] }}<|end|>"
    + _END
    + "<|assistant|>{% endif %}",
}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return load_tokenizer(str(make_tiny_model(tmp_path_factory.mktemp("models") / "tiny")))


@pytest.mark.parametrize("messages", [USER, SYSTEM, TURNS], ids=["user", "system", "turns"])
@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES)
def test_prompt_tokens_never_enter_the_loss(
    tokenizer: Any, monkeypatch: pytest.MonkeyPatch, template: str, messages: Any
) -> None:
    monkeypatch.setattr(tokenizer, "chat_template", template)
    row = tokenize_row(tokenizer, messages, RESPONSE)
    prompt = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    masked = [token for token, label in zip(row.input_ids, row.labels, strict=True) if label < 0]
    counted = [label for label in row.labels if label != IGNORED]
    assert tokenizer.decode(masked) == prompt
    assert row.input_ids[: len(masked)] == masked  # the mask has no holes
    assert row.input_ids[len(masked) :] == counted
    answer = tokenizer.decode(counted)
    assert RESPONSE in answer
    assert "my card" not in answer
    assert "On its way" not in answer
    assert tokenizer.eos_token_id in counted
    assert row.num_response_tokens == len(counted)


@pytest.mark.parametrize(("reason", "template"), REFUSED.items(), ids=REFUSED)
def test_a_template_that_would_teach_something_else_is_refused(
    tokenizer: Any, monkeypatch: pytest.MonkeyPatch, reason: str, template: str
) -> None:
    monkeypatch.setattr(tokenizer, "chat_template", template)
    with pytest.raises(TrainingError) as caught:
        tokenize_row(tokenizer, SYSTEM, RESPONSE)  # type: ignore[arg-type]
    assert reason in str(caught.value)


@settings(deadline=None)
@given(st.text(min_size=1).filter(lambda text: text.strip() and "<|" not in text))
def test_any_text_is_a_response_that_comes_back_whole(text: str) -> None:
    tokenizer = _own_tokenizer()
    row = tokenize_row(tokenizer, SYSTEM, text)  # type: ignore[arg-type]
    counted = [label for label in row.labels if label != IGNORED]
    assert tokenizer.decode(counted) == text + "<|end|>"


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
    row = tokenize_row(tokenizer, SYSTEM, "ok")  # type: ignore[arg-type]
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
    row = tokenize_row(tokenizer, USER, label)  # type: ignore[arg-type]
    assert row.num_response_tokens == 2
    assert tokenizer.decode(row.labels[-2:], skip_special_tokens=True) == label


def test_a_whole_token_that_would_come_back_as_another_text_is_refused() -> None:
    spec = SCRATCH.model_copy(update={"whole_tokens": ("size", "Größe")})
    with pytest.raises(TrainingError, match=r"holds 'Größe', .*Use ASCII characters only\."):
        train_tokenizer(["a"], spec)


def test_a_trained_tokenizer_survives_being_saved(tmp_path: Path) -> None:
    tokenizer = _own_tokenizer()
    tokenizer.save_pretrained(tmp_path)
    again = load_tokenizer(str(tmp_path))
    assert tokenize_row(again, TURNS, RESPONSE) == tokenize_row(tokenizer, TURNS, RESPONSE)  # type: ignore[arg-type]
    assert (again.pad_token, again.eos_token) == ("<|pad|>", "<|end|>")
    assert again.model_max_length == 64


def _saved(tokenizer: Any, folder: Path, **changes: Any) -> str:
    for name, value in changes.items():
        setattr(tokenizer, name, value)
    tokenizer.save_pretrained(folder)
    return str(folder)


def test_a_tokenizer_without_chat_template_or_end_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="has no chat template, so prompts cannot be rendered"):
        load_tokenizer(_saved(train_tokenizer(["a"], SCRATCH), tmp_path / "a", chat_template=None))
    with pytest.raises(TrainingError, match="has no eos_token, so the student would never learn"):
        load_tokenizer(_saved(train_tokenizer(["a"], SCRATCH), tmp_path / "b", eos_token=None))


def test_a_tokenizer_without_padding_pads_with_its_end(tmp_path: Path) -> None:
    tokenizer = train_tokenizer(["a"], SCRATCH)
    again = load_tokenizer(_saved(tokenizer, tmp_path, pad_token=None))
    assert again.pad_token_id == again.eos_token_id


def test_a_new_student_depends_on_the_seed_and_the_corpus_alone() -> None:
    import torch

    def made(seed: int, corpus: list[str]) -> tuple[Any, Any]:
        torch.manual_seed(seed)
        return open_student(SCRATCH, corpus, dtype=torch.float32)

    (one, tokenizer), (same, _), (other, _) = (made(seed, ["a b c"]) for seed in (0, 0, 1))
    weights = [model.model.embed_tokens.weight for model in (one, same, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    assert one.config.vocab_size == len(tokenizer)
    tied = SCRATCH.model_copy(update={"tie_embeddings": True})
    model, _ = open_student(tied, ["a"], dtype=torch.float32)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert one.generation_config.eos_token_id == tokenizer.eos_token_id


def test_a_new_student_takes_a_tokenizer_that_is_given(tmp_path: Path) -> None:
    import torch

    folder = make_tiny_model(tmp_path / "tiny")
    spec = SCRATCH.model_copy(update={"tokenizer": str(folder)})

    def unread() -> Any:
        raise AssertionError("the corpus was read")
        yield

    model, tokenizer = open_student(spec, unread(), dtype=torch.bfloat16)
    assert tokenizer.get_vocab() == load_tokenizer(str(folder)).get_vocab()
    assert model.dtype == torch.bfloat16


def _opened(folder: Path | str) -> tuple[Any, Any]:
    import torch

    return open_student(PretrainedStudent(model=str(folder)), (), dtype=torch.float32)


def test_pickled_weights_are_never_loaded(tmp_path: Path) -> None:
    import torch

    folder = make_tiny_model(tmp_path / "tiny")
    model, _ = _opened(folder)
    (folder / "model.safetensors").unlink()
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    with pytest.raises(RecipeError, match="safetensors"):
        _opened(folder)


def _with_weights(folder: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    """Return the model of ``folder``, its weights changed."""
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_a_pretrained_student_without_all_its_weights_is_refused(tmp_path: Path) -> None:
    def drop(weights: dict[str, Any]) -> None:
        for name in ("down", "gate", "up"):
            del weights[f"model.layers.1.mlp.{name}_proj.weight"]

    folder = _with_weights(make_tiny_model(tmp_path / "tiny"), drop)
    with pytest.raises(TrainingError) as caught:
        _opened(folder)
    assert str(caught.value) == (
        f"student {str(folder)!r} lacks 3 weights, such as 'model.layers.1.mlp.down_proj.weight', "
        "or has them in another shape, so it would start with random ones. Set student.model to a "
        "complete causal language model."
    )


def test_a_pretrained_student_with_weights_of_another_shape_is_refused(tmp_path: Path) -> None:
    def cut(weights: dict[str, Any]) -> None:
        weights["lm_head.weight"] = weights["lm_head.weight"][:10].clone()

    folder = _with_weights(make_tiny_model(tmp_path / "tiny"), cut)
    with pytest.raises(TrainingError, match=r"lacks 1 weights, such as 'lm_head\.weight', or has"):
        _opened(folder)


def test_an_output_layer_that_is_the_input_embedding_is_not_missing(tmp_path: Path) -> None:
    import torch

    folder = make_tiny_model(tmp_path / "tiny")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": True}))
    model, _ = _opened(_with_weights(folder, lambda weights: weights.pop("lm_head.weight")))
    assert torch.equal(model.lm_head.weight, model.model.embed_tokens.weight)


def test_a_model_that_cannot_be_read_is_named_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(RecipeError) as caught:
        _opened("nobody/nothing")  # tests are offline
    assert str(caught.value).startswith("the tokenizer of 'nobody/nothing' cannot be loaded: ")
    assert "Check your internet connection" in str(caught.value)
    assert str(caught.value).endswith("or a hub id with its revision.")
    folder = make_tiny_model(tmp_path / "tiny")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(RecipeError, match=r"^model '.*tiny' cannot be loaded: .* Name a folder"):
        _opened(folder)


def test_a_folder_of_the_home_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    make_tiny_model(tmp_path / "tiny")
    model, tokenizer = _opened("~/tiny")
    assert model.config.vocab_size == len(tokenizer)


def test_code_of_a_tokenizer_runs_only_when_it_is_trusted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "own"))
    monkeypatch.syspath_prepend(str(tmp_path / "own"))
    folder = make_tiny_model(tmp_path / "tiny")
    (folder / "own_tokenizer.py").write_text(
        "from transformers import PreTrainedTokenizerFast\n\n\n"
        "class OwnTokenizer(PreTrainedTokenizerFast):\n    pass\n"
    )
    config = json.loads((folder / "tokenizer_config.json").read_text()) | {
        "tokenizer_class": "OwnTokenizer",
        "auto_map": {"AutoTokenizer": [None, "own_tokenizer.OwnTokenizer"]},
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(RecipeError, match="trust_remote_code"):
        load_tokenizer(str(folder))
    spec = PretrainedStudent(model=str(folder), revision="1" * 40, trust_remote_code=True)
    _, tokenizer = open_student(spec, (), dtype=None)
    assert type(tokenizer).__name__ == "OwnTokenizer"


@pytest.fixture
def stored(tmp_path: Path) -> tuple[ModelRef, StoreSpec]:
    source = tmp_path / "source"
    source.mkdir()
    (source / "config.json").write_text('{"new": true}')
    store = StoreSpec(root=str(tmp_path / "store"))
    Store(store.root).upload("train/model", source)
    return ModelRef(uri="train/model", fingerprint="0", num_parameters=1), store


def test_an_exported_model_takes_the_place_of_the_one_before(
    tmp_path: Path, stored: tuple[ModelRef, StoreSpec]
) -> None:
    target = tmp_path / "models" / "teacher"
    export_model(stored[0], str(target), stored[1])
    (target / "left-over.safetensors").write_text("old")
    export_model(stored[0], str(target), stored[1])
    assert [path.name for path in target.iterdir()] == ["config.json"]
    assert [path.name for path in target.parent.iterdir()] == ["teacher"]


def test_an_export_never_deletes_what_is_no_model(
    tmp_path: Path, stored: tuple[ModelRef, StoreSpec]
) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.txt").write_text("years of work")
    for place in (tmp_path / "home", tmp_path / "home" / "thesis.txt"):
        with pytest.raises(RecipeError, match=r"no model; .*Name a new folder under 'output'"):
            export_model(stored[0], str(place), stored[1])
    assert (tmp_path / "home" / "thesis.txt").read_text() == "years of work"
