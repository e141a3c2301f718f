"""Build or load a student and its tokenizer, and turn a row into tokens with a loss mask."""

import contextlib
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unicodedata import normalize

from distillery.data.chat import Message
from distillery.storage.store import Store
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


def load_tokenizer(
    model: str, revision: str | None = None, *, trust_remote_code: bool = False
) -> Any:
    """Return the tokenizer of a local folder or hub model, with a pad token.

    Args:
        model: Folder or hub id.
        revision: Commit hash of a hub model.
        trust_remote_code: Run code from the model's repository.

    Raises:
        RecipeError: It cannot be loaded.
        TrainingError: It has no chat template or no end-of-sequence token.
    """
    from transformers import AutoTokenizer

    with _place_of(model, "the tokenizer of") as place:
        tokenizer = AutoTokenizer.from_pretrained(
            place, revision=revision, trust_remote_code=trust_remote_code
        )
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

    Raises:
        RecipeError: The model or its tokenizer cannot be loaded.
        TrainingError: Weights of a pretrained student are missing or of another shape; or its
            tokenizer cannot be trained with.
    """
    if isinstance(spec, PretrainedStudent):
        tokenizer = load_tokenizer(
            spec.model, spec.revision, trust_remote_code=spec.trust_remote_code
        )
        return _pretrained(spec, dtype), tokenizer
    if spec.tokenizer is None:
        tokenizer = train_tokenizer(corpus, spec)
    else:
        tokenizer = load_tokenizer(spec.tokenizer)
    model = _new_llama(spec, tokenizer)
    for weight in model.parameters():  # not the frequencies of positions, which are float32
        weight.data = weight.data.to(dtype)
    return model, tokenizer


def _pretrained(spec: PretrainedStudent, dtype: Any) -> Any:
    """Return a pretrained student, whole: transformers would make up the weights that it lacks."""
    from transformers import AutoModelForCausalLM

    with _place_of(spec.model, "model") as place:
        model, info = AutoModelForCausalLM.from_pretrained(
            place,
            revision=spec.revision,
            dtype=dtype,
            use_safetensors=True,
            trust_remote_code=spec.trust_remote_code,
            output_loading_info=True,
            # They are refused below, by name: transformers' own error does not name them.
            ignore_mismatched_sizes=True,
        )
    mismatched = (name for name, *_ in info["mismatched_keys"])
    if absent := sorted({*info["missing_keys"], *mismatched}):
        raise TrainingError(
            f"student {spec.model!r} lacks {len(absent)} weights, such as {absent[0]!r}, or has "
            "them in another shape, so it would start with random ones. Set student.model to a "
            "complete causal language model."
        )
    return model


@contextlib.contextmanager
def _place_of(model: str, what: str) -> Iterator[str]:
    """Yield the folder or hub id of ``model``; that it cannot be read is told with its name."""
    from safetensors import SafetensorError

    folder = Path(model).expanduser()
    try:
        yield str(folder) if folder.is_dir() else model
    except (OSError, ValueError, SafetensorError) as error:
        raise RecipeError(
            f"{what} {model!r} cannot be loaded: {str(error).rstrip('.')}. Name a folder that "
            "save_pretrained wrote (with safetensors), or a hub id with its revision."
        ) from error


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
    the whole conversation: otherwise the model would be trained on tokens it never meets. The row
    ends with the end-of-sequence token of the response. What a template writes after it (a line
    break, often) is left off: inference has stopped by then, so nobody would ever read it.

    Raises:
        TrainingError: The response is empty; or the chat template or the tokenizer changes the
            prompt or the response, or ends the response without the end-of-sequence token.
    """
    if not response.strip():
        raise TrainingError(
            f"the response to {messages[-1]['content']!r:.80} is {response!r}, so there is nothing "
            "to learn from it but to stop. Leave the row out."
        )
    prompt = _render(tokenizer, messages, add_generation_prompt=True)
    answered = [*messages, Message(role="assistant", content=response)]
    whole = _render(tokenizer, answered, add_generation_prompt=False)
    prompt_ids, target = _split_ids(tokenizer, prompt, whole)
    if tokenizer.eos_token_id not in target:
        raise TrainingError(
            f"the chat template ends a response without {tokenizer.eos_token!r}, so the student "
            "would never learn to stop. Set the tokenizer's eos_token to what the template writes."
        )
    target = target[: target.index(tokenizer.eos_token_id) + 1]
    kept = tokenizer.decode(target, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    if not _holds(kept, response):
        raise _not_kept(tokenizer, response, whole[len(prompt) :], kept)
    return TokenizedRow(prompt_ids + target, [IGNORED] * len(prompt_ids) + target)


def _render(tokenizer: Any, messages: list[Message], *, add_generation_prompt: bool) -> str:
    from jinja2 import TemplateError

    try:
        text: str = tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=add_generation_prompt
        )
    # A template is a program of its own: a filter may meet a type or a key that it cannot take.
    except (TemplateError, TypeError, ValueError, LookupError) as error:
        turns = [message["role"] for message in messages]
        raise TrainingError(
            f"the chat template cannot render turns of {turns}: {error}. Choose a model whose "
            "template can, or change the messages of the data."
        ) from error
    return text


def _split_ids(tokenizer: Any, prompt: str, whole: str) -> tuple[list[int], list[int]]:
    """Return the tokens of ``prompt``, and those that follow it in ``whole``."""
    prompt_ids, whole_ids = _token_ids(tokenizer, prompt), _token_ids(tokenizer, whole)
    if whole_ids[: len(prompt_ids)] == prompt_ids:
        return prompt_ids, whole_ids[len(prompt_ids) :]
    if whole.startswith(prompt):
        # One token reaches over the border: two line breaks, often. At inference the tokens of the
        # prompt are fixed before the response begins.
        rest = _token_ids(tokenizer, whole[len(prompt) :])
        if tokenizer.decode(prompt_ids + rest) == tokenizer.decode(whole_ids):
            return prompt_ids, rest
    pairs = enumerate(zip(prompt, whole, strict=False))
    border = next((at for at, (one, two) in pairs if one != two), min(len(prompt), len(whole)))
    shown = slice(max(0, border - 20), border + 40)
    raise TrainingError(
        f"the chat template renders the prompt differently once the answer follows: "
        f"{prompt[shown]!r} becomes {whole[shown]!r}, so the loss mask would be wrong. Use a "
        "template whose generation prompt is a prefix of the answer."
    )


def _token_ids(tokenizer: Any, text: str) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


def _holds(kept: str, response: str) -> bool:
    """Return whether the text of ``kept`` has ``response`` in it, but for white space around.

    Some tokenizers put accents and their letters together (NFC), which is no other text.
    """
    wanted = response.strip()
    return wanted in kept or normalize("NFC", wanted) in normalize("NFC", kept)


def _not_kept(tokenizer: Any, response: str, answer: str, kept: str) -> TrainingError:
    """Return what to say of a response that is not among its row's tokens."""
    special = [token for token in tokenizer.all_special_tokens if token in response]
    if special:
        return TrainingError(
            f"the response {response!r:.80} holds {special[0]!r}, a special token of the student's "
            "tokenizer, so the student would end or leave out what is text here. Leave the row out."
        )
    if response.strip() in answer:
        return TrainingError(
            f"the student's tokenizer turns the response {response!r:.80} into {kept!r:.80}, so "
            "the student would learn another text. Choose a model whose tokenizer can write it."
        )
    return TrainingError(
        f"the chat template does not keep the response {response!r:.80} (it renders {kept!r:.80}), "
        "so the student would learn another text. Use a template that keeps it."
    )


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
