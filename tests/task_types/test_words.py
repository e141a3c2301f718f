# ruff: noqa: RUF001
"""Every text has words, whatever script it is in."""

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distillery.task_types.words import Writing, words, writing


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Don't stop_here: 3.5%", "don t stop here 3 5"),
        ("café", "café"),
        ("cafe\u0301", "café"),
        ("Привет, мир!", "привет мир"),
        ("STRASSE Straße", "strasse strasse"),
        ("ΟΔΟΣ οδός", "οδοσ οδόσ"),
        ("नमस्ते दुनिया।", "नमस्ते दुनिया"),
        ("مرحبا، عالم؟", "مرحبا عالم"),
        ("שלום עולם", "שלום עולם"),
        ("你好，世界。", "你 好 世 界"),
        ("GPT模型２号", "gpt 模 型 2 号"),
        ("東京タワーへ", "東 京 タ ワ ー へ"),
        ("한국어 입니다.", "한국어 입니다"),
        ("สวัสดี", "ส วั ส ดี"),
        ("ພາສາ", "ພ າ ສ າ"),
        ("ភាសា", "ភា សា"),
        ("မြန်", "မြ န်"),
        ("می\u200cخواهم", "میخواهم"),
        ("co\u00adoperate", "cooperate"),
        ("👍👍", "👍 👍"),
        ("Fine 👍", "fine"),
        ("...", ". . ."),
        ("", ""),
        (" \n", ""),
    ],
)  # fmt: skip
def test_words_of_a_script(text: str, expected: str) -> None:
    assert words(text) == expected.split()


@given(st.text(string.printable))
def test_ascii_text_has_the_words_of_rouge_score(text: str) -> None:
    from rouge_score.tokenize import tokenize

    theirs = tokenize(text, stemmer=None)
    assert words(text) == (theirs or [character for character in text if not character.isspace()])


@given(st.text().filter(str.strip))
def test_no_text_is_without_words(text: str) -> None:
    assert words(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Tokyo Tower (東京タワー)", Writing.SPACED),
        ("Привет", Writing.SPACED),
        ("한국어 입니다", Writing.SPACED),
        ("大模型 GPT", Writing.SPACED),
        ("使用大模型 GPT", Writing.CHINESE),
        ("東京へ行く", Writing.UNSPACED),
        ("สวัสดี", Writing.UNSPACED),
        ("42 👍", Writing.SPACED),
    ],
)
def test_how_most_letters_are_written(text: str, expected: Writing) -> None:
    assert writing(text) is expected
