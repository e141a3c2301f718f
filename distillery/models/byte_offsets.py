"""At which byte of a response each of its tokens begins, whatever the tokenizer.

Two tokenizers cut one text at different places. Bytes are what they have in common: a character
may be several tokens, and decoded strings hide where one ends.
"""

from collections.abc import Callable, Sequence
from itertools import takewhile
from typing import Any

from distillery.models.vocabulary import special_tokens
from distillery.task_types.thoughts import split_thoughts
from schemas.errors import RecipeError

NO_TEXT = -1
"""Of a token that begins nowhere in the text, or where is not known."""

_UNKNOWN = b"\xff"  # no part of any character in UTF-8

# It tells the two ways of writing tokens apart, and all tokenizers for European languages know it.
_PROBE = "a naïve word"


class TextBytes:
    """The bytes that a tokenizer's tokens stand for."""

    def __init__(self, tokenizer: Any) -> None:
        """Find out how ``tokenizer`` writes bytes into its tokens.

        Raises:
            RecipeError: It does neither as byte-level BPE nor as SentencePiece.
        """
        self._tokenizer, self._special = tokenizer, special_tokens(tokenizer)
        self._added = tokenizer.added_tokens_decoder
        self._known: dict[int, bytes | None] = {}
        if (unknown := tokenizer.unk_token_id) not in (tokenizer.eos_token_id, None):
            self._known[unknown] = _UNKNOWN
        ids = tokenizer(_PROBE, add_special_tokens=False)["input_ids"]
        pieces = tokenizer.convert_ids_to_tokens(ids)
        for read in (_byte_level, _sentence_piece):
            if b"".join(map(read, pieces)).strip() == _PROBE.encode():
                self._read: Callable[[str | bytes], bytes] = read
                return
        raise RecipeError(
            f"the tokenizer of {tokenizer.name_or_path!r} cuts {_PROBE!r} into {pieces}, which do "
            "not say which bytes each stands for, so its tokens cannot be aligned with another's. "
            "Choose a model with a byte-level BPE or a SentencePiece tokenizer."
        )

    def of(self, token: int) -> bytes | None:
        """Return the bytes of a token; None where it is a special one, or none at all."""
        if token not in self._known:
            piece = self._tokenizer.convert_ids_to_tokens(token)
            if self._read is _byte_level and token in self._added:
                piece = piece.encode()  # an added token is its text
            is_text = piece is not None and token not in self._special
            self._known[token] = self._read(piece) if is_text else None
        return self._known[token]

    def starts(self, ids: Sequence[int], response: str) -> list[int]:
        """Return at which byte of the text of ``response`` each of ``ids`` begins.

        The text is what is left without thoughts and white space around it. Its first token begins
        at 0 though it may hold white space before the text; the special token after the text, where
        generation ends, at the text's length. All else that a template writes is NO_TEXT, as are
        tokens whose place is not known: where a tokenizer changes the text (a normaliser, an
        unknown character), only what is the same from either end of it is, half of it at least.

        Args:
            ids: What a chat template makes of the response, from the end of the prompt on.
            response: What is said.
        """
        text = _said(response)
        starts, best = [NO_TEXT] * len(ids), self._best(ids, text)
        if not best.num_known or 2 * best.num_known < len(text):
            return starts  # some other text, alike by chance
        places = best.places()
        starts[best.first : best.first + len(places)] = places
        after = best.first + len(places)
        if after < len(ids) and best.reaches_end:
            starts[after] = len(text)
        return starts

    def says(self, ids: Sequence[int], response: str) -> bool:
        """Return whether ``ids`` say the text of ``response`` byte by byte."""
        text = _said(response)
        return self._best(ids, text).num_known == len(text)

    def _best(self, ids: Sequence[int], text: bytes) -> "_Run":
        """Return the tokens that say the most of ``text``.

        The last of several: a channel may have the response's name.
        """
        runs = [_Run(first, tokens, text) for first, tokens in self._runs(ids)]
        return max(reversed(runs), key=lambda run: run.num_known)

    def _runs(self, ids: Sequence[int]) -> list[tuple[int, list[bytes]]]:
        """Return what stands between special tokens, and where it begins."""
        runs: list[tuple[int, list[bytes]]] = [(0, [])]
        for at, token in enumerate(ids):
            found = self.of(token)
            if found is None:
                runs.append((at + 1, []))
            else:
                runs[-1][1].append(found)
        return runs


