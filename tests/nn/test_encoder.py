"""The stack of blocks: unrolled, scanned and rematerialised runs are one function, with one gradient and one dropout."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxbert.architecture import Execution
from flaxbert.core.trees import flatten_names, unstack_layers
from flaxbert.families.graph import forward, graph_definition
from flaxbert.nn import attention, embeddings, feed_forward, network
from flaxbert.nn.dropout import key_words
from tests.helpers import slow_unless
from tests.nn.models import run, small_batch, small_config, small_params

TOLERANCE = 2e-5
"""Relative to the largest entry: the same float32 operations, fused in another order over three layers."""

CONFIG = small_config()
REMAT = ("none", "full", "dots", "attention")
PLAIN, SCANNED = Execution(), Execution(scan_layers=True)
CASES = {
    "scanned": (SCANNED, True),
    "scanned without dropout": (SCANNED, False),
    "scanned, full": (Execution(scan_layers=True, remat="full"), True),
    "scanned, attention": (Execution(scan_layers=True, remat="attention"), True),
    "unrolled, full": (Execution(remat="full"), True),
    "unrolled, dots": (Execution(remat="dots"), True),
    "unrolled, attention": (Execution(remat="attention"), True),
}


def loss(execution, key, config=CONFIG):
    graphdef = graph_definition(config, "sequence-classification", execution)
    batch = {name: jnp.asarray(array) for name, array in small_batch(config).items()}

    def function(params):
        logits = forward(graphdef, params, batch, dropout_key=key).logits
        return jnp.sum(jnp.sin(logits)), logits

    return function


@functools.lru_cache
def evaluate(execution, dropped, config=CONFIG):
    key = jax.random.key(7) if dropped else None
    params = small_params(config, scanned=execution.scan_layers)
    (_, logits), gradients = jax.jit(jax.value_and_grad(loss(execution, key, config), has_aux=True))(params)
    return logits, flatten_names(unstack_layers(gradients))


def assert_near(actual, expected, name=""):
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert np.isfinite(actual).all(), name
    assert np.abs(actual - expected).max() <= TOLERANCE * max(np.abs(expected).max(), 1e-2), name


@pytest.mark.parametrize("case", slow_unless({"scanned", "scanned, attention", "unrolled, full"}.__contains__, CASES))
def test_logits_and_gradients_do_not_depend_on_the_execution(case):
    execution, dropped = CASES[case]
    logits, gradients = evaluate(execution, dropped)
    expected, expected_gradients = evaluate(PLAIN, dropped)
    assert_near(logits, expected)
    assert gradients.keys() == expected_gradients.keys()
    for name, gradient in gradients.items():
        assert_near(gradient, expected_gradients[name], name)


def test_every_parameter_gets_a_gradient():
    _, gradients = evaluate(PLAIN, False)
    without = [name for name, gradient in gradients.items() if not np.asarray(gradient).any()]
    assert without == []


def residual_bytes(execution, length=16):
    config = small_config(max_position_embeddings=length, hidden_dropout_rate=0.0, attention_dropout_rate=0.0)
    graphdef = graph_definition(config, "sequence-classification", execution)
    batch = small_batch(config, lengths=(length,) * 4)
    params = small_params(config, scanned=execution.scan_layers)

    def pullback(params):
        return jax.vjp(lambda params: forward(graphdef, params, batch).logits, params)[1]

    kept = jax.tree.leaves(jax.eval_shape(pullback, params))
    squares = [leaf for leaf in kept if leaf.shape[-2:] == (length, length)]
    return sum(leaf.size * leaf.dtype.itemsize for leaf in kept), len(squares)


@pytest.mark.parametrize("scanned", [False, True])
def test_rematerialisation_keeps_less_for_the_backward_pass(scanned):
    kept = {remat: residual_bytes(Execution(scan_layers=scanned, remat=remat)) for remat in REMAT}
    assert kept["full"][0] < kept["dots"][0] < kept["none"][0]
    assert kept["full"][0] < kept["attention"][0] < kept["none"][0]


@pytest.mark.parametrize("remat", REMAT)
def test_no_matrix_of_length_by_length_is_kept_for_the_backward_pass(remat):
    assert residual_bytes(Execution(remat=remat))[1] == 0


@pytest.mark.parametrize("scanned", [False, True])
def test_hidden_states_are_those_after_the_embeddings_and_every_block(scanned):
    execution = Execution(scan_layers=scanned)
    params = small_params(CONFIG, scanned=scanned)
    output = run(params, small_batch(CONFIG), config=CONFIG, execution=execution, keep_hidden=True)
    assert len(output.hidden_states) == CONFIG.num_hidden_layers + 1
    np.testing.assert_array_equal(output.hidden_states[-1], output.last_hidden_state)
    assert all(not np.allclose(a, b, atol=1e-3) for a, b in itertools.pairwise(output.hidden_states))
    assert run(params, small_batch(CONFIG), config=CONFIG, execution=execution).hidden_states is None


@pytest.mark.slow
def test_no_two_dropout_masks_come_from_one_key(monkeypatch):
    keys = []

    def recorder(function, place):
        def record(*arguments, **options):
            keys.append(tuple(np.asarray(key_words(arguments[place])).tolist()))
            return function(*arguments, **options)

        return record

    for module in (attention, embeddings, feed_forward, network):
        monkeypatch.setattr(module, "dropout", recorder(module.dropout, 1))
    monkeypatch.setattr(attention, "softmax_attention", recorder(attention.softmax_attention, 4))
    graphdef = graph_definition(CONFIG, "sequence-classification", Execution())
    forward(graphdef, small_params(CONFIG), small_batch(CONFIG), dropout_key=jax.random.key(0))
    # embeddings and classifier; attention weights, attention output and feed-forward output of every layer
    assert len(keys) == 2 + 3 * CONFIG.num_hidden_layers
    assert len(set(keys)) == len(keys)


def test_dropout_depends_on_the_key_alone():
    execution = Execution()
    logits = [
        run(small_params(CONFIG), small_batch(CONFIG), jax.random.key(seed), config=CONFIG).logits for seed in (0, 0, 1)
    ]
    np.testing.assert_array_equal(logits[0], logits[1])
    assert not np.allclose(logits[0], logits[2])
    config = small_config(hidden_dropout_rate=0.0, attention_dropout_rate=0.0)
    off = run(small_params(config), small_batch(config), jax.random.key(0), config=config, execution=execution)
    without_key = run(small_params(config), small_batch(config), config=config).logits
    np.testing.assert_allclose(off.logits, without_key, rtol=TOLERANCE, atol=TOLERANCE)
