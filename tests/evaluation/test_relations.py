"""The metric of SemEval-2010 task 8 on cases counted by hand."""

import numpy as np
import pytest

from flaxbert.errors import DataError
from flaxbert.evaluation.relations import relation_f1, relation_groups

NAMES = ("Other", "A(e1,e2)", "A(e2,e1)", "B(e1,e2)")


def test_both_directions_are_one_relation_and_other_is_none():
    assert relation_groups(NAMES) == [[1, 2], [3]]


def test_the_wrong_direction_is_wrong():
    truth = np.array([1, 1, 2, 3, 0, 0])
    predictions = np.array([1, 2, 2, 0, 3, 0])
    # A: 2 right of 3 predicted and 3 true; B: none right of one predicted and one true; Other does not count.
    assert relation_f1(NAMES)(predictions, truth) == pytest.approx((2 / 3 + 0.0) / 2)
    assert relation_f1(NAMES)(truth, truth) == 1.0


def test_a_relation_that_never_occurs_counts_with_zero():
    assert relation_f1(NAMES)(np.array([1]), np.array([1])) == 0.5


def test_labels_without_a_relation_are_refused():
    with pytest.raises(DataError, match="is a relation"):
        relation_f1(("Other", "no_relation"))
