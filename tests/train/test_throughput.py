"""Speed figures against the table of published FLOPs and against clocks that tell known times."""

import jax
import pytest

from flaxbert.architecture import ModelConfig
from flaxbert.config import RunConfig
from flaxbert.train.callbacks import CallbackBase, RunInfo
from flaxbert.train.goodput import KINDS, START, STEP, TimeLedger
from flaxbert.train.throughput import (
    MeasuredCallbacks,
    ThroughputMeter,
    all_devices_peak_flops,
    memory_in_use_bytes,
    model_flops_utilization,
)


class Clock:
    """A clock that is set by hand."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def test_meter_gives_rates_since_the_last_call():
    clock = Clock()
    meter = ThroughputMeter(clock)
    assert meter.measure() == {}
    meter.add(num_examples=8, num_tokens=60.0, num_slots=80)
    meter.add(num_examples=8, num_tokens=20.0, num_slots=80)
    clock.now = 4.0
    assert meter.measure() == {
        "tokens_per_second": 20.0,
        "examples_per_second": 4.0,
        "seconds_per_step": 2.0,
        "padding_rate": 0.5,
        "tokens_per_example": 5.0,
    }
    meter.add(num_examples=2, num_tokens=10.0, num_slots=10, num_flops=3e9)
    clock.now = 5.0
    rates = meter.measure()
    assert rates["examples_per_second"] == 2.0
    assert rates["model_flops_per_second"] == 3e9


def test_meter_does_not_count_pauses():
    clock = Clock()
    meter = ThroughputMeter(clock)
    meter.add(num_examples=10, num_tokens=10.0, num_slots=10)
    clock.now = 1.0
    meter.pause()
    meter.pause()
    clock.now = 100.0
    meter.resume()
    meter.resume()
    clock.now = 101.0
    assert meter.measure()["examples_per_second"] == 5.0


def test_utilization():
    assert model_flops_utilization(5e14, 1e15) == pytest.approx(0.5)
    assert model_flops_utilization(5e14, None) is None
    assert model_flops_utilization(None, 1e15) is None
    assert model_flops_utilization(float("inf"), 1e15) is None


def test_peak_of_a_cpu_is_not_known():
    assert jax.default_backend() == "cpu"
    assert all_devices_peak_flops() is None


def test_memory_of_this_process():
    size_bytes, owner = memory_in_use_bytes()
    assert owner == "host"
    assert 2**24 < size_bytes < 2**40


class Recorder(CallbackBase):
    """Keeps what it is told."""

    def __init__(self):
        self.told = []

    def on_start(self, run):
        self.told.append(("start", run.total_steps))

    def on_log(self, step, metrics):
        self.told.append(("log", step, dict(metrics)))

    def on_evaluation(self, step, metrics, split="validation"):
        self.told.append(("evaluation", step, split))

    def on_checkpoint(self, step, path):
        self.told.append(("checkpoint", step, path))

    def on_end(self, summary):
        self.told.append(("end", dict(summary)))


def test_measured_callbacks_add_speed_and_pass_everything_on():
    clock = Clock()
    recorders = [Recorder(), Recorder()]
    ledger = TimeLedger(clock, clock)
    group = MeasuredCallbacks(recorders, ledger, peak=lambda: 1e12, memory=lambda: (123, "device"))
    group.on_start(RunInfo(RunConfig(), ModelConfig(), total_steps=5))
    clock.now = 1.0
    with ledger.measure(STEP):
        clock.now = 4.0
    group.on_log(1, {"loss": 0.5, "model_flops_per_second": 4e11})
    group.on_evaluation(1, {}, "test")
    group.on_checkpoint(1, "folder")
    group.on_end({"step": 5})
    metrics = {
        "loss": 0.5,
        "model_flops_per_second": 4e11,
        "memory_bytes": 123,
        "goodput_rate": 0.75,
        "model_flops_utilization": pytest.approx(0.4),
    }
    end = {"step": 5, "goodput_rate": 0.75, "seconds_by_kind": {**dict.fromkeys(KINDS, 0.0), START: 1.0, STEP: 3.0}}
    expected = [("start", 5), ("log", 1, metrics), ("evaluation", 1, "test"), ("checkpoint", 1, "folder"), ("end", end)]
    assert recorders[0].told == recorders[1].told == expected


def test_measured_callbacks_without_known_peak():
    recorder = Recorder()
    group = MeasuredCallbacks([recorder], peak=lambda: None, memory=lambda: (1, "host"))
    group.on_start(RunInfo(RunConfig(), ModelConfig(), total_steps=5))
    group.on_log(1, {"model_flops_per_second": 8.0})
    assert "model_flops_utilization" not in recorder.told[-1][2]


def test_closing_reaches_all_that_hold_something():
    class Holder(Recorder):
        open = True

        def close(self):
            self.open = False

    holders = [Holder(), Recorder(), Holder()]
    MeasuredCallbacks(holders).close()
    assert [getattr(holder, "open", None) for holder in holders] == [False, None, False]
