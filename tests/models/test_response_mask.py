"""Whatever the chat template, the last response and its end count in the loss, and nothing else."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distillery.models.students import IGNORED, TokenizedRow, tokenize_row
from distillery.training.batches import PadRight
from schemas.errors import TrainingError
from tests.fixtures_templates import (
    EMPTY_THOUGHTS,
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


def _counted(row: TokenizedRow) -> list[int]:
    return [label for label in row.labels if label != IGNORED]


@pytest.mark.parametrize(("name", "messages", "prompt"), PROMPTS)
def test_the_last_response_and_its_end_count_and_nothing_else(
    name: str, messages: Any, prompt: str
) -> None:
    shape = SHAPES[name]
    tokenizer = make_tokenizer(shape)
    row = tokenize_row(tokenizer, messages, RESPONSE)
    border = row.labels.count(IGNORED)
    assert row.labels == [IGNORED] * border + row.input_ids[border:]
    assert tokenizer.decode(row.input_ids[:border]) == prompt
    assert tokenizer.decode(row.input_ids[border:]) == SPOKEN.get(name, RESPONSE + shape.end)
    assert row.num_response_tokens == len(row.input_ids) - border


@every_shape
def test_padding_never_counts_and_every_end_does(shape: TemplateShape) -> None:
    tokenizer = make_tokenizer(shape)
    texts = ("No.", RESPONSE, "a much longer response than the others")
    rows = [tokenize_row(tokenizer, TURNS, text) for text in texts]
    collate = PadRight(tokenizer.pad_token_id)
    batch = collate([{"row": 0, "input_ids": row.input_ids, "labels": row.labels} for row in rows])
    for row, ids, labels, mask in zip(
        rows, batch["input_ids"], batch["labels"], batch["attention_mask"], strict=True
    ):
        length = len(row.input_ids)
        assert labels[labels != IGNORED].tolist() == _counted(row)
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
    counted = tokenizer.decode(_counted(tokenize_row(tokenizer, TURNS, text)))
    assert counted.removesuffix(shape.end).strip() == text.strip()


@every_shape
@pytest.mark.parametrize("response", ["", " \n"])
def test_a_row_without_response_tokens_is_refused(shape: TemplateShape, response: str) -> None:
    with pytest.raises(TrainingError) as caught:
        tokenize_row(make_tokenizer(shape), TURNS, response)
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
        tokenize_row(make_tokenizer(shape), USER, THOUGHT)
    assert "(it renders 'See you.')" in str(why.value)


def test_reasoning_that_the_template_keeps_counts() -> None:
    tokenizer = make_tokenizer(REASONING_KEPT)
    row = tokenize_row(tokenizer, THOUGHTFUL, THOUGHT)
    assert tokenizer.decode(_counted(row)) == THOUGHT + "<|end|>"


@pytest.mark.parametrize("shape", [SHAPES["reasoning stripped"], EMPTY_THOUGHTS, REASONING_KEPT])
def test_reasoning_of_earlier_turns_is_rendered_as_at_inference(shape: TemplateShape) -> None:
    tokenizer = make_tokenizer(shape)
    row = tokenize_row(tokenizer, THOUGHTFUL, RESPONSE)
    text = tokenizer.decode(row.input_ids)
    assert text.startswith("<|user|>Hi.<|end|><|assistant|>Yes?<|end|><|user|>Bye.<|end|>")
    assert tokenizer.decode(_counted(row)) == RESPONSE + "<|end|>"


def test_an_empty_thought_of_the_generation_prompt_does_not_count() -> None:
    tokenizer = make_tokenizer(EMPTY_THOUGHTS)
    row = tokenize_row(tokenizer, USER, RESPONSE)
    border = row.labels.count(IGNORED)
    prompt = "<|user|>Hi.<|end|><|assistant|><think>\n\n</think>\n\n"
    assert tokenizer.decode(row.input_ids[:border]) == prompt
    assert tokenizer.decode(row.input_ids[border:]) == RESPONSE + "<|end|>"


def test_an_empty_thought_of_the_generation_prompt_alone_is_refused() -> None:
    plain = SHAPES["reasoning stripped"]
    template = plain.template.replace(
        "<|assistant|>{% endif %}", "<|assistant|><think></think>{% endif %}"
    )
    shape = TemplateShape(template, plain.end, plain.pad, plain.others)
    with pytest.raises(TrainingError, match="renders the prompt differently") as caught:
        tokenize_row(make_tokenizer(shape), USER, RESPONSE)
    assert "<|assistant|><think></think>' becomes " in str(caught.value)
    assert "<|assistant|>See you.<|end|>'" in str(caught.value)


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
    row = tokenize_row(tokenizer, USER, response)
    assert row.input_ids[: row.labels.count(IGNORED)] == prompt_ids
    assert tokenizer.decode(_counted(row)) == response + "<|im_end|>"


def test_white_space_that_the_template_takes_off_is_no_other_response() -> None:
    tokenizer = make_tokenizer(SHAPES["headers"])
    row = tokenize_row(tokenizer, USER, f"\n {RESPONSE}\n")
    assert row == tokenize_row(tokenizer, USER, RESPONSE)


@pytest.mark.parametrize("token", ["<|im_end|>", "<|im_start|>", "<|endoftext|>"])
def test_a_special_token_within_a_response_is_refused(token: str) -> None:
    tokenizer = make_tokenizer(SHAPES["chatml"])
    with pytest.raises(TrainingError) as caught:
        tokenize_row(tokenizer, USER, f"See {token} you.")
    assert f"the response 'See {token} you.' holds '{token}', a special token" in str(caught.value)


def test_composed_accents_are_the_same_text() -> None:
    tokenizer = make_tokenizer(SHAPES["chatml"], "NFC")
    row = tokenize_row(tokenizer, USER, "cafe\u0301")
    assert tokenizer.decode(_counted(row)) == "caf\u00e9<|im_end|>"


def test_a_tokenizer_that_cannot_write_the_response_is_refused() -> None:
    tokenizer = make_tokenizer(SHAPES["chatml"], "Lowercase")
    with pytest.raises(TrainingError, match=r"tokenizer turns the response 'Yes\.' into 'yes\.'"):
        tokenize_row(tokenizer, USER, "Yes.")


def test_an_end_that_the_template_does_not_write_is_refused() -> None:
    shape = SHAPES["model turns"]
    swapped = TemplateShape(
        shape.template, end="<eos>", pad=shape.pad, others=("<bos>", "<start_of_turn>", shape.end)
    )
    with pytest.raises(TrainingError) as caught:
        tokenize_row(make_tokenizer(swapped), USER, RESPONSE)
    assert "ends a response without '<eos>'" in str(caught.value)


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
    broken = TemplateShape(template, shape.end, shape.pad, shape.others)
    with pytest.raises(TrainingError) as caught:
        tokenize_row(make_tokenizer(broken), SYSTEM, RESPONSE)
    assert "cannot render turns of ['system', 'user']" in str(caught.value)
    assert why in str(caught.value)
