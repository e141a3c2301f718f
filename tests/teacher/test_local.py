"""The local teacher: every request gets its final response, whatever is in the prompt."""

import json
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

from distillery.teacher import open_teacher
from distillery.teacher.local import LocalTeacher, _loaded, release_models
from distillery.teacher.protocol import Request, Response, ResponseSchema, Sampling, make_request
from schemas.errors import TeacherError
from schemas.teacher import TransformersTeacher
from tests.fixtures_models import make_tiny_model

GREEDY = Sampling(8, 0.0, 1.0, 0)
SAMPLED = Sampling(8, 1.0, 1.0, 0)
SCHEMA = ResponseSchema('{"required":["a"],"type":"object"}', "validate")
CONTEXT = 256  # tokens, of the tiny model
Script = Callable[[str, int], str]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("teacher") / "tiny", max_length=CONTEXT)


@pytest.fixture
def teacher(folder: Path) -> Iterator[LocalTeacher]:
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    spec = TransformersTeacher(model=str(folder), dtype="float32", device="cpu", batch_size=3)
    opened = open_teacher(spec)
    assert isinstance(opened, LocalTeacher)
    yield opened
    # release_models() would collect garbage too, half a second in a large process.
    _loaded.models.clear()
    _loaded.in_use.clear()
    torch.set_num_threads(threads)


def _request(content: str, sampling: Sampling = GREEDY, **named: Any) -> Request:
    return make_request({}, [{"role": "user", "content": content}], sampling, **named)


def _done() -> Future[None]:
    future: Future[None] = Future()
    future.set_result(None)
    return future


def _ask(teacher: LocalTeacher, *requests: Request) -> list[Response]:
    """Return the responses in the order of ``requests``; each came exactly once."""
    taken: list[Response] = []

    def take(response: Response) -> Future[None]:
        taken.append(response)
        return _done()

    teacher.answer(requests, take)
    found = {id(response.request): response for response in taken}
    assert len(found) == len(taken) == len(requests)
    return [found[id(request)] for request in requests]


class _Scripted:
    """Stands in for the forward passes of transformers; all of our own code runs."""

    def __init__(self, teacher: LocalTeacher, script: Script) -> None:
        with _loaded.lock:
            self.model = teacher.model()
        self.model.model.generate = self._generate
        self._script = script
        self.batch_sizes: list[int] = []
        self.seeds: list[int] = []
        self.prompts: list[str] = []
        self._times_asked: dict[str, int] = {}

    def _generate(self, *, input_ids: Any, attention_mask: Any, logits_processor: Any) -> Any:
        import torch

        self.batch_sizes.append(len(input_ids))
        for processor in logits_processor:  # what samples, and what notes the first token
            generators = getattr(processor, "_generators", ())
            self.seeds += [generator.initial_seed() for generator in generators]
        limit = self.model.model.generation_config.max_new_tokens
        new = []
        for ids_T, mask_T in zip(input_ids, attention_mask, strict=True):
            prompt = self.model.tokenizer.decode(ids_T[mask_T.bool()])
            self.prompts.append(prompt)
            self._times_asked[prompt] = self._times_asked.get(prompt, 0) + 1
            text = self._script(prompt, self._times_asked[prompt])
            ids = self.model.tokenizer(text, add_special_tokens=False)["input_ids"]
            new.append([*ids, self.model.tokenizer.eos_token_id][:limit])
        width = max(map(len, new))
        new = [ids + [self.model.tokenizer.pad_token_id] * (width - len(ids)) for ids in new]
        return torch.cat([input_ids, torch.tensor(new)], dim=1)


def test_each_request_is_answered_with_what_it_took(teacher: LocalTeacher) -> None:
    responses = _ask(teacher, *(_request("where is " * n) for n in (3, 1, 6, 2, 5)))
    assert len({response.text for response in responses}) > 1
    for response in responses:
        assert response.state == "truncated"  # a random model goes on and on
        assert response.finish_reason == "length"
        assert (response.attempts, response.repaired, response.error) == (1, False, None)
        assert response.completion_tokens == response.billed_completion_tokens == 8
        assert response.prompt_tokens == response.billed_prompt_tokens
        assert response.latency_s > 0


