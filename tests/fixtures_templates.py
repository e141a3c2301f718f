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
    """The token that ends a response, as the template writes it."""

    pad: str
    others: tuple[str, ...] = ()
    """Special tokens besides; the first is the beginning-of-sequence token, where one is used."""

    eos: str | None = None
    """The tokenizer's end-of-sequence token. None: `end`."""

    prompt_end: str = ""
    """Of the published shapes: how a prompt ends."""

    target: str = ""
    """Of the published shapes: what a model has to write to respond `refund`."""


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

_TURN = "<|im_start|>{{ m['role'] }}\n"
_PLAIN_TURN = _TURN + "{{ m['content'] }}<|im_end|>\n"
_CHATML_TOKENS = ("<|im_start|>",)
_LAST_THOUGHT = (
    "{% if m['role'] == 'assistant' and loop.last %}"
    "<think>\n{{ m['reasoning_content'] or '' }}\n</think>\n\n{% endif %}"
)

PUBLISHED = {
    # The last answer stands behind a thought, which may be empty; earlier ones do not.
    "qwen 3": TemplateShape(
        _LOOP
        + _TURN
        + _LAST_THOUGHT
        + "{{ m['content'] }}<|im_end|>\n"
        + _END
        + "<|im_start|>assistant\n"
        "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n"
        "{% endif %}{% endif %}",
        end="<|im_end|>",
        pad="<|endoftext|>",
        others=_CHATML_TOKENS,
        prompt_end="<|im_start|>assistant\n",
        target="<think>\n\n</think>\n\nrefund<|im_end|>",
    ),
    # The same, but the generation prompt opens the thought.
    "qwen 3.5": TemplateShape(
        _LOOP
        + _TURN
        + _LAST_THOUGHT
        + "{{ m['content'] | trim }}<|im_end|>\n"
        + _END
        + "<|im_start|>assistant\n"
        "<think>\n{% if enable_thinking is defined and not enable_thinking %}"
        "{{ '\n</think>\n\n' }}{% endif %}{% endif %}",
        end="<|im_end|>",
        pad="<|endoftext|>",
        others=_CHATML_TOKENS,
        prompt_end="<|im_start|>assistant\n<think>\n",
        target="\n</think>\n\nrefund<|im_end|>",
    ),
    # The generation prompt opens a thought, and no finished turn has one.
    "qwq": TemplateShape(
        _LOOP
        + _TURN
        + "{{ m['content'].split('</think>')[-1] }}<|im_end|>\n"
        + _END
        + "<|im_start|>assistant\n<think>\n{% endif %}",
        end="<|im_end|>",
        pad="<|endoftext|>",
        others=_CHATML_TOKENS,
        prompt_end="<|im_start|>assistant\n<think>\n",
        target="\n</think>\n\nrefund<|im_end|>",
    ),
    # The same without line breaks around a turn; a system turn has no mark of its own.
    "r1 distill": TemplateShape(
        "{{ bos_token }}" + _LOOP + "{% if m['role'] == 'system' %}{{ m['content'] }}"
        "{% elif m['role'] == 'user' %}<|User|>{{ m['content'] }}"
        "{% else %}<|Assistant|>{{ m['content'].split('</think>')[-1] }}{{ eos_token }}{% endif %}"
        + _END
        + "<|Assistant|><think>\n{% endif %}",
        end="<|end_of_sentence|>",
        pad="<|end_of_sentence|>",
        others=("<|begin_of_sentence|>", "<|User|>", "<|Assistant|>"),
        prompt_end="<|Assistant|><think>\n",
        target="\n</think>\n\nrefund<|end_of_sentence|>",
    ),
    "olmo 3 think": TemplateShape(
        _LOOP
        + _TURN
        + "{{ m['content'] }}{% if m['role'] == 'assistant' and loop.last %}{{ eos_token }}"
        "{% else %}<|im_end|>\n{% endif %}" + _END + "<|im_start|>assistant\n<think>{% endif %}",
        end="<|endoftext|>",
        pad="<|pad|>",
        others=("<|im_start|>", "<|im_end|>"),
        prompt_end="<|im_start|>assistant\n<think>",
        target="</think>\n\nrefund<|endoftext|>",
    ),
    # Channels; the end of a conversation is another token than that of a turn.
    "gpt-oss": TemplateShape(
        "<|start|>system<|message|>Reasoning: {{ reasoning_effort or 'medium' }}<|end|>"
        + _LOOP
        + "{% if m['thinking'] %}<|start|>assistant<|channel|>analysis<|message|>"
        "{{ m['thinking'] }}<|end|>{% endif %}"
        "{% if m['role'] == 'assistant' %}<|start|>assistant<|channel|>final<|message|>"
        "{{ m['content'] }}{{ '<|return|>' if loop.last else '<|end|>' }}{% else %}"
        "<|start|>{{ m['role'] }}<|message|>{{ m['content'] }}<|end|>{% endif %}"
        + _END
        + "<|start|>assistant{% endif %}",
        end="<|return|>",
        pad="<|endoftext|>",
        others=("<|startoftext|>", "<|start|>", "<|end|>", "<|message|>", "<|channel|>"),
        prompt_end="<|start|>assistant",
        target="<|channel|>final<|message|>refund<|return|>",
    ),
    # The tokenizer's end is one that no turn ends with.
    "gemma 3": TemplateShape(
        SHAPES["model turns"].template,
        end="<end_of_turn>",
        pad="<pad>",
        others=("<bos>", "<start_of_turn>"),
        eos="<eos>",
        prompt_end="<start_of_turn>model\n",
        target="refund<end_of_turn>",
    ),
    # The end of the turn, and that of the document after it.
    "phi 4 mini": TemplateShape(
        _LOOP + "<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% else %}{{ eos_token }}{% endif %}",
        end="<|end|>",
        pad="<|endoftext|>",
        others=("<|system|>", "<|user|>", "<|assistant|>"),
        eos="<|endoftext|>",
        prompt_end="<|assistant|>",
        target="refund<|end|>",
    ),
    # The base model of a chat model: its tokenizer ends documents, its template ends turns.
    "qwen 2.5 base": TemplateShape(
        _LOOP + _PLAIN_TURN + _END + "<|im_start|>assistant\n{% endif %}",
        end="<|im_end|>",
        pad="<|endoftext|>",
        others=_CHATML_TOKENS,
        eos="<|endoftext|>",
        prompt_end="<|im_start|>assistant\n",
        target="refund<|im_end|>",
    ),
    # Turns take turns, and no system turn is among them.
    "mistral 0.3": TemplateShape(
        "{{ bos_token }}" + _LOOP + "{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('roles must alternate user/assistant/user/assistant') }}{% endif %}"
        "{% if m['role'] == 'user' %}[INST] {{ m['content'] }}[/INST]"
        "{% else %} {{ m['content'] | trim }}{{ eos_token }}{% endif %}{% endfor %}",
        end="</s>",
        pad="</s>",
        others=("<s>",),
        prompt_end="[/INST]",
        target=" refund</s>",
    ),
    # The system turn goes into the user's last, but only while that is the last turn of all.
    "mistral nemo": TemplateShape(
        "{{ bos_token }}{% set system = messages[0]['content'] + '\n\n' if "
        "messages[0]['role'] == 'system' else '' %}{% for m in messages %}"
        "{% if m['role'] == 'user' %}[INST]{{ system if loop.last else '' }}{{ m['content'] }}"
        "[/INST]{% elif m['role'] == 'assistant' %}{{ m['content'] | trim }}{{ eos_token }}"
        "{% endif %}{% endfor %}",
        end="</s>",
        pad="</s>",
        others=("<s>", "[INST]", "[/INST]"),
        prompt_end="[/INST]",
        target="refund</s>",
    ),
    # Thoughts stand in the text of a turn, between marks of its own.
    "magistral": TemplateShape(
        "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}"
        "[INST]{{ m['content'] }}[/INST]{% elif m['role'] == 'system' %}"
        "[SYSTEM_PROMPT]{{ m['content'] }}[/SYSTEM_PROMPT]{% else %}"
        "{{ m['content'] if loop.last else m['content'].split('[THINK]')[0] }}{{ eos_token }}"
        "{% endif %}{% endfor %}",
        end="</s>",
        pad="<pad>",
        others=("<s>", "[INST]", "[/INST]", "[THINK]", "[/THINK]"),
        prompt_end="[/INST]",
        target="refund</s>",
    ),
    # A thought is a channel, whose marks are special tokens; only the last answer has one.
    "gemma 4": TemplateShape(
        "{{ bos_token }}"
        + _LOOP
        + "<|turn>{{ 'model' if m['role'] == 'assistant' else m['role'] }}\n"
        "{% if m['reasoning'] and loop.last %}<|channel>thought\n{{ m['reasoning'] }}\n<channel|>"
        "{% endif %}{{ m['content'] | trim }}<turn|>\n" + _END + "<|turn>model\n{% endif %}",
        end="<turn|>",
        pad="<pad>",
        others=("<bos>", "<|turn>", "<|channel>", "<channel|>"),
        eos="<eos>",
        prompt_end="<|turn>model\n",
        target="refund<turn|>",
    ),
    "granite 3": TemplateShape(
        _LOOP
        + "<|start_of_role|>{{ m['role'] }}<|end_of_role|>{{ m['content'] }}<|end_of_text|>\n"
        + _END
        + "<|start_of_role|>assistant<|end_of_role|>{% endif %}",
        end="<|end_of_text|>",
        pad="<|end_of_text|>",
        others=("<|start_of_role|>", "<|end_of_role|>"),
        prompt_end="<|start_of_role|>assistant<|end_of_role|>",
        target="refund<|end_of_text|>",
    ),
}
"""Imitations of what published models do with a turn, as far as it differs between them."""


@functools.cache
def make_tokenizer(shape: TemplateShape, normalizer: str | None = None) -> Any:
    """Return a byte-level BPE of 300 tokens and more with the template; two line breaks are one.

    Args:
        shape: Template and special tokens.
        normalizer: Class of `tokenizers.normalizers` through which every text goes first.
    """
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    eos = shape.eos or shape.end
    special = list(dict.fromkeys((shape.pad, shape.end, eos, *shape.others)))
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
        eos_token=eos,
        pad_token=shape.pad,
        extra_special_tokens=[token for token in special if token not in (eos, shape.pad)],
    )
    tokenizer.chat_template = shape.template
    return tokenizer
