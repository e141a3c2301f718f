"""Several teachers score the responses: their average, or one of them each row."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from distillery.models.chat_format import IGNORED
from distillery.models.local import LocalModel
from distillery.objectives.choice import choose_objective
from distillery.objectives.soft.stage import score_soft_targets, scoring_stage
from distillery.objectives.soft.stored import ScoredRow, ScoringRow, read_meta, read_targets
from distillery.storage.stage import StageResult
from distillery.storage.store import Store
from schemas.errors import RecipeError, TeacherError
from schemas.execution import StoreSpec
from schemas.objectives import SoftTargets, SoftTeacher
from schemas.refs import DatasetRef
from schemas.student import PretrainedStudent
from schemas.teacher import OpenAITeacher, TransformersTeacher
from schemas.training import TrainingSpec
from tests.fixtures_models import make_tiny_model
from tests.fixtures_scores import (
    CONTEXT,
    INLINE,
    PROMPTS,
    TASK,
    local_teacher,
    put_rows,
    rows_to_score,
    score_here,
)

pytestmark = pytest.mark.usefixtures("one_thread")

SERVED = OpenAITeacher(model="m", base_url="http://127.0.0.1:1/v1")


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher of the same family with other weights."""
    return make_tiny_model(
        tmp_path_factory.mktemp("other") / "tiny", num_layers=1, seed=7, max_length=CONTEXT
    )


def panel(teacher: TransformersTeacher | OpenAITeacher, **named: Any) -> tuple[SoftTeacher, ...]:
    return (SoftTeacher(**({"name": "second", "teacher": teacher} | named)),)


def average(other: Path, *, weight: float = 3.0, **soft: Any) -> TrainingSpec:
    of = panel(local_teacher(other), weight=weight)
    given = {"k": 4, "distillation_temperature": 2.0, "panel": of} | soft
    return TrainingSpec(objective=SoftTargets(**given))


def routed(other: Path, pattern: str = "card card") -> TrainingSpec:
    of = panel(local_teacher(other), pattern=pattern)
    soft = SoftTargets(k=4, distillation_temperature=2.0, panel=of, combine="route")
    return TrainingSpec(objective=soft)


def alone() -> TrainingSpec:
    return TrainingSpec(objective=SoftTargets(k=4, distillation_temperature=2.0))


def run(
    spec: StoreSpec, folder: Path, training: TrainingSpec, asked: list[ScoringRow], **named: Any
) -> StageResult:
    rows, teacher = put_rows(spec, asked), local_teacher(folder)
    return score_soft_targets(rows, PROMPTS, teacher, TASK, training, spec, INLINE, **named)


def stored(spec: StoreSpec, result: StageResult) -> list[ScoredRow]:
    return list(read_targets(Store(spec.root), result.dataset("soft_targets")))


def log_mixture(folders: list[Path], weights: list[float], row: ScoringRow) -> torch.Tensor:
    """Return log Σ w p at the response tokens by the formula, in float64."""
    parts = []
    for folder, weight in zip(folders, weights, strict=True):
        model = LocalModel.load(folder, device="cpu")
        tokens = model.chat_format.row(row.messages, row.response)
        with torch.no_grad():
            logits_TV = model.model(torch.tensor([tokens.input_ids])).logits[0]
        at = [n - 1 for n, label in enumerate(tokens.labels) if label != IGNORED]
        parts.append(weight * logits_TV[at].double().softmax(-1))
    return torch.stack(parts).sum(0).log()


