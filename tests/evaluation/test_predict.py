"""Texts from anywhere in, one line each out, and files that appear whole or not at all."""

import gzip
import io
import json
import types

import numpy as np
import pytest

from flaxbert.errors import ConfigError, DataError
from flaxbert.evaluation import predict
from flaxbert.evaluation.predict import predict_lines, read_texts, write_lines
from flaxbert.model import load
from flaxbert.tasks.registry import get_task
from tests.weights.tiny import CONFIG, write_tiny

TEXTS = ["a fine film", "the film was bad", "fine films ."]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return load(write_tiny(tmp_path_factory.mktemp("tiny") / "model"))


@pytest.fixture(scope="module")
def sentence_model(tmp_path_factory):
    return load(write_tiny(tmp_path_factory.mktemp("tiny") / "sentences"), task="sentence-similarity")


def read_file(path, text_column="text", text_pair_column=""):
    return read_texts((), str(path), text_column, text_pair_column)


def lines_of(model, texts, pairs=None, *, format="text", batch_size=2, max_length=None):
    examples = get_task("sequence-classification").inputs(texts, pairs)
    return list(predict_lines(model, examples, format=format, batch_size=batch_size, max_length=max_length))


@pytest.mark.parametrize(("texts", "path"), [((), ""), (("a",), "x.txt"), (("a",), "-")])
def test_texts_and_file_exclude_each_other_and_one_is_needed(texts, path):
    with pytest.raises(ConfigError, match=r"Give either texts .* or a file .*--input FILE"):
        read_texts(texts, path, "text", "")


def test_texts_given_directly_are_taken_as_they_are():
    assert read_texts(("b\n", " ", "a"), "", "text", "text_pair") == (["b\n", " ", "a"], None)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match=r"no file '.*nothing\.csv' to predict"):
        read_file(tmp_path / "nothing.csv")
    with pytest.raises(DataError, match="no file"):
        read_file(tmp_path)


def test_lines_end_at_line_feeds_only_and_blank_ones_are_left_out(tmp_path):
    file = tmp_path / "texts.txt"
    file.write_bytes("ä fine\u2028film\r\n\n\r\n the\x0bfilm\rwas \nbad".encode())
    assert read_file(file) == (["ä fine\u2028film", " the\x0bfilm\rwas ", "bad"], None)


@pytest.mark.parametrize("content", [b"", b"\n\n", b"\r\n"])
def test_a_file_without_text_is_refused(tmp_path, content):
    file = tmp_path / "texts.txt"
    file.write_bytes(content)
    with pytest.raises(DataError, match=r"texts\.txt holds no text"):
        read_file(file)


def test_bytes_that_are_no_text_are_named_by_line_and_byte(tmp_path):
    file = tmp_path / "texts.txt"
    file.write_bytes(b"fine\n\nbad \xe4\n")
    with pytest.raises(DataError, match=r"Line 3 of .*texts\.txt is not UTF-8 \(byte 4\)"):
        read_file(file)


def test_standard_input_holds_one_text_a_line(monkeypatch):
    monkeypatch.setattr(predict.sys, "stdin", types.SimpleNamespace(buffer=io.BytesIO(b"fine\nbad film\n")))
    assert read_file("-") == (["fine", "bad film"], None)
    with pytest.raises(DataError, match="standard input holds no text"):
        read_file("-")


TABLES = {
    "x.csv": 'other,text\n1,"a, fine"\n2,bad\n',
    "x.tsv": "text\tother\na, fine\t1\nbad\t2\n",
    "x.jsonl": '{"text": "a, fine"}\n{"text": "bad", "other": 2}\n',
    "x.json": '{"text": "a, fine"}\n{"text": "bad"}\n',
}


@pytest.mark.parametrize("name", [*TABLES, "x.csv.gz", "x.tsv.gz", "x.jsonl.gz"])
def test_tables_are_known_by_their_ending_and_need_no_labels(tmp_path, name):
    file = tmp_path / name
    content = TABLES[name.removesuffix(".gz")].encode()
    file.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    assert read_file(file) == (["a, fine", "bad"], None)


def test_another_ending_is_text_even_where_it_looks_like_a_table(tmp_path):
    file = tmp_path / "table.text"
    file.write_text(TABLES["x.csv"], "utf-8")
    assert read_file(file)[0] == TABLES["x.csv"].splitlines()


