"""The order of rows follows from the seed alone, and rows of one batch never see each other."""

import collections
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from distillery.models.chat_format import IGNORED
from distillery.models.head import Head
from distillery.models.output_layer import SplitModel, response_states
from distillery.objectives.losses import response_losses
from distillery.training.batches import Pack, PadRight, RowOrder, num_steps
from distillery.training.preflight import check_packing
from schemas.errors import TrainingError
from schemas.training import TrainingSpec
from tests.fixtures_models import make_tiny_model

LENGTHS = st.lists(st.integers(1, 50), min_size=1, max_size=30)


@settings(deadline=None)
@given(LENGTHS, st.integers(1, 8), st.integers(1, 20), st.integers(0, 3))
def test_every_row_comes_once_before_any_comes_again(
    lengths: list[int], batch_size: int, steps: int, seed: int
) -> None:
    order = RowOrder(lengths, batch_size=batch_size, steps=steps, seed=seed)
    rows = list(order)
    assert len(rows) == len(order) == batch_size * steps
    for start in range(0, len(rows), len(lengths)):
        epoch = rows[start : start + len(lengths)]
        assert len(set(epoch)) == len(epoch)
    assert rows == list(order)
    longer = RowOrder(lengths, batch_size=batch_size, steps=steps + 1, seed=seed)
    assert list(longer)[: len(rows)] == rows


def test_another_seed_is_another_order() -> None:
    orders = [list(RowOrder([5] * 20, batch_size=4, steps=5, seed=seed)) for seed in (0, 1)]
    assert orders[0] != orders[1]
    assert collections.Counter(orders[0]) == collections.Counter(orders[1])


@given(
    num_rows=st.integers(1, 10_000),
    batch_size=st.integers(1, 64),
    epochs=st.floats(0.01, 10),
    min_steps=st.integers(0, 500),
)
def test_steps_cover_the_epochs_and_never_fall_below_the_least(
    num_rows: int, batch_size: int, epochs: float, min_steps: int
) -> None:
    spec = TrainingSpec(batch_size=batch_size, epochs=epochs, min_steps=min_steps)
    steps = num_steps(num_rows, spec)
    assert steps >= max(1, min_steps)
    assert steps * batch_size >= epochs * num_rows - 1e-6 * num_rows
    assert num_steps(num_rows + 1, spec) >= steps


def _row(ids: list[int]) -> dict[str, Any]:
    return {"row": 0, "input_ids": ids, "labels": [IGNORED, *ids[1:]], "length": len(ids)}


@given(st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=6), min_size=1, max_size=5))
def test_padding_is_never_attended_to_nor_learned(rows: list[list[int]]) -> None:
    batch = PadRight(0)([_row(ids) for ids in rows])
    for n, ids in enumerate(rows):
        rest = batch["input_ids"].shape[1] - len(ids)
        assert batch["input_ids"][n].tolist() == ids + [0] * rest
        assert batch["attention_mask"][n].tolist() == [1] * len(ids) + [0] * rest
        assert batch["labels"][n].tolist() == [IGNORED, *ids[1:]] + [IGNORED] * rest


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    from transformers import AutoModelForCausalLM

    folder = make_tiny_model(tmp_path_factory.mktemp("model") / "tiny")
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)


ROWS = [[7, 8, 9, 10, 11], [30, 31, 32], [50], [60, 61, 62, 63, 64, 65, 66], [7, 8]]


def _loss_and_gradients(model: Any, batch: dict[str, Any]) -> tuple[Any, list[Any]]:
    split = SplitModel(model)
    labels = batch["labels"][:, 1:]
    losses: Any = response_losses(
        response_states(model, batch, batch["labels"]),
        split.head,
        labels[labels != IGNORED],
        vocab_size=300,
        normaliser=7.0,
    )
    model.zero_grad()
    losses.loss.backward()
    SplitModel.join(model)
    return losses.loss.detach(), [p.grad.clone() for p in model.parameters()]


