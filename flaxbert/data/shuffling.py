"""Permutations that are the same on every machine and with every version of NumPy."""

import numpy as np
from jaxtyping import Int


def stable_permutation(size: int, *keys: int) -> Int[np.ndarray, "size"]:
    """Returns a permutation that depends on the keys alone.

    Random 64-bit keys are sorted. They come straight from the Philox bit generator, whose stream NumPy promises to keep;
    it makes no such promise for ``Generator.permutation``, and a run must resume with another NumPy.

    Args:
      size: Number of elements.
      keys: Non-negative integers, for example a seed and an epoch.

    Returns:
      The numbers from 0 to ``size - 1`` in random order.

    Example:
      >>> sorted(stable_permutation(3, 0, 1).tolist())
      [0, 1, 2]
    """
    bits = np.random.Philox(np.random.SeedSequence(keys))
    return np.argsort(bits.random_raw(size), kind="stable").astype(np.int64)
