"""How well entities are found: exact spans with exact labels, as conlleval and seqeval count them."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from flaxbert.evaluation.report import ClassificationReport, LabelScores, plain_label_text

Span = tuple[str, int, int]


def precision_recall_f1(right: float, predicted: float, true: float) -> tuple[float, float, float]:
    """Returns precision, recall and F1; 0.0 where the formula divides by zero.

    Args:
      right: Predicted entities that are true.
      predicted: Predicted entities.
      true: True entities.
    """
    precision, recall = right / predicted if predicted else 0.0, right / true if true else 0.0
    return precision, recall, 2.0 * right / (predicted + true) if predicted + true else 0.0


def count_spans(
    predicted: Sequence[Sequence[Span]], true: Sequence[Sequence[Span]], labels: Sequence[str]
) -> Int[np.ndarray, "sentences labels 3"]:
    """Returns, by sentence and label, the right, the predicted and the true entities.

    Args:
      predicted: Predicted entities by sentence.
      true: True entities by sentence.
      labels: Labels in order.
    """
    numbers = {label: number for number, label in enumerate(labels)}
    counts = np.zeros((len(true), len(labels), 3), np.int64)
    for row, (guesses, facts) in enumerate(zip(predicted, true, strict=True)):
        for place, spans in ((0, set(guesses) & set(facts)), (1, set(guesses)), (2, set(facts))):
            for label, _, _ in spans:
                counts[row, numbers[label], place] += 1
    return counts


def span_f1(counts: np.ndarray, same: np.ndarray) -> float:
    """Returns the F1 over all labels of rows of counts.

    Args:
      counts: Right, predicted and true entities ``[sentences, 3]``.
      same: The counts again, which stand where other metrics have the labels.
    """
    del same
    right, predicted, true = counts.sum(axis=0).tolist()
    return precision_recall_f1(right, predicted, true)[2]


def _label_scores(counts: np.ndarray) -> LabelScores:
    right, predicted, true = (int(count) for count in counts)
    precision, recall, f1 = precision_recall_f1(right, predicted, true)
    return LabelScores(precision, recall, f1, true)


def entity_report(
    counts: Int[np.ndarray, "sentences labels 3"], labels: Sequence[str], accuracy: float
) -> ClassificationReport:
    """Returns the scores per label of entities, with the averages of seqeval.

    Args:
      counts: From ``count_spans``.
      labels: Labels in order.
      accuracy: Share of words with the right tag.
    """
    by_label = counts.sum(axis=0)
    scores = [_label_scores(row) for row in by_label]
    support = int(by_label[:, 2].sum())
    table = np.array([[entry.precision, entry.recall, entry.f1] for entry in scores]).reshape(-1, 3)
    macro = table.mean(axis=0) if len(table) else np.zeros(3)
    weighted = by_label[:, 2] @ table / support if support else np.zeros(3)
    averages = {
        "micro": _label_scores(by_label.sum(axis=0)),
        "macro": LabelScores(float(macro[0]), float(macro[1]), float(macro[2]), support),
        "weighted": LabelScores(float(weighted[0]), float(weighted[1]), float(weighted[2]), support),
    }
    return ClassificationReport(
        labels=tuple(labels),
        scores=tuple(scores),
        averages=averages,
        accuracy=accuracy,
        confusion=None,
        text=plain_label_text(labels, scores, averages),
    )
