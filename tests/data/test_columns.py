"""Texts are checked, labels numbered, and held-out examples chosen by the seed alone."""

import math

import datasets
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flaxbert.config import DataConfig
from flaxbert.data.columns import LabelSet, encode_labels, infer_problem_type, label_set, read_examples
from flaxbert.data.holdout import hold_out
from flaxbert.errors import ConfigError, DataError

SINGLE = "single_label_classification"
MULTI = "multi_label_classification"


def numbers_of(rows, problem_type=SINGLE, labels=(), **options):
    config = DataConfig(**options)
    examples = read_examples(rows, config)
    names = label_set(examples, problem_type, config, labels)
    return names.names, encode_labels(examples, names, problem_type, config)


def test_label_sets_are_immutable_and_map_both_ways():
    labels = LabelSet(("no", "yes"))
    assert [labels.number(name) for name in labels] == [0, 1]
    assert (labels[1], len(labels), labels) == ("yes", 2, LabelSet(("no", "yes")))
    with pytest.raises(AttributeError):
        labels.names = ()  # type: ignore[misc]
    with pytest.raises(
        DataError, match=r"a\.csv, line 3: the label 'yess' is not one of no, yes\. Did you mean 'yes'\?"
    ):
        labels.number("yess", "a.csv, line 3")


@pytest.mark.parametrize("names", [(), ("a", "a"), ("a", "")])
def test_unusable_label_sets_are_refused(names):
    with pytest.raises(ConfigError, match=r"data\.labels"):
        LabelSet(names)


def test_labels_are_sorted_and_integers_as_numbers():
    assert numbers_of([("x", 10), ("y", 9), ("z", 10.0)])[0] == ("9", "10")
    names, numbers = numbers_of([("x", "pos"), ("y", " neg "), ("z", "pos")])
    assert names == ("neg", "pos")
    assert numbers.tolist() == [1, 0, 1]
    assert numbers.dtype == np.int32


def test_labels_are_renamed_and_ordered_as_told():
    rows = [("x", "1"), ("y", "0"), ("z", "good")]
    names, numbers = numbers_of(rows, label_map={"0": "bad", "1": "good"}, labels=("good", "bad"))
    assert (names, numbers.tolist()) == (("good", "bad"), [0, 1, 0])


def test_labels_of_the_model_are_used_where_none_are_told():
    assert numbers_of([("x", "a"), ("y", "b")], labels=())[0] == ("a", "b")
    config = DataConfig()
    examples = read_examples([("x", "a"), ("y", "b")], config)
    assert label_set(examples, SINGLE, config, ("b", "a", "c")).names == ("b", "a", "c")


def test_class_labels_of_datasets_keep_their_names():
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])})
    dataset = datasets.Dataset.from_dict({"text": ["x", "y"], "label": [1, 1]}, features=features)
    names, numbers = numbers_of(dataset)
    assert (names, numbers.tolist()) == (("no", "yes"), [1, 1])
    assert numbers_of(dataset, label_map={"no": "nein", "yes": "ja"})[0] == ("nein", "ja")
    unlabelled = datasets.Dataset.from_dict({"text": ["x"], "label": [-1]}, features=features)
    with pytest.raises(DataError, match=r"row 0: the class number -1 .* unlabelled split"):
        numbers_of(unlabelled)


def test_multi_label_data_from_lists_and_from_joined_texts():
    expected = [[1, 1, 0], [0, 0, 0], [0, 0, 1]]
    for rows in ([("x", ["a", "b"]), ("y", []), ("z", ["c"])], [("x", "a, b"), ("y", ""), ("z", "c")]):
        names, hot = numbers_of(rows, MULTI)
        assert names == ("a", "b", "c")
        assert hot.tolist() == expected
        assert hot.dtype == np.float32
    assert numbers_of([("x", "0|1"), ("y", "1")], MULTI, label_separator="|", label_map={"0": "a", "1": "b"})[
        1
    ].tolist() == [[1, 1], [0, 1]]


def test_regression_scores():
    names, scores = numbers_of([("x", "1.5"), ("y", 2), ("z", 0.25)], "regression")
    assert names == ("score",)
    assert scores.tolist() == [1.5, 2.0, 0.25]
    assert scores.dtype == np.float32


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (["a", "b"], SINGLE),
        ([0, 1], SINGLE),
        (["0", "1.0"], SINGLE),
        (["0.5", "1"], "regression"),
        ([0.5, 1.0], "regression"),
        ([["a"], []], MULTI),
        (["0.5", "x"], SINGLE),
    ],
)
def test_the_kind_of_problem_comes_from_the_labels(labels, expected):
    rows = {"text": ["x"] * len(labels), "label": labels}
    assert infer_problem_type(read_examples(rows, DataConfig())) == expected


