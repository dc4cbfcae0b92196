"""Bringing model outputs and labels into the form that metrics compare."""

from collections.abc import Sequence
from typing import Literal

import numpy as np

from flaxbert.architecture import resolve_task
from flaxbert.config import IGNORED_LABEL
from flaxbert.errors import ConfigError, DataError, TrainingError, nearest

MetricKind = Literal["single_label", "multi_label", "regression", "token", "masked_lm"]
"""What the labels of a task are, and hence which metrics measure it."""

Arrays = np.ndarray | Sequence[np.ndarray]
"""One array over all examples, or one array per example where lengths differ."""


def metric_kind(task: str, problem_type: str = "") -> MetricKind:
    """Returns which set of ``METRICS`` a task is measured by.

    Args:
      task: A task name or alias.
      problem_type: For sequence classification: single_label_classification (also when empty), multi_label_classification
        or regression.

    Raises:
      ConfigError: The task or the problem type is unknown, or the task has no labels to compare with.
    """
    task = resolve_task(task)
    if task == "token-classification":
        return "token"
    if task in ("fill-mask", "pretraining"):
        return "masked_lm"
    if task == "sentence-similarity":
        return "regression"
    if task == "next-sentence-prediction":
        return "single_label"
    if task == "feature-extraction":
        raise ConfigError(
            "The task 'feature-extraction' has no labels, so nothing can be measured; choose another task."
        )
    kinds: dict[str, MetricKind] = {
        "": "single_label",
        "single_label_classification": "single_label",
        "multi_label_classification": "multi_label",
        "regression": "regression",
    }
    if problem_type not in kinds:
        known = [name for name in kinds if name]
        raise ConfigError(
            f"Unknown problem type '{problem_type}'; known are {', '.join(known)}.{nearest(problem_type, known)}"
        )
    return kinds[problem_type]


def predictions_from_logits(kind: MetricKind, logits: np.ndarray) -> np.ndarray:
    """Turns model outputs into what metrics compare with labels.

    Args:
      kind: Which metrics; see ``metric_kind``.
      logits: Floats with the labels on the last axis, or whole numbers that already are predicted labels.

    Returns:
      Label numbers (single-label, token, masked language model: the argmax), 0 or 1 per label (multi-label: sigmoid of at
      least 0.5), or the numbers themselves as float64 ``[examples]`` (regression, one output).

    Raises:
      DataError: A regression has several outputs.
      TrainingError: An output is not finite.
    """
    if kind == "regression":
        if logits.ndim > 1 and logits.shape[-1] != 1:
            raise DataError(f"A regression needs one output per example, but the model gives logits {logits.shape}.")
        logits = logits.astype(np.float64).reshape(-1)
    elif logits.dtype.kind in "iub":
        return logits.astype(np.int64)
    elif logits.dtype.kind != "f":
        logits = logits.astype(np.float32)  # bfloat16 is no float to numpy
    bad = ~np.isfinite(logits)
    if bad.any():
        raise TrainingError(
            f"The model's outputs are not finite: {int(bad.sum())} of {bad.size} values, first in example "
            f"{int(np.argwhere(bad)[0][0])}. Load an earlier checkpoint, or train with a lower learning rate."
        )
    if kind == "regression":
        return logits
    return (logits >= 0).astype(np.int64) if kind == "multi_label" else np.argmax(logits, axis=-1).astype(np.int64)


def flatten_tokens(logits: Arrays, labels: Arrays) -> tuple[np.ndarray, np.ndarray]:
    """Returns the logits and labels of the tokens that count, one after the other.

    Args:
      logits: ``[examples, length, labels]`` or ``[tokens, labels]``, or per example ``[length, labels]`` where padding at
        the end may make it longer than the labels. Without the last axis: predicted labels.
      labels: The same without the last axis; -100 marks ignored tokens.

    Raises:
      DataError: The shapes do not belong together.
    """
    if not isinstance(logits, np.ndarray) or not isinstance(labels, np.ndarray):
        pairs = list(zip(logits, labels, strict=True)) if len(logits) == len(labels) else []
        if len(pairs) != len(labels) or any(len(scores) < len(truth) for scores, truth in pairs):
            raise DataError(
                f"Logits of {len(logits)} and labels of {len(labels)} examples do not belong together: each example needs "
                "one row of logits per labelled token."
            )
        if not pairs:
            return np.zeros((0, 1), np.float32), np.zeros(0, np.int64)
        logits = np.concatenate([np.asarray(scores)[: len(truth)] for scores, truth in pairs])
        labels = np.concatenate([np.asarray(truth) for _, truth in pairs])
    if logits.shape[: labels.ndim] != labels.shape or logits.ndim - labels.ndim not in (0, 1):
        raise DataError(f"Logits {logits.shape} and labels {labels.shape} do not belong to the same tokens.")
    kept = labels != IGNORED_LABEL
    return logits[kept], labels[kept].astype(np.int64)


def align(kind: MetricKind, logits: Arrays, labels: Arrays) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns logits, predictions and labels that belong together, without ignored tokens.

    Args:
      kind: Which metrics; see ``metric_kind``.
      logits: As for ``predictions_from_logits``; for tokens as for ``flatten_tokens``.
      labels: One per example, or per token with -100 where ignored, or zeros and ones per label.

    Returns:
      The logits as given (of tokens: flat), what they predict, and the labels in the predictions' shape.

    Raises:
      DataError: The shapes do not belong together, a label is not of the kind, or nothing is left to measure.
      TrainingError: An output is not finite.
    """
    if kind in ("token", "masked_lm"):
        logits, labels = flatten_tokens(logits, labels)
    logits, labels = np.asarray(logits), np.asarray(labels)
    predictions = predictions_from_logits(kind, logits)
    if kind == "regression":
        labels = labels.astype(np.float64).reshape(-1)
        if not np.isfinite(labels).all():
            raise DataError(f"The score of example {int(np.argmin(np.isfinite(labels)))} is not a finite number.")
    else:
        labels = labels.astype(np.int64)
    if predictions.shape != labels.shape:
        raise DataError(f"Logits {logits.shape} and labels {labels.shape} do not belong to the same examples.")
    if labels.size == 0:
        raise DataError(
            "There is nothing to evaluate: no example, or every token is ignored. Check the evaluation data."
        )
    if kind == "multi_label" and not np.isin(labels, (0, 1)).all():
        raise DataError(f"Multi-label targets are zeros and ones, but hold {sorted(set(labels.flat) - {0, 1})[:3]}.")
    return logits, predictions, labels
