"""The number that a text answers with, however people write it."""

import collections
import itertools
import re
import unicodedata
from decimal import Decimal
from fractions import Fraction

# Separators of thousands beside comma, point and a plain space: underscore, apostrophes, narrow
# and no-break spaces.
_NARROW = "_'\u2019\u00a0\u2009\u202f"
_CURRENCY = "$\u00a3\u00a5\u20a0-\u20cf"
# Scripts that put no space between a word and a number: Thai, Lao, Burmese, Khmer, kana, Han; and
# Hangul, where none stands before a counter.
_UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3005-\u30ff\u3400-\u9fff\uac00-\ud7af\uf900-\ufaff"
)
_SPACED = rf"[^\W{_UNSPACED}]"
_number = re.compile(
    # A minus after a word, a digit or a bracket subtracts; digits in a word ("H2O") are no number.
    rf"(?P<sign>(?<!{_SPACED})(?<![)\]}}%.])[-+])?[{_CURRENCY}]?(?<!{_SPACED})(?:"
    r"(?P<ratio>\d{1,9}(?:\s?:\s?\d{1,9})+)(?!\d)"
    r"|(?P<whole>\d{1,3})\x20(?P<top>\d{1,3})/(?P<bottom>\d{1,3})(?![\d/])"
    rf"|(?P<digits>\d{{1,3}}(?:\x20\d{{3}})+(?!\d)(?:[.,]\d+)?|\d+(?:[.,{_NARROW}]\d+)*|(?<!\.)\.\d+)"
    r"(?:[eE](?P<exponent>[-+]?\d{1,3})(?!\w))?(?:/(?P<divisor>\d+)(?!/))?)"
)
_narrow = re.compile(f"[{_NARROW}\x20]")
_MAX_DIGITS = 400

_VULGAR = "\u00bc-\u00be\u2150-\u215e"
# LaTeX and typography, rewritten before numbers are looked for.
_REWRITTEN = (
    (re.compile(r"\\(?=[$%])|\*\*|__"), ""),
    (re.compile(r"[\u2212\ufe63\uff0d]"), "-"),
    (re.compile(r"(?<=\d)(?:\{,\}|\\[,!:;]|,\\!)(?=\d{3})"), ","),
    (re.compile(r"(?<=\d)(?=\\[dt]?frac)"), " "),
    (re.compile(r"\\[dt]?frac\s*\{\s*(\d+)\s*\}\s*\{\s*(\d+)\s*\}"), r"\1/\2"),
    (re.compile(r"(?<=\d)\s*(?:\u00d7|\*|\\times|\\cdot)\s*10\^\{?([-+]?\d{1,3})\}?"), r"e\1"),
    # Exponents and indices of a letter are part of a unit or a name: "25 m^2", "x_{1}".
    (re.compile(r"(?<=[^\W\d_])(?:[_^]\{[^{}]*\}|\^[-+]?\d+)"), " "),
)
_SCALES = {"hundred": 2, "thousand": 3, "million": 6, "billion": 9, "trillion": 12}
_scale = re.compile(rf"[ -]?({'|'.join(_SCALES)})\b", re.IGNORECASE)
# Symbols that say the same nowhere else. "percent" is "%".
_unit = re.compile(
    r"\s*(%|percent|km/h|m/s|[cdmk]?m|kg|m?g|[cm]?l|min|h|s|am|pm)(?![^\W\d])", re.IGNORECASE
)
_plain_value = re.compile(r"(-?\d+(?:[/:]\d+)*)(?: (\S+))?")

_vulgar = re.compile(f"[{_VULGAR}]")

# What may stand around a number without making an expression of it.
_no_dress = re.compile(r"[\\^_{}=<>|+*!\[\]\u221a\u03c0]|[^\W\d_]\(|[-/]\s*$")
_letter = re.compile(rf"[^\W\d_{_UNSPACED}]")
_one_letter = re.compile(rf"(?<![^\W\d_]){_letter.pattern}(?![^\W\d_])")
_glued = re.compile(
    r"(?:st|nd|rd|th|[cdmk]m|m?g|kg|[cm]l|lbs?|oz|ft|in|hrs?|min|sec|mph|kWh?|[GM]B|am|pm)(?![^\W\d_])"
)
_ONE_LETTER = frozenset("aAICFKJLNVWghlmst")
_UNIT = r"(?:hours?|hrs?|h|minutes?|min|years?|feet|foot|ft|pounds?|lbs?|dollars? and)"
# What comes between two numbers that are one answer: "18 or 20", "6 hours 30 minutes".
_half = re.compile(
    rf"\d(?:[^\n.;:,=]{{0,20}}\b(?:or|oder|ou|o)\s+(?:[^\W\d]+\s+){{0,2}}|\s*{_UNIT}\s+"
    r"|[^\s\d]{0,4}(?:\u6216\u8005?|\u307e\u305f\u306f)|\u5c0f[\u65f6\u6642]|\u6642\u9593)$",
    re.IGNORECASE,
)
_several = re.compile(
    rf"\s*(?:(?:[^\W\d_]+\s+)?(?:or|to|and)\s+|{_UNIT}\s+|[-\u2013]\s?)[{_CURRENCY}]?\d"
)
_term = re.compile(r"\s*[-+*/^=\u00d7\u00f7\\]")


