"""A job of Slurm with flaxbert itself: stopped, queued again, and going on where it stopped."""

import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from tests.helpers import ROOT
from tests.tpu_scripts.cloud import Cloud
from tests.weights.tiny import write_tiny

PATIENCE_SECONDS = 240.0
WORDS = (("fine", "good"), ("bad", "bad"))


def start(cloud: Cloud, log: pathlib.Path, *options: str) -> subprocess.Popen[bytes]:
    slurm = {"SLURM_JOB_ID": "7", "SLURM_JOB_NUM_NODES": "1", "SLURM_NTASKS": "1", "PYTHONPATH": str(ROOT)}
    command = [str(ROOT / "tpu_scripts" / "slurm_job.sh"), "5", sys.executable, "-m", "flaxbert", "finetune", *options]
    with log.open("wb") as output:
        return subprocess.Popen(
            command, env={**cloud.environment, **slurm}, cwd=cloud.folder, stdout=output, stderr=subprocess.STDOUT
        )


def wait_for(text: str, log: pathlib.Path, job: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + PATIENCE_SECONDS
    while text not in log.read_text(encoding="utf-8"):
        assert job.poll() is None, log.read_text(encoding="utf-8")
        assert time.monotonic() < end, log.read_text(encoding="utf-8")
        time.sleep(0.1)


@pytest.mark.slow
def test_a_stopped_job_goes_on_from_its_checkpoint(cloud: Cloud) -> None:
    cloud.answer({"squeue": ["RUNNING"]})
    model = write_tiny(cloud.folder / "start")
    texts = [
        f"{first} {word} film {end}\t{label}" for first in ("a", "the") for end in ("", ".") for word, label in WORDS
    ]
    rows = texts * 12
    (cloud.folder / "train.tsv").write_text("\n".join(["text\tlabel", *rows, ""]), encoding="utf-8")
    options = [
        "--model.path",
        str(model),
        "--data.train",
        "train.tsv",
        "--data.validation_rate",
        "0.25",
        "--data.max_length",
        "8",
    ]
    options += ["--train.num_steps", "40", "--train.evaluate_every", "40", "--train.checkpoint_every", "40"]
    options += ["--output.folder", "run", "--output.plots", "false", "--output.tensorboard", "false"]

    log = cloud.folder / "first.log"
    job = start(cloud, log, *options)
    wait_for("step 0: validation", log, job)
    os.kill(job.pid, signal.SIGTERM)
    assert job.wait(PATIENCE_SECONDS) == 0, log.read_text(encoding="utf-8")
    text = log.read_text(encoding="utf-8")
    assert "Asked to stop: saved step" in text
    assert "the run ended with exit code 143" in text
    assert cloud.calls()[-1]["arguments"] == ["scontrol", "requeue", "7"]
    saved = text.partition("saved step ")[2].split()[0]

    log = cloud.folder / "second.log"
    job = start(cloud, log, *options)
    assert job.wait(PATIENCE_SECONDS) == 0, log.read_text(encoding="utf-8")
    text = log.read_text(encoding="utf-8")
    assert f"Resuming at step {saved} " in text
    assert "the run ended with exit code 0" in text