def test_a_batch_is_kept_for_good_before_the_next_is_generated(teacher: LocalTeacher) -> None:
    events: list[str] = []
    scripted = _Scripted(teacher, lambda prompt, time: events.append("read") or "yes")  # type: ignore[func-returns-value]

    class Kept(Future[None]):
        def result(self, timeout: float | None = None) -> None:
            events.append("kept")
            return super().result(timeout)

    def take(response: Response) -> Future[None]:
        events.append("handed over")
        future = Kept()
        future.set_result(None)
        return future

    teacher.answer([_request(f"ticket {n}") for n in range(5)], take)
    assert scripted.batch_sizes == [3, 2]
    expected = [[n * [event] for event in ("read", "handed over", "kept")] for n in (3, 2)]
    assert events == [event for batch in expected for same in batch for event in same]


def test_nothing_more_is_generated_when_a_response_cannot_be_kept(teacher: LocalTeacher) -> None:
    scripted = _Scripted(teacher, lambda prompt, time: "yes")

    def lose(response: Response) -> Future[None]:
        future: Future[None] = Future()
        future.set_exception(OSError("disk full"))
        return future

    with pytest.raises(OSError, match="disk full"):
        teacher.answer([_request(f"ticket {n}") for n in range(9)], lose)
    assert scripted.batch_sizes == [3]


def test_activity_is_the_batch_in_work(teacher: LocalTeacher) -> None:
    seen: list[int] = []
    _Scripted(teacher, lambda prompt, time: seen.append(teacher.activity.in_flight) or "yes")  # type: ignore[func-returns-value]
    _ask(teacher, *(_request(f"ticket {n}") for n in range(4)))
    assert seen == [3, 3, 3, 1]
    assert (teacher.activity.in_flight, teacher.activity.limit) == (0, 3)


@pytest.mark.parametrize("num_chars", [300, 1_000_000])
def test_a_prompt_longer_than_the_context_is_refused_and_the_others_answered(
    teacher: LocalTeacher, num_chars: int
) -> None:
    short, long, other = _ask(
        teacher, _request("where"), _request("!" * num_chars), _request("what")
    )
    assert (long.state, long.text) == ("refused", "")
    template_tokens = 3  # <|user|>, <|end|>, <|assistant|>
    assert long.error == (
        f"the prompt has {num_chars + template_tokens} tokens, and the teacher's context of 256 "
        "leaves no room for an answer"
    )
    assert (long.billed_prompt_tokens, long.billed_completion_tokens) == (0, 0)
    assert short.text != ""
    assert other.text != ""


@pytest.mark.parametrize(
    ("prompt_tokens", "state", "completion_tokens"),
    [(255, "truncated", 1), (256, "refused", None), (250, "truncated", 6), (248, "truncated", 8)],
)
def test_a_response_goes_up_to_the_end_of_the_context(
    teacher: LocalTeacher, prompt_tokens: int, state: str, completion_tokens: int | None
) -> None:
    _Scripted(teacher, lambda prompt, time: "where is my transfer " * 9)
    [response] = _ask(teacher, _request("!" * (prompt_tokens - 3)))
    assert (response.state, response.completion_tokens) == (state, completion_tokens)


def test_a_prompt_without_a_limit_to_its_context_is_answered(teacher: LocalTeacher) -> None:
    with _loaded.lock:
        teacher.model()._config.max_position_embeddings = 0
    _Scripted(teacher, lambda prompt, time: "yes")
    [response] = _ask(teacher, _request("!" * 1000))
    assert (response.state, response.text) == ("ok", "yes")


@pytest.mark.parametrize(
    "content", ["nul \x00 inside", "\x00", "\x1b[31m", "\ufffe \U0010ffff", ""]
)
def test_odd_characters_are_answered(teacher: LocalTeacher, content: str) -> None:
    [response] = _ask(teacher, _request(content))
    assert response.state == "truncated"
    assert response.completion_tokens == 8


