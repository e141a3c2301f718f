"""A teacher reads its own instructions and examples; what is learnt is the row as it was."""

import json
from typing import Any

import pytest

from distillery.data.chat import Message, load_messages
from distillery.preflight.generation_plan import plan_generation
from distillery.storage.fingerprint import canonical_json
from distillery.storage.store import Store
from distillery.teacher.generation import generation_stage
from distillery.teacher.prompt import TeacherPrompt, instructions
from schemas.errors import RecipeError
from schemas.examples import FixedExamples, NearestExamples
from schemas.execution import StoreSpec
from schemas.refs import DatasetRef
from schemas.task import LabelSet, TaskSpec
from schemas.teacher import OpenAITeacher, TeacherSpec, TransformersTeacher
from tests.fixtures_generation import endpoint, ledger_rows, rows_of, run_all, write_prompts
from tests.stub_endpoint import StubEndpoint

LABELS = LabelSet(labels=("refund", "lost card"))
TASK = TaskSpec(name="tickets", type="classification", answer_format=LABELS)
NLI = TaskSpec(name="pairs", type="nli")
USER = Message(role="user", content="Where is it?")
OWN = Message(role="system", content="Be brief.")


def teacher(**fields: Any) -> TransformersTeacher:
    return TransformersTeacher(model="m", **fields)


@pytest.fixture
def prompts(store: StoreSpec) -> DatasetRef:
    """Two prompts to answer, and gold rows of which one is a prompt, too."""
    return write_prompts(
        store,
        [
            ("train", "the money is gone"),
            ("gold", "my card is lost", "lost card"),
            ("gold", "the money is gone", "refund"),
            ("gold", "send my money back", "refund"),
            ("validation", "a lost card"),
            ("test", "where is my card?", "lost card"),
        ],
    )


def told(spec: TeacherSpec, task: TaskSpec = TASK) -> str | None:
    return instructions(spec, task)


def test_instructions_and_labels_are_written_out() -> None:
    assert told(teacher()) is None
    assert told(teacher(system_prompt='Answer {"intent": ...}.')) == 'Answer {"intent": ...}.'
    assert told(teacher(system_prompt="{labels}: choose.")) == "refund, lost card: choose."
    listed = told(teacher(system_prompt="Choose:\n- a\n  {labels}\nof {labels}"))
    assert listed == "Choose:\n- a\n  refund\n  lost card\nof refund, lost card"
    assert told(teacher(system_prompt="{labels}"), NLI) == "entailment\nneutral\ncontradiction"
    auto = told(teacher(system_prompt="auto"))
    assert auto is not None and auto.endswith("\nrefund\nlost card")


@pytest.mark.parametrize("answer_format", [None, {"kind": "regex", "pattern": "a|b"}])
def test_labels_that_the_task_does_not_list_are_refused(answer_format: Any) -> None:
    task = TaskSpec(name="t", type="classification", answer_format=answer_format)
    with pytest.raises(RecipeError, match=r"holds '\{labels\}', but the task has none\. List"):
        told(teacher(system_prompt="One of {labels}"), task)


def laid(prompts: DatasetRef, store: StoreSpec, *messages: Message, **fields: Any) -> Any:
    [found] = TeacherPrompt(teacher(**fields), TASK, prompts, store).around([messages])
    return [(turn["role"], turn["content"]) for turn in found]


def test_the_teachers_instructions_come_before_the_rows_own(
    prompts: DatasetRef, store: StoreSpec
) -> None:
    assert laid(prompts, store, OWN, USER) == [("system", "Be brief."), ("user", "Where is it?")]
    assert laid(prompts, store, USER, system_prompt="Name it.") == [
        ("system", "Name it."),
        ("user", "Where is it?"),
    ]
    assert laid(prompts, store, OWN, USER, system_prompt="Name it.") == [
        ("system", "Name it.\n\nBe brief."),
        ("user", "Where is it?"),
    ]


