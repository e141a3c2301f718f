"""A student learns from several teachers, whose probabilities are stored or made beside it."""

from pathlib import Path
from typing import Any

import pytest

from distillery.storage.stage import StageResult
from distillery.training import training_stage
from schemas.execution import StageName
from schemas.objectives import SoftTeacher
from schemas.teacher import TransformersTeacher
from schemas.training import TrainingSpec
from tests.fixtures_models import make_tiny_model
from tests.fixtures_training import TASK, Killed, School, die_at, soft_targets, soft_training

pytestmark = pytest.mark.usefixtures("one_thread")

# Of the three questions one goes to the second teacher.
COMBINED: dict[str, dict[str, Any]] = {
    "average": {"weight": 3.0},
    "route": {"pattern": "question [1]"},
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    root = tmp_path_factory.mktemp("teachers")
    return str(make_tiny_model(root / "one")), str(make_tiny_model(root / "two", seed=5))


@pytest.fixture
def school(tmp_path: Path, folders: tuple[str, str]) -> School:
    return School(tmp_path / "store", folders[0])


def taught(
    folders: tuple[str, str], combine: str, source: str = "online", **changes: Any
) -> TrainingSpec:
    settings = {"distillation_temperature": 2.0} | changes.pop("soft", {})
    teacher = TransformersTeacher(model=folders[1], dtype="float32", device="cpu")
    panel = (SoftTeacher(name="second", teacher=teacher, **COMBINED[combine]),)
    objective = soft_targets(source=source, combine=combine, panel=panel, **settings)
    return soft_training(objective=objective, **changes)


def losses(result: StageResult, name: str = "loss") -> list[float]:
    found: Any = result.manifest.facts["curve"]
    return [entry[name] for entry in found if name in entry]


@pytest.mark.parametrize("combine", COMBINED)
def test_teachers_beside_teach_what_their_stored_probabilities_teach(
    school: School, folders: tuple[str, str], combine: str
) -> None:
    offline, online = (
        school.teach(taught(folders, combine, source)) for source in ("offline", "online")
    )
    assert losses(offline) == pytest.approx(losses(online), rel=2e-3)
    assert losses(offline, "soft_loss") == pytest.approx(losses(online, "soft_loss"), rel=5e-3)
    single = school.teach(soft_training(objective=soft_targets(distillation_temperature=2.0)))
    assert losses(offline, "soft_loss") != pytest.approx(losses(single, "soft_loss"), rel=1e-2)


def test_a_teacher_beside_that_teaches_nothing_is_named(
    school: School, folders: tuple[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    training = taught(folders, "route", epochs=1)
    few = school.teach(training)
    assert few.manifest.facts["teachers"] == {"teacher": {"rows": 16}, "second": {"rows": 8}}
    assert "fewer than a tenth" not in caplog.text
    [second] = training.objective.soft_teachers
    nobody = (second.model_copy(update={"pattern": "no such text"}),)
    objective = training.objective.model_copy(update={"panel": nobody})
    school.teach(training.model_copy(update={"objective": objective}))
    assert "second teaches 0 of 24 rows, fewer than a tenth" in caplog.text


@pytest.mark.parametrize("combine", COMBINED)
def test_how_a_step_is_carried_out_does_not_change_what_is_learnt(
    school: School, tmp_path: Path, folders: tuple[str, str], combine: str
) -> None:
    expected = school.teach(taught(folders, combine, epochs=1))
    ways: list[dict[str, Any]] = [
        {"micro_batch_size": 1},
        {"micro_batch_size": 2, "batching": "packed"},
    ]
    for n, way in enumerate(ways):
        found = School(tmp_path / str(n), folders[0]).teach(
            taught(folders, combine, epochs=1, **way)
        )
        assert found.manifest.fingerprint == expected.manifest.fingerprint
        assert losses(found) == pytest.approx(losses(expected), rel=1e-5), way
        assert losses(found, "eval_soft_loss") == pytest.approx(
            losses(expected, "eval_soft_loss"), rel=1e-5
        )


@pytest.mark.slow
@pytest.mark.parametrize("combine", COMBINED)
def test_two_processes_learn_what_one_learns_and_go_on_after_a_kill(
    school: School, tmp_path: Path, folders: tuple[str, str], combine: str
) -> None:
    training = taught(folders, combine, micro_batch_size=2)
    expected = school.teach(training)
    other = School(tmp_path / "two", folders[0])
    two = training.model_copy(update={"num_processes": 2})
    with pytest.raises(Killed):
        other.teach(two, on_progress=die_at(5))
    found = other.teach(two)
    # The processes may be a checkpoint further by the time that they are killed.
    assert found.manifest.facts["resumed_from_step"] in (4, 6)
    assert losses(found) == pytest.approx(losses(expected), rel=1e-4)


def test_the_panel_beside_is_in_the_fingerprint_by_its_identity(
    school: School, tmp_path: Path, folders: tuple[str, str]
) -> None:
    def stage(training: TrainingSpec) -> Any:
        return training_stage(
            StageName.TRAIN_STUDENT,
            school.training_rows,
            school.prompts,
            school.student,
            training,
            teacher=school.teacher,
            task=TASK,
        )

    same = stage(taught(folders, "average"))
    copied = str(make_tiny_model(tmp_path / "copy", seed=5))
    assert stage(taught((folders[0], copied), "average")).fingerprint == same.fingerprint
    another = str(make_tiny_model(tmp_path / "another", seed=6))
    assert stage(taught((folders[0], another), "average")).fingerprint != same.fingerprint
    assert stage(taught(folders, "route")).fingerprint != same.fingerprint
    assert copied not in str(stage(taught((folders[0], copied), "average")).spec)


def test_all_teachers_beside_count_in_the_memory(school: School, folders: tuple[str, str]) -> None:
    once: dict[str, Any] = {"epochs": 1.0}
    one = school.teach(soft_training(objective=soft_targets(source="online"), **once))
    two = school.teach(taught(folders, "average", **once))
    sizes: list[int] = []
    for made in (one, two):
        preflight: Any = made.manifest.facts["preflight"]
        sizes.append(preflight["memory_estimate_bytes"]["teacher"])
    assert sizes[1] > 1.4 * sizes[0]
