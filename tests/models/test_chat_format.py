"""Whatever the chat template: the last response and its end are learnt, and read back as is."""

import copy
import dataclasses
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distillery.data.chat import with_system_turn
from distillery.models.chat_format import IGNORED, ChatFormat
from distillery.models.chat_templates import with_system_prompt, with_template_kwargs
from distillery.training.batches import PadRight
from schemas.errors import RecipeError, TrainingError
from tests.fixtures_templates import (
    EMPTY_THOUGHTS,
    PUBLISHED,
    REASONING_KEPT,
    SHAPES,
    TemplateShape,
    make_tokenizer,
)

USER: Any = [{"role": "user", "content": "Hi."}]
SYSTEM: Any = [{"role": "system", "content": "Be brief."}, *USER]
REPLY = [{"role": "assistant", "content": "Yes?"}, {"role": "user", "content": "Bye."}]
TURNS, SYSTEM_TURNS = [*USER, *REPLY], [*SYSTEM, *REPLY]
RESPONSE = "See you."

# Written by hand: what the model reads before it answers.
PROMPTS = [
    (
        "chatml",
        USER,
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        "<|im_start|>user\nHi.<|im_end|>\n<|im_start|>assistant\n",
    ),
    (
        "chatml",
        TURNS,
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        "<|im_start|>user\nHi.<|im_end|>\n<|im_start|>assistant\nYes?<|im_end|>\n"
        "<|im_start|>user\nBye.<|im_end|>\n<|im_start|>assistant\n",
    ),
    (
        "chatml",
        SYSTEM_TURNS,
        "<|im_start|>system\nBe brief.<|im_end|>\n"
        "<|im_start|>user\nHi.<|im_end|>\n<|im_start|>assistant\nYes?<|im_end|>\n"
        "<|im_start|>user\nBye.<|im_end|>\n<|im_start|>assistant\n",
    ),
    (
        "headers",
        USER,
        "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nHi.<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
    ),
    (
        "headers",
        SYSTEM_TURNS,
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nHi.<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\nYes?<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nBye.<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
    ),
    ("instructions", USER, "<s>[INST] Hi. [/INST]"),
    ("instructions", SYSTEM, "<s>[INST] Be brief.\n\nHi. [/INST]"),
    (
        "instructions",
        SYSTEM_TURNS,
        "<s>[INST] Be brief.\n\nHi. [/INST] Yes?</s>[INST] Bye. [/INST]",
    ),
    (
        "model turns",
        USER,
        "<bos><start_of_turn>user\nHi.<end_of_turn>\n<start_of_turn>model\n",
    ),
    (
        "model turns",
        TURNS,
        "<bos><start_of_turn>user\nHi.<end_of_turn>\n<start_of_turn>model\nYes?<end_of_turn>\n"
        "<start_of_turn>user\nBye.<end_of_turn>\n<start_of_turn>model\n",
    ),
    ("reasoning stripped", USER, "<|user|>Hi.<|end|><|assistant|>"),
    (
        "reasoning stripped",
        SYSTEM_TURNS,
        "<|system|>Be brief.<|end|><|user|>Hi.<|end|><|assistant|>Yes?<|end|>"
        "<|user|>Bye.<|end|><|assistant|>",
    ),
]
SPOKEN = {"instructions": " See you.</s>"}
"""What counts, where it is more than the response and the end."""

every_shape = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)


@pytest.mark.parametrize(("name", "messages", "prompt"), PROMPTS)
def test_the_last_response_and_its_end_count_and_nothing_else(
    name: str, messages: Any, prompt: str
) -> None:
    shape = SHAPES[name]
    tokenizer = make_tokenizer(shape)
    row = ChatFormat(tokenizer).row(messages, RESPONSE)
    border = row.labels.count(IGNORED)
    assert row.labels == [IGNORED] * border + row.input_ids[border:]
    assert tokenizer.decode(row.input_ids[:border]) == prompt
    assert tokenizer.decode(row.input_ids[border:]) == SPOKEN.get(name, RESPONSE + shape.end)
    assert row.num_response_tokens == len(row.input_ids) - border