def test_the_average_is_that_of_all_probabilities_and_tempered_as_one(
    folder: Path, other: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("distillery.objectives.soft.scorers.CHUNK_LOGITS", 2 * 5 * 300)
    spec, asked = StoreSpec(root=str(tmp_path)), rows_to_score()
    result = run(spec, folder, average(other), asked)
    agreeing, num_tokens = np.zeros(2), 0
    for found, row in zip(stored(spec, result), asked, strict=True):
        log_p_NV = log_mixture([folder, other], [0.25, 0.75], row)
        values_NK, ids_NK = log_p_NV.topk(4)
        assert found.ids_NK.tolist() == ids_NK.sort(1).values.tolist()
        np.testing.assert_allclose(
            np.sort(found.log_probs_NK)[:, ::-1], values_NK, rtol=1e-3, atol=1e-3
        )
        tempered_NV = (log_p_NV / 2).log_softmax(-1).scatter(-1, ids_NK, -torch.inf)
        np.testing.assert_allclose(found.log_rest_N, tempered_NV.logsumexp(-1), atol=1e-5)
        best_N = log_p_NV.argmax(-1)
        num_tokens += len(best_N)
        for at, each in enumerate((folder, other)):
            agreeing[at] += int((log_mixture([each], [1.0], row).argmax(-1) == best_N).sum())
    assert 0 < agreeing[0] < agreeing[1]
    facts: Any = result.manifest.facts["teachers"]
    assert facts == {
        "teacher": {"rows": 7, "weight": 0.25, "agreement": agreeing[0] / num_tokens},
        "second": {"rows": 7, "weight": 0.75, "agreement": agreeing[1] / num_tokens},
    }


def test_each_row_is_scored_by_the_teacher_that_its_last_user_turn_chooses(
    folder: Path, other: Path, tmp_path: Path
) -> None:
    spec, asked = StoreSpec(root=str(tmp_path)), rows_to_score()
    training = routed(other)
    result = run(spec, folder, training, asked)
    theirs = [row for row in asked if "card card" in row.messages[0]["content"]]
    assert 0 < len(theirs) < len(asked)
    expected = {row.prompt_id: row for row in score_here(folder, alone(), asked)}
    expected |= {row.prompt_id: row for row in score_here(other, alone(), theirs)}
    read = stored(spec, result)
    assert [row.prompt_id for row in read] == [row.prompt_id for row in asked]
    for found in read:
        row = expected[found.prompt_id]
        assert np.array_equal(found.ids_NK, np.sort(row.ids_NK))
        np.testing.assert_allclose(found.log_rest_N, row.log_rest_N, atol=1e-5)
    assert result.manifest.facts["teachers"] == {
        "teacher": {"rows": len(asked) - len(theirs)},
        "second": {"rows": len(theirs)},
    }
    meta = read_meta(Store(spec.root), result.dataset("soft_targets"))
    assert meta.tokenizer_hash is not None


def test_a_teacher_that_teaches_next_to_nothing_is_named(
    folder: Path, other: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    spec = StoreSpec(root=str(tmp_path))
    run(spec, folder, routed(other, "no such text"), rows_to_score())
    assert "second teaches 0 of 7 rows, fewer than a tenth" in caplog.text
    caplog.clear()
    run(spec, folder, average(other, weight=0.005), rows_to_score(2))
    assert "second has 0.005 of the weight, so it teaches next to nothing" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        run(spec, folder, average(other), rows_to_score(3))
    assert not caplog.records


class Killed(BaseException):
    """Stands for the end of the process."""


def test_a_killed_panel_goes_on_and_counts_what_it_had_found(
    folder: Path, other: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("distillery.objectives.soft.stage._CHUNK_ROWS", 3)

    def die(*_: int) -> None:
        raise Killed

    specs = [StoreSpec(root=str(tmp_path / name)) for name in ("one", "two")]
    asked = rows_to_score()
    with pytest.raises(Killed):
        run(specs[0], folder, average(other), asked, on_progress=die)
    again, whole = (run(spec, folder, average(other), asked) for spec in specs)
    assert again.manifest.facts["rows_scored_before"] == 3
    assert again.manifest.facts["teachers"] == whole.manifest.facts["teachers"]


def test_a_row_too_long_for_one_of_them_is_left_out(
    folder: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    short = make_tiny_model(tmp_path_factory.mktemp("short") / "tiny", seed=3, max_length=20)
    result = run(StoreSpec(root=str(tmp_path)), folder, average(short), rows_to_score())
    counts = result.manifest.counts
    assert counts["rows"] + counts["left_out_too_long"] == 7
    assert 0 < counts["left_out_too_long"] < 7


def test_who_teaches_what_is_in_the_fingerprint(folder: Path, other: Path) -> None:
    def fingerprint(training: TrainingSpec) -> str:
        rows = DatasetRef(uri="rows", fingerprint="rows", num_rows=1, columns=())
        return scoring_stage(rows, PROMPTS, local_teacher(folder), TASK, training).fingerprint

    def of(**named: Any) -> TrainingSpec:
        return TrainingSpec(
            objective=SoftTargets(k=4, distillation_temperature=2.0, panel=panel(**named))
        )

    plain = {"teacher": local_teacher(other), "weight": 3.0}
    same = fingerprint(average(other))
    assert fingerprint(of(**plain, name="another name")) == same
    assert fingerprint(of(**plain | {"teacher": local_teacher(other, batch_size=1)})) == same
    others = [
        fingerprint(alone()),
        fingerprint(of(**plain | {"weight": 2.0})),
        fingerprint(of(**plain | {"teacher": local_teacher(other, dtype="bfloat16")})),
        fingerprint(of(**plain | {"teacher": local_teacher(other, system_prompt="Be brief.")})),
        fingerprint(routed(other)),
        fingerprint(routed(other, "another")),
    ]
    assert len({same, *others}) == 1 + len(others)


def chosen(folder: Path, training: TrainingSpec) -> str:
    student = PretrainedStudent(model=str(folder))
    return choose_objective(local_teacher(folder), student, training).because


def test_a_panel_that_cannot_teach_together_is_refused_by_name(
    folder: Path, other: Path, tmp_path: Path
) -> None:
    assert chosen(folder, average(other)) == "soft_targets: as the recipe says"
    with pytest.raises(RecipeError, match="'second' and 'teacher' are the same model"):
        chosen(folder, average(folder))
    with pytest.raises(RecipeError, match=r"'second', 'm', is served .*\.combine to route"):
        chosen(folder, TrainingSpec(objective=SoftTargets(k=4, panel=panel(SERVED))))
    beside = panel(SERVED, pattern="x")
    with pytest.raises(RecipeError, match=r"panel, 'second': .*'online' runs the teacher beside"):
        online = SoftTargets(k=4, source="online", panel=beside, combine="route")
        chosen(folder, TrainingSpec(objective=online))
    from transformers import AutoTokenizer

    stranger = make_tiny_model(tmp_path / "stranger", seed=9)
    tokenizer = AutoTokenizer.from_pretrained(stranger)
    tokenizer.add_tokens(["zebra"])
    tokenizer.save_pretrained(stranger)
    with pytest.raises(RecipeError, match=r"panel, 'second': the student's vocabulary \(\d+ tok"):
        chosen(folder, average(stranger))


def test_the_name_of_the_recipes_teacher_and_a_name_twice_are_refused() -> None:
    with pytest.raises(ValueError, match="names a teacher 'teacher', which is what reports"):
        SoftTargets(panel=panel(SERVED, name="teacher"))
    with pytest.raises(ValueError, match="two of them alike"):
        SoftTargets(panel=panel(SERVED) + panel(SERVED))


def test_models_that_do_not_fit_together_are_refused_before_they_are_loaded(
    folder: Path, other: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("distillery.objectives.soft.scorers.available_memory", lambda device: 9)
    with pytest.raises(TeacherError, match=r"the 2 local teachers take .* but cpu has 9 B"):
        run(StoreSpec(root=str(tmp_path)), folder, average(other), rows_to_score(1))
