"""Relations and choices: what the network gets, and models that are trained, scored and asked."""

import json

import numpy as np
import pytest

from flaxbert.config import DataConfig, ModelSource, OutputConfig, RunConfig, TrainConfig
from flaxbert.data.batches import collate
from flaxbert.errors import ConfigError, DataError
from flaxbert.evaluation.predict import predict_lines, read_inputs
from flaxbert.evaluation.score import score_model
from flaxbert.model import load
from flaxbert.tasks.base import Setting
from flaxbert.tasks.registry import get_task
from flaxbert.train.recipes.finetune import finetune
from tests.weights.tiny import write_tiny

RELATION, CHOICE = get_task("relation-extraction"), get_task("multiple-choice")
NAMES = ("A(e1,e2)", "A(e2,e1)", "Other")
TEXTS = ["the <e1>film</e1> was <e2>fine</e2> .", "a <e1>bad</e1> <e2>film</e2>"]
CHOICES = [
    {"question": "the film was", "choices": ["fine", "a film"], "label": 0},
    {"question": "a", "choices": ["was", "bad film ."], "label": 1},
]


def run_of(folder, task, rows, **data):
    train = folder / "train.jsonl"
    train.write_text("\n".join(map(json.dumps, rows * 8)))
    return RunConfig(
        model=ModelSource(path=str(write_tiny(folder / "start")), task=task, dropout_rate=0.0),
        data=DataConfig(train=str(train), validation=str(train), max_length=16, length_buckets=(16,), **data),
        train=TrainConfig(batch_size=16, num_steps=8, learning_rate=3e-3),
        output=OutputConfig(folder=str(folder / "run"), tensorboard=False, plots=False, progress="off"),
    )


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return load(write_tiny(tmp_path_factory.mktemp("tiny") / "model")).tokenizer


def test_entities_are_masked_with_their_symbols(tokenizer):
    setting = Setting(labels=NAMES, max_length=16)
    examples = RELATION.read([(TEXTS[0], NAMES[0])], setting)
    encoded = RELATION.encode(tokenizer, examples, setting)
    batch = collate(encoded.features, np.arange(1), 14)
    assert batch["entity_mask"].tolist() == [[0, 0, 1, 1, 1, 0, 2, 2, 2, 0, 0, 0, 0, 0]]
    assert batch["labels"].tolist() == [0]


def test_a_model_remembers_how_entities_were_marked(tokenizer):
    setting = Setting(labels=NAMES, max_length=16, extra={"entity_markers": "none"})
    encoded = RELATION.encode(tokenizer, RELATION.inputs([TEXTS[0]]), setting, labelled=False)
    assert encoded.examples.texts == ["the film was fine ."]
    assert collate(encoded.features, np.arange(1), 8)["entity_mask"].tolist() == [[0, 0, 1, 0, 2, 0, 0, 0]]


def test_an_entity_that_is_cut_off_is_named(tokenizer):
    setting = Setting(labels=NAMES, max_length=6)
    examples = RELATION.read([(TEXTS[1], "Other"), (TEXTS[0], "Other")], setting)
    with pytest.raises(DataError, match="row 0: the entity 'film' is not within the first 6 tokens"):
        RELATION.encode(tokenizer, examples, setting)
    with pytest.raises(DataError, match="row 0: the label 'B' is not one of"):
        RELATION.encode(tokenizer, RELATION.read([(TEXTS[1], "B")], setting), setting.replace(max_length=16))
    with pytest.raises(DataError, match="only the relation Other"):
        RELATION.find_labels(RELATION.read([(TEXTS[1], "Other")], setting), Setting())


@pytest.mark.slow
def test_relations_from_training_to_prediction(tmp_path):
    rows = [{"text": TEXTS[0], "label": NAMES[0]}, {"text": TEXTS[1], "label": NAMES[1]}]
    result = finetune(run_of(tmp_path, "relation-classification", rows, labels=NAMES), say=lambda line: None)
    assert result.after["loss"] < result.before["loss"]
    loaded = load(tmp_path / "run" / "model")
    assert loaded.config.label_names == NAMES
    score = score_model(loaded, DataConfig(max_length=16), str(tmp_path / "train.jsonl"))
    assert (score.primary, score.report.labels) == ("f1_macro", NAMES)
    assert score.metrics == pytest.approx(dict(result.after), abs=1e-4)
    examples = read_inputs(loaded, TEXTS, "", DataConfig(label_column=""))
    lines = [
        json.loads(line) for line in predict_lines(loaded, examples, format="jsonl", batch_size=2, max_length=None)
    ]
    assert [(line["entity1"], line["entity2"]) for line in lines] == [("film", "fine"), ("bad", "film")]
    assert set(lines[0]["scores"]) == set(NAMES)
    (shown, _) = predict_lines(loaded, examples, format="text", batch_size=2, max_length=None)
    assert shown.split("\t")[2:] == ["film", "fine", TEXTS[0]]
    (tmp_path / "a.txt").write_text(f'7\t"{TEXTS[0]}"\nOther\nComment:\n')
    examples = read_inputs(loaded, (), str(tmp_path / "a.txt"), DataConfig(label_column="", format="semeval"))
    assert examples.marked == [TEXTS[0]]
    with pytest.raises(DataError, match="input 0: .* does not have both entities"):
        loaded.predict(["no tags"])


def test_choices_stand_side_by_side(tokenizer):
    setting = Setting(max_length=16)
    encoded = CHOICE.encode(tokenizer, CHOICE.read(CHOICES, setting), setting)
    features = encoded.features
    assert (len(features), features.rows_per_example, features.lengths.tolist()) == (2, 2, [8, 7])
    batch = collate(features, np.array([1, -1]), 8)
    assert batch["input_ids"].shape == batch["attention_mask"].shape == (2, 2, 8)
    assert batch["attention_mask"][0].sum(axis=1).tolist() == [5, 7]
    assert batch["labels"].tolist() == [1, 1]
    assert batch["example_weight"].tolist() == [1.0, 0.0]


@pytest.mark.slow
def test_choices_from_training_to_prediction(tmp_path):
    result = finetune(run_of(tmp_path, "multiple-choice", CHOICES), say=lambda line: None)
    assert result.after["loss"] < result.before["loss"]
    loaded = load(tmp_path / "run" / "model")
    score = score_model(loaded, DataConfig(max_length=16), str(tmp_path / "train.jsonl"))
    assert score.metrics == pytest.approx(dict(result.after), abs=1e-4)
    predictions = loaded.predict(["the film was", "a"], [["fine", "a film"], ["was", "bad film ."]])
    assert [len(prediction.scores) for prediction in predictions] == [2, 2]
    assert [sum(prediction.scores) for prediction in predictions] == pytest.approx([1.0, 1.0])
    examples = read_inputs(loaded, (), str(tmp_path / "train.jsonl"), DataConfig(label_column=""))
    (line, *_) = predict_lines(loaded, examples, format="text", batch_size=4, max_length=None)
    assert line.split("\t")[2:] == [predictions[0].text, "the film was"]
    with pytest.raises(DataError, match="choices for 1; give a list for each"):
        loaded.predict(["a", "b"], [["a", "b"]])
    (tmp_path / "x.txt").write_text("a\n")
    with pytest.raises(ConfigError, match="is no table"):
        read_inputs(loaded, (), str(tmp_path / "x.txt"), DataConfig(label_column=""))
