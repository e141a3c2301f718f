"""The teacher's probabilities are stored small and exact, and say what they were made with."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from distillery.objectives.soft import stored as storage
from distillery.objectives.soft.local import LocalScorer
from distillery.objectives.soft.selection import likeliest_tokens
from distillery.objectives.soft.stored import (
    ScoredRow,
    SoftTargetMeta,
    at_temperature,
    check_meta,
    read_meta,
    read_targets,
    to_batch,
    write_targets,
)
from distillery.storage.stage import Attempt
from distillery.storage.store import Store
from schemas.errors import StoreError, TrainingError
from schemas.execution import StoreSpec
from tests.fixtures_scores import (
    TOP_4,
    local_teacher,
    put_rows,
    rows_to_score,
    soft_of,
    tokenizer_of,
)

pytestmark = pytest.mark.usefixtures("one_thread")

META = SoftTargetMeta(
    tokenizer_hash=None,
    distillation_temperature=4.0,
    k=3,
)


def _random_row(name: str, num_tokens: int, seed: int) -> ScoredRow:
    """Return a row of random numbers whose ids are in no order."""
    random = np.random.default_rng(seed)
    ids_NK = np.array([random.choice(50, META.k, replace=False) for _ in range(num_tokens)])
    return ScoredRow(
        name,
        "train" if seed % 2 else "validation",
        random.integers(0, 50, num_tokens).tolist(),
        ids_NK.astype(np.int32),
        -random.gamma(2.0, size=ids_NK.shape).astype(np.float32),
        -random.gamma(2.0, size=num_tokens).astype(np.float32),
    )


def test_what_is_written_is_read_in_order_with_ids_ascending(
    attempt: Attempt, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "_GROUP_TOKENS", 7)  # several row groups
    rows = [_random_row(str(n), 1 + n * 5 % 4, n) for n in range(9)]
    batches = [to_batch(rows[:5], META), to_batch([], META), to_batch(rows[5:], META)]
    ref = write_targets(attempt, "soft_targets", batches, META)
    assert (ref.num_rows, attempt.outputs["soft_targets"]) == (9, ref)
    for splits in (None, ("train",), ("validation",)):
        wanted = [row for row in rows if splits is None or row.split in splits]
        read = list(read_targets(attempt.store, ref, splits))
        assert [row.prompt_id for row in read] == [row.prompt_id for row in wanted]
        for found, row in zip(read, wanted, strict=True):
            order = row.ids_NK.argsort(axis=1)
            assert (found.split, found.response_ids) == (row.split, row.response_ids)
            assert np.array_equal(found.ids_NK, np.take_along_axis(row.ids_NK, order, 1))
            log_probs_NK = np.take_along_axis(row.log_probs_NK, order, 1)
            assert np.array_equal(found.log_probs_NK, log_probs_NK.astype(np.float16))
            assert np.array_equal(found.log_rest_N, row.log_rest_N)


def test_impossible_tokens_and_an_empty_rest_are_kept(attempt: Attempt) -> None:
    row = _random_row("a", 2, 1)
    row.log_probs_NK[:] = [[-np.inf, -1e9, 0.0]] * 2
    row.log_rest_N[:] = -np.inf
    ref = write_targets(attempt, "soft_targets", [to_batch([row], META)], META)
    (found,) = read_targets(attempt.store, ref)
    assert sorted(found.log_probs_NK[0].tolist()) == [-65504.0, -65504.0, 0.0]
    assert np.isneginf(found.log_rest_N).all()


def test_soft_targets_say_what_they_were_made_with(attempt: Attempt) -> None:
    batch = to_batch([_random_row("a", 2, 1)], META)
    ref = write_targets(attempt, "soft_targets", [batch], META)
    assert read_meta(attempt.store, ref) == META


def test_other_data_sets_are_no_soft_targets(tmp_path: Path) -> None:
    spec = StoreSpec(root=str(tmp_path))
    with pytest.raises(StoreError, match=r"holds no soft targets\. Name the output of score_soft"):
        read_meta(Store(spec.root), put_rows(spec, rows_to_score(1)))


@pytest.mark.parametrize("ids", ["uniform", "zipf"])
def test_a_token_takes_at_most_300_bytes_at_a_real_vocabulary(attempt: Attempt, ids: str) -> None:
    random = np.random.default_rng(0)
    vocabulary, k, num_tokens = 151_936, 64, 32

    def row(name: str) -> ScoredRow:
        logits_NV = 3 * random.standard_normal((num_tokens, vocabulary), dtype=np.float32)
        ids_NK = np.argpartition(-logits_NV, k, axis=1)[:, :k].astype(np.int32)
        total_N = np.log(np.exp(logits_NV).sum(axis=1, keepdims=True))
        log_probs_NK = np.take_along_axis(logits_NV, ids_NK, 1) - total_N
        rest_N = np.log1p(-np.exp(log_probs_NK).sum(axis=1))
        if ids == "zipf":
            ranks = (vocabulary ** random.random((num_tokens, 16 * k))).astype(np.int32) - 1
            ids_NK = np.array([random.permutation(np.unique(drawn))[:k] for drawn in ranks])
        return ScoredRow(name, "train", ids_NK[:, 0].tolist(), ids_NK, log_probs_NK, rest_N)

    meta = META.model_copy(update={"k": k})
    batch = to_batch([row(name) for name in "abcdefgh"], meta)
    ref = write_targets(attempt, "soft_targets", [batch], meta)
    bytes_per_token = attempt.store.fs.du(attempt.store.path(ref.uri)) / (8 * num_tokens)
    assert 100 < bytes_per_token <= 300


@pytest.mark.parametrize("temperature", [1.0, 2.0, 4.0])
@pytest.mark.parametrize("spread", [0.1, 3.0, 30.0])
def test_stored_targets_are_the_dense_softmax_at_their_temperature(
    temperature: float, spread: float
) -> None:
    generator = torch.Generator().manual_seed(0)
    logits_NV = spread * torch.randn(40, 500, generator=generator)
    ids_NK, log_probs_NK, log_rest_N = likeliest_tokens(logits_NV.clone(), 16, temperature)
    dense_NV = (logits_NV.double() / temperature).log_softmax(-1)
    log_p_NK, rest_N = at_temperature(log_probs_NK.half(), log_rest_N, temperature)
    expected_NK = dense_NV.gather(-1, ids_NK)
    rest_of_dense_N = dense_NV.scatter(-1, ids_NK, -torch.inf).logsumexp(-1)
    # Half of float16's step is 2**-11 of a number; softmax sees each number and their sum.
    bound_NK = 2 * 2**-11 * log_probs_NK.abs().max() / temperature + 1e-5
    assert bool(((log_p_NK - expected_NK).abs() <= bound_NK).all())
    torch.testing.assert_close(rest_N.double(), rest_of_dense_N, rtol=1e-5, atol=1e-5)
    total_N = torch.logaddexp(log_p_NK.double().logsumexp(-1), rest_N.double())
    torch.testing.assert_close(total_N, torch.zeros_like(total_N), rtol=0, atol=2e-6)


@pytest.mark.parametrize(
    ("made", "message"),
    [
        ({"tokenizer_hash": "f" * 64}, r"tokenizer ffffffffffff, the student has \w{12}, so"),
        ({"distillation_temperature": 3.0}, r"_temperature 3\.0, but .*_temperature is 2\.0\."),
        ({"k": 5}, r"made with k 5, but training\.objective\.k is 4\."),
    ],
)
def test_soft_targets_of_another_training_are_refused_by_name(
    folder: Path, made: dict[str, Any], message: str
) -> None:
    tokenizer = tokenizer_of(folder)
    meta = LocalScorer(local_teacher(folder), soft_of(TOP_4)).meta
    for fitting in (meta, meta.model_copy(update={"tokenizer_hash": None})):
        check_meta(fitting, tokenizer=tokenizer, spec=soft_of(TOP_4))
    with pytest.raises(TrainingError, match=message):
        check_meta(meta.model_copy(update=made), tokenizer=tokenizer, spec=soft_of(TOP_4))