def test_thoughts_are_kept_apart_from_the_response(roomy: LocalTeacher) -> None:
    _Scripted(roomy, lambda *_: "<think>\nMoney?\n</think>\n\nrefund")
    (response,) = _ask(roomy, _request("a", Sampling(64, 0.0, 1.0, 0)))
    assert (response.state, response.text, response.reasoning) == ("ok", "refund", "Money?")


def test_a_model_that_only_thinks_is_found_out_by_its_first_batch(roomy: LocalTeacher) -> None:
    scripted = _Scripted(roomy, lambda *_: "<think>Money? Or not? Or money? Or")
    with pytest.raises(TeacherError) as caught:
        _ask(roomy, *(_request("a" * n) for n in range(1, 20)))
    assert scripted.batch_sizes == [3]
    assert "spent the first 3 responses on reasoning and wrote no text (the last has 8" in str(
        caught.value
    )
    assert "or switch thoughts off in teacher.chat_template_kwargs" in str(caught.value)


def test_a_model_that_comes_to_respond_may_think_in_vain_elsewhere(roomy: LocalTeacher) -> None:
    def script(prompt: str, time: int) -> str:
        return "refund" if prompt.startswith("<|user|>a<") else "<think>Money? Or not? Or"

    _Scripted(roomy, script)
    first = _ask(roomy, *(_request("a" * n) for n in range(1, 4)))
    second = _ask(roomy, *(_request("a" * n) for n in range(4, 10)))
    assert [response.text for response in first] == ["refund", "", ""]
    assert {response.state for response in second} == {"truncated"}


def test_samples_of_one_prompt_differ_and_are_reproduced(teacher: LocalTeacher) -> None:
    requests = [_request("where is it", SAMPLED, sample_index=index) for index in range(4)]
    texts = [response.text for response in _ask(teacher, *requests)]
    assert len(set(texts)) == 4
    assert [response.text for response in _ask(teacher, *requests[::-1])] == texts[::-1]
    assert _ask(teacher, requests[2])[0].text == texts[2]


def test_a_sampled_response_without_text_is_asked_again_with_another_seed(
    teacher: LocalTeacher,
) -> None:
    scripted = _Scripted(teacher, lambda prompt, time: "" if time < 3 else "yes")
    [response] = _ask(teacher, _request("ticket", SAMPLED))
    assert (response.state, response.text, response.attempts) == ("ok", "yes", 3)
    assert len(set(scripted.seeds)) == 3
    assert response.prompt_tokens is not None
    assert response.billed_prompt_tokens == 3 * response.prompt_tokens
    # Twice the end alone, then the text and the end.
    assert response.completion_tokens is not None
    assert response.billed_completion_tokens == 2 + response.completion_tokens
    assert teacher.activity.retries == 2


@pytest.mark.parametrize(("sampling", "attempts"), [(SAMPLED, 3), (GREEDY, 1)])
def test_a_response_without_text_is_empty_in_the_end(
    teacher: LocalTeacher, sampling: Sampling, attempts: int
) -> None:
    scripted = _Scripted(teacher, lambda prompt, time: "")
    empty, good = _ask(teacher, _request("ticket", sampling), _request("!" * 252, sampling))
    assert (empty.state, empty.text, empty.attempts) == ("empty", "", attempts)
    # One token of room, taken by the end: empty, and nothing is wrong with the context.
    assert (good.state, good.attempts) == ("empty", attempts)
    assert len(scripted.prompts) == 2 * attempts


def _structured(content: str, max_new_tokens: int = 40, temperature: float = 0.0) -> Request:
    sampling = Sampling(max_new_tokens, temperature, 1.0, 0)
    return _request(content, sampling, response_schema=SCHEMA)


def test_a_response_that_keeps_the_schema_is_left_alone(teacher: LocalTeacher) -> None:
    scripted = _Scripted(teacher, lambda prompt, time: '{"a": 1}')
    [response] = _ask(teacher, _structured("ticket"))
    assert (response.state, response.repaired, response.attempts) == ("ok", False, 1)
    assert len(scripted.prompts) == 1


