"""Mathematics: a worked solution that ends in a value, compared by that value."""

import re
from decimal import Decimal
from typing import Any

from distillery.task_types.answer_formats import Answer, Violation
from distillery.task_types.base import TaskType
from distillery.task_types.expressions import equal_values, read_value
from distillery.task_types.numbers import first_number, last_number, says_several
from distillery.task_types.overlap import texts
from schemas.filters import DropReason

_marked_line = re.compile(r"^[ \t]*####(?!#)(.*)$", re.MULTILINE)
_heading = re.compile(r"\s*\d+(?:[.):]\s*|\s+(?=[A-Z]))[^\W\d]")
_said = re.compile(
    r"\banswer(?: (?:to|for|of)\b[^.\n:=]{0,80}?)?(?:\*\*)?\s*(?:is\b|=|:)"
    r"[ \t:*]*(?!not\b)\n*(\S.*)",
    re.IGNORECASE,
)
_sentence_end = re.compile(r"(?<=\S)[.!?](?:\s|$)")
# As Pandoc tells mathematics from dollars: no space inside the delimiters, no digit after them.
_formula = re.compile(
    r"(?<!\\)(?:\$\$([^$]{1,200}?)\$\$|\$(?=\S)([^$\n]{1,200}?)(?<=\S)\$(?!\d))"
    r"|\\\((.{1,200}?)\\\)|\\\[(.{1,200}?)\\\]",
    re.DOTALL,
)
_in_expression = re.compile(r"[\u221a\u03c0^]|\\(?!text|mathrm|mbox)[a-z]")
_MAX_BARE_CHARS = 100


class Math(TaskType):
    r"""The student learns the worked solution; what is compared is the value at its end.

    Values are compared exactly: 1/2 is 0.5, but 1/3 is not 0.333. The unit is the question's: an
    answer without it is right, one with another symbol (m for km) is wrong. Percent is such a
    unit, so 50% is 50 and not 0.5. Names of units and currencies are not compared.

    >>> from schemas.task import TaskSpec
    >>> kind = Math(TaskSpec(name="t", type="math"))
    >>> kind.score("9 + 9 = 18, so \\boxed{\\$18.00}.", ["9+9=<<9+9=18>>18\n#### 18"])
    {'accuracy': 1.0}
    >>> kind.read("I do not know.")
    (<DropReason.NO_VALUE: 'no_value'>, "'I do not know.' ends with no number or expression")
    """

    fields = ("question",)

    def instructions(self) -> str:
        """Return the request for a worked solution whose value cannot be mistaken."""
        return (
            "Solve the problem step by step. Then give the answer on a last line of its own, as "
            "#### followed by the number or expression and nothing else."
        )

    def references(self, value: Any) -> tuple[str, ...]:
        """Return the solutions in a value: a text, a number, or a list of texts.

        Raises:
            ValueError: It is something else; the text says what.
        """
        is_number = isinstance(value, int | float | Decimal) and not isinstance(value, bool)
        return tuple(t for t in texts(str(value) if is_number else value) if t.strip())

    def read(self, response: str) -> Answer | Violation:
        """Return the worked solution and its value, or why there is none."""
        found = super().read(response)
        if not isinstance(found, Answer):
            return found
        solution = found.text.strip()
        value = final_value(solution)
        if value is None:
            end = f"...{solution[-60:]}" if len(solution) > 60 else solution
            return DropReason.NO_VALUE, f"{end!r} ends with no number or expression"
        return Answer(solution, value)

    def same(self, answer: Answer, other: Answer) -> bool:
        """Return whether two answers have equal values."""
        return equal_values(answer.value, other.value)


def final_value(solution: str) -> str | None:
    r"""Return the value that a worked solution ends in, or a bare answer is; None without one.

    The last ``\boxed{}`` counts first, then the last line marked by ``####``, then what follows
    "the answer is"; else the formula or the number that comes last.

    >>> final_value("#### 72\nThat was step 3."), final_value(r"So $x = 2\sqrt{3}$ cm.")
    ('72', '2\\sqrt{3}')
    >>> final_value("The answer is 18, as step 2 shows."), final_value("It is 18 or 20.")
    ('18', None)
    """
    if (boxed := _boxed(solution)) is not None:
        return read_value(boxed)
    for line in reversed(_marked_line.findall(solution)):
        if not _heading.match(line) and (value := read_value(line)):
            return value
    for said in reversed(_said.findall(solution)):
        sentence = _sentence_end.split(said, maxsplit=1)[0]
        if (value := _first_value(sentence)) or says_several(sentence):
            return value
    if len(solution) <= _MAX_BARE_CHARS and (value := read_value(solution)):
        return value
    text = _marked_line.sub("", solution)  # what is left of them are headings
    return _last_formula(text) or _last_term(text)


def _boxed(text: str) -> str | None:
    r"""Return what stands in the last ``\boxed{}``; None when there is none, or it is not closed.

    >>> _boxed(r"\boxed{7} or \boxed{\frac{1}{2}}")
    '\\frac{1}{2}'
    """
    start = text.rfind(r"\boxed{")
    if start < 0:
        return None
    start += len(r"\boxed{")
    depth = 1
    for brace in re.finditer(r"[{}]", text[start:]):
        depth += 1 if brace.group() == "{" else -1
        if depth == 0:
            return text[start : start + brace.start()]
    return None


def _first_value(said: str) -> str | None:
    """Return the value that a sentence says first."""
    formula = _formula.match(said)
    found = _content(formula) if formula else said
    return read_value(found) or first_number(said)


def _last_formula(text: str) -> str | None:
    """Return the value of the last formula, unless a number follows it."""
    last = None
    for formula in _formula.finditer(text):
        if re.search(r"[\d=]|\\(?:pi|sqrt|infty)", _content(formula)):
            last = formula
    if last is None or last_number(text[last.end() :]):
        return None
    return read_value(_content(last))


def _last_term(text: str) -> str | None:
    r"""Return the value of the last number, or of the expression in whose midst it stands.

    >>> _last_term("The side is 2√3."), _last_term(r"So 0.\overline{3}."), _last_term("So 18.")
    ('2\\sqrt{3}', None, '18')
    """
    end = max(text.rfind(digit) for digit in "0123456789")
    start = max(text.rfind(space, 0, max(end, 0)) for space in " \n\t") + 1
    word = (text[start:].split(maxsplit=1) or [""])[0]
    return read_value(word) if _in_expression.search(word) else last_number(text)


def _content(formula: re.Match[str]) -> str:
    return next(group for group in formula.groups() if group)
