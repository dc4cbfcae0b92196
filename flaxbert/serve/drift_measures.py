"""How far two distributions are apart, and how far they would be by chance."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np

from flaxbert.data.fingerprint import QUANTILES
from flaxbert.data.scripts import SCRIPTS

LENGTHS, UNKNOWN, SCRIPT, LABELS, CONFIDENCE = "lengths", "unknown_tokens", "scripts", "labels", "confidence"
"""What is watched."""

TRAINING, FIRST = "training", "first examples"
"""Where references come from: the fingerprint of the training examples, or the first examples that the version met."""

_NORMAL_QUANTILE: Final = 3.72
"""One window in ten thousand is further off by chance."""

_LEAST_SHARE: Final = 1e-4


@dataclasses.dataclass(frozen=True)
class Expectation:
    """What a measure is compared with.

    Attributes:
      value: Quantiles, shares by name, or a number.
      num_examples: Examples that it rests on.
      origin: TRAINING or FIRST.
    """

    value: Any
    num_examples: int
    origin: str


def stability_index(
    observed: Sequence[float] | np.ndarray, expected: Sequence[float] | np.ndarray, least_share: float = _LEAST_SHARE
) -> float:
    """Returns the population stability index of two distributions: ``sum((o - e) * ln(o / e))``.

    Args:
      observed: Shares.
      expected: Shares of the same bins.
      least_share: Smaller shares count as this one.
    """
    first, second = (np.maximum(np.asarray(shares, np.float64), least_share) for shares in (observed, expected))
    return float(((first - second) * np.log(first / second)).sum())


def chance_index(num_bins: int, num_examples: int, num_expected: int) -> float:
    """Returns the stability index that one window in ten thousand has although nothing changed.

    With the same distribution on both sides the index is about a chi-squared variable of ``num_bins - 1`` degrees times ``1/n + 1/m``; its
    quantile is Wilson's and Hilferty's (1931).

    Args:
      num_bins: Bins.
      num_examples: Examples of the window.
      num_expected: Examples of the reference.
    """
    degrees = num_bins - 1
    if degrees < 1 or not num_examples:
        return 0.0
    part = 2.0 / (9.0 * degrees)
    quantile = degrees * (1.0 - part + _NORMAL_QUANTILE * math.sqrt(part)) ** 3
    return quantile * (1.0 / num_examples + 1.0 / max(1, num_expected))


def length_shares(quantiles: Mapping[str, float], lengths: np.ndarray) -> tuple[list[float], list[float]]:
    """Returns the shares of lengths between quantiles, and those expected there.

    Lengths are whole numbers, so that many may equal a quantile: they count to both sides in whatever way comes nearest to what is expected.

    Args:
      quantiles: Length by the share of examples that are not longer.
      lengths: What was seen.
    """
    edges = sorted((float(share), float(length)) for share, length in quantiles.items())
    ordered = np.sort(lengths)
    values = [length for _, length in edges]
    below, up_to = (np.searchsorted(ordered, values, side) / len(ordered) for side in ("left", "right"))
    expected = np.asarray([share for share, _ in edges])
    reached = np.clip(expected, below, up_to)
    return tuple(np.diff([0.0, *shares, 1.0]).tolist() for shares in (reached, expected))  # type: ignore[return-value]


Compared = tuple[float, Any, float]
"""Value, what was observed, and what chance gives."""


def _compare_lengths(window: Mapping[str, np.ndarray], expected: Expectation, names: Sequence[str]) -> Compared:
    del names
    lengths = window["lengths"]
    shares, wanted = length_shares(expected.value, lengths)
    value = stability_index(shares, wanted, max(_LEAST_SHARE, 0.5 / len(lengths)))
    return value, _quantiles(lengths), chance_index(len(wanted), len(lengths), expected.num_examples)


def _compare_shares(observed: Mapping[str, float], num_examples: int, expected: Expectation) -> Compared:
    keys = sorted({*observed, *expected.value})
    first, second = ([float(shares.get(key, 0.0)) for key in keys] for shares in (observed, expected.value))
    value = stability_index(first, second, max(_LEAST_SHARE, 0.5 / num_examples))
    return value, dict(observed), chance_index(len(keys), num_examples, expected.num_examples)


def _compare_scripts(window: Mapping[str, np.ndarray], expected: Expectation, names: Sequence[str]) -> Compared:
    return _compare_shares(_script_means(window, names), len(window["scripts"]), expected)


def _compare_labels(window: Mapping[str, np.ndarray], expected: Expectation, names: Sequence[str]) -> Compared:
    return _compare_shares(_label_shares(window, names), len(window["labels"]), expected)


def _compare_unknown(window: Mapping[str, np.ndarray], expected: Expectation, names: Sequence[str]) -> Compared:
    rate = _unknown_rate(window, names)
    left = window["unknown"] - rate * window["lengths"]
    spread = math.sqrt(float(np.square(left).sum())) / max(1, int(window["lengths"].sum()))
    return rate - expected.value, rate, _NORMAL_QUANTILE * spread


def _compare_confidence(window: Mapping[str, np.ndarray], expected: Expectation, names: Sequence[str]) -> Compared:
    mean = _mean(window, names)
    scores = window["confidences"]
    spread = float(scores.std()) * math.sqrt(1.0 / len(scores) + 1.0 / max(1, expected.num_examples))
    return mean - expected.value, mean, _NORMAL_QUANTILE * spread


def _quantiles(lengths: np.ndarray, names: Sequence[str] = ()) -> dict[str, float]:
    del names
    values = np.quantile(lengths, QUANTILES).tolist()
    return {f"{share:g}": value for share, value in zip(QUANTILES, values, strict=True)}


def _script_means(window: Mapping[str, np.ndarray], names: Sequence[str]) -> dict[str, float]:
    del names
    means = window["scripts"].mean(axis=0, dtype=np.float64).tolist()
    return {name: share for name, share in zip(SCRIPTS, means, strict=True) if share > 0}


def _label_shares(window: Mapping[str, np.ndarray], names: Sequence[str]) -> dict[str, float]:
    counts = np.bincount(window["labels"], minlength=len(names))
    return {name: float(count / len(window["labels"])) for name, count in zip(names, counts, strict=True)}


def _unknown_rate(window: Mapping[str, np.ndarray], names: Sequence[str]) -> float:
    del names
    return float(window["unknown"].sum() / max(1, int(window["lengths"].sum())))


def _mean(window: Mapping[str, np.ndarray], names: Sequence[str]) -> float:
    del names
    return float(window["confidences"].mean(dtype=np.float64))


MEASURES: Final[dict[str, tuple[str, Any, Any]]] = {
    LENGTHS: ("inputs", _compare_lengths, lambda window, names: _quantiles(window["lengths"])),
    UNKNOWN: ("inputs", _compare_unknown, _unknown_rate),
    SCRIPT: ("texts", _compare_scripts, _script_means),
    LABELS: ("labels", _compare_labels, _label_shares),
    CONFIDENCE: ("answers", _compare_confidence, _mean),
}
"""Where each measure's examples are kept, how it is compared, and how its reference is learned."""


def expectations_of(data: Mapping[str, Any]) -> dict[str, Expectation]:
    """Returns what a fingerprint of training examples says of each measure; what it lacks, or says in no usable form, is left out.

    Args:
      data: From ``data.fingerprint``, of any release; or anything else that a version was added with.
    """
    number = data.get("num_examples")
    num_examples = int(number) if isinstance(number, int) and number > 0 else 1
    found: dict[str, Any] = {LENGTHS: data.get("lengths"), SCRIPT: data.get("scripts"), LABELS: data.get("labels")}
    usable: dict[str, Any] = {what: value for what, value in found.items() if value and isinstance(value, Mapping)}
    usable = {what: value for what, value in usable.items() if all(map(_is_number, value.values()))}
    if LENGTHS in usable and not all(map(_is_share, usable[LENGTHS])):
        del usable[LENGTHS]
    if _is_number(data.get("unknown_rate")):
        usable[UNKNOWN] = float(data["unknown_rate"])
    return {what: Expectation(value, num_examples, TRAINING) for what, value in usable.items()}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value) and value >= 0


def _is_share(name: Any) -> bool:
    try:
        return 0.0 < float(name) < 1.0
    except (TypeError, ValueError):
        return False
