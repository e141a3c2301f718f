"""What the student writes itself is what it is judged on, and follows from seed and weights."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from distillery.models.chat_format import IGNORED
from distillery.models.local import LocalModel
from distillery.models.output_layer import SplitModel
from distillery.objectives.base import Batch, Inputs, Row
from distillery.objectives.choice import choose_objective, decided
from distillery.objectives.on_policy import OnPolicyObjective
from distillery.objectives.policy.batches import tokens_of
from distillery.objectives.policy.samples import SAMPLES_FILE
from distillery.storage.store import Store
from distillery.training.batches import Pack, PadRight
from schemas.errors import RecipeError
from schemas.student import FromScratchStudent, PretrainedStudent
from schemas.teacher import OpenAITeacher, TransformersTeacher
from schemas.training import TrainingSpec
from tests.fixtures_models import make_tiny_model
from tests.fixtures_training import (
    VOCABULARY,
    on_policy,
    rows_to_learn,
    same_weights,
)

pytestmark = pytest.mark.usefixtures("one_thread")

DIVERGENCES = (
    "forward_kl", "reverse_kl", "jensen_shannon", "skew_forward_kl", "skew_reverse_kl"
)  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(make_tiny_model(tmp_path_factory.mktemp("teacher") / "tiny"))


@pytest.fixture(scope="module")
def student_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A student with weights of its own and the teacher's tokenizer."""
    return str(make_tiny_model(tmp_path_factory.mktemp("student") / "tiny", seed=1))


# -- one step, by hand ---------------------------------------------------------------------------


class Lesson:
    """The objective with a student and a teacher beside it, and rows as a trainer has them."""

    def __init__(self, root: Path, student: str, teacher: str, training: TrainingSpec) -> None:
        self.model = LocalModel.load(student, device="cpu").model
        self.teacher = LocalModel.load(teacher, device="cpu")
        self.teacher.model.requires_grad_(False)
        self.chat_format = LocalModel.load(student, device="cpu").chat_format
        self.split = SplitModel(self.model)
        self.objective = OnPolicyObjective.open(
            Inputs(
                training=training,
                store=Store(str(root)),
                chat_format=self.chat_format,
                vocab_size=VOCABULARY,
                scores=None,
                teacher=self.teacher,
            )
        )
        self.objective.attach(self.model)
        of_row = self.objective.columns("train")
        self.rows = [self._row(n, row, of_row) for n, row in enumerate(rows_to_learn(8, 0))]

    def _row(self, number: int, row: Row, of_row: Any) -> Row:
        tokens = self.chat_format.row(json.loads(row["messages"]), row["response"])
        own: Row = {"row": number, "prompt_id": row["prompt_id"], "input_ids": tokens.input_ids}
        added: Row = of_row(row, tokens)
        return own | {"labels": tokens.labels} | added

    def batches(self, size: int, kind: type[PadRight] = PadRight) -> list[Batch]:
        collate = kind(0, self.objective)
        return [collate(self.rows[at : at + size]) for at in range(0, len(self.rows), size)]

    def rewritten(self, size: int, step: int = 0, kind: type[PadRight] = PadRight) -> list[Batch]:
        return self.objective.rewrite(self.model, self.split, self.batches(size, kind), step)

    def gradients(self, batches: list[Batch]) -> tuple[float, torch.Tensor]:
        """Return the loss per token, and its gradients."""
        self.model.zero_grad()
        num = sum(int((batch["labels"] >= 0).sum()) for batch in batches)
        total = torch.zeros(())
        for batch in batches:
            loss = self.objective.loss(self.model, self.split, batch).sums["labels"] / num
            loss.backward()
            total += loss.detach()
        found = [p.grad for p in self.model.parameters() if p.grad is not None]
        return float(total), torch.cat([gradient.ravel() for gradient in found])


Lessons = Callable[..., Lesson]


@pytest.fixture
def lessons(tmp_path: Path, folder: str, student_folder: str) -> Lessons:
    def make(objective: dict[str, Any] | None = None, student: str = "", **training: Any) -> Lesson:
        spec = on_policy(objective, **training)
        return Lesson(tmp_path / "store", student or student_folder, folder, spec)

    return make


