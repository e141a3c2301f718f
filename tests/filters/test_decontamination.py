"""What a test or selection row gives away is dropped, and the row is named."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distillery.filters.base import Drop
from distillery.filters.decontamination import Decontamination
from distillery.task_types import task_type
from schemas.prompt_filters import DecontaminationFilter
from tests.fixtures_filters import Row, prompt_row, prompt_rows, task_with, texts_of, through

FREE = task_type(task_with())
HELD_OUT = "A customer in Bern has paid twice for the same blue kettle and wants one payment back."


def _found(prompt: str, *held_out: Row, **settings: float) -> Drop | None:
    chosen = Decontamination(DecontaminationFilter.model_validate(settings))
    chosen.prepare(held_out)
    found = chosen.row(prompt_row(prompt), FREE)
    assert found is None or isinstance(found, Drop)
    return found


@pytest.mark.parametrize(
    "prompt",
    [
        HELD_OUT,
        HELD_OUT.upper(),
        HELD_OUT.replace(" ", "\n\t "),
        HELD_OUT.replace(".", " !?").replace("Bern", "„Bern“,"),
        HELD_OUT.replace("customer", "\uff43\uff55\uff53\uff54\uff4f\uff4d\uff45\uff52"),
    ],
)
@pytest.mark.parametrize("split", ["test", "selection"])
def test_case_space_punctuation_and_spelling_in_unicode_make_no_other_prompt(
    prompt: str, split: str
) -> None:
    found = _found(prompt, prompt_row(HELD_OUT, 7, split=split))
    assert found == Drop(
        reason=f"found_in_{split}",  # type: ignore[arg-type]
        detail=f"the same words as {split} row '{split}-7'",
        score=1.0,
    )


@pytest.mark.parametrize(
    ("prompt", "held_out"),
    [
        ("What is 3-5?", "What is 3+5?"),
        ("What is 3 * 5?", "What is 3 / 5?"),
        (":-)", ":-("),
        ("犬が好き", "猫が好き"),
    ],
)
def test_operators_emoji_and_characters_tell_prompts_apart(prompt: str, held_out: str) -> None:
    assert _found(prompt, prompt_row(held_out, split="test")) is None


def test_a_shared_run_is_named_with_the_row_that_it_is_from() -> None:
    prompt = "A customer in Bern has paid twice for the same blue kettle and is not amused."
    rows = [prompt_row("Where is it?", 1, split="test"), prompt_row(HELD_OUT, 2, split="test")]
    found = _found(prompt, *rows)
    assert found is not None
    assert found.reason == "overlaps_test"
    assert found.detail == (
        "shares 6 runs of 8 words with test row 'test-2', 67% of the shorter one's: "
        "'a customer in bern has paid twice for'"
    )
    assert found.score == 6 / 9


def test_the_bound_and_the_length_of_a_run_are_what_the_recipe_says() -> None:
    prompt = "A customer in Bern has paid twice for the same blue kettle and is not amused."
    row = prompt_row(HELD_OUT, split="test")
    assert _found(prompt, row, max_overlap=0.7) is None
    assert _found("He has paid twice for the same", row) is None
    assert _found("He has paid twice for the same", row, ngram_words=5) is not None
    short = "They said that he paid twice for the same blue kettle and left the shop for good."
    assert _found(short, row) is None
    assert _found(short, row, max_overlap=0) is not None, "as open-r1 has it"


def test_a_test_row_within_a_long_prompt_is_found() -> None:
    story = " ".join(f"word{n}" for n in range(200))
    found = _found(f"{story} {HELD_OUT} {story}", prompt_row(HELD_OUT, split="test"))
    assert found is not None and found.score == 1.0


def test_short_prompts_are_only_compared_as_a_whole() -> None:
    row = prompt_row("Is the blue kettle sold out?", split="test")
    assert _found("Is the blue kettle sold out now?", row) is None
    assert _found("is the blue kettle sold out", row) is not None


def test_what_a_template_puts_into_every_row_gives_nothing_away() -> None:
    asked = "Classify this message of a customer into one of the labels a, b or c: {}"
    rows = [prompt_row(asked.format(word), n, split="test") for n, word in enumerate("vwxyz")]
    assert _found(asked.format("kettle"), *rows) is None
    assert _found(asked.format("X"), *rows) is not None


def test_the_turns_of_one_conversation_are_not_taken_for_a_template() -> None:
    rows = [prompt_row(HELD_OUT + " So." * n, n, split="test", cluster="c") for n in range(12)]
    rows += [prompt_row(f"Another question, number {n}", 20 + n, split="test") for n in range(30)]
    assert _found(f"Hello. {HELD_OUT}", *rows) is not None


def test_instructions_of_the_system_do_not_count() -> None:
    told = '[{"content":"Be brief.","role":"system"},{"content":"Where is it?","role":"user"}]'
    row = prompt_row(split="test", messages=told)
    assert _found("where is it", row) is not None
    assert _found("be brief", row) is None


_TEXTS = st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=12).map(" ".join)


@given(st.lists(_TEXTS, max_size=8), st.lists(_TEXTS, max_size=4), st.integers(1, 9))
def test_filtering_again_drops_nothing_more_and_batches_do_not_matter(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str], held: list[str], batch_rows: int
) -> None:
    folder = tmp_path_factory.mktemp("store")
    spec, held_out = DecontaminationFilter(ngram_words=3), prompt_rows(held, split="test")
    kept, rejected, _ = through(folder, spec, [*prompt_rows(texts), *held_out])
    again, nothing, _ = through(folder, spec, [*kept, *held_out], batch_rows=batch_rows)
    assert nothing == [] and texts_of(again) == texts_of(kept)
    small, also, _ = through(folder, spec, [*prompt_rows(texts), *held_out], batch_rows=batch_rows)
    assert (texts_of(small), also) == (texts_of(kept), rejected)


def test_without_held_out_rows_everything_is_kept(tmp_path: Path) -> None:
    kept, _, _ = through(tmp_path, DecontaminationFilter(), prompt_rows(["a", "b"]))
    assert texts_of(kept) == ["a", "b"]
