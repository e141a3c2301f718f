# ruff: noqa: RUF001
"""ROUGE, BLEU, chrF and length are their libraries' own numbers, and right in every script."""

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distillery.task_types import ScoredRow, task_type
from distillery.task_types.overlap import texts
from schemas.evaluation import EvaluationSpec
from schemas.task import TaskKind, TaskSpec
from tests.fixtures_shared_data import shared_rows
from tests.fixtures_statistics import set_interval

KIND = task_type(TaskSpec(name="t", type=TaskKind.SUMMARIZATION))
ROUGE = {"ROUGE-L": "rougeL", "ROUGE-1": "rouge1", "ROUGE-2": "rouge2"}
Pair = tuple[str, tuple[str, ...]]

# One alphabet per script, each with the marks and the full stop of a language written in it.
SCRIPTS = {
    "Latin": "abcdefghijklmnopqrstuvwxyz ABC.,'éèñüß",
    "Greek": "αβγδεζηθικλμνξοπρςστυφχψω ά.·",
    "Cyrillic": "абвгдежзийклмнопрстуфхцчшщъыьэюяёіїў .,«»",
    "Arabic": "ابتثجحخدذرزسشصضطظعغفقكلمنهوي ،؟َُِّ",
    "Hebrew": "אבגדהוזחטיכלמנסעפצקרשת .,־",
    "Devanagari": "अआइईकखगघचछजटठडतथदनपफबभमयरलवशषसह ािीुूेैोौं्।",
    "Bengali": "অআইকখগঘচছজটডতথদনপফবভমযরলশষসহ াি্।",
    "Tamil": "அஆஇகஙசஞடணதநபமயரலவ ாிு்.",
    "Georgian": "აბგდევზთიკლმნოპჟრსტუფქღყშჩცძწჭხჯჰ .,",
    "Ethiopic": "ሀለሐመሠረሰሸቀበተቸኀነኘአከ ፡።",
    "Hangul": "가나다라마바사아자차카타파하한국어 .,",
    "Han": "的一是不了人我在有他这中大来上国个到说们，。",
    "Kana": "あいうえおかきくけこアイウエオカキクケコー、。",
    "Thai": "กขคงจฉชซญดตถทธนบปผฝพฟภมยรลวศสหอะาำิีึืุูเแโใไ่้",
    "Lao": "ກຂຄງຈສຊຍດຕຖທນບປຜຝພຟມຢຣລວຫອຮະາິີເແ່້",
    "Khmer": "កខគឃងចឆជឈញដឋឌណតថទធនបផពភមយរលវសហអាិីុូ្។",
    "Myanmar": "ကခဂဃငစဆဇညတထဒဓနပဖဗဘမယရလဝသဟအာိီုူေ်္။",
    "Tibetan": "ཀཁགངཅཆཇཉཏཐདནཔཕབམཙཚཛཝཞཟའཡརལཤསཧཨ་།",
    "emoji": "👍🎉🙏❤️😀",
}


def _of_the_set(metric: str, pairs: Sequence[Pair]) -> float:
    rows = [ScoredRow(response, references) for response, references in pairs]
    found = set_interval(KIND.of_the_set[metric], rows, EvaluationSpec(bootstrap_samples=100))
    assert found is not None
    return found.estimate


def _streams(pairs: Sequence[Pair]) -> list[list[str | None]]:
    """Return references as sacrebleu takes them: the first of each row, the second of each, ..."""
    most = max(len(references) for _, references in pairs)
    return [[(*rights, *[None] * most)[n] for _, rights in pairs] for n in range(most)]


def _summaries() -> list[Pair]:
    """Return the first reference of each row as a summary, beside the others."""
    return [
        (row["target"][0], tuple(row["target"][1:]))
        for row in shared_rows("sum-scitldr/test.jsonl")
    ]


def _leads() -> list[Pair]:
    """Return the first two sentences of each document as its summary."""
    return [
        (" ".join(row["source"][:2]), tuple(row["target"]))
        for row in shared_rows("sum-scitldr/test.jsonl")
    ]


def _turns() -> list[Pair]:
    """Return each turn of an agent beside the one before it."""
    pairs: list[Pair] = []
    for row in shared_rows("chat-star/test.jsonl"):
        said = [turn["content"] for turn in row["messages"] if turn["role"] == "assistant"]
        pairs += [(turn, (before,)) for before, turn in itertools.pairwise(said)]
    return pairs


REAL = pytest.mark.parametrize("pairs_of", [_summaries, _leads, _turns])


@REAL
def test_rouge_of_real_text_is_that_of_rouge_score(pairs_of: Any) -> None:
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(list(ROUGE.values()))
    pairs: list[Pair] = [pair for pair in pairs_of() if f"{pair}".isascii()]
    assert len(pairs) > 300
    for response, references in pairs:
        theirs = scorer.score_multi(references, response)
        ours = KIND.score(response, references)
        if ours["ROUGE-2"] is None:
            assert all(len(text.split()) == 1 for text in references)
            ours["ROUGE-2"] = 0.0
        assert ours == {name: theirs[key].fmeasure for name, key in ROUGE.items()}