@pytest.fixture
def roomy(folder: Path, teacher: LocalTeacher) -> LocalTeacher:
    """Return a teacher with room for a repair: the tiny tokenizer takes a token per character."""
    with _loaded.lock:
        teacher.model()._config.max_position_embeddings = 4096
    return teacher


def test_a_response_that_breaks_the_schema_is_repaired_once(roomy: LocalTeacher) -> None:
    def script(prompt: str, time: int) -> str:
        return '{"a": 1}' if "cannot be used" in prompt else '{"b": 1}'

    scripted = _Scripted(roomy, script)
    [response] = _ask(roomy, _structured("ticket"))
    assert (response.state, response.text) == ("ok", '{"a": 1}')
    assert (response.repaired, response.attempts, response.error) == (True, 2, None)
    first, repair = scripted.prompts
    assert repair.startswith(first.removesuffix("<|assistant|>"))
    assert '<|assistant|>{"b": 1}<|end|><|user|>' in repair
    assert "at $: 'a' is a required property" in repair
    assert response.prompt_tokens is not None
    assert response.billed_prompt_tokens == response.prompt_tokens + len(
        roomy.model().tokenizer(first, add_special_tokens=False)["input_ids"]
    )


def test_a_repair_that_breaks_the_schema_too_is_malformed(roomy: LocalTeacher) -> None:
    def script(prompt: str, time: int) -> str:
        return '{"b": 1}' if "cannot be used" in prompt else "b"

    scripted = _Scripted(roomy, script)
    [response] = _ask(roomy, _structured("ticket"))
    assert response.state == "malformed"
    assert response.text == '{"b": 1}'
    assert response.error == "at $: 'a' is a required property"
    assert (response.repaired, response.attempts) == (True, 2)
    assert len(scripted.prompts) == 2


@pytest.mark.parametrize("repair", ["", "and so on " * 40])
def test_a_repair_without_text_or_without_end_leaves_the_broken_response(
    roomy: LocalTeacher, repair: str
) -> None:
    def script(prompt: str, time: int) -> str:
        return repair if "cannot be used" in prompt else '{"b": 1}'

    _Scripted(roomy, script)
    [response] = _ask(roomy, _structured("ticket", temperature=1.0))
    assert (response.state, response.text, response.repaired) == ("malformed", '{"b": 1}', False)
    assert response.error == "at $: 'a' is a required property"
    assert response.attempts == 2
    assert response.completion_tokens is not None
    assert response.billed_completion_tokens > response.completion_tokens


def test_a_repair_that_does_not_fit_the_context_leaves_the_broken_response(
    teacher: LocalTeacher,
) -> None:
    scripted = _Scripted(teacher, lambda prompt, time: '{"b": 1}')
    [response] = _ask(teacher, _structured("!" * 200))
    assert (response.state, response.text) == ("malformed", '{"b": 1}')
    assert response.error == "at $: 'a' is a required property"
    assert (response.attempts, len(scripted.prompts)) == (1, 1)


def test_a_truncated_response_is_not_repaired_but_truncated(roomy: LocalTeacher) -> None:
    scripted = _Scripted(roomy, lambda prompt, time: '{"a": "and so on and on"}')
    [response] = _ask(roomy, _structured("ticket", max_new_tokens=5))
    assert (response.state, response.error) == ("truncated", None)
    assert len(scripted.prompts) == 1


def test_repairs_of_many_prompts_share_batches(roomy: LocalTeacher) -> None:
    def script(prompt: str, time: int) -> str:
        return json.dumps({"a": 1}) if "cannot be used" in prompt or "fine" in prompt else "no"

    scripted = _Scripted(roomy, script)
    requests = [_structured(f"ticket {n}" + " fine" * (n % 2)) for n in range(6)]
    responses = _ask(roomy, *requests)
    assert {response.state for response in responses} == {"ok"}
    assert [response.repaired for response in responses] == [True, False] * 3
    assert scripted.batch_sizes == [3, 3, 3]


def test_no_request_at_all_loads_nothing(teacher: LocalTeacher) -> None:
    release_models()
    assert _ask(teacher) == []
    assert not _loaded.models
