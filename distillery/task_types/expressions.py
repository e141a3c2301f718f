"""The value of a mathematical expression, and when two are equal: math-verify judges."""

import itertools
import logging
import math
import re
import sys
from collections.abc import Callable
from functools import lru_cache
from typing import Any

from distillery.task_types.numbers import equal_numbers, only_number

# The library bounds its work by signals, which only a main thread has: stages run in others. So
# its calls are counted, and what could take long in one call is not given to it.
_MAX_CALLS = 3_000_000
"""About two seconds. Answers as textbooks have them need a few tenths."""

_MAX_CHARS = 120
_MAX_DEPTH = 8
_MAX_POWER = 100
_COMMAND = (
    r"frac|sqrt|pi|infty|pm|cdot|times|div|cup|cap|in|leq?|geq?|lt|gt|neq?|emptyset|mathbb"
    r"|(?:arc)?(?:sin|cos|tan)|cot|sec|csc|log|ln|exp|alpha|beta|gamma|delta|epsilon|theta|lambda|mu"
    r"|phi|omega|sigma|tau|rho|(?:begin|end)\{[pb]?matrix\}"
)
_function = re.compile("(?:arc)?(?:sin|cos|tan)|cot|sec|csc|log|ln|exp|sqrt|pi")

_TEXT = r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mbox)\s*\{\s*([^{}]*?)\s*\}"
_REWRITTEN = (
    (re.compile(rf"{_TEXT}(?=\^)"), r" \1"),
    (re.compile(_TEXT), r" \1 "),
    (re.compile(r"\\(?:left|right|displaystyle|bigl?|bigr|Bigl?|Bigr)(?![a-zA-Z])\.?"), ""),
    (re.compile(r"(?<=\d)(?:\{,\}|\\[,!:;]|,\\!)(?=\d{3})"), ","),
    (re.compile(r"(?<!\\)\\[,;:! ]|\\q?quad(?![a-zA-Z])|~"), " "),
    (re.compile(r"\\[dtc]frac(?![a-zA-Z])"), r"\\frac"),
    (re.compile(r"\^\s*(?:\{\s*\\circ\s*\}|\\circ(?![a-zA-Z]))"), "\u00b0"),
    (re.compile(r"[\u2212\ufe63\uff0d]"), "-"),
    (re.compile(r"\u00d7"), r"\\times "),
    (re.compile(r"[\u00b7\u22c5]"), r"\\cdot "),
    (re.compile(r"\u00f7"), "/"),
    (re.compile(r"\u221a\s*(?:\(([^()]*)\)|(\w+))"), r"\\sqrt{\1\2}"),
    (re.compile(r"\u03c0"), r"\\pi "),
    (re.compile(r"\u221e"), r"\\infty "),
    (re.compile(r"\u2264"), r"\\le "),
    (re.compile(r"\u2265"), r"\\ge "),
    (re.compile(r"\u00b2"), "^2"),
    (re.compile(r"\u00b3"), "^3"),
)
_command = re.compile(r"\\[a-zA-Z]+")
_known_command = re.compile(rf"\\(?:{_COMMAND})(?![a-zA-Z])|\\[{{}}\\]")
_word = re.compile(r"[^\W\d_]{2,}")
_exponent = re.compile(
    r"\^\s*(\{(?:[^{}^]|\{[^{}^]*\})*\}|\([^()^]*\)|-?\d+|\\?[a-zA-Z]+)(?!\s*\^)"
)
_unit_after = re.compile(rf"(?<=\S)\s*{_TEXT}(?:\^\{{?[23]\}}?)?$")
_words_after = re.compile(r"(?<=[\d)}\]])(?:\s+[^\W\d_]{2,}(?:\^[23])?)+$")
_joined = re.compile(r"\s*,?\s+(?:or|and)\s+")
_relation = re.compile(r"[<>]|\\(?:le|ge|lt|gt|ne)")
_name = re.compile(
    r"\s*(?:[^\W\d]+'*(?:_\{?\w+\}?)?(?:\([\w, ]{1,9}\))?|\\[a-zA-Z]+(?:\s+[A-Z]+)?)\s*"
)


def read_value(text: str) -> str | None:
    r"""Return the value that ``text`` is as a text, or None when it is words.

    A number as `only_number` has it; else an expression, whose value is a number where that is
    rational. Of an equation with a name on its left the right side counts.

    >>> [read_value(text) for text in (r"$\$18.00$", r"x = 3 \times 4", r"2\sqrt{3}", "(1, 2]")]
    ['18', '12', '2\\sqrt{3}', '(1,2]']
    >>> read_value("no answer"), read_value("9^9^9^9")
    (None, None)
    """
    if len(text) > 4 * _MAX_CHARS:
        return None
    text = _undressed(text)
    if number := only_number(_plain(text)):
        return number
    text = _words_after.sub("", _plain(_unit_after.sub("", text)))
    text = _joined.sub(", ", text).replace(r"\in ", "=")
    *names, right = text.split("=")
    if names and not _relation.search(text) and all(map(_is_name_or_number, names)):
        return read_value(right)
    latex = re.sub(r"(\\[a-zA-Z]+)?\s+", lambda m: f"{m[1]} " if m[1] else "", text)
    value = _expression(latex)
    if value is None:
        return None
    return str(value) if getattr(value, "is_Rational", False) else latex


