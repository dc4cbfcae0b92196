import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxbert.config import IGNORED_LABEL
from flaxbert.errors import ConfigError, ShapeError
from flaxbert.train.losses import loss_for, negative_log_likelihood

TOLERANCE = 2e-6
"""Relative error of a float32 sum of a few dozen logarithms."""

RANDOM = np.random.default_rng(0)
LOGITS = RANDOM.normal(scale=3.0, size=(9, 5)).astype(np.float32)
LABELS = RANDOM.integers(0, 5, 9).astype(np.int32)
CLASS_WEIGHTS = (0.2, 1.0, 3.5, 0.0, 1.7)


def value_and_gradient(loss, logits, **batch):
    def quotient(scores):
        total, weight = loss(types.SimpleNamespace(logits=scores), batch)
        return total / weight

    return jax.jit(jax.value_and_grad(quotient))(jnp.asarray(logits))


def torch_value_and_gradient(criterion, logits, labels):
    torch = pytest.importorskip("torch", reason="torch is the oracle")
    scores = torch.tensor(logits, requires_grad=True)
    value = criterion(scores, torch.tensor(labels))
    value.backward()
    return value.item(), scores.grad.numpy()


def assert_same(ours, theirs):
    np.testing.assert_allclose(float(ours[0]), theirs[0], rtol=TOLERANCE)
    np.testing.assert_allclose(np.asarray(ours[1]), theirs[1], rtol=1e-5, atol=1e-7)


@pytest.mark.parity
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
@pytest.mark.parametrize("weights", [(), CLASS_WEIGHTS])
def test_single_label_equals_torch(smoothing, weights):
    torch = pytest.importorskip("torch", reason="torch is the oracle")
    criterion = torch.nn.CrossEntropyLoss(weight=torch.tensor(weights) if weights else None, label_smoothing=smoothing)
    loss = loss_for("sequence-classification", label_smoothing_rate=smoothing, class_weights=weights)
    ours = value_and_gradient(loss, LOGITS, labels=jnp.asarray(LABELS))
    assert_same(ours, torch_value_and_gradient(criterion, LOGITS, LABELS.astype(np.int64)))


@pytest.mark.parity
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("weights", [(), CLASS_WEIGHTS])
def test_token_labels_equal_torch_with_ignored_positions(smoothing, weights):
    torch = pytest.importorskip("torch", reason="torch is the oracle")
    logits = RANDOM.normal(size=(3, 7, 5)).astype(np.float32)
    labels = RANDOM.integers(0, 5, (3, 7)).astype(np.int32)
    labels[:, ::3] = IGNORED_LABEL
    criterion = torch.nn.CrossEntropyLoss(weight=torch.tensor(weights) if weights else None, label_smoothing=smoothing)
    loss = loss_for("token-classification", label_smoothing_rate=smoothing, class_weights=weights)
    value, gradient = value_and_gradient(loss, logits, labels=jnp.asarray(labels))
    theirs = torch_value_and_gradient(criterion, logits.reshape(-1, 5), labels.reshape(-1).astype(np.int64))
    assert_same((value, np.asarray(gradient).reshape(-1, 5)), theirs)


@pytest.mark.parity
@pytest.mark.parametrize("weights", [(), CLASS_WEIGHTS])
def test_multi_label_equals_torch(weights):
    torch = pytest.importorskip("torch", reason="torch is the oracle")
    labels = RANDOM.integers(0, 2, (9, 5)).astype(np.float32)
    criterion = torch.nn.BCEWithLogitsLoss(weight=torch.tensor(weights) if weights else None)
    loss = loss_for("sequence-classification", "multi_label_classification", class_weights=weights)
    ours = value_and_gradient(loss, LOGITS, labels=jnp.asarray(labels))
    assert_same(ours, torch_value_and_gradient(criterion, LOGITS, labels))


@pytest.mark.parity
def test_regression_equals_torch():
    torch = pytest.importorskip("torch", reason="torch is the oracle")
    scores, labels = LOGITS[:, :1], RANDOM.normal(size=9).astype(np.float32)
    loss = loss_for("sequence-classification", "regression")
    ours = value_and_gradient(loss, scores, labels=jnp.asarray(labels))
    assert_same(ours, torch_value_and_gradient(torch.nn.MSELoss(), scores, labels[:, None]))


@pytest.mark.parity
@pytest.mark.parametrize("task", ["fill-mask", "next-sentence-prediction"])
def test_pretraining_heads_equal_torch(task):
    torch = pytest.importorskip("torch", reason="torch is the oracle")
    shape = (4, 6, 50) if task == "fill-mask" else (4, 2)
    logits = RANDOM.normal(size=shape).astype(np.float32)
    labels = RANDOM.integers(0, shape[-1], shape[:-1]).astype(np.int32)
    if task == "fill-mask":
        labels[RANDOM.uniform(size=labels.shape) > 0.3] = IGNORED_LABEL
    value, gradient = value_and_gradient(loss_for(task), logits, labels=jnp.asarray(labels))
    theirs = torch_value_and_gradient(
        torch.nn.CrossEntropyLoss(), logits.reshape(-1, shape[-1]), labels.reshape(-1).astype(np.int64)
    )
    assert_same((value, np.asarray(gradient).reshape(-1, shape[-1])), theirs)


