"""The size of a teacher that vLLM loads, told from its files."""

from distillery.evaluation.size import size_of_files
from distillery.models.local import LocalModel
from schemas.teacher import TransformersTeacher, VLLMTeacher

DEMO = "recipes/demo/teacher"


def test_it_is_that_of_the_same_model_loaded_here() -> None:
    here = TransformersTeacher(model=DEMO, dtype="float32")
    model = LocalModel.of(here, device="cpu")
    size = size_of_files(VLLMTeacher(model=DEMO, python="python", dtype="float32"), 128)
    assert size is not None
    assert size.num_parameters == model.model.num_parameters()
    assert size.weight_bytes == model.model.get_memory_footprint(return_buffers=False)
    assert size.kv_cache_bytes == model.kv_cache_bytes(128)
    assert size.disk_bytes == model.disk_bytes


def test_of_weights_that_vllm_makes_smaller_none_is_known() -> None:
    teacher = VLLMTeacher(model=DEMO, python="python", quantization="fp8")
    assert size_of_files(teacher, 128) is None
