"""Queries, keys and values of every layer: those that the attention mixes, however the layers are run."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxbert.architecture import Execution
from flaxbert.core.trees import flatten_names, stack_layers
from flaxbert.families import FAMILIES
from flaxbert.families.albert import AlbertOptions
from flaxbert.families.graph import forward, graph_definition
from flaxbert.families.modernbert_encoder import ModernBertOptions
from tests.helpers import DIFFERENT_FAMILIES, slow_unless
from tests.nn.models import small_batch, small_config, small_params

SAME = 2e-5
"""Absolute, for entries of size up to 5: the same float32 numbers, computed in another program."""

EVERY_FAMILY = pytest.mark.parametrize("family", slow_unless(DIFFERENT_FAMILIES.__contains__, FAMILIES))


def kept(config, params, batch, execution=Execution(), task="token-classification", **how):
    graphdef = graph_definition(config, task, execution)
    program = jax.jit(functools.partial(forward, graphdef, keep_attention=True, **how))
    return program(params, batch)


@EVERY_FAMILY
def test_each_layer_gives_its_heads_unrolled_and_scanned(family):
    config = small_config(family, "token-classification")
    params, batch = small_params(config, "token-classification"), small_batch(config)
    output = kept(config, params, batch)
    plain = forward(graph_definition(config, "token-classification", Execution()), params, batch)
    np.testing.assert_allclose(output.logits, plain.logits, atol=SAME)
    assert plain.attention is None
    assert len(output.attention) == config.num_hidden_layers
    rows, length = batch["input_ids"].shape
    for layer in output.attention:
        heads, width = layer.query.shape[1], layer.query.shape[3]
        assert layer.query.shape == layer.key.shape == layer.value.shape == (rows, heads, length, width)
    scanned = kept(config, stack_layers(params), batch, Execution(scan_layers=True))
    for one, other in zip(output.attention, scanned.attention, strict=True):
        jax.tree.map(functools.partial(np.testing.assert_allclose, atol=SAME), one, other)


@pytest.mark.parametrize(
    "remat", ["full", *(pytest.param(name, marks=pytest.mark.slow) for name in ("dots", "attention"))]
)
@pytest.mark.parametrize("scanned", [pytest.param(False, marks=pytest.mark.slow), True])
def test_recomputed_layers_keep_the_same_and_have_gradients(remat, scanned):
    config = small_config("bert", "token-classification")
    params, batch = small_params(config, "token-classification"), small_batch(config)

    def summed(params, execution):
        graphdef = graph_definition(config, "token-classification", execution)
        layers = forward(graphdef, params, batch, keep_attention=True).attention
        return sum(jnp.sum(jnp.square(layer.key)) for layer in layers)

    expected = stack_layers(jax.grad(summed)(params, Execution()))
    found = jax.jit(jax.grad(summed), static_argnums=1)(
        params if not scanned else stack_layers(params), Execution(remat=remat, scan_layers=scanned)
    )
    found = found if scanned else stack_layers(found)
    for (name, one), other in zip(flatten_names(expected).items(), flatten_names(found).values(), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-3, err_msg=name)  # gradients of size up to 100


def test_kept_queries_are_the_products_of_the_hidden_states():
    config = small_config("bert", "token-classification")
    params, batch = small_params(config, "token-classification"), small_batch(config)
    output = kept(config, params, batch, keep_hidden=True)
    for index, layer in enumerate(output.attention):
        leaves = params["encoder"]["layers"][str(index)]["attention"]
        for name, heads in (("query", layer.query), ("key", layer.key), ("value", layer.value)):
            flat = output.hidden_states[index] @ leaves[name]["kernel"] + leaves[name]["bias"]
            expected = np.swapaxes(flat.reshape(*flat.shape[:2], config.num_attention_heads, -1), 1, 2)
            np.testing.assert_allclose(heads, expected, atol=SAME)


def test_a_layer_of_several_blocks_gives_its_last_one():
    config = small_config("albert", "token-classification").replace(options=AlbertOptions(inner_group_num=2))
    params, batch = small_params(config, "token-classification"), small_batch(config)
    output = kept(config, params, batch)
    assert len(output.attention) == config.num_hidden_layers
    scanned = kept(config, params, batch, Execution(scan_layers=True))
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=SAME), output.attention, scanned.attention)


@pytest.mark.parametrize("radius", [2, 64])
def test_windows_give_whole_rows(radius):
    # The first layer reads the embeddings, so that what it mixes does not depend on what its window shows.
    config = small_config("modernbert", "token-classification", max_position_embeddings=256)
    params, batch = small_params(config, "token-classification"), small_batch(config, lengths=(150, 256, 130))
    first = {}
    for kind in ("sliding_attention", "full_attention"):
        options = ModernBertOptions(
            local_attention=2 * radius, layer_types=(kind,) * 2, global_rope_theta=1e4, local_rope_theta=1e4
        )
        first[kind] = kept(config.replace(options=options), params, batch).attention[0]
    real = batch["attention_mask"].astype(bool)
    for name in ("query", "key", "value"):
        near, whole = (np.swapaxes(getattr(layer, name), 1, 2)[real] for layer in first.values())
        np.testing.assert_allclose(near, whole, atol=SAME)
