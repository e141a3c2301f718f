"""LocalModel: batches answer as single conversations do, and nothing about a model is guessed."""

import json
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

from distillery.models.local import LocalModel, LocalResponse
from schemas.errors import RecipeError
from tests.fixtures_models import make_tiny_model

CONVERSATIONS = [[{"role": "user", "content": "where is " * n}] for n in (3, 1, 6, 2, 5)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="module")
def model(folder: Path) -> Iterator[LocalModel]:
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield LocalModel.load(folder)
    torch.set_num_threads(threads)


def test_greedy_batch_answers_equal_single_answers_in_input_order(model: LocalModel) -> None:
    together = model.answer(CONVERSATIONS, max_new_tokens=10, batch_size=3)
    alone = [model.answer([c], max_new_tokens=10, batch_size=1)[0] for c in CONVERSATIONS]
    assert together == alone
    assert len({answer.text for answer in together}) > 1


def test_greedy_answer_is_the_argmax_of_the_plain_forward_pass(model: LocalModel) -> None:
    import torch

    rendered = "<|user|>where is <|end|><|assistant|>"
    ids = model.tokenizer(rendered, add_special_tokens=False)["input_ids"]
    prompt_tokens = len(ids)
    for _ in range(6):
        logits = model.model(torch.tensor([ids])).logits[0, -1]
        ids = [*ids, int(logits.argmax())]
    answer = model.answer([CONVERSATIONS[1]], max_new_tokens=6, batch_size=1)[0]
    new_text = model.tokenizer.decode(ids[prompt_tokens:], skip_special_tokens=True)
    assert answer.text == new_text.strip()
    assert (answer.prompt_tokens, answer.completion_tokens) == (prompt_tokens, 6)
    assert answer.finish_reason == "length"


def test_sampled_answer_depends_on_seed_and_conversation_not_on_the_batch(
    model: LocalModel,
) -> None:
    def sample(
        conversations: list[list[dict[str, str]]], batch_size: int, seed: int
    ) -> list[LocalResponse]:
        return model.answer(
            conversations,
            max_new_tokens=8,
            batch_size=batch_size,
            sampling_temperature=1.0,
            top_p=0.9,
            seed=seed,
        )

    together = sample(CONVERSATIONS, 5, seed=1)
    assert sample(CONVERSATIONS[::-1], 2, seed=1) == together[::-1]
    assert sample(CONVERSATIONS, 5, seed=2) != together


def test_sampling_follows_the_models_probabilities(model: LocalModel) -> None:
    import torch

    from distillery.models.local import _GumbelSampler

    probabilities = torch.tensor([0.6, 0.3, 0.1])
    rows = 4000
    sampler = _GumbelSampler([f"0:[{row}]" for row in range(rows)], 1.0, 1.0, "cpu")
    drawn = sampler(None, probabilities.log().repeat(rows, 1)).argmax(-1)
    frequencies = torch.bincount(drawn, minlength=3) / rows
    assert torch.allclose(frequencies, probabilities, atol=0.03)


def test_generation_stops_at_end_of_sequence(model: LocalModel) -> None:
    import torch

    head = model.model.lm_head.weight
    saved = head.detach().clone()
    with torch.no_grad():  # all logits 0 but that of <|end|>, whatever the hidden state
        head.zero_()
        original = model.model.lm_head.forward
        only_end = torch.eye(head.shape[0])[model.tokenizer.eos_token_id]
        model.model.lm_head.forward = lambda hidden: original(hidden) + only_end
        try:
            answers = model.answer(CONVERSATIONS, max_new_tokens=9, batch_size=2)
        finally:
            model.model.lm_head.forward = original
            head.copy_(saved)
    assert {(a.text, a.finish_reason, a.completion_tokens) for a in answers} == {("", "stop", 1)}


def test_prompt_near_the_end_of_the_context_is_answered_up_to_it(model: LocalModel) -> None:
    long = [{"role": "user", "content": "!" * 250}]
    too_long = [{"role": "user", "content": "!" * 300}]
    near, beyond = model.answer([long, too_long], max_new_tokens=9, batch_size=2)
    assert near.prompt_tokens + near.completion_tokens == model.context_length == 256
    assert (beyond.text, beyond.finish_reason, beyond.completion_tokens) == ("", "length", 0)


def test_the_cache_is_that_of_the_architecture(model: LocalModel) -> None:
    assert model.kv_cache_bytes(100) == 2 * 2 * 1 * 8 * 4 * 100


def test_transformers_says_nothing_even_when_the_model_asks_for_sampling(
    folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    talkative = tmp_path / "talkative"
    shutil.copytree(folder, talkative)
    wishes = {"do_sample": True, "temperature": 0.6, "top_k": 5, "eos_token_id": [1]}
    (talkative / "generation_config.json").write_text(json.dumps(wishes))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        greedy = LocalModel.load(talkative).answer(CONVERSATIONS, max_new_tokens=4, batch_size=2)
    assert greedy == LocalModel.load(folder).answer(CONVERSATIONS, max_new_tokens=4, batch_size=2)
    assert capfd.readouterr() == ("", "")


def test_cuda_without_a_gpu_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(RecipeError, match=r"device 'cuda' asked for, but torch sees 0 GPUs"):
        LocalModel.load(folder, device="cuda")
    with pytest.raises(RecipeError, match="not one that torch knows"):
        LocalModel.load(folder, device="gpu")
