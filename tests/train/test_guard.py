"""Spikes and losses that are not finite: which updates are left out, how they are counted, and when there were too many."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxbert.config import TrainConfig
from flaxbert.errors import ConfigError
from flaxbert.train.checkpoint import CheckpointStore
from flaxbert.train.guard import (
    APPLIED,
    GRADIENT_SPIKE,
    HISTORY,
    LEAST_HISTORY,
    LOSS_SPIKE,
    NOT_FINITE,
    StepGuard,
    recent_median,
)
from flaxbert.train.losses import loss_for
from flaxbert.train.state import NO_BAD_STEP, create_state
from flaxbert.train.step import make_train_step
from tests.train.tiny_training import TASK, bag_of_words, bag_of_words_params, make_batch, tiny_optimizer

GOOD, SPIKE, NAN = 1.0, 1e3, float("nan")
SPIKES = StepGuard(loss_factor=3.0, max_in_row=2, max_skipped=4)


def scaled(params, batch, dropout_key=None):
    """Scores that grow with a number of the batch."""
    output = bag_of_words(params, batch, dropout_key=dropout_key)
    return output.__class__(logits=output.logits * batch["factor"][:, None])


@functools.cache
def compiled(guard, accumulation_steps):
    optimizer = tiny_optimizer(learning_rate=1e-3)
    state, kinds = create_state(bag_of_words_params(), (), optimizer)
    step = make_train_step(scaled, loss_for(TASK), optimizer, kinds, accumulation_steps, guard=guard)
    return copies(state), step


def build(guard, accumulation_steps=1):
    """A new state and the step of a guard, compiled once for all tests."""
    state, step = compiled(guard, accumulation_steps)
    return jax.tree.map(jnp.array, state), step


def batch_of(factor, seed=0):
    batch = make_batch(seed=seed)
    return {**batch, "factor": np.full(len(batch["labels"]), factor, np.float32)}


def run(step, state, factors, first=0):
    outcomes = []
    for index, factor in enumerate(factors, start=first):
        state, metrics = step(state, batch_of(factor, index), None)
        outcomes.append(int(metrics.outcome))
    return state, outcomes


def copies(tree):
    return jax.tree.map(np.array, tree)


def assert_equal(first, second):
    for one, other in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
        np.testing.assert_array_equal(np.asarray(one), np.asarray(other))


@pytest.mark.parametrize("count", [0, 1, 2, 7, HISTORY, HISTORY + 3])
def test_median_of_what_was_written(count):
    values = np.random.default_rng(count).normal(size=count).astype(np.float32)
    history = np.zeros(HISTORY, np.float32)
    for index, value in enumerate(values):
        history[index % HISTORY] = value
    found = float(recent_median(jnp.asarray(history), jnp.int32(count)))
    recent = np.sort(values[-HISTORY:])
    assert found == (recent[(len(recent) - 1) // 2] if count else np.inf)


@pytest.mark.parametrize("accumulation_steps", [1, 4])
def test_a_spike_is_left_out_and_the_run_goes_on(accumulation_steps):
    state, step = build(SPIKES, accumulation_steps)
    state, outcomes = run(step, state, [GOOD] * LEAST_HISTORY)
    assert outcomes == [APPLIED] * LEAST_HISTORY
    kept = copies((state.trainable, state.optimizer, state.guard.losses))
    state, outcomes = run(step, state, [SPIKE], first=LEAST_HISTORY)
    assert outcomes == [LOSS_SPIKE]
    assert_equal(kept, (state.trainable, state.optimizer, state.guard.losses))
    assert (int(state.guard.skipped_in_row), int(state.guard.skipped)) == (1, 1)
    state, outcomes = run(step, state, [GOOD], first=LEAST_HISTORY + 1)
    assert outcomes == [APPLIED]
    assert (int(state.guard.skipped_in_row), int(state.guard.skipped)) == (0, 1)
    assert int(state.first_bad_step) == NO_BAD_STEP
    assert int(state.step) == LEAST_HISTORY + 2
    assert int(state.optimizer.count) == LEAST_HISTORY + 1


def test_nothing_is_a_spike_before_enough_steps_or_without_a_factor():
    state, step = build(SPIKES)
    assert run(step, state, [GOOD] * (LEAST_HISTORY - 1) + [SPIKE])[1][-1] == APPLIED
    state, step = build(StepGuard())
    assert run(step, state, [GOOD] * LEAST_HISTORY + [SPIKE])[1][-1] == APPLIED


def test_a_gradient_can_spike_alone():
    state, step = build(StepGuard(grad_norm_factor=5.0))
    assert run(step, state, [GOOD] * LEAST_HISTORY + [SPIKE, GOOD])[1][-2:] == [GRADIENT_SPIKE, APPLIED]


def test_too_many_in_a_row_are_the_end_and_the_first_one_too_many_is_named():
    state, step = build(SPIKES)
    state, outcomes = run(step, state, [GOOD] * LEAST_HISTORY + [SPIKE] * 3 + [GOOD] * 2)
    assert outcomes[LEAST_HISTORY:] == [LOSS_SPIKE] * 3 + [APPLIED] * 2
    assert int(state.first_bad_step) == LEAST_HISTORY + 2
    # What led to the end stays to be told, whatever comes after.
    assert int(state.guard.reason) == LOSS_SPIKE
    assert (int(state.guard.skipped_in_row), int(state.guard.skipped)) == (3, 3)


def test_too_many_in_all_are_the_end():
    state, step = build(SPIKES)
    state, _ = run(step, state, [GOOD] * LEAST_HISTORY + [SPIKE, SPIKE, GOOD] * 2)
    assert int(state.first_bad_step) == NO_BAD_STEP
    state, _ = run(step, state, [SPIKE], first=LEAST_HISTORY + 6)
    assert int(state.first_bad_step) == LEAST_HISTORY + 6
    assert int(state.guard.skipped) == 5


def test_what_is_not_finite_is_the_end_unless_it_may_be_left_out():
    state, step = build(StepGuard())
    state, outcomes = run(step, state, [GOOD, NAN, GOOD])
    assert outcomes == [APPLIED, NOT_FINITE, APPLIED]
    assert int(state.first_bad_step) == 1
    state, step = build(StepGuard(skip_not_finite=True, max_in_row=1))
    state, outcomes = run(step, state, [GOOD, NAN, GOOD, NAN])
    assert outcomes == [APPLIED, NOT_FINITE, APPLIED, NOT_FINITE]
    assert int(state.first_bad_step) == NO_BAD_STEP
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(copies((state.trainable, state.guard))))
    state, _ = run(step, state, [NAN])
    assert int(state.first_bad_step) == 4


def test_a_restored_state_decides_alike(tmp_path):
    factors = [GOOD] * 20 + [SPIKE, GOOD, SPIKE, SPIKE, GOOD]
    state, step = build(SPIKES)
    whole, outcomes = run(step, state, factors)
    state, step = build(SPIKES)
    state, before = run(step, state, factors[:21])
    with CheckpointStore(tmp_path) as store:
        store.save(21, state)
        restored = store.restore(store.newest_good(), state)
    resumed, after = run(step, restored, factors[21:], first=21)
    assert before + after == outcomes
    assert_equal(whole, resumed)


@pytest.mark.parametrize("settings", [{"spike_loss_factor": 0.5}, {"spike_grad_norm_factor": 1.0}])
def test_factors_that_make_every_step_a_spike_are_refused(settings):
    with pytest.raises(ConfigError, match="more than 1, or 0 for no limit"):
        TrainConfig(**settings)
