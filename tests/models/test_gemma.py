"""A pretrained Gemma 3 goes through as it is published: trained, merged, saved, loaded, right.

Its tokenizer's end is not the one that its turns end with, and it takes no system role.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from distillery.models.local import LocalModel
from distillery.preflight.models import check_models, check_prompts
from distillery.training.rows import SPLITS
from schemas.data import DataSpec
from schemas.execution import ExecutionSpec
from schemas.student import PretrainedStudent
from schemas.task import TaskSpec
from schemas.teacher import TransformersTeacher
from schemas.training import LoraMethod, TrainingSpec
from tests.fixtures_training import Bench

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
        }
        for label, questions in QUESTIONS.items()
        for n, question in enumerate(questions)
    ]
    return Bench(tmp_path_factory.mktemp("gemma"), rows)


def _user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


@pytest.mark.slow
def test_gemma_learns_its_rows_and_reproduces_them(gemma: Path, bench: Bench) -> None:
    student = PretrainedStudent(model=str(gemma))
    teacher = TransformersTeacher(model=str(gemma), device="cpu")
    data = DataSpec(system_prompt=SYSTEM["content"])
    task = TaskSpec(name="intents", type="classification")
    assert check_models(student, None, task, data, ExecutionSpec()) == []
    check_prompts(bench.prompts, None, teacher, task, bench.spec)

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
    result = bench.train(student, training)
    curve: Any = result.manifest.facts["curve"]
    losses = [entry["loss"] for entry in curve if "loss" in entry]
    assert losses[-1] < 0.1 * losses[0]

    folder = Path(bench.store.path(result.model("model").uri))
    saved = json.loads((folder / "generation_config.json").read_text())
    assert (saved["eos_token_id"], saved["do_sample"], saved["top_k"]) == ([1, 106], True, 64)
    assert not list(folder.glob("adapter*"))
    trained = LocalModel.load(folder, dtype="bfloat16", device="cpu")
    assert trained.model.num_parameters() == 268_098_176

    conversations: list[Any] = [json.loads(row["messages"]) for row in bench.rows]
    row = trained.chat_format.row(conversations[1], "refund")
    assert trained.tokenizer.decode(row.input_ids) == (
        "<bos><start_of_turn>user\nName the intent of the customer.\n\nplease return what I paid"
        "<end_of_turn>\n<start_of_turn>model\nrefund<end_of_turn>"
    )
    assert row.response_ids[-1] == 106
    answers = trained.answer(conversations, max_new_tokens=12, batch_size=16)
    assert [answer.text for answer in answers] == [row["response"] for row in bench.rows]
    assert {answer.finish_reason for answer in answers} == {"stop"}
