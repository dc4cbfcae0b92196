"""Batches made by other processes: the same bits in the same order, from any step, and no process left behind."""

import multiprocessing
import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from flaxbert.data.pipeline import StepPipeline
from flaxbert.data.pretraining_batches import Phase, PretrainingBatches, RowMixture
from flaxbert.data.pretraining_rows import RowSource
from flaxbert.data.workers import WorkerBatches
from flaxbert.errors import DataError
from tests.data.test_pretraining_rows import SPECIAL, masker, write_corpus

pytestmark = pytest.mark.multiprocess


@pytest.fixture
def batches(tmp_path):
    corpus = write_corpus(tmp_path, [30, 9, 61, 17, 12, 25, 40, 8, 3, 100] * 3)
    source = RowSource(corpus, SPECIAL, masker(corpus, unit="word"), row_length=32)
    return PretrainingBatches([Phase(RowMixture([source]), 4, 12), Phase(RowMixture([source]), 2, 3)])


def test_batches_are_those_of_one_thread_from_any_step(batches):
    expected = [batches[step] for step in range(len(batches))]
    pipeline = StepPipeline(batches, num_workers=2)
    try:
        found = [next(pipeline) for _ in range(5)]
        state = pipeline.get_state()
        assert pipeline.step == 5
        pipeline.set_state({**state, "step": 2})
        found += list(pipeline)
        assert pipeline.step == len(batches)
        assert list(pipeline) == []
    finally:
        pipeline.close()
    for one, other in zip(found, expected[:5] + expected[2:], strict=True):
        assert one.keys() == other.keys()
        for name, array in one.items():
            np.testing.assert_array_equal(array, other[name])
    assert not multiprocessing.active_children()
    state = {**state, "step": 3}
    thread = StepPipeline(batches)
    thread.set_state(state)
    np.testing.assert_array_equal(next(thread)["input_ids"], expected[3]["input_ids"])
    thread.close()


def test_a_process_that_is_killed_is_told(batches):
    ahead = WorkerBatches(batches, 1)
    next(ahead)
    for child in multiprocessing.active_children():
        os.kill(
            child.pid, signal.SIGTERM
        )  # as a cluster sends it to every process; the run saves its state and needs batches for that
    next(ahead)
    for child in multiprocessing.active_children():
        os.kill(child.pid, signal.SIGKILL)
    with pytest.raises(DataError, match=r"A process that makes batches has ended.*data\.num_workers"):
        list(ahead)
    ahead.close()


class Squares:
    def __len__(self):
        return 1000

    def __getitem__(self, step):
        return {"pid": np.array([os.getpid()]), "square": np.array([step * step])}


_ORPHAN = """
import os, signal, sys
from flaxbert.data.workers import WorkerBatches
from tests.data.test_workers import Squares
if __name__ == "__main__":
    print(int(next(WorkerBatches(Squares(), 1))["pid"][0]), flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_processes_end_with_a_run_that_is_killed(tmp_path):
    script = tmp_path / "orphan.py"
    script.write_text(_ORPHAN)
    root = str(pathlib.Path(__file__).resolve().parents[2])
    paths = os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])
    ended = subprocess.run(
        [sys.executable, str(script)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": paths},
        timeout=120,
    )
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    worker = pathlib.Path("/proc") / ended.stdout.strip()
    for _ in range(100):
        if not worker.exists() or "Z" in (worker / "stat").read_text().split()[2]:
            return
        time.sleep(0.1)
    pytest.fail("the process that made batches goes on without its run")
