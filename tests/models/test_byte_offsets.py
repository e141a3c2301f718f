"""Tokens begin at the bytes where they do, however a tokenizer writes its bytes."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distillery.models.byte_offsets import NO_TEXT, TextBytes, common_positions
from distillery.models.chat_format import ChatFormat
from schemas.errors import RecipeError
from tests.fixtures_templates import PUBLISHED, SHAPES, TemplateShape, make_tokenizer

TEXTS = (
    "refund",
    "a card\n\nwas  stolen",
    "naïve 漢字 🙂!",
    "e\u0301 and é",
    "\tindented\n  more ▁ \u00a0end",
    "final",
)
ASKED = [{"role": "user", "content": "where is my card"}]


def sentence_piece(prefix: str = "first", *, byte_fallback: bool = True) -> Any:
    """Return a tokenizer in the manner of Llama 2 and Gemma: ▁ is a space, unknown is bytes."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    pieces = ["<unk>", "<s>", "</s>", "<pad>"]
    pieces += [f"<0x{byte:02X}>" for byte in range(256)] if byte_fallback else []
    pieces += [*list("▁abcdefghijklmnopqrstuvwxyz!ï"), "ca", "rd", "card", "▁card", "▁c", "re"]
    merges = [("c", "a"), ("r", "d"), ("ca", "rd"), ("▁", "card"), ("▁", "c"), ("r", "e")]
    bpe = Tokenizer(
        models.BPE(
            {piece: at for at, piece in enumerate(pieces)},
            merges,
            unk_token="<unk>",
            byte_fallback=byte_fallback,
            fuse_unk=True,
        )
    )
    if prefix == "never":
        bpe.normalizer = normalizers.Replace(" ", "▁")
    else:
        bpe.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=prefix, split=False)
    bpe.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    made = PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
    )
    made.chat_template = SHAPES["instructions"].template
    return made


def bytes_from(text: TextBytes, ids: list[int], starts: list[int], response: str) -> None:
    """Check that every token that begins in the text says what stands there."""
    wanted = response.strip().encode()
    for token, start in zip(ids, starts, strict=True):
        found = text.of(token)
        if start == NO_TEXT or found is None:
            continue
        if start == 0:
            found = found.lstrip()  # it may begin before the text
        assert wanted[start:].startswith(found[: len(wanted) - start]), (token, start)


@pytest.mark.parametrize("response", TEXTS)
@pytest.mark.parametrize("shape", [*SHAPES, *PUBLISHED])
def test_every_byte_level_token_of_every_template_begins_at_its_byte(
    shape: str, response: str
) -> None:
    tokenizer = make_tokenizer({**SHAPES, **PUBLISHED}[shape])
    ids = ChatFormat(tokenizer).row(ASKED, response).response_ids
    text = TextBytes(tokenizer)
    assert text.says(ids, response)
    starts = text.starts(ids, response)
    bytes_from(text, ids, starts, response)
    inside = [start for start in starts if start != NO_TEXT]
    assert inside == sorted(set(inside))
    assert inside[0] == 0
    assert starts[-1] == inside[-1] == len(response.strip().encode())  # where generation ends


@pytest.mark.parametrize("response", TEXTS)
@pytest.mark.parametrize("prefix", ["first", "always", "never"])
def test_sentence_piece_tokens_begin_at_their_bytes(prefix: str, response: str) -> None:
    tokenizer = sentence_piece(prefix)
    ids = tokenizer(response, add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]
    text = TextBytes(tokenizer)
    starts = text.starts(ids, response)
    if "▁" in response:  # which it reads as a space
        assert not text.says(ids, response)
    else:
        assert text.says(ids, response)
        bytes_from(text, ids, starts, response)
    assert starts[-1] == len(response.strip().encode())
    assert 0 in starts


def test_parts_of_a_character_begin_between_its_bytes() -> None:
    tokenizer = sentence_piece("never")
    ids = tokenizer("é", add_special_tokens=False)["input_ids"]
    assert TextBytes(tokenizer).starts([*ids, 2], "é") == [0, 1, 2]
    byte_level = make_tokenizer(SHAPES["chatml"])
    ids = byte_level("é", add_special_tokens=False)["input_ids"]
    assert TextBytes(byte_level).starts(ids, "é") == [0, 1]


def test_a_space_that_a_tokenizer_or_template_adds_is_not_text() -> None:
    tokenizer = sentence_piece("first")
    ids = tokenizer("card card", add_special_tokens=False)["input_ids"]
    assert tokenizer.convert_ids_to_tokens(ids) == ["▁card", "▁card"]
    assert TextBytes(tokenizer).starts([*ids, 2], "card card") == [0, 4, 9]
    shape = SHAPES["instructions"]  # a space before the response
    ids = ChatFormat(make_tokenizer(shape)).row(ASKED, "card").response_ids
    assert TextBytes(make_tokenizer(shape)).starts(ids, "card")[0] in (0, NO_TEXT)


def test_what_a_template_writes_around_the_text_is_not_text() -> None:
    tokenizer = make_tokenizer(PUBLISHED["qwen 3"])
    ids = ChatFormat(tokenizer).row(ASKED, "refund").response_ids
    text = TextBytes(tokenizer)
    starts = text.starts(ids, "refund")
    first = starts.index(0)
    assert tokenizer.decode(ids[:first]) == "<think>\n\n</think>\n\n"
    assert starts[:first] == [NO_TEXT] * first
    after = tokenizer("\n", add_special_tokens=False)["input_ids"]  # as a server's template
    assert text.starts([*ids, *after], "refund") == [*starts, *[NO_TEXT] * len(after)]


