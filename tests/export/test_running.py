"""A model in ONNX Runtime or OpenVINO predicts what it predicts on JAX; its files are kept; nothing stale is computed with."""

import concurrent.futures
import json
import os
import re
import warnings

import numpy as np
import pytest

import flaxbert
from flaxbert.cli.main import main
from flaxbert.errors import ConfigError, ShapeError
from flaxbert.evaluation.predict import predict_lines
from flaxbert.export import in_engine, running
from flaxbert.transforms import quantize
from flaxbert.weights.sentence_transformers import SentencePooling
from tests.helpers import slow_unless
from tests.serve.conftest import BASE
from tests.weights.tiny import write_tiny

TEXTS = ["a film", "the film was good the film was good", "good", "a a a the was", "film"] * 3
TASKS = (
    "sequence-classification", "token-classification", "question-answering", "fill-mask", "pretraining", "next-sentence-prediction",
    "late-interaction", "sentence-similarity",
)  # fmt: skip
CASES = [(engine, task) for engine in running.ENGINE_FORMATS for task in TASKS]
BOUND = 1e-4


def write(folder, task="sequence-classification"):
    labels = BASE.labels if "classification" in task else ()
    return write_tiny(folder, task, BASE.replace(labels=labels, num_labels=3 if labels else 2))


def outputs(model):
    """Everything that goes through the network for texts, as arrays."""
    if model.task == "sentence-similarity":
        return [model.encode(TEXTS), model.encode(TEXTS, prompt="a film ")]
    pairs = TEXTS[::-1] if model.task == "question-answering" else None
    return list(model.predict_logits(TEXTS, pairs, batch_size=4))


@pytest.mark.parametrize(("name", "task"), slow_unless(lambda case: case in (CASES[0], CASES[-1]), CASES, several=True))
def test_an_engine_predicts_what_jax_predicts(name, task, tmp_path):
    model = flaxbert.load(write(tmp_path / "model", task), task=task)
    if task == "sentence-similarity":
        model = model.replace(pooling=SentencePooling(("mean", "max"), include_prompt=False))
    other = in_engine(model, name)
    for expected, found in zip(outputs(model), outputs(other), strict=True):
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected, atol=BOUND * max(1.0, float(np.abs(expected).max())))
    if task == "sequence-classification":
        assert [one.label for one in other.predict(TEXTS)] == [one.label for one in model.predict(TEXTS)]
        assert other.predict([]) == []


def test_the_engine_is_what_computes_and_batches_are_not_padded_to_shapes(tmp_path):
    model = flaxbert.load(write(tmp_path / "model"))
    shapes, other = [], in_engine(model, "onnxruntime")
    run = other.engine

    def watched(batch):
        shapes.append(batch["input_ids"].shape)
        return run(batch)

    watching = other.replace(engine=watched)
    watching.predict(TEXTS[:3], batch_size=8)
    assert sum(rows for rows, _ in shapes) == 3
    assert max(length for _, length in shapes) == len(model.tokenizer(TEXTS[1])["input_ids"])


@pytest.mark.parametrize(("task", "labels"), [("relation-classification", 3), ("multiple-choice", 1)])
def test_what_a_task_does_not_take_is_refused_as_on_jax(task, labels, tmp_path):
    config = BASE.replace(labels=("a", "b", "c")[:labels] if labels > 1 else (), num_labels=labels)
    model = flaxbert.load(write_tiny(tmp_path / "model", task, config), task=task)
    messages = set()
    for each in (model, in_engine(model, "onnxruntime")):
        with pytest.raises(ShapeError) as refusal:
            each.predict_logits(TEXTS[:2])
        messages.add(re.sub(r"\d+", "N", str(refusal.value)))  # JAX pads to buckets
    assert len(messages) == 1


def test_other_parameters_are_not_computed_by_the_engine_of_the_old_ones(tmp_path):
    model = in_engine(flaxbert.load(write(tmp_path / "model")), "onnxruntime")
    assert model.replace(params=quantize(model.params)[0]).engine is None
    assert model.with_execution(precision="bfloat16").engine is None
    assert model.replace(tokenizer=model.tokenizer).engine is model.engine


def test_an_unknown_engine_is_refused(tmp_path):
    model = flaxbert.load(write(tmp_path / "model"))
    with pytest.raises(ConfigError, match=r"Unknown engine 'openvin'; choose onnxruntime, openvino\..*openvino"):
        in_engine(model, "openvin")


def predict(*words):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return main(["predict", *words])


