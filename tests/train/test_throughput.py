"""Speed figures against the table of published FLOPs and against clocks that tell known times."""

import jax
import pytest

from flaxbert.architecture import ModelConfig
from flaxbert.config import RunConfig
from flaxbert.train.callbacks import CallbackBase, RunInfo
from flaxbert.train.throughput import (
    MeasuredCallbacks,
    ThroughputMeter,
    all_devices_peak_flops,
    memory_in_use_bytes,
    model_flops_utilization,
    train_flops_per_token,
)

BASE = ModelConfig()
LARGE = ModelConfig(hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096)


class Clock:
    """A clock that is set by hand."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


@pytest.mark.parametrize(
    ("config", "length", "giga_flops"),
    [(BASE, 128, 0.545), (BASE, 512, 0.588), (LARGE, 128, 1.879), (LARGE, 256, 1.917), (LARGE, 512, 1.992)],
)
def test_flops_of_bert_with_masked_language_model(config, length, giga_flops):
    assert round(train_flops_per_token(config, length, masked_rate=0.15) / 1e9, 3) == giga_flops


def test_flops_count_products_one_by_one():
    config = ModelConfig(hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16, vocab_size=11)
    length = 5
    products = 0
    for _ in range(config.num_hidden_layers):
        products += 4 * length * 8 * 8  # query, key, value, output
        products += 2 * length * length * 8  # scores and weighted sum
        products += 2 * length * 8 * 16  # feed-forward
    assert train_flops_per_token(config, length) * length == 3 * 2 * products
    products -= (length - 1) * (8 * 8 + 2 * 8 * 16)  # output and feed-forward of the last layer, for one token
    assert train_flops_per_token(config, length, first_token_only=True) * length == pytest.approx(3 * 2 * products)


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
    meter.add(num_examples=2, num_tokens=10.0, num_slots=10)
    clock.now = 5.0
    assert meter.measure()["examples_per_second"] == 2.0


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
    assert model_flops_utilization(1e6, 5e8, 1e15) == pytest.approx(0.5)
    assert model_flops_utilization(1e6, 5e8, None) is None
    assert model_flops_utilization(float("inf"), 5e8, 1e15) is None


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
        self.told.append(("end", summary["step"]))


def test_measured_callbacks_add_speed_and_pass_everything_on():
    recorders = [Recorder(), Recorder()]
    group = MeasuredCallbacks(recorders, peak=lambda: 1e12, memory=lambda: (123, "device"))
    group.on_start(RunInfo(RunConfig(), BASE, total_steps=5))
    group.on_log(1, {"loss": 0.5, "tokens_per_second": 1280.0, "examples_per_second": 10.0})
    group.on_evaluation(1, {}, "test")
    group.on_checkpoint(1, "folder")
    group.on_end({"step": 5})
    work = train_flops_per_token(BASE, 128.0)
    metrics = {
        "loss": 0.5,
        "tokens_per_second": 1280.0,
        "examples_per_second": 10.0,
        "memory_bytes": 123,
        "tokens_per_example": 128.0,
        "model_flops_utilization": pytest.approx(1280 * work / 1e12),
    }
    expected = [("start", 5), ("log", 1, metrics), ("evaluation", 1, "test"), ("checkpoint", 1, "folder"), ("end", 5)]
    assert recorders[0].told == recorders[1].told == expected


def test_measured_callbacks_without_known_peak():
    recorder = Recorder()
    group = MeasuredCallbacks([recorder], peak=lambda: None, memory=lambda: (1, "host"))
    group.on_start(RunInfo(RunConfig(), BASE, total_steps=5))
    group.on_log(1, {"tokens_per_second": 8.0, "examples_per_second": 2.0})
    assert "model_flops_utilization" not in recorder.told[-1][2]
    assert recorder.told[-1][2]["tokens_per_example"] == 4.0


def test_closing_reaches_all_that_hold_something():
    class Holder(Recorder):
        open = True

        def close(self):
            self.open = False

    holders = [Holder(), Recorder(), Holder()]
    MeasuredCallbacks(holders).close()
    assert [getattr(holder, "open", None) for holder in holders] == [False, None, False]
