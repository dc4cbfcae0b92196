"""Weights that are no numbers: counted at loading, said once."""

import pathlib
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from flaxbert.core.arrays import TypedArray

_MOST_SHOWN = 8


def find_not_finite(tensors: Mapping[str, Any]) -> list[str]:
    """Looks for NaN and infinite values.

    Sound tensors cost one sum each: it is finite only where all values are, so others alone are counted.

    Args:
      tensors: Arrays and typed arrays by name.

    Returns:
      Name and counts of every tensor that has some.
    """
    found = []
    for name, leaf in tensors.items():
        parts = leaf.stored_parts().values() if isinstance(leaf, TypedArray) else (leaf,)
        counts = [_count(np.asarray(part)) for part in parts]
        num_nan, num_infinite = (sum(column) for column in zip(*counts, strict=True))
        if num_nan or num_infinite:
            found.append(f"'{name}' ({num_nan} NaN, {num_infinite} infinite of {leaf.size})")
    return found


def note_not_finite(found: Sequence[str], folder: pathlib.Path) -> list[str]:
    """Warns once where tensors hold NaN or infinite values.

    Args:
      found: From ``find_not_finite``.
      folder: Where they were read.

    Returns:
      A sentence that names tensors and counts; nothing where all is finite.
    """
    if not found:
        return []
    more = f" and {len(found) - _MOST_SHOWN} more" if len(found) > _MOST_SHOWN else ""
    note = f"{len(found)} tensors hold values that are not finite: {', '.join(found[:_MOST_SHOWN])}{more}."
    warnings.warn(f"{note} What {folder} computes with them will be NaN; check where it comes from.", stacklevel=3)
    return [note]


def _count(array: np.ndarray) -> tuple[int, int]:
    if array.dtype.kind in "biu":
        return 0, 0
    with np.errstate(over="ignore", invalid="ignore"):
        if np.isfinite(array.sum(dtype=np.float32)):
            return 0, 0
    return int(np.isnan(array).sum()), int(np.isinf(array).sum())
