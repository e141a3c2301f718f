"""What a reasoning model thinks aloud, told apart from what it responds."""

import re

THOUGHT_MARKS = {
    "<think>": "</think>",
    "<thinking>": "</thinking>",
    "<thought>": "</thought>",
    "<seed:think>": "</seed:think>",
    "[THINK]": "[/THINK]",
    "<|START_THINKING|>": "<|END_THINKING|>",
    "<|channel>thought": "<channel|>",
    "<|channel|>analysis<|message|>": "<|channel|>final<|message|>",
}
"""How published models begin and end their thoughts: Qwen3, DeepSeek-R1, SmolLM3; Magistral;
Seed-OSS; Command A; Gemma 4; gpt-oss, whose final channel follows the others."""

_opening = re.compile("|".join(map(re.escape, THOUGHT_MARKS)))
_closing = re.compile("|".join(map(re.escape, THOUGHT_MARKS.values())))
_gap = re.compile(r"\s*")
_END_OF_CHANNEL = "<|end|><|start|>assistant"


def split_thoughts(text: str) -> tuple[str, str]:
    r"""Return the thoughts in ``text`` and the response after them.

    Thoughts come first, between two marks; the opening one may be missing, where the chat template
    has already written it. A thought that was cut before its closing mark leaves an empty
    response. Text without thoughts is returned as it is, as are marks further on in a response:
    there they are quoted.

    >>> split_thoughts("<think>\nMoney back?\n</think>\n\nrefund")
    ('Money back?', 'refund')
    >>> split_thoughts("Money back?</think>refund"), split_thoughts("<think>Money")
    (('Money back?', 'refund'), ('Money', ''))
    >>> split_thoughts(" refund"), split_thoughts("Write <think> first.")
    (('', ' refund'), ('', 'Write <think> first.'))
    """
    thoughts: list[str] = []
    position = 0  # where the response begins, as far as is known
    while opened := _opening.match(text, _end_of_gap(text, position)):
        end = text.find(THOUGHT_MARKS[opened.group()], opened.end())
        if end < 0:
            thoughts.append(text[opened.end() :])
            position = len(text)
        else:
            thoughts.append(text[opened.end() : end])
            position = end + len(THOUGHT_MARKS[opened.group()])
    if not position and (closed := _closing.search(text)):
        if _opening.search(text, 0, closed.start()):
            return "", text
        thoughts.append(text[: closed.start()])
        position = closed.end()
    if not position:
        return "", text
    stripped = (thought.strip().removesuffix(_END_OF_CHANNEL).strip() for thought in thoughts)
    return "\n\n".join(filter(None, stripped)), text[position:].lstrip()


def _end_of_gap(text: str, position: int) -> int:
    gap = _gap.match(text, position)
    assert gap is not None
    return gap.end()
