"""The judge: what it is asked, what becomes of its verdicts, and what is asked again."""

import functools
import itertools
import json
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from pydantic import TypeAdapter

from distillery.evaluation.judge import judge_answers, judging_stage
from distillery.ledger import Ledger
from distillery.storage.stage import Attempt, Stage, StageResult, run_stage
from distillery.storage.store import Store
from distillery.teacher.http.batch.teacher import BatchTeacher
from schemas.errors import BudgetError, TeacherError
from schemas.execution import ExecutionSpec, StageName, StoreSpec
from schemas.frames import ScoreFrame, arrow_schema
from schemas.judge import JudgeSpec
from schemas.refs import DatasetRef
from schemas.task import TaskSpec
from tests.fixtures_comparison import prompt_frame, seal_prompts
from tests.fixtures_models import make_tiny_model
from tests.fixtures_recipe import write_rows
from tests.stub_batches import StubOpenAI
from tests.stub_endpoint import STANDS_STILL, Reply, StubEndpoint
from tests.waiting import wait_until

TASK = TaskSpec.model_validate({"name": "support", "type": "conversation"})
Responses = Mapping[str, Sequence[str | None]]


def shown(body: dict[str, Any]) -> tuple[str, str]:
    """Return the responses A and B that a request shows."""
    text = body["messages"][-1]["content"]
    found = re.search(
        r"<response_A>\n(.*)\n</response_A>\n\n<response_B>\n(.*)\n</response_B>", text, re.DOTALL
    )
    assert found is not None
    return found[1], found[2]


def prefers(better: Callable[[str, str], str]) -> Callable[[dict[str, Any]], Reply]:
    """Return a judge that answers what ``better`` says of the responses A and B."""
    return lambda body: Reply(text=better(*shown(body)))


def longer(a: str, b: str) -> str:
    """Say which response is the longer one, without regard to the order."""
    return "tie" if len(a) == len(b) else "A" if len(a) > len(b) else "B"


@pytest.fixture
def judging() -> Iterator[StubEndpoint]:
    with StubEndpoint(respond=prefers(longer)) as endpoint:
        yield endpoint


def judge_at(endpoint: StubEndpoint, **changes: Any) -> JudgeSpec:
    model = {
        **{"kind": "openai", "model": "arbiter", "base_url": endpoint.base_url},
        **{"structured_output": "off", "concurrency": 2, "max_attempts": 1},
        **changes.pop("model", {}),
    }
    return JudgeSpec.model_validate({"model": model, **changes})


def answered(store: StoreSpec, responses: Responses) -> tuple[dict[str, DatasetRef], DatasetRef]:
    """Return sealed answers by contestant, and the prompts they answer."""
    num_rows = max(map(len, responses.values()))
    prompts = seal_prompts(store, prompt_frame(num_rows))
    answers = {}
    for name, texts in responses.items():
        frame = pd.DataFrame(
            {
                "prompt_id": [f"test-{number:03d}" for number in range(len(texts))],
                "references": '["yes"]',
                "response": pd.array(texts, dtype="str"),
                "metrics": '{"ROUGE-L":null}',
                "truncated": False,
            }
        )

        def work(attempt: Attempt, frame: pd.DataFrame = frame) -> None:
            with attempt.row_writer("answers", arrow_schema(ScoreFrame)) as writer:
                writer.write(frame)

        stage = Stage(StageName.ANSWER_TEST_PROMPTS, 1, inputs={}, spec={name: texts})
        answers[name] = run_stage(stage, store, ExecutionSpec(), work).dataset("answers")
    return answers, prompts


def judged(store: StoreSpec, responses: Responses, judge: JudgeSpec) -> StageResult:
    answers, prompts = answered(store, responses)
    return judge_answers(answers, prompts, TASK, judge, store, ExecutionSpec())


def verdicts(store: StoreSpec, result: StageResult) -> list[tuple[Any, ...]]:
    """Return (against, shown_first, shown_second, verdict) of each row."""
    rows = Store(store.root).dataset(result.dataset("verdicts")).to_table().to_pylist()
    return [
        tuple(row[n] for n in ("against", "shown_first", "shown_second", "verdict")) for row in rows
    ]


