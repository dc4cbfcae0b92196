"""The command as users start it: a killed worker is replaced, signals end it in order, errors are one line."""

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time

import httpx2
import numpy as np
import psutil
import pytest
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

from flaxbert.registry import Registry
from tests.helpers import ROOT
from tests.object_store import object_store
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


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as found:
        return found.getsockname()[1]


def label_over_grpc(client):
    tensor = triton.InferInput("text", [1], "BYTES")
    tensor.set_data_from_numpy(np.asarray(["a fine film ."], object))
    return client.infer("film", [tensor], client_timeout=60).as_numpy("label")[0].decode()


@pytest.mark.slow
def test_grpc_comes_back_on_its_port_with_the_next_worker_and_ends_in_order(tmp_path):
    folder, port = write_tiny(tmp_path / "film", config=BASE), free_port()
    words = [str(folder), "--grpc_port", str(port)]
    with started(*words) as (process, url), contextlib.ExitStack() as afterwards:
        client = triton.InferenceServerClient(f"127.0.0.1:{port}")
        afterwards.callback(client.close)
        wait_until(lambda: httpx2.get(f"{url}/health", timeout=5).status_code == 200)
        expected = ask(url).json()[0]["label"]
        assert label_over_grpc(client) == expected
        taken = [sys.executable, "-m", "flaxbert", "serve", *words, "--port", "0"]
        result = subprocess.run(taken, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
        assert result.returncode == 1
        assert re.fullmatch(r"flaxbert: error: .* --grpc_port\.\n", result.stderr)
        (worker,) = psutil.Process(process.pid).children()
        worker.kill()

        def answers():
            with contextlib.suppress(InferenceServerException):
                return label_over_grpc(client) == expected

        wait_until(answers)
        process.send_signal(signal.SIGTERM)
        wait_until(lambda: not client.is_server_ready(), 10)
        assert label_over_grpc(client) == expected
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
def test_a_store_that_is_down_ends_the_first_start_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("FLAXBERT_CACHE", str(tmp_path / "cache"))
    with object_store(monkeypatch) as store:
        monkeypatch.setenv("FLAXBERT_REGISTRY", store.location)
        Registry().add("film", write_tiny(tmp_path / "film", config=BASE), aliases=["champion"])
        store.fault = lambda method, path: "refuse"
        with started("registry:film") as (process, _):
            assert process.wait(60) == 1
            assert "can not be used now" in process.stderr.read().splitlines()[-1]
        store.fault = lambda method, path: ""
        with started("registry:film") as (process, url):
            wait_until(lambda: httpx2.get(f"{url}/health", timeout=5).status_code == 200)
            store.fault = lambda method, path: "refuse"
            psutil.Process(process.pid).children()[0].kill()
            lines = iter(process.stderr.readline, "")
            assert any("the worker ended with code 4; starting another" in line for line in lines)
            store.fault = lambda method, path: ""
            wait_until(lambda: httpx2.get(f"{url}/health", timeout=5).status_code == 200)


@pytest.mark.slow
def test_a_port_that_is_taken_is_said(tmp_path):
    folder = write_tiny(tmp_path / "film", config=BASE)
    with started(str(folder)) as (_, url):
        words = [sys.executable, "-m", "flaxbert", "serve", str(folder), "--port", url.rsplit(":", 1)[1]]
        result = subprocess.run(words, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert result.returncode == 1
    assert "--port" in result.stderr
