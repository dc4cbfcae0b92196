"""The demonstration: its parts, and the whole of it on a tiny corpus and a tiny model."""

import importlib
import json
import os
import signal
import sys
import types

import numpy as np
import pytest

from flaxbert.config import DataConfig, ModelSource
from flaxbert.core.arrays import QuantizedArray, SparseArray
from flaxbert.core.trees import flatten_names
from flaxbert.data.columns import read_examples
from flaxbert.data.docstrings import DocstringCorpus, DocstringExample
from flaxbert.errors import ConfigError
from flaxbert.model import Model, load
from flaxbert.train.recipes import demo
from flaxbert.train.recipes.demo import Row
from tests.weights.tiny import CONFIG, write_tiny

TEXTS = ("a fine film", "the film was bad", "fine films", "bad .", "the fine film", "a bad film .")
LABELS = ("good", "bad", "good", "bad", "good", "bad")
LONG_CONFIG = CONFIG.replace(max_position_embeddings=64)


def make_corpus(num_train=96, num_validation=24):
    def split(count, file):
        return tuple(DocstringExample(TEXTS[i % 6], LABELS[i % 6], file) for i in range(count))

    return DocstringCorpus(split(num_train, "a.py"), split(num_validation, "b.py"), ("bad", "good"))


def empty_model():
    return Model(config=CONFIG, params={}, task="sequence-classification")


def make_package(folder, monkeypatch, name, *, with_model=True):
    """Writes a package that must not be imported, and takes it for the one with the pretrained model."""
    package = folder / name
    (package / "model" if with_model else package).mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('code of the package was run')\n", "utf-8")
    monkeypatch.syspath_prepend(str(folder))
    importlib.invalidate_caches()
    monkeypatch.setattr(demo, "PRETRAINED_PACKAGE", name)
    return package


def test_the_pretrained_model_is_found_without_running_its_package(tmp_path, monkeypatch):
    package = make_package(tmp_path, monkeypatch, "flaxbert_toy_weights")
    assert demo.find_pretrained() == package / "model"
    assert "flaxbert_toy_weights" not in sys.modules


def test_no_pretrained_model_is_no_error(tmp_path, monkeypatch):
    make_package(tmp_path, monkeypatch, "flaxbert_toy_without_weights", with_model=False)
    assert demo.find_pretrained() is None
    monkeypatch.setattr(demo, "PRETRAINED_PACKAGE", "no_such_package_of_weights")
    assert demo.find_pretrained() is None
    (tmp_path / "toy_module.py").write_text("raise RuntimeError\n", "utf-8")
    monkeypatch.setattr(demo, "PRETRAINED_PACKAGE", "toy_module")
    assert demo.find_pretrained() is None


def test_the_model_that_is_asked_for_wins_and_else_the_package_s_is_taken(tmp_path, monkeypatch):
    lines = []
    package = make_package(tmp_path, monkeypatch, "flaxbert_toy_source")
    assert demo._source(tmp_path, "some/model", make_corpus(), lines.append) == ModelSource(path="some/model")
    assert lines == []
    assert demo._source(tmp_path, "", make_corpus(), lines.append) == ModelSource(path=str(package / "model"))
    assert "all-MiniLM-L6-v2" in lines[0]


def test_without_a_package_a_new_model_is_drawn(tmp_path, monkeypatch):
    lines, corpus = [], make_corpus()
    monkeypatch.setattr(demo, "find_pretrained", lambda: None)
    monkeypatch.setattr(demo, "scratch_folder", lambda folder, given: folder if given is corpus else None)
    source = demo._source(tmp_path, "", corpus, lines.append)
    assert source == ModelSource(path=str(tmp_path / "scratch"), from_scratch=True)
    assert "not installed" in lines[0]


def test_examples_are_written_as_the_training_reads_them(tmp_path):
    texts = ['a "fine"\nfilm', "ä\u2028中文", "{}"]
    file = tmp_path / "data" / "train.jsonl"
    demo.write_examples(file, [DocstringExample(text, "good", "a.py") for text in texts])
    read = read_examples(str(file), DataConfig())
    assert list(read.texts) == texts
    assert list(read.raw_labels) == ["good"] * 3
    assert [sorted(json.loads(line)) for line in file.read_text("utf-8").split("\n")[:-1]] == [["label", "text"]] * 3
    demo.write_examples(file, [DocstringExample("short", "bad", "a.py")])
    assert file.read_text("utf-8") == '{"text": "short", "label": "bad"}\n'