def responses(batches: list[Batch]) -> list[list[int]]:
    """Return the response tokens of all rows, in order."""
    rows = [row for batch in batches for row in tokens_of(batch)]
    return [[label for label in row.labels if label != IGNORED] for row in rows]


@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_a_student_that_equals_its_teacher_has_neither_loss_nor_gradient(
    lessons: Lessons, folder: str, divergence: str, temperature: float
) -> None:
    spec = {"divergence": divergence, "distillation_temperature": temperature}
    lesson = lessons({"student_fraction": 1.0, **spec}, student=folder)
    loss, gradient = lesson.gradients(lesson.rewritten(4))
    assert abs(loss) < 1e-6
    assert gradient.abs().max() < 1e-5


def test_every_row_is_written_anew_at_1_and_about_a_share_of_them_below(lessons: Lessons) -> None:
    lesson = lessons({"student_fraction": 1.0})
    given = responses(lesson.batches(8))
    assert all(a != b for a, b in zip(responses(lesson.rewritten(8)), given, strict=True))
    lesson = lessons({"student_fraction": 0.25, "max_new_tokens": 1})
    written = [row["sample"] >= 0 for n in range(50) for row in _flat(lesson.rewritten(8, n))]
    assert 0.18 < sum(written) / len(written) < 0.32


def _flat(batches: list[Batch]) -> list[dict[str, int]]:
    names = ("row", "sample")
    rows = [zip(*(batch[name].tolist() for name in names), strict=True) for batch in batches]
    return [dict(zip(names, row, strict=True)) for each in rows for row in each]


def test_rows_that_are_not_drawn_keep_the_teachers_response(lessons: Lessons) -> None:
    lesson = lessons()
    given, batches = responses(lesson.batches(8)), lesson.rewritten(8)
    kept = [
        new == old
        for row, new, old in zip(_flat(batches), responses(batches), given, strict=True)
        if row["sample"] < 0
    ]
    assert kept
    assert all(kept)


def test_samples_follow_seed_step_and_row_and_not_who_is_in_the_batch(lessons: Lessons) -> None:
    written = responses(lessons().rewritten(8))
    assert responses(lessons().rewritten(8)) == written
    assert responses(lessons().rewritten(2)) == written
    assert responses(lessons().rewritten(4, kind=Pack)) == written
    assert responses(lessons(seed=1).rewritten(8)) != written
    assert responses(lessons().rewritten(8, step=1)) != written
    # Another process has other rows of the step.
    lesson = lessons()
    lesson.rows = lesson.rows[4:]
    assert responses(lesson.rewritten(4)) == written[4:]


