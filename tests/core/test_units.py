"""Numbers as people read them."""

import math

import pytest

from flaxbert.core.units import format_bytes, format_count, format_duration


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00:00"), (59.6, "0:01:00"), (3725, "1:02:05"), (90061, "1d 1:01:01"), (math.inf, "-")]
)
def test_durations(seconds, text):
    assert format_duration(seconds) == text


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0"), (7.256, "7.26"), (999.4, "999"), (999.9, "1k"), (12345.0, "12.3k"), (2.5e6, "2.5M"), (1e9, "1G")],
)
def test_counts(number, text):
    assert format_count(number) == text


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1_500, "1.50 kB"),
        (2_000_000, "2.00 MB"),
        (1_302_331_400, "1.30 GB"),
        (5e13, "50000.00 GB"),
    ],
)
def test_sizes(size, text):
    assert format_bytes(size) == text
