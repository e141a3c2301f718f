"""Filters that go by what a prompt means: semantic duplicates, and a diverse subset."""

import math
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from distillery.filters.diversity import k_centres
from distillery.filters.semantic_duplicate import semantic_duplicates
from schemas.errors import RecipeError
from schemas.prompt_filters import DiversityFilter, EmbeddingModel, SemanticDuplicateFilter
from tests.fixtures_encoder import make_tiny_encoder
from tests.fixtures_filters import prompt_row, prompt_rows, texts_of, through

WORDS = ["where", "is", "my", "order", "the", "kettle", "how", "do", "i", "pay", "refund", "it"]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> EmbeddingModel:
    folder = make_tiny_encoder(tmp_path_factory.mktemp("encoder"), WORDS)
    return EmbeddingModel(model=str(folder), max_length=16, device="cpu")


def _directions(*degrees: float) -> npt.NDArray[np.float32]:
    angles = np.radians(degrees)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)


def test_a_vector_near_an_earlier_kept_one_is_a_duplicate_of_it() -> None:
    vectors = _directions(0, 90, 5, 12, 88)
    drops = semantic_duplicates(vectors, math.cos(math.radians(10)))
    assert [(d.position, d.kept) for d in drops] == [(2, 0), (4, 1)], "12 is near 5, which is gone"
    assert drops[0].similarity == pytest.approx(math.cos(math.radians(5)), abs=1e-6)


def test_what_is_kept_has_no_duplicate_however_many_blocks_there_are() -> None:
    vectors = _directions(*np.random.default_rng(0).uniform(0, 360, 3000))
    bound = math.cos(math.radians(1))
    dropped = {d.position for d in semantic_duplicates(vectors, bound)}
    kept = vectors[[row for row in range(3000) if row not in dropped]]
    similarity = kept @ kept.T - 2 * np.eye(len(kept))
    assert similarity.max() <= bound + 1e-6
    assert not semantic_duplicates(kept, bound), "filtering again drops nothing more"


def test_k_centres_begin_in_the_middle_and_go_where_nobody_is() -> None:
    vectors = _directions(0, 2, 4, 40, 90, 91)
    centre, similarity = k_centres(vectors, 3)
    assert sorted(set(centre.tolist())) == [0, 3, 5]
    assert centre.tolist() == [0, 0, 0, 3, 5, 5]
    assert similarity[[0, 3, 5]].tolist() == [1, 1, 1]
    assert similarity[2] == pytest.approx(math.cos(math.radians(4)), abs=1e-6)


def test_k_centres_choose_equal_rows_last() -> None:
    vectors = _directions(0, 0, 0, 30, 60)
    centre, _ = k_centres(vectors, 3)
    assert sorted(set(centre.tolist())) == [0, 3, 4]


def test_prompts_that_mean_the_same_leave_and_name_the_one_that_stays(
    tmp_path: Path, encoder: EmbeddingModel
) -> None:
    rows = [
        prompt_row("Where is my order", 1),
        prompt_row("how do I pay the refund", 2),
        prompt_row("where is MY order", 1, split="validation"),
    ]
    kept, [rejected], _ = through(tmp_path, SemanticDuplicateFilter(embedding=encoder), rows)
    assert texts_of(kept) == ["Where is my order", "how do I pay the refund"]
    assert rejected["reason"] == "semantic_duplicate"
    assert rejected["detail"] == "means the same as train row 'train-1', cosine similarity 1.00"
    assert rejected["score"] == pytest.approx(1)


def test_batches_do_not_matter_and_filtering_again_drops_nothing_more(
    tmp_path: Path, encoder: EmbeddingModel
) -> None:
    rng = np.random.default_rng(1)
    texts = [" ".join(rng.choice(WORDS, rng.integers(1, 9))) for _ in range(150)]
    spec = SemanticDuplicateFilter(embedding=encoder, max_similarity=0.9)
    kept, rejected, _ = through(tmp_path, spec, prompt_rows(texts))
    assert rejected
    small, _, _ = through(tmp_path, spec, prompt_rows(texts), batch_rows=40)
    assert texts_of(small) == texts_of(kept)
    assert through(tmp_path, spec, kept)[1] == []


@pytest.mark.parametrize(("keep", "num_kept"), [(7, 7), (0.1, 4), (40, 40), (500, 40)])
def test_so_many_training_prompts_are_kept_and_validation_stays(
    tmp_path: Path, encoder: EmbeddingModel, keep: float, num_kept: int
) -> None:
    rng = np.random.default_rng(2)
    texts = [" ".join(rng.choice(WORDS, 6)) for _ in range(40)]
    rows = [*prompt_rows(texts), *prompt_rows(texts[:5], split="validation")]
    spec = DiversityFilter(embedding=encoder, keep=keep)
    kept, rejected, _ = through(tmp_path, spec, rows)
    splits = [row["split"] for row in kept]
    assert splits == ["train"] * num_kept + ["validation"] * 5
    stay = {row["prompt_id"] for row in kept}
    for row in rejected:
        assert row["reason"] == "less_diverse"
        assert row["detail"].startswith("covered by train row 'train-")
        assert row["detail"].split("'")[1] in stay
    if keep >= 1:
        assert through(tmp_path, spec, kept)[1] == []


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("./nowhere", "'./nowhere' is neither an existing folder nor a hub id"),
        ("owner/encoder", "has no pinned revision"),
    ],
)
def test_an_encoder_that_is_not_there_is_refused_before_a_row_is_read(
    tmp_path: Path, model: str, message: str
) -> None:
    for spec in (
        SemanticDuplicateFilter(embedding=EmbeddingModel(model=model)),
        DiversityFilter(embedding=EmbeddingModel(model=model), keep=5),
    ):
        with pytest.raises(RecipeError, match=message):
            through(tmp_path, spec, [])


def test_keep_is_a_share_or_a_whole_number() -> None:
    with pytest.raises(ValueError, match=r"keep=2.5 is neither a share nor a number of rows"):
        DiversityFilter(embedding=EmbeddingModel(model="m"), keep=2.5)