def test_one_at_a_time_is_written_what_all_together_are(
    lessons: Lessons, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = responses(lessons().rewritten(8))
    sizes: list[int] = []
    sample = LocalModel.sample

    def noted(self: LocalModel, *args: Any, **named: Any) -> Any:
        sizes.append(named["batch_size"])
        return sample(self, *args, **named)

    monkeypatch.setattr(LocalModel, "sample", noted)
    monkeypatch.setattr("distillery.objectives.on_policy.free_memory", lambda device: 0)
    assert responses(lessons().rewritten(8)) == written
    assert sizes == [1]


def test_the_teacher_reads_its_own_prompt_before_the_very_same_tokens(lessons: Lessons) -> None:
    for batch in lessons({"student_fraction": 1.0}).rewritten(4):
        ours, theirs = tokens_of(batch), tokens_of(batch, "teacher_")
        for one, two in zip(ours, theirs, strict=True):
            assert [n for n in one.labels if n >= 0] == [n for n in two.labels if n >= 0]
            assert one.input_ids[len(one.prompt_ids) :] == [n for n in one.labels if n >= 0]


def test_an_end_is_learnt_and_a_sample_that_was_cut_has_none(
    lessons: Lessons, student_folder: str, tmp_path: Path
) -> None:
    """With padding by the end token, as many models have it."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(student_folder)
    model = AutoModelForCausalLM.from_pretrained(student_folder)
    end = tokenizer.eos_token_id
    tokenizer.pad_token = tokenizer.eos_token
    with torch.no_grad():  # so that it ends often, and soon
        model.lm_head.weight[end] = model.lm_head.weight.mean(0) * 0
        model.lm_head.weight[:200] *= 0.1
    other = tmp_path / "ending"
    model.save_pretrained(other)
    tokenizer.save_pretrained(other)
    settings = {"student_fraction": 1.0, "max_new_tokens": 40, "sampling_temperature": 2.0}
    lesson = lessons(settings, student=str(other))
    ended = []
    for step in range(6):
        for response in responses(lesson.rewritten(4, step)):
            assert end not in response[:-1]
            assert (response[-1] == end) == (len(response) < 40) or len(response) == 40
            ended.append(response[-1] == end)
    assert 0 < sum(ended) < len(ended)
    lesson.gradients(lesson.rewritten(4, 6))
    lesson.objective.keep(tmp_path / "kept")
    kept = pd.read_parquet(tmp_path / "kept" / SAMPLES_FILE)
    assert (kept["finish_reason"] == "stop").tolist()[: len(ended)].count(True) == sum(ended)


def test_a_sample_that_is_nothing_but_an_end_is_learnt_from(
    lessons: Lessons, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    lesson = lessons({"student_fraction": 1.0})
    [end] = lesson.chat_format.end_ids
    monkeypatch.setattr(LocalModel, "sample", lambda self, prompts, **_: [[end] for _ in prompts])
    loss, _ = lesson.gradients(lesson.rewritten(4))
    assert loss > 0
    lesson.objective.keep(tmp_path / "kept")
    kept = pd.read_parquet(tmp_path / "kept" / SAMPLES_FILE)
    assert kept["response"].tolist() == [""] * 8
    assert kept["num_tokens"].tolist() == [1] * 8
    assert set(kept["finish_reason"]) == {"stop"}


def test_nothing_beyond_the_vocabulary_is_written(
    lessons: Lessons, student_folder: str, tmp_path: Path
) -> None:
    """Padding of an output layer is as likely as anything in a model that never learnt it."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(student_folder)
    model.resize_token_embeddings(10 * VOCABULARY)
    padded = tmp_path / "padded"
    model.save_pretrained(padded)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (padded / name).write_bytes((Path(student_folder) / name).read_bytes())
    lesson = lessons({"student_fraction": 1.0}, student=str(padded))
    written = responses(lesson.rewritten(8))
    assert max(max(response) for response in written) < VOCABULARY


@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_loss_and_gradient_are_those_of_a_dense_reference(
    lessons: Lessons, divergence: Any, temperature: float
) -> None:
    lesson = lessons({"divergence": divergence, "distillation_temperature": temperature})
    batches = lesson.rewritten(8)
    loss, gradient = lesson.gradients(batches)
    student, teacher = (copy.deepcopy(m).double() for m in (lesson.model, lesson.teacher.model))
    SplitModel.join(student)
    SplitModel.join(teacher)
    student.zero_grad()
    terms = []
    for ours, theirs in zip(tokens_of(batches[0]), tokens_of(batches[0], "teacher_"), strict=True):
        num = len(ours.labels) - len(ours.prompt_ids)
        log_q, log_p = (
            (model(torch.tensor([row.input_ids])).logits[0, -num - 1 : -1] / temperature)
            .log_softmax(-1)
            for model, row in ((student, ours), (teacher, theirs))
        )  # fmt: skip
        terms.append(temperature**2 * _divergence(divergence, log_p.detach(), log_q))
    total = torch.cat(terms).mean()
    total.backward()
    reference = torch.cat([p.grad.ravel() for p in student.parameters() if p.grad is not None])
    assert loss == pytest.approx(float(total.detach()), rel=1e-5)
    assert torch.allclose(gradient.double(), reference, rtol=1e-3, atol=1e-6)


def _divergence(name: str, log_p: torch.Tensor, log_q: torch.Tensor) -> torch.Tensor:
    def kl(log_a: torch.Tensor, log_b: torch.Tensor) -> torch.Tensor:
        return (log_a.exp() * (log_a - log_b)).sum(-1)

    def mixed(share: float) -> torch.Tensor:
        return (share * log_p.exp() + (1 - share) * log_q.exp()).log()

    middle = mixed(0.5)
    return {
        "forward_kl": lambda: kl(log_p, log_q),
        "reverse_kl": lambda: kl(log_q, log_p),
        "jensen_shannon": lambda: 0.5 * kl(log_p, middle) + 0.5 * kl(log_q, middle),
        "skew_forward_kl": lambda: kl(log_p, mixed(0.1)),
        "skew_reverse_kl": lambda: kl(log_q, mixed(0.9)),
    }[name]()


def test_gradients_keep_their_size_at_high_temperatures(lessons: Lessons) -> None:
    norms = []
    for temperature in (8.0, 16.0):
        spec = {"distillation_temperature": temperature, "divergence": "forward_kl"}
        lesson = lessons(spec)
        norms.append(float(lesson.gradients(lesson.rewritten(8))[1].norm()))
    assert norms[0] == pytest.approx(norms[1], rel=0.1)


def test_writing_leaves_the_student_as_it_was(lessons: Lessons) -> None:
    lesson = lessons()
    before = copy.deepcopy(lesson.model.state_dict())
    config = lesson.model.generation_config
    lesson.model.train()
    lesson.rewritten(8)
    assert lesson.model.training
    assert lesson.model.generation_config is config
    assert "forward" in vars(lesson.model.lm_head)  # split again
    assert same_weights(before, lesson.model.state_dict())


# -- what is refused -----------------------------------------------------------------------------


def test_what_cannot_be_is_refused_before_anything_is_spent(folder: str, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    stranger = make_tiny_model(tmp_path / "stranger")
    tokenizer = AutoTokenizer.from_pretrained(stranger)
    tokenizer.add_tokens(["zebra"])
    tokenizer.save_pretrained(stranger)
    teacher = TransformersTeacher(model=folder)
    student = PretrainedStudent(model=folder)
    new = FromScratchStudent(num_layers=1, hidden_size=16, intermediate_size=32, num_heads=2)
    elsewhere = OpenAITeacher(model="m", base_url="http://127.0.0.1:9/v1", provider="openai")
    vllm = elsewhere.model_copy(update={"provider": "vllm"})
    cases: list[tuple[Any, Any, TrainingSpec, str]] = [
        (teacher, PretrainedStudent(model=str(stranger)), on_policy(), r"vocabulary \(301 tokens"),
        (teacher, new, on_policy(), "new tokenizer, so its tokens are not the teacher's"),
        (elsewhere, student, on_policy(), "'openai' is not vLLM"),
        (vllm, student, on_policy({"distillation_temperature": 2.0}), "log-probabilities at T = 1"),
        (teacher, student, on_policy({"k": 301}), "k=301 is more than the 300 tokens"),
        (teacher, student, on_policy({"max_new_tokens": 64}), "leaves no room for a prompt"),
        (teacher, student, on_policy(parallelism="fsdp2"), "parallelism to ddp"),
    ]
    for who, learner, training, why in cases:
        with pytest.raises(RecipeError, match=why):
            choose_objective(who, learner, training)
    with pytest.raises(ValueError, match="probabilities are those of its responses without"):
        TrainingSpec.model_validate({**on_policy().model_dump(), "learn_reasoning": True})


def test_its_steps_are_its_own_whatever_hard_targets_were_given() -> None:
    chosen = decided(on_policy({"epochs": 0.5}, min_steps=2_000, epochs=3, learning_rate=1e-3), "")
    assert chosen.first is not None
    assert (chosen.first.epochs, chosen.first.min_steps) == (3, 2_000)
    assert (chosen.training.epochs, chosen.training.min_steps) == (0.5, 0)
    assert chosen.training.learning_rate == pytest.approx(1e-4)
