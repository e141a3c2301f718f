"""Chat templates of the shapes in use, each on a tiny tokenizer of its own."""

import functools
from dataclasses import dataclass
from typing import Any

_LOOP = "{% for m in messages %}"
_END = "{% endfor %}{% if add_generation_prompt %}"
_CORPUS = ["a card was stolen\n\nand I need a new one", "where is my transfer\n\n", "2 + 2\n\n\n\n"]


@dataclass(frozen=True)
class TemplateShape:
    """A chat template, and the special tokens that its tokenizer has."""

    template: str
    end: str
    """The end-of-sequence token, as the template writes it after a response."""

    pad: str
    others: tuple[str, ...] = ()
    """Special tokens besides; the first is the beginning-of-sequence token, where one is used."""


SHAPES = {
    # As Qwen's: a system message of its own where there is none, a line break after each turn.
    "chatml": TemplateShape(
        "{% if messages[0]['role'] != 'system' %}"
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
        + _LOOP
        + "<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
        + _END
        + "<|im_start|>assistant\n{% endif %}",
        end="<|im_end|>",
        pad="<|endoftext|>",
        others=("<|im_start|>",),
    ),
    # As Llama 3's: a header before each turn, white space around its text taken off.
    "headers": TemplateShape(
        "{{ bos_token }}"
        + _LOOP
        + "<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n\n{{ m['content'] | trim }}"
        "<|eot_id|>" + _END + "<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}",
        end="<|eot_id|>",
        pad="<|finetune_right_pad_id|>",
        others=("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>"),
    ),
    # As Mistral's: no system turns, so their text goes into the user's first; pad is the end.
    "instructions": TemplateShape(
        "{{ bos_token }}{% if messages[0]['role'] == 'system' %}"
        "{% set system = messages[0]['content'] + '\n\n' %}{% set turns = messages[1:] %}"
        "{% else %}{% set system = '' %}{% set turns = messages %}{% endif %}"
        "{% for m in turns %}{% if m['role'] == 'user' %}"
        "[INST] {{ (system if loop.first else '') + m['content'] }} [/INST]"
        "{% else %} {{ m['content'] }}{{ eos_token }}{% endif %}{% endfor %}",
        end="</s>",
        pad="</s>",
        others=("<s>",),
    ),
    # As Gemma's: the assistant is called model, and a system turn is an error.
    "model turns": TemplateShape(
        "{{ bos_token }}{% if messages[0]['role'] == 'system' %}"
        "{{ raise_exception('System role not supported') }}{% endif %}"
        + _LOOP
        + "<start_of_turn>{{ 'model' if m['role'] == 'assistant' else m['role'] }}\n"
        "{{ m['content'] | trim }}<end_of_turn>\n" + _END + "<start_of_turn>model\n{% endif %}",
        end="<end_of_turn>",
        pad="<pad>",
        others=("<bos>", "<start_of_turn>", "<eos>"),
    ),
    # As DeepSeek-R1's: what an assistant thought is taken out of every turn.
    "reasoning stripped": TemplateShape(
        _LOOP + "{% set text = m['content'] %}"
        "{% if m['role'] == 'assistant' %}{% set text = text.split('</think>')[-1] %}{% endif %}"
        "<|{{ m['role'] }}|>{{ text }}<|end|>" + _END + "<|assistant|>{% endif %}",
        end="<|end|>",
        pad="<|pad|>",
        others=("<|system|>", "<|user|>", "<|assistant|>"),
    ),
}

# As Qwen 3's with thinking switched off: the generation prompt says that nothing was thought, and
# so does the template where the answer is the last turn.
EMPTY_THOUGHTS = TemplateShape(
    _LOOP + "{% set text = m['content'] %}"
    "{% if m['role'] == 'assistant' %}{% set text = text.split('</think>')[-1] %}"
    "{% if loop.last %}{% set text = '<think>\n\n</think>\n\n' + text %}{% endif %}{% endif %}"
    "<|{{ m['role'] }}|>{{ text }}<|end|>"
    + _END
    + "<|assistant|><think>\n\n</think>\n\n{% endif %}",
    end="<|end|>",
    pad="<|pad|>",
    others=("<|system|>", "<|user|>", "<|assistant|>"),
)

# As Qwen 3's otherwise: earlier thoughts are taken out, those of the last answer stay.
REASONING_KEPT = TemplateShape(
    _LOOP + "{% set text = m['content'] %}"
    "{% if m['role'] == 'assistant' and not loop.last %}"
    "{% set text = text.split('</think>')[-1] %}{% endif %}"
    "<|{{ m['role'] }}|>{{ text }}<|end|>" + _END + "<|assistant|>{% endif %}",
    end="<|end|>",
    pad="<|pad|>",
    others=("<|system|>", "<|user|>", "<|assistant|>"),
)


@functools.cache
def make_tokenizer(shape: TemplateShape, normalizer: str | None = None) -> Any:
    """Return a byte-level BPE of 300 tokens and more with the template; two line breaks are one.

    Args:
        shape: Template and special tokens.
        normalizer: Class of `tokenizers.normalizers` through which every text goes first.
    """
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    special = list(dict.fromkeys((shape.pad, shape.end, *shape.others)))
    bpe = Tokenizer(models.BPE())
    if normalizer is not None:
        bpe.normalizer = getattr(normalizers, normalizer)()
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(_CORPUS, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token=shape.others[0],
        eos_token=shape.end,
        pad_token=shape.pad,
        extra_special_tokens=list(shape.others[1:]),
    )
    tokenizer.chat_template = shape.template
    return tokenizer
