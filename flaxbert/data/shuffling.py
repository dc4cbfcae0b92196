"""Random numbers and permutations that are the same on every machine and with every version of NumPy."""

import numpy as np
from jaxtyping import Float, Int


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
    return StableRandom(*keys).permutation(size)


class StableRandom:
    """A stream of random numbers that depends on the keys alone.

    Everything is made from the 64-bit words of the Philox bit generator.

    Args:
      keys: Non-negative integers, for example a seed, an epoch and the number of a row.

    Example:
      >>> StableRandom(0, 1).uniform(2).tolist() == StableRandom(0, 1).uniform(2).tolist()
      True
    """

    def __init__(self, *keys: int) -> None:
        self._bits = np.random.Philox(np.random.SeedSequence(keys))

    def uniform(self, *shape: int) -> Float[np.ndarray, "..."]:
        """Returns numbers in [0, 1).

        Args:
          shape: Shape of the array.
        """
        words = self._bits.random_raw(int(np.prod(shape)))
        return ((words >> np.uint64(11)) * 2.0**-53).reshape(shape)

    def integers(self, upper: int, *shape: int) -> Int[np.ndarray, "..."]:
        """Returns whole numbers from 0 to ``upper - 1``.

        Args:
          upper: Number of possible values.
          shape: Shape of the array.
        """
        return np.floor(self.uniform(*shape) * upper).astype(np.int64)

    def permutation(self, size: int) -> Int[np.ndarray, "size"]:
        """Returns the numbers from 0 to ``size - 1`` in random order.

        Args:
          size: Number of elements.
        """
        return np.argsort(self._bits.random_raw(size), kind="stable").astype(np.int64)
