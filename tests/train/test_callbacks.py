"""The files that a run writes while it trains, also after it was killed in the middle of a line."""

import json

import numpy as np
import pytest

from flaxbert.architecture import ModelConfig
from flaxbert.config import RunConfig
from flaxbert.errors import DataError
from flaxbert.train.callbacks import (
    Callback,
    CallbackBase,
    JsonLinesWriter,
    RunInfo,
    TensorBoardWriter,
    flatten_options,
    read_metrics,
)


def run_info(first_step=0, resumed=False):
    return RunInfo(RunConfig(), ModelConfig(), total_steps=40, first_step=first_step, resumed=resumed, num_examples=7)


def write_run(path, steps, first_step=0, resumed=False, noise=0.0):
    writer = JsonLinesWriter(path)
    writer.on_start(run_info(first_step, resumed))
    for step in steps:
        writer.on_log(step, {"loss": 1.0 / step + noise})
        if step % 20 == 0:
            writer.on_evaluation(step, {"accuracy": step / 100})
            writer.on_checkpoint(step, "/home/somebody/run/checkpoints")
    return writer


def without_time(entries):
    return [{name: value for name, value in entry.items() if name != "time"} for entry in entries]


def test_lines_of_a_run(tmp_path):
    path = tmp_path / "run" / "metrics.jsonl"
    writer = write_run(path, [10, 20])
    writer.on_end({"step": 20, "reason": "finished", "metrics": {"accuracy": 0.2}})
    assert without_time(read_metrics(path)) == [
        {"step": 0, "kind": "start", "total_steps": 40, "num_examples": 7, "num_parameters": 0, "resumed": False},
        {"step": 10, "kind": "train", "loss": 0.1},
        {"step": 20, "kind": "train", "loss": 0.05},
        {"step": 20, "kind": "evaluation", "split": "validation", "accuracy": 0.2},
        {"step": 20, "kind": "checkpoint", "path": "checkpoints"},
        {"step": 20, "kind": "end", "reason": "finished", "metrics": {"accuracy": 0.2}},
    ]
    assert all(entry["time"] > 1e9 for entry in read_metrics(path))


def test_resuming_drops_what_came_after_the_checkpoint(tmp_path):
    path, straight = tmp_path / "killed.jsonl", tmp_path / "straight.jsonl"
    write_run(straight, [10, 20, 30, 40])
    write_run(path, [10, 20, 30])
    write_run(path, [30, 40], first_step=20, resumed=True, noise=0.5)
    entries = [entry for entry in read_metrics(path) if entry["kind"] == "train"]
    assert [(entry["step"], entry["loss"]) for entry in entries] == [
        (10, 0.1),
        (20, 0.05),
        (30, 1 / 30 + 0.5),
        (40, 0.525),
    ]
    keys = [(entry["step"], entry["kind"]) for entry in read_metrics(path)]
    assert len(keys) == len(set(keys))
    assert set(keys) == {(entry["step"], entry["kind"]) for entry in read_metrics(straight)} | {(20, "start")}


def test_a_line_that_is_already_there_is_not_repeated(tmp_path):
    path = tmp_path / "metrics.jsonl"
    write_run(path, [10, 20])
    writer = write_run(path, [], first_step=20, resumed=True)
    before = path.read_bytes()
    writer.on_evaluation(20, {"accuracy": 0.9})
    writer.on_log(20, {"loss": 9.0})
    assert path.read_bytes() == before
    writer.on_evaluation(20, {"accuracy": 0.9}, split="test")
    assert read_metrics(path)[-1]["split"] == "test"


def test_the_end_of_an_interrupted_run_is_forgotten(tmp_path):
    path = tmp_path / "metrics.jsonl"
    write_run(path, [10, 20]).on_end({"step": 20, "reason": "preempted"})
    write_run(path, [30, 40], first_step=20, resumed=True).on_end({"step": 40, "reason": "finished"})
    assert [entry["reason"] for entry in read_metrics(path) if entry["kind"] == "end"] == ["finished"]


def test_a_new_run_starts_a_new_file(tmp_path):
    path = tmp_path / "metrics.jsonl"
    write_run(path, [10, 20])
    write_run(path, [10])
    assert [entry["step"] for entry in read_metrics(path)] == [0, 10]


