"""Build or load a student and its tokenizer, and turn a row into tokens with a loss mask."""

import contextlib
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distillery.chat import Message
from distillery.store import Store
from schemas.errors import RecipeError, TrainingError
from schemas.execution import ExecutionSpec, StoreSpec
from schemas.refs import ModelRef
from schemas.student import FromScratchStudent, PretrainedStudent, StudentSpec

IGNORED = -100
"""Label of a token that does not count in the loss (PyTorch's cross-entropy ignores it)."""

# One token per role keeps the prompts of small models short: <|user|>text<|assistant|>...
_SPECIAL_TOKENS = ("<|pad|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>")
_CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}<|end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@dataclass(frozen=True)
class TokenizedRow:
    """One row as the model sees it."""

    input_ids: list[int]
    """Prompt, then response."""

    labels: list[int]
    """The same, with IGNORED at every prompt token."""

    @property
    def num_response_tokens(self) -> int:
        """Return how many tokens count in the loss."""
        return sum(label != IGNORED for label in self.labels)


def train_tokenizer(texts: Iterable[str], spec: FromScratchStudent) -> Any:
    """Return a byte-level BPE tokenizer with a one-token-per-role chat template.

    Args:
        texts: What it is trained on; read once.
        spec: Its `vocab_size` (special tokens included), `whole_tokens` and `max_length`.

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
    return fast


def load_tokenizer(model: str, revision: str | None = None) -> Any:
    """Return the tokenizer of a local folder or hub model, with a pad token.

    Raises:
        TrainingError: It has no chat template or no end-of-sequence token.
    """
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model, revision=revision)
    if tokenizer.chat_template is None:
        raise TrainingError(
            f"the tokenizer of {model!r} has no chat template, so prompts cannot be rendered the "
            "way they are at inference. Choose the instruction-tuned variant of the model."
        )
    if tokenizer.eos_token_id is None:
        raise TrainingError(
            f"the tokenizer of {model!r} has no eos_token, so the student would never learn to "
            "stop. Choose a model whose tokenizer has one."
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def open_student(spec: StudentSpec, corpus: Iterable[str], *, dtype: Any) -> tuple[Any, Any]:
    """Return a student with its tokenizer: loaded, or new with random weights.

    Args:
        spec: What to open.
        corpus: Texts for a new tokenizer; read only if one is trained.
        dtype: torch dtype of the weights.

    Returns:
        The model and the tokenizer. A new model's weights come from torch's global generator.
    """
    if isinstance(spec, PretrainedStudent):
        from transformers import AutoModelForCausalLM

        tokenizer = load_tokenizer(spec.model, spec.revision)
        model = AutoModelForCausalLM.from_pretrained(
            spec.model,
            revision=spec.revision,
            dtype=dtype,
            use_safetensors=True,
            trust_remote_code=spec.trust_remote_code,
        )
        return model, tokenizer
    if spec.tokenizer is None:
        tokenizer = train_tokenizer(corpus, spec)
    else:
        tokenizer = load_tokenizer(spec.tokenizer)
    return _new_llama(spec, tokenizer).to(dtype), tokenizer


def _new_llama(spec: FromScratchStudent, tokenizer: Any) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=len(tokenizer),
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


def tokenize_row(tokenizer: Any, messages: list[Message], response: str) -> TokenizedRow:
    """Return the tokens of a prompt and its response; only the response counts in the loss.

    The prompt is rendered as at inference, with the generation prompt, and has to be a prefix of
    the whole conversation: otherwise the model would be trained on tokens it never meets.

    Raises:
        TrainingError: The chat template changes the prompt or the response when the answer is
            added, or ends it without the end-of-sequence token.
    """
    prompt = _token_ids(tokenizer, messages, add_generation_prompt=True)
    answered = [*messages, Message(role="assistant", content=response)]
    whole = _token_ids(tokenizer, answered, add_generation_prompt=False)
    if whole[: len(prompt)] != prompt:
        raise TrainingError(
            "the chat template renders the prompt differently once the answer follows, so the loss "
            "mask would be wrong. Use a template whose generation prompt is a prefix of the answer."
        )
    target = whole[len(prompt) :]
    if tokenizer.eos_token_id not in target:
        raise TrainingError(
            f"the chat template ends a response without {tokenizer.eos_token!r}, so the student "
            "would never learn to stop. Set the tokenizer's eos_token to what the template writes."
        )
    kept = tokenizer.decode(target, skip_special_tokens=True)
    if response.strip() not in kept:
        raise TrainingError(
            f"the chat template does not keep the response {response!r:.80} (it renders "
            f"{kept!r:.80}), so the student would learn another text. Use a template that keeps it."
        )
    return TokenizedRow(whole, [IGNORED] * len(prompt) + target)


def _token_ids(
    tokenizer: Any, messages: list[Message], *, add_generation_prompt: bool
) -> list[int]:
    from jinja2 import TemplateError

    try:
        text = tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=add_generation_prompt
        )
    except TemplateError as error:
        turns = [message["role"] for message in messages]
        raise TrainingError(
            f"the chat template cannot render turns of {turns}: {error}. Choose a model whose "
            "template can, or change the messages of the data."
        ) from error
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


def export_model(model: ModelRef, folder: str, store: StoreSpec) -> None:
    """Copy a model of the store to a local folder, in place of the model that was there.

    Raises:
        RecipeError: Something that is no model stands there; it would be lost.
    """
    target = Path(folder).expanduser().resolve()
    is_empty = not target.exists() or (target.is_dir() and not any(target.iterdir()))
    if not is_empty and not (target / "config.json").is_file():
        raise RecipeError(
            f"output {str(target)!r} holds what is no model; it would be deleted. Name a new "
            "folder under 'output'."
        )
    partial = target.with_name(f"{target.name}.partial")
    with Store(store.root).local_copy(model) as source:
        shutil.rmtree(partial, ignore_errors=True)
        shutil.copytree(source, partial)
    shutil.rmtree(target, ignore_errors=True)
    partial.rename(target)


def quiet_transformers() -> None:
    """Keep progress bars and advice of transformers and datasets out of the log."""
    import datasets
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    datasets.utils.logging.set_verbosity_error()
    datasets.disable_progress_bars()


@contextlib.contextmanager
def cpu_threads(execution: ExecutionSpec) -> Iterator[None]:
    """Hold torch to `execution.cpu_threads` threads inside."""
    if execution.cpu_threads is None:
        yield
        return
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(execution.cpu_threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
