"""Labelled examples in, metrics with an interval and scores per label out."""

import functools
import json
import pathlib

import numpy as np
import pytest

from flaxbert.config import DataConfig
from flaxbert.errors import ConfigError, DataError
from flaxbert.evaluation.bootstrap import Interval, bootstrap_interval
from flaxbert.evaluation.score import Score, score_model
from flaxbert.model import Model, load
from flaxbert.tasks import base, sequence_classification
from flaxbert.tasks.registry import get_task
from tests.weights.tiny import CONFIG, write_tiny

TEXTS = ["a fine film", "bad", "the film was bad .", "fine films", "the", "a bad film . the film was fine"]
NAMES = ("bad", "fair", "good")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return load(write_tiny(tmp_path_factory.mktemp("tiny") / "model"))


@pytest.fixture
def few_resamples(monkeypatch):
    """Metrics of scikit-learn and scipy are slow; a few draws show as much as a thousand."""
    monkeypatch.setattr(base, "bootstrap_interval", functools.partial(bootstrap_interval, num_resamples=20))


def labels_of(model, texts=TEXTS):
    return [entry.label for entry in model.predict(texts)]


def other(label):
    return NAMES[(NAMES.index(label) + 1) % 3]


def write_table(folder, texts, labels):
    file = folder / "examples.tsv"
    rows = [f"{text}\t{label}" for text, label in zip(texts, labels, strict=True)]
    file.write_text("\n".join(["text\tlabel", *rows]) + "\n", "utf-8")
    return str(file)


def watch(monkeypatch, owner, name):
    """Returns a list that fills with the keywords of every call of a function, which still does its work."""
    calls, original = [], getattr(owner, name)

    def run(*arguments, **keywords):
        calls.append(keywords)
        return original(*arguments, **keywords)

    monkeypatch.setattr(owner, name, run)
    return calls


def test_a_model_agrees_with_its_own_predictions(model, tmp_path):
    labels = labels_of(model)
    result = score_model(model, DataConfig(max_length=16), write_table(tmp_path, TEXTS, labels), batch_size=4)
    assert result.num_examples == 6
    assert result.primary == "accuracy"
    assert result.metrics["accuracy"] == result.metrics["f1_macro"] == 1.0
    assert (result.interval.value, result.interval.low, result.interval.high) == (1.0, 1.0, 1.0)
    assert result.report.labels == NAMES
    counts = np.diag([labels.count(name) for name in NAMES])
    np.testing.assert_array_equal(result.report.confusion, counts)


def test_wrong_labels_cost_their_share_and_the_interval_holds_the_value(model):
    labels = labels_of(model)
    examples = [
        (text, other(label) if index < 2 else label)
        for index, (text, label) in enumerate(zip(TEXTS, labels, strict=True))
    ]
    result = score_model(model, DataConfig(max_length=16), examples)
    assert result.metrics["accuracy"] == result.interval.value == result.report.accuracy == pytest.approx(4 / 6)
    assert 0.0 < result.interval.low < 4 / 6 < result.interval.high <= 1.0
    assert result.interval.confidence == 0.95
    assert result.report.confusion.sum() == 6
    assert np.trace(result.report.confusion) == 4


def test_scores_do_not_depend_on_the_batch_size(model):
    examples = [(text, "good") for text in TEXTS]
    one, all_ = (score_model(model, DataConfig(max_length=16), examples, batch_size=size) for size in (1, 32))
    assert one.metrics == pytest.approx(all_.metrics, abs=1e-5)
    assert one.report.to_dict() == all_.report.to_dict()


def test_second_texts_are_read_with_the_first(model):
    pairs = ["film", "bad . the film was bad", "a", "fine . fine", "the film", "bad"]
    labels = [entry.label for entry in model.predict(TEXTS, pairs)]
    assert labels != labels_of(model)
    config = DataConfig(max_length=16, text_pair_column="second")
    rows = [{"text": a, "second": b, "label": c} for a, b, c in zip(TEXTS, pairs, labels, strict=True)]
    assert score_model(model, config, rows).metrics["accuracy"] == 1.0
    assert score_model(model, DataConfig(max_length=16), rows).metrics["accuracy"] < 1.0


