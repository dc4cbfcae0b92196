"""Importance by gradient, against what happens to the loss when gates are moved."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxbert.architecture import Execution
from flaxbert.compression.importance import apply_gates, unit_importance
from flaxbert.core.trees import flatten_names, leaf_names
from flaxbert.data.batches import collate
from flaxbert.data.tokenization import TokenizedExamples
from flaxbert.errors import DataError
from flaxbert.families import get_family
from flaxbert.families.graph import forward, graph_definition
from flaxbert.train.losses import loss_for
from flaxbert.transforms import sparsify
from tests.nn.models import small_config, small_params
from tests.transforms.pruned import units_of

STEP = 1e-2
"""Of central differences, whose error grows with its square, and that of rounding with its inverse."""

CLOSE = 1e-2
"""Largest difference from them as a share of the largest score."""

TASK = "sequence-classification"


def make_examples(count=5):
    random = np.random.default_rng(0)
    offsets = np.concatenate([[0], np.cumsum(random.integers(4, 10, count))]).astype(np.int64)
    return TokenizedExamples(
        input_ids=random.integers(2, 40, offsets[-1]).astype(np.int32),
        token_type_ids=None,
        offsets=offsets,
        truncated=np.zeros(count, bool),
        labels=random.integers(0, 3, count).astype(np.int32),
    )


def small_model(family="bert"):
    config = small_config(family, TASK)
    params = small_params(config, TASK)
    axes = get_family(family).parameter_axes(leaf_names(params))
    graphdef = graph_definition(config, TASK, Execution())
    units = {kind: units_of(config, params, axes, kind) for kind in ("heads", "neurons")}
    return params, units, lambda tree, batch: forward(graphdef, tree, batch)


def test_scores_are_mean_magnitudes_of_derivatives_by_the_gates():
    params, units, run = small_model()
    examples, loss = make_examples(), loss_for(TASK)
    scores = unit_importance(run, params, units, examples, loss, length_buckets=(16,), batch_size=4)
    block = units["heads"].blocks[1]

    @jax.jit
    def loss_at(gate, batch):
        gates = {kind: {b.name: jnp.ones(b.num_units) for b in found.blocks} for kind, found in units.items()}
        gates["heads"][block.name] = gate
        return loss(run(apply_gates(params, units, gates), batch), batch)[0]

    expected = np.zeros(block.num_units)
    for row in range(len(examples)):
        batch = {name: jnp.asarray(rows) for name, rows in collate(examples, np.array([row]), 16).items()}
        for head in range(block.num_units):
            moved = [np.ones(block.num_units, np.float32) for _ in range(2)]
            moved[0][head], moved[1][head] = 1 + STEP, 1 - STEP
            high, low = (float(loss_at(gate, batch)) for gate in moved)
            expected[head] += abs(high - low) / (2 * STEP) / len(examples)
    assert expected.max() > 0.01
    np.testing.assert_allclose(scores["heads"][block.name], expected, atol=CLOSE * expected.max())
    assert {len(array) for array in scores["neurons"].values()} == {40}
    assert all((array >= 0).all() and array.any() for found in scores.values() for array in found.values())


def test_units_that_give_nothing_matter_nothing_and_masks_are_kept():
    params, units, run = small_model()
    sparse, _ = sparsify(params)
    gates = {kind: {b.name: jnp.full(b.num_units, 2.0) for b in found.blocks} for kind, found in units.items()}
    name = units["neurons"].blocks[0].reader.leaf
    doubled = flatten_names(apply_gates(sparse, units, gates))[name]
    np.testing.assert_allclose(doubled.materialize(), 2 * flatten_names(sparse)[name].materialize(), rtol=1e-6)
    scores = unit_importance(run, sparse, units, make_examples(3), loss_for(TASK), length_buckets=(16,))
    assert scores["neurons"]["encoder.layers.0"].any()


def test_without_examples_or_with_broken_weights_nothing_is_ranked():
    params, units, run = small_model()
    none = make_examples(1)
    none = TokenizedExamples(none.input_ids[:0], None, none.offsets[:1], none.truncated[:0], none.labels[:0])
    with pytest.raises(DataError, match="no examples to measure importance on"):
        unit_importance(run, params, units, none, loss_for(TASK))
    broken = {**params, "classifier": {**params["classifier"], "bias": np.full(3, np.nan, np.float32)}}
    with pytest.raises(DataError, match="not finite"):
        unit_importance(run, broken, units, make_examples(2), loss_for(TASK), length_buckets=(16,))
