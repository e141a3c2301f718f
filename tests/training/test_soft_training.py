"""A student learns from its teacher's probabilities: stored, or made beside it."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from distillery.storage.stage import StageResult
from distillery.training import training_stage
from schemas.errors import TrainingError
from schemas.examples import FixedExamples
from schemas.execution import StageName
from schemas.objectives import HardTargets, SoftTargets
from schemas.teacher import TeacherSpec
from schemas.training import TrainingSpec
from tests.fixtures_models import make_tiny_model
from tests.fixtures_training import (
    SOFT,
    TASK,
    Killed,
    School,
    die_at,
    same_weights,
    soft_targets,
    soft_training,
)

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(make_tiny_model(tmp_path_factory.mktemp("teacher") / "tiny"))


@pytest.fixture
def school(tmp_path: Path, folder: str) -> School:
    return School(tmp_path / "store", folder)


def curve(result: StageResult) -> list[dict[str, float]]:
    found: Any = result.manifest.facts["curve"]
    return [entry for entry in found if "loss" in entry]


def losses(result: StageResult) -> list[float]:
    return [entry["loss"] for entry in curve(result)]


def test_the_loss_that_is_logged_is_the_weighted_sum_of_its_parts(school: School) -> None:
    training = soft_training(
        objective=soft_targets(hard_weight=0.25, soft_weight=2, k=5), learning_rate=1e-12
    )
    for entry in curve(school.teach(training)):
        expected = 0.25 * entry["hard_loss"] + 2 * entry["soft_loss"]
        assert entry["loss"] == pytest.approx(expected, rel=1e-5)
        assert entry["soft_loss"] > 0


@pytest.mark.parametrize("source", ["offline", pytest.param("online", marks=pytest.mark.slow)])
def test_a_student_that_overfits_one_batch_agrees_with_its_teacher(
    tmp_path: Path, folder: str, source: str
) -> None:
    school = School(tmp_path / "store", folder, num_train=8)
    spec = soft_targets(source=source, hard_weight=0, soft_weight=1)
    training = soft_training(objective=spec, epochs=150, patience=None, evaluations=1)
    result = school.teach(training)
    nats, agreement = school.divergence(result)
    assert curve(result)[0]["soft_loss"] > 1
    assert nats < 0.1
    assert agreement > 0.95
    assert curve(result)[-1]["soft_loss"] == pytest.approx(nats, abs=0.02)


@pytest.mark.parametrize("temperature", [pytest.param(1.0, marks=pytest.mark.slow), 2.0])
def test_stored_probabilities_of_all_tokens_teach_what_the_teacher_beside_teaches(
    school: School, temperature: float
) -> None:
    both = [
        school.teach(
            soft_training(
                objective=soft_targets(source=source, distillation_temperature=temperature)
            )
        )
        for source in ("offline", "online")
    ]
    assert losses(both[0]) == pytest.approx(losses(both[1]), rel=2e-3)
    assert both[0].manifest.fingerprint != both[1].manifest.fingerprint
    assert "teacher" in both[1].manifest.inputs


WAYS: tuple[dict[str, Any], ...] = (
    {"micro_batch_size": 1},
    {"micro_batch_size": 2},
    {"batching": "packed"},
    {"gradient_checkpointing": True},
)


@pytest.mark.parametrize(
    ("source", "ways"),
    [("offline", WAYS), pytest.param("online", WAYS[1:3], marks=pytest.mark.slow)],
)
def test_how_a_step_is_carried_out_does_not_change_what_is_learnt(
    tmp_path: Path, folder: str, source: str, ways: tuple[dict[str, Any], ...]
) -> None:
    training = soft_training(objective=soft_targets(source=source), epochs=1)
    one = School(tmp_path / "one", folder).teach(training)
    for n, way in enumerate(ways):
        two = School(tmp_path / str(n), folder).teach(training.model_copy(update=way))
        assert one.manifest.fingerprint == two.manifest.fingerprint
        assert losses(two) == pytest.approx(losses(one), rel=1e-5), way
        best = two.manifest.facts["best_validation_loss"]
        assert best == pytest.approx(one.manifest.facts["best_validation_loss"], rel=1e-5)


@pytest.mark.slow
def test_half_precision_learns_nearly_the_same(school: School) -> None:
    half = losses(school.teach(soft_training(dtype="bfloat16")))
    whole = losses(school.teach(SOFT))
    assert half == pytest.approx(whole, rel=0.02)
    assert half != whole


def test_a_killed_soft_training_goes_on_with_the_very_same_losses(
    school: School, tmp_path: Path, folder: str
) -> None:
    with pytest.raises(Killed):
        school.teach(SOFT, on_progress=die_at(5))
    result = school.teach(SOFT)
    assert result.manifest.facts["resumed_from_step"] == 4
    other = School(tmp_path / "other", folder)
    untouched = other.teach(SOFT)
    assert result.manifest.facts["curve"] == untouched.manifest.facts["curve"]
    assert same_weights(school.weights(result), other.weights(untouched))


def test_a_row_without_soft_targets_is_named(school: School, tmp_path: Path, folder: str) -> None:
    fewer = School(tmp_path / "fewer", folder, num_train=5)
    targets = fewer.score(SOFT)
    moved = targets.model_copy(update={"uri": "moved"})
    school.store.upload("moved", Path(fewer.store.path(targets.uri)))
    with pytest.raises(TrainingError, match=r"row '5' has no soft targets: .*force=\[score_soft"):
        school.teach(SOFT, soft_targets=moved)


def test_soft_targets_of_other_settings_are_refused_by_name(school: School) -> None:
    made = school.score(SOFT)
    for settings, named in (
        ({"distillation_temperature": 3.0}, r"temperature 1\.0, but .* is 3\.0\."),
        ({"k": 7}, r"with k 300, but training\.objective\.k is 7"),
    ):
        with pytest.raises(TrainingError, match=named):
            school.teach(soft_training(objective=soft_targets(**settings)), soft_targets=made)


def test_soft_targets_of_another_tokenizer_are_refused_by_name(
    school: School, tmp_path: Path
) -> None:
    from transformers import AutoTokenizer

    other = make_tiny_model(tmp_path / "other")
    tokenizer = AutoTokenizer.from_pretrained(other)
    tokenizer.add_tokens(["zebra"])
    tokenizer.save_pretrained(other)
    targets = school.score(SOFT)
    school.student = school.student.model_copy(update={"tokenizer": str(other)})
    with pytest.raises(TrainingError, match=r"made with the tokenizer \w+, the student has"):
        school.teach(SOFT, soft_targets=targets)


def test_a_teacher_that_reads_other_tokens_in_a_response_is_refused_with_the_row(
    school: School, tmp_path: Path
) -> None:
    other = make_tiny_model(tmp_path / "other")
    file = other / "tokenizer.json"
    raw = json.loads(file.read_text(encoding="utf-8"))
    raw["model"]["merges"].reverse()
    file.write_text(json.dumps(raw), encoding="utf-8")
    school.student = school.student.model_copy(update={"tokenizer": str(other)})
    with pytest.raises(TrainingError, match=r"row '2': .* chat template make \d+ tokens of the re"):
        school.teach(soft_training(objective=soft_targets(source="online")))


def test_a_teacher_beside_the_student_reads_its_own_prompt(school: School) -> None:
    """Against the scores that the stage stores of the same prompt."""
    school.teacher = school.teacher.model_copy(update={"system_prompt": "Be brief."})
    still = {"learning_rate": 1e-12, "epochs": 1, "evaluations": 1}
    learnt = [
        losses(school.teach(soft_training(objective=soft_targets(source=source, k=300), **still)))
        for source in ("offline", "online")
    ]
    plain = school.teacher.model_copy(update={"system_prompt": None})
    training = soft_training(objective=soft_targets(source="online", k=300), **still)
    untold = losses(school.teach(training, teacher=plain))
    assert learnt[0] == pytest.approx(learnt[1], rel=1e-3)
    assert learnt[1] != pytest.approx(untold, rel=1e-3)


def test_the_memory_of_a_teachers_own_prompt_is_counted_beforehand(
    school: School, monkeypatch: pytest.MonkeyPatch
) -> None:
    estimated: list[int] = []
    monkeypatch.setattr(
        "distillery.training.memory.MemoryEstimate.check",
        lambda estimate, *_: estimated.append(estimate.teacher_length),
    )
    told = school.teacher.model_copy(update={"system_prompt": "a b c d e f g h"})
    training = soft_training(objective=soft_targets(source="online"), epochs=1, evaluations=1)
    for teacher in (school.teacher, told):
        school.teach(training, teacher=teacher)
    assert estimated[1] - estimated[0] >= 8


def test_only_what_counts_changes_the_fingerprint(school: School) -> None:
    def fingerprint(
        training: TrainingSpec,
        targets: str | None = "1",
        teacher: TeacherSpec | None = None,
    ) -> str:
        ref = school.training_rows
        made = ref.model_copy(update={"fingerprint": targets}) if targets else None
        name = StageName.TRAIN_STUDENT
        told = teacher or school.teacher
        args = (name, ref, school.prompts, school.student, training, made, told, TASK)
        return training_stage(*args).fingerprint

    def beside(**prompt: Any) -> str:
        teacher = school.teacher.model_copy(update=prompt)
        return fingerprint(soft_training(objective=soft_targets(source="online")), None, teacher)

    hard = soft_training(objective=HardTargets())
    assert fingerprint(hard) == fingerprint(hard.with_hard_targets(), None)
    assert fingerprint(SOFT) != fingerprint(hard)
    assert fingerprint(SOFT) != fingerprint(SOFT, "2")
    assert fingerprint(SOFT) != fingerprint(
        soft_training(objective=soft_targets(divergence="reverse_kl"))
    )
    assert fingerprint(SOFT) == fingerprint(
        soft_training(objective=soft_targets(jsd_beta=0.2, skew_alpha=0.3))
    )
    told = school.teacher.model_copy(update={"system_prompt": "a"})
    assert fingerprint(SOFT) == fingerprint(SOFT, teacher=told)  # the stored scores tell
    prompts: list[dict[str, Any]] = [{}, {"system_prompt": "a"}, {"examples": FixedExamples()}]
    assert len({beside(**prompt) for prompt in prompts}) == 3


@pytest.mark.parametrize("divergence", ["forward_kl", "reverse_kl", "jensen_shannon"])
def test_padding_of_a_served_vocabulary_counts_for_nobody(divergence: Any) -> None:
    """A student that equals its teacher has next to no loss, whatever stood on padding."""
    from distillery.models.head import Head
    from distillery.objectives.divergence import SparseTargets
    from distillery.objectives.losses import response_losses
    from distillery.objectives.soft.stored import at_temperature, within_vocabulary

    torch.manual_seed(0)
    logits_NP = torch.randn(20, 60) * 3
    logits_NP[:, 50:] += 2  # padding
    log_p_NP = logits_NP.log_softmax(-1)
    log_probs_NK, ids_NK = log_p_NP.topk(8)
    log_rest_N = (1 - log_probs_NK.exp().sum(-1)).log()
    assert (ids_NK >= 50).any(-1).float().mean() > 0.5
    moved = within_vocabulary(ids_NK.numpy(), log_probs_NK.numpy(), log_rest_N.numpy(), 50)
    ids, log_probs, log_rest = map(torch.from_numpy, moved)
    spec = SoftTargets(divergence=divergence, hard_weight=0, soft_weight=1)
    losses = response_losses(
        logits_NP,
        Head(None),
        torch.zeros(20, dtype=torch.long),
        vocab_size=50,
        normaliser=20,
        soft=spec,
        targets=SparseTargets(ids, *at_temperature(log_probs, log_rest, 1.0)),
    )
    assert losses.loss < 0.25
