"""Prompts in other languages are dropped where they are recognized beyond doubt."""

from pathlib import Path

import pytest

from schemas.errors import RecipeError
from schemas.prompt_filters import LanguageFilter
from tests.fixtures_filters import prompt_rows, texts_of, through

ENGLISH = "Please cancel the invoice, as I never ordered this kettle."
GERMAN = "Bitte stornieren Sie die Rechnung, ich habe diesen Kessel nie bestellt."
FRENCH = "Je voudrais un remboursement pour la bouilloire, elle est cassée."


def test_only_the_listed_languages_are_kept(tmp_path: Path) -> None:
    rows = prompt_rows([ENGLISH, GERMAN, FRENCH])
    kept, rejected, _ = through(tmp_path, LanguageFilter(languages=("en", "de")), rows)
    assert texts_of(kept) == [ENGLISH, GERMAN]
    [dropped] = rejected
    assert dropped["reason"] == "other_language"
    assert dropped["detail"] == f"recognized as 'fr' with confidence {dropped['score']:.2f}"
    assert dropped["score"] > 0.5


def test_short_prompts_and_uncertain_guesses_pass(tmp_path: Path) -> None:
    rows = prompt_rows(["Danke schön", "ok", "x = [1, 2, 3]; print(x[0])", GERMAN])
    strict = LanguageFilter(languages=("en",), min_confidence=1.0)
    assert len(through(tmp_path, strict, rows)[0]) == 4
    usual = LanguageFilter(languages=("en",))
    assert texts_of(through(tmp_path, usual, rows)[1]) == [GERMAN]
    eager = LanguageFilter(languages=("en",), min_chars=1)
    assert "Danke schön" in texts_of(through(tmp_path, eager, rows)[1])


def test_filtering_again_drops_nothing_more(tmp_path: Path) -> None:
    spec = LanguageFilter(languages=("en",), min_chars=1)
    kept, _, _ = through(tmp_path, spec, prompt_rows([ENGLISH, GERMAN, "ok"]), batch_rows=1)
    assert through(tmp_path, spec, kept)[1] == []


def test_a_language_that_nobody_knows_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"language knows no language 'english'\. Write codes"):
        through(tmp_path, LanguageFilter(languages=("english",)), [])