def test_columns_of_pairs_are_chosen_by_name(tmp_path):
    file = tmp_path / "pairs.csv"
    file.write_text("question,answer\na,b\nc,d\n", "utf-8")
    assert read_file(file, "answer", "question") == (["b", "d"], ["a", "c"])
    assert read_file(file, "question") == (["a", "c"], None)
    with pytest.raises(DataError, match="'answr'.*'answer'"):
        read_file(file, "question", "answr")
    file.write_text("question,answer\na,b\nc,\n", "utf-8")
    with pytest.raises(DataError, match="line 3: the text in column 'answer' is empty"):
        read_file(file, "question", "answer")


def test_lines_of_a_classifier_have_label_score_and_text(model):
    predictions = model.predict(TEXTS)
    expected = [f"{entry.label}\t{entry.score:.4f}\t{text}" for entry, text in zip(predictions, TEXTS, strict=True)]
    assert lines_of(model, TEXTS) == expected


def test_a_line_stays_one_line_with_three_fields(model):
    (line,) = lines_of(model, ["a\tfine\r\nfilm"])
    assert line.split("\t")[2:] == ["a fine  film"]
    assert line.splitlines() == [line]


def test_objects_hold_all_scores_and_the_text_unchanged(model):
    texts = ["a\tfine\nfilm", "ä 中文"]
    lines = lines_of(model, texts, format="jsonl")
    assert "ä 中文" in lines[1]
    for line, text, prediction in zip(map(json.loads, lines), texts, model.predict(texts), strict=True):
        assert list(line) == ["text", "label", "score", "scores"]
        assert line["text"] == text
        assert line["label"] == prediction.label == max(line["scores"], key=line["scores"].get)
        assert line["score"] == line["scores"][line["label"]]
        assert list(line["scores"]) == ["bad", "fair", "good"]
        assert sum(line["scores"].values()) == pytest.approx(1.0)


def test_second_texts_are_read_and_shown(model):
    texts, pairs = ["fine", "fine", "bad"], ["film", "bad . the film was bad", "a"]
    lines = [json.loads(line) for line in lines_of(model, texts, pairs, format="jsonl")]
    assert [line["text_pair"] for line in lines] == pairs
    assert [line["score"] for line in lines] == [entry.score for entry in model.predict(texts, pairs, batch_size=2)]
    alone = [json.loads(line)["score"] for line in lines_of(model, texts, format="jsonl")]
    assert all(line["score"] != score for line, score in zip(lines, alone, strict=True))


def test_a_regression_has_a_value_and_no_label(tmp_path):
    config = CONFIG.replace(num_labels=1, labels=("stars",), problem_type="regression")
    model = load(write_tiny(tmp_path / "model", config=config))
    (line,) = lines_of(model, TEXTS[:1])
    value = float(model.predict_logits(TEXTS[:1])[0, 0])
    assert line == f"\t{value:.4f}\t{TEXTS[0]}"
    (line,) = lines_of(model, TEXTS[:1], format="jsonl")
    assert json.loads(line)["scores"] == {"stars": pytest.approx(value)}


def test_a_model_without_head_embeds(sentence_model):
    vectors = sentence_model.encode(TEXTS, batch_size=2)
    lines = lines_of(sentence_model, TEXTS)
    for line, vector, text in zip(lines, vectors, TEXTS, strict=True):
        numbers, shown = line.split("\t")
        assert shown == text
        np.testing.assert_allclose([float(number) for number in numbers.split(" ")], vector, atol=5e-7)
    objects = [json.loads(line) for line in lines_of(sentence_model, TEXTS, format="jsonl")]
    assert [entry["text"] for entry in objects] == TEXTS
    np.testing.assert_allclose([entry["embedding"] for entry in objects], vectors, atol=5e-8)


@pytest.mark.parametrize("format", ["text", "jsonl"])
def test_no_texts_give_no_lines(model, sentence_model, format):
    assert lines_of(model, [], format=format) == []
    assert lines_of(sentence_model, [], format=format) == []