def test_each_pair_is_shown_blind_and_in_both_orders(
    store: StoreSpec, judging: StubEndpoint
) -> None:
    responses = {"teacher": ["long one", "b"], "baseline": ["x", "xx"], "student": ["mid", "bbb"]}
    result = judged(store, responses, judge_at(judging, rubric="The longer one."))
    assert verdicts(store, result) == [
        ("teacher", "loss", "loss", "loss"),
        ("baseline", "win", "win", "win"),
        ("teacher", "win", "win", "win"),
        ("baseline", "win", "win", "win"),
    ]
    assert {shown(body) for body in judging.requests} >= {("mid", "long one"), ("long one", "mid")}
    assert judging.num_requests == 2 * 4
    (asked,) = judging.requests[0]["messages"]
    assert asked["role"] == "user" and "The longer one." in asked["content"]
    assert "<prompt>\n<script>alert(" in asked["content"]
    named = "\n".join(body["messages"][0]["content"] for body in judging.requests)
    assert not re.search("teacher|student|baseline", named)
    assert result.manifest.counts == {"pairs": 4, "unscored": 0, "from_ledger": 0, "asked": 8}


def test_a_judge_in_batches_judges_all_pairs_in_one(
    store: StoreSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    hasty = functools.partial(BatchTeacher, poll_s=0.01)
    monkeypatch.setattr("distillery.teacher.http.batch.teacher.BatchTeacher", hasty)
    with StubOpenAI(answers=lambda *_: Reply(text="tie")) as stub:
        judge = judge_at(stub, batch_size=1, model={"batch": True})
        result = judged(store, {"teacher": ["a", "b"], "student": ["c", "d"]}, judge)
    assert [len(made.requests) for made in stub.made] == [4]
    assert result.manifest.counts["pairs"] == 2


@pytest.mark.parametrize(
    ("better", "expected"),
    [
        (lambda a, b: "A", ("win", "loss", "tie")),
        (lambda a, b: "tie", ("tie", "tie", "tie")),
        (lambda a, b: "A" if a == "mine" else "tie", ("win", "tie", "tie")),
        (lambda a, b: "both are fine" if a == "mine" else "B", (None, "win", None)),
        (lambda a, b: "A or B", (None, None, None)),
        (lambda a, b: "<think>A? No, B.</think>**B**", ("loss", "win", "tie")),
        (lambda a, b: '{"better": "A"}' if a == "mine" else "response B", ("win", "win", "win")),
    ],
)
def test_a_verdict_follows_from_both_orders_and_nonsense_is_unscored(
    store: StoreSpec, better: Callable[[str, str], str], expected: tuple[str | None, ...]
) -> None:
    with StubEndpoint(respond=prefers(better)) as endpoint:
        result = judged(store, {"teacher": ["yours"], "student": ["mine"]}, judge_at(endpoint))
    assert verdicts(store, result) == [("teacher", *expected)]
    assert result.manifest.counts["unscored"] == (expected[-1] is None)


def test_a_verdict_that_was_cut_or_refused_is_unscored(store: StoreSpec) -> None:
    def respond(body: dict[str, Any]) -> Reply:
        return Reply(text="A", finish_reason="length") if shown(body)[0] == "mine" else Reply(400)

    with StubEndpoint(respond=respond) as endpoint:
        result = judged(store, {"teacher": ["yours"], "student": ["mine"]}, judge_at(endpoint))
    assert verdicts(store, result) == [("teacher", None, None, None)]


def test_the_same_response_is_a_tie_and_a_missing_one_unscored_without_asking(
    store: StoreSpec, judging: StubEndpoint
) -> None:
    responses: Responses = {
        "teacher": ["same ", None, "Hm.</think>answer"],
        "student": ["same", "mine", "<think>Other</think> answer"],
    }
    result = judged(store, responses, judge_at(judging))
    assert [row[1:] for row in verdicts(store, result)] == [
        (None, None, "tie"),
        (None, None, None),
        (None, None, "tie"),
    ]
    assert judging.num_requests == 0


def test_an_empty_response_is_judged_like_any_other(
    store: StoreSpec, judging: StubEndpoint
) -> None:
    result = judged(store, {"teacher": ["text"], "student": [""]}, judge_at(judging))
    assert verdicts(store, result) == [("teacher", "loss", "loss", "loss")]


def test_only_those_whom_the_recipe_names_and_who_take_part_are_judged(
    store: StoreSpec, judging: StubEndpoint
) -> None:
    responses = {name: [name] for name in ("teacher", "in-context student", "student", "onnx int4")}
    judge = judge_at(judging, against=["champion", "onnx int4"])
    result = judged(store, responses, judge)
    assert [row[0] for row in verdicts(store, result)] == ["onnx int4"]
    assert verdicts(store, judged(store, responses, judge_at(judging, against=["champion"]))) == []


def test_max_rows_judges_the_same_rows_whoever_takes_part(
    store: StoreSpec, judging: StubEndpoint
) -> None:
    def rows(*names: str) -> set[str]:
        responses = {name: [f"{name} {n}" for n in range(20)] for name in names}
        result = judged(store, responses, judge_at(judging, max_rows=5))
        table = Store(store.root).dataset(result.dataset("verdicts")).to_table()
        assert table.num_rows == 5 * (len(names) - 1)
        return set(table["prompt_id"].to_pylist())

    assert rows("teacher", "student") == rows("teacher", "baseline", "student")


def test_rows_that_somebody_was_not_asked_are_left_out(
    store: StoreSpec, judging: StubEndpoint
) -> None:
    responses = {"teacher": ["t0"], "student": ["sss", "sss"]}
    result = judged(store, responses, judge_at(judging))
    assert verdicts(store, result) == [("teacher", "win", "win", "win")]


def test_a_local_judge_that_writes_nonsense_leaves_every_pair_unscored(
    store: StoreSpec, tmp_path: Path
) -> None:
    folder = make_tiny_model(tmp_path / "judge", max_length=2048)
    model = {"kind": "transformers", "model": str(folder), "dtype": "float32", "max_new_tokens": 4}
    judge = JudgeSpec.model_validate({"model": model | {"device": "cpu"}})
    responses = {"teacher": ["yours", "same"], "student": ["mine", "same"]}
    result = judged(store, responses, judge)
    assert verdicts(store, result) == [
        ("teacher", None, None, None),
        ("teacher", None, None, "tie"),
    ]
    counts = {"pairs": 2, "unscored": 1, "from_ledger": 0, "asked": 2}
    assert (result.manifest.counts, result.manifest.cost) == (counts, None)


def test_a_new_student_pays_only_for_pairs_with_new_texts(
    store: StoreSpec, judging: StubEndpoint
) -> None:
    judge = judge_at(
        judging,
        model={
            "price": {"prompt_per_million": 1e6, "completion_per_million": 0, "currency": "EUR"}
        },
    )
    first = judged(store, {"teacher": ["t0", "t1"], "student": ["sss", "s"]}, judge)
    assert (first.manifest.cost, first.manifest.currency) == (4 * 7, "EUR")
    second = judged(store, {"teacher": ["t0", "t1"], "student": ["sss", "other"]}, judge)
    assert second.manifest.counts == {"pairs": 2, "unscored": 0, "from_ledger": 2, "asked": 2}
    assert second.manifest.cost == 2 * 7
    assert judging.num_requests == 6
    assert judged(store, {"teacher": ["t0", "t1"], "student": ["sss", "s"]}, judge).reused


def test_a_run_that_failed_asks_only_what_is_missing(store: StoreSpec) -> None:
    responses = {"teacher": ["t0", "t1", "t2"], "student": ["sss", "s", "long"]}
    is_down = True

    def respond(body: dict[str, Any]) -> Reply:
        return Reply(500) if is_down and "long" in shown(body) else Reply(text=longer(*shown(body)))

    with StubEndpoint(respond=respond) as endpoint:
        judge = judge_at(endpoint, batch_size=1)
        with pytest.raises(TeacherError, match="1 of 3 pairs have no verdict from the judge yet"):
            judged(store, responses, judge)
        is_down, before = False, endpoint.num_requests
        result = judged(store, responses, judge)
        assert endpoint.num_requests - before == 2
    assert [row[-1] for row in verdicts(store, result)] == ["win", "loss", "win"]


JUDGE = """
import sys
from pydantic import TypeAdapter
from distillery.evaluation.judge import judge_answers
from schemas.execution import ExecutionSpec, StoreSpec
from schemas.judge import JudgeSpec
from schemas.refs import DatasetRef
from schemas.task import TaskSpec
answers, prompts, task, judge, store = sys.argv[1:]
judge_answers(
    TypeAdapter(dict[str, DatasetRef]).validate_json(answers),
    DatasetRef.model_validate_json(prompts),
    TaskSpec.model_validate_json(task),
    JudgeSpec.model_validate_json(judge),
    StoreSpec.model_validate_json(store),
    ExecutionSpec(),
)
"""


@pytest.mark.slow
def test_a_judge_killed_at_work_pays_for_nothing_twice(store: StoreSpec) -> None:
    answers, prompts = answered(store, {"teacher": list("abcd"), "student": ["xx"] * 4})
    numbers = itertools.count()
    better = prefers(longer)

    def three_then_none(body: dict[str, Any]) -> Reply:
        return better(body) if next(numbers) < 3 else STANDS_STILL

    def three_are_kept() -> bool:
        with Ledger.open(store) as ledger:
            return bool(sum(each["num_rows"] for each in ledger.stats()) == 3)

    with StubEndpoint(respond=three_then_none) as endpoint:
        given = [each.model_dump_json() for each in (prompts, TASK, judge_at(endpoint), store)]
        named = TypeAdapter(dict[str, DatasetRef]).dump_json(answers).decode()
        child = subprocess.Popen([sys.executable, "-c", JUDGE, named, *given])
        try:
            wait_until(three_are_kept)
        finally:
            child.kill()
        assert child.wait() == -signal.SIGKILL
    with StubEndpoint(respond=better) as endpoint:
        judge = judge_at(endpoint)
        result = judge_answers(answers, prompts, TASK, judge, store, ExecutionSpec())
        assert endpoint.num_requests == 2 * 4 - 3
    assert {verdict for *_, verdict in verdicts(store, result)} == {"win"}


def test_a_budget_stops_the_judge_and_a_higher_one_goes_on(store: StoreSpec) -> None:
    responses = {"teacher": [f"t{n}" for n in range(10)], "student": [f"{n}" for n in range(10)]}
    usage = {"prompt_tokens": 250, "completion_tokens": 2}
    with StubEndpoint(respond=lambda b: Reply(text=longer(*shown(b)), usage=usage)) as endpoint:
        capped = {"concurrency": 1, "max_new_tokens": 2, "budget": {"max_tokens": 2000}}
        with pytest.raises(BudgetError, match=r"of evaluation\.judge\.model\.budget\.max_tokens"):
            judged(store, responses, judge_at(endpoint, model=capped))
        assert 0 < endpoint.num_requests < 20
        result = judged(store, responses, judge_at(endpoint, model={"max_new_tokens": 2}))
        assert endpoint.num_requests == 20
    assert {row[-1] for row in verdicts(store, result)} == {"loss"}


def test_an_endpoint_that_keeps_to_a_schema_is_asked_for_json(store: StoreSpec) -> None:
    with StubEndpoint(respond=lambda body: Reply(text='{"better": "tie"}')) as endpoint:
        judge = judge_at(endpoint, model={"structured_output": "json_schema"})
        result = judged(store, {"teacher": ["yours"], "student": ["mine"]}, judge)
    assert [row[-1] for row in verdicts(store, result)] == ["tie"]
    (schema,) = {json.dumps(body["response_format"]) for body in endpoint.requests}
    assert '"enum": ["A", "B", "tie"]' in schema
    assert '{"better": "A"}' in endpoint.requests[0]["messages"][0]["content"]


# -- what identifies verdicts ----------------------------------------------------------------------


CHANGES: list[tuple[dict[str, Any], bool]] = [
    ({"model": {"model": "another"}}, True),
    ({"model": {"weights": "fp8"}}, True),
    ({"model": {"sampling_temperature": 0.5}}, True),
    ({"model": {"structured_output": "json_object"}}, True),
    ({"rubric": "Be kind."}, True),
    ({"max_rows": 1}, True),
    ({"against": ["baseline"]}, True),
    ({"against": ["teacher", "baseline"]}, False),  # there is no champion
    ({"batch_size": 3}, False),
    ({"model": {"base_url": "http://elsewhere/v1", "concurrency": 9}}, False),
    ({"model": {"api_key_env": "SOME_KEY"}}, False),
    ({"model": {"price": {"prompt_per_million": 1, "completion_per_million": 1}}}, False),
]


@pytest.mark.parametrize(("changes", "matters"), CHANGES)
def test_verdicts_are_identified_by_who_judges_what_and_how(
    judging: StubEndpoint, changes: dict[str, Any], matters: bool
) -> None:
    def fingerprint(**changed: Any) -> str:
        return judging_stage(ANSWERS, REF, TASK, judge_at(judging, **changed)).fingerprint

    assert (fingerprint() != fingerprint(**changes)) is matters


REF = DatasetRef(uri="p", fingerprint="p" * 64, num_rows=2, columns=())
ANSWERS = {
    name: DatasetRef(uri=name, fingerprint=name[0] * 64, num_rows=2, columns=())
    for name in ("teacher", "baseline", "student", "in-context student")
}


def test_verdicts_rest_on_the_answers_of_those_who_are_judged(judging: StubEndpoint) -> None:
    def fingerprint(**changed: str) -> str:
        answers = {
            name: ref.model_copy(update={"fingerprint": changed.get(name[:7], ref.fingerprint)})
            for name, ref in ANSWERS.items()
        }
        return judging_stage(answers, REF, TASK, judge_at(judging)).fingerprint

    assert len({fingerprint(), fingerprint(teacher="x" * 64), fingerprint(student="x" * 64)}) == 3
    assert fingerprint(**{"in-cont": "x" * 64}) == fingerprint()


def test_verdicts_rest_on_the_content_of_the_preferences_and_not_on_their_place(
    judging: StubEndpoint, tmp_path: Path
) -> None:
    def fingerprint(name: str, preferred: str) -> str:
        path = tmp_path / name
        write_rows(path, [{"response_a": "a", "response_b": "b", "preferred": preferred}])
        source = {"kind": "file", "path": str(path)}
        judge = judge_at(judging, preferences={"source": source})
        return judging_stage(ANSWERS, REF, TASK, judge).fingerprint

    assert fingerprint("a.jsonl", "first") == fingerprint("b.jsonl", "first")
    assert fingerprint("a.jsonl", "first") != fingerprint("a.jsonl", "tie")


# -- human preferences -----------------------------------------------------------------------------


def test_the_judge_is_asked_what_people_were_in_both_orders(
    store: StoreSpec, judging: StubEndpoint, tmp_path: Path
) -> None:
    rows = [
        {"turns": [{"role": "user", "content": "Hello?"}], "old": "short", "new": "much longer"},
        {"turns": [{"role": "user", "content": "Why?"}], "old": "because", "new": "so"},
    ]
    said = ["new", "tie"]
    path = tmp_path / "people.jsonl"
    write_rows(path, [row | {"choice": choice} for row, choice in zip(rows, said, strict=True)])
    source = {"kind": "file", "path": str(path), "columns": {"messages": "turns"}}
    preferences = {"source": source, "first": "new", "second": "old", "preferred": "choice"}
    responses = {"teacher": ["yours"], "student": ["mine"]}
    result = judged(store, responses, judge_at(judging, preferences=preferences))
    table = Store(store.root).dataset(result.dataset("verdicts")).to_table().to_pylist()
    assert [tuple(row.values()) for row in table] == [
        ("preference-1", None, "win", "win", "win", "win"),
        ("preference-2", None, "loss", "loss", "loss", "tie"),
        ("test-000", "teacher", "loss", "loss", "loss", None),
    ]
    assert "<prompt>\nHello?\n</prompt>" in judging.requests[0]["messages"][0]["content"]
