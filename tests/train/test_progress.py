"""The line of progress on terminals and in files."""

import io
import math

import pytest

from flaxbert.architecture import ModelConfig
from flaxbert.config import RunConfig
from flaxbert.train.callbacks import Callback, RunInfo
from flaxbert.train.progress import EtaClock, ProgressReporter, SmoothedLoss

METRICS = {
    "loss": 0.5,
    "learning_rate": 3e-5,
    "tokens_per_second": 12345.6,
    "examples_per_second": 99.4,
    "padding_rate": 0.125,
    "memory_bytes": 3 * 2**30,
    "model_flops_utilization": 0.412,
}


class Clock:
    """A clock that is set by hand."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


class Terminal(io.StringIO):
    """A stream that says that it is a terminal."""

    def isatty(self):
        return True


def run_info(total_steps=100, first_step=0, resumed=False):
    return RunInfo(RunConfig(), ModelConfig(), total_steps=total_steps, first_step=first_step, resumed=resumed)


def test_a_plain_line_says_everything():
    stream, clock = io.StringIO(), Clock()
    reporter = ProgressReporter(stream=stream, clock=clock)
    reporter.on_start(run_info())
    clock.now = 5.0
    reporter.on_log(10, METRICS)
    assert stream.getvalue() == (
        "step 10/100 (10.0%) | loss 0.5000 | lr 3.00e-05 | 12.3k tokens/s | 99.4 examples/s | MFU 41.2% | 3.22 GB | "
        "padding 12% | ETA 0:00:45\n"
    )


def test_what_is_not_known_is_left_out():
    stream = io.StringIO()
    reporter = ProgressReporter(stream=stream, clock=Clock())
    reporter.on_start(run_info())
    reporter.on_log(10, {"loss": math.nan})
    assert stream.getvalue() == "step 10/100 (10.0%) | loss nan | ETA 0:00:00\n"


def test_plain_lines_come_seldom_but_the_last_always():
    stream, clock = io.StringIO(), Clock()
    reporter = ProgressReporter("plain", stream=stream, clock=clock, least_seconds=10.0)
    reporter.on_start(run_info())
    for step in range(10, 101, 10):
        clock.now += 3.0
        reporter.on_log(step, METRICS)
    shown = [line.split()[1] for line in stream.getvalue().splitlines()]
    assert shown == ["10/100", "50/100", "90/100", "100/100"]


def test_evaluations_name_the_chosen_metric_first_and_the_best():
    stream = io.StringIO()
    reporter = ProgressReporter(metric="loss", stream=stream, clock=Clock())
    reporter.on_start(run_info())
    for step, loss in ((0, 9.0), (10, 2.0), (20, 3.0), (30, 1.0)):
        reporter.on_evaluation(step, {"accuracy": 0.5, "loss": loss})
    reporter.on_evaluation(30, {"loss": 0.1}, split="test")
    assert stream.getvalue().splitlines() == [
        "step 0: validation loss 9.0000, accuracy 0.5000",
        "step 10: validation loss 2.0000 (best so far), accuracy 0.5000",
        "step 20: validation loss 3.0000, accuracy 0.5000",
        "step 30: validation loss 1.0000 (best so far), accuracy 0.5000",
        "step 30: test loss 0.1000",
    ]


def test_a_resumed_run_does_not_claim_a_best():
    stream = io.StringIO()
    reporter = ProgressReporter(metric="accuracy", stream=stream)
    reporter.on_start(run_info(first_step=50, resumed=True))
    reporter.on_evaluation(60, {"accuracy": 0.5})
    assert "best" not in stream.getvalue()


def test_the_end():
    stream = io.StringIO()
    reporter = ProgressReporter(stream=stream)
    reporter.on_start(run_info())
    reporter.on_end({"step": 40, "reason": "early_stopping", "seconds": 3725})
    assert stream.getvalue() == "Early stopping after 40 steps in 1:02:05.\n"


def test_off_is_silent():
    stream = Terminal()
    reporter = ProgressReporter("off", stream=stream)
    reporter.on_start(run_info())
    reporter.on_log(10, METRICS)
    reporter.on_evaluation(10, {"accuracy": 1.0})
    reporter.on_end({"step": 10})
    assert stream.getvalue() == ""


def test_a_terminal_gets_a_live_line(monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.setenv("TERM", "xterm-256color")
    stream = Terminal()
    reporter = ProgressReporter(metric="accuracy", stream=stream)
    reporter.on_start(run_info())
    reporter.on_log(10, METRICS)
    reporter.on_evaluation(10, {"accuracy": 0.75})
    reporter.on_end({"step": 10, "reason": "finished"})
    text = stream.getvalue()
    assert "step 10/100" in text
    assert "ETA" in text
    assert "validation accuracy 0.7500 (best so far)" in text
    assert "\x1b[?25h" in text  # the cursor is shown again
    assert text.endswith("Finished after 10 steps.\n")
    reporter.close()


def test_the_reporter_has_the_protocol():
    assert isinstance(ProgressReporter("off"), Callback)


def test_smoothing_is_a_weighted_mean():
    loss = SmoothedLoss(0.5)
    assert loss.add(2.0) == 2.0
    assert loss.add(1.0) == pytest.approx((0.25 * 2.0 + 0.5 * 1.0) / 0.75)
    assert math.isnan(loss.add(math.nan))
    assert loss.add(1.0) == pytest.approx((0.125 * 2.0 + 0.25 * 1.0 + 0.5 * 1.0) / 0.875)


def test_the_estimate_leaves_out_the_compilation():
    clock = Clock()
    eta = EtaClock(clock)
    eta.start(0)
    clock.now = 60.0  # 59 seconds of compilation, 10 steps
    assert eta.seconds_left(10, 110) == pytest.approx(600.0)
    clock.now = 62.0  # 20 steps in 2 seconds
    assert eta.seconds_left(30, 110) == pytest.approx(8.0)
    assert eta.seconds_left(110, 110) == 0.0


def test_the_estimate_of_a_resumed_run_counts_its_own_steps():
    clock = Clock()
    eta = EtaClock(clock)
    eta.start(90)
    clock.now = 5.0
    assert eta.seconds_left(95, 100) == pytest.approx(5.0)


def test_no_estimate_without_steps():
    assert math.isinf(EtaClock(Clock()).seconds_left(0, 10))
