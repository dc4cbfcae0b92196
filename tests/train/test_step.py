import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxbert.architecture import Execution
from flaxbert.config import FreezeRule
from flaxbert.core.arrays import QuantizedArray, SparseArray
from flaxbert.core.trees import flatten_names, map_leaves
from flaxbert.errors import ShapeError
from flaxbert.train.losses import loss_for
from flaxbert.train.state import NO_BAD_STEP, create_state, join_params
from flaxbert.train.step import count_tokens, make_norms, make_train_step, split_micro_batches
from tests.helpers import slow_unless
from tests.train.tiny_training import (
    CONFIG,
    TASK,
    bag_of_words,
    bag_of_words_params,
    make_batch,
    make_forward,
    make_params,
    run_steps,
    tiny_optimizer,
)

ACCUMULATION_TOLERANCE = 2e-5
"""Absolute, on parameters after 4 steps of 1e-2: float32 sums in another order, divided by roots of second moments."""


def build(params=None, freeze=(), forward=None, loss_scale=1.0, growth_steps=0, accumulation_steps=1, **settings):
    """A step over the bag of words, or over another model."""
    optimizer = tiny_optimizer(**settings)
    state, kinds = create_state(params or bag_of_words_params(), freeze, optimizer, loss_scale=loss_scale)
    step = make_train_step(
        forward or bag_of_words,
        loss_for(TASK),
        optimizer,
        kinds,
        accumulation_steps,
        loss_scale_growth_steps=growth_steps,
    )
    return state, kinds, step


def run_bag(num_steps=4, dropout_seed=None, **settings):
    state, _, step = build(**settings)
    losses = []
    for index in range(num_steps):
        key = None if dropout_seed is None else jax.random.key(dropout_seed)
        state, metrics = step(state, make_batch(seed=index), key)
        losses.append(float(metrics.loss_sum) / float(metrics.weight))
    return state, losses


def copies(tree):
    return jax.tree.map(lambda leaf: np.array(leaf), tree)


def largest_difference(first, second):
    pairs = zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True)
    return max(float(np.max(np.abs(np.asarray(a, np.float64) - np.asarray(b, np.float64)))) for a, b in pairs)


def poisoned(base, is_bad):
    """A forward pass whose scores are NaN for batches whose first token says so."""

    def forward(params, batch, dropout_key=None):
        output = base(params, batch, dropout_key=dropout_key)
        factor = jnp.where(is_bad(batch), jnp.float32(jnp.nan), jnp.float32(1.0))
        return jax.tree.map(lambda leaf: leaf, output.__class__(logits=output.logits * factor))

    return forward


def marked(batch, marker):
    return {**batch, "marker": np.full(len(batch["labels"]), marker, np.float32)}


def test_training_lowers_the_loss_and_counts_steps():
    state, _, step = build(learning_rate=0.1)
    batch, losses = make_batch(), []
    for _ in range(15):
        state, metrics = step(state, batch, None)
        losses.append(float(metrics.loss_sum) / float(metrics.weight))
    assert losses[-1] < 0.5 * losses[0]
    assert int(state.step) == int(state.optimizer.count) == 15
    assert int(state.first_bad_step) == NO_BAD_STEP


def test_metrics_are_those_of_the_batch():
    state, kinds, step = build(learning_rate=3e-3, warmup_steps=4)
    batch = make_batch()

    arrays = jax.tree.map(jnp.asarray, batch)

    def mean_loss(params):
        total, weight = loss_for(TASK)(bag_of_words(params, arrays), arrays)
        return total / weight

    value, gradient = jax.jit(jax.value_and_grad(mean_loss))(join_params(state, kinds))
    norm = np.sqrt(sum(np.sum(np.square(np.asarray(leaf, np.float64))) for leaf in jax.tree.leaves(gradient)))
    rates = []
    for index in range(3):
        state, metrics = step(state, batch, None)
        rates.append(float(metrics.learning_rate))
        if index == 0:
            np.testing.assert_allclose(float(metrics.loss_sum) / float(metrics.weight), float(value), rtol=1e-5)
            np.testing.assert_allclose(float(metrics.grad_norm), norm, rtol=1e-4)
            np.testing.assert_allclose(float(metrics.weight), batch["example_weight"].sum(), rtol=1e-6)
            assert int(metrics.tokens) == batch["attention_mask"].sum()
            assert bool(metrics.applied)
    np.testing.assert_allclose(rates, [0.0, 3e-3 / 4, 3e-3 / 2], rtol=1e-6)