@lru_cache(maxsize=4096)
def equal_values(value: str, other: str) -> bool:
    r"""Return whether two values of `read_value` are equal, exactly: 0.333 is not 1/3.

    >>> equal_values(r"\sqrt{12}", r"2\sqrt{3}"), equal_values("(1,2)", "(2,1)")
    (True, False)
    >>> equal_values("1/3", "0.333"), equal_values("1,2", r"\{2,1\}")
    (False, True)
    """
    if value == other:
        return True
    if (equal := equal_numbers(value, other)) is not None:
        return equal
    one, two = _expression(value), _expression(other)
    if one is None or two is None:
        return False
    if _shape(one) != _shape(two):
        return False
    return bool(_within_bounds(_verified, one, two))


def _shape(value: Any) -> str:
    """Return what a value has to be like another to be equal to it.

    The library would take a pair (1, 2) for the set {1, 2}, and an equation for its right side.
    """
    if getattr(value, "is_Relational", False):
        return "relation"
    return "set" if "FiniteSet" in type(value).__name__ else "value"


def _undressed(text: str) -> str:
    """Return ``text`` without delimiters of formulas, emphasis and a full stop around it."""
    return (
        re.sub(r"\\\$|\$|\\[()\[\]]|\*\*|`", "", text).strip().strip("*_").rstrip(".,;: ").strip()
    )


def _plain(text: str) -> str:
    """Return ``text`` with one way of writing for each thing that has several."""
    for pattern, plain in _REWRITTEN:
        text = pattern.sub(plain, text)
    return text.strip()


def _is_name_or_number(side: str) -> bool:
    r"""Return whether the left of "=" is not part of the answer: "x" or "3 + 4", not "2x".

    >>> [_is_name_or_number(side) for side in ("x ", "f(x)", r"\angle ABC", "3 + 4", "2x", "3, y")]
    [True, True, True, True, False, False]
    """
    return bool(_name.fullmatch(side) or not re.search(r"[^\W\d_]|,", _command.sub("", side)))


@lru_cache(maxsize=4096)
def _expression(latex: str) -> Any:
    """Return what ``latex`` says as a SymPy object, exactly; None when it is none, or too much."""
    return _within_bounds(_parsed, latex) if _is_bounded(latex) else None


def _parsed(latex: str) -> Any:
    import sympy
    from math_verify import LatexExtractionConfig, parse

    config = [LatexExtractionConfig()]
    found = parse(f"${latex}$", config, fallback_mode="no_fallback", parsing_timeout=None)
    if not found:
        return None
    value = found[0]
    functions = value.atoms(sympy.Function)
    if any(inner.atoms(sympy.Function) != {inner} for inner in functions):
        return None  # numbers with more digits than memory has room for: tan(exp(10^9))
    value = value.xreplace({x: sympy.Rational(str(x)) for x in value.atoms(sympy.Float)})
    if isinstance(value, sympy.Expr) and value.doit().is_Rational:
        value = value.doit()
    return None if value.has(sympy.nan, sympy.zoo) else value


def _verified(one: Any, two: Any) -> bool:
    from math_verify import verify

    return bool(verify(one, two, timeout_seconds=None))


class _TooMuch(BaseException):
    """More work than an answer is worth. Not an Exception: the libraries would go on from one."""


def _within_bounds(work: Callable[..., Any], *given: Any) -> Any:
    """Return what ``work`` returns; None when it fails, or takes more than `_MAX_CALLS` calls.

    They are counted, not seconds, so that a busy machine judges as an idle one does.
    """
    num_calls = 0

    def count(*_: Any) -> None:
        nonlocal num_calls
        num_calls += 1
        if num_calls > _MAX_CALLS:
            raise _TooMuch

    import math_verify.parser  # noqa: F401  # half a second, which is not to count

    for name in ("parser", "grader"):  # they warn that time is not bounded by them
        logging.getLogger(f"math_verify.{name}").setLevel(logging.ERROR)
    before = sys.getprofile()
    sys.setprofile(count)
    try:
        return work(*given)
    except (_TooMuch, Exception):  # whatever a library makes of odd input, it has no value
        return None
    finally:
        sys.setprofile(before)


def _is_bounded(latex: str) -> bool:
    """Return whether ``latex`` is an expression, and evaluating it cannot take long.

    >>> [_is_bounded(latex) for latex in ("2^{10}", "x^2+1", "9^9^9", "(9^{99})^{99}", "9!", "ab")]
    [True, True, False, False, False, False]
    """
    if not 0 < len(latex) <= _MAX_CHARS or re.search(r"\d[eE]|!", latex):
        return False
    rest = _known_command.sub(" ", latex)
    if "\\" in rest or any(not _function.fullmatch(word) for word in _word.findall(rest)):
        return False
    depths = itertools.accumulate(1 if c in "{([" else -(c in "})]") for c in latex)
    exponents = _exponent.findall(latex)
    powers = [int(digits) for exponent in exponents for digits in re.findall(r"\d+", exponent)]
    return (
        max(depths) <= _MAX_DEPTH
        and len(exponents) == latex.count("^")
        and math.prod(filter(None, powers)) <= _MAX_POWER
    )
