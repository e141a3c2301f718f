import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from distillery.preflight.export import unwritable_formats
from schemas.execution import ExecutionSpec
from schemas.export import ExportSpec, GgufFormat, OnnxFormat
from schemas.student import FromScratchStudent, PretrainedStudent, PrunedStudent
from tests.fixtures_models import make_tiny_model

HERE, ELSEWHERE = ExecutionSpec(), ExecutionSpec(mode="deployment")
BOTH = ExportSpec(formats=(OnnxFormat(), GgufFormat()))
NEW = FromScratchStudent(num_layers=1, hidden_size=32, intermediate_size=32, num_heads=2)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("models") / "tiny", hidden_size=32)


@pytest.fixture
def folder(tiny: Path, tmp_path: Path) -> Path:
    return shutil.copytree(tiny, tmp_path / "model")


def _problems(student: Path, export: ExportSpec = BOTH) -> list[str]:
    return unwritable_formats(export, PretrainedStudent(model=str(student)), HERE)


def test_a_llama_can_be_written_in_all_formats_that_a_cpu_runs(tiny: Path) -> None:
    assert _problems(tiny) == []
    assert unwritable_formats(BOTH, NEW, HERE) == []


def test_a_missing_extra_is_named_with_the_command_that_brings_it(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = importlib.util.find_spec

    def without(name: str, *rest: Any) -> Any:
        return None if name in ("onnxruntime_genai", "xllamacpp") else found(name, *rest)

    monkeypatch.setattr(importlib.util, "find_spec", without)
    onnx, gguf = _problems(tiny)
    assert "onnxruntime-genai" in onnx and "pip install 'distillery[onnx]'" in onnx
    assert "xllamacpp" in gguf and "pip install 'distillery[gguf]'" in gguf
    student = PretrainedStudent(model=str(tiny))
    assert unwritable_formats(BOTH, student, ELSEWHERE) == []  # the worker may have them


def test_half_precision_onnx_is_refused_where_there_is_no_gpu(tiny: Path) -> None:
    (problem,) = _problems(tiny, ExportSpec(formats=(OnnxFormat(precision="fp16"),)))
    assert "'onnx fp16'" in problem and "has no CUDA" in problem and "int4" in problem


def test_an_architecture_that_no_builder_knows_is_refused_by_name(folder: Path) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"model_type": "ctrl"}))
    problems = _problems(folder)
    assert [("'CTRLLMHeadModel'" in line, "does not know" in line) for line in problems] == [
        (True, True),
        (True, True),
    ]


def test_heads_that_onnxruntime_cannot_compute_are_refused_with_what_to_change() -> None:
    narrow = NEW.model_copy(update={"num_heads": 4})
    (problem,) = unwritable_formats(BOTH, narrow, HERE)
    assert "multiple of 16 numbers and the student's have 8" in problem
    assert "student.num_heads" in problem


def test_a_tokenizer_that_llama_cpp_has_not_is_refused_and_onnx_reads_it(folder: Path) -> None:
    file = folder / "tokenizer.json"
    spec = json.loads(file.read_text())
    by_words = {"type": "Whitespace"}
    file.write_text(json.dumps(spec | {"pre_tokenizer": by_words}))
    (problem,) = _problems(folder)
    assert "asks for gguf" in problem and "after Whitespace" in problem


def test_a_format_that_is_named_twice_is_refused() -> None:
    (problem,) = unwritable_formats(ExportSpec(formats=(OnnxFormat(), OnnxFormat())), NEW, HERE)
    assert "'onnx int4' 2 times" in problem


@pytest.mark.parametrize(
    ("layers", "full"),
    [((0, 3, 7, 10, 14, 17), None), ((0, 1, 2, 3, 4), None), ((0, 6, 11, 17), "[2, 3]")],
)
def test_layers_that_llama_cpp_would_take_for_others_are_refused(
    tiny: Path, tmp_path: Path, layers: tuple[int, ...], full: str | None
) -> None:
    from transformers import AutoTokenizer, Gemma3TextConfig

    folder = tmp_path / "gemma"
    AutoTokenizer.from_pretrained(tiny).save_pretrained(folder)
    config = Gemma3TextConfig(num_hidden_layers=18, head_dim=16)
    assert [n for n, kind in enumerate(config.layer_types) if kind[0] == "f"] == [5, 11, 17]
    config.architectures = ["Gemma3ForCausalLM"]
    config.save_pretrained(folder)
    assert unwritable_formats(BOTH, PretrainedStudent(model=str(folder)), HERE) == []
    student = PrunedStudent(model=str(folder), layers=layers)
    problems = unwritable_formats(BOTH, student, HERE)
    assert len(problems) == (0 if full is None else 1)
    for problem in problems:
        assert f"student's {len(layers)} layers those with full attention are {full}" in problem
        assert problem.endswith("that follow this order, or export onnx.")