@pytest.mark.parametrize("accumulation_steps", slow_unless((4).__eq__, [2, 4, 8]))
def test_accumulation_equals_the_large_batch(accumulation_steps):
    whole, whole_losses = run_bag(max_grad_norm=0.1)
    pieces, pieces_losses = run_bag(max_grad_norm=0.1, accumulation_steps=accumulation_steps)
    np.testing.assert_allclose(whole_losses, pieces_losses, rtol=1e-5)
    assert largest_difference(whole.trainable, pieces.trainable) < ACCUMULATION_TOLERANCE
    assert largest_difference(whole.optimizer, pieces.optimizer) < ACCUMULATION_TOLERANCE


@pytest.mark.slow
def test_accumulation_equals_the_large_batch_for_a_whole_network():
    _, whole, _ = run_steps(config=CONFIG.replace(num_hidden_layers=1))
    _, pieces, _ = run_steps(config=CONFIG.replace(num_hidden_layers=1), accumulation_steps=4)
    np.testing.assert_allclose(whole, pieces, rtol=1e-5)


def test_micro_batches_have_dropout_keys_of_their_own():
    same_rows = {name: np.repeat(array[:1], 4, axis=0) for name, array in make_batch().items()}
    seen = []

    def forward(params, batch, dropout_key=None):
        jax.debug.callback(lambda bits: seen.append(tuple(bits.tolist())), jax.random.key_data(dropout_key))
        return bag_of_words(params, batch, dropout_key=dropout_key)

    state, _, step = build(forward=forward, accumulation_steps=4)
    state, _ = step(state, same_rows, jax.random.key(0))
    jax.block_until_ready(state)
    jax.effects_barrier()
    assert len(set(seen)) == 4


def test_dropout_depends_on_seed_and_step_only():
    first, losses = run_bag(dropout_seed=7)
    again, losses_again = run_bag(dropout_seed=7)
    _, other_losses = run_bag(dropout_seed=8)
    _, losses_without = run_bag()
    assert losses == losses_again
    assert largest_difference(first.trainable, again.trainable) == 0.0
    assert losses[0] != other_losses[0]
    assert losses[0] != losses_without[0]


@pytest.mark.slow
def test_scanned_layers_train_like_unrolled_ones():
    _, unrolled, _ = run_steps()
    _, scanned, _ = run_steps(stacked=True)
    np.testing.assert_allclose(unrolled, scanned, rtol=2e-5)


def test_frozen_and_typed_leaves_stay_and_pruned_entries_stay_zero():
    query, key = "encoder.layers.0.attention.query.kernel", "encoder.layers.1.attention.key.kernel"

    def convert(name, leaf):
        if name == query:
            codes = np.clip(np.round(leaf * 1000), -127, 127).astype(np.int8)
            return QuantizedArray(codes, np.full((1, leaf.shape[1]), 1e-3, np.float32))
        return SparseArray(leaf, np.abs(leaf) > 0.01) if name == key else leaf

    state, kinds, step = build(map_leaves(convert, make_params()), (FreezeRule(r"embeddings\..*"),), make_forward())
    frozen, before = copies(state.frozen), copies(state.trainable)
    for index in range(3):
        state, _ = step(state, make_batch(seed=index), None)
    assert largest_difference(frozen, state.frozen) == 0.0
    mask = frozen[f"{key}@mask"]
    values, old = np.asarray(state.trainable[f"{key}@values"]), before[f"{key}@values"]
    leaf = flatten_names(join_params(state, kinds))[key]
    assert not np.any(np.asarray(leaf.materialize())[~mask])
    assert np.any(values[mask] != old[mask])


