"""A teacher that the stage serves itself, with vLLM."""

from typing import Literal

from pydantic import Field, model_validator

from schemas.base import runtime_field
from schemas.teacher_base import OwnTeacher, ServedTeacher

_OURS = {
    "--model": "model",
    "--served-model-name": "model",
    "--revision": "revision",
    "--tokenizer-revision": "revision",
    "--dtype": "dtype",
    "--quantization": "quantization",
    "-q": "quantization",
    "--max-model-len": "max_model_len",
    "--tensor-parallel-size": "tensor_parallel_size",
    "-tp": "tensor_parallel_size",
    "--data-parallel-size": "data_parallel_size",
    "-dp": "data_parallel_size",
    "--gpu-memory-utilization": "gpu_memory_fraction",
    "--enable-prefix-caching": "prefix_caching",
    "--no-enable-prefix-caching": "prefix_caching",
    "--trust-remote-code": "trust_remote_code",
    "--port": "port",
    "--host": None,
    "--generation-config": None,
    "--max-logprobs": None,
}
"""Arguments of `vllm serve` that the stage gives, and the field that says what."""


class VLLMTeacher(OwnTeacher, ServedTeacher):
    """A model that the stage serves with vLLM: started when it is first asked, then stopped."""

    kind: Literal["vllm"] = "vllm"
    """A vLLM server of the stage's own."""

    python: str | None = runtime_field(None)
    """Interpreter of the environment with vLLM, such as `.venv-vllm/bin/python`: it has one of its
    own (deployments/vllm/requirements.txt). None: `image` has it."""

    image: str | None = runtime_field(None)
    """Image with vLLM, such as `vllm/vllm-openai:v0.32.0`, run by Docker. None: `python` has it."""

    quantization: str | None = None
    """How vLLM makes the weights smaller while it loads them, such as fp8; part of the identity.
    None: as they are saved."""

    max_model_len: int | None = runtime_field(None, ge=1)
    """Most tokens of a prompt and its response together; fewer take less memory. None: as many as
    the model knows."""

    tensor_parallel_size: int = runtime_field(1, ge=1)
    """GPUs that share each layer, for a model that one of them cannot hold."""

    data_parallel_size: int = runtime_field(1, ge=1)
    """Copies of the model, each on GPUs of its own."""

    prefix_caching: bool = runtime_field(True)
    """Keep what was computed of how prompts begin, such as their examples, for the next ones."""

    gpu_memory_fraction: float = runtime_field(0.9, gt=0, le=1)
    """Share of each GPU's memory that vLLM takes. Lower it where a student is beside it."""

    extra_args: tuple[str, ...] = Field((), title="Extra arguments")
    """Further arguments of `vllm serve`, such as `[--reasoning-parser, qwen3]`. Any of them may
    change responses, so they are part of the identity."""

    port: int | None = runtime_field(None, ge=1, le=65535)
    """Where the server listens, on 127.0.0.1. None: at a port that is free."""

    start_timeout_s: float = runtime_field(1800.0, gt=0)
    """Longest wait until it can be asked, seconds; loading large weights takes minutes."""

    @model_validator(mode="after")
    def _has_one_place(self) -> "VLLMTeacher":
        if (self.python is None) == (self.image is None):
            found = "neither" if self.python is None else "both"
            raise ValueError(
                f"{found} of teacher.python and teacher.image is set, so it is not clear which "
                "vLLM serves the model. Name the interpreter of its environment, or an image."
            )
        return self

    @model_validator(mode="after")
    def _arguments_are_further_ones(self) -> "VLLMTeacher":
        for argument in self.extra_args:
            name = argument.partition("=")[0].replace("_", "-")
            if name in _OURS:
                field = _OURS[name]
                advice = f"Set teacher.{field}." if field else "Remove it: the stage decides that."
                raise ValueError(
                    f"teacher.extra_args has {argument!r}, which the stage says itself. {advice}"
                )
        return self
