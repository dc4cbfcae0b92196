"""Whole commands on a Ray cluster of two nodes on this machine, each command a process of its own, beside the same without Ray."""

import importlib.util
import json
import os
import subprocess
import sys

import numpy as np
import pytest

from flaxbert.config import CorpusConfig, DedupConfig, PrepareConfig
from flaxbert.core.trees import flatten_names
from flaxbert.model import load
from flaxbert.train.recipes.prepare import prepare_corpus
from tests.cluster.texts import files_of, sentence, write_texts
from tests.helpers import ROOT, run_python
from tests.weights.tiny import write_tiny

pytestmark = [
    pytest.mark.slow,
    pytest.mark.multiprocess,
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs the ray extra"),
]

STEPS = 12

LONGEST_SECONDS = 600
"""A launch takes 20 seconds on two idle cores; most of it is starting Python in the workers."""

LOSS_TOLERANCE = 2e-5
"""Relative: two processes add up float32 sums in another order than one."""


@pytest.fixture(scope="module")
def address():
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.cluster.two_nodes"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        lines = iter(process.stdout.readline, "")
        yield next(line for line in lines if line.startswith("address ")).split()[1]
    finally:
        process.communicate("", timeout=60)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_tiny(tmp_path_factory.mktemp("tiny") / "model")


def launch(address, folder, words, options=()):
    cluster = ["--cluster.address", address, "--cluster.num_workers", "2", *options]
    return run_python(
        ["-m", "flaxbert", "launch", *cluster, "--", *words], folder=folder, timeout_seconds=LONGEST_SECONDS
    )


