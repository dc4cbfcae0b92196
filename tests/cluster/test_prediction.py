"""Predictions of a model whose network runs elsewhere are those of the model itself; Ray Data is stood in for."""

import dataclasses

import pytest

from flaxbert.cli.predict import predict
from flaxbert.cluster import prediction
from flaxbert.cluster.plan import LaunchPlan
from flaxbert.cluster.prediction import load_on_cluster
from flaxbert.config import ClusterConfig, TaskConfig
from flaxbert.errors import WeightsError
from flaxbert.model import load
from tests.cluster.in_process import spread
from tests.cluster.texts import sentence
from tests.weights.tiny import write_tiny


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tiny(tmp_path_factory.mktemp("tiny") / "model")


def options_of(folder, output, **changes):
    defaults = {
        "model": str(folder), "text": (), "text_pair": (), "input": "", "output": str(output), "text_column": "text",
        "text_pair_column": "", "data_format": "", "task": TaskConfig(), "format": "jsonl", "batch_size": 4,
        "max_length": 0, "precision": "float32", "attention": "auto", "engine": "jax", "offline": True, "chunk_rows": 8192,
    }  # fmt: skip
    return {**defaults, **changes}


@pytest.mark.parametrize("precision", ["float32", pytest.param("bfloat16", marks=pytest.mark.slow)])
def test_lines_are_those_of_one_machine(precision, folder, tmp_path, monkeypatch):
    monkeypatch.setattr(prediction, "spread", spread)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "texts.txt").write_text("".join(f"{sentence(n, 1 + n % 9)}\n" for n in range(21)), "utf-8")
    options = options_of(folder, "alone.jsonl", input="texts.txt", precision=precision)
    plan = LaunchPlan(ClusterConfig(num_workers=2, folder=str(tmp_path)), ("predict",), options)
    assert predict(load, options) == 0
    assert predict(load_on_cluster(plan), {**options, "output": "many.jsonl"}) == 0
    assert (tmp_path / "alone.jsonl").read_text() == (tmp_path / "many.jsonl").read_text()
    assert (tmp_path / "many.jsonl").read_text().count("\n") == 21


def test_vectors_are_those_of_one_machine(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(prediction, "spread", spread)
    monkeypatch.chdir(tmp_path)
    plan = LaunchPlan(ClusterConfig(folder=str(tmp_path)), ("predict",), options_of(folder, ""))
    texts = [sentence(number, 1 + number) for number in range(9)]
    many = load_on_cluster(plan)(str(folder), task="sentence-similarity")
    assert (many.params, many.config) == ({}, load(folder).config)
    alone = load(folder, task="sentence-similarity")
    assert (many.encode(texts, batch_size=4) == alone.encode(texts, batch_size=4)).all()
    assert dataclasses.replace(many, plan=None, params=alone.params).encode(texts[:1]).shape == (1, 12)


def test_an_error_of_a_worker_is_the_users_error(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(prediction, "spread", spread)
    monkeypatch.chdir(tmp_path)
    plan = LaunchPlan(ClusterConfig(folder=str(tmp_path)), ("predict",), options_of(folder, ""))
    many = load_on_cluster(plan)(str(folder))
    gone = dataclasses.replace(many, source={"path_or_id": str(tmp_path / "gone"), "offline": True})
    with pytest.raises(WeightsError, match="gone"):
        gone.predict(["a fine film"])
