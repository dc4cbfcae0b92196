"""Every metric against numbers worked out by hand, or by torch where it has them."""

import math

import numpy as np
import pytest

from flaxbert.errors import ConfigError, DataError
from flaxbert.evaluation.metrics import METRICS, compute_metrics, label_f1, metric_names, primary_metric

SEQUENCE = "sequence-classification"
MULTI_LABEL = "multi_label_classification"
EXACT = {"rel": 1e-12, "abs": 1e-12}


def one_hot_logits(predictions, num_labels):
    return np.eye(num_labels, dtype=np.float32)[np.asarray(predictions)]


def test_binary_metrics_by_hand():
    # true positives 3, false positives 1, false negatives 2, true negatives 4
    labels = np.array([1, 1, 1, 1, 1, 0, 0, 0, 0, 0])
    predicted = [1, 1, 1, 0, 0, 1, 0, 0, 0, 0]
    values = compute_metrics(SEQUENCE, "", one_hot_logits(predicted, 2), labels, ("no", "yes"), loss=0.5)
    f1_yes, f1_no = 2 * 3 / (2 * 3 + 1 + 2), 2 * 4 / (2 * 4 + 2 + 1)
    assert values == {
        "accuracy": pytest.approx(0.7, **EXACT),
        "f1_macro": pytest.approx((f1_yes + f1_no) / 2, **EXACT),
        "f1_micro": pytest.approx(0.7, **EXACT),
        "f1_weighted": pytest.approx((5 * f1_yes + 5 * f1_no) / 10, **EXACT),
        "precision_macro": pytest.approx((3 / 4 + 4 / 6) / 2, **EXACT),
        "recall_macro": pytest.approx((3 / 5 + 4 / 5) / 2, **EXACT),
        "matthews_correlation": pytest.approx((3 * 4 - 1 * 2) / math.sqrt(4 * 5 * 5 * 6), **EXACT),
        "f1": pytest.approx(f1_yes, **EXACT),
        "precision": pytest.approx(3 / 4, **EXACT),
        "recall": pytest.approx(3 / 5, **EXACT),
        "loss": 0.5,
    }
    assert all(type(value) is float for value in values.values())


def test_three_labels_by_hand():
    labels, predicted = np.array([0, 0, 1, 1, 2, 2]), [0, 1, 1, 1, 2, 0]
    values = compute_metrics(SEQUENCE, "single_label_classification", one_hot_logits(predicted, 3), labels)
    assert values["accuracy"] == pytest.approx(4 / 6, **EXACT)
    # F1 of the labels: 0 has 1 hit, 1 miss, 1 false; 1 has 2 hits, 1 false; 2 has 1 hit, 1 miss
    assert values["f1_macro"] == pytest.approx((1 / 2 + 4 / 5 + 2 / 3) / 3, **EXACT)
    assert values["recall_macro"] == pytest.approx((1 / 2 + 1 + 1 / 2) / 3, **EXACT)
    assert values["precision_macro"] == pytest.approx((1 / 2 + 2 / 3 + 1) / 3, **EXACT)
    # Gorodkin's form: (hits * n - sum true * predicted) / sqrt((n^2 - sum predicted^2) * (n^2 - sum true^2))
    assert values["matthews_correlation"] == pytest.approx((4 * 6 - 12) / math.sqrt((36 - 14) * (36 - 12)), **EXACT)
    assert "f1" not in values


def test_multi_label_by_hand():
    labels = np.array([[1, 0, 1], [0, 1, 0], [1, 1, 0]])
    logits = np.array([[2.0, -1.0, -1.0], [-1.0, 1.0, -2.0], [1.0, -0.5, 3.0]])
    values = compute_metrics(SEQUENCE, MULTI_LABEL, logits, labels)
    # hits 3, false 1, misses 2
    assert values == {
        "f1_micro": pytest.approx(2 * 3 / (2 * 3 + 1 + 2), **EXACT),
        "f1_macro": pytest.approx((1.0 + 2 / 3 + 0.0) / 3, **EXACT),
        "precision_micro": pytest.approx(3 / 4, **EXACT),
        "recall_micro": pytest.approx(3 / 5, **EXACT),
        "exact_match": pytest.approx(1 / 3, **EXACT),
        "hamming_loss": pytest.approx(3 / 9, **EXACT),
        "loss": pytest.approx(float(np.mean(np.log1p(np.exp(np.where(labels == 1, -logits, logits))))), **EXACT),
    }


def test_regression_by_hand():
    scores, labels = np.array([[1.0], [2.0], [3.0], [5.0]]), np.array([1.0, 3.0, 2.0, 4.0])
    values = compute_metrics(SEQUENCE, "regression", scores, labels)
    # ranks 1 2 3 4 against 1 3 2 4: 1 - 6 * (1 + 1) / (4 * 15)
    assert values["spearman"] == pytest.approx(0.8, **EXACT)
    x, y = scores[:, 0] - 2.75, labels - 2.5
    assert values["pearson"] == pytest.approx(float((x * y).sum() / math.sqrt((x * x).sum() * (y * y).sum())), **EXACT)
    assert values["mse"] == pytest.approx(3 / 4, **EXACT)
    assert values["mae"] == pytest.approx(3 / 4, **EXACT)