def test_a_bad_step_is_not_applied_and_remembered():
    forward = poisoned(bag_of_words, lambda batch: batch["marker"][0] > 0)
    state, _, step = build(forward=forward)
    state, _ = step(state, marked(make_batch(), 0), None)
    kept = copies((state.trainable, state.optimizer))
    for bad_index in (1, 2):
        state, metrics = step(state, marked(make_batch(), 1), None)
        assert not bool(metrics.applied)
        assert int(state.step) == bad_index + 1
        assert int(state.first_bad_step) == 1
    assert largest_difference(kept, (state.trainable, state.optimizer)) == 0.0
    state, metrics = step(state, marked(make_batch(), 0), None)
    assert bool(metrics.applied)
    assert int(state.first_bad_step) == 1
    assert int(state.optimizer.count) == 2


def test_one_bad_micro_batch_spoils_the_step():
    forward = poisoned(bag_of_words, lambda batch: batch["marker"].max() > 0)
    state, _, step = build(forward=forward, accumulation_steps=4)
    batch = marked(make_batch(), 0)
    batch["marker"][5] = 1.0
    state, metrics = step(state, batch, None)
    assert not bool(metrics.applied)
    assert int(state.first_bad_step) == 0


def overflowing(limit):
    """A forward pass whose gradients overflow once the loss scale reaches a limit, as float16 does."""

    @jax.custom_vjp
    def gate(logits):
        return logits

    def backward(_, cotangent):
        return (jnp.where(jnp.max(jnp.abs(cotangent)) > limit, jnp.float32(jnp.inf), cotangent),)

    gate.defvjp(lambda logits: (logits, None), backward)
    base = bag_of_words

    def forward(params, batch, dropout_key=None):
        output = base(params, batch, dropout_key=dropout_key)
        return output.__class__(logits=gate(output.logits))

    return forward


def test_loss_scale_halves_on_overflow_and_doubles_after_finite_steps():
    state, _, step = build(forward=overflowing(2.0), loss_scale=1024.0, growth_steps=3)
    scales, applied = [], []
    for _ in range(14):
        state, metrics = step(state, make_batch(), None)
        scales.append(float(metrics.loss_scale))
        applied.append(bool(metrics.applied))
    first = applied.index(True)
    assert first > 0
    assert scales[: first + 1] == [1024.0 / 2**index for index in range(first + 1)]
    # Three finite steps double the scale, the next overflows, and so on.
    assert applied[first : first + 8] == [True, True, True, False, True, True, True, False]
    assert scales[first + 3] == 2 * scales[first]
    assert int(state.first_bad_step) == NO_BAD_STEP
    assert int(state.optimizer.count) == sum(applied)


def test_the_loss_scale_does_not_change_the_update():
    plain, _, step = build(max_grad_norm=0.5)
    scaled, _, scaled_step = build(loss_scale=4096.0, growth_steps=1000, max_grad_norm=0.5)
    for index in range(3):
        plain, metrics = step(plain, make_batch(seed=index), None)
        scaled, scaled_metrics = scaled_step(scaled, make_batch(seed=index), None)
        np.testing.assert_allclose(float(metrics.grad_norm), float(scaled_metrics.grad_norm), rtol=1e-4)
    assert largest_difference(plain.trainable, scaled.trainable) < ACCUMULATION_TOLERANCE


