"""What is known of the inputs of a kernel: ranges, magnitudes, a histogram, the second moment; and how a range is chosen from it."""

import dataclasses
from collections.abc import Mapping

import numpy as np
from jaxtyping import Float, Int

from flaxbert.config import RangeName
from flaxbert.errors import ConfigError

NUM_BINS = 2048
"""Bins of a histogram of magnitudes."""

NUM_LEVELS = 128
"""Levels of magnitude that an int8 code has."""

ENTROPY_STEP = 16
"""Ends of ranges that are tried lie so many bins apart."""

SMALLEST_RANGE = 1e-12
"""Range of inputs that are always 0."""


@dataclasses.dataclass(frozen=True)
class InputStatistics:
    """What was seen of the inputs of one kernel, padding left out.

    Attributes:
      count: Number of inputs.
      low: Smallest value of each channel.
      high: Largest value of each channel.
      mean_magnitude: Mean absolute value of each channel.
      histogram: Entries by magnitude, over all channels, in equal bins from 0 to the largest; None where it was not asked for.
      second_moment: Mean of ``x x^T``; None where it was not asked for.
    """

    count: int
    low: Float[np.ndarray, "in_axis"]
    high: Float[np.ndarray, "in_axis"]
    mean_magnitude: Float[np.ndarray, "in_axis"]
    histogram: Int[np.ndarray, "bins"] | None = None
    second_moment: Float[np.ndarray, "in_axis in_axis"] | None = None

    @property
    def largest(self) -> Float[np.ndarray, "in_axis"]:
        """Largest magnitude of each channel."""
        return np.maximum(np.abs(self.low), np.abs(self.high))


Statistics = Mapping[str, InputStatistics]
"""Statistics by the name of the leaf that the inputs are multiplied by."""


def merge_statistics(first: InputStatistics, second: InputStatistics) -> InputStatistics:
    """Returns the statistics of two sets of inputs of the same kernel together.

    Args:
      first: Of one set.
      second: Of the other; histograms have the same bins.
    """
    count = first.count + second.count

    def mean(left: np.ndarray, right: np.ndarray) -> np.ndarray:
        return (left * first.count + right * second.count) / count

    histogram = None
    if first.histogram is not None and second.histogram is not None:
        histogram = first.histogram + second.histogram
    second_moment = None
    if first.second_moment is not None and second.second_moment is not None:
        second_moment = mean(first.second_moment, second.second_moment)
    return InputStatistics(
        count=count,
        low=np.minimum(first.low, second.low),
        high=np.maximum(first.high, second.high),
        mean_magnitude=mean(first.mean_magnitude, second.mean_magnitude),
        histogram=histogram,
        second_moment=second_moment,
    )


def largest_magnitude(statistics: InputStatistics, name: RangeName, percentile: float) -> float:
    """Returns the magnitude that the codes of activations reach; what lies above is clipped.

    Args:
      statistics: What was seen of the inputs.
      name: ``minmax`` takes the largest; ``percentile`` the magnitude that a share of the entries stay below; ``entropy`` the one
        whose codes tell most about the histogram (Migacz, 2017: the least Kullback-Leibler divergence).
      percentile: The share for ``percentile``, in (0, 100].

    Raises:
      ConfigError: A histogram is needed and there is none.
    """
    largest = max(float(statistics.largest.max()), SMALLEST_RANGE)
    if name == "minmax":
        return largest
    if statistics.histogram is None:
        raise ConfigError(f"The range '{name}' needs histograms; calibrate with them.")
    counts = statistics.histogram.astype(np.float64)
    if name == "percentile":
        below = np.cumsum(counts) >= counts.sum() * percentile / 100
        return largest * (int(np.argmax(below)) + 1) / len(counts)
    return largest * _least_divergence(counts) / len(counts)


def _least_divergence(counts: np.ndarray) -> int:
    """Returns the number of bins whose magnitudes the codes should span."""
    best, least = len(counts), np.inf
    counts = counts.copy()
    counts[0] = 0  # exact zeros and what is next to them cost nothing in any range
    for end in range(NUM_LEVELS, len(counts) + 1, ENTROPY_STEP):
        inside = counts[:end]
        clipped = inside.copy()
        clipped[-1] += counts[end:].sum()
        total = clipped.sum()
        if not total:
            continue
        level = np.arange(end) * NUM_LEVELS // end
        filled = inside > 0
        mass = np.bincount(level, weights=inside, minlength=NUM_LEVELS)
        width = np.bincount(level, weights=filled, minlength=NUM_LEVELS)
        spread = np.where(filled, mass[level] / np.maximum(width[level], 1), 0)
        if not spread.sum():
            continue
        seen = clipped > 0
        expected, found = clipped[seen] / total, spread[seen] / spread.sum()
        divergence = np.sum(expected * np.log(expected / np.maximum(found, 1e-12)))
        if divergence < least:
            best, least = end, float(divergence)
    return best


def smoothing_scales(
    statistics: InputStatistics, weights: Float[np.ndarray, "in_axis out_axis"], strength: float
) -> Float[np.ndarray, "in_axis"]:
    """Returns by what each input channel is divided, and its weights multiplied, before both are rounded (Xiao et al., 2023, equation 4).

    ``max|x[j]|**strength / max|w[j]|**(1 - strength)``: 0 leaves all the difficulty to the activations, 1 to the weights.

    Args:
      statistics: What was seen of the inputs.
      weights: The kernel.
      strength: In [0, 1].
    """
    inputs = np.maximum(statistics.largest.astype(np.float64), SMALLEST_RANGE)
    outputs = np.maximum(np.abs(weights).max(axis=1).astype(np.float64), SMALLEST_RANGE)
    scales = inputs**strength / outputs ** (1 - strength)
    return (scales / np.exp(np.mean(np.log(scales)))).astype(np.float32)