def test_several_labels_of_one_example(tmp_path, few_resamples):
    config = CONFIG.replace(problem_type="multi_label_classification")
    model = load(write_tiny(tmp_path / "model", config=config))
    labels = labels_of(model)
    assert any("," in entry for entry in labels)
    result = score_model(model, DataConfig(max_length=16), write_table(tmp_path, TEXTS, labels))
    assert result.primary == "f1_micro"
    assert result.metrics["exact_match"] == result.metrics["f1_micro"] == result.interval.value == 1.0
    assert result.report.confusion is None
    assert [entry.support for entry in result.report.scores] == [
        sum(name in entry.split(",") for entry in labels) for name in NAMES
    ]


def test_a_regression_has_no_scores_per_label(tmp_path, few_resamples):
    config = CONFIG.replace(num_labels=1, labels=("stars",), problem_type="regression")
    model = load(write_tiny(tmp_path / "model", config=config))
    values = [entry.score + 0.5 for entry in model.predict(TEXTS)]
    result = score_model(model, DataConfig(max_length=16), write_table(tmp_path, TEXTS, values))
    assert result.primary == "spearman"
    assert result.metrics["spearman"] == pytest.approx(1.0)
    assert result.metrics["mse"] == pytest.approx(0.25, abs=1e-4)
    assert result.report is None
    assert "Scores per label" not in result.to_text()
    result.write(str(tmp_path / "score.json"))
    assert json.loads((tmp_path / "score.json").read_text("utf-8"))["report"] is None
    with pytest.raises(DataError, match="line 2: the label 'high' is not a finite number"):
        score_model(model, DataConfig(), write_table(tmp_path, ["fine"], ["high"]))


@pytest.mark.parametrize(("asked", "used"), [(0, 16), (8, 8), (16, 16), (128, 16)])
def test_texts_are_cut_at_the_data_s_length_but_never_above_the_model_s(model, monkeypatch, asked, used):
    calls = []

    def run_task(self, examples, setting, **settings):
        calls.append((examples.texts, {"max_length": setting.max_length, **settings}))
        encoded = get_task("sequence-classification").encode(self.tokenizer, examples, setting)
        return encoded, np.eye(3)[[2] * len(examples)]

    monkeypatch.setattr(Model, "run_task", run_task)
    result = score_model(model, DataConfig(max_length=asked), [(text, "good") for text in TEXTS], batch_size=3)
    assert calls == [(TEXTS, {"batch_size": 3, "max_length": used, "labelled": True})]
    assert result.metrics["accuracy"] == 1.0


def test_split_and_number_of_examples_are_those_of_the_validation(model, monkeypatch):
    calls = watch(monkeypatch, sequence_classification, "read_examples")
    config = DataConfig(max_length=16, validation_split="dev", max_validation_examples=4, max_train_examples=1)
    result = score_model(model, config, [(text, "good") for text in TEXTS])
    assert result.num_examples == result.report.confusion.sum() == 4
    assert calls == [{"split": "dev", "limit": 4}]


def test_labels_can_be_renamed(model, tmp_path):
    labels = [str(NAMES.index(label)) for label in labels_of(model)]
    config = DataConfig(max_length=16, label_map=dict(zip("012", NAMES, strict=True)))
    assert score_model(model, config, write_table(tmp_path, TEXTS, labels)).metrics["accuracy"] == 1.0


