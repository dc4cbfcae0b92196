"""Networks as pure functions of trees."""

import jax
import numpy as np
import pytest
from flax import nnx

from flaxbert.architecture import Execution, ModelConfig
from flaxbert.core.trees import flatten_names
from flaxbert.errors import ShapeError
from flaxbert.families import graph
from flaxbert.families.graph import abstract_params, forward, graph_definition, initialize_params

CONFIG = ModelConfig(
    vocab_size=31,
    hidden_size=12,
    num_hidden_layers=2,
    num_attention_heads=3,
    intermediate_size=20,
    max_position_embeddings=16,
)
TASK = "sequence-classification"


def test_equal_arguments_share_one_graph_definition():
    first = graph_definition(CONFIG, TASK, Execution())
    assert graph_definition(CONFIG.replace(), TASK, Execution()) is first


def test_keys_are_those_of_nnx():
    drawn, plain = graph._Rngs(jax.random.key(3)), nnx.Rngs(params=jax.random.key(3))
    for _ in range(4):
        np.testing.assert_array_equal(*(jax.random.key_data(keys.params()) for keys in (drawn, plain)))


def test_new_weights_have_the_abstract_shapes_and_follow_the_seed():
    first, again, other = (flatten_names(initialize_params(CONFIG, TASK, seed)) for seed in (0, 0, 1))
    abstract = flatten_names(abstract_params(CONFIG, TASK))
    assert {name: (leaf.shape, leaf.dtype) for name, leaf in first.items()} == {
        name: (leaf.shape, leaf.dtype) for name, leaf in abstract.items()
    }
    kernel = "encoder.layers.1.feed_forward.up.kernel"
    np.testing.assert_array_equal(first[kernel], again[kernel])
    assert not np.array_equal(first[kernel], other[kernel])
    assert not np.array_equal(first[kernel], first[kernel.replace(".1.", ".0.")])
    assert np.abs(first[kernel]).max() <= 2 * CONFIG.initializer_range
    assert np.all(np.asarray(first["embeddings.norm.scale"]) == 1)


def test_some_new_weights_are_those_of_all():
    chosen = ["classifier.kernel", "encoder.layers.0.attention.query.kernel"]
    some, all_ = (flatten_names(initialize_params(CONFIG, TASK, 3, names)) for names in (chosen, None))
    assert sorted(some) == chosen
    for name in chosen:
        np.testing.assert_array_equal(some[name], all_[name])


def test_forward_needs_input_ids():
    graphdef = graph_definition(CONFIG, TASK, Execution())
    with pytest.raises(ShapeError, match=r"no 'input_ids'; it has \['labels'\]"):
        forward(graphdef, {}, {"labels": 1})


def test_forward_ignores_what_is_for_the_loss():
    graphdef = graph_definition(CONFIG, TASK, Execution())
    params = initialize_params(CONFIG, TASK, 0)
    batch = {"input_ids": np.ones((2, 5), np.int32)}
    run = jax.jit(lambda params, batch: forward(graphdef, params, batch).logits)
    np.testing.assert_array_equal(run(params, batch), run(params, {**batch, "labels": np.zeros(2, np.int32)}))


def test_scanned_trees_are_stacked():
    scanned = flatten_names(abstract_params(CONFIG, TASK, Execution(scan_layers=True)))
    assert scanned["encoder.layers.stacked.attention.query.kernel"].shape == (2, 12, 12)
