"""The objective is what the recipe says or the best that is possible, and the reason is told."""

import json
import logging
from pathlib import Path

import pytest

from distillery.objectives.choice import ChosenObjective, choose_objective
from schemas.errors import RecipeError
from schemas.objectives import (
    Attention,
    AutoObjective,
    CrossTokenizer,
    HiddenStates,
    SoftTargets,
    SoftTeacher,
)
from schemas.student import FromScratchStudent, PretrainedStudent, PrunedStudent
from schemas.teacher import OpenAITeacher, TransformersTeacher
from schemas.training import TrainingSpec
from tests.fixtures_models import make_tiny_model
from tests.fixtures_vllm import StubPython, stub_python
from tests.stub_vllm import StubVllm, save_tokenizer

__all__ = ["stub_python"]

AUTO = TrainingSpec(objective=AutoObjective())
SOFT = TrainingSpec(objective=SoftTargets())
NEW_TOKENIZER = FromScratchStudent(
    num_layers=1, hidden_size=16, intermediate_size=32, num_heads=2, vocab_size=320
)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A teacher, a student of its family, and one with a token that the teacher does not have."""
    from transformers import AutoTokenizer

    root = tmp_path_factory.mktemp("models")
    paths = {
        name: str(make_tiny_model(root / name, seed=n))
        for n, name in enumerate(("teacher", "kin", "stranger"))
    }
    tokenizer = AutoTokenizer.from_pretrained(paths["stranger"])
    tokenizer.add_tokens(["zebra"])
    tokenizer.save_pretrained(paths["stranger"])
    return paths


def test_hard_targets_stay_hard_and_nothing_is_opened() -> None:
    nobody = TransformersTeacher(model="nowhere")
    chosen = choose_objective(nobody, NEW_TOKENIZER, TrainingSpec())
    assert chosen == ChosenObjective(TrainingSpec(), "hard_targets: as the recipe says")
    assert not chosen.needs_scores


def test_auto_is_soft_where_teacher_and_student_share_a_vocabulary(
    models: dict[str, str],
) -> None:
    teacher = TransformersTeacher(model=models["teacher"])
    for student in (
        PretrainedStudent(model=models["kin"]),
        NEW_TOKENIZER.model_copy(update={"tokenizer": models["teacher"]}),
    ):
        chosen = choose_objective(teacher, student, AUTO)
        assert chosen.training == SOFT
        assert chosen.needs_scores
        assert chosen.because == "soft_targets: teacher and student share a vocabulary"
        assert choose_objective(teacher, student, SOFT).because.endswith("as the recipe says")


def test_auto_is_hard_where_thoughts_are_learnt(models: dict[str, str]) -> None:
    thoughtful = AUTO.model_copy(update={"learn_reasoning": True})
    teacher = TransformersTeacher(model=models["teacher"])
    chosen = choose_objective(teacher, PretrainedStudent(model=models["kin"]), thoughtful)
    assert chosen.training == TrainingSpec(learn_reasoning=True)
    assert chosen.because == (
        "hard_targets: no teacher's probabilities are made of the thoughts to be learnt "
        "(training.learn_reasoning)"
    )


def test_soft_targets_of_thoughts_are_refused() -> None:
    with pytest.raises(ValueError, match="probabilities are those of its responses without thoug"):
        TrainingSpec.model_validate({**SOFT.model_dump(), "learn_reasoning": True})


def test_auto_compares_sorted_probabilities_with_another_vocabulary_and_the_log_says_why(
    models: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    teacher = TransformersTeacher(model=models["teacher"])
    with caplog.at_level(logging.INFO, logger="distillery.run"):
        chosen = choose_objective(teacher, PretrainedStudent(model=models["stranger"]), AUTO)
    assert chosen.training == TrainingSpec(objective=CrossTokenizer())
    assert "not soft_targets: the student's vocabulary" in chosen.because
    assert "first at 'zebra'" in chosen.because
    assert "training.objective auto is cross_tokenizer: the teacher shows" in caplog.text


def test_soft_targets_that_cannot_be_are_refused_with_the_reason(models: dict[str, str]) -> None:
    teacher = TransformersTeacher(model=models["teacher"])
    with pytest.raises(RecipeError, match=r"'soft_targets', but the student's vocabulary \(\d+ to"):
        choose_objective(teacher, PretrainedStudent(model=models["stranger"]), SOFT)
    with pytest.raises(RecipeError, match=r"gets a new tokenizer.*Set student\.tokenizer to the f"):
        choose_objective(teacher, NEW_TOKENIZER, SOFT)


def test_a_student_pruned_from_its_teacher_learns_from_its_layers(models: dict[str, str]) -> None:
    teacher = TransformersTeacher(model=models["teacher"])
    student = PrunedStudent(model=models["teacher"], num_layers=1)
    chosen = choose_objective(teacher, student, AUTO.model_copy(update={"max_length": 256}))
    assert chosen.training.objective == Attention()
    assert chosen.because.startswith("attention: the student was pruned from the teacher")
    chosen = choose_objective(teacher, student, AUTO.model_copy(update={"max_length": 1024}))
    assert chosen.training.objective == HiddenStates()
    other = PrunedStudent(model=models["kin"], num_layers=1)
    assert choose_objective(teacher, other, AUTO).training.objective == SoftTargets()


def test_auto_passes_its_settings_on(models: dict[str, str]) -> None:
    teacher = TransformersTeacher(model=models["teacher"])
    stranger = PretrainedStudent(model=models["stranger"])
    for weight, taken in ((0.2, 0.2), (0.0, 0.7)):  # sorted probabilities alone teach no token
        auto = AutoObjective(soft_weight=0.7, hard_weight=weight, k=8)
        chosen = choose_objective(teacher, stranger, TrainingSpec(objective=auto))
        expected = CrossTokenizer(soft_weight=0.7, hard_weight=taken, k=8)
        assert chosen.training.objective == expected


def test_auto_leaves_no_teacher_of_a_panel_out(models: dict[str, str]) -> None:
    other = TransformersTeacher(model=models["kin"])
    auto = AutoObjective(panel=(SoftTeacher(name="kin", teacher=other),))
    teacher, training = TransformersTeacher(model=models["teacher"]), TrainingSpec(objective=auto)
    chosen = choose_objective(teacher, PretrainedStudent(model=models["stranger"]), training)
    assert chosen.training == TrainingSpec()
    pruned = PrunedStudent(model=models["teacher"], num_layers=1)
    chosen = choose_objective(teacher, pruned, training)
    assert chosen.training.objective == SoftTargets(panel=auto.panel)


def test_auto_stores_what_a_server_cannot_do_beside_the_student(
    models: dict[str, str], stub_python: StubPython
) -> None:
    teacher = stub_python.teacher(model=models["teacher"], revision=None)
    online = TrainingSpec(objective=AutoObjective(source="online"))
    chosen = choose_objective(teacher, PretrainedStudent(model=models["kin"]), online)
    assert chosen.training.objective == SoftTargets()
    assert "; not soft_targets: training.objective.source 'online'" in chosen.because


def test_auto_aligns_with_the_tokenizer_of_an_endpoint(
    models: dict[str, str], tmp_path: Path
) -> None:
    named = str(save_tokenizer(tmp_path / "tokenizer"))
    auto = TrainingSpec(objective=AutoObjective(k=8, tokenizer=named))
    with StubVllm() as server:
        student = PretrainedStudent(model=models["stranger"])
        chosen = choose_objective(server.spec(), student, auto)
    assert chosen.training.objective == CrossTokenizer(k=8, tokenizer=named)
    local = TransformersTeacher(model=models["teacher"])  # whose tokenizer is its own
    assert choose_objective(local, student, auto).training.objective == CrossTokenizer(k=8)


def test_more_targets_than_tokens_are_refused(models: dict[str, str]) -> None:
    teacher = TransformersTeacher(model=models["teacher"])
    many = TrainingSpec(objective=AutoObjective(k=900))
    with pytest.raises(RecipeError, match=r"k=900 is more than the \d+ tokens of the student's vo"):
        choose_objective(teacher, PretrainedStudent(model=models["kin"]), many)


def test_an_endpoint_cannot_run_beside_the_student(models: dict[str, str]) -> None:
    teacher = OpenAITeacher(model="m", base_url="http://127.0.0.1:9/v1")
    online = TrainingSpec(objective=SoftTargets(source="online"))
    with pytest.raises(RecipeError, match=r"a server cannot do\. Set it to offline, or"):
        choose_objective(teacher, PretrainedStudent(model=models["kin"]), online)


def test_a_provider_that_shows_no_probabilities_makes_auto_hard(models: dict[str, str]) -> None:
    teacher = OpenAITeacher(model="m", base_url="http://127.0.0.1:9/v1", provider="openai")
    chosen = choose_objective(teacher, PretrainedStudent(model=models["kin"]), AUTO)
    assert chosen.training == TrainingSpec()
    assert "openai" in chosen.because


def test_a_template_that_writes_responses_otherwise_makes_auto_hard(
    models: dict[str, str], tmp_path: Path
) -> None:
    from transformers import AutoTokenizer

    student = make_tiny_model(tmp_path / "student")
    tokenizer = AutoTokenizer.from_pretrained(student)
    tokenizer.chat_template = tokenizer.chat_template.replace("<|end|>", " .<|end|>")
    tokenizer.save_pretrained(student)
    teacher = TransformersTeacher(model=models["teacher"])
    chosen = choose_objective(teacher, PretrainedStudent(model=str(student)), AUTO)
    assert chosen.training == TrainingSpec()
    assert "turns the response 'Forty-two.' into 'Forty-two. .'" in chosen.because


def test_a_tokenizer_that_splits_text_otherwise_is_compared_on_bytes(
    models: dict[str, str], tmp_path: Path
) -> None:
    student = make_tiny_model(tmp_path / "student")
    file = student / "tokenizer.json"
    raw = json.loads(file.read_text(encoding="utf-8"))
    raw["model"]["merges"].reverse()
    file.write_text(json.dumps(raw), encoding="utf-8")
    teacher = TransformersTeacher(model=models["teacher"])
    chosen = choose_objective(teacher, PretrainedStudent(model=str(student)), AUTO)
    assert chosen.training == TrainingSpec(objective=CrossTokenizer())
    assert "splits text differently" in chosen.because
