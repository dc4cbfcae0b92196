"""Whole fine-tuning runs of a tiny model on the virtual devices."""

import json
import pathlib
import re

import numpy as np
import pytest

from flaxbert.config import DataConfig, MeshConfig, ModelSource, OutputConfig, RunConfig, TrainConfig
from flaxbert.core.trees import flatten_parts
from flaxbert.errors import ConfigError, DataError, MemoryLimitError, MeshError, TrainingError
from flaxbert.model import load
from flaxbert.registry import Registry
from flaxbert.train import memory
from flaxbert.train.recipes import plan
from flaxbert.train.recipes.finetune import finetune
from tests.train.recipes.stopped_runs import StopAt
from tests.weights.tiny import write_tiny

TEXTS = ("a fine film", "the film was bad", "fine films", "bad .", "the fine", "a bad film .")
LABELS = ("good", "bad", "good", "bad", "good", "bad")


@pytest.fixture
def model(tmp_path) -> pathlib.Path:
    return write_tiny(tmp_path / "start")


@pytest.fixture
def data(tmp_path) -> pathlib.Path:
    file = tmp_path / "train.tsv"
    rows = [f"{TEXTS[i % 6]}\t{LABELS[i % 6]}" for i in range(48)]
    file.write_text("text\tlabel\n" + "\n".join(rows) + "\n", "utf-8")
    return file


def build(model, data, folder, *, mesh=MeshConfig(), output=None, dropout_rate=0.1, precision="float32", **train):
    settings = {"batch_size": 16, "num_steps": 6, "learning_rate": 1e-2, "log_every": 1, "checkpoint_every": 2, **train}
    return RunConfig(
        model=ModelSource(path=str(model), dropout_rate=dropout_rate, precision=precision),
        data=DataConfig(train=str(data), max_length=8, length_buckets=(8,), validation_rate=0.25),
        train=TrainConfig(**settings),
        mesh=mesh,
        output=output or OutputConfig(folder=str(folder), tensorboard=False, plots=False, progress="off"),
    )


def quiet(line: str) -> None:
    """Swallows the lines for the user."""


def assert_same(first, second) -> None:
    left, right = flatten_parts(first.params), flatten_parts(second.params)
    assert left.keys() == right.keys()
    for name in left:
        np.testing.assert_array_equal(left[name], right[name], err_msg=name)


