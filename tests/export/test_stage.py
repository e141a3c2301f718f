import json
import shutil
from pathlib import Path

import pytest
from gguf import GGUFReader

from distillery.data.chat import Message
from distillery.evaluation.exported import Exported
from distillery.export import FORMATS, open_runtime
from distillery.export.base import ExportFacts
from distillery.export.stage import export_stage
from distillery.models.local import LocalModel
from distillery.storage.store import Store
from schemas.contestants import ExportedContestant
from schemas.evaluation import EvaluationSpec
from schemas.export import ExportFormat, GgufFormat, OnnxFormat
from tests.fixtures_export import TrainedStudent, make_tiny_gemma

EXACT: list[ExportFormat] = [OnnxFormat(precision="fp32"), GgufFormat(precision="f32")]
LOSSY: list[ExportFormat] = [
    OnnxFormat(precision="int4"),
    GgufFormat(precision="q8_0"),
    GgufFormat(precision="f16"),
]


@pytest.mark.slow
@pytest.mark.parametrize("format", EXACT, ids=lambda f: f.name)
def test_a_file_in_full_precision_answers_as_the_student_does(
    trained: TrainedStudent, format: ExportFormat
) -> None:
    made = trained.export(format)

    check = made.manifest.facts["check"]
    assert isinstance(check, dict)
    assert (check["prompts_answered"], check["same_answers"]) == (4, 4)
    assert made.model("model").num_parameters == trained.student.num_parameters

    spec = ExportedContestant(name=format.name, model=made.model("model"), format=format)
    evaluation = EvaluationSpec(max_new_tokens=12, context_tokens=64)
    with Exported.of(spec, evaluation).opened(Store(trained.store.root)) as opened:
        answers = opened.answer(trained.conversations, 1)
    student = LocalModel.load(trained.files)
    expected = student.answer(trained.conversations, max_new_tokens=12, batch_size=1)
    assert [a.response for a in answers] == [e.text for e in expected]
    assert [a.prompt_tokens for a in answers] == [e.prompt_tokens for e in expected]
    assert [a.new_tokens for a in answers] == [e.completion_tokens for e in expected]
    assert [a.truncated for a in answers] == [e.finish_reason == "length" for e in expected]
    assert all((a.first_token_s or 0) > 0 for a in answers)
    assert (
        opened.size is not None and opened.size.disk_bytes == made.manifest.counts["weight_bytes"]
    )


@pytest.mark.slow
@pytest.mark.parametrize("format", LOSSY, ids=lambda f: f.name)
def test_a_smaller_file_is_written_and_its_loss_is_recorded(
    trained: TrainedStudent, format: ExportFormat
) -> None:
    made = trained.export(format)

    check = made.manifest.facts["check"]
    assert isinstance(check, dict)
    assert check["prompts_answered"] == 4 and check["largest_gap_nats"] >= 0  # type: ignore[operator]
    assert made.manifest.counts["weight_bytes"] < 4 * 130_000
    assert set(made.manifest.timings_s) == {"write", "check", "total"}


@pytest.mark.slow
@pytest.mark.parametrize("format", EXACT, ids=lambda f: f.name)
def test_gemma_reads_and_writes_as_before(format: ExportFormat, tmp_path: Path) -> None:
    gemma = TrainedStudent(tmp_path, make_tiny_gemma(tmp_path / "gemma"))
    check = gemma.export(format).manifest.facts["check"]
    assert isinstance(check, dict)
    assert (check["prompts_answered"], check["same_answers"]) == (4, 4)


@pytest.mark.slow
def test_a_stage_that_is_done_is_reused_and_another_precision_is_another_stage(
    trained: TrainedStudent,
) -> None:
    first = trained.export(EXACT[1])
    assert trained.export(EXACT[1]).reused
    other = export_stage(trained.student, trained.rows, LOSSY[1])
    assert other.fingerprint != first.manifest.fingerprint


@pytest.mark.parametrize("format", EXACT, ids=lambda f: f.name)
def test_the_folder_decodes_greedily_by_default_and_opens_where_it_is_copied(
    trained: TrainedStudent,
    format: ExportFormat,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # So that the long prompt below needs more room than was made at first.
    monkeypatch.setattr("distillery.export.gguf._LEAST_CONTEXT", 32)
    model = trained.export(format).model("model")
    with Store(trained.store.root).local_copy(model) as folder:
        copied = shutil.copytree(folder, tmp_path / "edge")
    assert ExportFacts.load(copied) == ExportFacts(
        context_length=256, kv_cache_bytes=2 * 2 * 32 * FORMATS[format.kind].kv_bytes(format)
    )
    if format.kind == "onnx":
        config = json.loads((copied / "genai_config.json").read_text())
        assert config["search"]["do_sample"] is False
    else:
        fields = GGUFReader(copied / "model.gguf").fields
        assert fields["general.sampling.temp"].contents() == 0
        assert "<|assistant|>" in fields["tokenizer.chat_template"].contents()
    runtime = open_runtime(format, copied, context_tokens=16)
    long = [Message(role="user", content="where is my transfer " * 8)]
    written = runtime.answer(long, 500)  # the context ends before that
    runtime.close()
    student = LocalModel.load(trained.files).answer([long], max_new_tokens=500, batch_size=1)[0]
    assert written.num_prompt_tokens == student.prompt_tokens
    assert len(written.ids) + written.stopped == student.completion_tokens