@every_shape
def test_padding_never_counts_and_every_end_does(shape: TemplateShape) -> None:
    tokenizer = make_tokenizer(shape)
    texts = ("No.", RESPONSE, "a much longer response than the others")
    rows = [ChatFormat(tokenizer).row(TURNS, text) for text in texts]
    collate = PadRight(tokenizer.pad_token_id)
    batch = collate([{"row": 0, "input_ids": row.input_ids, "labels": row.labels} for row in rows])
    for row, ids, labels, mask in zip(
        rows, batch["input_ids"], batch["labels"], batch["attention_mask"], strict=True
    ):
        length = len(row.input_ids)
        assert labels[labels != IGNORED].tolist() == row.response_ids
        assert int((labels == tokenizer.eos_token_id).sum()) == 1
        assert labels[length - 1] == tokenizer.eos_token_id
        assert set(labels[length:].tolist()) <= {IGNORED}
        assert set(ids[length:].tolist()) <= {tokenizer.pad_token_id}
        assert mask.tolist() == [1] * length + [0] * (len(ids) - length)
    assert batch["labels"].shape[1] > len(rows[0].labels)


@every_shape
@settings(deadline=None, max_examples=20)
@given(text=st.text(min_size=1).filter(lambda text: text.strip() and "</" not in text))
def test_any_text_counts_whole(shape: TemplateShape, text: str) -> None:
    tokenizer = make_tokenizer(shape)
    counted = tokenizer.decode(ChatFormat(tokenizer).row(TURNS, text).response_ids)
    assert counted.removesuffix(shape.end).strip() == text.strip()


@every_shape
@pytest.mark.parametrize("response", ["", " \n"])
def test_a_row_without_response_tokens_is_refused(shape: TemplateShape, response: str) -> None:
    with pytest.raises(TrainingError) as caught:
        ChatFormat(make_tokenizer(shape)).row(TURNS, response)
    assert str(caught.value) == (
        f"the response to 'Bye.' is {response!r}, so there is nothing to learn from it but to "
        "stop. Leave the row out."
    )


# -- reasoning text ------------------------------------------------------------------------------

THOUGHT = "<think>She leaves.</think>See you."
THOUGHTFUL = [
    *USER,
    {"role": "assistant", "content": "<think>A greeting.</think>Yes?"},
    REPLY[1],
]


@pytest.mark.parametrize("shape", [SHAPES["reasoning stripped"], EMPTY_THOUGHTS])
def test_reasoning_that_the_template_strips_is_refused_never_cut(shape: TemplateShape) -> None:
    with pytest.raises(TrainingError, match="does not keep the response '<think>She leaves") as why:
        ChatFormat(make_tokenizer(shape)).row(USER, THOUGHT)
    assert "(it renders 'See you.')" in str(why.value)


def test_reasoning_that_the_template_keeps_counts() -> None:
    tokenizer = make_tokenizer(REASONING_KEPT)
    row = ChatFormat(tokenizer).row(THOUGHTFUL, THOUGHT)
    assert tokenizer.decode(row.response_ids) == THOUGHT + "<|end|>"


@pytest.mark.parametrize("shape", [SHAPES["reasoning stripped"], EMPTY_THOUGHTS, REASONING_KEPT])
def test_reasoning_of_earlier_turns_is_rendered_as_at_inference(shape: TemplateShape) -> None:
    tokenizer = make_tokenizer(shape)
    row = ChatFormat(tokenizer).row(THOUGHTFUL, RESPONSE)
    text = tokenizer.decode(row.input_ids)
    assert text.startswith("<|user|>Hi.<|end|><|assistant|>Yes?<|end|><|user|>Bye.<|end|>")
    assert tokenizer.decode(row.response_ids) == RESPONSE + "<|end|>"


def test_an_empty_thought_of_the_generation_prompt_does_not_count() -> None:
    tokenizer = make_tokenizer(EMPTY_THOUGHTS)
    row = ChatFormat(tokenizer).row(USER, RESPONSE)
    border = row.labels.count(IGNORED)
    prompt = "<|user|>Hi.<|end|><|assistant|><think>\n\n</think>\n\n"
    assert tokenizer.decode(row.input_ids[:border]) == prompt
    assert tokenizer.decode(row.input_ids[border:]) == RESPONSE + "<|end|>"


