"""A run that is killed again and again gives the same model, bit for bit."""

import json
import os
import pathlib
import random
import subprocess
import sys
import time

import numpy as np
import pytest

from flaxbert.core.trees import flatten_parts
from flaxbert.model import load
from tests.weights.tiny import write_tiny

KILLS = 20
STEPS = 1000
RUN = """
import sys
from flaxbert.config import DataConfig, ModelSource, OutputConfig, RunConfig, TrainConfig
from flaxbert.core.runtime import configure
from flaxbert.train.recipes.finetune import finetune
model, data, folder, steps = sys.argv[1:]
configure()
finetune(RunConfig(
    model=ModelSource(path=model, dropout_rate=0.1),
    data=DataConfig(train=data, max_length=8, length_buckets=(8,), validation_rate=0.25),
    train=TrainConfig(batch_size=16, num_steps=int(steps), learning_rate=1e-3, log_every=1, evaluate_every=40,
                      checkpoint_every=7),
    output=OutputConfig(folder=folder, tensorboard=False, plots=False, progress="off"),
))
"""


def start(model, data, folder):
    arguments = [sys.executable, "-c", RUN, str(model), str(data), str(folder), str(STEPS)]
    environment = {**os.environ, "XLA_FLAGS": ""}  # one device
    return subprocess.Popen(arguments, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def finish(process) -> None:
    """Waits for the end of a run that must succeed."""
    errors = process.communicate()[1].decode()
    assert process.returncode == 0, errors


def steps_of(folder):
    """Returns what was logged of every training step, in the order of the log, as the exact text of its loss."""
    file = folder / "metrics.jsonl"
    lines = file.read_text("utf-8").splitlines() if file.is_file() else []
    entries = []
    for line in lines:
        try:
            entry = json.loads(line)
        except ValueError:
            continue  # the line that a kill cut off
        if entry.get("kind") == "train":
            entries.append((entry["step"], repr(entry["loss"]), repr(entry["grad_norm"])))
    return entries


def killed(process, folder, after, pause) -> bool:
    """Waits until the run has logged a step after ``after`` and a moment more, then kills it; False where it ended before."""
    while process.poll() is None:
        logged = steps_of(folder)
        if len(logged) > after:
            time.sleep(pause)
            break
        time.sleep(0.02)
    process.kill()
    process.communicate()
    return process.returncode == -9


@pytest.mark.slow
def test_twenty_kills_at_random_moments_change_no_bit(tmp_path):
    model = write_tiny(tmp_path / "start")
    data: pathlib.Path = tmp_path / "train.tsv"
    texts = ("a fine film", "the film was bad", "fine films", "bad .", "the fine", "a bad film .")
    rows = [f"{texts[i % 6]}\t{'bad' if i % 2 else 'good'}" for i in range(48)]
    data.write_text("text\tlabel\n" + "\n".join(rows) + "\n", "utf-8")
    finish(start(model, data, tmp_path / "whole"))
    chance = random.Random(0)
    broken = tmp_path / "broken"
    killed_at = []
    for _ in range(KILLS):
        before = len(steps_of(broken))
        assert killed(start(model, data, broken), broken, before, chance.uniform(0.0, 0.5)), "the run ended too early"
        killed_at.append(steps_of(broken)[-1][0])
    finish(start(model, data, broken))
    expected = {step: rest for step, *rest in steps_of(tmp_path / "whole")}
    assert sorted(expected) == list(range(1, STEPS + 1))
    found = steps_of(broken)
    assert {step for step, *_ in found} == set(expected)
    assert all(rest == expected[step] for step, *rest in found)
    assert len(set(killed_at)) == KILLS, f"the kills hit the same place: {killed_at}"
    first, second = (flatten_parts(load(folder / "model").params) for folder in (tmp_path / "whole", broken))
    assert first.keys() == second.keys()
    assert all(np.array_equal(first[name], second[name]) for name in first)
