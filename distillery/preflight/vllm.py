"""Before anything is spent: whether this machine can serve a teacher with vLLM."""

from distillery.models.hardware import available_memory, resolve_device
from distillery.models.loading import ModelFiles
from distillery.teacher.vllm.command import check_vllm
from distillery.teacher.vllm.server import free_port
from schemas.errors import RecipeError
from schemas.units import bytes_text
from schemas.vllm_teacher import VLLMTeacher


def check_served_here(teacher: VLLMTeacher) -> None:
    """Return when vLLM is where the recipe says, the port is free, and the weights have room.

    Raises:
        RecipeError: The first of them that is not so.
    """
    files = ModelFiles.of(teacher)
    most = teacher.max_model_len or getattr(files.config(), "max_position_embeddings", None)
    if most is not None and teacher.max_new_tokens >= most:
        raise RecipeError(
            f"teacher.max_new_tokens={teacher.max_new_tokens} leaves no room for a prompt in the "
            f"{most} tokens that {teacher.model!r} is served with. Lower it."
        )
    check_vllm(teacher)
    free_port(teacher)
    check_room(teacher)


def check_room(teacher: VLLMTeacher) -> None:
    """Return when the weights fit into the memory that vLLM takes, as far as both are known.

    Weights that vLLM makes smaller, and those that are still on the hub, are not known. Several
    GPUs are taken to be alike.

    Raises:
        RecipeError: They do not fit.
    """
    if teacher.quantization is not None:
        return
    device = resolve_device("auto")
    needed = ModelFiles.of(teacher).loaded_bytes(teacher.dtype) // teacher.tensor_parallel_size
    share = teacher.gpu_memory_fraction if device.startswith("cuda") else 1.0
    room = int(available_memory(device) * share)
    if needed > room:
        raise RecipeError(
            f"teacher {teacher.model!r} in {teacher.dtype} takes {bytes_text(needed)} of weights "
            f"on each device, but {device} gives vLLM {bytes_text(room)}. Raise "
            "teacher.tensor_parallel_size, set teacher.quantization, or choose a smaller model."
        )


def check_length(teacher: VLLMTeacher, num_tokens: int) -> None:
    """Return when a prompt of ``num_tokens`` and its response fit into `teacher.max_model_len`.

    Raises:
        RecipeError: They do not.
    """
    most = teacher.max_model_len
    if most is not None and num_tokens + teacher.max_new_tokens > most:
        raise RecipeError(
            f"its {num_tokens} tokens and a response of teacher.max_new_tokens="
            f"{teacher.max_new_tokens} do not fit into teacher.max_model_len={most}, which vLLM "
            "would refuse. Raise teacher.max_model_len, or lower teacher.max_new_tokens."
        )