def last_number(text: str) -> str | None:
    r"""Return the last number of ``text``, or None when there is none, or a choice of two.

    Signs, currencies, exponents, fractions, mixed numbers, ratios and "million" are read. A comma
    with three digits behind it separates thousands, with more or fewer it is a decimal comma; a
    point with three digits behind it is a decimal point. The number is an integer or a fraction in
    lowest terms, then a percent sign, or the symbol of a unit. A ratio is not a fraction: 3:4 is
    neither 3/4 nor 6:8.

    >>> [last_number(text) for text in ("It costs -$1,234.50, not 7.5 %.", "none", "18 or 20")]
    ['15/2 %', None, None]
    >>> [last_number(text) for text in ("2 1/2 cups", "3 : 4", "1 234,5", "1e3", "\u2212.25")]
    ['5/2', '3:4', '2469/2', '1000', '-1/4']
    """
    text = _rewritten(text)
    found = collections.deque(_number.finditer(text), maxlen=1)
    last = found[0] if found else None
    if last is None or _half.search(text, max(0, last.start() - 60), last.start()):
        return None
    return _value(last)


def first_number(text: str) -> str | None:
    """Return the first number of ``text``; None where it is a term of a sum or one of several.

    >>> first_number("18 dollars for 3 days"), first_number("18 or 20, as 2 + 3 = 5")
    ('18', None)
    """
    text = _rewritten(text)
    first = _number.search(text)
    if not first or _several.match(text, first.end()) or _term.match(text, first.end()):
        return None
    return _value(first)


def says_several(text: str) -> bool:
    """Return whether ``text`` begins by saying several numbers.

    >>> says_several("18 or 20"), says_several("6 hours 30 minutes"), says_several("18 for 3 days")
    (True, True, False)
    """
    text = _rewritten(text)
    first = _number.search(text)
    return first is not None and _several.match(text, first.end()) is not None


def only_number(text: str) -> str | None:
    r"""Return the number that ``text`` is, units, currency and words aside; None for anything else.

    >>> [only_number(text) for text in ("$18.00", "about 5 km", "1.5 million people", "90\u00b0")]
    ['18', '5 km', '1500000', '90']
    >>> [only_number(text) for text in ("2x", "x = 5", "18 or 20", "3\\pi", "f(5)", "5 x", "n/2")]
    [None, None, None, None, None, None, None]
    """
    text = _rewritten(text)
    found = list(itertools.islice(_number.finditer(text), 2))
    if len(found) != 1:
        return None
    before, after = text[: found[0].start()], text[found[0].end() :]
    if _no_dress.search(before) or _no_dress.search(after) or re.match(r"\s*[-/]\s*\W", after):
        return None
    if _letter.match(after) and not _glued.match(after):
        return None
    single = _one_letter.findall(f"{before} {after}")
    return _value(found[0]) if _ONE_LETTER.issuperset(single) else None


def equal_numbers(value: str, other: str) -> bool | None:
    """Return whether two numbers as read here are equal; None when one is not a number.

    Units are compared where both have one: the question names it, so most answers do without.

    >>> equal_numbers("5 km", "5"), equal_numbers("5 km", "5 m"), equal_numbers("50 %", "1/2")
    (True, False, False)
    """
    one, two = _plain_value.fullmatch(value), _plain_value.fullmatch(other)
    if one is None or two is None:
        return None
    return one[1] == two[1] and (one[2] == two[2] or not (one[2] and two[2]))


def _rewritten(text: str) -> str:
    """Return ``text`` with typography and LaTeX's ways of writing numbers replaced by plain ones.

    >>> _rewritten("2\u00bd of 1{,}000")
    '2 1/2 of 1,000'
    """
    text = _vulgar.sub(_spelt_out, text)
    for pattern, plain in _REWRITTEN:
        text = pattern.sub(plain, text)
    return text


def _spelt_out(fraction: re.Match[str]) -> str:
    plain = unicodedata.normalize("NFKC", fraction.group()).replace("\u2044", "/")
    return (
        f" {plain}" if fraction.string[fraction.start() - 1 : fraction.start()].isdigit() else plain
    )


def _value(match: re.Match[str]) -> str | None:
    """Return the value of a match of ``_number``; None for one too long to be an answer."""
    if match["ratio"]:
        ratio = ":".join(str(int(part)) for part in match["ratio"].split(":"))
        return ratio + _spelt(_unit.match(match.string, match.end()))
    if match["whole"]:
        top, bottom = match["top"], match["bottom"]
        parts: tuple[str, str, str] = (match["whole"], top, bottom)
    else:
        if len(match["digits"]) + len(match["divisor"] or "") > _MAX_DIGITS:
            return None
        exponent = f"e{match['exponent']}" if match["exponent"] else ""
        parts = ("0", _plain(match["digits"]) + exponent, match["divisor"] or "1")
    whole, top, bottom = parts
    if not int(bottom):
        return None
    value = int(whole) + Fraction(Decimal(top)) / int(bottom)
    scale = _scale.match(match.string, match.end())
    if scale:
        value *= 10 ** _SCALES[scale[1].lower()]
    unit = _unit.match(match.string, scale.end() if scale else match.end())
    return f"{-value if match['sign'] == '-' else value}{_spelt(unit)}"


def _spelt(unit: re.Match[str] | None) -> str:
    return "" if unit is None else " " + unit[1].lower().replace("percent", "%")


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
