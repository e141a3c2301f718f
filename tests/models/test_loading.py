"""A model is read whole and as its files say, or not at all."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import JsonValue

from distillery.models.chat_format import ChatFormat
from distillery.models.chat_templates import TODAY
from distillery.models.loading import ModelFiles
from distillery.models.students import train_tokenizer
from schemas.errors import RecipeError, TrainingError
from schemas.student import FromScratchStudent, PretrainedStudent
from schemas.teacher import TransformersTeacher
from tests.fixtures_models import CHAT_TEMPLATE, make_tiny_model
from tests.fixtures_templates import TemplateShape, make_tokenizer

SCRATCH = FromScratchStudent(
    num_layers=1, hidden_size=16, intermediate_size=32, num_heads=2, vocab_size=320
)


def _opened(folder: Path | str) -> Any:
    import torch

    return ModelFiles(str(folder)).weights(torch.float32)


def _saved(folder: Path, **changes: Any) -> str:
    """Return a folder with a tokenizer that lacks something."""
    tokenizer = train_tokenizer(["a"], SCRATCH)
    for name, value in changes.items():
        setattr(tokenizer, name, value)
    tokenizer.save_pretrained(folder)
    return str(folder)


def test_a_tokenizer_without_a_chat_template_is_refused(tmp_path: Path) -> None:
    folder = _saved(tmp_path / "plain", chat_template=None)
    with pytest.raises(RecipeError) as caught:
        ModelFiles(folder).chat_format()
    assert str(caught.value) == (
        f"the tokenizer of {folder!r} has no chat template, so messages cannot become text. Choose "
        "the instruction-tuned variant of the model or, for a student, name a template in "
        "student.chat_template: a file, or one of chatml, plain."
    )


def test_of_several_chat_templates_the_default_one_counts(tmp_path: Path) -> None:
    several = {"tool_use": "{{ 'tools' }}", "default": CHAT_TEMPLATE}
    chat_format = ModelFiles(_saved(tmp_path / "some", chat_template=several)).chat_format()
    ids = chat_format.prompt_ids([{"role": "user", "content": "Hi"}])
    assert chat_format.tokenizer.decode(ids) == "<|user|>Hi<|end|><|assistant|>"
    del several["default"]
    folder = _saved(tmp_path / "others", chat_template=several)
    with pytest.raises(RecipeError) as caught:
        ModelFiles(folder).chat_format()
    assert str(caught.value) == (
        f"the tokenizer of {folder!r} has the chat templates ['tool_use'] but no default one. "
        "Choose a model that has or, for a student, name a file with one of them in "
        "student.chat_template."
    )


def test_a_file_gives_a_base_model_its_chat_template(tmp_path: Path) -> None:
    folder, file = _saved(tmp_path / "plain", chat_template=None), tmp_path / "own.jinja"
    file.write_text(CHAT_TEMPLATE)
    spec = PretrainedStudent(model=folder, chat_template=str(file))
    chat_format = ModelFiles.of(spec).chat_format()
    assert chat_format.tokenizer.chat_template == CHAT_TEMPLATE
    ids = chat_format.prompt_ids([{"role": "user", "content": "Hi"}])
    assert chat_format.tokenizer.decode(ids) == "<|user|>Hi<|end|><|assistant|>"
    missing = spec.model_copy(update={"chat_template": str(tmp_path / "none.jinja")})
    with pytest.raises(RecipeError, match=r"student\.chat_template '.*none\.jinja' cannot be read"):
        ModelFiles.of(missing).chat_format()


BASE = TemplateShape("", end="<eos>", pad="<pad>", others=("<bos>",))
BASE_OF_A_CHAT_MODEL = TemplateShape(
    "", end="<|endoftext|>", pad="<|pad|>", others=("<|im_start|>", "<|im_end|>")
)
TURNS = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hi."},
    {"role": "assistant", "content": "Yes?"},
    {"role": "user", "content": "Bye."},
]


@pytest.mark.parametrize(
    ("name", "shape", "bos", "prompt", "target"),
    [
        (
            "plain",
            BASE,
            "<bos>",
            "<bos>Be brief.\n\nUser: Hi.\n\nAssistant: Yes?<eos>User: Bye.\n\nAssistant:",
            " See you.<eos>",
        ),
        (
            "plain",
            BASE_OF_A_CHAT_MODEL,
            None,
            "Be brief.\n\nUser: Hi.\n\nAssistant: Yes?<|endoftext|>User: Bye.\n\nAssistant:",
            " See you.<|endoftext|>",
        ),
        (
            "chatml",
            BASE_OF_A_CHAT_MODEL,
            None,
            "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi.<|im_end|>\n"
            "<|im_start|>assistant\nYes?<|im_end|>\n<|im_start|>user\nBye.<|im_end|>\n"
            "<|im_start|>assistant\n",
            "See you.<|im_end|>",
        ),
    ],
    ids=["plain", "plain without a first token", "chatml"],
)
def test_a_base_model_gets_a_built_in_template(
    tmp_path: Path, name: str, shape: TemplateShape, bos: str | None, prompt: str, target: str
) -> None:
    tokenizer = copy.deepcopy(make_tokenizer(shape))
    tokenizer.chat_template, tokenizer.bos_token = None, bos
    tokenizer.save_pretrained(tmp_path)
    student = PretrainedStudent(model=str(tmp_path), chat_template=name)
    chat_format = ModelFiles.of(student).chat_format()
    row = chat_format.row(TURNS, "See you.")
    assert chat_format.tokenizer.decode(chat_format.prompt_ids(TURNS)) == prompt
    assert chat_format.tokenizer.decode(row.response_ids) == target
    assert chat_format.read(row.response_ids) == "See you."
    assert row.response_ids[-1] in chat_format.end_ids


def test_a_built_in_template_is_refused_where_the_tokenizer_lacks_its_tokens(
    tmp_path: Path,
) -> None:
    tokenizer = copy.deepcopy(make_tokenizer(BASE))
    tokenizer.chat_template = None
    tokenizer.save_pretrained(tmp_path)
    student = PretrainedStudent(model=str(tmp_path), chat_template="chatml")
    with pytest.raises(TrainingError, match="ends a response without any of '<eos>', at which"):
        ModelFiles.of(student).chat_format().row(TURNS, "See you.")


CLOCK = "{{ strftime_now('%d %b %Y') }}|" + CHAT_TEMPLATE


def _written_date(chat_format: ChatFormat) -> str:
    prompt: str = chat_format.tokenizer.decode(chat_format.prompt_ids(TURNS))
    return prompt.partition("|")[0]


def test_a_template_that_reads_the_clock_writes_one_date_wherever_the_model_goes(
    tmp_path: Path,
) -> None:
    folder = _saved(tmp_path / "came", chat_template=CLOCK)
    came = ModelFiles(folder).chat_format()
    assert (came.date, _written_date(came)) == (TODAY, "15 Jan 2026")
    came.tokenizer.save_pretrained(tmp_path / "saved")
    again = ModelFiles(str(tmp_path / "saved")).chat_format()
    assert again.tokenizer.chat_template == came.tokenizer.chat_template
    named: dict[str, JsonValue] = {"strftime_now": "2026-11-26", "style": None}
    for place in (folder, str(tmp_path / "saved")):
        later = ModelFiles(place, chat_template_kwargs=named).chat_format()
        assert (later.date, _written_date(later)) == ("2026-11-26", "26 Nov 2026")
        later.tokenizer.save_pretrained(tmp_path / "later")
        kept = ModelFiles(str(tmp_path / "later")).chat_format()
        assert (kept.date, _written_date(kept)) == ("2026-11-26", "26 Nov 2026")


def test_a_template_that_reads_no_clock_stays_as_its_author_wrote_it(tmp_path: Path) -> None:
    came = ModelFiles(_saved(tmp_path, chat_template=CHAT_TEMPLATE)).chat_format()
    assert (came.date, came.tokenizer.chat_template) == (None, CHAT_TEMPLATE)


@pytest.mark.parametrize("date", ["today", "26 Nov 2026", 20261126, None])
def test_what_is_not_a_date_is_refused(tmp_path: Path, date: Any) -> None:
    folder = _saved(tmp_path, chat_template=CLOCK)
    files = ModelFiles(folder, chat_template_kwargs={"strftime_now": date})
    with pytest.raises(RecipeError) as caught:
        files.chat_format()
    assert str(caught.value) == (
        f"chat_template_kwargs.strftime_now is {date!r}, not a date, so the chat template could "
        "not write it. Give it as '2026-01-31', in quotes."
    )


def test_settings_of_the_template_stay_with_the_tokenizer(tmp_path: Path) -> None:
    template = CHAT_TEMPLATE.replace("<|assistant|>", "<|assistant|>{{ style or 'plain' }}:")
    folder = _saved(tmp_path / "styled", chat_template=template)
    spec = TransformersTeacher(model=folder, chat_template_kwargs={"style": "it's\n{{ short }}"})
    chat_format = ModelFiles.of(spec).chat_format()
    chat_format.tokenizer.save_pretrained(tmp_path / "saved")
    for each in (chat_format, ModelFiles(str(tmp_path / "saved")).chat_format()):
        ids = each.prompt_ids([{"role": "user", "content": "Hi"}])
        prompt = "<|user|>Hi<|end|><|assistant|>it's\n{{ short }}:"
        assert each.tokenizer.decode(ids) == prompt


def test_a_students_instructions_stay_with_its_tokenizer(tmp_path: Path) -> None:
    folder = _saved(tmp_path / "plain")
    spec = PretrainedStudent(model=folder, system_prompt="Name the intent.")
    chat_format = ModelFiles.of(spec).chat_format()
    chat_format.tokenizer.save_pretrained(tmp_path / "saved")
    for each in (chat_format, ModelFiles(str(tmp_path / "saved")).chat_format()):
        ids = each.prompt_ids([{"role": "user", "content": "Hi"}])
        prompt = "<|system|>Name the intent.<|user|>Hi<|assistant|>"
        assert each.tokenizer.decode(ids) == prompt


def test_a_student_that_is_trained_further_reads_what_its_new_recipe_says(tmp_path: Path) -> None:
    asking = "<|assistant|>{{ strftime_now('%Y') }}{{ style }}{{ length }}:"
    came = _saved(tmp_path, chat_template=CHAT_TEMPLATE.replace("<|assistant|>", asking))

    def prompt(model: str, **named: Any) -> str:
        spec = PretrainedStudent(model=model, **named)
        tokenizer = ModelFiles.of(spec).chat_format().tokenizer
        tokenizer.save_pretrained(tmp_path / "saved")
        turns = [{"role": "user", "content": "Hi"}]
        text: str = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        return text.replace("<|end|>", "")

    saved, first = str(tmp_path / "saved"), {"style": "wordy", "length": 9}
    told = "<|system|>Be brief.<|user|>Hi<|assistant|>2026wordy9:"
    named: dict[str, Any] = {"system_prompt": "Be brief.", "chat_template_kwargs": first}
    assert prompt(came, **named) == told
    assert prompt(saved) == told
    assert prompt(saved, **named) == told
    assert prompt(saved, chat_template_kwargs={"style": "terse"}) == told.replace("wordy", "terse")
    later = prompt(saved, system_prompt="Be kind.", chat_template_kwargs={"length": 1})
    assert later == "<|system|>Be kind.<|user|>Hi<|assistant|>2026terse1:"


def test_a_teachers_instructions_are_no_part_of_its_template(tmp_path: Path) -> None:
    spec = TransformersTeacher(model=_saved(tmp_path), system_prompt="auto")
    chat_format = ModelFiles.of(spec).chat_format()
    ids = chat_format.prompt_ids([{"role": "user", "content": "Hi"}])
    assert chat_format.tokenizer.decode(ids) == "<|user|>Hi<|assistant|>"


def test_a_tokenizer_without_padding_pads_with_its_end(tmp_path: Path) -> None:
    tokenizer = ModelFiles(_saved(tmp_path, pad_token=None)).chat_format().tokenizer
    assert tokenizer.pad_token_id == tokenizer.eos_token_id


def test_the_ends_of_the_generation_config_count(tmp_path: Path) -> None:
    folder = make_tiny_model(tmp_path / "tiny")
    (folder / "generation_config.json").write_text('{"eos_token_id": [7, 9]}')
    assert ModelFiles(str(folder)).chat_format().end_ids == {1, 7, 9}
    (folder / "generation_config.json").unlink()
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"eos_token_id": 8}))
    assert ModelFiles(str(folder)).chat_format().end_ids == {1, 8}


def test_pickled_weights_are_never_loaded(tmp_path: Path) -> None:
    import torch

    folder = make_tiny_model(tmp_path / "tiny")
    model = _opened(folder)
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
    with pytest.raises(RecipeError) as caught:
        _opened(folder)
    assert str(caught.value) == (
        f"model {str(folder)!r} lacks 3 weights, such as 'model.layers.1.mlp.down_proj.weight', or "
        "has them in another shape; they would be random. Name a complete causal language model."
    )


def test_a_pretrained_student_with_weights_of_another_shape_is_refused(tmp_path: Path) -> None:
    def cut(weights: dict[str, Any]) -> None:
        weights["lm_head.weight"] = weights["lm_head.weight"][:10].clone()

    folder = _with_weights(make_tiny_model(tmp_path / "tiny"), cut)
    with pytest.raises(RecipeError, match=r"lacks 1 weights, such as 'lm_head\.weight', or has"):
        _opened(folder)


def test_an_output_layer_that_is_the_input_embedding_is_not_missing(tmp_path: Path) -> None:
    import torch

    folder = make_tiny_model(tmp_path / "tiny")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": True}))
    model = _opened(_with_weights(folder, lambda weights: weights.pop("lm_head.weight")))
    assert torch.equal(model.lm_head.weight, model.model.embed_tokens.weight)


def test_a_model_that_cannot_be_read_is_named_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(RecipeError) as caught:
        ModelFiles("nobody/nothing").chat_format()  # tests are offline
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
    assert _opened("~/tiny").config.vocab_size == 300


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
        ModelFiles(str(folder)).chat_format()
    spec = PretrainedStudent(model=str(folder), revision="1" * 40, trust_remote_code=True)
    assert type(ModelFiles.of(spec).chat_format().tokenizer).__name__ == "OwnTokenizer"