def test_example_weights_weigh_rows_and_drop_fillers_even_when_they_are_not_finite():
    logits = LOGITS.copy()
    logits[4] = np.nan
    weights = np.array([1, 2, 0.5, 1, 0, 0, 3, 1, 1], np.float32)
    loss = loss_for("sequence-classification")
    total, weight = loss(
        types.SimpleNamespace(logits=jnp.asarray(logits)),
        {"labels": jnp.asarray(LABELS), "example_weight": jnp.asarray(weights)},
    )
    kept = weights > 0
    shifted = LOGITS[kept] - LOGITS[kept].max(axis=1, keepdims=True)
    expected = np.log(np.exp(shifted).sum(axis=1)) - shifted[np.arange(kept.sum()), LABELS[kept]]
    np.testing.assert_allclose(float(total), np.sum(expected * weights[kept]), rtol=1e-5)
    np.testing.assert_allclose(float(weight), weights.sum(), rtol=1e-6)


def test_micro_batches_add_up_to_the_batch():
    loss = loss_for("sequence-classification", label_smoothing_rate=0.1, class_weights=CLASS_WEIGHTS)

    def sums(rows):
        return loss(types.SimpleNamespace(logits=jnp.asarray(LOGITS[rows])), {"labels": jnp.asarray(LABELS[rows])})

    whole, pieces = sums(slice(None)), [sums(slice(0, 2)), sums(slice(2, 9))]
    np.testing.assert_allclose(float(whole[0]), sum(float(piece[0]) for piece in pieces), rtol=1e-6)
    np.testing.assert_allclose(float(whole[1]), sum(float(piece[1]) for piece in pieces), rtol=1e-6)


def test_half_precision_scores_are_compared_in_float32():
    total, weight = loss_for("sequence-classification")(
        types.SimpleNamespace(logits=jnp.asarray(LOGITS, jnp.bfloat16)), {"labels": jnp.asarray(LABELS)}
    )
    assert total.dtype == jnp.float32
    assert weight.dtype == jnp.float32


def test_likelihood_of_large_scores_is_finite():
    logits = jnp.asarray([[1e4, -1e4], [-3e4, 2e4]], jnp.float32)
    losses, _ = negative_log_likelihood(logits, jnp.asarray([1, 1], jnp.int32))
    np.testing.assert_allclose(np.asarray(losses), [2e4, 0.0], rtol=1e-6)


def test_a_batch_without_any_label_has_weight_zero_and_no_gradient():
    labels = jnp.full((9,), IGNORED_LABEL, jnp.int32)
    loss = loss_for("sequence-classification")
    gradient = jax.grad(lambda scores: loss(types.SimpleNamespace(logits=scores), {"labels": labels})[0])
    assert float(loss(types.SimpleNamespace(logits=jnp.asarray(LOGITS)), {"labels": labels})[1]) == 0.0
    assert float(jnp.max(jnp.abs(gradient(jnp.asarray(LOGITS))))) == 0.0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"task": "sequence-classification", "problem_type": "regresion"}, "Did you mean 'regression'"),
        ({"task": "sequence-clasification"}, "Did you mean 'sequence-classification'"),
        ({"task": "sentence-similarity"}, "has no training loss"),
        ({"task": "question-answering", "label_smoothing_rate": 0.1}, "do not apply to question answering"),
        ({"task": "token-classification", "class_weights": (1.0, 2.0), "num_labels": 3}, "2 entries.*3 labels"),
        ({"task": "token-classification", "class_weights": (1.0, -2.0)}, "not negative"),
        ({"task": "token-classification", "class_weights": (0.0, 0.0)}, "not all 0"),
        ({"task": "text-classification", "problem_type": "regression", "class_weights": (1.0,)}, "do not apply"),
    ],
)
def test_unusable_settings_are_named(arguments, words):
    with pytest.raises(ConfigError, match=words):
        loss_for(**arguments)


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (None, "no 'labels'"),
        (np.zeros(9, np.float32), "whole numbers"),
        (np.zeros((9, 2), np.int32), r"\[9, 2\] for scores \[9, 5\]"),
    ],
)
def test_labels_that_do_not_fit_are_named(labels, words):
    batch = {} if labels is None else {"labels": jnp.asarray(labels)}
    with pytest.raises(ShapeError, match=words):
        loss_for("sequence-classification")(types.SimpleNamespace(logits=jnp.asarray(LOGITS)), batch)


def test_answers_are_the_mean_of_two_cross_entropies_over_what_is_no_padding():
    logits = RANDOM.normal(size=(3, 7, 2)).astype(np.float32)
    labels = np.array([[1, 2], [0, 0], [3, 3]], np.int32)
    mask = np.array([[1] * 7, [1] * 4 + [0] * 3, [1] * 5 + [0] * 2], np.int32)
    batch = {"labels": jnp.asarray(labels), "attention_mask": jnp.asarray(mask)}
    total, weight = loss_for("question-answering")(types.SimpleNamespace(logits=jnp.asarray(logits)), batch)
    expected = []
    for row, length in enumerate(mask.sum(axis=1)):
        scores = logits[row, :length].astype(np.float64)
        partition = np.log(np.exp(scores).sum(axis=0))
        expected.append(np.mean([partition[end] - scores[labels[row, end], end] for end in (0, 1)]))
    assert float(weight) == 3.0
    np.testing.assert_allclose(float(total), sum(expected), rtol=TOLERANCE)
    with pytest.raises(ShapeError, match=r"\[batch, 2\]"):
        loss_for("question-answering")(types.SimpleNamespace(logits=jnp.asarray(logits)), {"labels": jnp.zeros(3)})


def test_choices_are_classes():
    loss = loss_for("multiple-choice")
    total, weight = loss(types.SimpleNamespace(logits=jnp.asarray(LOGITS)), {"labels": jnp.asarray(LABELS)})
    expected, expected_weight = loss_for("sequence-classification")(
        types.SimpleNamespace(logits=jnp.asarray(LOGITS)), {"labels": jnp.asarray(LABELS)}
    )
    assert (float(total), float(weight)) == (float(expected), float(expected_weight))
