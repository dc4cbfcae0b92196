"""Sequence classification: one label, several labels or a number for a text or a pair of texts."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

import numpy as np
from jaxtyping import Float

from flaxbert.config import ProblemType
from flaxbert.data.columns import (
    Examples,
    LabelSet,
    count_labels,
    encode_labels,
    infer_problem_type,
    label_set,
    read_examples,
)
from flaxbert.data.sources import as_texts
from flaxbert.data.tables import Table
from flaxbert.data.tokenization import tokenize
from flaxbert.errors import DataError
from flaxbert.evaluation.alignment import align, metric_kind
from flaxbert.evaluation.metrics import LOSS_METRICS, compute_metrics, metric_names
from flaxbert.evaluation.report import classification_report
from flaxbert.tasks.base import Encoded, Outputs, Scored, Setting, Task, one_line, softmax


@dataclasses.dataclass(frozen=True)
class Prediction:
    """What a classifier says of one input.

    Attributes:
      label: Name of the best label; for multi-label models the names above 0.5, joined by commas; for regression empty.
      score: Probability of the best label (highest of the chosen ones for multi-label), or the regression value.
      scores: Probability per label name, or the regression value under its label name.
    """

    label: str
    score: float
    scores: Mapping[str, float]


def predictions_from_logits(
    names: Sequence[str], problem_type: str, logits: Float[np.ndarray, "texts labels"]
) -> list[Prediction]:
    """Turns raw scores into predictions.

    Args:
      names: Label names in order.
      problem_type: single_label_classification (also where empty), multi_label_classification or regression.
      logits: Raw scores.

    Returns:
      One prediction per row.
    """
    logits = np.asarray(logits, np.float64)
    if problem_type == "regression":
        return [Prediction("", float(row[0]), _by_name(names, row)) for row in logits]
    if problem_type == "multi_label_classification":
        scores = 1.0 / (1.0 + np.exp(-logits))
        return [_multi_label(names, row) for row in scores]
    scores = softmax(logits)
    best = scores.argmax(axis=1)
    return [
        Prediction(str(names[top]), float(row[top]), _by_name(names, row))
        for top, row in zip(best.tolist(), scores, strict=True)
    ]


def _by_name(names: Sequence[str], row: np.ndarray) -> dict[str, float]:
    return {name: float(value) for name, value in zip(names, row, strict=True)}


def _multi_label(names: Sequence[str], row: np.ndarray) -> Prediction:
    scores = _by_name(names, row)
    chosen = [name for name, value in scores.items() if value >= 0.5]
    return Prediction(",".join(chosen), max((scores[name] for name in chosen), default=0.0), scores)


def stack_rows(outputs: Outputs, num_labels: int) -> np.ndarray:
    """Returns logits ``[examples, labels]``, also of none.

    Args:
      outputs: One row per example.
      num_labels: Number of labels.
    """
    return np.asarray(outputs) if len(outputs) else np.zeros((0, num_labels), np.float32)


class SequenceClassification(Task):
    """One label, several labels or a number for a text or a pair of texts."""

    name = "sequence-classification"

    def read(
        self, source: object, setting: Setting, *, split: str = "train", limit: int = 0, labelled: bool = True
    ) -> Examples:
        """See ``Task.read``."""
        config = setting.data if labelled else dataclasses.replace(setting.data, label_column="")
        return read_examples(source, config, split=split, limit=limit)

    def inputs(self, texts: Any, pairs: Any = None) -> Examples:
        """See ``Task.inputs``."""
        first, second = as_texts(texts)
        if pairs is not None:
            second = as_texts(pairs)[0]
            if len(second) != len(first):
                raise DataError(f"There are {len(first)} texts, but {len(second)} second texts; give one for each.")
        return Examples(first, second, None, (), Table("inputs", {"text": first}), np.arange(len(first)))

    def find_labels(self, examples: Any, setting: Setting, known: Sequence[str] = ()) -> tuple[tuple[str, ...], str]:
        """See ``Task.find_labels``."""
        kind = cast("ProblemType", setting.problem_type or infer_problem_type(examples))
        return tuple(label_set(examples, kind, setting.data, known)), kind

    def encode(self, tokenizer: Any, examples: Any, setting: Setting, *, labelled: bool = True) -> Encoded:
        """See ``Task.encode``."""
        features = tokenize(
            tokenizer,
            examples.texts,
            examples.pairs,
            max_length=setting.max_length,
            truncation=setting.data.truncation,
            where=examples.where,
            warn=False,
        )
        if not labelled:
            return Encoded(examples, features)
        kind = cast("ProblemType", setting.problem_type or "single_label_classification")
        numbers = encode_labels(examples, LabelSet(setting.labels), kind, setting.data)
        return Encoded(examples, features.with_labels(numbers))

    def decode(self, encoded: Encoded, outputs: Outputs, setting: Setting) -> list[Prediction]:
        """See ``Task.decode``."""
        logits = stack_rows(outputs, len(setting.labels))
        return predictions_from_logits(setting.labels, setting.problem_type, logits)

    def score(self, encoded: Encoded, outputs: Outputs, setting: Setting) -> Scored:
        """See ``Task.score``."""
        labels = encoded.features.labels
        if labels is None:
            raise DataError("The examples have no labels, so that nothing can be measured; check data.label_column.")
        logits, names, kind = np.asarray(outputs), setting.labels, setting.problem_type
        metrics = compute_metrics(self.name, kind, logits, labels, names)
        _, predictions, truth = align(metric_kind(self.name, kind), logits, labels)
        return Scored(
            metrics=metrics,
            rows=(predictions, truth),
            statistics={name: name for name in metrics if name not in LOSS_METRICS},
            make_report=lambda: classification_report(self.name, kind, logits, labels, names),
        )

    def metric_names(self, setting: Setting) -> dict[str, bool]:
        """See ``Task.metric_names``."""
        return metric_names(self.name, setting.problem_type, len(setting.labels) or None)

    def describe(self, examples: Any, index: int, prediction: Any) -> dict[str, Any]:
        """See ``Task.describe``."""
        described = {
            "text": examples.texts[index],
            "label": prediction.label,
            "score": prediction.score,
            "scores": prediction.scores,
        }
        return described if examples.pairs is None else {**described, "text_pair": examples.pairs[index]}

    def lines(self, examples: Any, index: int, prediction: Any) -> Iterator[str]:
        """See ``Task.lines``."""
        yield f"{prediction.label}\t{prediction.score:.4f}\t{one_line(examples.texts[index])}"

    def decision(self, prediction: Prediction, setting: Setting) -> str | float:
        """See ``Task.decision``."""
        return prediction.score if setting.problem_type == "regression" else prediction.label

    def summary(self, encoded: Encoded, setting: Setting) -> dict[str, int]:
        """See ``Task.summary``."""
        kind = cast("ProblemType", setting.problem_type or "single_label_classification")
        return count_labels(encoded.features.labels, LabelSet(setting.labels), kind)

    def texts(self, examples: Any) -> tuple[Sequence[str], ...]:
        """See ``Task.texts``."""
        return (examples.texts,) if examples.pairs is None else (examples.texts, examples.pairs)


class NextSentencePrediction(SequenceClassification):
    """Whether the second text of a pair follows the first; the head is that of pre-training and names no labels."""

    name = "next-sentence-prediction"
    names_labels = False

    def find_labels(self, examples: Any, setting: Setting, known: Sequence[str] = ()) -> tuple[tuple[str, ...], str]:
        """See ``Task.find_labels``."""
        return ("is_next", "is_not_next"), "single_label_classification"

    def decode(self, encoded: Encoded, outputs: Outputs, setting: Setting) -> list[Prediction]:
        """See ``Task.decode``."""
        names, kind = self.find_labels(None, setting)
        return predictions_from_logits(names, kind, stack_rows(outputs, len(names)))