def test_a_run_learns_and_leaves_a_model_that_loads(model, data, tmp_path):
    output = OutputConfig(
        folder=str(tmp_path / "run"),
        tensorboard=True,
        plots=True,
        progress="off",
        register="films",
        registry=str(tmp_path / "registry"),
    )
    lines: list[str] = []
    result = finetune(build(model, data, None, output=output, num_steps=24, dropout_rate=0.0), say=lines.append)
    assert result.reason == "finished"
    assert result.after["loss"] < result.before["loss"]
    loaded = load(tmp_path / "run" / "model")
    assert loaded.config.label_names == ("bad", "good")
    assert [p.label for p in loaded.predict(TEXTS)] == [p.label for p in result.model.predict(TEXTS)]
    card = (tmp_path / "run" / "model" / "README.md").read_text("utf-8")
    assert "accuracy" in card
    assert str(tmp_path) not in card
    assert {"loss.png", "metrics.png", "confusion_matrix.png"} <= {
        p.name for p in (tmp_path / "run" / "plots").iterdir()
    }
    kinds = [json.loads(line)["kind"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert kinds[0] == "start"
    assert kinds[-1] == "end"
    assert any("Before and after" in line for line in lines)
    assert any("It is films:1 in" in line for line in lines)
    record = Registry(str(tmp_path / "registry")).find("films:1")
    assert record.metrics == {name: value for name, value in result.after.items() if np.isfinite(value)}
    assert record.parent == model.name
    assert record.data["labels"] == {"bad": 0.5, "good": 0.5}
    assert record.data["scripts"] == {"Latin": 1.0}


def test_a_stopped_run_resumes_bit_for_bit(model, data, tmp_path):
    whole = finetune(build(model, data, tmp_path / "whole"), say=quiet)
    stopped = finetune(build(model, data, tmp_path / "parts"), say=quiet, extra_callbacks=[StopAt(3)])
    assert stopped.reason == "preempted"
    assert stopped.step == 3
    resumed = finetune(build(model, data, tmp_path / "parts"), say=quiet)
    assert resumed.reason == "finished"
    assert_same(whole.model, resumed.model)
    assert whole.history == resumed.history


def test_a_loss_that_is_not_finite_stops_with_the_step(model, data, tmp_path):
    with pytest.raises(TrainingError, match=r"not finite at step \d+; (the last good checkpoint|no checkpoint)"):
        finetune(
            build(model, data, tmp_path / "run", learning_rate=1e38, max_grad_norm=0.0, optimizer="sgd"), say=quiet
        )
    assert not (tmp_path / "run" / "model").exists()


@pytest.mark.slow
def test_early_stopping_ends_before_the_last_step(model, data, tmp_path):
    run = build(
        model, data, tmp_path / "run", num_steps=30, learning_rate=0.0, evaluate_every=1, early_stopping_patience=2
    )
    result = finetune(run, say=quiet)
    assert result.reason == "early_stopping"
    assert len(result.history) == 3


@pytest.mark.slow
def test_batch_size_auto_keeps_the_global_batch(model, data, tmp_path, monkeypatch):
    monkeypatch.setattr(plan, "memory_budget_bytes", lambda device: 10**12)
    lines: list[str] = []
    run = build(model, data, tmp_path / "run", batch_size="auto", target_batch_size=16, num_steps=2)
    finetune(run, say=lines.append)
    assert any("Batch size auto" in line and "of 16" in line for line in lines)


@pytest.mark.slow
def test_the_bytes_on_each_device_are_said_and_split_over_the_mesh(model, data, tmp_path):
    said: dict[MeshConfig, str] = {}
    for index, mesh in enumerate((MeshConfig(data=8), MeshConfig(data=2, fsdp=4))):
        lines: list[str] = []
        finetune(build(model, data, tmp_path / f"{index}", mesh=mesh, num_steps=1), say=lines.append)
        (said[mesh],) = (line for line in lines if line.startswith("On each device: "))
    whole, split = ([float(size) for size in re.findall(r"([\d.]+) kB", line)] for line in said.values())
    assert len(whole) == 2  # parameters, and twice as much for the moments of AdamW
    assert whole[1] == pytest.approx(2 * whole[0], rel=0.01)
    assert all(part < 0.35 * all_of_it for part, all_of_it in zip(split, whole, strict=True))


def test_too_little_memory_is_named_before_the_step_runs(model, data, tmp_path, monkeypatch):
    monkeypatch.setattr(plan, "memory_budget_bytes", lambda device: 1000)
    assert memory.micro_batch_sizes(16, 8) == [8, 16]
    with pytest.raises(MemoryLimitError, match="micro batch of 8 needs"):
        finetune(build(model, data, tmp_path / "run"), say=quiet)


def test_bad_settings_end_in_one_clear_error(model, data, tmp_path):
    with pytest.raises(MeshError, match="batch of 12"):
        finetune(build(model, data, tmp_path / "a", batch_size=12), say=quiet)
    with pytest.raises(ConfigError, match=r"model\.path is empty"):
        finetune(RunConfig(), say=quiet)
    data.write_text("text\tlable\nfine\tgood\n", "utf-8")
    with pytest.raises(DataError, match="label"):
        finetune(build(model, data, tmp_path / "b"), say=quiet)


def test_a_finished_run_is_not_silently_repeated(model, data, tmp_path, monkeypatch):
    traced, forward_of = [], plan.model_forward

    def counted(model):
        forward = forward_of(model)
        return lambda *arguments, **options: traced.append(1) or forward(*arguments, **options)

    monkeypatch.setattr(plan, "model_forward", counted)
    run = build(model, data, tmp_path / "run", num_steps=2)
    finetune(run, say=quiet)
    assert len(traced) == 1  # the step whose memory was learned is the one that trains
    with pytest.raises(ConfigError, match="never"):
        finetune(build(model, data, tmp_path / "run", num_steps=2, resume="never"), say=quiet)
    with pytest.raises(ConfigError, match=r"train\.learning_rate"):
        finetune(build(model, data, tmp_path / "run", num_steps=2, learning_rate=0.5), say=quiet)
    with pytest.raises(ConfigError, match="must"):
        finetune(build(model, data, tmp_path / "new", num_steps=2, resume="must"), say=quiet)
