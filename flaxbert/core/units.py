"""Sizes, counts and durations as text for people."""

import math


def format_duration(seconds: float) -> str:
    """Returns ``h:mm:ss`` (from a day on with days), or ``-`` where the time is not known.

    Args:
      seconds: A duration.

    Example:
      >>> format_duration(3725)
      '1:02:05'
    """
    if not math.isfinite(seconds):
        return "-"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    return f"{f'{days}d ' if days else ''}{hours}:{minutes:02}:{rest:02}"


def format_count(number: float) -> str:
    """Returns a number in three significant digits with k, M or G.

    Args:
      number: A count or a rate, at least 0.

    Example:
      >>> format_count(12345.0)
      '12.3k'
    """
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size * 0.9995:
            return f"{number / size:.3g}{unit}"
    return f"{number:.3g}"


def format_bytes(size_bytes: float) -> str:
    """Returns a size in powers of 1000 with its unit.

    Args:
      size_bytes: A size in bytes.

    Example:
      >>> format_bytes(1_302_331_400)
      '1.30 GB'
    """
    for unit, factor in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if size_bytes >= factor:
            return f"{size_bytes / factor:.2f} {unit}"
    return f"{size_bytes:.0f} B"