def test_overflow_at_the_smallest_scale_is_a_bad_step():
    state, _, step = build(forward=overflowing(0.0), loss_scale=2.0, growth_steps=3)
    state, _ = step(state, make_batch(), None)
    assert int(state.first_bad_step) == NO_BAD_STEP
    state, metrics = step(state, make_batch(), None)
    assert float(metrics.loss_scale) == 1.0
    assert int(state.first_bad_step) == 1


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_half_precision_trains_float32_parameters(precision):
    scale = {"loss_scale": 2.0**15, "growth_steps": 50} if precision == "float16" else {}
    config = CONFIG.replace(num_hidden_layers=1)
    forward = make_forward(config, Execution(precision=precision))
    state, _, step = build(make_params(config), forward=forward, **scale)
    losses = []
    for _ in range(15):
        state, metrics = step(state, make_batch(), jax.random.key(0))
        losses.append(float(metrics.loss_sum) / float(metrics.weight))
    assert losses[-1] < 0.6 * losses[0]
    assert {leaf.dtype for leaf in state.trainable.values()} == {jnp.dtype(jnp.float32)}
    assert int(state.first_bad_step) == NO_BAD_STEP


def test_the_learning_rate_factor_scales_the_step():
    state, _, step = build()
    _, metrics = step(state.replace(learning_rate_factor=jnp.asarray(0.25, jnp.float32)), make_batch(), None)
    np.testing.assert_allclose(float(metrics.learning_rate), 0.25e-2, rtol=1e-6)


@pytest.mark.parametrize("rule", ["adamw", "adam", "sgd", "lion"])
def test_norms_are_those_of_parameters_and_last_update(rule):
    settings = {"optimizer": rule, "weight_decay": 0.1, "learning_rate": 1e-2}
    state, _, step = build(**settings)
    norms = make_norms(tiny_optimizer(**settings))
    for index in range(3):
        before = copies(state.trainable)
        state, metrics = step(state, make_batch(seed=index), None)
        found = norms(state, metrics.learning_rate)
    after = copies(state.trainable)
    norm = np.sqrt(sum(np.sum(np.square(leaf, dtype=np.float64)) for leaf in after.values()))
    change = np.sqrt(sum(np.sum(np.square(after[name] - before[name], dtype=np.float64)) for name in after))
    np.testing.assert_allclose(float(found["param_norm"]), norm, rtol=1e-5)
    if rule == "lion":  # a sign of a mean that is gone
        assert set(found) == {"param_norm"}
    else:
        np.testing.assert_allclose(float(found["update_norm"]), change, rtol=1e-3)


def test_a_batch_without_weight_changes_nothing_but_decay():
    state, _, step = build(weight_decay=0.0)
    before = copies(state.trainable)
    empty = {**make_batch(), "example_weight": np.zeros(16, np.float32)}
    state, metrics = step(state, empty, None)
    assert bool(metrics.applied)
    assert float(metrics.grad_norm) == 0.0
    assert largest_difference(before, state.trainable) == 0.0


def test_the_state_is_donated():
    state, _, step = build()
    after, _ = step(state, make_batch(), None)
    assert all(leaf.is_deleted() for leaf in state.trainable.values())
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(after))


def test_rows_are_dealt_out_in_turn():
    batch = {"input_ids": np.arange(12, dtype=np.int32).reshape(6, 2), "labels": np.arange(6, dtype=np.int32)}
    split = split_micro_batches(batch, 3)
    np.testing.assert_array_equal(split["labels"], [[0, 3], [1, 4], [2, 5]])
    assert split["input_ids"].shape == (3, 2, 2)
    with pytest.raises(ShapeError, match="'input_ids' has 6 rows.*4 micro batches"):
        split_micro_batches(batch, 4)


def test_tokens_are_counted_from_segments_mask_or_shape():
    ids, mask = np.ones((2, 3), np.int32), np.array([[1, 1, 0], [1, 0, 0]], np.int32)
    segments = np.array([[1, 2, 0], [1, 1, 2]], np.int32)
    assert int(count_tokens({"input_ids": ids})) == 6
    assert int(count_tokens({"input_ids": ids, "attention_mask": mask})) == 3
    assert int(count_tokens({"input_ids": ids, "attention_mask": mask, "segment_ids": segments})) == 5
