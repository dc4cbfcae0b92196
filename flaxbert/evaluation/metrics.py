"""The metrics of each task, from logits and labels, computed by scikit-learn and scipy.

Everything is plain numpy on the host. No input makes a metric undefined: where the formula divides by zero (a label that is
never predicted, predictions that are all equal) the value is 0.0, as each metric's docstring or ``METRICS`` says, and no
warning leaks.
"""

import dataclasses
import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from flaxbert.errors import ConfigError, DataError, nearest
from flaxbert.evaluation.alignment import Arrays, MetricKind, align, metric_kind

LARGEST_EXPONENT = 700.0
"""Perplexity is exp(min(loss, 700)), so that it stays a finite float64 (about 1e304)."""


@dataclasses.dataclass(frozen=True)
class Metric:
    """One number that says how well predictions fit the labels.

    Attributes:
      function: Maps predictions and labels (both flat over examples or tokens) to the number.
      higher_is_better: Whether larger values are better.
      binary_only: Whether it exists only for two labels; then label number 1 is the positive one.
    """

    function: Callable[[np.ndarray, np.ndarray], float]
    higher_is_better: bool = True
    binary_only: bool = False


def _accuracy(predictions: np.ndarray, labels: np.ndarray) -> float:
    return float(np.mean(predictions == labels))


def scikit_learn() -> Any:
    """Returns ``sklearn.metrics``, imported when it is first needed; its annotations are narrower than what it takes."""
    import sklearn.metrics

    return sklearn.metrics


def indicator(values: np.ndarray) -> np.ndarray:
    """Returns zeros and ones per label in a form that scikit-learn does not take for something else.

    A single column would be read as two classes, so it gets an empty second one; give ``labels`` to leave that out again.

    Args:
      values: ``[examples, labels]``, or ``[examples]`` of label numbers, which stay as they are.
    """
    return np.pad(values, ((0, 0), (0, 1))) if values.ndim > 1 and values.shape[1] == 1 else values


def _averaged(score: str, average: str | None) -> Callable[[np.ndarray, np.ndarray], float]:
    """Returns precision, recall or F1 under an average; ``None`` takes the positive label, number 1, of two."""

    def compute(predictions: np.ndarray, labels: np.ndarray) -> float:
        arguments: dict[str, Any] = {"average": average, "zero_division": 0}
        if average is None:
            arguments |= {"average": "macro", "labels": [1]}
        elif labels.ndim > 1:
            arguments["labels"] = list(range(labels.shape[1]))
        compare = getattr(scikit_learn(), f"{score}_score")
        return float(compare(indicator(labels), indicator(predictions), **arguments))

    return compute


def _matthews_correlation(predictions: np.ndarray, labels: np.ndarray) -> float:
    if len(np.unique(labels)) < 2 or len(np.unique(predictions)) < 2:
        return 0.0
    return float(scikit_learn().matthews_corrcoef(labels, predictions))


def _correlation(name: str) -> Callable[[np.ndarray, np.ndarray], float]:
    def compute(predictions: np.ndarray, labels: np.ndarray) -> float:
        import scipy.stats

        if len(labels) < 2 or np.ptp(predictions) == 0 or np.ptp(labels) == 0:
            return 0.0
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", scipy.stats.NearConstantInputWarning)
            value = float(getattr(scipy.stats, name)(predictions, labels).statistic)
        return value if math.isfinite(value) else 0.0

    return compute


def _squared_error(predictions: np.ndarray, labels: np.ndarray) -> float:
    return float(np.mean(np.square(predictions - labels)))


def _absolute_error(predictions: np.ndarray, labels: np.ndarray) -> float:
    return float(np.mean(np.abs(predictions - labels)))


def _exact_match(predictions: np.ndarray, labels: np.ndarray) -> float:
    return float(np.mean(np.all(predictions == labels, axis=1)))


def _hamming_loss(predictions: np.ndarray, labels: np.ndarray) -> float:
    return float(np.mean(predictions != labels))