def test_the_run_reads_and_writes_below_the_folder(tmp_path):
    source = ModelSource(path="some/model", from_scratch=True)
    config = demo.demo_config(tmp_path, source, 1.5, 2e-4)
    assert config.model == source
    assert config.data.train == str(tmp_path / "data" / "train.jsonl")
    assert config.data.validation == str(tmp_path / "data" / "validation.jsonl")
    assert config.output.folder == str(tmp_path / "run")
    assert (config.train.num_epochs, config.train.learning_rate, config.train.batch_size) == (1.5, 2e-4, 32)
    assert max(config.data.length_buckets) <= config.data.max_length == 64


def test_the_process_is_asked_to_stop_once(monkeypatch):
    sent = []
    monkeypatch.setattr(os, "kill", lambda *arguments: sent.append(arguments))
    callback = demo._StopOnce(20)
    counts = []
    for step in (10, 19, 20, 30):
        callback.on_log(step, {})
        counts.append(len(sent))
    assert counts == [0, 0, 1, 1]
    assert sent == [(os.getpid(), signal.SIGTERM)]


@pytest.mark.parametrize(("count", "timed"), [(1, 1), (192, 192), (193, 97), (400, 134), (1000, 167)])
def test_all_texts_are_scored_and_a_share_of_them_timed(monkeypatch, count, timed):
    seen = []

    def predict_logits(self, texts, **settings):
        seen.append((list(texts), settings))
        return np.eye(3)[[2] * len(texts)]

    times = iter([0.0, 1.0, 10.0, 15.0, 20.0, 22.0])
    monkeypatch.setattr(demo, "time", types.SimpleNamespace(perf_counter=lambda: next(times)))
    monkeypatch.setattr(Model, "predict_logits", predict_logits)
    texts = [str(number) for number in range(count)]
    truth = ["good" if number < (count + 1) // 2 else "bad" for number in range(count)]
    row = demo.measure(empty_model(), "int8", 123, texts, truth)
    assert (row.name, row.accuracy, row.size_bytes) == ("int8", truth.count("good") / count, 123)
    assert row.texts_per_second == pytest.approx(timed / 2.0)
    assert seen[0][0] == texts
    assert [len(entry) for entry, _ in seen[1:]] == [timed] * 4
    assert seen[1][0] == texts[:: -(-count // 192)]
    assert {settings["max_length"] for _, settings in seen} == {64}


def test_accuracy_is_by_the_names_of_the_labels(tmp_path):
    model = load(write_tiny(tmp_path / "model", config=LONG_CONFIG))
    truth = [entry.label for entry in model.predict(TEXTS)]
    wrong = ["fair" if truth[0] == "bad" else "bad", *truth[1:]]
    assert demo.measure(model, "a", 1, TEXTS, truth).accuracy == 1.0
    row = demo.measure(model, "a", 1, TEXTS, wrong)
    assert row.accuracy == pytest.approx(5 / 6)
    assert row.texts_per_second > 0
    with pytest.raises(ValueError, match="shorter"):
        demo.measure(model, "a", 1, TEXTS, truth[:-1])


def test_the_table_has_a_line_for_each_form():
    text = demo.table_text([Row("float32", 0.98765, 90_000_000, 1234.56), Row("int8", 1.0, 23_040_000, 2000.4)])
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if "|" in line]
    assert cells == [
        ["form", "accuracy", "weights MB", "texts/s"],
        ["float32", "0.9877", "90.0", "1235"],
        ["int8", "1.0000", "23.0", "2000"],
    ]
    assert "Held-out accuracy, size, speed" in text


def test_an_earlier_demonstration_is_left_alone(tmp_path, monkeypatch):
    (tmp_path / "run").mkdir()
    monkeypatch.setattr(demo, "build_corpus", lambda: pytest.fail("nothing may be built"))
    with pytest.raises(ConfigError, match=r"holds an earlier demonstration; remove it or choose another --output"):
        demo.run_demo(tmp_path, "", num_epochs=1.0, learning_rate=1e-4, say=lambda line: None)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


@pytest.mark.parametrize(("num_epochs", "stop"), [(7.0, 10), (1.0, 1), (0.5, 0)])
def test_the_demonstration_stops_half_way_and_runs_the_same_command_again(tmp_path, monkeypatch, num_epochs, stop):
    steps, lines, rows = [], [], [Row("float32", 0.5, 1_000_000, 10.0)]

    def finetune(config, *, say, extra_callbacks=()):
        steps.append(config)
        say("a line of the run")
        assert [callback.step for callback in extra_callbacks] == ([stop] if len(steps) == 1 else [])
        return types.SimpleNamespace(folder=tmp_path / "demo" / "run")

    def compare_forms(trained, folder, texts, truth, say):
        assert (trained, folder) == (tmp_path / "demo" / "run" / "model", tmp_path / "demo")
        assert (list(texts), list(truth)) == (list(TEXTS) * 4, list(LABELS) * 4)
        return rows

    monkeypatch.setattr(demo, "build_corpus", make_corpus)
    monkeypatch.setattr(demo, "finetune", finetune)
    monkeypatch.setattr(demo, "compare_forms", compare_forms)
    folder = tmp_path / "demo"
    assert demo.run_demo(folder, "some/model", num_epochs=num_epochs, learning_rate=1e-2, say=lines.append) == rows
    assert steps == [demo.demo_config(folder, ModelSource(path="some/model"), num_epochs, 1e-2)] * 2
    for split, count in (("train", 96), ("validation", 24)):
        written = read_examples(str(folder / "data" / f"{split}.jsonl"), DataConfig())
        assert list(zip(written.texts, written.raw_labels, strict=True)) == list(zip(TEXTS, LABELS, strict=True)) * (
            count // 6
        )
    assert "96 docstrings of the standard library to learn from, 24 held out, 2 areas: bad, good." in lines
    assert lines.count("a line of the run") == 1
    assert demo.table_text(rows) in lines
    assert lines[-1].startswith(f"\nEverything is in {folder}.")


def test_every_form_is_saved_loaded_again_and_measured(tmp_path):
    trained = write_tiny(tmp_path / "run" / "model", config=LONG_CONFIG.replace(num_hidden_layers=1))
    truth = [entry.label for entry in load(trained).predict(TEXTS)]
    lines = []
    rows = demo.compare_forms(trained, tmp_path, TEXTS, truth, lines.append)
    assert [row.name for row in rows] == ["float32", "bfloat16", "int8", "2:4 sparse"]
    assert rows[0].accuracy == 1.0
    assert all(row.texts_per_second > 0 for row in rows)
    places = [trained, trained, tmp_path / "int8", tmp_path / "sparse-2-4"]
    sizes = [sum(path.stat().st_size for path in place.glob("*.safetensors")) for place in places]
    assert [row.size_bytes for row in rows] == sizes
    assert sizes[2] < sizes[0]
    name = "encoder.layers.0.attention.query.kernel"
    dense, codes, sparse = (flatten_names(load(place).params)[name] for place in places[1:])
    assert isinstance(codes, QuantizedArray)
    np.testing.assert_allclose(codes.materialize(), dense, atol=0.03)
    assert isinstance(sparse, SparseArray)
    values = np.asarray(sparse.materialize())
    np.testing.assert_array_equal(np.count_nonzero(values.reshape(3, 4, 12), axis=1), 2)
    np.testing.assert_array_equal(values[values != 0], np.asarray(dense)[values != 0])
    first = lines.index("\n4. A few predictions by the int8 model:") + 1
    shown = [line.split(maxsplit=2) for line in lines[first:]]
    predicted = load(tmp_path / "int8", precision="bfloat16").predict(TEXTS[:3], max_length=64)
    assert shown == [[p.label, f"{p.score:.2f}", text] for p, text in zip(predicted, TEXTS, strict=False)]


def test_a_new_model_is_drawn_for_a_vocabulary_of_the_texts(tmp_path):
    texts = ["Open the file and read its bytes.", "The mean of the numbers.", "Close the socket."]
    corpus = DocstringCorpus(tuple(DocstringExample(text, "a", "x.py") for text in texts), (), ("a", "b"))
    folder = demo.scratch_folder(tmp_path / "scratch", corpus)
    model = load(folder, from_scratch=True, task="sequence-classification", labels=("a", "b"))
    tokens = model.tokenizer.convert_ids_to_tokens(model.tokenizer("Read THE numbers")["input_ids"])
    assert tokens[0] == "[CLS]"
    assert tokens[-1] == "[SEP]"
    assert "[UNK]" not in tokens
    assert {prediction.label for prediction in model.predict(texts)} <= {"a", "b"}
