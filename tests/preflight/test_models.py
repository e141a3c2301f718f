"""What a recipe's models cannot do is told before anything is spent."""

import json
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from distillery.data.chat import Message, content_hash, dump_messages
from distillery.preflight.models import check_models, check_prompts
from distillery.storage.store import Store
from schemas.data import DataSpec
from schemas.errors import RecipeError
from schemas.evaluation import EvaluationSpec
from schemas.examples import FixedExamples
from schemas.execution import ExecutionSpec, StoreSpec
from schemas.frames import PromptFrame, arrow_schema
from schemas.refs import DatasetRef
from schemas.student import FromScratchStudent, PretrainedStudent, PrunedStudent
from schemas.task import TaskSpec
from schemas.teacher import OpenAITeacher, TransformersTeacher
from schemas.training import TrainingSpec
from tests.fixtures_generation import write_prompts
from tests.fixtures_models import CHAT_TEMPLATE, make_tiny_model

ALTERNATING = (
    "{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}"
    "<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
LEAVES_OUT = "{% for message in messages if message['role'] != 'system' %}"
DATA, WITH_SYSTEM = DataSpec(), DataSpec(system_prompt="Be brief.")
TASK = TaskSpec(name="t", type="classification")
HERE, ELSEWHERE = ExecutionSpec(), ExecutionSpec(mode="deployment")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def folder(tiny: Path, tmp_path: Path) -> Path:
    return shutil.copytree(tiny, tmp_path / "model")


def _change(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def _alternating(folder: Path) -> Path:
    (folder / "chat_template.jinja").write_text(ALTERNATING)
    return folder


def _both(folder: Path) -> tuple[PretrainedStudent, TransformersTeacher]:
    model = str(folder)
    return PretrainedStudent(model=model), TransformersTeacher(model=model, device="cpu")


def test_models_that_can_be_used_have_no_problem(tiny: Path) -> None:
    assert check_models(*_both(tiny), TASK, WITH_SYSTEM, HERE) == []
    served = OpenAITeacher(model="m", base_url="http://127.0.0.1:1/v1")
    scratch = FromScratchStudent(num_layers=1, hidden_size=8, intermediate_size=8, num_heads=2)
    assert check_models(scratch, served, TASK, DATA, HERE) == []
    assert check_models(None, None, TASK, DATA, HERE) == []


def test_a_missing_chat_template_is_told_of_student_and_teacher(folder: Path) -> None:
    (folder / "chat_template.jinja").unlink()
    problems = check_models(*_both(folder), TASK, DATA, HERE)
    assert [f"{folder}' has no chat template" in problem for problem in problems] == [True, True]
    scratch = FromScratchStudent(
        num_layers=1, hidden_size=8, intermediate_size=8, num_heads=2, tokenizer=str(folder)
    )
    assert len(check_models(scratch, None, TASK, DATA, HERE)) == 1


def test_a_system_prompt_that_a_template_refuses_is_told(folder: Path) -> None:
    models = _both(_alternating(folder))
    assert check_models(*models, TASK, DATA, HERE) == []
    problems = check_models(*models, TASK, WITH_SYSTEM, HERE)
    told = "cannot render turns of ['system', 'user']: roles must alternate."
    assert [told in problem for problem in problems] == [True, True]
    source = "The system turn comes from data.system_prompt."
    assert [problem.endswith(source) for problem in problems] == [True, True]


def test_instructions_that_a_template_refuses_are_told_of_whom_they_are_for(folder: Path) -> None:
    student, teacher = _both(_alternating(folder))
    told = student.model_copy(update={"system_prompt": "Be brief."})
    assert check_models(student, teacher, TASK, DATA, HERE) == []
    [problem] = check_models(told, teacher, TASK, DATA, HERE)
    assert problem.endswith("The system turn comes from student.system_prompt.")
    told_teacher = teacher.model_copy(update={"system_prompt": "auto"})
    [problem] = check_models(student, told_teacher, TASK, DATA, HERE)
    assert problem.endswith("The system turn comes from teacher.system_prompt.")
    both = check_models(told, told_teacher, TASK, WITH_SYSTEM, HERE)
    assert [problem.rpartition("comes from ")[2] for problem in both] == [
        "student.system_prompt and data.system_prompt.",
        "teacher.system_prompt and data.system_prompt.",
    ]


def test_a_template_that_passes_over_system_turns_is_told(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text(
        CHAT_TEMPLATE.replace("{% for message in messages %}", LEAVES_OUT)
    )
    student, teacher = _both(folder)
    assert check_models(student, teacher, TASK, DATA, HERE) == []
    told = student.model_copy(update={"system_prompt": "Be brief."})
    told_teacher = teacher.model_copy(update={"system_prompt": "Be brief."})
    problems = check_models(told, told_teacher, TASK, DATA, HERE)
    assert [problem.partition(",")[0] for problem in problems] == [
        f"the {role}'s chat template ({str(folder)!r}) leaves system turns out"
        for role in ("student", "teacher")
    ]
    assert "so teacher.system_prompt would never be read" in problems[1]


def test_the_student_has_to_take_the_prompt_that_it_is_asked_with(folder: Path) -> None:
    """Its own instructions are not in that prompt, and neither is its need to learn from it."""
    student, _ = _both(_alternating(folder))
    served = OpenAITeacher(model="m", base_url="http://127.0.0.1:1/v1", system_prompt="auto")
    untrained = EvaluationSpec(in_context_student=True)
    assert check_models(student, served, TASK, DATA, HERE) == []
    [problem] = check_models(student, served, TASK, DATA, HERE, None, untrained)
    assert problem.endswith("The system turn comes from teacher.system_prompt.")
    shown = served.model_copy(update={"system_prompt": None, "examples": FixedExamples()})
    assert check_models(student, shown, TASK, DATA, HERE, None, untrained) == []


def test_thoughts_that_the_students_template_has_no_place_for_are_told(folder: Path) -> None:
    student, teacher = _both(folder)
    thoughtful = TrainingSpec(learn_reasoning=True)
    assert check_models(student, teacher, TASK, DATA, HERE, thoughtful) == []
    (folder / "chat_template.jinja").write_text(
        CHAT_TEMPLATE.replace("message['content']", "message['content'].split('</think>')[-1]")
    )
    problems = check_models(student, teacher, TASK, DATA, HERE, thoughtful)
    assert len(problems) == 1  # the teacher learns nothing
    assert "leaves thoughts out of a response, so the student cannot learn them" in problems[0]
    assert check_models(student, teacher, TASK, DATA, HERE, TrainingSpec()) == []


def test_a_response_without_an_end_is_told_of_who_renders_responses(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text(
        "{% for m in messages %}{{ m['content'] }}\n{% endfor %}"
    )
    problems = check_models(*_both(folder), TASK, DATA, HERE)
    assert len(problems) == 1  # the teacher only generates
    assert "ends a response without any of '<|end|>'" in problems[0]


def test_a_vocabulary_larger_than_the_embedding_is_told(folder: Path) -> None:
    _change(folder / "config.json", vocab_size=299)
    problems = check_models(*_both(folder), TASK, DATA, HERE)
    assert problems[0].startswith(
        "the student knows 299 tokens, but its tokenizer has 300, such as"
    )
    assert problems[1].startswith("the teacher knows 299 tokens")


def test_a_special_token_of_others_may_lie_beyond_the_embedding(folder: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"extra_special_tokens": ["<image>"]})
    tokenizer.save_pretrained(folder)
    assert len(tokenizer) == 301
    assert check_models(*_both(folder), TASK, DATA, HERE) == []


def test_a_device_is_looked_for_where_the_stage_runs(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    teacher = TransformersTeacher(model=str(tiny), device="cuda")
    problems = check_models(None, teacher, TASK, DATA, HERE)
    assert problems == [
        "device 'cuda' asked for, but torch sees 0 GPUs here. Set device to auto or cpu, or run "
        "where a GPU is."
    ]
    assert check_models(None, teacher, TASK, DATA, ELSEWHERE) == []


USER = Message(role="user", content="Hi")
ROWS = [[USER], [USER, Message(role="assistant", content="Yes?"), USER]]
ODD = [Message(role="system", content="Be brief."), USER]


def _prompts(root: Path, conversations: list[list[Message]]) -> tuple[DatasetRef, StoreSpec]:
    frame = pd.DataFrame(
        {
            "prompt_id": [f"row-{n}" for n in range(len(conversations))],
            "split": "train",
            "messages": [dump_messages(messages) for messages in conversations],
            "references": pd.array([None] * len(conversations), dtype="str"),
            "content_hash": [content_hash(messages) for messages in conversations],
            "cluster": [f"row-{n}" for n in range(len(conversations))],
            "slices": pd.array([None] * len(conversations), dtype="str"),
            "source_row": range(1, len(conversations) + 1),
        }
    )
    store = StoreSpec(root=str(root / "store"))
    with Store(store.root).row_writer("prompts", arrow_schema(PromptFrame)) as writer:
        writer.write(frame)
    return writer.ref("0"), store


def test_the_first_row_that_a_model_cannot_read_is_named(folder: Path, tmp_path: Path) -> None:
    student, teacher = _both(_alternating(folder))
    prompts, store = _prompts(tmp_path, ROWS * 30)
    check_prompts(prompts, student, teacher, TASK, store)
    prompts, store = _prompts(tmp_path / "odd", [*ROWS * 30, ODD])
    with pytest.raises(RecipeError) as caught:
        check_prompts(prompts, student, None, TASK, store)
    assert str(caught.value).startswith(
        "the student cannot read row 'row-60' (split 'train'): the chat template of "
    )
    with pytest.raises(RecipeError, match=r"^the teacher cannot read row 'row-60'"):
        check_prompts(prompts, None, teacher, TASK, store)


def test_a_row_whose_system_turn_a_template_leaves_out_is_named(
    folder: Path, tmp_path: Path
) -> None:
    student, _ = _both(folder)
    prompts, store = _prompts(tmp_path, [*ROWS, ODD])
    check_prompts(prompts, student, None, TASK, store)
    deaf = CHAT_TEMPLATE.replace("messages %}", "messages if message['role'] != 'system' %}")
    (folder / "chat_template.jinja").write_text(deaf)
    with pytest.raises(RecipeError) as caught:
        check_prompts(prompts, student, None, TASK, store)
    assert str(caught.value) == (
        "the student cannot read row 'row-2' (split 'train'): the chat template leaves the system "
        "turn out, so it would never be read. Put its text into the user's turn, or choose a model "
        "whose template has system turns."
    )
    own = "{% if messages[0]['role'] != 'system' %}<|system|>Be brief.<|end|>{% endif %}"
    (folder / "chat_template.jinja").write_text(own + CHAT_TEMPLATE)
    check_prompts(prompts, student, None, TASK, store)


def test_rows_are_read_as_the_teachers_prompt_lays_them(folder: Path, tmp_path: Path) -> None:
    _, teacher = _both(_alternating(folder))
    store = StoreSpec(root=str(tmp_path / "store"))
    prompts = write_prompts(store, [("train", "Hi"), ("gold", "Who?", "me")])
    shown = teacher.model_copy(update={"examples": FixedExamples(num_examples=1)})
    check_prompts(prompts, None, shown, TASK, store)
    told = shown.model_copy(update={"system_prompt": "Be brief."})
    with pytest.raises(RecipeError, match=r"^the teacher cannot read row 'p0' \(split 'train'\): "):
        check_prompts(prompts, None, told, TASK, store)


def test_too_few_gold_rows_are_told_of_a_served_teacher_too(tmp_path: Path) -> None:
    store = StoreSpec(root=str(tmp_path / "store"))
    prompts = write_prompts(store, [("train", "Hi"), ("gold", "Who?", "me")])
    served = OpenAITeacher(model="m", base_url="http://127.0.0.1:1/v1", examples=FixedExamples())
    with pytest.raises(RecipeError, match=r"num_examples is 4, but there are 1 different gold"):
        check_prompts(prompts, None, served, TASK, store)


def test_a_pruned_student_reads_the_prompts_with_its_models_template(folder: Path) -> None:
    student = PrunedStudent(model=str(_alternating(folder)), num_layers=1)
    [problem] = check_models(student, None, TASK, WITH_SYSTEM, HERE)
    assert "cannot render turns of ['system', 'user']: roles must alternate." in problem
