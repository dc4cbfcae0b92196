"""The command as users start it: a killed worker is replaced, signals end it in order, errors are one line."""

import contextlib
import os
import signal
import subprocess
import sys
import time

import httpx2
import psutil
import pytest

from tests.helpers import ROOT
from tests.serve.conftest import BASE
from tests.weights.tiny import write_tiny

SMALL = ["--engine", "jax", "--batching.max_length", "16", "--batching.max_batch_tokens", "16"]


@contextlib.contextmanager
def started(*words):
    """Starts ``flaxbert serve`` and gives the process and its URL."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, "-m", "flaxbert", "serve", *words, "--port", "0", *SMALL],
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )
    try:
        line = process.stderr.readline()
        yield process, line.split()[-1]
    finally:
        if process.poll() is None:
            process.kill()
            for child in psutil.process_iter(["cmdline"]):
                if "flaxbert.serve.worker" in (child.info["cmdline"] or []) and child.ppid() == 1:
                    child.kill()
        process.stderr.close()
        process.wait()


def wait_until(condition, seconds=120.0):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with contextlib.suppress(httpx2.TransportError):
            if condition():
                return
        time.sleep(0.05)
    raise TimeoutError


def ask(url):
    return httpx2.post(f"{url}/predict", json={"inputs": "a fine film ."}, timeout=60)


@pytest.mark.slow
def test_a_killed_worker_is_replaced_and_a_signal_ends_it_in_order(tmp_path):
    folder = write_tiny(tmp_path / "film", config=BASE)
    with started(str(folder)) as (process, url):
        wait_until(lambda: httpx2.get(f"{url}/health", timeout=5).status_code == 200)
        expected = ask(url).json()
        (worker,) = psutil.Process(process.pid).children()
        worker.kill()
        answer = ask(url)  # waits in the socket, and then for the model
        assert answer.status_code == 200
        assert answer.json() == expected
        assert psutil.Process(process.pid).children()[0].pid != worker.pid
        process.send_signal(signal.SIGTERM)
        wait_until(lambda: httpx2.get(f"{url}/health", timeout=5).status_code == 503, 10)  # first it says so
        assert ask(url).status_code == 200  # and goes on for a while
        assert process.wait(60) == 0


@pytest.mark.slow
def test_what_can_not_be_served_is_said_in_one_line(tmp_path):
    for word in (str(tmp_path / "nothing"), "registry:nobody"):
        with started(word) as (process, _):
            assert process.wait(60) == 1
            lines = [line for line in process.stderr.read().splitlines() if line]
            assert lines[-1].startswith("flaxbert: error:")
            assert "Traceback" not in "".join(lines)


@pytest.mark.slow
def test_a_port_that_is_taken_is_said(tmp_path):
    folder = write_tiny(tmp_path / "film", config=BASE)
    with started(str(folder)) as (_, url):
        words = [sys.executable, "-m", "flaxbert", "serve", str(folder), "--port", url.rsplit(":", 1)[1]]
        result = subprocess.run(words, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert result.returncode == 1
    assert "--port" in result.stderr
