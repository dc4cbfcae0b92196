"""The server on Ray Serve: the plan, the deployment, and answers of two replicas that are those of the model."""

import importlib.util
import os
import signal
import subprocess
import sys

import httpx2
import pytest

import flaxbert
from flaxbert.cli.main import parse_command
from flaxbert.cluster.plan import LaunchPlan
from flaxbert.config import ClusterConfig
from tests.helpers import ROOT
from tests.serve.conftest import BASE
from tests.weights.tiny import write_tiny

WORDS = ["--engine", "jax", "--batching.max_length", "16", "--batching.max_batch_tokens", "16"]


def plan_of(folder, *words, **cluster):
    command = ["serve", f"film={folder}", *words]
    _, options = parse_command("serve", command[1:])
    return LaunchPlan(ClusterConfig(**cluster), tuple(command), options)


def test_a_plan_says_how_many_replicas_there_are(tmp_path):
    text = plan_of(tmp_path / "film", num_workers=3).to_text()
    assert "Ray Serve, 3 replicas" in text
    assert f"serve film={tmp_path / 'film'}" in text


@pytest.mark.slow
@pytest.mark.multiprocess
@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs the ray extra")
def test_two_replicas_answer_as_the_model_does(tmp_path):
    folder = write_tiny(tmp_path / "film", config=BASE)
    expected = flaxbert.load(folder).predict(["a fine film .", "bad"])
    url = "http://127.0.0.1:18470"
    words = [sys.executable, "-m", "flaxbert", "launch", "--cluster.address", "local", "--cluster.num_workers", "2"]
    words += ["--", "serve", f"film={folder}", "--port", url.rsplit(":", 1)[1], *WORDS]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "RAY_worker_register_timeout_seconds": "600"}
    process = subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        lines = iter(process.stdout.readline, "")
        assert any("2 replicas" in line for line in lines)
        body = {"inputs": [["a fine film ."], ["bad"]]}
        for _ in range(6):
            answer = httpx2.post(f"{url}/predict", json=body, timeout=120)
            assert answer.status_code == 200, answer.text
            assert [row[0]["label"] for row in answer.json()] == [p.label for p in expected]
            assert answer.json()[0][0]["score"] == pytest.approx(expected[0].score, abs=1e-5)
        assert httpx2.post(f"{url}/predict", json={"inputs": []}, timeout=60).status_code == 400
        process.send_signal(signal.SIGTERM)
        assert process.wait(120) == 0
    finally:
        if process.poll() is None:
            process.kill()
        process.stdout.close()
        process.wait()