def test_spearman_gives_ties_their_mean_rank():
    values = compute_metrics(SEQUENCE, "regression", np.array([1.0, 2.0, 2.0, 3.0]), np.array([1.0, 2.0, 3.0, 4.0]))
    x, y = np.array([1, 2.5, 2.5, 4]) - 2.5, np.array([1, 2, 3, 4]) - 2.5
    assert values["spearman"] == pytest.approx(float((x * y).sum() / math.sqrt((x * x).sum() * (y * y).sum())), **EXACT)


def test_tokens_by_hand():
    labels = np.array([[0, 1, -100], [2, 1, 0]])
    predicted = np.array([[0, 1, 2], [1, 1, 0]])
    values = compute_metrics("token-classification", "", one_hot_logits(predicted, 3), labels, ("O", "B-PER", "I-PER"))
    assert values["accuracy"] == pytest.approx(4 / 5, **EXACT)
    assert (values["f1/O"], values["f1/B-PER"], values["f1/I-PER"]) == (1.0, pytest.approx(4 / 5, **EXACT), 0.0)
    assert values["f1_macro"] == pytest.approx((1 + 4 / 5) / 3, **EXACT)


def test_ragged_tokens_equal_padded_ones():
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(3, 4, 5)), rng.integers(0, 5, (3, 4))
    labels[0, 2:] = labels[2, 3:] = -100
    ragged = [row[labels[i] != -100] for i, row in enumerate(labels)]
    padded = compute_metrics("token-classification", "", logits, labels)
    assert compute_metrics("token-classification", "", list(logits), ragged) == padded


def test_perplexity_equals_torch():
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(4, 6, 11)).astype(np.float32), rng.integers(0, 11, (4, 6))
    labels[:, 3] = -100
    loss = torch.nn.functional.cross_entropy(
        torch.tensor(logits).double().reshape(-1, 11), torch.tensor(labels).reshape(-1)
    )
    values = compute_metrics("fill-mask", "", logits, labels)
    assert values["perplexity"] == pytest.approx(math.exp(loss.item()), rel=1e-9)
    kept = labels != -100
    assert values["accuracy"] == pytest.approx(float((logits.argmax(-1) == labels)[kept].mean()), **EXACT)


def test_losses_equal_torch():
    torch = pytest.importorskip("torch")
    losses = torch.nn.functional
    rng = np.random.default_rng(0)
    logits, labels, several = rng.normal(size=(20, 5)) * 30, rng.integers(0, 5, 20), rng.integers(0, 2, (20, 5))
    expected = losses.cross_entropy(torch.tensor(logits), torch.tensor(labels)).item()
    assert compute_metrics(SEQUENCE, "", logits, labels)["loss"] == pytest.approx(expected, rel=1e-12)
    expected = losses.binary_cross_entropy_with_logits(torch.tensor(logits), torch.tensor(several).double()).item()
    assert compute_metrics(SEQUENCE, MULTI_LABEL, logits, several)["loss"] == pytest.approx(expected, rel=1e-12)
    values = compute_metrics(SEQUENCE, "regression", logits[:, 0], labels.astype(np.float64))
    assert values["loss"] == values["mse"]


def test_perplexity_from_the_loss_alone():
    predicted = labels = np.array([[1, 2, -100]])
    values = compute_metrics("fill-mask", "", predicted, labels, loss=math.log(8.0))
    assert values == {"accuracy": 1.0, "perplexity": pytest.approx(8.0, rel=1e-12), "loss": math.log(8.0)}
    with pytest.raises(DataError, match="needs the mean loss"):
        compute_metrics("fill-mask", "", predicted, labels)


def test_perplexity_of_a_huge_loss_stays_finite():
    labels = np.array([1])
    assert math.isfinite(compute_metrics("fill-mask", "", labels, labels, loss=1e6)["perplexity"])


def test_whole_numbers_are_predicted_labels():
    labels = np.array([0, 1, 1, 2])
    predicted = np.array([0, 1, 2, 2])
    names = ("a", "b", "c")
    from_logits = compute_metrics(SEQUENCE, "", one_hot_logits(predicted, 3), labels, names)
    assert from_logits.pop("loss") > 0
    assert compute_metrics(SEQUENCE, "", predicted, labels, names) == from_logits