@given(
    st.lists(st.sampled_from("abcd"), max_size=80), st.lists(st.sampled_from("abcd"), max_size=80)
)
def test_rouge_l_of_repeated_words_is_that_of_rouge_score(one: list[str], other: list[str]) -> None:
    from rouge_score.rouge_scorer import RougeScorer

    response, reference = " ".join(one), " ".join(["a", *other])
    theirs = RougeScorer(["rougeL"]).score(reference, response)["rougeL"].fmeasure
    assert KIND.score(response, [reference])["ROUGE-L"] == theirs


@REAL
@pytest.mark.parametrize("metric", ["BLEU", "chrF"])
def test_bleu_and_chrf_of_real_text_are_those_of_sacrebleu(pairs_of: Any, metric: str) -> None:
    import sacrebleu

    pairs: list[Pair] = pairs_of()
    score = {"BLEU": sacrebleu.corpus_bleu, "chrF": sacrebleu.corpus_chrf}[metric]
    theirs = score([response for response, _ in pairs], _streams(pairs)).score / 100
    assert _of_the_set(metric, pairs) == pytest.approx(theirs, abs=1e-9)
    assert 0.02 < theirs < 0.5


@pytest.mark.parametrize(
    ("tokenizer", "pairs"),
    [
        (
            "zh",
            [
                ("今天天气很好，我们去公园。", ("今天天气不错，我们去公园吧。", "我们今天去公园")),
                ("模型在 GPU 上训练了3.5小时。", ("模型在 GPU 上训练了4小时。",)),
            ],
        ),
        ("char", [("東京へ行きたいです。", ("東京に行きたいと思います。",))]),
        ("char", [("สวัสดีครับ ยินดีที่ได้รู้จัก", ("สวัสดีค่ะ ยินดีที่ได้พบ",))]),
        ("13a", [("Привет, как дела сегодня?", ("Привет, как ваши дела сегодня?",))]),
        ("13a", [("고객님, 안녕하세요 저는 상담원입니다.", ("안녕하세요 저는 상담원입니다.",))]),
    ],
)
def test_bleu_is_that_of_sacrebleu_with_a_tokenizer_for_the_script(
    tokenizer: str, pairs: list[Pair]
) -> None:
    import sacrebleu

    responses = [response for response, _ in pairs]
    theirs = sacrebleu.corpus_bleu(responses, _streams(pairs), tokenize=tokenizer).score / 100
    assert _of_the_set("BLEU", pairs) == pytest.approx(theirs, abs=1e-9)
    assert theirs > 0.1


def test_bleu_of_six_words_by_hand() -> None:
    pair = ("the cat sat on the mat", ("the cat sat on a mat",))
    by_hand = (5 / 6 * 3 / 5 * 2 / 4 * 1 / 3) ** (1 / 4)
    assert _of_the_set("BLEU", [pair]) == pytest.approx(by_hand, abs=1e-12)


def test_bleu_of_a_short_response_pays_for_its_brevity() -> None:
    pair = ("the cat sat on", ("the cat sat on the mat",))
    assert _of_the_set("BLEU", [pair]) == pytest.approx(math.exp(1 - 6 / 4), abs=1e-12)


def test_bleu_of_replies_of_one_to_three_words_is_that_of_the_n_grams_that_they_have() -> None:
    alike = [("Yes.", ("Yes.",)), ("Thank you", ("Thank you",)), ("OK", ("OK",))]
    assert _of_the_set("BLEU", alike) == pytest.approx(1.0)
    # 4 of 5 words; the one pair of words and the one with a full stop.
    assert _of_the_set("BLEU", [*alike[:2], ("OK", ("No",))]) == pytest.approx(
        (4 / 5 * 2 / 2) ** (1 / 2)
    )
    assert _of_the_set("BLEU", [("Yes", ("No",))]) == 0.0


def test_chrf_of_two_characters_by_hand() -> None:
    # One of two characters, none of one pair: precision and recall are 1/4 on average.
    assert _of_the_set("chrF", [("ab", ("ac",))]) == pytest.approx(0.25)


def test_length_is_that_of_the_reference_closest_in_length() -> None:
    long, short = "one two three four five six", "one two"
    assert _of_the_set("length ratio", [("a b c", (long, short))]) == pytest.approx(3 / 2)
    assert _of_the_set("length ratio", [("a b c d e", (short, long))]) == pytest.approx(5 / 6)
    # Of two equally close the shorter one, as in BLEU.
    assert _of_the_set("length ratio", [("a b c d", (long, short))]) == pytest.approx(4 / 2)
    # Over a set: words over words, so that no short reference outweighs the rest.
    pairs: list[Pair] = [("a a a", ("b",)), ("a a a", ("a a a a a",))]
    assert _of_the_set("length ratio", pairs) == pytest.approx(6 / 6)
    assert _of_the_set("length ratio", [("我在家", ("我在家里了吗",))]) == pytest.approx(3 / 6)


