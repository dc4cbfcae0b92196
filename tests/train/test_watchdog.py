"""The watchdog: what counts as a step and as a hang, and a real run that hangs."""

import os
import pathlib
import subprocess
import sys
import time

import pytest

from flaxbert.train.watchdog import EXIT_HANG, HangWatchdog
from tests.helpers import ROOT
from tests.weights.tiny import write_tiny

HANGING_RUN = """
import sys, threading, time
from flaxbert.config import DataConfig, ModelSource, OutputConfig, RunConfig, TrainConfig
from flaxbert.core.runtime import configure
from flaxbert.train.callbacks import CallbackBase
from flaxbert.train.recipes.finetune import finetune

class HangsAt(CallbackBase):
    def on_log(self, step, metrics):
        if step == 6:
            wait_for_nobody()

def wait_for_nobody():
    threading.Event().wait()

model, data, folder = sys.argv[1:]
configure()
finetune(RunConfig(
    model=ModelSource(path=model),
    data=DataConfig(train=data, max_length=8, length_buckets=(8,), validation_rate=0.25),
    train=TrainConfig(batch_size=16, num_steps=1000, log_every=1, checkpoint_every=2, hang_factor=3, hang_seconds=8),
    output=OutputConfig(folder=folder, tensorboard=False, plots=False, progress="off"),
), extra_callbacks=[HangsAt()])
"""


class Clock:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Result:
    """An array that is there when it is told so."""

    def __init__(self) -> None:
        self.done = False

    def is_ready(self) -> bool:
        return self.done


@pytest.fixture
def clock() -> Clock:
    return Clock()


def make(clock, factor=10.0, least_seconds=5.0, folder=pathlib.Path("nowhere"), ended=None):
    return HangWatchdog(folder, factor, least_seconds, clock=clock, end=(ended or []).append)


def pass_seconds(clock, watchdog, seconds) -> bool:
    """Lets time pass with looks in between; returns whether the watchdog saw a hang."""
    found = False
    for _ in range(round(seconds / 0.5)):
        clock.now += 0.5
        found = watchdog.look() or found
    return found


def test_the_limit_follows_the_median_of_completed_steps(clock):
    watchdog = make(clock)
    for number in range(5):
        result = Result()
        watchdog.dispatched(number, result)
        assert not pass_seconds(clock, watchdog, 2.0)
        result.done = True
        assert not watchdog.look()
    assert watchdog.median_seconds == 2.0
    assert watchdog.limit_seconds == 20.0
    watchdog.dispatched(9, Result())
    assert not pass_seconds(clock, watchdog, 20.0)
    assert pass_seconds(clock, watchdog, 0.5)


def test_steps_handed_over_ahead_count_when_they_are_done(clock):
    watchdog = make(clock)
    results = [Result() for _ in range(10)]
    for number, result in enumerate(results):
        watchdog.dispatched(number, result)
    for result in results:
        assert not pass_seconds(clock, watchdog, 4.0)
        result.done = True
        watchdog.look()
    assert watchdog.median_seconds == 4.0


def test_pauses_and_times_in_which_the_process_was_stopped_do_not_count(clock):
    watchdog = make(clock)
    with watchdog.paused():
        assert not pass_seconds(clock, watchdog, 1000.0)
        with watchdog.paused():
            pass
        assert not pass_seconds(clock, watchdog, 1000.0)
    assert not watchdog.look()
    clock.now += 1000.0
    assert not watchdog.look()
    assert pass_seconds(clock, watchdog, 6.0)


def test_a_pause_has_a_limit_of_its_own(clock, tmp_path, capsys):
    ended = []
    watchdog = HangWatchdog(tmp_path, 10.0, 5.0, clock=clock, end=ended.append, pause_seconds=100.0)
    with watchdog.paused():
        assert not pass_seconds(clock, watchdog, 90.0)
        with watchdog.paused():
            pass
        clock.now += 1000.0  # the whole process was stopped
        assert not watchdog.look()
        assert not pass_seconds(clock, watchdog, 10.0)
        assert pass_seconds(clock, watchdog, 1.0)
        watchdog._give_up()
    assert ended == [EXIT_HANG]
    assert "took 101 s (limit 100 s, train.hang_pause_seconds)" in capsys.readouterr().err
    with watchdog.paused():
        assert not pass_seconds(clock, watchdog, 90.0), "the next pause has the whole time again"


def test_without_a_factor_nothing_watches(clock):
    with make(clock, factor=0.0) as watchdog:
        assert watchdog._thread is None
        result = Result()
        watchdog.dispatched(1, result)
        result.done, clock.now = True, 3.0
        watchdog.dispatched(2, Result())
    assert watchdog.median_seconds == 3.0


def test_the_thread_writes_stacks_and_ends_the_process(tmp_path, capsys):
    ended: list[int] = []
    with HangWatchdog(tmp_path / "run", 1.0, 0.05, process=3, end=ended.append):
        waited = time.monotonic()
        while not ended and time.monotonic() - waited < 10:
            time.sleep(0.01)
    assert ended == [EXIT_HANG]
    (file,) = (tmp_path / "run").iterdir()
    assert file.name == "hang_process3_step0.txt"
    text = file.read_text("utf-8")
    assert "No step was completed" in text
    assert "test_the_thread_writes_stacks_and_ends_the_process" in text
    assert str(file) in capsys.readouterr().err


@pytest.mark.slow
def test_a_run_that_hangs_ends_with_a_code_of_its_own_and_goes_on_when_started_again(tmp_path):
    data = tmp_path / "train.tsv"
    data.write_text("text\tlabel\n" + "".join(f"a fine film {n}\tgood\nbad {n} .\tbad\n" for n in range(24)), "utf-8")
    arguments = [write_tiny(tmp_path / "start"), data, tmp_path / "run"]
    finished = subprocess.run(
        [sys.executable, "-c", HANGING_RUN, *map(str, arguments)],
        env={**os.environ, "XLA_FLAGS": "", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert finished.returncode == EXIT_HANG, finished.stderr
    (file,) = (tmp_path / "run").glob("hang_process0_step*.txt")
    assert "wait_for_nobody" in file.read_text("utf-8")
    assert "goes on from the newest checkpoint" in finished.stderr
    assert (tmp_path / "run" / "checkpoints" / "4").is_dir()
