"""Files that are not the student are refused before anything is measured."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from distillery.data.chat import Message
from distillery.export.base import Exporter, ExportFacts, Generated, Runtime, run_builder
from distillery.export.check import check_reading, check_writing
from distillery.export.gguf import Gguf
from distillery.export.onnx import Onnx
from distillery.models.chat_format import Conversation
from distillery.models.local import LocalModel
from schemas.errors import StageError
from schemas.export import GgufFormat, OnnxFormat
from tests.fixtures_models import make_tiny_model

PROMPTS = [[Message(role="user", content="what is 2 + 2 ?")]]
FULL, SMALL = OnnxFormat(precision="fp32"), OnnxFormat(precision="int4")


class Scripted(Runtime):
    """Reads and writes what it is told to."""

    def __init__(self, folder: Path) -> None:
        ExportFacts(context_length=256, kv_cache_bytes=1).save(folder)
        super().__init__(folder)
        self.reads: list[int] = []
        self.writes = Generated([], stopped=False)

    def prompt_ids(self, messages: Conversation) -> list[int]:
        return self.reads

    def generate(self, prompt_ids: Sequence[int], max_new_tokens: int) -> Generated:
        return self.writes

    def close(self) -> None:
        """Nothing is held."""


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> LocalModel:
    return LocalModel.load(make_tiny_model(tmp_path_factory.mktemp("models") / "tiny"))


@pytest.fixture
def runtime(folder: Path) -> Scripted:
    return Scripted(folder)


def _own_choice(student: LocalModel, num_tokens: int) -> list[int]:
    import torch

    ids = student.chat_format.prompt_ids(PROMPTS[0])
    for _ in range(num_tokens):
        ids.append(int(student.model(torch.tensor([ids])).logits[0, -1].argmax()))
    return ids[-num_tokens:]


def test_a_runtime_that_reads_other_tokens_is_refused_at_the_first_of_them(
    runtime: Scripted, student: LocalModel
) -> None:
    learnt = student.chat_format.prompt_ids(PROMPTS[0])
    runtime.reads = learnt
    check_reading(runtime, student, PROMPTS, SMALL)
    runtime.reads = [*learnt[:3], 2, *learnt[4:]]
    with pytest.raises(StageError, match=r"'onnx int4' reads other tokens .* at token 3 of"):
        check_reading(runtime, student, PROMPTS, SMALL)
    runtime.reads = learnt[:-1]  # no generation prompt
    with pytest.raises(
        StageError, match=rf"'' for '<\|assistant\|>' at token {len(learnt) - 1} of"
    ):
        check_reading(runtime, student, PROMPTS, SMALL)


def test_tokens_that_the_student_would_write_have_no_gap(
    runtime: Scripted, student: LocalModel
) -> None:
    runtime.writes = Generated(_own_choice(student, 4), stopped=False)
    assert check_writing(runtime, student, PROMPTS, FULL) == {
        "prompts_answered": 1,
        "same_answers": 1,
        "mean_gap_nats": 0.0,
        "largest_gap_nats": 0.0,
    }


def test_full_precision_that_computes_another_model_is_refused_and_a_smaller_file_is_recorded(
    runtime: Scripted, student: LocalModel
) -> None:
    own = _own_choice(student, 2)
    runtime.writes = Generated([own[0], (own[1] + 1) % 300], stopped=False)
    with pytest.raises(StageError, match=r"'onnx fp32' has .* nats less likely"):
        check_writing(runtime, student, PROMPTS, FULL)
    found = check_writing(runtime, student, PROMPTS, SMALL)
    assert found["same_answers"] == 0
    assert found["largest_gap_nats"] == pytest.approx(
        2 * float(str(found["mean_gap_nats"])), abs=1e-3
    )


def test_ending_where_the_student_would_go_on_is_a_gap_too(
    runtime: Scripted, student: LocalModel
) -> None:
    runtime.writes = Generated(_own_choice(student, 1), stopped=True)
    found = check_writing(runtime, student, PROMPTS, SMALL)
    assert float(str(found["largest_gap_nats"])) > 0


def test_a_runtime_that_writes_nothing_is_refused(runtime: Scripted, student: LocalModel) -> None:
    with pytest.raises(StageError, match="nothing to say to the first 1 training prompts"):
        check_writing(runtime, student, PROMPTS, SMALL)


def test_a_builder_that_fails_is_told_with_its_last_words(tmp_path: Path) -> None:
    with pytest.raises(StageError, match=r"writing 'x' failed: .*No module named nowhere.* rerun"):
        run_builder("nowhere", tmp_path, name="x")


@pytest.mark.parametrize(
    ("builder", "said"),
    [
        ("raise OSError(28, 'No space left on device')", r"disk of temporary files .* TMPDIR"),
        ("import os; os.kill(os.getpid(), 9)", "killed by signal 9, often for want of memory"),
    ],
)
def test_a_full_disk_and_a_kill_are_told_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, builder: str, said: str
) -> None:
    (tmp_path / "broken_builder.py").write_text(builder)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(StageError, match=said):
        run_builder("broken_builder", name="x")


@pytest.mark.parametrize("exporter", [Onnx(), Gguf()])
def test_builders_know_the_usual_architectures(exporter: Exporter) -> None:
    known = exporter.architectures()
    assert {"LlamaForCausalLM", "Gemma3ForCausalLM", "Qwen3ForCausalLM"} <= known
    assert "CTRLLMHeadModel" not in known


def test_files_that_a_runtime_cannot_open_are_named_with_what_to_do(folder: Path) -> None:
    ExportFacts(context_length=16, kv_cache_bytes=1).save(folder)
    (folder / "model.gguf").write_bytes(b"GGUF, or not")
    for exporter, format in ((Onnx(), SMALL), (Gguf(), GgufFormat())):
        with pytest.raises(StageError, match=rf"cannot open {format.name!r}: .*export\.formats"):
            exporter.open(format, folder, 64)
