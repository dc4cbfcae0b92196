"""What runs on a worker, run for real in a folder with a stand-in for flaxbert."""

import os
import pathlib
import shutil
import subprocess
import time
from collections.abc import Callable

import pytest

from tests.helpers import ROOT

Worker = Callable[..., subprocess.CompletedProcess[str]]
PATIENCE_SECONDS = 120.0


@pytest.fixture
def folder(tmp_path: pathlib.Path) -> pathlib.Path:
    """An unpacked repository, as far as worker.sh needs one."""
    folder = tmp_path / "here"
    (folder / "tpu_scripts").mkdir(parents=True)
    (folder / ".venv" / "bin").mkdir(parents=True)
    shutil.copy(ROOT / "tpu_scripts" / "worker.sh", folder / "tpu_scripts")
    return folder


@pytest.fixture
def worker(folder: pathlib.Path, tmp_path: pathlib.Path) -> Worker:
    def call(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(folder / "tpu_scripts" / "worker.sh"), *arguments],
            env={**os.environ, "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"},
            capture_output=True,
            text=True,
            timeout=PATIENCE_SECONDS,
            check=False,
        )

    return call


def install_program(folder: pathlib.Path, body: str) -> None:
    program = folder / ".venv" / "bin" / "flaxbert"
    program.write_text(f"#!/usr/bin/env bash\n{body}\n", encoding="utf-8")
    program.chmod(0o755)


def state_of(worker: Worker) -> str:
    name, _host, state = worker("state").stdout.strip().split(" ", 2)
    assert name == "flaxbert-run"
    return state


def wait_for(state: str, worker: Worker) -> None:
    end = time.monotonic() + PATIENCE_SECONDS
    while (now := state_of(worker)) != state:
        assert time.monotonic() < end, f"the run is {now}, not {state}"
        time.sleep(0.05)


def test_a_run_is_started_in_the_background_and_its_end_written_down(folder: pathlib.Path, worker: Worker) -> None:
    install_program(folder, 'printf "<%s>" "$@" "$FLAXBERT_JOIN" "$A"; echo; exit 7')
    assert state_of(worker) == "none"
    started = worker("start", "A=b c", "--", "pretrain", "--x", "a\"b'$HOME;")
    assert started.returncode == 0, started.stderr
    wait_for("ended 7", worker)
    log = worker("logs").stdout
    assert "<pretrain><--x><a\"b'$HOME;><1><b c>" in log
    assert "flaxbert ended with exit code 7" in log


def test_stop_lets_the_run_save(folder: pathlib.Path, worker: Worker) -> None:
    install_program(folder, "trap 'echo saved; exit 143' TERM; echo ready; for _ in {1..2000}; do sleep 0.01; done")
    assert worker("start", "--", "pretrain").returncode == 0
    assert state_of(worker) == "running"
    second = worker("start", "--", "pretrain")
    assert second.returncode == 1
    assert "a run is still going on" in second.stderr
    while "ready" not in worker("logs").stdout:
        time.sleep(0.05)
    assert worker("stop").returncode == 0
    wait_for("ended 143", worker)
    assert "saved" in worker("logs").stdout
    assert worker("stop").returncode == 0


def test_a_run_from_before_a_restart_of_the_machine_is_lost(folder: pathlib.Path, worker: Worker) -> None:
    (folder / ".run").mkdir()
    (folder / ".run" / "process").write_text(f"another-boot {os.getpid()}\n", encoding="utf-8")
    assert state_of(worker) == "lost"
    install_program(folder, "exit 0")
    assert worker("start", "--", "pretrain").returncode == 0
    wait_for("ended 0", worker)


def test_what_is_missing_is_named(worker: Worker) -> None:
    assert "flaxbert is not installed here; run the install action" in worker("start", "--", "pretrain").stderr
    assert "nothing was run here yet" in worker("logs").stderr
    assert worker("install", "3.11").returncode == 2
    assert worker("restart").returncode == 2


def test_install_makes_one_environment_with_the_extra(tmp_path: pathlib.Path, worker: Worker) -> None:
    python = tmp_path / "python3"
    python.write_text(f'#!/bin/sh\necho "$@" >>{tmp_path}/calls\n', encoding="utf-8")
    python.chmod(0o755)
    assert worker("install", "3.11", "tpu").returncode == 0
    assert (tmp_path / "calls").read_text(encoding="utf-8").splitlines() == [
        "-m pip --version",
        "-m pip install --quiet --user uv",
        "-m uv venv --quiet --python 3.11 .venv",
        "-m uv pip install --quiet --python .venv/bin/python --editable .[tpu]",
    ]
