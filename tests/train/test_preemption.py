"""PreemptionGuard: the first signal asks, the second ends the process."""

import os
import signal
import subprocess
import sys
import threading

import pytest

from flaxbert.train.preemption import PreemptionGuard
from tests.helpers import ROOT

WAITING = """
import sys, time
from flaxbert.train.preemption import PreemptionGuard
with PreemptionGuard() as guard:
    print("ready", flush=True)
    while not guard.requested:
        time.sleep(0.01)
    print(guard.signal_name, flush=True)
    time.sleep(60 if "stay" in sys.argv else 0)
print("saved", flush=True)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_is_a_flag_inside_and_what_it_was_outside(number):
    before = signal.getsignal(number)
    with PreemptionGuard() as guard:
        assert not guard.requested
        assert not guard.should_stop(0)
        signal.raise_signal(number)
        assert guard.requested
        assert guard.should_stop(1)
        assert guard.signal_name == signal.Signals(number).name
        assert signal.getsignal(number) is not before
    assert signal.getsignal(number) is before


def start(*arguments: str) -> subprocess.Popen:
    process = subprocess.Popen(
        [sys.executable, "-c", WAITING, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert process.stdout.readline() == "ready\n"
    return process


def test_first_signal_lets_the_process_save():
    process = start()
    process.send_signal(signal.SIGTERM)
    output, errors = process.communicate(timeout=20)
    assert (output, errors, process.returncode) == ("SIGTERM\nsaved\n", "", 0)


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_second_signal_ends_the_process_at_once(second):
    process = start("stay")
    process.send_signal(signal.SIGTERM)
    assert process.stdout.readline() == "SIGTERM\n"
    process.send_signal(second)
    output, _ = process.communicate(timeout=20)
    assert output == ""
    assert process.returncode == -second


def test_processes_agree_on_when_they_ask_again(monkeypatch):
    import jax
    import numpy as np
    from jax.experimental import multihost_utils

    now, asked = [0.0], []

    def gather(mine):
        asked.append(mine.tolist())
        return np.stack([mine, np.array([0, 40], np.int32)])

    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(multihost_utils, "process_allgather", gather)
    guard = PreemptionGuard(check_every=8, check_seconds=5.0, clock=lambda: now[0])
    steps = []
    for step in range(3, 100):
        before = len(asked)
        assert not guard.should_stop(step)
        if len(asked) > before:
            steps.append(step)
        now[0] += 0.1 if step < 60 else 2.5  # this process would ask every 50 steps, later every second
    # The other process wants 40 steps, then the slow one decides.
    assert steps[:3] == [8, 48, 88]
    assert steps[3] - steps[2] == asked[2][1] < 40
    guard.signal_name = "SIGTERM"
    assert guard.should_stop(1000)


def test_outside_the_main_thread_it_never_asks():
    before = signal.getsignal(signal.SIGTERM)
    answers = []

    def use() -> None:
        with PreemptionGuard() as guard:
            answers.append((guard.requested, signal.getsignal(signal.SIGTERM) is before))

    thread = threading.Thread(target=use)
    thread.start()
    thread.join()
    assert answers == [(False, True)]