def test_examples_stand_between_the_instructions_and_the_prompt(
    prompts: DatasetRef, store: StoreSpec
) -> None:
    nearest = NearestExamples(num_examples=2)
    asked = Message(role="user", content="my card!")
    found = laid(prompts, store, OWN, asked, system_prompt="Name it.", examples=nearest)
    assert found[0] == ("system", "Name it.\n\nBe brief.")
    assert found[-3:] == [
        ("user", "my card is lost"),
        ("assistant", "lost card"),
        ("user", "my card!"),
    ]
    assert len(found) == 6


def test_the_request_is_kept_as_it_was_sent_and_the_row_as_it_was(
    prompts: DatasetRef, store: StoreSpec
) -> None:
    with StubEndpoint() as stub:
        one = FixedExamples(num_examples=1)
        spec = endpoint(stub, system_prompt="One of: {labels}", examples=one)
        result = run_all(prompts, spec, store, task=TASK)
        kept = ledger_rows(prompts, spec, store, TASK)
        sent = [canonical_json(body["messages"]) for body in stub.requests]
        plan = plan_generation(prompts, spec, TASK, store)
    requests = [json.loads(row.request)["messages"] for row in kept.values()]
    assert sorted(map(canonical_json, requests)) == sorted(sent)
    for messages in requests:
        assert messages[0] == {"role": "system", "content": "One of: refund, lost card"}
        assert [turn["role"] for turn in messages[1:]] == ["user", "assistant", "user"]
    written = [load_messages(row["messages"]) for row in rows_of(result, store)]
    assert written == [
        [{"role": "user", "content": "the money is gone"}],
        [{"role": "user", "content": "a lost card"}],
    ]
    assert (plan.in_ledger, plan.to_ask) == (2, 0)


def test_a_plan_counts_the_tokens_of_instructions_and_examples(
    prompts: DatasetRef, store: StoreSpec
) -> None:
    plain = plan_generation(prompts, teacher_at_host(), TASK, store)
    told = plan_generation(prompts, teacher_at_host(system_prompt="x" * 400), TASK, store)
    shown = plan_generation(
        prompts, teacher_at_host(examples=NearestExamples(num_examples=2)), TASK, store
    )
    assert told.prompt_tokens == plain.prompt_tokens + 200  # 4 characters each, two requests
    assert shown.prompt_tokens > plain.prompt_tokens


def teacher_at_host(**fields: Any) -> TeacherSpec:
    return OpenAITeacher(model="m", base_url="http://host/v1", **fields)


def test_whatever_changes_the_prompt_is_in_the_fingerprint(prompts: DatasetRef) -> None:
    def fingerprint(task: TaskSpec = TASK, **fields: Any) -> str:
        return generation_stage(prompts, teacher_at_host(**fields), task).fingerprint

    other = TASK.model_copy(update={"answer_format": LabelSet(labels=("refund", "fee"))})
    found = [
        fingerprint(),
        fingerprint(system_prompt="a"),
        fingerprint(system_prompt="auto"),
        fingerprint(system_prompt="{labels}"),
        fingerprint(system_prompt="{labels}", task=other),
        fingerprint(examples=FixedExamples()),
        fingerprint(examples=FixedExamples(seed=1)),
        fingerprint(examples=FixedExamples(num_examples=3)),
        fingerprint(examples=NearestExamples()),
    ]
    assert len(set(found)) == len(found)
    assert fingerprint(task=other) == fingerprint()  # nobody reads the labels


def test_no_request_is_shown_its_own_answer(prompts: DatasetRef, store: StoreSpec) -> None:
    spec = teacher_at_host(examples=NearestExamples(num_examples=2))
    rows = [row for batch in Store(store.root).batches(prompts) for row in batch.to_pylist()]
    asked = [load_messages(row["messages"]) for row in rows]
    for own, messages in zip(
        asked, TeacherPrompt(spec, TASK, prompts, store).around(asked), strict=True
    ):
        assert [turn["content"] for turn in messages].count(own[0]["content"]) == 1
        assert messages[-1] == own[0]
