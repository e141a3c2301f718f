"""What is known of a teacher that the stage serves, before its server is started."""

from typing import Any

import pytest

from distillery.objectives.cross_tokenizer import CrossTokenizerObjective
from distillery.objectives.on_policy import OnPolicyObjective
from distillery.objectives.soft_targets import SoftTargetObjective
from schemas.objectives import CrossTokenizer, OnPolicy, SoftTargets
from schemas.student import FromScratchStudent
from schemas.teacher import VLLMTeacher
from schemas.training import TrainingSpec
from tests.fixtures_vllm import StubPython, stub_python

__all__ = ["stub_python"]

DEMO = "recipes/demo/teacher"
STUDENT = FromScratchStudent(
    num_layers=1,
    hidden_size=8,
    intermediate_size=8,
    num_heads=1,
    max_length=128,
    tokenizer=DEMO,
)


@pytest.fixture
def teacher(stub_python: StubPython) -> VLLMTeacher:
    return stub_python.teacher(model=DEMO, revision=None)


@pytest.mark.parametrize(
    ("of", "spec"),
    [
        (SoftTargetObjective, SoftTargets()),
        (CrossTokenizerObjective, CrossTokenizer()),
        (OnPolicyObjective, OnPolicy(max_new_tokens=16)),
    ],
)
def test_its_tokenizer_is_read_and_no_server_started(
    of: Any, spec: Any, teacher: VLLMTeacher, stub_python: StubPython
) -> None:
    training = TrainingSpec(objective=spec, num_processes=1)
    assert of.obstacle(training, teacher, STUDENT) is None
    assert stub_python.servers == []


@pytest.mark.parametrize(
    ("of", "spec"),
    [
        (SoftTargetObjective, SoftTargets(distillation_temperature=2)),
        (CrossTokenizerObjective, CrossTokenizer(distillation_temperature=2)),
        (OnPolicyObjective, OnPolicy(max_new_tokens=16, distillation_temperature=2)),
    ],
)
def test_what_no_server_shows_is_refused_before_it_has_answered(
    of: Any, spec: Any, teacher: VLLMTeacher, stub_python: StubPython
) -> None:
    obstacle = of.obstacle(TrainingSpec(objective=spec, num_processes=1), teacher, STUDENT)
    assert obstacle is not None and "is 2, but a served teacher shows" in obstacle
    assert stub_python.servers == []


def test_it_does_not_run_beside_the_student(teacher: VLLMTeacher) -> None:
    training = TrainingSpec(objective=SoftTargets(source="online"))
    obstacle = SoftTargetObjective.obstacle(training, teacher, STUDENT)
    assert obstacle is not None and "which a server cannot do" in obstacle


def test_several_training_processes_would_each_serve_it(teacher: VLLMTeacher) -> None:
    training = TrainingSpec(objective=OnPolicy(max_new_tokens=16), num_processes=2)
    obstacle = OnPolicyObjective.obstacle(training, teacher, STUDENT)
    assert obstacle is not None and "each of 2 training processes" in obstacle
