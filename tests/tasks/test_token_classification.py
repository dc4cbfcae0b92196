"""Entities from words to tokens and back, and a tagger that learns."""

import json

import numpy as np
import pytest

from flaxbert.config import DataConfig, ModelSource, OutputConfig, RunConfig, TaskConfig, TrainConfig
from flaxbert.data.batches import collate
from flaxbert.errors import DataError
from flaxbert.evaluation.predict import predict_lines, read_inputs
from flaxbert.evaluation.score import score_model
from flaxbert.model import load
from flaxbert.tasks.base import Setting
from flaxbert.tasks.registry import get_task
from flaxbert.train.recipes.finetune import finetune
from tests.weights.bertweet import bertweet
from tests.weights.tiny import CONFIG, write_tiny

TASK = get_task("ner")
LABELS = ("O", "B-X", "I-X")
CONLL = "the\tO\nfilms\tB-X\nfine\tI-X\n.\tO\n\na\tO\nfilms\tB-X\n\n"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    config = CONFIG.replace(labels=LABELS)
    return load(write_tiny(tmp_path_factory.mktemp("tiny") / "model", "token-classification", config))


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "a.conll"
    path.write_text(CONLL)
    return path


def encode(model, source, max_length=16, **options):
    setting = Setting(options=TaskConfig(**options), labels=LABELS, max_length=max_length)
    return TASK.encode(model.tokenizer, TASK.read(source, setting), setting), setting


def test_the_first_piece_of_a_word_has_its_label(model, file):
    encoded, _ = encode(model, str(file))
    batch = collate(encoded.features, np.arange(2), 8)
    assert model.tokenizer.convert_ids_to_tokens(batch["input_ids"][0])[1:4] == ["the", "film", "##s"]
    assert batch["labels"].tolist() == [
        [-100, 0, 1, -100, 2, 0, -100, -100],
        [-100, 0, 1, -100, -100, -100, -100, -100],
    ]


def test_bertweet_labels_words_that_it_rewrites(tmp_path):
    rows = [{"tokens": ["@someone", "films", "fine"], "ner_tags": ["O", "B-X", "I-X"]}]
    setting = Setting(labels=LABELS, max_length=32)
    encoded = TASK.encode(bertweet(tmp_path), TASK.read(rows, setting), setting)
    labels = encoded.features.token_values["labels"]
    assert labels[labels >= 0].tolist() == [0, 1, 2]
    outputs = [np.eye(3)[np.maximum(labels, 0)]]
    (prediction,) = TASK.decode(encoded, outputs, setting)
    assert [(entity.text, entity.start, entity.end) for entity in prediction.entities] == [("films fine", 9, 19)]


def test_every_word_of_a_long_text_is_labelled_once(model):
    rows = [{"tokens": ["the", "films", "was"] * 9, "ner_tags": ["O", "B-X", "O"] * 9}]
    encoded, setting = encode(model, rows, max_length=10, stride=2)
    assert len(encoded.features) > 3
    assert (encoded.features.token_values["labels"] >= 0).sum() == 27
    labels = [collate(encoded.features, np.array([i]), 10)["labels"][0] for i in range(len(encoded.features))]
    outputs = [np.eye(3)[np.maximum(row, 0)] for row in labels]
    (prediction,) = TASK.decode(encoded, outputs, setting)
    assert [(entity.text, entity.start) for entity in prediction.entities][:2] == [("films", 4), ("films", 18)]
    scored = TASK.score(encoded, outputs, setting)
    assert scored.metrics["f1"] == scored.metrics["f1_strict"] == scored.metrics["accuracy"] == 1.0
    with pytest.raises(DataError, match=r"row 0: the input has more than data\.max_length 10"):
        TASK.encode(model.tokenizer, encoded.examples, setting.replace(data=DataConfig(truncation="error")))


