"""Kill -9 at random moments: the newest version is always whole, and nothing that was reported as saved is lost."""

import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import jax
import pytest

from flaxbert.train.checkpoint import CheckpointStore
from flaxbert.train.versions import list_versions
from tests.helpers import ROOT
from tests.train.checkpoint_writer import state_of

NUM_KILLS = 25
MOST_SAVES = 2


class Writers:
    """Starts one writer after the other in a process that has imported everything already."""

    def __init__(self, folder: pathlib.Path) -> None:
        self.save_seconds = 0.05
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.train.checkpoint_writer", "serve", str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )

    def line(self) -> str:
        line = self.process.stdout.readline().decode().strip()
        assert line, "the writer ended by itself"
        return line

    def start(self) -> int:
        """Starts a writer and returns its process once it is about to save."""
        self.process.stdin.write(b"go\n")
        self.process.stdin.flush()
        lines = sorted([self.line(), self.line()])
        assert lines[1] == "ready", lines
        return int(lines[0].split()[1])

    def kill(self, child: int) -> list[int]:
        """Kills the writer and returns the steps that it reported as saved and nobody has read yet."""
        os.kill(child, signal.SIGKILL)
        saved = []
        while (line := self.line()) != "gone":
            saved.append(int(line))
        return saved

    def run_and_kill(self, rng: random.Random) -> int:
        """Lets a writer save a few versions, kills it at a random moment of the next ones, and returns the last one reported."""
        child = self.start()
        saved, started = int(self.line()), time.monotonic()
        for _ in range(rng.randint(0, MOST_SAVES)):
            saved = int(self.line())
            self.save_seconds, started = time.monotonic() - started, time.monotonic()
        time.sleep(rng.uniform(0, 2 * self.save_seconds))
        return max([saved, *self.kill(child)])

    def close(self) -> None:
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait(10)


@pytest.fixture
def writers(tmp_path):
    writers = Writers(tmp_path / "checkpoints")
    yield writers
    writers.close()


def test_newest_version_is_whole_after_every_kill(tmp_path, writers):
    rng = random.Random(0)
    folder = tmp_path / "checkpoints"
    caught_saving = 0
    highest = 0
    for _ in range(NUM_KILLS):
        saved = writers.run_and_kill(rng)
        caught_saving += any(path.name.endswith(".saving") for path in folder.iterdir())
        with CheckpointStore(folder) as store:  # a warning about damage would be an error here
            assert not [path.name for path in folder.iterdir() if path.name.endswith((".saving", ".removing"))]
            newest = store.newest_good()
            if newest is None:
                assert saved == highest == 0
                continue
            assert newest.step >= max(saved, highest)
            highest = newest.step
            assert store.read_host(newest) == {"step": newest.step}
            restored = store.restore(newest, state_of(0))
        expected = state_of(newest.step)
        for left, right in zip(jax.tree.leaves(restored), jax.tree.leaves(expected), strict=True):
            assert left.tobytes() == right.tobytes()
    assert highest >= NUM_KILLS / 2, "the writers hardly saved anything, so nothing was tested"
    assert caught_saving >= NUM_KILLS / 5, "hardly any kill fell into a save, so little was tested"
    assert all(info.good for info in list_versions(folder, verify=True))


def test_second_process_is_refused_while_the_first_writes(tmp_path, writers):
    from flaxbert.errors import CheckpointError

    folder = tmp_path / "checkpoints"
    child = writers.start()
    try:
        with pytest.raises(CheckpointError, match=rf"is being written by process {child} on "):
            CheckpointStore(folder)
    finally:
        writers.kill(child)
    CheckpointStore(folder).close()
