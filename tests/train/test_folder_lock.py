"""FolderLock: one holder, gone with its process, not handed down to children."""

import os
import subprocess
import sys
import time

import pytest

from flaxbert.errors import CheckpointError
from flaxbert.train.folder_lock import FolderLock
from tests.helpers import ROOT

HOLDER = """
import sys, time
from pathlib import Path
from flaxbert.train.folder_lock import FolderLock
lock = FolderLock(Path(sys.argv[1]))
print("held", flush=True)
time.sleep(60)
"""


def test_second_holder_in_one_process_is_refused_also_by_another_path(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "folder")
    lock = FolderLock(tmp_path / "folder")
    with pytest.raises(CheckpointError, match="already open"):
        FolderLock(tmp_path / "link")
    lock.release()
    lock.release()
    FolderLock(tmp_path / "link").release()


def test_lock_of_another_process_names_it_and_goes_with_it(tmp_path):
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)],
        stdout=subprocess.PIPE,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    try:
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(CheckpointError, match=rf"being written by process {holder.pid} on .*choose another"):
            FolderLock(tmp_path)
    finally:
        holder.kill()
        holder.wait(10)
        holder.stdout.close()
    FolderLock(tmp_path).release()


def test_child_processes_do_not_keep_the_folder(tmp_path):
    lock = FolderLock(tmp_path)
    child = subprocess.Popen(["sleep", "30"], close_fds=False)
    try:
        lock.release()
        started = time.monotonic()
        FolderLock(tmp_path).release()
        assert time.monotonic() - started < 5
    finally:
        child.kill()
        child.wait(10)
