"""Durations and sizes as a sweep file writes them: a number and its unit, `30m`, `8GiB`.

A bare number is refused, since nobody reading the file could tell what it counts. This module
decides which units there are; which field wants which quantity is `spec_models`' business.
"""

import math
import re

DURATION_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
SIZE_UNITS = {
    "KiB": 2**10,
    "MiB": 2**20,
    "GiB": 2**30,
    "TiB": 2**40,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
}

# Also the `pattern` of the JSON Schema, so in the syntax that ECMAScript and Python share.
DURATION_PATTERN = r"^[0-9]+(\.[0-9]+)? ?(s|m|h|d)$"
SIZE_PATTERN = r"^[0-9]+(\.[0-9]+)? ?(KiB|MiB|GiB|TiB|KB|MB|GB|TB)$"

DURATION_ALLOWED = 'a duration with its unit (s, m, h or d), for instance "90s", "30m" or "2h"'
SIZE_ALLOWED = 'a size with its unit, for instance "8GiB" or "512MiB"'

_NUMBER_AND_UNIT = re.compile(r"([0-9]+(?:\.[0-9]+)?) ?([A-Za-z]*)")


def duration_seconds(text: str) -> float:
    """Return the seconds of a duration such as `30m`.

    Raises:
        ValueError: If it is none, or not above zero; the message says what is allowed.
    """
    return _amount(text, DURATION_UNITS, DURATION_ALLOWED, example_unit="m")


def size_bytes(text: str) -> int:
    """Return the bytes of a size such as `8GiB`, rounded down.

    Raises:
        ValueError: If it is none, or below one byte; the message says what is allowed.
    """
    amount = int(_amount(text, SIZE_UNITS, SIZE_ALLOWED, example_unit="GiB"))
    if amount < 1:
        raise ValueError(f"is below one byte, expected {SIZE_ALLOWED}")
    return amount


def _amount(text: str, units: dict[str, int], allowed: str, *, example_unit: str) -> float:
    match = _NUMBER_AND_UNIT.fullmatch(text)
    if match is None:
        raise ValueError(f"is not allowed, expected {allowed}")
    number, unit = match.groups()
    if not unit:
        raise ValueError(f'has no unit; write for instance "{number}{example_unit}" for {allowed}')
    if unit not in units:
        raise ValueError(f"has the unknown unit {unit!r}; known units are {', '.join(units)}")
    amount = float(number) * units[unit]
    if not 0 < amount < math.inf:
        raise ValueError(f"is not above zero and finite, expected {allowed}")
    return amount