@pytest.mark.filterwarnings("ignore::flaxbert.data.tokenization.TruncationWarning")
def test_texts_are_cut_at_the_given_length(model):
    long, start = "fine film was bad . the film", "fine film"
    assert lines_of(model, [long], max_length=4)[0].split("\t")[1] == lines_of(model, [start])[0].split("\t")[1]
    assert lines_of(model, [long])[0].split("\t")[1] != lines_of(model, [start])[0].split("\t")[1]


def test_a_head_that_scores_tokens_is_refused(tmp_path):
    model = load(write_tiny(tmp_path / "model", "fill-mask"))
    with pytest.raises(ConfigError, match="task 'fill-mask' makes no predictions; use encode or predict_logits"):
        lines_of(model, TEXTS)


def test_lines_without_a_file_go_to_standard_output(capsys):
    write_lines(iter(["a", "ä"]), "")
    assert capsys.readouterr().out == "a\nä\n"


def test_a_file_is_written_whole_and_replaces_the_old_one(tmp_path):
    file = tmp_path / "out.txt"
    file.write_text("something longer that was there before\n", "utf-8")
    write_lines((line for line in ["a", "ä"]), str(file))
    assert file.read_bytes() == "a\nä\n".encode()
    assert [path.name for path in tmp_path.iterdir()] == ["out.txt"]


@pytest.mark.parametrize("before", [None, "old\n"])
@pytest.mark.parametrize("error", [DataError("Input 1 is no text."), KeyboardInterrupt()])
def test_half_written_files_are_never_left_behind(tmp_path, before, error):
    file = tmp_path / "out.txt"
    if before is not None:
        file.write_text(before, "utf-8")
    seen = []

    def lines():
        yield "a"
        seen.extend(path.name for path in tmp_path.iterdir() if path != file)
        raise error

    with pytest.raises(type(error)):
        write_lines(lines(), str(file))
    assert len(seen) == 1
    assert seen[0].startswith(".out.txt.")
    assert [path.name for path in tmp_path.iterdir()] == ([] if before is None else ["out.txt"])
    assert before is None or file.read_text("utf-8") == before


def test_nothing_is_predicted_before_the_first_line_is_asked_for(model, monkeypatch):
    monkeypatch.setattr(type(model), "predict_examples", lambda *_, **__: pytest.fail("predicted too early"))
    examples = get_task("sequence-classification").inputs(TEXTS)
    assert predict_lines(model, examples, format="text", batch_size=2, max_length=None) is not None


def test_second_texts_are_refused_where_each_text_becomes_a_vector(sentence_model):
    with pytest.raises(ConfigError, match="one vector of each text"):
        lines_of(sentence_model, ["film"], ["bad"])


@pytest.mark.parametrize("name", ["x.CSV", "x.ndjson", "x.tab", "x.Jsonl.GZ"])
def test_endings_are_those_that_training_reads(tmp_path, name):
    file = tmp_path / name
    kind = {"csv": "x.csv", "ndjson": "x.jsonl", "tab": "x.tsv", "jsonl": "x.jsonl"}[name.split(".")[1].lower()]
    content = TABLES[kind].encode()
    file.write_bytes(gzip.compress(content) if name.endswith("GZ") else content)
    assert read_file(file) == (["a, fine", "bad"], None)


def test_lines_may_be_compressed_and_start_with_a_byte_order_mark(tmp_path):
    content = "\ufefffilm\nbad\n".encode()
    (tmp_path / "plain.txt").write_bytes(content)
    (tmp_path / "small.txt.gz").write_bytes(gzip.compress(content))
    (tmp_path / "broken.txt.gz").write_bytes(gzip.compress(content)[:-9])
    for name in ("plain.txt", "small.txt.gz"):
        assert read_file(tmp_path / name) == (["film", "bad"], None)
    with pytest.raises(DataError, match=r"broken\.txt\.gz can not be decompressed"):
        read_file(tmp_path / "broken.txt.gz")


def test_a_place_that_can_not_be_written_is_said_before_anything_is_computed(tmp_path):
    def lines():
        raise AssertionError("computed")
        yield

    with pytest.raises(ConfigError, match="there is no folder"):
        write_lines(lines(), str(tmp_path / "missing" / "x.txt"))
    with pytest.raises(ConfigError, match="is a folder"):
        write_lines(lines(), str(tmp_path))