METRICS: dict[MetricKind, dict[str, Metric]] = {
    "single_label": {
        "accuracy": Metric(_accuracy),
        "f1_macro": Metric(_averaged("f1", "macro")),
        "f1_micro": Metric(_averaged("f1", "micro")),
        "f1_weighted": Metric(_averaged("f1", "weighted")),
        "precision_macro": Metric(_averaged("precision", "macro")),
        "recall_macro": Metric(_averaged("recall", "macro")),
        "matthews_correlation": Metric(_matthews_correlation),
        "f1": Metric(_averaged("f1", None), binary_only=True),
        "precision": Metric(_averaged("precision", None), binary_only=True),
        "recall": Metric(_averaged("recall", None), binary_only=True),
    },
    "multi_label": {
        "f1_micro": Metric(_averaged("f1", "micro")),
        "f1_macro": Metric(_averaged("f1", "macro")),
        "precision_micro": Metric(_averaged("precision", "micro")),
        "recall_micro": Metric(_averaged("recall", "micro")),
        "exact_match": Metric(_exact_match),
        "hamming_loss": Metric(_hamming_loss, higher_is_better=False),
    },
    "regression": {
        "spearman": Metric(_correlation("spearmanr")),
        "pearson": Metric(_correlation("pearsonr")),
        "mse": Metric(_squared_error, higher_is_better=False),
        "mae": Metric(_absolute_error, higher_is_better=False),
    },
    "token": {
        "accuracy": Metric(_accuracy),
        "f1_macro": Metric(_averaged("f1", "macro")),
    },
    "masked_lm": {
        "accuracy": Metric(_accuracy),
    },
}
"""The metrics of each kind of task; the first one chooses the best checkpoint unless the run says otherwise.

Macro averages run over the labels that occur in the labels or the predictions (multi-label: over all labels). A ratio
with denominator 0 is 0.0; so are a correlation where one side is constant and one of fewer than two examples."""


LOSS_METRICS = frozenset({"loss", "perplexity"})
"""What is measured from logits and not from predictions, so that it has no bootstrap interval."""

LOWER_IS_BETTER = LOSS_METRICS | frozenset(
    {name for metrics in METRICS.values() for name, metric in metrics.items() if not metric.higher_is_better}
)
"""Metrics whose fall is an improvement."""


def metric_names(task: str, problem_type: str = "", num_labels: int | None = None) -> dict[str, bool]:
    """Returns the metrics that an evaluation of the task reports, each with whether higher is better.

    Args:
      task: A task name or alias.
      problem_type: As for ``metric_kind``.
      num_labels: Leaves out what exists only for two labels when given and not 2.

    Raises:
      ConfigError: As for ``metric_kind``.
    """
    kind = metric_kind(task, problem_type)
    names = {
        name: metric.higher_is_better
        for name, metric in METRICS[kind].items()
        if not (metric.binary_only and num_labels not in (None, 2))
    }
    if kind == "masked_lm":
        names["perplexity"] = False
    return {**names, "loss": False}


def primary_metric(
    task: str, problem_type: str = "", requested: str = "", num_labels: int | None = None
) -> tuple[str, bool]:
    """Returns the metric that chooses the best checkpoint.

    Args:
      task: A task name or alias.
      problem_type: As for ``metric_kind``.
      requested: Name of a metric of the task; empty takes the task's first.
      num_labels: Number of labels where known.

    Returns:
      The name and whether higher is better.

    Raises:
      ConfigError: The metric is unknown or not measured for this task; names the nearest.

    Example:
      >>> primary_metric("sequence-classification", "regression")
      ('spearman', True)
    """
    names = metric_names(task, problem_type, num_labels)
    name = requested or next(iter(names))
    if name not in names:
        raise ConfigError(
            f"train.metric is '{requested}', but the metrics of {task}"
            f"{f' ({problem_type})' if problem_type else ''} are {', '.join(names)}.{nearest(requested, names)}"
        )
    return name, names[name]


def mean_loss(kind: MetricKind, logits: np.ndarray, labels: np.ndarray) -> float | None:
    """Returns the plain loss: without label smoothing and class weights, so that runs can be compared.

    Cross-entropy (single-label, token, masked language model), binary cross-entropy over examples and labels
    (multi-label), or mean squared error (regression).

    Args:
      kind: Which metrics; see ``metric_kind``.
      logits: As ``align`` returns them.
      labels: The same.

    Returns:
      The mean over examples or tokens; None where the logits are predicted labels.
    """
    if logits.dtype.kind in "iub" and kind != "regression":
        return None
    rows = logits.astype(np.float64)
    if kind == "regression":
        return _squared_error(rows.reshape(-1), labels)
    if kind == "multi_label":
        return float(np.mean(np.logaddexp(0.0, rows) - rows * labels))
    rows = rows - rows.max(axis=-1, keepdims=True)
    return float(np.mean(np.log(np.exp(rows).sum(axis=-1)) - rows[np.arange(len(rows)), labels]))