def test_an_empty_thought_of_the_generation_prompt_alone_stays_there() -> None:
    plain = SHAPES["reasoning stripped"]
    template = plain.template.replace(
        "<|assistant|>{% endif %}", "<|assistant|><think></think>{% endif %}"
    )
    shape = TemplateShape(template, plain.end, plain.pad, plain.others)
    tokenizer = make_tokenizer(shape)
    row = ChatFormat(tokenizer).row(USER, RESPONSE)
    prompt = "<|user|>Hi.<|end|><|assistant|><think></think>"
    assert tokenizer.decode(row.input_ids) == prompt + RESPONSE + "<|end|>"
    assert tokenizer.decode(row.response_ids) == RESPONSE + "<|end|>"


# -- published formats ---------------------------------------------------------------------------

every_published = pytest.mark.parametrize("shape", PUBLISHED.values(), ids=PUBLISHED)


@every_published
def test_what_is_learnt_reads_as_the_response(shape: TemplateShape) -> None:
    tokenizer = make_tokenizer(shape)
    chat_format = ChatFormat(tokenizer)
    row = chat_format.row(TURNS, "refund")
    border = row.labels.count(IGNORED)
    assert row.input_ids[:border] == chat_format.prompt_ids(TURNS)
    assert tokenizer.decode(row.input_ids[:border]).endswith(shape.prompt_end)
    assert tokenizer.decode(row.response_ids) == shape.target
    assert chat_format.read(row.response_ids) == "refund"
    assert row.response_ids[-1] in chat_format.end_ids
    assert not set(row.response_ids[:-1]) & chat_format.end_ids


@every_published
@settings(deadline=None, max_examples=20)
@given(text=st.text(min_size=1).filter(lambda t: t.strip() and not set("<[") & set(t)))
def test_any_response_reads_as_it_was(shape: TemplateShape, text: str) -> None:
    chat_format = ChatFormat(make_tokenizer(shape))
    assert chat_format.read(chat_format.row(USER, text).response_ids) == text.strip()


@every_published
def test_the_saved_student_stops_where_its_rows_end(shape: TemplateShape) -> None:
    from transformers import GenerationConfig

    tokenizer = make_tokenizer(shape)
    author = GenerationConfig(do_sample=True, top_k=64, eos_token_id=tokenizer.eos_token_id)
    saved = ChatFormat(tokenizer, author).generation_config(author)
    ends = saved.eos_token_id
    found = set(tokenizer.convert_ids_to_tokens(ends if isinstance(ends, list) else [ends]))
    assert found == {shape.end, shape.eos or shape.end}
    assert (saved.do_sample, saved.top_k, saved.pad_token_id) == (True, 64, tokenizer.pad_token_id)


def test_sampling_settings_that_contradict_each_other_are_not_saved(tmp_path: Path) -> None:
    from transformers import GenerationConfig

    tokenizer = make_tokenizer(PUBLISHED["gemma 3"])
    author = GenerationConfig(temperature=0.6)  # without do_sample
    saved = ChatFormat(tokenizer, author).generation_config(author)
    saved.save_pretrained(tmp_path)
    assert (saved.do_sample, saved.temperature) == (None, None)


THOUGHTS = {
    "qwen 3": "<think>\nMoney back?\n</think>\n\nrefund",
    "qwen 3.5": "Money back?\n</think>\n\nrefund",
    "qwq": "Money back?\n</think>\n\nrefund",
    "gpt-oss": "<|channel|>analysis<|message|>Money back?<|end|>"
    "<|start|>assistant<|channel|>final<|message|>refund",
}


@pytest.mark.parametrize(("name", "written"), THOUGHTS.items(), ids=THOUGHTS)
def test_what_a_model_thinks_before_it_responds_is_not_its_response(
    name: str, written: str
) -> None:
    shape = PUBLISHED[name]
    tokenizer = make_tokenizer(shape)
    chat_format = ChatFormat(tokenizer)
    ids = tokenizer(written + shape.end, add_special_tokens=False)["input_ids"]
    assert chat_format.read(ids) == chat_format.read(ids[:-1]) == "refund"
    unfinished = written.partition("back?")[0]
    assert chat_format.read(tokenizer(unfinished, add_special_tokens=False)["input_ids"]) == ""