@pytest.mark.parametrize("script", SCRIPTS)
@given(data=st.data())
def test_a_text_has_everything_in_common_with_itself_in_every_script(
    script: str, data: st.DataObject
) -> None:
    text = data.draw(st.text(SCRIPTS[script], min_size=1, max_size=40).filter(str.strip))
    scores = KIND.score(text, ["something else", text])
    assert scores.pop("ROUGE-2") in (1.0, 0.0)  # 0: one word has no pairs
    assert set(scores.values()) == {1.0}
    for metric in KIND.of_the_set:
        assert _of_the_set(metric, [(text, (text,))]) == pytest.approx(1.0), metric


@pytest.mark.parametrize("script", SCRIPTS)
@given(data=st.data())
def test_scores_lie_between_nothing_and_everything_and_no_worse_for_one_more_reference(
    script: str, data: st.DataObject
) -> None:
    one, two, three = (data.draw(st.text(SCRIPTS[script], max_size=30)) for _ in range(3))
    if not two.strip() or not three.strip():
        return
    fewer, more = KIND.score(one, [two]), KIND.score(one, [two, three])
    for name, score in more.items():
        assert score is None or 0.0 <= score <= 1.0
        assert (fewer[name] or 0.0) <= (score or 0.0)
    for metric in ("BLEU", "chrF"):
        assert -1e-12 <= _of_the_set(metric, [(one, (two, three))]) <= 1 + 1e-12


def test_one_word_has_no_pairs_to_be_scored_by() -> None:
    assert KIND.score("Yes.", ["yes"]) == {"ROUGE-L": 1.0, "ROUGE-1": 1.0, "ROUGE-2": None}
    assert KIND.score("No", ["yes", "yes it is"])["ROUGE-2"] == 0.0


def test_thoughts_are_not_scored_and_no_response_is_unscored() -> None:
    assert KIND.score("<think>the dog</think> the cat", ["the cat"])["ROUGE-L"] == 1.0
    assert KIND.score("<think>the cat", ["the cat"])["ROUGE-L"] == 0.0
    assert set(KIND.score("", ["the cat"]).values()) == {0.0}
    assert set(KIND.score(None, ["the cat"]).values()) == {None}
    assert set(KIND.score("the cat", []).values()) == {None}
    thought, bare = ("<think>a dog</think>the cat", ("the cat",)), ("the cat", ("the cat",))
    for metric in KIND.of_the_set:
        assert _of_the_set(metric, [thought]) == _of_the_set(metric, [bare]), metric
        assert _of_the_set(metric, [("<think>the cat", ("the cat",))]) == 0.0, metric


def test_a_response_that_was_cut_is_scored_as_it_is() -> None:
    cut = KIND.score("the cat sat", ["the cat sat on the mat"], truncated=True)
    assert cut["ROUGE-L"] == pytest.approx(6 / 9)
    rows = [ScoredRow("the cat sat", ("the cat sat",), truncated=True)]
    assert KIND.of_the_set["BLEU"].statistics(rows)[0, 0] == 3


@pytest.mark.slow
def test_intervals_of_bleu_and_chrf_are_those_of_resampled_rows() -> None:
    import sacrebleu

    draw = np.random.default_rng(3)
    known = np.array(list("abcdefghij"))
    pairs: list[Pair] = []
    for _ in range(60):
        right = draw.choice(known, 8)
        said = np.where(draw.random(8) < draw.random(), right, "x")
        pairs.append((" ".join(said), (" ".join(right),)))
    rows = [ScoredRow(response, references) for response, references in pairs]
    for metric, score in (("BLEU", sacrebleu.corpus_bleu), ("chrF", sacrebleu.corpus_chrf)):
        values = []
        for _ in range(600):
            some = [pairs[n] for n in draw.integers(0, 60, 60)]
            values.append(score([text for text, _ in some], _streams(some)).score / 100)
        found = set_interval(KIND.of_the_set[metric], rows, EvaluationSpec())
        assert found and (found.low, found.high) == pytest.approx(
            tuple(np.quantile(values, [0.025, 0.975])), abs=0.02
        )


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, []),
        ("", [""]),
        ("one", ["one"]),
        (["one", "two"], ["one", "two"]),
        ([], []),
        ('["one", "two"]', ["one", "two"]),
        (' ["one"]', ["one"]),
        ("[1] shows that", ["[1] shows that"]),
        ("[1, 2]", ["[1, 2]"]),
        ("[" * 100_000, ["[" * 100_000]),
    ],
)
def test_a_column_holds_a_text_or_several(value: Any, expected: list[str]) -> None:
    assert texts(value) == expected


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (3, "3 is int, not a text or a list of texts"),
        (True, "True is bool, not a text or a list of texts"),
        ({"summary": "x"}, "{'summary': 'x'} is dict, not a text or a list of texts"),
        (["x", None], "text 1 of the list is None, not a text"),
        ([["x"]], "text 0 of the list is ['x'], not a text"),
    ],
)
def test_references_of_another_kind_say_what_they_are(value: Any, said: str) -> None:
    with pytest.raises(ValueError) as caught:
        KIND.references(value)
    assert str(caught.value) == said


def test_empty_references_are_none() -> None:
    assert KIND.references(["", " ", "a summary"]) == ("a summary",)
    assert KIND.references([""]) == KIND.references("\n") == KIND.references(None) == ()
