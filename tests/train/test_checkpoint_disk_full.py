"""A disk that fills up while a version is written: one clear error, nothing half-written, and the process ends."""

import os
import pathlib
import re
import shutil
import subprocess
import sys

import pytest

from tests.helpers import ROOT, run_python

MODULE = ["-m", "tests.train.checkpoint_writer", "fill"]
NAMESPACE = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c"]
MEGABYTES = 40


def check_output(result: subprocess.CompletedProcess[str], reason: str) -> None:
    lines = result.stdout.splitlines()
    assert reason in lines[0], result.stdout
    assert "The versions before it are intact." in lines[0]
    assert lines[1:] == ["names ['.lock', '1']", "newest 1"], result.stdout
    # The second try fails while the store closes; its traceback is the only thing on standard error.
    assert result.returncode == 1
    assert "flaxbert.errors.CheckpointError: " in result.stderr.splitlines()[-1]
    for noise in ("Event loop is closed", "ERROR:absl", "Exception ignored", "never retrieved"):
        assert noise not in result.stderr


def test_write_that_fails_on_the_way(tmp_path):
    """A limit on the size of files fails the same writes as a full disk, and any user can set it."""
    program = (
        "import resource, runpy, sys; limit = 10 * 2**20; resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)); "
        f"sys.argv = ['writer', 'fill', {str(tmp_path / 'checkpoints')!r}, '400']; "
        "runpy.run_module('tests.train.checkpoint_writer', run_name='__main__')"
    )
    result = run_python(["-c", program], timeout_seconds=60)
    check_output(result, "could not be written")
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == [".lock", "1"]


def can_mount() -> bool:
    """Whether this user may mount a small file system of its own."""
    if shutil.which("unshare") is None:
        return False
    probe = [*NAMESPACE, "mount -t tmpfs -o size=1m tmpfs /mnt"]
    return subprocess.run(probe, capture_output=True, check=False, timeout=10).returncode == 0


def test_full_disk(tmp_path):
    if not can_mount():
        pytest.skip("needs leave to mount a tmpfs")
    folder = pathlib.Path(tmp_path / "disk")
    folder.mkdir()
    command = f'mount -t tmpfs -o size=20m tmpfs {folder} && exec "$@"'
    result = subprocess.run(
        [*NAMESPACE, command, "sh", sys.executable, *MODULE, str(folder / "checkpoints"), str(MEGABYTES)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    check_output(result, "The disk has no room for the checkpoint of step 2")
    first = result.stdout.splitlines()[0]
    assert re.search(rf"in {folder / 'checkpoints'}: it needs about 40,[\d,]+ bytes, [\d,]+ are free", first), first
