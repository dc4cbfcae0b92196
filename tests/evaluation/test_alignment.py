"""Outputs and labels meet in the same shape, or the error says why they can not."""

import jax.numpy as jnp
import numpy as np
import pytest

from flaxbert.errors import ConfigError, DataError, TrainingError
from flaxbert.evaluation.alignment import align, flatten_tokens, metric_kind, predictions_from_logits


@pytest.mark.parametrize(
    ("task", "problem_type", "kind"),
    [
        ("text-classification", "", "single_label"),
        ("sequence-classification", "multi_label_classification", "multi_label"),
        ("sequence-classification", "regression", "regression"),
        ("ner", "", "token"),
        ("fill-mask", "", "masked_lm"),
        ("sentence-similarity", "", "regression"),
        ("next-sentence-prediction", "", "single_label"),
    ],
)
def test_kind_of_each_task(task, problem_type, kind):
    assert metric_kind(task, problem_type) == kind


def test_unknown_problem_type_names_the_nearest():
    with pytest.raises(ConfigError, match="Did you mean 'regression'"):
        metric_kind("sequence-classification", "regresion")


def test_a_task_without_labels_can_not_be_measured():
    with pytest.raises(ConfigError, match="feature-extraction"):
        metric_kind("feature-extraction")


def test_sigmoid_of_one_half_counts_as_predicted():
    assert predictions_from_logits("multi_label", np.array([[-0.1, 0.0, 2.0]])).tolist() == [[0, 1, 1]]


def test_bfloat16_logits_are_floats():
    logits = np.asarray(jnp.array([[0.25, 0.75], [0.75, 0.25]], jnp.bfloat16))
    assert predictions_from_logits("single_label", logits).tolist() == [1, 0]


def test_rows_that_are_padded_at_the_end_are_cut_to_their_labels():
    logits = [np.eye(3, dtype=np.float32), np.eye(3, dtype=np.float32)]
    labels = [np.array([0, -100]), np.array([2, 1, 2])]
    flat, truth = flatten_tokens(logits, labels)
    assert truth.tolist() == [0, 2, 1, 2]
    assert flat.argmax(-1).tolist() == [0, 0, 1, 2]


def test_too_few_rows_of_logits():
    with pytest.raises(DataError, match="do not belong together"):
        flatten_tokens([np.zeros((1, 3), np.float32)], [np.array([0, 1])])


@pytest.mark.parametrize(
    ("kind", "logits", "labels", "message"),
    [
        ("single_label", np.zeros((3, 2)), np.zeros(4, np.int64), "do not belong to the same examples"),
        ("single_label", np.zeros((0, 2)), np.zeros(0, np.int64), "nothing to evaluate"),
        ("token", np.zeros((2, 2, 3)), np.full((2, 2), -100), "nothing to evaluate"),
        ("regression", np.zeros((2, 2)), np.zeros(2), "one output per example"),
        ("regression", np.zeros(2), np.array([1.0, np.nan]), "score of example 1"),
        ("multi_label", np.zeros((2, 2)), np.array([[0, 1], [2, 0]]), "zeros and ones"),
    ],
)
def test_what_does_not_fit_is_named(kind, logits, labels, message):
    with pytest.raises(DataError, match=message):
        align(kind, logits, labels)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_named_with_its_example(value):
    logits = np.array([[0.0, 1.0], [value, 1.0]])
    with pytest.raises(TrainingError, match="1 of 4 values, first in example 1"):
        align("single_label", logits, np.array([0, 1]))
