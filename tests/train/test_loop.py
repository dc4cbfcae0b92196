"""The loop around a step that compiles in no time: what it tells of updates that are left out, and where its time goes."""

import functools
import time

import jax
import numpy as np
import pytest

from flaxbert.config import MeshConfig, TrainConfig
from flaxbert.core.sharding import build_mesh
from flaxbert.data.pipeline import StepPipeline
from flaxbert.errors import ConfigError, TrainingError
from flaxbert.train import loop
from flaxbert.train.callbacks import CallbackBase
from flaxbert.train.checkpoint import CheckpointStore
from flaxbert.train.guard import LEAST_HISTORY, StepGuard
from flaxbert.train.loop import LoopParts, Progress, run_loop
from flaxbert.train.losses import loss_for
from flaxbert.train.optimizers import make_optimizer
from flaxbert.train.progress import describe_skipped, describe_time
from flaxbert.train.state import create_state
from flaxbert.train.step import make_norms, make_train_step
from flaxbert.train.throughput import MeasuredCallbacks
from flaxbert.train.watchdog import HangWatchdog
from tests.train.tiny_training import TASK, bag_of_words, bag_of_words_params, make_batch

SPIKE = 1e3


def scaled(params, batch, dropout_key=None):
    """Scores that grow with a number of the batch."""
    output = bag_of_words(params, batch)
    return output.__class__(logits=output.logits * batch["factor"][:, None])


class Batches:
    """Batches of one shape by the number of the step, with a spike or a pause where it is asked for."""

    identity = {}
    steps_per_epoch = 1000

    def __init__(self, factors=None, pauses=None):
        self.factors, self.pauses = factors or {}, pauses or {}

    def __len__(self):
        return self.steps_per_epoch

    def __getitem__(self, index):
        step = index + 1
        time.sleep(self.pauses.get(step, 0.0))
        batch = make_batch(seed=step)
        return {**batch, "factor": np.full(len(batch["labels"]), self.factors.get(step, 1.0), np.float32)}


class Recorder(CallbackBase):
    def __init__(self):
        self.lines = []

    def on_log(self, step, metrics):
        self.lines.append((step, dict(metrics)))


@functools.cache
def compiled(settings):
    config = TrainConfig(**dict(settings))
    optimizer = make_optimizer(config, 20)
    mesh = build_mesh(MeshConfig(), jax.devices()[:1])
    state, kinds = create_state(bag_of_words_params(), (), optimizer)
    step = make_train_step(scaled, loss_for(TASK), optimizer, kinds, guard=StepGuard.of(config))
    return config, mesh, jax.tree.map(np.array, state), kinds, step, make_norms(optimizer)


def train(folder, batches, evaluate=lambda state: {"loss": 1.0}, total_steps=20, **settings):
    """Runs the loop; returns its result, what was logged, and the ledger."""
    usual = {"learning_rate": 1e-3, "warmup_rate": 0.0, "log_every": 1, "spike_loss_factor": 3.0}
    config, mesh, state, kinds, step, norms = compiled(tuple(sorted({**usual, **settings}.items())))
    recorder = Recorder()
    callbacks = MeasuredCallbacks([recorder])
    with CheckpointStore(folder / "checkpoints") as store:
        parts = LoopParts(
            step=step,
            norms=norms,
            evaluate=evaluate,
            pipeline=StepPipeline(batches, prefetch=0),
            store=store,
            callbacks=callbacks,
            mesh=mesh,
            config=config,
            total_steps=total_steps,
            evaluate_every=10,
            checkpoint_every=10,
            metric="loss",
            higher_is_better=False,
            kinds=kinds,
            host={},
            folder=folder,
        )
        try:
            result = run_loop(parts, jax.tree.map(jax.numpy.asarray, state), Progress())
        except TrainingError as error:
            result = error
    return result, recorder.lines, callbacks.ledger


def test_an_update_that_is_left_out_is_told_with_step_and_value(tmp_path):
    result, lines, _ = train(tmp_path, Batches({LEAST_HISTORY + 2: SPIKE}))
    assert result.reason == "finished"
    told = {step: line["skipped"] for step, line in lines if "skipped" in line}
    (entry,) = told.pop(LEAST_HISTORY + 2)
    assert not told
    assert (entry["step"], entry["reason"]) == (LEAST_HISTORY + 2, "loss_spike")
    assert entry["loss"] > 10
    last = lines[-1][1]
    assert last["num_skipped"] == 1
    assert last["param_norm"] > last["update_norm"] > 0
    line = dict(lines)[LEAST_HISTORY + 2]
    assert line["update_norm"] == 0.0
    assert line["median_loss"] < 2
    (said,) = describe_skipped(line)
    assert said.startswith("step 18: update left out (loss spike): loss ")
    assert "usual are" in said
    assert "1 left out so far" in said


def test_too_many_end_the_run_with_the_reason_and_the_numbers(tmp_path):
    spikes = dict.fromkeys(range(LEAST_HISTORY + 2, 21), SPIKE)
    error, lines, _ = train(tmp_path, Batches(spikes), max_skipped_in_row=1)
    assert str(error).startswith(
        "The loss spiked at step 19 (train.spike_loss_factor 3), after 1 updates in a row and 1 in all were left out "
        "(train.max_skipped_in_row 1, train.max_skipped 100); the last good checkpoint is step 10 in "
    )
    assert lines[-1][0] == 19


def test_the_first_loss_that_is_not_finite_ends_the_run_and_is_told(tmp_path):
    error, lines, _ = train(tmp_path, Batches({3: float("nan")}))
    assert "is not finite at step 3; no checkpoint was saved yet" in str(error)
    assert lines[-1][1]["skipped"][0]["reason"] == "not_finite"


def test_time_is_split_and_no_pause_of_the_loop_is_a_hang(tmp_path, monkeypatch):
    ended: list[int] = []
    monkeypatch.setattr(loop, "HangWatchdog", functools.partial(HangWatchdog, end=ended.append))

    def evaluate(state):
        time.sleep(3.5)
        return {"loss": 1.0}

    started = time.perf_counter()
    _, _, ledger = train(tmp_path, Batches(pauses={5: 0.3}), evaluate, 10, hang_seconds=3.0, hang_factor=3.0)
    seconds = ledger.seconds()
    assert not ended
    assert seconds["evaluation"] >= 3.5
    assert seconds["data"] > 0.25
    assert seconds["compile"] > 0
    assert seconds["checkpoint"] > 0
    assert sum(seconds.values()) <= time.perf_counter() - started
    assert "evaluation " in describe_time(seconds)


def test_steps_to_trace_must_be_among_those_of_the_run(tmp_path):
    with pytest.raises(ConfigError, match="the run has 20 steps"):
        train(tmp_path, Batches(), profile="19:21")
