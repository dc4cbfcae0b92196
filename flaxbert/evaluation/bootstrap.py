"""How far a metric may be from its value on all such examples: intervals by resampling the examples."""

import dataclasses
import math
from collections.abc import Callable

import numpy as np

from flaxbert.errors import ConfigError, DataError, nearest
from flaxbert.evaluation.metrics import METRICS

Statistic = Callable[[np.ndarray, np.ndarray], float]


@dataclasses.dataclass(frozen=True)
class Interval:
    """A value with the interval that holds it with a given confidence.

    Attributes:
      value: The value on all examples.
      low: Lower end.
      high: Upper end.
      confidence: Share of the resamples inside, in (0, 1).
    """

    value: float
    low: float
    high: float
    confidence: float = 0.95

    def excludes_zero(self) -> bool:
        """Returns whether zero lies outside, so that a difference is significant at this confidence."""
        return self.low > 0 or self.high < 0


def _statistic(metric: str | Statistic) -> Statistic:
    if callable(metric):
        return metric
    by_name = {name: entry.function for metrics in METRICS.values() for name, entry in metrics.items()}
    if metric not in by_name:
        raise ConfigError(
            f"There is no metric '{metric}' of predictions; known are {', '.join(by_name)}.{nearest(metric, by_name)}"
        )
    return by_name[metric]


def bootstrap_interval(
    predictions: np.ndarray,
    labels: np.ndarray,
    metric: str | Statistic = "accuracy",
    *,
    other: np.ndarray | None = None,
    num_resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Returns the percentile bootstrap interval of a metric, or of the difference of two prediction sets.

    Examples are drawn with replacement as often as there are examples; the interval lies between the quantiles of the
    metric over the draws (Efron and Tibshirani, 1993, section 13.3). With ``other``, each draw takes the same examples of
    both sets (paired), so that what both find hard does not widen the interval.

    Args:
      predictions: Predictions over the first axis, as ``align`` returns them.
      labels: Labels of the same examples.
      metric: Name of a metric in ``METRICS``, or a function of predictions and labels.
      other: Predictions of a second model for the same examples; the result is then ``metric(other) - metric(predictions)``.
      num_resamples: Draws; 1000 give the ends to about a twentieth of the interval.
      confidence: Share of the draws inside, in (0, 1).
      seed: Seed of the draws.

    Returns:
      The value on all examples and the ends of the interval.

    Raises:
      ConfigError: The metric is unknown, or a setting is out of range.
      DataError: The arrays are empty or of different lengths.
    """
    statistic = _statistic(metric)
    if num_resamples < 1 or not 0.0 < confidence < 1.0:
        raise ConfigError(
            f"A bootstrap needs draws (now {num_resamples}) and a confidence in (0, 1) (now {confidence})."
        )
    sets = [predictions] if other is None else [predictions, other]
    lengths = {len(labels), *(len(entry) for entry in sets)}
    if len(lengths) != 1 or 0 in lengths:
        raise DataError(
            f"A bootstrap needs the same, non-empty examples in every array, but their lengths are {sorted(lengths)}."
        )

    def value(rows: np.ndarray | slice) -> float:
        scores = [statistic(entry[rows], labels[rows]) for entry in sets]
        return float(scores[-1] - scores[0]) if len(scores) == 2 else float(scores[0])

    generator = np.random.default_rng(seed)
    draws = [value(generator.integers(0, len(labels), len(labels))) for _ in range(num_resamples)]
    outside = (1.0 - confidence) / 2.0
    low, high = np.quantile(draws, [outside, 1.0 - outside])
    whole = value(slice(None))
    if not all(math.isfinite(entry) for entry in (whole, low, high)):
        raise DataError("The metric is not finite on some draw of the examples, so it has no bootstrap interval.")
    return Interval(whole, float(low), float(high), confidence)