def test_a_torn_last_line_is_left_out_and_removed(tmp_path):
    path = tmp_path / "metrics.jsonl"
    write_run(path, [10, 20])
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"step": 30, "kind": "tr')
    assert len(read_metrics(path)) == whole.count(b"\n")
    write_run(path, [30], first_step=20, resumed=True)
    assert [entry["step"] for entry in read_metrics(path) if entry["kind"] == "train"] == [10, 20, 30]


@pytest.mark.parametrize("cut", range(1, 60, 7))
def test_any_cut_leaves_a_file_that_can_be_resumed(tmp_path, cut):
    path = tmp_path / "metrics.jsonl"
    write_run(path, [10, 20, 30])
    path.write_bytes(path.read_bytes()[:-cut])
    write_run(path, [30, 40], first_step=20, resumed=True)
    assert [entry["step"] for entry in read_metrics(path) if entry["kind"] == "train"] == [10, 20, 30, 40]


def test_a_damaged_line_is_named(tmp_path, caplog):
    path = tmp_path / "metrics.jsonl"
    write_run(path, [10, 20])
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([lines[0], b"\x00\x00\xff\n", *lines[2:]]))
    with pytest.raises(DataError, match="Line 2 of .*metrics.jsonl"):
        read_metrics(path)
    write_run(path, [30], first_step=20, resumed=True)
    assert "Line 2 of metrics.jsonl is damaged" in caplog.text
    assert [entry["step"] for entry in read_metrics(path) if entry["kind"] == "train"] == [20, 30]


def test_an_absent_file_is_named(tmp_path):
    with pytest.raises(DataError, match="metrics.jsonl"):
        read_metrics(tmp_path / "metrics.jsonl")


def test_numbers_of_all_libraries_become_strict_json(tmp_path):
    path = tmp_path / "metrics.jsonl"
    writer = JsonLinesWriter(path)
    writer.on_start(run_info())
    values = {
        "loss": np.float32(0.5),
        "steps": np.arange(3),
        "bad": float("nan"),
        "worse": [np.inf, 1.0],
        "flag": True,
        "nested": {"a": np.int64(2)},
        "step": 99,
    }
    writer.on_log(10, values)

    def refuse(constant):
        raise AssertionError(constant)

    entry = json.loads(path.read_text(encoding="utf-8").splitlines()[-1], parse_constant=refuse)
    assert {name: entry[name] for name in values} == {
        "loss": 0.5,
        "steps": [0, 1, 2],
        "bad": None,
        "worse": [None, 1.0],
        "flag": True,
        "nested": {"a": 2},
        "step": 10,
    }


def test_options_become_flat():
    options = flatten_options({"train": {"seed": 1, "freeze": (), "x": {"y": 0.5}}, "data": {"label_map": {}}})
    assert options == {"train.seed": 1, "train.freeze": "[]", "train.x.y": 0.5, "data.label_map": "{}"}


def test_every_callback_has_the_protocol(tmp_path):
    for callback in (CallbackBase(), JsonLinesWriter(tmp_path / "a"), TensorBoardWriter(tmp_path / "b")):
        assert isinstance(callback, Callback)


def iterate_records(file):
    while header := file.read(12):
        length = int.from_bytes(header[:8], "little")
        yield file.read(length)
        file.read(4)


def test_tensorboard_events(tmp_path):
    from tensorboardX.proto.event_pb2 import Event

    writer = TensorBoardWriter(tmp_path)
    writer.on_start(run_info())
    writer.on_log(10, {"loss": 0.5, "step_losses": [0.5, 0.5], "learning_rate": 1e-5})
    writer.on_evaluation(10, {"accuracy": 0.75})
    writer.on_end({"step": 10, "metrics": {"accuracy": 0.75}})
    tags = {}
    names = set()
    for path in sorted(tmp_path.rglob("events.out.tfevents.*")):
        with path.open("rb") as file:
            for record in iterate_records(file):
                event = Event.FromString(record)
                for value in event.summary.value:
                    names.add(value.tag)
                    if value.HasField("simple_value"):
                        tags[value.tag] = (event.step, value.simple_value)
    assert tags["train/loss"] == (10, 0.5)
    assert tags["validation/accuracy"] == (10, 0.75)
    assert tags["final/accuracy"] == (10, 0.75)
    assert "train/step_losses" not in tags
    assert "_hparams_/session_start_info" in names
    assert any(name.startswith("config") for name in names)
    writer.on_end({"step": 10})  # a second end changes nothing