@pytest.mark.parametrize(
    ("rows", "problem_type", "options", "message"),
    [
        ([("x", "a"), ("", "b"), (" ", "b")], SINGLE, {}, r"row 1: the text in column 'text' is empty \(2 texts"),
        ([("x", "a"), (None, "b")], SINGLE, {}, "row 1: the text in column 'text' is empty"),
        ([("x", "a"), (math.nan, "b")], SINGLE, {}, "row 1: the text in column 'text' is empty"),
        ([("x", "a"), (3, "b")], SINGLE, {}, "row 1: column 'text' holds 3, a int, not a text"),
        ([("x", "a"), ("y", None)], SINGLE, {}, "row 1: the label is missing"),
        ([("x", "a"), ("y", " ")], SINGLE, {}, "row 1: the label is missing"),
        ([("x", "a"), ("y", "a")], SINGLE, {}, "holds only the label 'a'"),
        ([("x", "a"), ("y", "c")], SINGLE, {"labels": ("a", "b")}, "row 1: the label 'c' is not one of a, b"),
        (
            [("x", "a"), ("y", "bb")],
            SINGLE,
            {"label_map": {"a": "A", "b": "B"}},
            r"row 1: .*data\.label_map.*Did you mean 'b'",
        ),
        ([("x", ["a"]), ("y", ["b"])], SINGLE, {}, r"row 0: the label is the list \['a'\].*multi_label"),
        ([("x", "a"), ("y", "b,d")], MULTI, {"labels": ("a", "b")}, "row 1: the label 'd'"),
        ([("x", "1.5"), ("y", "high")], "regression", {}, "row 1: the label 'high' is not a finite number"),
        ([("x", 1.5), ("y", math.inf)], "regression", {}, "row 1: the label 'inf' is not a finite number"),
        ([("x", 1.5), ("y", "nan")], "regression", {}, "row 1: the label 'nan' is not a finite number"),
        ([("x", 1.5), ("y", None)], "regression", {}, "row 1: the label '' is not a finite number"),
    ],
)
def test_malformed_rows_end_in_an_error_with_their_place(rows, problem_type, options, message):
    with pytest.raises(DataError, match=message):
        numbers_of(rows, problem_type, **options)


def test_errors_name_the_line_of_the_file(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("text,label\nx,a\n\n ,b\n")
    with pytest.raises(DataError, match=r"a\.csv, line 4: the text in column 'text' is empty"):
        numbers_of(str(path))


def test_labels_that_are_needed_but_not_read_are_a_configuration_error():
    config = DataConfig(label_column="")
    examples = read_examples(["x"], config)
    assert examples.raw_labels is None
    with pytest.raises(ConfigError, match=r"data\.label_column is empty"):
        encode_labels(examples, LabelSet(("a",)), SINGLE, config)
    with pytest.raises(ConfigError, match=r"one output"):
        label_set(examples, "regression", DataConfig(labels=("a", "b")))


@settings(max_examples=60, deadline=None)
@given(
    texts=st.lists(st.sampled_from("abcdefghij"), min_size=2, max_size=60).filter(lambda t: len(set(t)) > 1),
    rate=st.floats(0.01, 0.95),
    seed=st.integers(0, 2**32 - 1),
)
def test_held_out_examples_are_a_partition_without_shared_texts(texts, rate, seed):
    examples = read_examples([(text, str(number)) for number, text in enumerate(texts)], DataConfig())
    train, validation = hold_out(examples, rate, seed)
    assert sorted([*train.rows.tolist(), *validation.rows.tolist()]) == list(range(len(texts)))
    assert len(train) > 0
    assert len(validation) > 0
    assert not set(train.texts) & set(validation.texts)
    assert [examples.texts[row] for row in validation.rows] == list(validation.texts)
    again = hold_out(examples, rate, seed)[1]
    assert again.rows.tolist() == validation.rows.tolist()


def test_another_seed_holds_out_others_and_the_rate_is_kept():
    examples = read_examples([(f"text {number}", number % 2) for number in range(200)], DataConfig())
    first, second = (hold_out(examples, 0.1, seed)[1] for seed in (0, 1))
    assert len(first) == len(second) == 20
    assert first.rows.tolist() != second.rows.tolist()
    assert first.where(0) == f"train examples, row {first.rows[0]}"
    with pytest.raises(DataError, match="1 different texts can not be split"):
        hold_out(read_examples([("x", 1), ("x", 0)], DataConfig()), 0.5, 0)
