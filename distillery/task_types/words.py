"""The words of a text, in any script."""

import unicodedata
from enum import Enum

import regex

from distillery.task_types.labels import INVISIBLE

# Letters of scripts that put no spaces between words: Han, kana, and those of South East Asia
# (Thai, Lao, Khmer, Myanmar, Tai), where only a dictionary tells where a line may break.
_UNSPACED = (
    r"[[\p{scx=Han}\p{scx=Hiragana}\p{scx=Katakana}\p{Line_Break=Complex_Context}]&&[\p{L}\p{N}]]"
)
_word = regex.compile(rf"{_UNSPACED}\p{{M}}*|[[\p{{L}}\p{{M}}\p{{N}}]--{_UNSPACED}]+", regex.V1)
_character = regex.compile(r"\S\p{M}*")
_letter = regex.compile(r"\p{L}")
_kana = regex.compile(r"[\p{Hiragana}\p{Katakana}]")
_han = regex.compile(r"\p{Han}")
_unspaced = regex.compile(rf"{_UNSPACED}\p{{M}}*", regex.V1)


class Writing(Enum):
    """How a text marks where its words end."""

    SPACED = "spaces"
    CHINESE = "Han without spaces"
    UNSPACED = "no spaces"


def words(text: str) -> list[str]:
    """Return the words of a text, without regard to case, punctuation and marks of width.

    A word is a run of letters, their marks and digits. Where words are not parted by spaces
    (Chinese, Japanese, Thai, Lao, Khmer, Burmese) every letter with its marks counts as one. Of a
    text without letters and digits, such as an emoji, every character does.

    For ASCII text these are the tokens of `rouge_score` without a stemmer, which drops all other
    letters.

    >>> words("Don't stop: 3.5 caf\u00e9s!"), words("\u043c\u0438\u0440, \u0414\u0430")
    (['don', 't', 'stop', '3', '5', 'cafés'], ['мир', 'да'])
    >>> words("\u6771\u4eac\u30bf\u30ef\u30fc\u3001Tokyo"), words(":-)")
    (['東', '京', 'タ', 'ワ', 'ー', 'tokyo'], [':', '-', ')'])
    """
    plain = unicodedata.normalize("NFKC", text.translate(INVISIBLE)).casefold()
    found: list[str] = _word.findall(plain) or _character.findall(text)
    return found


def with_spaces(text: str) -> str:
    """Return a text with spaces around every letter of a script that has none between words.

    >>> with_spaces("\u6771\u4eacTokyo 3")
    ' 東  京 Tokyo 3'
    """
    return str(_unspaced.sub(r" \g<0> ", text))


def writing(text: str) -> Writing:
    """Return how most letters of a text are written.

    >>> [writing(text).name for text in ("Tokyo \u6771", "\u6771\u4eac", "\u6771\u4eac\u3078", "?")]
    ['SPACED', 'CHINESE', 'UNSPACED', 'SPACED']
    """
    num_unspaced = len(_unspaced.findall(text))
    if 2 * num_unspaced <= len(_letter.findall(text)):
        return Writing.SPACED
    is_chinese = 2 * len(_han.findall(text)) > num_unspaced and not _kana.search(text)
    return Writing.CHINESE if is_chinese else Writing.UNSPACED
