"""Whole runs over several real processes on loopback, disturbed ones, and runs that go on with other devices."""

import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from flaxbert.core.trees import flatten_parts
from flaxbert.model import load
from flaxbert.train.callbacks import read_metrics
from tests.helpers import ROOT
from tests.weights.tiny import CONFIG, write_tiny

pytestmark = [pytest.mark.slow, pytest.mark.multiprocess]

STEPS = 24
MORE_DEVICES = 2e-5
"""Relative, on losses: devices and processes add up float32 sums in another order."""

PARAMETERS = 2e-4
"""Absolute, after 24 steps of AdamW of 1e-3, which divides gradients near 0 by their own size."""


class Runs:
    """Starts runs over one model and one file of examples."""

    def __init__(self, folder: pathlib.Path) -> None:
        texts = ("a fine film", "the film was bad", "fine films", "bad .", "the fine", "a bad film .")
        rows = [f"{texts[i % 6]}\t{'bad' if i % 2 else 'good'}" for i in range(48)]
        self.folder, self.dropout_rate = folder, 0.1
        (folder / "train.tsv").write_text("text\tlabel\n" + "\n".join(rows) + "\n", "utf-8")
        self.model = write_tiny(folder / "start", config=CONFIG.replace(num_hidden_layers=1))

    def settings(self, name: str, **train) -> dict:
        usual = {"batch_size": 16, "num_steps": STEPS, "learning_rate": 1e-3, "log_every": 1, "checkpoint_every": 4}
        return {
            "model": {
                "path": str(self.model),
                "dropout_rate": self.dropout_rate,
                "attention_dropout_rate": self.dropout_rate,
            },
            "data": {
                "train": str(self.folder / "train.tsv"),
                "max_length": 8,
                "length_buckets": [8],
                "validation_rate": 0.25,
            },
            "train": {**usual, **train},
            "mesh": {"fsdp": 2, "join_seconds": 60, "heartbeat_seconds": 10},
            "output": {"folder": str(self.folder / name), "tensorboard": False, "plots": False, "progress": "off"},
        }

    def start(self, name, processes=1, devices=1, disturb=None, **train):
        """Starts a run; ``disturb`` is the number of a process, a signal and a step."""
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{probe.getsockname()[1]}"
        environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        }
        command = [sys.executable, "-m", "tests.train.recipes.run_worker", json.dumps(self.settings(name, **train))]
        return [
            subprocess.Popen(
                [*command, str(processes), str(number), address]
                + ([str(part) for part in disturb[1:]] if disturb and disturb[0] == number else []),
                env=environment,
                cwd=ROOT,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            for number in range(processes)
        ]

    def finish(self, running, codes=(0,)):
        """Waits for the processes, which must end with these exit codes; returns what they printed."""
        try:
            printed = [process.communicate(timeout=300)[0] for process in running]
        finally:
            for process in running:
                process.kill()
        expected = list(codes) * (len(running) // len(codes))
        assert [process.returncode for process in running] == expected, "\n".join(printed)[-6000:]
        return printed

    def run(self, name, processes=1, devices=1, **train):
        """Runs to the end and returns the losses by step and the parameters."""
        self.finish(self.start(name, processes, devices, **train))
        return self.losses(name), flatten_parts(load(self.folder / name / "model").params)

    def losses(self, name):
        """Returns the loss of each step."""
        lines = read_metrics(self.folder / name / "metrics.jsonl")
        return {entry["step"]: entry["loss"] for entry in lines if entry["kind"] == "train"}

    def versions(self, name):
        """Returns the steps that are stored."""
        folder = self.folder / name / "checkpoints"
        return sorted(int(path.name) for path in folder.iterdir() if path.name.isdigit())


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Runs:
    return Runs(tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def two(runs):
    """A run of two processes that nothing disturbs."""
    return runs.run("two", processes=2)


def assert_equal(found, expected):
    assert found[0] == expected[0]
    assert all(np.array_equal(leaf, expected[1][name]) for name, leaf in found[1].items())


def assert_close(found, expected):
    assert found[0].keys() == expected[0].keys() == set(range(1, STEPS + 1))
    np.testing.assert_allclose(list(found[0].values()), list(expected[0].values()), rtol=MORE_DEVICES)
    for name, leaf in found[1].items():
        np.testing.assert_allclose(leaf, expected[1][name], rtol=0, atol=PARAMETERS, err_msg=name)


def test_two_processes_train_bit_for_bit_like_one(runs, two):
    assert_equal(two, runs.run("one_of_two_devices", devices=2))


def test_four_processes_train_like_one(runs):
    four = runs.run("four", processes=4)
    assert_close(four, runs.run("one_of_four_devices", devices=4))


def test_one_signalled_process_stops_all_at_one_step_and_they_go_on_exactly(runs, two):
    running = runs.start("stopped", processes=2, disturb=(1, "SIGTERM", 5))
    printed = runs.finish(running, codes=(143,))
    stopped = max(runs.versions("stopped"))
    assert f"Asked to stop: saved step {stopped}" in printed[0]
    assert 5 < stopped < STEPS
    assert_equal(runs.run("stopped", processes=2), two)


def test_a_killed_process_ends_the_others_and_the_restart_is_exact(runs, two):
    running = runs.start("killed", processes=2, disturb=(1, "SIGKILL", 10))
    assert running[1].wait(timeout=300) == -signal.SIGKILL
    started = time.monotonic()
    for process in running:
        process.communicate(timeout=100)
    assert running[0].returncode not in (0, 143)
    print(f"The other process ended after {time.monotonic() - started:.1f} s with {running[0].returncode}.")
    assert max(runs.versions("killed")) in (4, 8)
    assert_equal(runs.run("killed", processes=2), two)


def test_a_run_goes_on_with_other_devices(runs):
    whole = runs.run("eight", devices=8)
    for name, devices, processes in (("eight_four", 4, 1), ("eight_two", 1, 2)):
        runs.finish(runs.start(name, devices=8, disturb=(0, "SIGTERM", 10)), codes=(143,))
        assert max(runs.versions(name)) == 10
        assert_close(runs.run(name, processes=processes, devices=devices), whole)


def test_half_the_devices_take_half_the_rows_at_a_time(runs):
    runs.dropout_rate = 0.0  # micro batches have dropout masks of their own
    whole = runs.run("whole", devices=8)
    runs.finish(runs.start("parts", devices=8, disturb=(0, "SIGTERM", 10)), codes=(143,))
    (printed,) = runs.finish(runs.start("parts", devices=4, accumulation_steps=2))
    assert "train.accumulation_steps: 1 -> 2 (changes nothing that is learned)" in printed
    parts = runs.losses("parts"), flatten_parts(load(runs.folder / "parts" / "model").params)
    assert_close(parts, whole)
