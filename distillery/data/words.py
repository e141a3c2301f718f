"""What a prompt asks, as text and as words in one spelling."""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence

from distillery.data.chat import load_messages

# Scripts that put no space between words; each character counts as one. Thai, Lao, Burmese, Khmer,
# kana, Han.
_SPACELESS = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff"
# Punctuation is no word, but an operator before a number is: 3-5 is not 3+5.
_WORDS = re.compile(rf"[{_SPACELESS}]|[^\W{_SPACELESS}]+|[-+*/=<>^%\u2212\u00d7\u00f7](?=\s*\d)")


def asked_text(messages: str) -> str:
    """Return the turns of a prompt, one after the other; system turns do not count."""
    turns = (turn["content"] for turn in load_messages(messages) if turn["role"] != "system")
    return "\n".join(turns)


def words_of(text: str) -> list[str]:
    """Return the words of a text without case and in one spelling (NFKC).

    Text without a word, such as an emoji, is one word.

    >>> words_of("Is  ½ a HALF?"), words_of("7 - 2, 犬小屋"), words_of(":-)")
    (['is', '1', '2', 'a', 'half'], ['7', '-', '2', '犬', '小', '屋'], [':-)'])
    """
    normal = unicodedata.normalize("NFKC", text).casefold()
    return _WORDS.findall(normal) or normal.split()


def runs(words: Sequence[str], length: int) -> Iterator[str]:
    """Return the runs of ``length`` words, in order; a shorter text has none.

    >>> list(runs(["a", "b", "c"], 2)), list(runs(["a"], 2))
    (['a b', 'b c'], [])
    """
    return (" ".join(words[i : i + length]) for i in range(len(words) - length + 1))


def looping_runs(found: Sequence[str], n: int, *, least: int) -> tuple[float, str]:
    """Return the share of characters in runs that stand ``least`` times, and the first run.

    No character counts twice.

    >>> looping_runs(["so", "it", "goes", "so", "it"], 2, least=2)
    (0.6666666666666666, 'so it')
    """
    grams = list(runs(found, n))
    counts = Counter(grams)
    is_inside, first = bytearray(len(found)), ""
    for start, gram in enumerate(grams):
        if counts[gram] >= least:
            is_inside[start : start + n] = b"\1" * n
            first = first or gram
    chars = sum(len(word) for word, inside in zip(found, is_inside, strict=True) if inside)
    return chars / max(1, sum(map(len, found))), first