def common_positions(ours: Sequence[int], theirs: Sequence[int]) -> list[tuple[int, int]]:
    """Return where tokens of both begin at the same byte, as places in ``ours`` and ``theirs``.

    >>> common_positions([0, 2, 5, 9], [NO_TEXT, 0, 5, 7, 9])  # "ab|cde|fghi|" and "abcde|fg|hi|"
    [(0, 1), (2, 2), (3, 4)]
    """
    places = {start: at for at, start in enumerate(theirs) if start != NO_TEXT}
    # Where several begin at one byte, all but the last are empty.
    mine = {start: at for at, start in enumerate(ours) if start in places}
    return [(at, places[start]) for start, at in mine.items()]


class _Run:
    """Tokens between special tokens, and how much of the text they say."""

    def __init__(self, first: int, tokens: list[bytes], text: bytes) -> None:
        self.first, self._tokens, self._text = first, tokens, text
        run = b"".join(tokens)
        self._run = run
        said = _decode(run).rstrip()
        self._end = len(_encode(said))
        if run[: self._end].endswith(text):
            self._begin, self._prefix, self._suffix = self._end - len(text), len(text), 0
            return
        self._begin = self._end - len(_encode(split_thoughts(said)[1].lstrip()))
        body = run[self._begin : self._end]
        self._prefix = _num_same(body, text)
        most = min(len(body), len(text)) - self._prefix
        self._suffix = min(most, _num_same(body[::-1], text[::-1]))

    @property
    def num_known(self) -> int:
        """Return how many bytes of the text it is known to say."""
        return self._prefix + self._suffix

    @property
    def reaches_end(self) -> bool:
        """Return whether what follows it follows the text."""
        return self._suffix > 0 or self._prefix == len(self._text)

    def places(self) -> list[int]:
        """Return at which byte of the text each of its tokens begins."""
        places, at = [], 0
        for token in self._tokens:
            places.append(self._place(at, at + len(token)))
            at += len(token)
        return places

    def _place(self, start: int, stop: int) -> int:
        begin, end, size = self._begin, self._end, len(self._text)
        if start < begin:
            holds_space = stop > begin and not _decode(self._run[start:begin]).strip()
            return 0 if holds_space and self._prefix else NO_TEXT
        if start - begin <= self._prefix and start - begin < size:
            return start - begin
        if end - self._suffix <= start < end:
            return size - (end - start)
        return NO_TEXT


def _said(response: str) -> bytes:
    return split_thoughts(response)[1].strip().encode()


def _num_same(one: bytes, other: bytes) -> int:
    """Return how many bytes from the beginning are the same."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))


def _decode(text: bytes) -> str:
    return text.decode("utf-8", "surrogateescape")


def _encode(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def _byte_level(piece: str | bytes) -> bytes:
    r"""Return the bytes of a byte-level BPE's token, of which each is one letter.

    >>> _byte_level("Ġna"), _byte_level("Ã¯"), _byte_level("\\n")  # the last is an added token
    (b' na', b'\xc3\xaf', b'\\n')
    """
    if isinstance(piece, bytes):
        return piece
    letters = [_BYTES.get(letter) for letter in piece]
    found = [byte for byte in letters if byte is not None]
    return bytes(found) if len(found) == len(letters) else piece.encode()


def _sentence_piece(piece: str | bytes) -> bytes:
    r"""Return the bytes of a SentencePiece token, with its way of writing spaces and single bytes.

    >>> _sentence_piece("▁na"), _sentence_piece("<0xC3>")
    (b' na', b'\xc3')
    """
    if isinstance(piece, bytes):
        return piece
    if len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">"):
        return bytes.fromhex(piece[3:5])
    return piece.replace("▁", " ").encode()


def _letters_of_bytes() -> dict[str, int]:
    """Return the byte of each letter: itself where it can be shown, one from 256 on otherwise.

    Source: `bytes_to_unicode` of GPT-2.
    """
    shown = {*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    hidden = [byte for byte in range(256) if byte not in shown]
    return {chr(byte): byte for byte in shown} | {
        chr(256 + at): byte for at, byte in enumerate(hidden)
    }


_BYTES = _letters_of_bytes()
