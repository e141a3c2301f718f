"""A label is read out of its dress, and out of nothing else."""

import pytest

from distillery.task_types.labels import read_label

LABELS = ("refund", "repair", "card arrival", "caf\u00e9", "json")


@pytest.mark.parametrize(
    "text",
    [
        "refund",
        " refund\n",
        "Refund",
        "REFUND",
        "refund.",
        "refund!",
        "refund,",
        "refund\u3002",
        "refund\uff0e",
        "refund\u00a0",
        "\u200brefund\u200b",
        "\ufeffrefund",
        "re\u00adfund",
        "\u2068refund\u2069",
        "**refund**",
        "*Refund*.",
        "__refund__",
        "`refund`",
        '"refund"',
        "'refund'",
        "\u201cRefund\u201d.",
        "\u300crefund\u300d",
        "\u00abrefund\u00bb",
        "[refund]",
        "(refund)",
        "\uff52\uff45\uff46\uff55\uff4e\uff44",
        "```\nrefund\n```",
        "```text\nrefund\n```",
        "Label: refund",
        "**Label:** refund",
        "label = 'Refund'.",
        "The answer is: refund",
        "Final answer\uff1a refund",
        '"label": "refund"',
        "- **Category**: refund".removeprefix("- "),
    ],
)
def test_dress_comes_off(text: str) -> None:
    assert read_label(text, LABELS) == "refund"


@pytest.mark.parametrize(
    "text",
    [
        "",
        ".",
        "refunds",
        "refundrepair",
        "refund?",
        "no refund",
        "not: refund",
        "refund, repair",
        "refund or repair",
        "refund/repair",
        "refund\nrepair",
        "refund refund",
        "refund please",
        "I would say refund.",
        "The label is refund",
        "Label:",
        "Labels: refund",
        "Label: refund. The customer wants money.",
        "Label: Label: refund",
        "repair: refund",
        "re fund",
        "card_arrival",
        "cafe",
        "{refund}",
        "<refund>",
        "~refund~",
        "#refund",
        "-refund",
        "1. refund",
        "refund 100%",
        "<think>refund</think>",
        "Use ```refund```",
    ],
)
def test_what_is_more_or_less_than_a_label_is_none(text: str) -> None:
    assert read_label(text, LABELS) is None


@pytest.mark.parametrize(
    ("text", "labels", "label"),
    [
        ("C.", ("c", "C"), "C"),
        ("c", ("c", "C"), "c"),
        ("**Yes**", ("yes", "YES"), None),
        ("-1.", ("-1", "0", "1"), "-1"),
        ("<5", ("5", "<5"), "<5"),
        (".5", ("5", "10"), None),
        ("\u22641", ("1", "2"), None),
        ("c#", ("c", "c#", "c++"), "c#"),
        ("C++.", ("c", "c#", "c++"), "c++"),
        ("spam!", ("spam", "spam!"), "spam!"),
        ("Spam!", ("spam", "spam!"), None),
        ("_other", ("other", "_other"), "_other"),
        ("m2", ("m\u00b2", "m2"), "m2"),
        ("Label: A", ("Label: A", "A"), "Label: A"),
        ("A", ("Label: A", "A"), "A"),
        ("STRASSE", ("stra\u00dfe", "weg"), "stra\u00dfe"),
        ("cafe\u0301", LABELS, "caf\u00e9"),
        ("card\u00a0 Arrival", LABELS, "card arrival"),
        ("```json```", LABELS, "json"),
        ("1", ("1", "1."), "1"),
    ],
)
def test_a_label_that_differs_in_dress_alone_is_another_label(
    text: str, labels: tuple[str, ...], label: str | None
) -> None:
    assert read_label(text, labels) == label


@pytest.mark.parametrize("part", ["*", " ", "refund ", "the ", "label ", "`", "\u200b", "```\n"])
def test_a_long_text_is_read_to_its_end(part: str) -> None:
    assert read_label(part * 200_000 + "x", LABELS) is None
