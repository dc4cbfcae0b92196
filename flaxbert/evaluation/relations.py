"""Scores of relations as the official script of SemEval-2010 task 8 computes them."""

from collections.abc import Callable, Sequence

import numpy as np

from flaxbert.errors import DataError

NO_RELATION = frozenset({"other", "no_relation", "none", "na"})
"""Names, in lower case, of what is no relation and takes no part in the mean."""


def relation_groups(names: Sequence[str]) -> list[list[int]]:
    """Returns the label numbers of each relation, both directions together, without what is no relation.

    Args:
      names: Label names in order, such as ``Cause-Effect(e1,e2)``.

    Example:
      >>> relation_groups(["Other", "A(e1,e2)", "B(e1,e2)", "A(e2,e1)"])
      [[1, 3], [2]]
    """
    groups: dict[str, list[int]] = {}
    for number, name in enumerate(names):
        relation = name.partition("(")[0]
        if relation.lower() not in NO_RELATION:
            groups.setdefault(relation, []).append(number)
    return list(groups.values())


def relation_f1(names: Sequence[str]) -> Callable[[np.ndarray, np.ndarray], float]:
    """Returns the official metric: the mean over relations of the F1 with direction.

    A prediction is right where relation and direction are; one of the right relation in the wrong direction counts among
    the predicted and the true ones. A relation that is neither predicted nor true counts with 0.

    Args:
      names: Label names in order.

    Raises:
      DataError: No label is a relation.
    """
    groups = relation_groups(names)
    if not groups:
        raise DataError(f"None of the labels {', '.join(names)} is a relation.")

    def compute(predictions: np.ndarray, labels: np.ndarray) -> float:
        scores = []
        for group in groups:
            predicted, true = np.isin(predictions, group), np.isin(labels, group)
            right, total = int((predicted & (predictions == labels)).sum()), int(predicted.sum() + true.sum())
            scores.append(2.0 * right / total if total else 0.0)
        return float(np.mean(scores))

    return compute
