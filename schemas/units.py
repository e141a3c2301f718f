"""Figures as people read them, with their units."""

import math

MISSING = "–"  # noqa: RUF001
"""Shown where a figure is unscored, not measured or not known."""


def count_text(value: float | None) -> str:
    """Return a large number with a unit.

    >>> count_text(2_610_000), count_text(55_300), count_text(7.2e9), count_text(512)
    ('2.61 M', '55.3 k', '7.20 B', '512')
    """
    if value is None:
        return MISSING
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{_three_digits(value / size)} {unit}"
    return f"{value:.0f}"


def bytes_text(value: float | None) -> str:
    """Return bytes with a binary unit.

    >>> bytes_text(10.4 * 2**20), bytes_text(900), bytes_text(None) == MISSING
    ('10.4 MiB', '900 B', True)
    """
    if value is None:
        return MISSING
    for power, unit in ((3, "GiB"), (2, "MiB"), (1, "KiB")):
        if value >= 1024**power:
            return f"{_three_digits(value / 1024**power)} {unit}"
    return f"{value:.0f} B"


def seconds_text(value: float | None) -> str:
    """Return seconds, or milliseconds below one.

    >>> seconds_text(0.0852), seconds_text(1.2345)
    ('85.2 ms', '1.23 s')
    """
    if value is None:
        return MISSING
    return f"{_three_digits(value * 1000)} ms" if value < 1 else f"{_three_digits(value)} s"


def rate_text(value: float | None) -> str:
    """Return a rate with thousands separators.

    >>> rate_text(123456.7), rate_text(12.34)
    ('123,457', '12.3')
    """
    if value is None:
        return MISSING
    return f"{value:,.0f}" if value >= 100 else _three_digits(value)


def percent_text(value: float | None) -> str:
    """Return a fraction as per cent.

    >>> percent_text(0.941)
    '94.1 %'
    """
    return MISSING if value is None else f"{value * 100:.1f} %"


def money_text(value: float | None, currency: str | None) -> str:
    """Return an amount with its currency, small ones to three digits.

    >>> money_text(1234.5, "USD"), money_text(0.0123, "EUR"), money_text(1.61e-5, "EUR")
    ('1,234.50 USD', '0.0123 EUR', '0.0000161 EUR')
    """
    if value is None:
        return MISSING
    amount = f"{value:,.2f}"
    if 0 < value < 1:  # never as 1.6e-05
        amount = f"{value:.{2 - math.floor(math.log10(value))}f}".rstrip("0")
    return f"{amount} {currency}" if currency else amount


def probability_text(value: float | None) -> str:
    """Return a p-value.

    >>> probability_text(0.0312), probability_text(1e-9)
    ('0.031', '< 0.001')
    """
    if value is None:
        return MISSING
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def _three_digits(value: float) -> str:
    return f"{value:.2f}" if value < 9.995 else f"{value:.1f}" if value < 99.95 else f"{value:.0f}"
