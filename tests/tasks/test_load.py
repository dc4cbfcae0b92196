"""From a configuration to tokenized splits: what is read, labelled, held out, counted and reported."""

import warnings

import numpy as np
import pytest

from flaxbert.config import DataConfig
from flaxbert.data.batches import BatchPipeline
from flaxbert.data.columns import LabelSet, count_labels
from flaxbert.data.tokenization import TruncationWarning
from flaxbert.errors import ConfigError, DataError
from flaxbert.tasks.load import load_examples
from tests.data.conftest import tokenizer

__all__ = ["tokenizer"]


def write_csv(folder, name, rows, header="text,label"):
    path = folder / name
    path.write_text("\n".join([header, *rows]) + "\n")
    return str(path)


@pytest.fixture
def files(tmp_path):
    train = write_csv(tmp_path, "train.csv", ["good film,1", "bad film,0", "fine,1"])
    validation = write_csv(tmp_path, "validation.csv", ["awful,0", "good,1"])
    return {"train": train, "validation": validation, "label_map": {"0": "bad", "1": "good"}}


def test_files_become_splits_with_labels_and_a_report(files, tokenizer):
    data = load_examples(DataConfig(**files, max_length=16), tokenizer)
    assert data.setting.labels == ("bad", "good")
    assert data.setting.problem_type == "single_label_classification"
    assert data.train.labels.tolist() == [1, 0, 1]
    assert data.validation.labels.tolist() == [0, 1]
    assert data.test is None
    assert data.length_buckets == (16,)
    assert list(data.splits["validation"].examples.texts) == ["awful", "good"]
    report = data.report["train"]
    assert (report.source, report.num_examples, report.num_truncated) == (files["train"], 3, 0)
    assert (report.num_tokens, report.longest_tokens, report.label_counts) == (11, 4, {"bad": 1, "good": 2})


def test_the_splits_go_into_a_pipeline(files, tokenizer):
    data = load_examples(DataConfig(**files), tokenizer)
    (batch,) = BatchPipeline(data.train, batch_size=4, num_epochs=1, length_buckets=data.length_buckets)
    assert batch["input_ids"].shape == (4, 16)
    assert sorted(batch["example_index"].tolist()) == [-1, 0, 1, 2]


def test_held_out_examples_depend_on_the_seed_alone(tmp_path, tokenizer):
    path = write_csv(tmp_path, "a.csv", [f"film {number},{number % 2}" for number in range(50)])
    config = DataConfig(train=path, validation_rate=0.2)
    rows = [
        load_examples(config, tokenizer, seed=seed).splits["validation"].examples.rows.tolist() for seed in (0, 0, 1)
    ]
    assert rows[0] == rows[1] != rows[2]
    assert len(rows[0]) == 10
    data = load_examples(DataConfig(train=path, max_train_examples=20, max_validation_examples=1), tokenizer)
    assert (len(data.train), len(data.validation)) == (18, 1)


def test_truncation_of_all_splits_is_one_warning(files, tokenizer):
    with pytest.warns(TruncationWarning) as caught:
        data = load_examples(DataConfig(**files, test=files["train"], max_length=3), tokenizer)
    assert len(caught) == 1
    assert "2 of 3 train inputs (66.7 %), 2 of 3 test inputs (66.7 %)" in str(caught[0].message)
    assert data.report["train"].num_truncated == 2
    assert data.test is not None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_examples(DataConfig(**files), tokenizer)


def test_errors_name_file_and_line(files, tmp_path, tokenizer):
    wrong = write_csv(tmp_path, "wrong.csv", ["good,1", "bad,2"])
    with pytest.raises(DataError, match=r"wrong\.csv, line 3: the label '2' is not in data\.label_map"):
        load_examples(DataConfig(**{**files, "validation": wrong}), tokenizer)
    with pytest.raises(DataError, match=r"wrong\.csv, line 3: the label '2' is not one of 0, 1"):
        load_examples(DataConfig(**{**files, "validation": wrong, "label_map": {}}), tokenizer)
    with pytest.raises(DataError, match=r"train\.csv, line 2: the input has 4 tokens.*data\.truncation is error"):
        load_examples(DataConfig(**files, max_length=3, truncation="error"), tokenizer)


def test_pairs_and_regression(tmp_path, tokenizer):
    path = write_csv(tmp_path, "a.csv", ["a,b,0.5", "c,d,5", "e,f,2.25"], header="one,two,score")
    config = DataConfig(train=path, validation=path, text_column="one", text_pair_column="two", label_column="score")
    data = load_examples(config, tokenizer)
    assert (data.setting.problem_type, data.setting.labels, data.report["train"].label_counts) == (
        "regression",
        ("score",),
        {},
    )
    assert data.train.labels.tolist() == [0.5, 5.0, 2.25]
    assert data.train.token_type_ids is not None


def test_objects_take_the_place_of_files(tokenizer):
    rows = [("good film", ["x"]), ("bad film", ["x", "y"]), ("fine", [])]
    data = load_examples(DataConfig(), tokenizer, sources={"train": rows, "validation": rows})
    assert data.setting.problem_type == "multi_label_classification"
    assert data.report["validation"].label_counts == {"x": 2, "y": 1}


def test_labels_of_the_model_give_the_order(files, tokenizer):
    data = load_examples(DataConfig(**files), tokenizer, labels=("good", "bad"))
    assert data.train.labels.tolist() == [0, 1, 0]


def test_configurations_that_can_not_be_are_refused(files, tokenizer):
    with pytest.raises(ConfigError, match=r"data\.train is empty"):
        load_examples(DataConfig(), tokenizer)
    with pytest.raises(ConfigError, match="nothing to evaluate on"):
        load_examples(DataConfig(train=files["train"], validation_rate=0), tokenizer)
    with pytest.raises(ConfigError, match=r"model\.task is 'fill-mask'"):
        load_examples(DataConfig(**files), tokenizer, task="fill-mask")
    with pytest.raises(DataError, match="the model takes 64"):
        load_examples(DataConfig(**files), tokenizer, model_max_length=64)


def test_labels_are_counted():
    labels = LabelSet(("a", "b"))
    assert count_labels(np.array([1, 1, 0]), labels, "single_label_classification") == {"a": 1, "b": 2}
    assert count_labels(None, labels, "single_label_classification") == {}
