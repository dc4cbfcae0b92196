"""Scores of entities against seqeval and against cases counted by hand."""

import warnings

import numpy as np
import pytest

from flaxbert.data.entity_tags import decode_strict, decode_tags
from flaxbert.evaluation.bootstrap import bootstrap_interval
from flaxbert.evaluation.entities import count_spans, entity_report, precision_recall_f1, span_f1

LETTERS = {"iob2": "BI", "iobes": "BIES"}


def random_tags(generator, scheme):
    names = ["O", "O", *(f"{letter}-{label}" for letter in LETTERS[scheme] for label in ("A", "B"))]
    return [[names[i] for i in generator.integers(0, len(names), generator.integers(1, 9))] for _ in range(200)]


def totals(predicted, true):
    return count_spans(predicted, true, ("A", "B")).sum(axis=(0, 1)).tolist()


@pytest.mark.parametrize("scheme", ["iob2", "iobes"])
@pytest.mark.parametrize("strict", [False, True])
def test_scores_equal_seqeval_on_random_tags(scheme, strict):
    metrics = pytest.importorskip("seqeval.metrics", reason="needs the test extra")
    schemes = pytest.importorskip("seqeval.scheme", reason="needs the test extra")
    generator = np.random.default_rng(0)
    true = random_tags(generator, scheme)
    predicted = [list(tags) for tags in true]
    for tags, other in zip(predicted, random_tags(generator, scheme), strict=True):
        tags[: len(other) // 2] = (other[: len(other) // 2] + tags)[: len(tags)][: len(tags[: len(other) // 2])]
    decode = (lambda tags: decode_strict(tags, scheme)) if strict else decode_tags
    ours = precision_recall_f1(*totals([decode(tags) for tags in predicted], [decode(tags) for tags in true]))
    options = {"mode": "strict", "scheme": getattr(schemes, scheme.upper())} if strict else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = [
            getattr(metrics, f"{name}_score")(true, predicted, **options) for name in ("precision", "recall", "f1")
        ]
    assert ours == pytest.approx(theirs, abs=1e-12)
    assert 0.2 < ours[2] < 0.9


def test_the_example_of_seqeval_s_documentation():
    true = [["O", "O", "O", "B-A", "I-A", "I-A", "O"], ["B-B", "I-B", "O"]]
    predicted = [["O", "O", "B-A", "I-A", "I-A", "I-A", "O"], ["B-B", "I-B", "O"]]
    counts = count_spans([decode_tags(t) for t in predicted], [decode_tags(t) for t in true], ("A", "B"))
    report = entity_report(counts, ("A", "B"), 0.8)
    assert counts.sum(axis=(0, 1)).tolist() == [1, 2, 2]
    assert [entry.f1 for entry in report.scores] == [0.0, 1.0]
    assert {name: entry.f1 for name, entry in report.averages.items()} == {"micro": 0.5, "macro": 0.5, "weighted": 0.5}
    assert report.accuracy == 0.8
    assert "micro avg" in report.text


def test_the_example_of_strict_mode_in_seqeval_s_documentation():
    true = [["B-A", "I-A", "O"]]
    predicted = [["I-A", "I-A", "O"]]
    assert totals([decode_tags(t) for t in predicted], [decode_tags(t) for t in true]) == [1, 1, 1]
    assert totals([decode_strict(t, "iob2") for t in predicted], [decode_strict(t, "iob2") for t in true]) == [0, 0, 1]


def test_nothing_predicted_and_nothing_true_is_zero():
    assert precision_recall_f1(0, 0, 0) == (0.0, 0.0, 0.0)
    assert entity_report(count_spans([[]], [[]], ("A",)), ("A",), 1.0).averages["micro"].f1 == 0.0


def test_intervals_come_from_rows_of_counts():
    rows = np.array([[1, 1, 1], [0, 1, 1]] * 20)
    interval = bootstrap_interval(rows, rows, span_f1, num_resamples=50)
    assert interval.value == pytest.approx(0.5)
    assert interval.low < 0.5 < interval.high