@pytest.mark.parametrize("name", ["qwen 3", "qwen 3.5"])
def test_thinking_that_is_switched_off_costs_no_token_of_the_response(name: str) -> None:
    shape = PUBLISHED[name]
    template = with_template_kwargs(shape.template, {"enable_thinking": False})
    tokenizer = make_tokenizer(dataclasses.replace(shape, template=template))
    chat_format = ChatFormat(tokenizer)
    row = chat_format.row(USER, "refund")
    assert tokenizer.decode(row.response_ids) == "refund<|im_end|>"
    prompt = tokenizer.decode(chat_format.prompt_ids(USER))
    assert prompt.endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")
    assert chat_format.read(row.response_ids) == "refund"


def test_special_tokens_within_a_response_are_not_read() -> None:
    tokenizer = make_tokenizer(PUBLISHED["qwen 3.5"])
    ids = tokenizer("\n</think>\n\nre<|im_start|>fund", add_special_tokens=False)["input_ids"]
    assert ChatFormat(tokenizer).read(ids) == "refund"


# -- instructions that are part of the template ---------------------------------------------------

INSTRUCTIONS = """Say "{{ it }}" — it's {% short %}:\n\\boxed{} 🙂"""
TAKES_SYSTEM = {
    name: shape
    for name, shape in {**SHAPES, **PUBLISHED}.items()
    if name not in ("model turns", "mistral 0.3", "gemma 3")
}


@pytest.mark.parametrize("name", TAKES_SYSTEM)
@pytest.mark.parametrize("turns", [USER, SYSTEM, TURNS, SYSTEM_TURNS])
def test_instructions_in_the_template_read_as_a_system_turn_before_the_prompts(
    name: str, turns: Any
) -> None:
    shape = TAKES_SYSTEM[name]
    plain = ChatFormat(make_tokenizer(shape))
    instructed = _format(shape, with_system_prompt(shape.template, INSTRUCTIONS))
    assert instructed.prompt_ids(turns) == plain.prompt_ids(with_system_turn(turns, INSTRUCTIONS))
    row = instructed.row(turns, RESPONSE)
    assert row == plain.row(with_system_turn(turns, INSTRUCTIONS), RESPONSE)
    assert INSTRUCTIONS in instructed.tokenizer.decode(row.input_ids)


def test_instructions_in_a_template_without_system_turns_are_refused() -> None:
    shape = SHAPES["model turns"]
    with pytest.raises(RecipeError, match="System role not supported"):
        _format(shape, with_system_prompt(shape.template, "Be brief.")).prompt_ids(USER)


# -- thoughts that are learnt ---------------------------------------------------------------------

LEARNT = {
    "qwq": "Money back?\n</think>\n\nrefund<|im_end|>",
    "r1 distill": "Money back?\n</think>\n\nrefund<|end_of_sentence|>",
    "olmo 3 think": "\nMoney back?\n</think>\n\nrefund<|endoftext|>",
    "gpt-oss": "<|channel|>analysis<|message|>Money back?<|end|><|start|>assistant"
    "<|channel|>final<|message|>refund<|return|>",
    "phi 4 mini": "<think>\nMoney back?\n</think>\n\nrefund<|end|>",
    "mistral 0.3": " <think>\nMoney back?\n</think>\n\nrefund</s>",
    "mistral nemo": "<think>\nMoney back?\n</think>\n\nrefund</s>",
    "qwen 3": "<think>\nMoney back?\n</think>\n\nrefund<|im_end|>",
    "qwen 3.5": "Money back?\n</think>\n\nrefund<|im_end|>",
    "gemma 4": "<|channel>thought\nMoney back?\n<channel|>refund<turn|>",
    "magistral": "[THINK]\nMoney back?\n[/THINK]\n\nrefund</s>",
}


@pytest.mark.parametrize(("name", "target"), LEARNT.items(), ids=LEARNT)
def test_thoughts_are_learnt_as_the_template_writes_them(name: str, target: str) -> None:
    tokenizer = make_tokenizer(PUBLISHED[name])
    chat_format = ChatFormat(tokenizer)
    row = chat_format.row(TURNS, "refund", "Money back?\n")
    assert tokenizer.decode(row.response_ids) == target
    assert chat_format.split(row.response_ids) == ("Money back?", "refund")
    assert row.input_ids[: row.labels.count(IGNORED)] == chat_format.prompt_ids(TURNS)


