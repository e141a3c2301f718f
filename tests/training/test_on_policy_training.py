"""Whole trainings on what the student writes, beside a teacher and with a served one."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from numpy.typing import NDArray

from distillery.models.local import LocalModel
from distillery.objectives.choice import choose_objective
from distillery.objectives.policy.samples import SAMPLES_FILE
from distillery.storage.stage import StageResult
from distillery.training import training_stage
from schemas.errors import TeacherError, TrainingError
from schemas.execution import StageName
from schemas.objectives import HardTargets
from schemas.training import LoraMethod
from tests.fixtures_models import make_tiny_model
from tests.fixtures_training import (
    VOCABULARY,
    Killed,
    School,
    die_at,
    on_policy,
    same_weights,
    soft_training,
    train_by,
)
from tests.stub_endpoint import Reply
from tests.stub_vllm import StubVllm

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(make_tiny_model(tmp_path_factory.mktemp("teacher") / "tiny"))


@pytest.fixture
def school(tmp_path: Path, folder: str) -> School:
    return School(tmp_path / "store", folder)


def curve(result: StageResult) -> list[dict[str, float]]:
    found: Any = result.manifest.facts["curve"]
    return list(found)


def losses(result: StageResult) -> list[float]:
    return [entry["loss"] for entry in curve(result) if "loss" in entry]


def samples(school: School, result: StageResult) -> pd.DataFrame:
    folder = school.store.path(result.manifest.outputs["kept"].uri)
    return pd.read_parquet(f"{folder}/{SAMPLES_FILE}")


@pytest.mark.slow
def test_a_student_gets_nearer_to_its_teacher_where_it_writes_itself(school: School) -> None:
    settings = {"student_fraction": 1.0}
    result = school.teach(on_policy(settings, epochs=30, evaluations=1, patience=None))
    kept = samples(school, result)
    by_step = kept.groupby("step")["mean_divergence"].mean()
    assert by_step.iloc[-5:].mean() < 0.7 * by_step.iloc[:5].mean()
    assert len(kept) == 30 * 24
    assert result.manifest.facts["on_policy"] == {
        "samples": len(kept),
        "sampled_tokens": int(kept["num_tokens"].sum()),
    }


def test_the_log_tells_the_divergence_and_how_much_the_student_wrote(school: School) -> None:
    result = school.teach(on_policy({"distillation_temperature": 2.0}))
    kept = samples(school, result)
    for entry in curve(result):
        if "loss" in entry:
            assert entry["loss"] == pytest.approx(4 * entry["soft_loss"], rel=1e-5)
            assert 0 < entry["student_share"] < 1
        else:
            assert entry["eval_student_share"] == 0
    assert kept["mean_divergence"].notna().all()
    assert not kept.duplicated(["step", "prompt_id"]).any()
    assert sorted(kept["step"].unique()) == list(range(6))


@pytest.mark.slow
@pytest.mark.parametrize(
    "way",
    [
        {"micro_batch_size": 2},
        {"batching": "packed"},
        {"gradient_checkpointing": True},
    ],
)
def test_how_a_step_is_carried_out_does_not_change_what_is_learnt(
    tmp_path: Path, folder: str, way: dict[str, Any]
) -> None:
    schools = [School(tmp_path / name, folder) for name in ("one", "two")]
    results = [
        school.teach(on_policy(epochs=1, **changes))
        for school, changes in zip(schools, ({}, way), strict=True)
    ]
    assert results[0].manifest.fingerprint == results[1].manifest.fingerprint
    assert losses(results[1]) == pytest.approx(losses(results[0]), rel=1e-5)
    first, second = (samples(*pair) for pair in zip(schools, results, strict=True))
    assert first["response"].tolist() == second["response"].tolist()


@pytest.mark.parametrize(
    "changes", [{}, pytest.param({"dtype": "bfloat16"}, marks=pytest.mark.slow)]
)
def test_adapters_learn_from_what_the_student_writes_with_them(
    school: School, changes: dict[str, Any]
) -> None:
    method = LoraMethod(r=4, alpha=8, dropout=0.1)
    result = school.teach(on_policy(method=method, gradient_checkpointing=True, **changes))
    assert losses(result)[-1] < losses(result)[0]
    hard = school.teach(on_policy(method=method).with_hard_targets())
    configs = [
        (Path(school.store.path(r.model("model").uri)) / "generation_config.json").read_text()
        for r in (result, hard)
    ]
    assert configs[0] == configs[1]


@pytest.mark.slow
def test_a_killed_training_goes_on_with_the_very_same_losses_and_samples(
    school: School, tmp_path: Path, folder: str
) -> None:
    with pytest.raises(Killed):
        school.teach(on_policy(), on_progress=die_at(5))
    result = school.teach(on_policy())
    assert result.manifest.facts["resumed_from_step"] == 4
    other = School(tmp_path / "other", folder)
    untouched = other.teach(on_policy())
    assert curve(result) == curve(untouched)
    assert same_weights(school.weights(result), other.weights(untouched))
    pd.testing.assert_frame_equal(samples(school, result), samples(other, untouched))


@pytest.mark.slow
def test_two_killed_processes_learn_what_one_learns_and_keep_the_samples_of_both(
    school: School, tmp_path: Path, folder: str
) -> None:
    alone = School(tmp_path / "alone", folder)
    one, together = alone.teach(on_policy()), on_policy(num_processes=2)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        train_by("train_to_step_4", patch)
        school.teach(together, on_progress=die_at(4))
    two = school.teach(together)
    assert two.manifest.facts["resumed_from_step"] == 2
    assert one.manifest.fingerprint == two.manifest.fingerprint
    assert losses(two) == pytest.approx(losses(one), rel=2e-5)
    kept = [samples(alone, one), samples(school, two)]
    exact = ["step", "prompt_id", "response", "num_tokens", "finish_reason"]
    pd.testing.assert_frame_equal(kept[0][exact], kept[1][exact])
    pd.testing.assert_frame_equal(kept[0], kept[1], rtol=1e-3)


def test_it_starts_from_the_student_of_hard_targets_which_is_trained_once(school: School) -> None:
    hard = soft_training(objective=HardTargets(), epochs=2)
    plain = school.teach(hard)
    wanted = on_policy({"epochs": 1.0, "learning_rate": 1e-12}, epochs=2)
    chosen = choose_objective(school.teacher, school.student, wanted)
    assert chosen.first == hard
    assert (chosen.training.epochs, chosen.training.learning_rate) == (1.0, 1e-12)
    unsaid = choose_objective(school.teacher, school.student, on_policy(epochs=2)).training
    assert unsaid.learning_rate == pytest.approx(hard.learning_rate / 10)
    stage = training_stage(
        StageName.TRAIN_STUDENT, school.training_rows, school.prompts, school.student, hard
    )
    assert stage.fingerprint == plain.manifest.fingerprint
    result = school.teach(chosen.training, start=plain.model("model"))
    for name, weight in school.weights(result).items():
        assert torch.allclose(weight, school.weights(plain)[name], atol=1e-6)


# -- a served teacher ----------------------------------------------------------------------------


class ServedTiny(StubVllm):
    """A vLLM server with the tiny teacher in it."""

    def __init__(self, folder: str, **named: Any) -> None:
        self.local = LocalModel.load(folder, device="cpu")
        super().__init__(template=self._rendered, max_logprobs=VOCABULARY, **named)

    def _rendered(self, messages: list[dict[str, str]], answer_follows: bool) -> list[int]:
        ids = self.local.tokenizer.apply_chat_template(
            messages, add_generation_prompt=answer_follows, return_dict=False
        )
        assert isinstance(ids, list)
        return ids

    def _log_probs(self, prompt: list[int]) -> NDArray[np.float64]:
        with torch.no_grad():
            logits = self.local.model(torch.tensor([prompt])).logits[0, :-1]
        log_probs: NDArray[np.float64] = logits.double().log_softmax(-1).numpy()
        return log_probs


def test_a_served_teacher_teaches_what_the_same_beside_the_student_teaches(
    tmp_path: Path, folder: str
) -> None:
    schools = [School(tmp_path / name, folder) for name in ("beside", "served")]
    training = on_policy({"k": VOCABULARY})
    beside = schools[0].teach(training)
    with ServedTiny(folder) as server:
        served = schools[1].teach(training, teacher=server.spec())
    assert losses(served) == pytest.approx(losses(beside), rel=1e-4)
    kept = [samples(*pair) for pair in zip(schools, (beside, served), strict=True)]
    assert kept[0]["response"].tolist() == kept[1]["response"].tolist()
    asked = sum(len(body["prompt"]) for body in server.completions)
    told: Any = served.manifest.facts["on_policy"]
    assert told["teacher_tokens_asked"] == asked
    # 6 steps and 2 of the trial with 8 rows each; 7 validation rows, at the first of 3 evaluations.
    assert len(server.completions) == 8 * 8 + 7


def test_a_server_that_fails_is_asked_again_and_one_that_refuses_names_the_row(
    school: School, folder: str
) -> None:
    training = on_policy(epochs=1, evaluations=1)
    with ServedTiny(folder, script=[Reply(status=503)] * 2) as server:
        school.teach(training, teacher=server.spec(concurrency=1))
    assert len(server.completions) == 5 * 8 + 7 + 2
    with (
        ServedTiny(folder, fail=lambda body: Reply(status=400, error="too hot")) as server,
        pytest.raises(TeacherError, match=r"refuses to score the row with prompt_id '\d+': .*hot"),
    ):
        school.teach(training.model_copy(update={"seed": 1}), teacher=server.spec())


def test_samples_end_where_the_context_of_student_or_teacher_does(
    tmp_path: Path, folder: str
) -> None:
    school = School(tmp_path / "store", folder)
    settings = {"student_fraction": 1.0, "max_new_tokens": 60, "k": 4}
    long = on_policy(settings, epochs=1, evaluations=1)
    lengths = samples(school, school.teach(long))["num_tokens"]
    with ServedTiny(folder, max_model_len=48) as server:
        served = school.teach(long.model_copy(update={"seed": 3}), teacher=server.spec())
    assert 40 < lengths.max() < 60  # of 64 tokens the prompt takes some
    assert max(len(body["prompt"]) for body in server.completions) == 47
    assert samples(school, served)["num_tokens"].max() < lengths.max()


def test_a_row_that_a_served_teacher_cannot_read_is_named(school: School, folder: str) -> None:
    with (
        ServedTiny(folder, max_model_len=30) as server,
        pytest.raises(TrainingError, match=r"row '2' is longer than what the served teacher reads"),
    ):
        school.teach(on_policy({"k": 4}), teacher=server.spec())
