"""Thoughts are told apart from the response, and nothing else is."""

import pytest

from distillery.task_types.thoughts import split_thoughts


@pytest.mark.parametrize(
    ("text", "thoughts", "response"),
    [
        ("<think>why</think>\n\nrefund", "why", "refund"),
        ("<think>\n\n</think>\n\nrefund", "", "refund"),
        ("\n</think>\n\nrefund", "", "refund"),
        ("why\n</think>\n\nrefund", "why", "refund"),
        (" \n<think>a</think><think>b</think>\nrefund\n", "a\n\nb", "refund\n"),
        ("<thinking>why</thinking>refund", "why", "refund"),
        ("[THINK]why[/THINK]refund", "why", "refund"),
        ("<|channel|>final<|message|>refund", "", "refund"),
        (
            "<|channel|>analysis<|message|>why<|end|><|start|>assistant"
            "<|channel|>final<|message|>refund",
            "why",
            "refund",
        ),
        (
            "<think>the mark [/THINK] is another's</think>refund",
            "the mark [/THINK] is another's",
            "refund",
        ),
    ],
)
def test_thoughts_come_off(text: str, thoughts: str, response: str) -> None:
    assert split_thoughts(text) == (thoughts, response)


@pytest.mark.parametrize("text", ["<think>I was cut", "<think>", "<think>a</think><think>I was"])
def test_a_thought_that_was_cut_leaves_no_response(text: str) -> None:
    assert split_thoughts(text)[1] == ""


@pytest.mark.parametrize(
    "text",
    ["refund", " refund\n", "", "Write <think>x</think> first.", "<b>I think</b>", "think: refund"],
)
def test_a_response_without_thoughts_stays_as_it_is(text: str) -> None:
    assert split_thoughts(text) == ("", text)


def test_many_thoughts_and_long_gaps_are_read_in_linear_time() -> None:
    assert split_thoughts("<think></think>\n" * 200_000 + "refund") == ("", "refund")
    assert split_thoughts(" " * 1_000_000 + "</think>") == ("", "")