@every_published
@pytest.mark.parametrize("nothing", ["", " \n", None])
def test_a_row_without_thoughts_is_a_plain_one(shape: TemplateShape, nothing: str | None) -> None:
    chat_format = ChatFormat(make_tokenizer(shape))
    assert chat_format.row(USER, "refund", nothing) == chat_format.row(USER, "refund")


@pytest.mark.parametrize("name", ["qwen 3", "qwen 3.5"])
def test_thoughts_are_refused_where_thinking_is_switched_off(name: str) -> None:
    template = with_template_kwargs(PUBLISHED[name].template, {"enable_thinking": False})
    with pytest.raises(TrainingError) as caught:
        _format(PUBLISHED[name], template).row(USER, "refund", "Money back?")
    assert "ends the thoughts before the response begins ('" in str(caught.value)
    assert "(often enable_thinking: true)" in str(caught.value)


def test_thoughts_are_refused_where_the_template_takes_them_out() -> None:
    chat_format = ChatFormat(make_tokenizer(SHAPES["reasoning stripped"]), name="mild")
    with pytest.raises(TrainingError) as caught:
        chat_format.row(USER, "refund", "Money back?")
    assert str(caught.value) == (
        "the chat template of 'mild' leaves thoughts out of a response, so the student cannot "
        "learn them. Set training.learn_reasoning to false, or name a template that keeps them in "
        "student.chat_template."
    )


@pytest.mark.parametrize("name", ["phi 4 mini", "qwq"])
def test_a_special_token_within_thoughts_is_refused(name: str) -> None:
    shape = PUBLISHED[name]
    with pytest.raises(TrainingError, match=r"hold '.*', a special token of the student's tokeniz"):
        ChatFormat(make_tokenizer(shape)).row(USER, "refund", f"Then {shape.end} it ends.")


# -- a beginning of sequence that comes twice ------------------------------------------------------


@pytest.mark.parametrize("name", ["gemma 3", "mistral 0.3", "qwq"])
def test_a_beginning_that_the_tokenizer_adds_too_stands_once_or_as_the_template_has_it(
    name: str,
) -> None:
    from tokenizers.processors import TemplateProcessing

    shape = PUBLISHED[name]
    plain, adding = make_tokenizer(shape), copy.deepcopy(make_tokenizer(shape))
    bos = adding.bos_token
    adding.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{bos} $A", special_tokens=[(bos, adding.bos_token_id)]
    )
    assert adding(bos)["input_ids"] == [adding.bos_token_id] * 2
    row = ChatFormat(adding).row(USER, "refund")
    assert row == ChatFormat(plain).row(USER, "refund")
    assert ChatFormat(adding).prompt_ids(USER) == ChatFormat(plain).prompt_ids(USER)
    if "bos_token" in shape.template:
        assert row.input_ids.count(adding.bos_token_id) == 1


# -- a system turn that moves ----------------------------------------------------------------------


def test_a_system_turn_that_moves_once_a_response_follows_is_learnt_where_it_is_read() -> None:
    tokenizer = make_tokenizer(PUBLISHED["mistral nemo"])
    chat_format = ChatFormat(tokenizer)
    row = chat_format.row(SYSTEM_TURNS, f" {RESPONSE}\n")
    border = row.labels.count(IGNORED)
    prompt = "<s>[INST]Hi.[/INST]Yes?</s>[INST]Be brief.\n\nBye.[/INST]"
    assert tokenizer.decode(row.input_ids[:border]) == prompt
    assert tokenizer.decode(row.input_ids[border:]) == f"{RESPONSE}</s>"


# -- tokens and texts at the borders -------------------------------------------------------------


def test_a_token_that_would_reach_over_the_border_is_two() -> None:
    tokenizer = make_tokenizer(SHAPES["chatml"])
    response = "\n\nSee you."
    prompt = tokenizer.apply_chat_template(USER, tokenize=False, add_generation_prompt=True)
    prompt_ids, whole_ids = (
        tokenizer(text, add_special_tokens=False)["input_ids"]
        for text in (prompt, prompt + response)
    )
    assert whole_ids[: len(prompt_ids)] != prompt_ids  # three line breaks are "\n\n" and "\n"
    row = ChatFormat(tokenizer).row(USER, response)
    assert row.input_ids[: row.labels.count(IGNORED)] == prompt_ids
    assert tokenizer.decode(row.response_ids) == response + "<|im_end|>"