def test_the_command_keeps_the_files_and_says_what_jax_says(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("FLAXBERT_COMPILATION_CACHE", str(tmp_path / "cache"))
    folder = str(write(tmp_path / "model"))
    words = (folder, "--text", json.dumps(TEXTS[:3]), "--format", "jsonl")
    assert predict(*words) == 0
    expected = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    stamps = set()
    for _ in range(2):
        assert predict(*words, "--engine", "onnxruntime") == 0
        found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        assert [line["label"] for line in found] == [line["label"] for line in expected]
        for one, other in zip(found, expected, strict=True):
            assert one["score"] == pytest.approx(other["score"], abs=BOUND)
        (kept,) = (tmp_path / "cache" / running.CACHE_FOLDER).iterdir()
        stamps.add((kept / "model.onnx").stat().st_mtime_ns)
    assert len(stamps) == 1


def test_another_model_of_the_same_sizes_and_times_is_exported_anew(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("FLAXBERT_COMPILATION_CACHE", str(tmp_path / "cache"))
    folders = [write(tmp_path / name) for name in ("a", "b")]
    other = flaxbert.load(folders[1], from_scratch=True, seed=5)
    other.save(folders[1], overwrite=True)
    flaxbert.load(folders[0]).save(folders[0], overwrite=True)
    for file in (file for folder in folders for file in folder.rglob("*")):
        os.utime(file, (1, 1))
    shown = {}
    for folder in folders:
        for engine in ("jax", "onnxruntime"):
            assert predict(str(folder), "--text", '["a film"]', "--format", "jsonl", "--engine", engine) == 0
            shown[folder.name, engine] = json.loads(capsys.readouterr().out)["score"]
    assert len(list((tmp_path / "cache" / running.CACHE_FOLDER).iterdir())) == 2
    assert abs(shown["a", "jax"] - shown["b", "jax"]) > 10 * BOUND
    for name in ("a", "b"):
        assert shown[name, "onnxruntime"] == pytest.approx(shown[name, "jax"], abs=BOUND)


@pytest.mark.parametrize("name", running.ENGINE_FORMATS)
def test_threads_share_an_engine(name, tmp_path):
    model = flaxbert.load(write(tmp_path / "model"))
    other = in_engine(model, name)
    batches = [[text, *TEXTS[: 1 + number % 3]] for number, text in enumerate(TEXTS)]
    expected = [model.predict_logits(batch) for batch in batches]
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        for found, wanted in zip(pool.map(other.predict_logits, batches * 3), expected * 3, strict=True):
            np.testing.assert_allclose(found, wanted, atol=BOUND * max(1.0, float(np.abs(wanted).max())))


@pytest.mark.filterwarnings("ignore::flaxbert.data.tokenization.TruncationWarning")
@pytest.mark.parametrize("name", running.ENGINE_FORMATS)
def test_inputs_that_are_longer_than_the_model_are_refused(name, tmp_path):
    model = flaxbert.load(write(tmp_path / "model"))
    limit = model.config.max_length
    with pytest.raises(ShapeError, match=f"longer than the {limit} positions"):
        in_engine(model, name).predict_logits(["a film " * limit], max_length=limit + 8)


def test_what_was_not_used_for_longest_is_deleted(tmp_path, monkeypatch):
    monkeypatch.setenv("FLAXBERT_COMPILATION_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(running, "MOST_KEPT", 2)
    model = flaxbert.load(write(tmp_path / "model"))
    kept = tmp_path / "cache" / running.CACHE_FOLDER
    running.open_exported("onnxruntime", model, "first")
    (first,) = kept.iterdir()
    left = kept / ".export-left"
    left.mkdir()
    running.open_exported("onnxruntime", model, "second")
    assert left.is_dir()  # another process may be at work
    for age, folder in enumerate((first, *(set(kept.iterdir()) - {first, left}), left)):
        os.utime(folder, (age, age))
    running.open_exported("onnxruntime", model, "first")
    running.open_exported("onnxruntime", model, "third")
    assert first in kept.iterdir()
    assert len(list(kept.iterdir())) == 2


def test_an_interrupted_file_is_not_gone_on_with_by_another_engine(tmp_path, capsys, monkeypatch):
    folder, source, output = write(tmp_path / "model"), tmp_path / "texts.csv", tmp_path / "out.jsonl"
    source.write_text("text\n" + "\n".join(TEXTS) + "\n", encoding="utf-8")
    words = (str(folder), "--input", str(source), "--output", str(output), "--chunk_rows", "4", "--format", "jsonl")

    def fails_in_the_second_part(*arguments, **options):
        if calls:
            raise KeyboardInterrupt
        calls.append(1)
        return predict_lines(*arguments, **options)

    calls = []
    with monkeypatch.context() as patched:
        patched.setattr("flaxbert.evaluation.bulk.predict_lines", fails_in_the_second_part)
        assert predict(*words) != 0
    assert predict(*words, "--engine", "onnxruntime") != 0
    assert "other identity" in capsys.readouterr().err
    assert predict(*words) == 0
    assert len(output.read_text(encoding="utf-8").splitlines()) == len(TEXTS)


def test_examples_are_scored_in_another_engine(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("FLAXBERT_COMPILATION_CACHE", str(tmp_path / "cache"))
    folder, source = str(write(tmp_path / "model")), tmp_path / "dev.csv"
    labels = flaxbert.load(folder).config.labels
    rows = [f"{text},{labels[number % len(labels)]}" for number, text in enumerate(TEXTS)]
    source.write_text("\n".join(["text,label", *rows]) + "\n", encoding="utf-8")
    shown = []
    for engine in ("jax", "onnxruntime"):
        assert main(["evaluate", folder, "--examples", str(source), "--engine", engine]) == 0
        shown.append(capsys.readouterr().out)
    assert "accuracy" in shown[0]
    assert shown[0] == shown[1]
    assert (tmp_path / "cache" / running.CACHE_FOLDER).is_dir()
