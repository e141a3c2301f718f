"""Of prompts worded alike the first stays; the others are dropped and name it."""

import random
from pathlib import Path

import pytest

from distillery.filters.near_duplicate import rows_per_band
from schemas.prompt_filters import NearDuplicateFilter
from tests.fixtures_filters import prompt_row, prompt_rows, texts_of, through

WORDS = [f"word{n}" for n in range(400)]


def _sentence(rng: random.Random, length: int = 30) -> list[str]:
    return rng.sample(WORDS, length)


def _groups(num_groups: int, rng: random.Random) -> list[str]:
    """Return groups of sentences that differ in their last word, all of a group alike."""
    texts = []
    for _ in range(num_groups):
        begin = _sentence(rng)
        texts += [" ".join([*begin, last]) for last in rng.sample(WORDS, rng.randint(1, 4))]
    return texts


def test_the_first_of_a_group_stays_and_the_others_name_it(tmp_path: Path) -> None:
    alike = " ".join(_sentence(random.Random(0)))
    rows = [
        prompt_row(alike, 1),
        prompt_row("Something else entirely is asked here", 2),
        prompt_row(alike.upper() + "!", 3),
        prompt_row(f"{alike} too", 4, split="validation"),
    ]
    kept, rejected, _ = through(tmp_path, NearDuplicateFilter(), rows)
    assert [row["prompt_id"] for row in kept] == ["train-1", "train-2"]
    assert [(row["prompt_id"], row["reason"]) for row in rejected] == [
        ("train-3", "near_duplicate"),
        ("validation-4", "near_duplicate"),
    ]
    assert rejected[0]["detail"] == "worded like train row 'train-1', Jaccard index about 1.00"
    assert rejected[0]["score"] == 1.0
    assert 0.85 < rejected[1]["score"] < 1, "28 of 29 shingles"


@pytest.mark.parametrize("split", ["train", "validation"])
def test_a_prompt_without_words_enough_is_one_shingle(tmp_path: Path, split: str) -> None:
    rows = prompt_rows(["Pay now", "pay NOW!", "now pay", "", " "], split=split)
    kept, rejected, _ = through(tmp_path, NearDuplicateFilter(), rows)
    assert texts_of(kept) == ["Pay now", "now pay", ""]
    assert texts_of(rejected) == ["pay NOW!", " "]


def test_the_bound_and_the_shingles_are_what_the_recipe_says(tmp_path: Path) -> None:
    words = _sentence(random.Random(1), 20)
    rows = prompt_rows([" ".join(words), " ".join([*words[:10], "another", *words[11:]])])

    def num_kept(**settings: float) -> int:
        spec = NearDuplicateFilter.model_validate(settings)
        return len(through(tmp_path, spec, rows)[0])

    assert num_kept(max_similarity=0.85) == 2, "15 shingles of 21 are shared"
    assert num_kept(max_similarity=0.5) == 1
    words_alone = {"shingle_words": 1, "num_permutations": 512}
    assert num_kept(max_similarity=0.85, **words_alone) == 1, "19 words of 21 are shared"
    assert num_kept(max_similarity=0.95, **words_alone) == 2


def test_filtering_again_drops_nothing_more_and_batches_do_not_matter(tmp_path: Path) -> None:
    rng = random.Random(2)
    texts = _groups(60, rng)
    texts += [" ".join(rng.choice("abcdefg") for _ in range(rng.randint(1, 9))) for _ in range(200)]
    rng.shuffle(texts)
    spec = NearDuplicateFilter()
    kept, rejected, _ = through(tmp_path, spec, prompt_rows(texts))
    assert rejected
    again, nothing, _ = through(tmp_path, spec, kept)
    assert nothing == [] and len(again) == len(kept)
    small, also, _ = through(tmp_path, spec, prompt_rows(texts), batch_rows=7)
    assert (texts_of(small), also) == (texts_of(kept), rejected)


def test_the_order_of_the_rows_only_decides_which_of_a_group_stays(tmp_path: Path) -> None:
    rng = random.Random(3)
    texts = _groups(80, rng)
    for _ in range(3):
        kept, _, _ = through(tmp_path, NearDuplicateFilter(), prompt_rows(texts))
        assert len({text.rsplit(" ", 1)[0] for text in texts_of(kept)}) == len(kept) == 80
        firsts = {text.rsplit(" ", 1)[0]: text for text in reversed(texts)}
        assert set(texts_of(kept)) == set(firsts.values())
        rng.shuffle(texts)


def test_thousands_of_rows_of_one_template_do_not_meet_all_of_each_other(tmp_path: Path) -> None:
    texts = [f"please cancel my order {n} of last week {n % 97}" for n in range(3000)]
    kept, _, _ = through(tmp_path, NearDuplicateFilter(max_similarity=0.9), prompt_rows(texts))
    assert len(kept) == 3000


def test_pairs_at_the_bound_share_a_band_almost_surely() -> None:
    for similarity in (0.3, 0.5, 0.7, 0.9, 0.95):
        height = rows_per_band(similarity, 128)
        missed: float = (1 - similarity**height) ** (128 // height)
        assert missed <= 0.01
