"""Which scripts texts are written in: the share of each among their letters, a rough sign of their language."""

import functools
from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
from jaxtyping import Float32, UInt8

OTHER, NO_LETTERS = "Other", "None"
"""Letters of scripts that have no name here, and texts without a letter."""

_RANGES: Final[Mapping[str, str]] = {
    "Latin": "41-aa ba-2b8 2e0-2e4 1d00-1d25 1d2c-1d5c 1d62-1d65 1d6b-1d77 1d79-1dbe 1e00-1eff 2071-209c 212a-212b 2132-2132 "
    "214e-2184 2c60-2c7f a722-a787 a78b-a7ff ab30-ab64 ab66-ab69 fb00-fb06 ff21-ff5a 10780-107ba 1df00-1df1e",
    "Greek": "370-373 376-3e1 3f0-3ff 1d26-1d2a 1d5d-1d61 1d66-1d6a 1dbf-1dbf 1f00-1ffc 2126-2126 ab65-ab65",
    "Cyrillic": "400-52f 1c80-1c8a 1d2b-1d2b 1d78-1d78 a640-a69d 1e030-1e06d",
    "Armenian": "531-588 fb13-fb17",
    "Hebrew": "5d0-5f2 fb1d-fb4f",
    "Arabic": "620-63f 641-6ff 750-77f 870-8c9 fb50-fefc 1ee00-1eebb",
    "Devanagari": "904-97f a8f2-a8fe",
    "Bengali": "980-9fc",
    "Gurmukhi": "a05-a74",
    "Gujarati": "a85-af9",
    "Tamil": "b83-bd0",
    "Telugu": "c05-c61",
    "Kannada": "c80-cf2",
    "Malayalam": "d04-d7f",
    "Sinhala": "d85-dc6",
    "Thai": "e01-e46",
    "Lao": "e81-edf",
    "Tibetan": "f00-f8c",
    "Myanmar": "1000-108e a9e0-a9fe aa60-aa7f",
    "Georgian": "10a0-10ff 1c90-1cbf 2d00-2d2d",
    "Hangul": "1100-11ff 3131-318e a960-a97c ac00-d7fb ffa0-ffdc",
    "Ethiopic": "1200-138f 2d80-2dde ab01-ab2e 1e7e0-1e7fe",
    "Khmer": "1780-17dc",
    "Hiragana": "3041-309f 1b001-1b11f 1b150-1b152",
    "Katakana": "30a1-30fa 30fd-30ff 31f0-31ff ff66-ff6f ff71-ff9d 1aff0-1b000 1b120-1b122 1b164-1b167",
    "Han": "3005-3005 303b-303b 3400-9fff f900-fad9 16fe3-16fe3 20000-323af",
}
"""Code points between which all letters are of a script (Unicode Standard Annex 24)."""

SCRIPTS: Final[tuple[str, ...]] = (*_RANGES, OTHER, NO_LETTERS)
"""What ``script_shares`` counts, in its order."""

_END: Final = 0x32400
"""No letter has this code point or a higher one."""

_MOST_CHARACTERS: Final = 20_000
"""Characters of a text that are looked at."""


@functools.cache
def _numbers() -> UInt8[np.ndarray, "code_points"]:
    """Returns the place in SCRIPTS of every code point, that of NO_LETTERS where it is no letter."""
    table = np.full(_END + 1, len(SCRIPTS) - 1, np.uint8)
    named = np.full(_END, len(SCRIPTS) - 2, np.uint8)
    for place, ranges in enumerate(_RANGES.values()):
        for first, last in (part.split("-") for part in ranges.split()):
            named[int(first, 16) : int(last, 16) + 1] = place
    letters = [number for number in range(_END) if chr(number).isalpha()]
    table[letters] = named[letters]
    return table


def script_shares(texts: Sequence[str]) -> Float32[np.ndarray, "scripts"]:
    """Returns the share of each of ``SCRIPTS`` among the letters of an example.

    Args:
      texts: Its text, or its texts, whose first 20,000 characters count.
    """
    text = "".join(texts)[:_MOST_CHARACTERS]
    points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
    counts = np.bincount(_numbers()[np.minimum(points, _END)], minlength=len(SCRIPTS)).astype(np.float32)
    counts[-1] = 0.0
    total = counts.sum()
    if not total:
        counts[-1] = total = 1.0
    return counts / np.float32(total)


def shares_by_name(columns: Sequence[Sequence[str]], most: int = 100_000) -> dict[str, float]:
    """Returns the mean share of every script that occurs in some examples, each example counted alike.

    Args:
      columns: Texts of the examples; second texts, if any, are a column more.
      most: Examples that are looked at, evenly spread; 0 texts give an empty dictionary.
    """
    if not columns or not len(columns[0]):
        return {}
    size = len(columns[0])
    places: list[int] = np.unique(np.linspace(0, size - 1, min(most, size)).astype(np.int64)).tolist()
    total = np.zeros(len(SCRIPTS), np.float64)
    for place in places:
        total += script_shares([column[place] for column in columns])
    return {name: share for name, share in zip(SCRIPTS, (total / len(places)).tolist(), strict=True) if share > 0}
