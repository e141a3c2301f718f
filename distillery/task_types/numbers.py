"""The number that a text answers with."""

import collections
import re
from collections.abc import Iterator
from decimal import MAX_EMAX, MIN_EMIN, Context, Decimal

# Separators of thousands beside comma and point: underscore, apostrophes, narrow and no-break
# spaces. A plain space is none: "in 1999 200 of them".
_NARROW = "_'\u2019\u00a0\u2009\u202f"
_CURRENCY = "$\u00a3\u00a5\u20a0-\u20cf"
_number = re.compile(
    # A minus after a word, a digit or a bracket subtracts; digits in a word ("H2O") are no number.
    rf"(?P<sign>(?<![\w)\]}}%.])[-+\u2212])?[{_CURRENCY}]?"
    rf"(?<!\w)(?P<digits>\d+(?:[.,{_NARROW}]\d+)*|(?<!\.)\.\d+)"
    r"(?:[eE](?P<exponent>[-+]?\d{1,3})(?!\w))?(?:/(?P<divisor>\d+))?"
)
_narrow = re.compile(f"[{_NARROW}]")
_marked_line = re.compile(r"^[ \t]*####(?!#)(.*)$", re.MULTILINE)

# LaTeX and typography, rewritten before numbers are looked for.
_REWRITTEN = (
    (re.compile(r"(?<=\d)(?:\{,\}|\\[,!:;]|,\\!)(?=\d{3})"), ","),
    (re.compile(r"(?<=\d)(?=\\[dt]?frac)"), " "),
    (re.compile(r"\\[dt]?frac\s*\{\s*(\d+)\s*\}\s*\{\s*(\d+)\s*\}"), r"\1/\2"),
    (re.compile(r"(?<=\d)\s*(?:\u00d7|\*|\\times|\\cdot)\s*10\^\{?([-+]?\d{1,3})\}?"), r"e\1"),
    # Exponents and indices are part of a unit or a name: "25 m^2", "x_{1}".
    (re.compile(r"[_^]\{[^{}]*\}|\^[-+]?\d+"), " "),
)
_exact = Context(prec=60, Emax=MAX_EMAX, Emin=MIN_EMIN, traps=[])


def last_number(text: str) -> Decimal | None:
    r"""Return the number that ``text`` answers with, or None when there is none.

    What stands in the last ``\boxed{}``, or after ``####`` on a line of its own (as in GSM8K),
    counts before anything else; otherwise the last number of the text. Signs, currencies, percent
    (50% is 50), exponents and fractions (1/2 is 0.5) are read. A comma with three digits behind
    it separates thousands, with more or fewer it is a decimal comma.

    >>> last_number("It costs -$1,234.50, not 7.5 %."), last_number("none")
    (Decimal('7.5'), None)
    >>> last_number("#### 72\nThat was step 3."), last_number(r"\boxed{1{,}000} in 2 steps")
    (Decimal('72'), Decimal('1000'))
    """
    if (boxed := _boxed(text)) is not None:
        return _last(_numbers(boxed))
    for line in reversed(_marked_line.findall(text)):
        if (number := _number_alone(line)) is not None:
            return number
    return _last(_numbers(text))


def numbers_equal(
    number: Decimal | None, reference: Decimal | None, relative_tolerance: float = 0.0
) -> bool:
    """Return whether both are there and differ by no more than a fraction of ``reference``.

    >>> numbers_equal(Decimal("0.50"), Decimal("0.5")), numbers_equal(Decimal(98), Decimal(100))
    (True, False)
    >>> numbers_equal(Decimal(98), Decimal(100), 0.02), numbers_equal(None, None)
    (True, False)
    """
    if number is None or reference is None:
        return False
    if number == reference:
        return True
    # The shortest decimal of the float: 0.02 is meant, not 0.0200000000000000004.
    tolerance = Decimal(repr(relative_tolerance))
    allowed = _exact.multiply(tolerance, abs(reference))
    return _exact.abs(_exact.subtract(number, reference)) <= allowed


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


def _number_alone(line: str) -> Decimal | None:
    """Return the number that stands alone on a line; None for a heading.

    >>> _number_alone(" $72."), _number_alone(" 2. Adding up")
    (Decimal('72'), None)
    """
    if re.search(r"\w", _number.sub("", _rewritten(line))):
        return None
    return _last(_numbers(line))


def _numbers(text: str) -> Iterator[Decimal]:
    """Yield the numbers in ``text``."""
    for match in _number.finditer(_rewritten(text)):
        yield _value(match)


def _rewritten(text: str) -> str:
    """Return ``text`` with LaTeX's ways of writing numbers replaced by plain ones."""
    text = text.replace("\\$", "$").replace("\\%", "%")
    for pattern, plain in _REWRITTEN:
        text = pattern.sub(plain, text)
    return text


def _value(match: re.Match[str]) -> Decimal:
    """Return the value of a match of ``_number``."""
    plain = _plain(match["digits"]) + (f"e{match['exponent']}" if match["exponent"] else "")
    value = Decimal(plain)
    if match["divisor"]:
        divisor = Decimal(match["divisor"])
        value = _exact.divide(value, divisor) if divisor else divisor
    return value.copy_negate() if match["sign"] in ("-", "\u2212") else value


def _plain(digits: str) -> str:
    """Return digits with separators as a decimal number; the last of them when they are a list.

    >>> [_plain(digits) for digits in ("1,234,567.8", "1.234.567,8", "1'000", "12,34,567", "0,5")]
    ['1234567.8', '1234567.8', '1000', '1234567', '0.5']
    >>> [_plain(digits) for digits in ("1.234", "1,234", "3,14", "1,2,3", "01.05.2024", ".5")]
    ['1.234', '1234', '3.14', '3', '2024', '.5']
    """
    parts = _narrow.split(digits)
    if len(parts) > 1:
        end = re.split("[.,]", parts[-1])[0]
        digits = "".join(parts) if _are_groups([*parts[:-1], end]) else parts[-1]
    if "," in digits and "." in digits:
        decimal = max(",.", key=digits.rfind)
        whole, fraction = digits.rsplit(decimal, 1)
        groups = re.split("[.,]", whole)
        return f"{''.join(groups)}.{fraction}" if _are_groups(groups) else fraction
    separator = "," if "," in digits else "."
    groups = digits.split(separator)
    if _are_groups(groups) and (separator == "," or len(groups) > 2):
        return "".join(groups)
    return ".".join(groups) if len(groups) <= 2 else groups[-1]


def _are_groups(groups: list[str]) -> bool:
    """Return whether digits are grouped by thousands, or as in India by hundreds above those."""
    first, *others = groups
    if not others or not 1 <= len(first) <= 3 or first.startswith("0"):
        return False
    sizes = {len(group) for group in others[:-1]}
    return len(others[-1]) == 3 and sizes in (set(), {3}, {2})


def _last(numbers: Iterator[Decimal]) -> Decimal | None:
    """Return the last of ``numbers``, or None when there is none."""
    found = collections.deque(numbers, maxlen=1)
    return found[0] if found else None