def flaxbert(folder, words, devices=1):
    environment = {"XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}
    result = run_python(
        ["-m", "flaxbert", *words], folder=folder, environment=environment, timeout_seconds=LONGEST_SECONDS
    )
    assert result.returncode == 0, result.stderr
    return result


def prepare_words(model, folder, shards):
    return [
        "prepare", "--corpus.inputs", '["texts"]', "--prepare.folder", folder, "--prepare.tokenizer", str(model),
        "--prepare.num_shards", str(shards), "--dedup.exact", "true", "--dedup.near", "true",
    ]  # fmt: skip


@pytest.mark.parametrize("shards", [2, 5])
def test_prepare_writes_the_files_of_one_machine(shards, address, model, tmp_path):
    write_texts(tmp_path / "texts")
    result = launch(address, tmp_path, prepare_words(model, "many", shards))
    assert result.returncode == 0, result.stderr
    flaxbert(tmp_path, [*prepare_words(model, "one", shards), "--prepare.num_workers", "1"])
    assert files_of(tmp_path / "many") == files_of(tmp_path / "one")
    assert "left out: 3 exact and 2 near copies" in result.stdout


def test_predict_writes_the_lines_of_one_machine(address, model, tmp_path):
    (tmp_path / "texts.txt").write_text("".join(f"{sentence(n, 1 + n % 11)}\n" for n in range(101)), "utf-8")
    words = ["predict", str(model), "--input", "texts.txt", "--batch_size", "8", "--format", "jsonl", "--output"]
    flags = ["--cluster.environment.XLA_FLAGS=--xla_force_host_platform_device_count=1"]
    result = launch(address, tmp_path, [*words, "many.jsonl"], flags)
    assert result.returncode == 0, result.stderr
    flaxbert(tmp_path, [*words, "one.jsonl"])
    assert (tmp_path / "many.jsonl").read_text() == (tmp_path / "one.jsonl").read_text()
    assert (tmp_path / "one.jsonl").read_text().count("\n") == 101


@pytest.fixture(scope="module")
def corpus(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pretraining")
    write_texts(folder / "texts", num_documents=40)
    config = PrepareConfig(folder=str(folder / "corpus"), tokenizer=str(model), num_shards=1, num_workers=1)
    text = CorpusConfig(inputs=(str(folder / "texts"),))
    prepare_corpus(config, text, DedupConfig(), say=lambda line: None)
    return folder / "corpus"


def pretrain_words(corpus, folder):
    sizes = {"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64}
    return [
        "pretrain", "--model.size", "tiny", "--model.architecture", json.dumps(sizes), "--model.precision", "float32",
        "--data.corpora", f'["{corpus}"]', "--data.row_length", "32", "--data.validation_rate", "0.1",
        "--train.batch_size", "8", "--train.num_steps", str(STEPS), "--train.evaluate_every", str(STEPS),
        "--train.checkpoint_every", "3", "--train.log_every", "1", "--output.folder", str(folder),
        "--output.plots", "false", "--output.tensorboard", "false", "--output.progress", "off",
    ]  # fmt: skip


def losses_of(folder):
    entries = [json.loads(line) for line in (folder / "metrics.jsonl").read_text("utf-8").splitlines()]
    return {entry["step"]: entry["loss"] for entry in entries if entry["kind"] == "train"}


@pytest.fixture(scope="module")
def trained(address, corpus, tmp_path_factory):
    folder = tmp_path_factory.mktemp("many")
    flags = [
        "--cluster.placement", "strict_spread",
        "--cluster.environment.XLA_FLAGS=--xla_force_host_platform_device_count=1",
    ]  # fmt: skip
    result = launch(address, folder, pretrain_words(corpus, "run"), flags)
    assert result.returncode == 0, result.stderr[-3000:]
    return folder / "run", result


def test_two_workers_on_two_nodes_train_like_one_process(trained, corpus, tmp_path):
    many, result = trained
    assert "Training in 2 workers on 2 nodes: flaxbert pretrain" in result.stdout
    flaxbert(tmp_path, pretrain_words(corpus, "run"), devices=2)
    alone = losses_of(tmp_path / "run")
    assert sorted(alone) == list(range(1, STEPS + 1))
    assert losses_of(many) == pytest.approx(alone, rel=LOSS_TOLERANCE)
    assert load(many / "model").task == "fill-mask"


def crash(address, corpus, folder, max_failures):
    words = ["-m", "tests.cluster.crashing", address, max_failures, folder / "mark", folder / "run", "7"]
    return run_python([*map(str, words), *pretrain_words(corpus, folder / "run")], timeout_seconds=LONGEST_SECONDS)


def test_a_lost_worker_is_replaced_and_changes_no_bit(address, trained, corpus, tmp_path):
    result = crash(address, corpus, tmp_path, "1")
    assert result.returncode == 0, result.stderr[-3000:]
    assert (tmp_path / "mark").exists()
    told = result.stdout + result.stderr
    assert "Worker 1 of 2 failed" in told
    assert "starting all workers again (1 of 1)" in told
    assert "Resuming at step" in told
    assert losses_of(tmp_path / "run") == losses_of(trained[0])
    whole, again = (flatten_names(load(folder / "model").params) for folder in (trained[0], tmp_path / "run"))
    assert all(np.array_equal(leaf, again[name]) for name, leaf in whole.items())


def test_a_lost_worker_ends_the_run_where_no_restart_is_left(address, corpus, tmp_path):
    result = crash(address, corpus, tmp_path, "0")
    assert result.returncode == 1
    assert "TrainingError: Worker 1 of 2 failed: " in result.stderr
    assert not (tmp_path / "run" / "model").exists()


def test_the_error_of_a_worker_is_one_line(address, tmp_path):
    result = launch(address, tmp_path, pretrain_words("nowhere", "run"))
    assert result.returncode == 1
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("flaxbert: error:")]
    assert "of 2 failed: nowhere is no prepared corpus" in line


def test_more_workers_than_there_is_room_for(address, tmp_path):
    options = ["--cluster.num_workers", "5", "--cluster.timeout_seconds", "2"]
    result = launch(address, tmp_path, ["pretrain"], options)
    assert result.returncode == 1
    assert "no room for 5 workers within 2 s: they need CPU 5 (the cluster has 2, 2 free) on 2 nodes" in result.stderr


def test_a_cluster_that_can_not_be_reached(tmp_path):
    result = launch("127.0.0.1:1", tmp_path, ["pretrain"])
    assert result.returncode == 1
    assert "flaxbert: error: The Ray cluster '127.0.0.1:1' can not be reached" in result.stderr
