"""Open a student: pretrained, or new with random weights and, often, a tokenizer of its own."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from distillery.models.chat_format import ChatFormat
from distillery.models.chat_templates import with_system_prompt
from distillery.models.layers import decoder_layers
from distillery.models.loading import ModelFiles, quiet_transformers
from distillery.models.pruning import kept_layers
from distillery.models.vocabulary import vocabulary_size
from schemas.errors import TrainingError
from schemas.student import FromScratchStudent, PretrainedStudent, PrunedStudent, StudentSpec
from schemas.teacher import TransformersTeacher

# One token per role keeps the prompts of small models short: <|user|>text<|assistant|>...
_SPECIAL_TOKENS = ("<|pad|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>")
_CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}<|end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def train_tokenizer(texts: Iterable[str], spec: FromScratchStudent) -> Any:
    """Return a byte-level BPE tokenizer with a one-token-per-role chat template.

    Args:
        texts: What it is trained on; read once.
        spec: Its `vocab_size` (special tokens included), `whole_tokens`, `max_length` and
            `system_prompt`.

    Raises:
        TrainingError: A whole token would be decoded to another text.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    if odd := [token for token in spec.whole_tokens if not token.isascii()]:
        raise TrainingError(
            f"student.whole_tokens holds {odd[0]!r}, which a byte-level BPE does not give back as "
            "it was. Use ASCII characters only."
        )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=spec.vocab_size,
        special_tokens=list(_SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<|pad|>",
        eos_token="<|end|>",
        additional_special_tokens=["<|system|>", "<|user|>", "<|assistant|>"],
        model_max_length=spec.max_length,
        clean_up_tokenization_spaces=False,
    )
    fast.add_tokens(list(spec.whole_tokens))
    fast.chat_template = _CHAT_TEMPLATE
    if spec.system_prompt is not None:
        fast.chat_template = with_system_prompt(_CHAT_TEMPLATE, spec.system_prompt)
    return fast


def open_student(
    spec: StudentSpec, corpus: Iterable[str], *, dtype: Any, start: Path | None = None
) -> tuple[Any, ChatFormat]:
    """Return a student, loaded or new with random weights, and its chat format.

    Its generation config, which is saved with it, stops where its responses end.

    Args:
        spec: What to open.
        corpus: Texts for a new tokenizer; read only if one is trained.
        dtype: torch's, of the weights. A new model's come from torch's global generator.
        start: Folder of the model to start from, with its tokenizer: a pruned student, or one that
            has learnt something before. None: the student's own.

    Raises:
        RecipeError: The model or its tokenizer cannot be loaded, or lacks weights.
        TrainingError: A tokenizer cannot be trained.
    """
    if start is not None:
        trusted = not isinstance(spec, FromScratchStudent) and spec.trust_remote_code
        files = ModelFiles(str(start), trust_remote_code=trusted)
        chat_format, model = files.chat_format(), files.weights(dtype)
        model.generation_config = chat_format.generation_config(model.generation_config)
        return model, chat_format
    assert not isinstance(spec, PrunedStudent)  # which starts from what was pruned
    if isinstance(spec, FromScratchStudent) and spec.tokenizer is None:
        quiet_transformers()
        chat_format = ChatFormat(train_tokenizer(corpus, spec))
    else:
        chat_format = ModelFiles.of(spec).chat_format()
    if isinstance(spec, PretrainedStudent):
        model = ModelFiles.of(spec).weights(dtype)
    else:
        model = _new_llama(spec, chat_format.tokenizer)
        for weight in model.parameters():  # not the frequencies of positions, which are float32
            weight.data = weight.data.to(dtype)
    model.generation_config = chat_format.generation_config(model.generation_config)
    return model, chat_format


def layers_beforehand(spec: StudentSpec | TransformersTeacher) -> tuple[list[Any], Any]:
    """Return a model's decoder layers on torch's device `meta`, and the model.

    No weights are read. A pruned student's layers are those that it keeps of the model that it is
    made of; of a new student the tokenizer is read.

    Raises:
        RecipeError: A configuration cannot be read, or layers that are kept are not there.
    """
    import torch

    files = ModelFiles.of(spec)
    if isinstance(spec, FromScratchStudent):
        with torch.device("meta"):
            model = _new_llama(spec, files.chat_format().tokenizer)
    else:
        model = files.skeleton()
    layers = list(decoder_layers(model)[1])
    if isinstance(spec, PrunedStudent):
        layers = [layers[number] for number in kept_layers(spec, len(layers))]
    return layers, model


def _new_llama(spec: FromScratchStudent, tokenizer: Any) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=vocabulary_size(tokenizer),
        hidden_size=spec.hidden_size,
        intermediate_size=spec.intermediate_size,
        num_hidden_layers=spec.num_layers,
        num_attention_heads=spec.num_heads,
        num_key_value_heads=spec.num_heads,
        max_position_embeddings=spec.max_length,
        initializer_range=spec.initializer_std,
        tie_word_embeddings=spec.tie_embeddings,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = LlamaForCausalLM(config)
    for layer in model.model.layers:
        for written in (layer.self_attn.o_proj, layer.mlp.down_proj):
            written.weight.data /= (2 * spec.num_layers) ** 0.5
    return model
