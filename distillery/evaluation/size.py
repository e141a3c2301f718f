"""How large models are."""

from collections.abc import Sequence

from distillery.models.loading import ModelFiles, kv_cache_bytes
from distillery.models.local import LocalModel
from schemas.comparison import Size
from schemas.evaluation import EvaluationSpec
from schemas.teacher import VLLMTeacher


def size_of(model: LocalModel, evaluation: EvaluationSpec) -> Size:
    """Return the size of a model that is loaded here."""
    return Size(
        num_parameters=model.model.num_parameters(),
        weight_bytes=model.model.get_memory_footprint(return_buffers=False),
        kv_cache_bytes=model.kv_cache_bytes(evaluation.context_tokens),
        disk_bytes=model.disk_bytes,
    )


def size_of_files(teacher: VLLMTeacher, context_tokens: int) -> Size | None:
    """Return the size of a model that another program loads; None of one with quantised weights.

    What those take once loaded is that program's business.
    """
    import torch

    files = ModelFiles.of(teacher)
    config = files.config()
    if teacher.quantization or getattr(config, "quantization_config", None):
        return None
    itemsize = getattr(torch, teacher.dtype).itemsize
    num_parameters = files.skeleton().num_parameters()
    return Size(
        num_parameters=num_parameters,
        weight_bytes=num_parameters * itemsize,
        kv_cache_bytes=kv_cache_bytes(config, context_tokens, itemsize=itemsize),
        disk_bytes=files.weight_bytes(),
    )


def total_size(sizes: Sequence[Size | None]) -> Size | None:
    """Return the size of several models together; None where one is not known."""
    known = [size for size in sizes if size is not None]
    if len(known) < len(sizes):
        return None
    disk = [size.disk_bytes for size in known if size.disk_bytes is not None]
    return Size(
        num_parameters=sum(size.num_parameters for size in known),
        weight_bytes=sum(size.weight_bytes for size in known),
        kv_cache_bytes=sum(size.kv_cache_bytes for size in known),
        disk_bytes=sum(disk) if len(disk) == len(known) else None,
    )
