import re

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from raypeft.core.quantities import (
    DURATION_PATTERN,
    DURATION_UNITS,
    SIZE_PATTERN,
    SIZE_UNITS,
    duration_seconds,
    size_bytes,
)

# How fast a busy machine is proves nothing.
RELAXED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90), ("30m", 1800), ("2h", 7200), ("1d", 86400), ("1.5h", 5400), ("30 m", 1800)],
)
def test_a_duration_is_a_number_and_its_unit(text: str, seconds: float) -> None:
    assert duration_seconds(text) == seconds


@pytest.mark.parametrize(
    ("text", "size"),
    [("8GiB", 8 * 2**30), ("512MiB", 2**29), ("1.5KiB", 1536), ("2 TB", 2 * 10**12)],
)
def test_a_size_is_a_number_and_its_unit(text: str, size: int) -> None:
    assert size_bytes(text) == size


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("30", 'has no unit; write for instance "30m"'),
        ("30x", "unknown unit 'x'; known units are s, m, h, d"),
        ("30M", "unknown unit 'M'"),
        ("0m", "not above zero"),
        ("-5m", "is not allowed, expected a duration"),
        ("1h30m", "is not allowed, expected a duration"),
        ("m", "is not allowed"),
        ("", "is not allowed"),
        ("30m\n", "is not allowed"),
        ("٣m", "is not allowed"),
        ("9" * 400 + "d", "not above zero and finite"),
    ],
)
def test_what_is_no_duration_is_refused_with_what_is_allowed(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        duration_seconds(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("8", 'has no unit; write for instance "8GiB"'),
        ("8G", "unknown unit 'G'; known units are KiB, MiB"),
        ("8gib", "unknown unit 'gib'"),
        ("0GiB", "not above zero"),
        ("0.0001KiB", "is below one byte"),
        ("GiB", "is not allowed, expected a size"),
    ],
)
def test_what_is_no_size_is_refused_with_what_is_allowed(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        size_bytes(text)


@RELAXED
@given(
    number=st.one_of(st.integers(1, 10**9), st.floats(0.01, 10**6).map(lambda x: round(x, 2))),
    space=st.sampled_from(["", " "]),
    data=st.data(),
)
def test_the_schemas_patterns_take_what_the_parser_takes(
    number: float, space: str, data: st.DataObject
) -> None:
    duration = f"{number}{space}{data.draw(st.sampled_from(sorted(DURATION_UNITS)))}"
    size = f"{number}{space}{data.draw(st.sampled_from(sorted(SIZE_UNITS)))}"
    assert duration_seconds(duration) > 0
    assert re.search(DURATION_PATTERN, duration)
    assert size_bytes(size) > 0
    assert re.search(SIZE_PATTERN, size)
