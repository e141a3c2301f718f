"""Which label of a list a text names, whatever it is dressed in."""

import re
import unicodedata
from collections.abc import Callable
from functools import lru_cache

# Soft hyphen, zero-width characters, marks of direction, byte order mark.
INVISIBLE = dict.fromkeys(
    [0xAD, *range(0x200B, 0x2010), *range(0x202A, 0x202F), *range(0x2060, 0x206A), 0xFEFF]
)
# Quotes, Markdown and brackets on either side; a full stop and its like at the end only, as "-1"
# and ".5" are other labels than "1" and "5". "?" is doubt, "<" and "#" are part of labels.
_QUOTES = " \"'`*_()[]\u201c\u201d\u2018\u2019\u201a\u201e\u00ab\u00bb\u2039\u203a\u300c\u300d"
_STOPS = ".,;:!\u3002\u3001\u2022"
_fence = re.compile(r"\s*(`{3,9}|~{3,9})(?:json\b|[^\n`~]*\n)?(.*?)\1\s*", re.DOTALL)
_introduction = re.compile(
    r"(?:(?:the|my|final|correct|predicted) )*(?:answer|category|class|classification|intent|label"
    r"|output|prediction|relation|relationship|response|result|sentiment|topic)"
    r"(?: is)?[\"'`*_\])]* ?[:=] ?(.+)",
    re.IGNORECASE,
)
_Reading = tuple[Callable[[str], str], dict[str, str | None]]


def read_label(text: str, labels: tuple[str, ...]) -> str | None:
    """Return the one of ``labels`` that ``text`` names, or None when it names none, or two.

    Case, white space, quotes, brackets, emphasis, a closing full stop, a Markdown fence and an
    introduction ("Label: ") do not matter, unless another label differs in just that.

    >>> labels = ("refund", "repair", "c", "C")
    >>> [read_label(text, labels) for text in ("**Refund**", "Label: refund.", "no refund", "C.")]
    ['refund', 'refund', None, 'C']
    """
    introduced = _introduction.fullmatch(undressed(text))
    for candidate in (text, unfenced(text), introduced[1] if introduced else ""):
        for key, label_of in _readings(labels):
            if key(candidate) in label_of:
                return label_of[key(candidate)]
    return None


def undressed(text: str) -> str:
    r"""Return ``text`` without quotes, brackets, emphasis and closing full stops around it.

    White space inside is one space, invisible characters are gone, and forms of one character
    that look different only (full-width, ligatures) are the same.

    >>> undressed('\u200b "card\u00a0arrival\uff0e" ')
    'card arrival'
    """
    plain = unicodedata.normalize("NFKC", text).translate(INVISIBLE)
    return " ".join(plain.split()).rstrip(_QUOTES + _STOPS).lstrip(_QUOTES)


def folded(text: str) -> str:
    """Return ``text`` undressed and without regard to case."""
    return undressed(text).casefold()


def unfenced(text: str) -> str:
    r"""Return what stands in the Markdown fence that ``text`` consists of, or ``text``.

    >>> unfenced('```json\n{"a": 1}\n```'), unfenced("Use ```x```.")
    ('{"a": 1}', 'Use ```x```.')
    """
    found = _fence.fullmatch(text)
    return found[2].strip() if found else text


@lru_cache(maxsize=8)
def _readings(labels: tuple[str, ...]) -> list[_Reading]:
    """Return, from the strictest to the loosest, what is compared and the label that has it.

    The label is None where two have it.
    """
    readings: list[_Reading] = []
    for key in (str.strip, undressed, folded):
        label_of: dict[str, str | None] = {}
        for label in labels:
            label_of[key(label)] = None if key(label) in label_of else label
        label_of.pop("", None)
        readings.append((key, label_of))
    return readings