def test_entities_that_the_tokenizer_drops_are_said(model):
    dropped = "\u200b"  # BERT's normaliser takes it for a control character
    row = {"tokens": ["the", dropped, "film"], "ner_tags": ["O", "O", "B-X"]}
    encode(model, [row])
    with pytest.warns(UserWarning, match="row 1.*this word.*the tag O; so it is with 1 words"):
        encoded, setting = encode(model, [row, {**row, "ner_tags": ["O", "B-X", "O"]}])
    tags = TASK.decode(encoded, [np.tile([0.0, 9.0, 0.0], (16, 1))] * 2, setting)[1].tags
    assert tags == ("B-X", "O", "B-X")


def test_scores_count_whole_entities(model, file):
    encoded, setting = encode(model, str(file))
    truth = encoded.details.labels.copy()
    logits = np.zeros((2, 8, 3))
    place = encoded.details
    truth[2] = 0  # 'fine' is missed, so the entity of two words is wrong
    logits[place.window, place.token, truth] = 1.0
    scored = TASK.score(encoded, list(logits), setting)
    assert scored.metrics["f1"] == pytest.approx(0.5)
    assert scored.metrics["accuracy"] == pytest.approx(5 / 6)
    assert scored.interval("f1").low <= 0.5 <= scored.interval("f1").high
    assert scored.make_report().labels == ("X",)


def test_unknown_labels_are_named_with_their_line(model, tmp_path):
    path = tmp_path / "b.conll"
    path.write_text("the\tO\nfilm\tB-Y\n")
    with pytest.raises(DataError, match=r"b\.conll, line 2: the label 'Y' is not one of X"):
        encode(model, str(path))


def test_a_data_set_without_entities_teaches_nothing(tmp_path):
    path = tmp_path / "b.conll"
    path.write_text("the\tO\n")
    with pytest.raises(DataError, match="no entity"):
        TASK.find_labels(TASK.read(str(path), Setting()), Setting())


def test_predictions_are_shown_with_their_characters(model, tmp_path):
    texts = ["a fine film", "the films"]
    predictions = model.predict(texts)
    for text, prediction in zip(texts, predictions, strict=True):
        assert all(text[e.start : e.end] == e.text and 0 <= e.score <= 1 for e in prediction.entities)
    examples = read_inputs(model, texts, "", DataConfig(label_column=""))
    lines = [json.loads(line) for line in predict_lines(model, examples, format="jsonl", batch_size=2, max_length=None)]
    assert [len(line["entities"]) for line in lines] == [len(p.entities) for p in predictions]
    shown = list(predict_lines(model, examples, format="text", batch_size=2, max_length=None))
    assert [line for line in shown if line.startswith("#")] == ["# a fine film", "# the films"]
    path = tmp_path / "x.conll"
    path.write_text("a O\nfine O\nfilm O\n")
    examples = read_inputs(model, (), str(path), DataConfig(label_column=""))
    assert list(examples.texts) == ["a fine film"]
    with pytest.raises(DataError, match="not pairs"):
        model.predict(["a"], ["b"])


def test_a_tagger_learns_is_saved_scored_and_predicts(tmp_path):
    start = write_tiny(tmp_path / "start")
    train = tmp_path / "train.conll"
    train.write_text(CONLL * 16)
    run = RunConfig(
        model=ModelSource(path=str(start), task="ner", dropout_rate=0.0),
        data=DataConfig(train=str(train), validation=str(train), max_length=8, length_buckets=(8,)),
        task=TaskConfig(model_scheme="iobes"),
        train=TrainConfig(batch_size=16, num_steps=12, learning_rate=1e-2),
        output=OutputConfig(folder=str(tmp_path / "run"), tensorboard=False, plots=False, progress="off"),
    )
    lines = []
    result = finetune(run, say=lines.append)
    assert result.after["loss"] < result.before["loss"]
    loaded = load(tmp_path / "run" / "model")
    assert loaded.config.label_names == ("O", "B-X", "I-X", "E-X", "S-X")
    score = score_model(loaded, DataConfig(max_length=8), str(train))
    assert score.primary == "f1"
    assert score.metrics == pytest.approx(dict(result.after), abs=1e-4)
    assert [p.tags for p in loaded.predict(["a films ."])] == [p.tags for p in result.model.predict(["a films ."])]
    assert "token-classification" in (tmp_path / "run" / "model" / "README.md").read_text("utf-8")