def test_packed_rows_learn_what_padded_rows_learn(model: Any) -> None:
    rows = [_row(ids) for ids in ROWS]
    padded, expected = _loss_and_gradients(model, PadRight(0)(rows))
    packed, gradients = _loss_and_gradients(model, Pack(0)(rows))
    torch.testing.assert_close(packed, padded, rtol=1e-12, atol=1e-12)
    for one, two in zip(gradients, expected, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kind", [PadRight, Pack])
def test_a_row_is_the_same_whatever_stands_beside_it(model: Any, kind: type[PadRight]) -> None:
    def states(rows: list[list[int]]) -> Any:
        batch = kind(0)([_row(ids) for ids in rows])
        with torch.no_grad():
            return response_states(model, batch, batch["labels"])

    alone = torch.cat([states([ids]) for ids in ROWS])
    torch.testing.assert_close(states(ROWS), alone, rtol=1e-9, atol=1e-9)
    other = states([[99] * len(ids) if n == 1 else ids for n, ids in enumerate(ROWS)])
    kept = torch.tensor([n != 1 for n, ids in enumerate(ROWS) for _ in ids[1:]])
    torch.testing.assert_close(other[kept], alone[kept], rtol=1e-9, atol=1e-9)
    assert not torch.allclose(other[~kept], alone[~kept])


def test_a_model_that_does_not_keep_rows_apart_is_refused_packing(model: Any) -> None:
    import datasets

    rows = [{"length": len(ids), "input_ids": ids} for ids in ROWS[:2]]
    table = datasets.Dataset.from_list(rows).with_format("torch")
    check_packing(model, table)
    with pytest.raises(TrainingError, match=r"does not keep rows apart .*batching to padded\."):
        check_packing(_Blind(model), table)


class _Blind(torch.nn.Module):
    """A model that takes no heed of where rows begin."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.inner = model

    def forward(self, input_ids: Any, use_cache: bool, position_ids: Any = None) -> Any:
        return self.inner(input_ids=input_ids, use_cache=use_cache)


def test_micro_batches_of_any_size_add_up_to_the_same_gradients(model: Any) -> None:
    rows = [_row(ids) for ids in ROWS if len(ids) > 1]
    _, expected = _loss_and_gradients(model, PadRight(0)(rows))
    for size in (1, 2):
        parts = [
            _loss_and_gradients(model, PadRight(0)(list(part)))[1]
            for part in (rows[at : at + size] for at in range(0, len(rows), size))
        ]
        for one, *others in zip(expected, *parts, strict=True):
            torch.testing.assert_close(sum(others), one, rtol=1e-9, atol=1e-12)


def test_a_model_is_joined_again_with_its_output_layer(model: Any) -> None:
    ids = torch.tensor([[1, 2, 3]])
    logits = model(input_ids=ids).logits
    split = SplitModel(model)
    hidden = model(input_ids=ids).logits
    assert hidden.shape[-1] == model.config.hidden_size
    head = split.head
    assert head.weight_VD is not None
    torch.testing.assert_close(hidden @ head.weight_VD.T, logits)
    assert SplitModel(model).head.weight_VD is head.weight_VD
    SplitModel.join(model)
    torch.testing.assert_close(model(input_ids=ids).logits, logits)


class _Wrapped(torch.nn.Module):
    """A model that does something to its logits."""

    def __init__(self, inner: Any, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.inner, self.config, self._change = inner, inner.config, change

    def get_output_embeddings(self) -> Any:
        return self.inner.get_output_embeddings()

    def forward(self, **named: Any) -> Any:
        outputs = self.inner(**named)
        outputs.logits = self._change(outputs.logits)
        return outputs


@pytest.mark.parametrize(
    "change",
    [
        lambda logits: 3e4 * torch.tanh(logits / 3e4),
        lambda logits: logits.index_fill(-1, torch.tensor([298, 299]), -torch.inf),
        lambda logits: logits.index_fill(-1, torch.tensor([0, 1]), -torch.inf),
        lambda logits: logits + torch.arange(300.0),
    ],
    ids=["capped", "tokens left out", "tokens left out that are dimensions too", "shifted"],
)
def test_a_model_that_changes_its_logits_afterwards_keeps_them_whole(
    model: Any, change: Any
) -> None:
    changing = _Wrapped(model, change)
    split = SplitModel(changing)
    assert split.holds_logits and split.head == Head(None)
    assert changing(input_ids=torch.tensor([[1, 2]]), use_cache=False).logits.shape[-1] == 300


def test_a_model_that_hands_out_float32_in_half_precision_is_split(model: Any) -> None:
    upcasting = _Wrapped(model.to(torch.bfloat16), lambda logits: logits.float())
    assert not SplitModel(upcasting).holds_logits