@pytest.mark.parametrize("labels", [[0, 0, 0], [1, 1, 1], [0, 1, 0]])
@pytest.mark.parametrize("predicted", [[0, 0, 0], [1, 1, 1], [1, 0, 1]])
def test_one_label_only_gives_documented_values(labels, predicted):
    values = compute_metrics(SEQUENCE, "", one_hot_logits(predicted, 2), np.array(labels))
    assert all(math.isfinite(value) for value in values.values())
    if len(set(labels)) == 1 or len(set(predicted)) == 1:
        assert values["matthews_correlation"] == 0.0
    if 1 not in predicted or 1 not in labels:
        assert values["f1"] == 0.0
    if labels == predicted:
        assert values["accuracy"] == values["f1_macro"] == 1.0


def test_one_example():
    assert compute_metrics(SEQUENCE, "", np.array([[0.0, 1.0]]), np.array([1]))["accuracy"] == 1.0
    values = compute_metrics(SEQUENCE, "regression", np.array([3.0]), np.array([2.0]))
    assert values == {"spearman": 0.0, "pearson": 0.0, "mse": 1.0, "mae": 1.0, "loss": 1.0}


@pytest.mark.parametrize("scores", [[2.0, 2.0, 2.0], [2.0, 2.0 + 1e-15, 2.0]])
def test_constant_scores_have_no_correlation(scores):
    values = compute_metrics(SEQUENCE, "regression", np.array(scores), np.array([1.0, 2.0, 3.0]))
    assert abs(values["spearman"]) <= 1.0
    assert values["pearson"] == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("num_labels", [1, 2, 3])
def test_multi_label_without_any_label(num_labels):
    labels = np.zeros((4, num_labels), np.int64)
    values = compute_metrics(SEQUENCE, MULTI_LABEL, np.full((4, num_labels), -1.0), labels)
    assert values["f1_micro"] == values["f1_macro"] == 0.0
    assert (values["exact_match"], values["hamming_loss"]) == (1.0, 0.0)


def test_one_column_of_labels_is_measured_like_a_column():
    labels = np.array([[1], [1], [0], [0]])
    values = compute_metrics(SEQUENCE, MULTI_LABEL, np.array([[1.0], [-1.0], [1.0], [-1.0]]), labels)
    assert values["f1_micro"] == values["f1_macro"] == values["precision_micro"] == 0.5


def test_a_label_outside_the_set_is_named():
    with pytest.raises(DataError, match=r"Label 3 of example 1 is outside the set: labels are numbers from 0 to 1"):
        compute_metrics(SEQUENCE, "", np.zeros((2, 2)), np.array([0, 3]))


def test_every_metric_that_is_promised_is_computed():
    logits = np.array([[0.0, 1.0], [1.0, 0.0]])
    for task, problem_type, outputs, labels in (
        (SEQUENCE, "", logits, np.array([0, 1])),
        (SEQUENCE, MULTI_LABEL, logits, np.array([[0, 1], [1, 1]])),
        (SEQUENCE, "regression", logits[:, :1], np.array([0.0, 1.0])),
        ("token-classification", "", logits, np.array([0, 1])),
        ("fill-mask", "", logits, np.array([0, 1])),
    ):
        values = compute_metrics(task, problem_type, outputs, labels)
        assert set(metric_names(task, problem_type)) <= set(values)


@pytest.mark.parametrize(
    ("problem_type", "expected"),
    [("", ("accuracy", True)), (MULTI_LABEL, ("f1_micro", True)), ("regression", ("spearman", True))],
)
def test_first_metric_of_the_task(problem_type, expected):
    assert primary_metric(SEQUENCE, problem_type) == expected


def test_requested_metric():
    assert primary_metric(SEQUENCE, "", "matthews_correlation") == ("matthews_correlation", True)
    assert primary_metric(SEQUENCE, "regression", "mse") == ("mse", False)
    assert primary_metric(SEQUENCE, "", "loss") == ("loss", False)
    assert primary_metric("fill-mask", "", "perplexity") == ("perplexity", False)
    with pytest.raises(ConfigError, match=r"train\.metric is 'acuracy'.*Did you mean 'accuracy'"):
        primary_metric(SEQUENCE, "", "acuracy")
    with pytest.raises(ConfigError, match="'spearman'"):
        primary_metric(SEQUENCE, "", "spearman")
    with pytest.raises(ConfigError, match="'f1'"):
        primary_metric(SEQUENCE, "", "f1", num_labels=3)


def test_higher_is_better_says_the_truth():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 40)
    worse = np.where(np.arange(40) < 20, 1 - labels, labels)
    for name, metric in METRICS["single_label"].items():
        assert metric.higher_is_better == (metric.function(labels, labels) > metric.function(worse, labels)), name
    scores = labels + np.arange(40) / 40.0
    for name, metric in METRICS["regression"].items():
        assert metric.higher_is_better == (metric.function(scores, scores) > metric.function(-scores, scores)), name


def test_label_f1_of_an_absent_label_is_zero():
    assert label_f1(np.array([0, 1]), np.array([0, 1]), 3) == [1.0, 1.0, 0.0]