def test_a_channel_with_the_name_of_the_response_is_not_the_response() -> None:
    tokenizer = make_tokenizer(PUBLISHED["gpt-oss"])
    ids = ChatFormat(tokenizer).row(ASKED, "final").response_ids
    starts = TextBytes(tokenizer).starts(ids, "final")
    message = tokenizer.convert_tokens_to_ids("<|message|>")
    first = ids.index(message) + 1
    assert starts[:first] == [NO_TEXT] * first
    assert starts[first] == 0


def test_where_a_normaliser_changes_the_text_both_ends_stay_known() -> None:
    tokenizer = make_tokenizer(SHAPES["chatml"], "NFC")
    response = "a card e\u0301 is new"
    ids = tokenizer(response, add_special_tokens=False)["input_ids"]
    ids.append(tokenizer.convert_tokens_to_ids("<|im_end|>"))
    text = TextBytes(tokenizer)
    assert not text.says(ids, response)
    starts = text.starts(ids, response)
    size = len(response.encode())
    assert starts[0] == 0
    assert starts[-1] == size
    written = [text.of(token) or b"" for token in ids]
    for token, start in zip(written, starts, strict=True):
        if token and start != NO_TEXT and token.isascii():
            assert response.encode()[start:].startswith(token)
    # The letter is 2 bytes where the response has 3: nothing begins inside.
    assert not {8, 9} & set(starts)


def test_unknown_characters_hide_no_more_than_themselves() -> None:
    tokenizer = sentence_piece("never", byte_fallback=False)
    ids = tokenizer("card 漢 card", add_special_tokens=False)["input_ids"]
    assert tokenizer.convert_ids_to_tokens(ids) == ["card", "▁", "<unk>", "▁card"]
    assert TextBytes(tokenizer).starts([*ids, 2], "card 漢 card") == [0, 4, 5, 8, 13]


def test_a_text_that_an_end_cuts_in_two_is_not_taken_for_half_of_it() -> None:
    tokenizer = make_tokenizer(SHAPES["chatml"])
    ids = tokenizer("card<|im_end|>card", add_special_tokens=False)["input_ids"]
    assert set(TextBytes(tokenizer).starts(ids, "card<|im_end|>card")) == {NO_TEXT}


def test_a_text_that_is_not_there_has_no_positions() -> None:
    tokenizer = make_tokenizer(SHAPES["chatml"])
    ids = tokenizer("card", add_special_tokens=False)["input_ids"]
    assert set(TextBytes(tokenizer).starts(ids, "xyz")) == {NO_TEXT}
    assert TextBytes(tokenizer).starts([], "xyz") == []


def test_a_tokenizer_that_does_not_say_what_it_writes_is_refused() -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    pieces = {piece: at for at, piece in enumerate(["[UNK]", "a", "na", "##ive", "word"])}
    words = Tokenizer(models.WordPiece(pieces, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.decoder = decoders.WordPiece()
    with pytest.raises(RecipeError, match="cannot be aligned with another's"):
        TextBytes(PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]"))


@settings(max_examples=60, deadline=None)
# "▁" is how SentencePiece writes a space: it gives back another text.
@given(
    st.text(
        st.characters(codec="utf-8", exclude_categories=("Cs", "Cc"), exclude_characters="▁"),
        min_size=1,
    )
)
def test_tokenizers_of_two_kinds_meet_where_the_bytes_do(response: str) -> None:
    if not response.strip():
        return
    both = [make_tokenizer(SHAPES["chatml"]), sentence_piece("first")]
    starts = []
    for tokenizer in both:
        ids = tokenizer(response, add_special_tokens=False)["input_ids"]
        starts.append(TextBytes(tokenizer).starts([*ids, tokenizer.eos_token_id], response))
    pairs = common_positions(*starts)
    # One of them is bytes alone but for a few words, so that hardly a start of the other is missed.
    assert {starts[0][ours] for ours, _ in pairs} == {*starts[0]} & {*starts[1]} - {NO_TEXT}
    assert pairs == sorted(pairs)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from("mtb."), min_size=2, max_size=40))
def test_how_the_teacher_splits_bytes_that_the_student_keeps_together_changes_nothing(
    cuts: list[str],
) -> None:
    """Before each byte is a cut of the student (m), of the teacher (t), of both (b), of none."""
    mine = [0, *(at for at, cut in enumerate(cuts, 1) if cut in "mb")]
    theirs = [0, *(at for at, cut in enumerate(cuts, 1) if cut in "tb")]
    coarse = [at for at in theirs if at in mine]
    pairs = common_positions(mine, theirs)
    assert [(ours, theirs[at]) for ours, at in pairs] == [
        (ours, coarse[at]) for ours, at in common_positions(mine, coarse)
    ]
    assert [mine[ours] for ours, _ in pairs] == [theirs[at] for _, at in pairs] == coarse


def test_a_letter_that_was_added_is_its_own_bytes() -> None:
    shape = TemplateShape("", end="<|end|>", pad="<|pad|>", others=("<|user|>",))
    tokenizer = make_tokenizer.__wrapped__(shape)
    tokenizer.add_tokens(["é"])
    assert TextBytes(tokenizer).of(tokenizer.convert_tokens_to_ids("é")) == "é".encode()