def test_white_space_that_the_template_takes_off_is_no_other_response() -> None:
    tokenizer = make_tokenizer(SHAPES["headers"])
    row = ChatFormat(tokenizer).row(USER, f"\n {RESPONSE}\n")
    assert row == ChatFormat(tokenizer).row(USER, RESPONSE)


@pytest.mark.parametrize("token", ["<|im_end|>", "<|im_start|>", "<|endoftext|>"])
def test_a_special_token_within_a_response_is_refused(token: str) -> None:
    tokenizer = make_tokenizer(SHAPES["chatml"])
    with pytest.raises(TrainingError) as caught:
        ChatFormat(tokenizer).row(USER, f"See {token} you.")
    assert f"the response 'See {token} you.' holds '{token}', a special token" in str(caught.value)


def test_composed_accents_are_the_same_text() -> None:
    tokenizer = make_tokenizer(SHAPES["chatml"], "NFC")
    row = ChatFormat(tokenizer).row(USER, "cafe\u0301")
    assert tokenizer.decode(row.response_ids) == "caf\u00e9<|im_end|>"


def test_a_tokenizer_that_cannot_write_the_response_is_refused() -> None:
    tokenizer = make_tokenizer(SHAPES["chatml"], "Lowercase")
    with pytest.raises(TrainingError, match=r"tokenizer turns the response 'Yes\.' into 'yes\.'"):
        ChatFormat(tokenizer).row(USER, "Yes.")


def _format(shape: TemplateShape, template: str) -> ChatFormat:
    return ChatFormat(make_tokenizer(dataclasses.replace(shape, template=template)))


@pytest.mark.parametrize("tail", ["", " (end)"])
def test_a_response_without_an_end_is_refused(tail: str) -> None:
    shape = SHAPES["model turns"]
    template = shape.template.replace("<end_of_turn>", tail)
    with pytest.raises(TrainingError) as caught:
        _format(shape, template).row(USER, "refund")
    assert "ends a response without any of '<end_of_turn>', at which generation stops" in str(
        caught.value
    )


def test_a_prompt_that_changes_once_the_response_follows_is_refused() -> None:
    shape = SHAPES["model turns"]
    template = shape.template.replace("<start_of_turn>{{", "{% if loop.last %}!{% endif %}{{")
    with pytest.raises(TrainingError) as caught:
        _format(shape, template).row(USER, "refund")
    assert "renders the prompt differently once the response follows: '<bos>!user" in str(
        caught.value
    )


def test_a_template_that_changes_the_response_is_refused() -> None:
    shape = SHAPES["model turns"]
    template = shape.template.replace("| trim", "| upper")
    with pytest.raises(TrainingError, match=r"does not keep the response 'Yes' \(it renders 'YES"):
        _format(shape, template).row(USER, "Yes")


def test_turns_that_a_template_refuses_are_named() -> None:
    chat_format = ChatFormat(make_tokenizer(PUBLISHED["mistral 0.3"]), name="mistral")
    with pytest.raises(RecipeError) as caught:
        chat_format.row(SYSTEM, RESPONSE)
    assert str(caught.value) == (
        "the chat template of 'mistral' cannot render turns of ['system', 'user']: roles must "
        "alternate user/assistant/user/assistant. Choose a model whose template can, or change "
        "the messages of the data (some models take no system turn)."
    )


@pytest.mark.parametrize(
    ("template", "why"),
    [
        (SHAPES["model turns"].template, "System role not supported"),
        ("{{ messages[0]['content'] + 1 }}", "can only concatenate str"),
        ("{{ messages[0]['tool_calls'][0] }}", "has no attribute 'tool_calls'"),
        ("{% for m in messages %}", "Unexpected end of template"),
    ],
)
def test_a_template_that_cannot_render_the_turns_says_why(template: str, why: str) -> None:
    shape = SHAPES["model turns"]
    with pytest.raises(RecipeError) as caught:
        _format(shape, template).row(SYSTEM, RESPONSE)
    assert "cannot render turns of ['system', 'user']" in str(caught.value)
    assert why in str(caught.value)
