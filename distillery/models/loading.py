"""Open a model: its chat format, and its weights, from a folder or a pinned commit of the hub."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from pydantic import JsonValue

from distillery.models.chat_format import ChatFormat
from distillery.models.chat_templates import (
    CHAT_TEMPLATES,
    with_system_prompt,
    with_template_kwargs,
)
from schemas.errors import RecipeError
from schemas.student import FromScratchStudent, StudentSpec
from schemas.teacher_base import OwnTeacher


@dataclass(frozen=True)
class ModelFiles:
    """The files of a model and how they are read. Nothing is opened yet."""

    model: str
    """Folder that `save_pretrained` wrote, or hub id."""

    revision: str | None = None
    """Commit hash of a hub model."""

    trust_remote_code: bool = False
    """Run code from the model's repository."""

    chat_template: str | None = None
    """File with the template, or the name of a built-in one, in place of the tokenizer's own."""

    chat_template_kwargs: dict[str, JsonValue] = field(default_factory=dict)
    """Settings of the template."""

    system_prompt: str | None = None
    """A student's own instructions, which become part of its template."""

    @classmethod
    def of(cls, spec: StudentSpec | OwnTeacher) -> Self:
        """Return the files that a section of the recipe names; of a new student its tokenizer's."""
        named = spec.model_dump(include=set(cls.__dataclass_fields__))
        if isinstance(spec, FromScratchStudent):
            named["model"] = spec.tokenizer
        if isinstance(spec, OwnTeacher):
            del named["system_prompt"]  # a teacher's is part of what it is asked
        return cls(**named)

    def config(self) -> Any:
        """Return the model's configuration; of a text model where it is one of several parts.

        Raises:
            RecipeError: It cannot be read.
        """
        from transformers import AutoConfig

        with self._errors_named("model") as place:
            config = AutoConfig.from_pretrained(place, **self._shared)
        return config.get_text_config(decoder=True)

    def architecture(self) -> str:
        """Return the name of the class that transformers opens for it.

        Raises:
            RecipeError: Its configuration cannot be read.
        """
        from transformers import AutoConfig
        from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

        with self._errors_named("model") as place:
            config = AutoConfig.from_pretrained(place, **self._shared)
        return str(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(config.model_type, config.model_type))

    def tokenizer(self) -> Any:
        """Return the tokenizer as it is published.

        Raises:
            RecipeError: It cannot be loaded.
        """
        from transformers import AutoTokenizer

        quiet_transformers()
        with self._errors_named("the tokenizer of") as place:
            return AutoTokenizer.from_pretrained(place, **self._shared)

    def chat_format(self) -> ChatFormat:
        """Return the chat format; its tokenizer has a pad token.

        Raises:
            RecipeError: The tokenizer cannot be loaded, or has no chat template by default.
        """
        tokenizer = self.tokenizer()
        if self.chat_template is not None:
            tokenizer.chat_template = read_template(self.chat_template)
        if not tokenizer.chat_template:
            raise RecipeError(
                f"the tokenizer of {self.model!r} has no chat template, so messages cannot become "
                "text. Choose the instruction-tuned variant of the model or, for a student, name a "
                f"template in student.chat_template: a file, or one of {', '.join(CHAT_TEMPLATES)}."
            )
        if isinstance(several := tokenizer.chat_template, dict) and "default" not in several:
            raise RecipeError(
                f"the tokenizer of {self.model!r} has the chat templates {sorted(several)} but no "
                "default one. Choose a model that has or, for a student, name a file with one of "
                "them in student.chat_template."
            )
        template = tokenizer.get_chat_template()
        settled = with_template_kwargs(template, self.chat_template_kwargs)
        if self.system_prompt is not None:
            settled = with_system_prompt(settled, self.system_prompt)
        if settled != template:
            tokenizer.chat_template = settled
        opened = ChatFormat(tokenizer, self._generation_config(), name=self.model)
        if tokenizer.pad_token_id is None and opened.end_ids:
            tokenizer.pad_token = tokenizer.convert_ids_to_tokens(min(opened.end_ids))
        return opened

    def weights(self, dtype: Any) -> Any:
        """Return the model, whole, in evaluation mode on the CPU.

        Args:
            dtype: Of the weights: torch's, its name, or auto (as saved).

        Raises:
            RecipeError: It cannot be loaded, or lacks weights: transformers would make them up.
        """
        from transformers import AutoModelForCausalLM

        quiet_transformers()
        with self._errors_named("model") as place:
            model, info = AutoModelForCausalLM.from_pretrained(
                place,
                dtype=dtype,
                use_safetensors=True,
                output_loading_info=True,
                # They are refused below, by name: transformers' own error does not name them.
                ignore_mismatched_sizes=True,
                **self._shared,
            )
        mismatched = (name for name, *_ in info["mismatched_keys"])
        if absent := sorted({*info["missing_keys"], *mismatched}):
            raise RecipeError(
                f"model {self.model!r} lacks {len(absent)} weights, such as {absent[0]!r}, or has "
                "them in another shape; they would be random. Name a complete causal language "
                "model."
            )
        return model

    def encoder(self) -> Any:
        """Return the model without a head, in float32 and evaluation mode, on the CPU.

        Raises:
            RecipeError: It cannot be loaded, or lacks weights; a pooler's do not count.
        """
        from transformers import AutoModel

        quiet_transformers()
        with self._errors_named("model") as place:
            model, info = AutoModel.from_pretrained(
                place,
                dtype="float32",
                use_safetensors=True,
                output_loading_info=True,
                **self._shared,
            )
        if absent := sorted(name for name in info["missing_keys"] if "pooler" not in name):
            raise RecipeError(
                f"model {self.model!r} lacks {len(absent)} weights, such as {absent[0]!r}; they "
                "would be random. Name a complete encoder."
            )
        return model.eval()

    def skeleton(self) -> Any:
        """Return the model without numbers in its weights, on torch's device `meta`.

        Raises:
            RecipeError: Its configuration cannot be read.
        """
        import torch
        from transformers import AutoConfig, AutoModelForCausalLM

        quiet_transformers()
        with self._errors_named("model") as place, torch.device("meta"):
            config = AutoConfig.from_pretrained(place, **self._shared)
            return AutoModelForCausalLM.from_config(
                config, trust_remote_code=self.trust_remote_code
            )

    def weight_bytes(self) -> int | None:
        """Return the bytes of the files with the weights; None where they are not on this disk."""
        from huggingface_hub import try_to_load_from_cache

        folder = Path(self.model).expanduser()
        if not folder.is_dir():
            config = try_to_load_from_cache(self.model, "config.json", revision=self.revision)
            if not isinstance(config, str):
                return None
            folder = Path(config).parent
        return sum(file.stat().st_size for file in folder.glob("model*.safetensors")) or None

    def loaded_bytes(self, dtype: str) -> int:
        """Return the bytes of the weights once loaded; 0 where the files are not here yet."""
        import torch

        saved = getattr(self.config(), "dtype", None) or torch.float32
        loaded: torch.dtype = getattr(torch, dtype)
        return (self.weight_bytes() or 0) * loaded.itemsize // saved.itemsize

    @property
    def _shared(self) -> dict[str, Any]:
        return {"revision": self.revision, "trust_remote_code": self.trust_remote_code}

    def _generation_config(self) -> Any:
        """Return how the model generates by default; None for the folder of a tokenizer alone."""
        from transformers import GenerationConfig

        with self._errors_named("model") as place:
            for file in ("generation_config.json", "config.json"):
                # TypeError: what transformers makes of a folder without a config.json.
                with contextlib.suppress(OSError, TypeError):
                    return GenerationConfig.from_pretrained(place, file, revision=self.revision)
        return None

    @contextlib.contextmanager
    def _errors_named(self, what: str) -> Iterator[str]:
        """Yield the folder or hub id; errors in reading it name the model."""
        from safetensors import SafetensorError

        folder = Path(self.model).expanduser()
        try:
            yield str(folder) if folder.is_dir() else self.model
        except (OSError, ValueError, SafetensorError) as error:
            raise RecipeError(
                f"{what} {self.model!r} cannot be loaded: {str(error).rstrip('.')}. Name a folder "
                "that save_pretrained wrote (with safetensors), or a hub id with its revision."
            ) from error


def head_size(config: Any) -> int:
    """Return the size of an attention head of a configuration."""
    return int(
        getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    )


def kv_cache_bytes(config: Any, context_tokens: int, *, itemsize: int) -> int:
    """Return the bytes of the KV cache for one sequence of ``context_tokens``.

    2 (keys and values) x layers x KV heads x head size x bytes per number x tokens. Sliding
    windows are ignored: this is the bound that a server has to plan with.
    """
    kv_heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = kv_heads * head_size(config)
    return int(2 * config.num_hidden_layers * width * itemsize * context_tokens)


def read_template(name: str) -> str:
    """Return the built-in chat template of that name, or the one in the file ``name``.

    Raises:
        RecipeError: It cannot be read.
    """
    if name in CHAT_TEMPLATES:
        return CHAT_TEMPLATES[name]
    try:
        return Path(name).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(
            f"student.chat_template {name!r} cannot be read: {error}. Name a Jinja file, or one of "
            f"{', '.join(CHAT_TEMPLATES)}."
        ) from error


def quiet_transformers() -> None:
    """Keep progress bars and advice of transformers and datasets out of the log."""
    import datasets
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    datasets.utils.logging.set_verbosity_error()
    datasets.disable_progress_bars()
