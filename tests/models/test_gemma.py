"""A pretrained Gemma 3 goes through as it is published: trained, merged, saved, loaded, right.

Its tokenizer's end is not the one that its turns end with, and it takes no system role.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from distillery.data.chat import content_hash
from distillery.evaluation.answers import answer_questions
from distillery.evaluation.comparison import read_answers
from distillery.models.byte_offsets import TextBytes
from distillery.models.loading import ModelFiles
from distillery.models.local import LocalModel
from distillery.objectives.soft.stage import score_soft_targets
from distillery.preflight.models import check_models, check_prompts
from distillery.storage.stage import StageResult
from distillery.training.pruning import prune_student
from distillery.training.rows import SPLITS
from schemas.contestants import ContestantSpec, PretrainedContestant, TrainedContestant
from schemas.data import DataSpec
from schemas.evaluation import EvaluationSpec
from schemas.execution import ExecutionSpec
from schemas.objectives import SoftTargets
from schemas.student import PretrainedStudent, PrunedStudent
from schemas.task import TaskSpec
from schemas.teacher import TransformersTeacher
from schemas.training import LoraMethod, TrainingSpec
from tests.fixtures_comparison import seal_prompts
from tests.fixtures_training import INLINE, Bench

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = Path(os.environ.get("DISTILLERY_GEMMA_SCRIPT", ROOT / "../shared/tools/gemma_270m.py"))
CACHE = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "distillery/gemma-3-270m"

QUESTIONS = {
    "refund": ["I want my money back", "please return what I paid", "give me a refund", "pay back"],
    "lost_card": ["my card is gone", "I cannot find my card", "someone took my card", "card lost"],
    "exchange_rate": ["what is a dollar worth", "euro to pound", "which rate", "price of a yen"],
    "top_up": ["add money to my account", "load my balance", "put 20 in", "how do I top up"],
}
SYSTEM = {"role": "system", "content": "Name the intent of the customer."}


@pytest.fixture(scope="module")
def gemma() -> Path:
    """Return the folder of the model, which is built once, a minute or two."""
    if named := os.environ.get("DISTILLERY_GEMMA"):
        return Path(named)
    if CACHE.is_dir():
        return CACHE
    if not SCRIPT.is_file():
        pytest.skip(f"{SCRIPT} is not there; DISTILLERY_GEMMA_SCRIPT or DISTILLERY_GEMMA name one")
    partial = CACHE.with_name(f"{CACHE.name}.{os.getpid()}")
    built = subprocess.run([sys.executable, SCRIPT, partial], capture_output=True, text=True)
    if built.returncode != 0:
        pytest.skip(f"{SCRIPT} cannot build the model: {built.stderr.strip().splitlines()[-1:]}")
    partial.rename(CACHE)
    return CACHE


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    rows = [
        {
            "prompt_id": f"{label}-{n}",
            "split": SPLITS[0],
            "messages": json.dumps([*([SYSTEM] if n % 2 else []), _user(question)]),
            "response": label,
            "reasoning": None,
            "teacher": None,
            "chosen_because": None,
        }
        for label, questions in QUESTIONS.items()
        for n, question in enumerate(questions)
    ]
    return Bench(tmp_path_factory.mktemp("gemma"), rows)


def _user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


@pytest.fixture(scope="module")
def trained(gemma: Path, bench: Bench) -> StageResult:
    training = TrainingSpec(
        method=LoraMethod(r=8, alpha=16),
        dtype="bfloat16",
        learning_rate=2e-3,
        batch_size=16,
        epochs=12,
        schedule="constant",
        max_length=64,
        device="cpu",
    )
    return bench.train(PretrainedStudent(model=str(gemma)), training)


@pytest.mark.slow
def test_gemma_learns_its_rows_and_reproduces_them(
    gemma: Path, bench: Bench, trained: StageResult
) -> None:
    student = PretrainedStudent(model=str(gemma))
    teacher = TransformersTeacher(model=str(gemma), device="cpu")
    data = DataSpec(system_prompt=SYSTEM["content"])
    task = TaskSpec(name="intents", type="classification")
    assert check_models(student, None, task, data, ExecutionSpec()) == []
    check_prompts(bench.prompts, None, teacher, task, bench.spec)

    curve: Any = trained.manifest.facts["curve"]
    losses = [entry["loss"] for entry in curve if "loss" in entry]
    assert losses[-1] < 0.1 * losses[0]

    folder = Path(bench.store.path(trained.model("model").uri))
    saved = json.loads((folder / "generation_config.json").read_text())
    assert (saved["eos_token_id"], saved["do_sample"], saved["top_k"]) == ([1, 106], True, 64)
    assert not list(folder.glob("adapter*"))
    model = LocalModel.load(folder, dtype="bfloat16", device="cpu")
    assert model.model.num_parameters() == 268_098_176

    conversations: list[Any] = [json.loads(row["messages"]) for row in bench.rows]
    row = model.chat_format.row(conversations[1], "refund")
    assert model.tokenizer.decode(row.input_ids) == (
        "<bos><start_of_turn>user\nName the intent of the customer.\n\nplease return what I paid"
        "<end_of_turn>\n<start_of_turn>model\nrefund<end_of_turn>"
    )
    assert row.response_ids[-1] == 106
    answers = model.answer(conversations, max_new_tokens=12, batch_size=16)
    assert [answer.text for answer in answers] == [row["response"] for row in bench.rows]
    assert {answer.finish_reason for answer in answers} == {"stop"}


@pytest.mark.slow
def test_gemma_is_evaluated_as_it_comes_and_as_it_was_trained(
    gemma: Path, bench: Bench, trained: StageResult
) -> None:
    prompts = [
        {
            "prompt_id": row["prompt_id"],
            "split": "test",
            "messages": row["messages"],
            "references": json.dumps([row["response"]]),
            "content_hash": content_hash(json.loads(row["messages"])),
            "cluster": row["prompt_id"],
            "slices": None,
            "source_row": number,
        }
        for number, row in enumerate(bench.rows, start=1)
    ]
    test_rows = seal_prompts(bench.spec, pd.DataFrame(prompts))
    contestants: dict[str, ContestantSpec] = {
        "baseline": PretrainedContestant(
            name="baseline", student=PretrainedStudent(model=str(gemma)), device="cpu"
        ),
        "student": TrainedContestant(name="student", model=trained.model("model"), device="cpu"),
    }
    task = TaskSpec(name="intents", type="classification")
    accuracy = {}
    for name, spec in contestants.items():
        evaluation = EvaluationSpec(max_new_tokens=12, batch_size=16)
        done = answer_questions(spec, test_rows, task, evaluation, bench.spec, INLINE)
        answers = read_answers(done.dataset("answers"), bench.store)
        accuracy[name] = answers["accuracy"].mean()
    assert accuracy["student"] == 1.0 and accuracy["baseline"] < 0.5


@pytest.mark.slow
def test_gemma_scores_responses_over_its_whole_vocabulary(gemma: Path, bench: Bench) -> None:
    teacher = TransformersTeacher(model=str(gemma), device="cpu")
    training = TrainingSpec(objective=SoftTargets(k=8), max_length=64, dtype="bfloat16")
    task = TaskSpec(name="intents", type="classification")
    done = score_soft_targets(
        bench.training_rows, bench.prompts, teacher, task, training, bench.spec, INLINE
    )
    assert done.dataset("soft_targets").num_rows == len(bench.rows)
    # Each response and the end of its turn.
    assert done.manifest.counts["response_tokens"] >= 2 * len(bench.rows)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("num_layers", "kept", "full", "num_parameters"),
    [
        (9, [0, 2, 4, 6, 9, 11, 13, 15, 17], [5, 8], 217_935_488),
        (6, [0, 3, 7, 10, 14, 17], [5], 201_214_592),
        (4, [0, 6, 11, 17], [2, 3], 190_067_328),
    ],
)
def test_gemma_loses_layers_learns_two_steps_and_answers(
    gemma: Path,
    bench: Bench,
    num_layers: int,
    kept: list[int],
    full: list[int],
    num_parameters: int,
) -> None:
    student = PrunedStudent(model=str(gemma), num_layers=num_layers)
    start = prune_student(bench.training_rows, student, bench.spec, INLINE)
    assert start.manifest.facts["kept_layers"] == kept
    assert start.model("model").num_parameters == num_parameters
    pruned, _ = bench.load(start)
    found = [n for n, kind in enumerate(pruned.config.layer_types) if kind == "full_attention"]
    assert found == full
    assert pruned.get_input_embeddings().weight is pruned.get_output_embeddings().weight

    training = TrainingSpec(
        method=LoraMethod(r=8, alpha=16),
        dtype="bfloat16",
        learning_rate=2e-3,
        batch_size=8,
        epochs=1,
        evaluations=1,
        max_length=64,
        device="cpu",
    )
    trained = bench.train(student, training, start=start.model("model"))
    assert trained.manifest.counts["steps"] == 2
    folder = Path(bench.store.path(trained.model("model").uri))
    model = LocalModel.load(folder, dtype="bfloat16", device="cpu")
    assert model.model.config.num_hidden_layers == num_layers
    asked = [[_user("my card is gone")], [_user("I want my money back")]]
    answers = model.answer(asked, max_new_tokens=8, batch_size=2)
    assert all(0 < answer.completion_tokens <= 8 for answer in answers)
    saved = json.loads((folder / "generation_config.json").read_text())
    assert saved["eos_token_id"] == [1, 106]


def test_gemmas_tokens_begin_at_their_bytes(gemma: Path) -> None:
    chat_format = ModelFiles(str(gemma)).chat_format()
    text = TextBytes(chat_format.tokenizer)
    response = "naïve 漢字 🙂\n\n  x\ttab 𓀀 end"
    ids = chat_format.row([_user("who?")], response).response_ids
    starts, said = text.starts(ids, response), response.encode()
    assert text.says(ids, response)
    assert starts[0] == 0
    assert starts[-1] == len(said)
    for token, start, after in zip(ids, starts, starts[1:], strict=False):
        assert text.of(token) == said[start:after]
    inside_a_character = {start for start in starts if said[start : start + 1] > b"\x7f"}
    assert len(inside_a_character) > len("ï漢𓀀")  # 𓀀 is four tokens