def compute_metrics(
    task: str,
    problem_type: str,
    logits: Arrays,
    labels: Arrays,
    label_names: Sequence[str] = (),
    loss: float | None = None,
) -> dict[str, float]:
    """Measures predictions against labels with the metrics of the task.

    Args:
      task: A task name or alias.
      problem_type: As for ``metric_kind``.
      logits: ``[examples, labels]``; regression ``[examples]`` or ``[examples, 1]``; tokens ``[examples, length, labels]``,
        ``[tokens, labels]`` or a list of ``[length, labels]``. Whole numbers without the last axis are taken as predicted
        labels. Leave out rows that only fill a batch.
      labels: The same without the last axis (multi-label: with it, zeros and ones); -100 marks ignored tokens.
      label_names: Names in label order; empty takes ``LABEL_0``…
      loss: Mean loss over the evaluated examples or tokens; None computes the plain one, see ``mean_loss``.

    Returns:
      Plain floats by name: ``METRICS`` of the kind, ``f1/<label>`` for token classification, ``perplexity`` for masked
      language models, and ``loss`` (absent where only predicted labels are given).

    Raises:
      ConfigError: The task has no metrics.
      DataError: The shapes do not belong together, a label is outside the set, or nothing is left to measure.
      TrainingError: An output is not finite.

    Example:
      >>> compute_metrics("text-classification", "", np.array([[2.0, 1.0], [0.0, 3.0]]), np.array([0, 0]))["accuracy"]
      0.5
    """
    kind = metric_kind(task, problem_type)
    logits, predictions, truth = align(kind, logits, labels)
    num_labels = logits.shape[-1] if logits.ndim > truth.ndim else len(label_names) or None
    if kind != "regression" and kind != "multi_label":
        check_labels(truth, num_labels)
    values = {
        name: metric.function(predictions, truth)
        for name, metric in METRICS[kind].items()
        if not (metric.binary_only and num_labels != 2)
    }
    if kind == "token":
        count = num_labels or int(max(truth.max(), predictions.max())) + 1
        names = label_names or [f"LABEL_{index}" for index in range(count)]
        scores = label_f1(predictions, truth, count)
        values |= {f"f1/{name}": score for name, score in zip(names, scores, strict=True)}
    loss = mean_loss(kind, logits, truth) if loss is None else float(loss)
    if kind == "masked_lm":
        if loss is None:
            raise DataError("Perplexity needs the mean loss or the logits; predicted tokens alone do not give it.")
        values["perplexity"] = math.exp(min(loss, LARGEST_EXPONENT))
    return values if loss is None else {**values, "loss": loss}


def check_labels(labels: Int[np.ndarray, " examples"], num_labels: int | None) -> None:
    """Refuses label numbers outside the set.

    Args:
      labels: Label numbers.
      num_labels: Number of labels, or None where unknown.

    Raises:
      DataError: A label is negative or too large; names it and its example.
    """
    wrong = (labels < 0) | (labels >= num_labels) if num_labels else labels < 0
    if wrong.any():
        first = int(np.argmax(wrong))
        limit = f"to {num_labels - 1}" if num_labels else "upwards"
        raise DataError(
            f"Label {int(labels[first])} of example {first} is outside the set: labels are numbers from 0 {limit}."
        )


def label_f1(
    predictions: Int[np.ndarray, " examples"], labels: Int[np.ndarray, " examples"], num_labels: int
) -> list[float]:
    """Returns the F1 of each label against all others; 0.0 for a label that is neither present nor predicted.

    Args:
      predictions: Predicted label numbers.
      labels: True label numbers.
      num_labels: Number of labels.
    """
    scores: Float[np.ndarray, " labels"] = scikit_learn().f1_score(
        labels, predictions, labels=list(range(num_labels)), average=None, zero_division=0
    )
    return [float(score) for score in scores]
