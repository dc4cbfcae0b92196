"""Quality against the reference: pairs of draws, agreement, and what can not be compared."""

import dataclasses

import numpy as np
import pytest

from flaxbert.comparison.folders import find_folders
from flaxbert.comparison.quality import (
    CORRELATED,
    SAME,
    agree,
    check_quality,
    quality_of,
    reference_labels,
    why_not_judged,
)
from flaxbert.config import DataConfig
from flaxbert.errors import ConfigError
from flaxbert.evaluation.score import Judged, judge
from flaxbert.model import load
from flaxbert.tasks.base import Scored, no_report


def judged(predictions, truth, decisions=None, statistics=None):
    predictions, truth = np.asarray(predictions), np.asarray(truth)
    value = float(np.mean(predictions == truth))
    scored = Scored({"accuracy": value}, (predictions, truth), statistics or {"accuracy": "accuracy"}, no_report)
    return Judged(len(truth), "accuracy", True, scored, tuple(decisions or map(str, predictions.tolist())))


def test_differences_are_drawn_in_pairs():
    truth = np.arange(40) % 3
    reference = np.where(np.arange(40) < 8, (truth + 1) % 3, truth)
    better = np.where(np.arange(40) < 4, (truth + 1) % 3, truth)
    found = quality_of(judged(better, truth), judged(reference, truth), num_resamples=200)
    assert found.difference.value == pytest.approx(0.1)
    assert found.difference.low >= 0.0  # it is nowhere worse, so no draw of pairs can make it worse
    assert found.interval.low < 0.9 < found.interval.high
    assert (found.agreement_name, found.agreement) == (SAME, pytest.approx(0.9))
    alone = quality_of(judged(better, truth), num_resamples=20)
    assert (alone.difference, alone.agreement, alone.agreement_name) == (None, None, "")


def test_metrics_without_rows_have_no_interval():
    found = quality_of(judged([1, 0], [1, 1], statistics={"other": "accuracy"}), judged([1, 1], [1, 1]))
    assert (found.interval, found.difference) == (None, None)
    assert found.agreement == 0.5


def test_other_rows_are_refused():
    with pytest.raises(ConfigError, match="2 rows of 2 examples and the reference on 3 of 3"):
        quality_of(judged([1, 0], [1, 1]), judged([1, 0, 1], [1, 1, 1]))


@pytest.mark.parametrize(
    ("mine", "theirs", "name", "value"),
    [
        (["a", "b"], ["a", "c"], SAME, 0.5),
        ([(3, 5), (1, 2)], [(3, 5), (1, 3)], SAME, 0.5),
        ([("O", "B-x", "O"), ("O",)], [("O", "O", "O"), ("O",)], SAME, 0.75),
        ([("O",)], [("O", "O")], SAME, 0.0),
        ([0.1, 0.2, 0.9], [1.0, 3.0, 7.0], CORRELATED, 1.0),
        ([0.1, 0.2, 0.9], [1.0, -3.0, -7.0], CORRELATED, -1.0),
    ],
)
def test_agreement_is_of_decisions_words_or_ranks(mine, theirs, name, value):
    first, second = (judged(range(len(d)), range(len(d)), decisions=d) for d in (mine, theirs))
    assert agree(first, second) == (name, pytest.approx(value))


@pytest.fixture(scope="module")
def folder(models):
    return find_folders([models["float"], models["int8"]])[0]


def changed(folder, task=None, has_tokenizer=True, **config):
    return dataclasses.replace(
        folder, task=task or folder.task, has_tokenizer=has_tokenizer, config=folder.config.replace(**config)
    )


def test_models_that_are_not_for_the_same_are_told_apart(folder):
    assert why_not_judged(folder, folder) == ""
    assert "for token-classification, the reference for sequence" in why_not_judged(
        changed(folder, "token-classification"), folder
    )
    assert "no tokenizer" in why_not_judged(changed(folder, has_tokenizer=False), folder)
    assert "its labels are a, b, c, the reference's bad, fair, good" in why_not_judged(
        changed(folder, labels=("a", "b", "c")), folder
    )
    regression = changed(folder, labels=("x",), num_labels=1, problem_type="regression")
    assert "problem type is regression" in why_not_judged(regression, folder)
    assert why_not_judged(changed(regression, labels=("y",)), regression) == ""
    sentences = changed(folder, "sentence-similarity"), changed(folder, "feature-extraction", labels=())
    assert why_not_judged(*sentences) == ""


def test_a_reference_without_labels_is_refused_with_what_to_do(folder):
    with pytest.raises(ConfigError, match=r"'float' can not be measured: it is for 'fill-mask'.*Leave out --examples"):
        check_quality(changed(folder, "fill-mask"))
    with pytest.raises(ConfigError, match="no tokenizer"):
        check_quality(changed(folder, has_tokenizer=False))
    check_quality(folder)
    check_quality(changed(folder, "sentence-similarity"))


def test_labels_in_another_order_are_brought_into_the_reference_s(models, folder, examples):
    other = changed(folder, labels=("good", "bad", "fair"))
    assert reference_labels(folder, folder) is None
    assert reference_labels(other, folder) == ("bad", "fair", "good")
    model, config = load(models["float"]), DataConfig(max_length=0)
    turned = load(models["float"], labels=("good", "bad", "fair"))
    first, second = judge(model, config, examples), judge(turned, config, examples)
    assert first.decisions == second.decisions
    assert first.scored.metrics["accuracy"] == second.scored.metrics["accuracy"] == 0.75