def test_labels_of_the_data_must_be_the_model_s_in_its_order(model, tmp_path):
    table = write_table(tmp_path, TEXTS, labels_of(model))
    assert score_model(model, DataConfig(max_length=16, labels=NAMES), table).metrics["accuracy"] == 1.0
    with pytest.raises(ConfigError, match=r"data\.labels is \('good', 'fair', 'bad'\), but the model's labels are"):
        score_model(model, DataConfig(labels=NAMES[::-1]), table)
    with pytest.raises(ConfigError, match="but the model's labels are"):
        score_model(model, DataConfig(labels=(*NAMES, "best")), table)


def test_unknown_labels_are_named_with_their_place(model, tmp_path):
    table = write_table(tmp_path, ["fine", "bad"], ["good", "badd"])
    with pytest.raises(
        DataError, match=r"examples\.tsv, line 3: the label 'badd' is not one of bad, fair, good.*'bad'"
    ):
        score_model(model, DataConfig(), table)


def test_what_can_not_be_scored_is_refused(model, tmp_path):
    with pytest.raises(ConfigError, match="No examples are named; give --examples"):
        score_model(model, DataConfig(), "")
    with pytest.raises(DataError, match="there are no rows"):
        score_model(model, DataConfig(), [])
    with pytest.raises(ConfigError, match=r"data\.label_column is empty"):
        score_model(model, DataConfig(label_column=""), ["fine"])
    with pytest.raises(DataError, match="no such file"):
        score_model(model, DataConfig(), str(tmp_path / "nothing.csv"))
    sentences = load(write_tiny(tmp_path / "sentences"), task="sentence-similarity")
    with pytest.raises(ConfigError, match="this model is for 'sentence-similarity'"):
        score_model(sentences, DataConfig(), [("fine", "good")])


def test_the_text_shows_the_interval_beside_the_primary_metric_only(model):
    result = score_model(model, DataConfig(max_length=16), [(text, "good") for text in TEXTS])
    text = result.to_text()
    assert "6 examples" in text
    (line,) = [line for line in text.splitlines() if "[" in line]
    low, high = (f"{value:.4f}" for value in (result.interval.low, result.interval.high))
    assert "accuracy" in line
    assert f"{result.metrics['accuracy']:.4f} [{low}, {high}]" in line
    assert all(name in text for name in (*result.metrics, *NAMES, "Scores per label", "macro average"))


def test_the_written_file_holds_all_numbers(model, tmp_path):
    result = score_model(model, DataConfig(max_length=16), [(text, "good") for text in TEXTS])
    file = tmp_path / "score.json"
    result.write(str(file))
    document = json.loads(file.read_text("utf-8"))
    assert list(document) == ["num_examples", "metrics", "primary", "interval", "report"]
    assert document["metrics"] == dict(result.metrics)
    assert document["interval"] == {
        "value": result.interval.value,
        "low": result.interval.low,
        "high": result.interval.high,
        "confidence": 0.95,
    }
    assert document["report"] == result.report.to_dict()
    assert (document["num_examples"], document["primary"]) == (6, "accuracy")


@pytest.mark.parametrize("step", ["write_text", "replace"])
@pytest.mark.parametrize("before", [None, "old"])
def test_half_written_scores_are_never_left_behind(tmp_path, monkeypatch, before, step):
    file = tmp_path / "score.json"
    if before is not None:
        file.write_text(before, "utf-8")
    result = Score(1, {"accuracy": 1.0}, "accuracy", Interval(1.0, 1.0, 1.0), None)

    def fail(path, *arguments, **keywords):
        path.write_bytes(b"{")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pathlib.Path, step, fail)
    with pytest.raises(OSError, match="No space left"):
        result.write(str(file))
    assert [path.name for path in tmp_path.iterdir()] == ([] if before is None else ["score.json"])
    assert before is None or file.read_text("utf-8") == before


def test_examples_are_truncated_as_told(model, few_resamples):
    examples = [("film bad film bad film", NAMES[0]), ("bad", NAMES[1])]
    with pytest.raises(DataError, match="tokens"):
        score_model(model, DataConfig(truncation="error", max_length=4), examples)
