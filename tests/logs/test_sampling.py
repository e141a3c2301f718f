"""A sample by cluster keeps what is rarely asked."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distillery.logs.sampling import choose_rows, fair_quotas
from schemas.logs import LogSample

COMMON = [f"where is my parcel number {n}" for n in range(300)]
RARE = ["recipe for lentil soup", "lentil soup recipe please", "how long does lentil soup cook"]
ROWS = [*COMMON[:150], *RARE, *COMMON[150:]]


def rows() -> Iterator[str]:
    return iter(ROWS)


def taken(sample: LogSample, seed: int = 0) -> list[str]:
    chosen = choose_rows(rows, len(ROWS), sample, seed)
    return [text for text, is_taken in zip(ROWS, chosen, strict=True) if is_taken]


def test_rare_topics_stay_in_a_sample_by_cluster_and_hardly_in_one_by_chance() -> None:
    by_cluster = taken(LogSample(rows=32, num_clusters=8))
    assert len(by_cluster) == 32
    assert set(RARE) <= set(by_cluster)
    assert len(set(RARE) & set(taken(LogSample(rows=32, by="chance")))) < 3


def test_sample_is_the_same_for_one_seed_and_another_for_another() -> None:
    sample = LogSample(rows=20, num_clusters=8)
    assert taken(sample) == taken(sample)
    assert taken(sample) != taken(sample, seed=1)


def test_fewer_rows_than_wanted_are_all_taken_without_clusters() -> None:
    assert taken(LogSample(rows=1000)) == ROWS


def test_texts_that_say_nothing_are_a_cluster_too() -> None:
    chosen = choose_rows(lambda: iter([""] * 9 + ["a b c"]), 10, LogSample(rows=4), 0)
    assert chosen.sum() == 4


@given(st.lists(st.integers(0, 50), min_size=1, max_size=9), st.integers(0, 200))
def test_quotas_add_up_and_none_is_above_its_cluster(sizes: list[int], total: int) -> None:
    quotas = fair_quotas(np.array(sizes), total)
    assert quotas.sum() == min(total, sum(sizes))
    assert all(quota <= size for quota, size in zip(quotas, sizes, strict=True))
    cut = [quota for quota, size in zip(quotas, sizes, strict=True) if quota < size]
    assert not cut or max(quotas) - min(cut) <= 1


@pytest.mark.slow
def test_embedding_model_tells_topics_apart(tmp_path: Path) -> None:
    from schemas.prompt_filters import EmbeddingModel
    from tests.fixtures_models import make_tiny_model

    model = EmbeddingModel(model=str(make_tiny_model(tmp_path / "encoder")))
    chosen = taken(LogSample(rows=20, num_clusters=8, model=model))
    assert len(chosen) == 20
