import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from flaxbert.config import TrainConfig
from flaxbert.core.rules import Rule
from flaxbert.errors import RuleError
from flaxbert.train.optimizer import Optimizer, global_norm
from flaxbert.train.optimizers import make_optimizer

STEPS = 50

PARAMETER_TOLERANCE = 3e-6
"""Absolute, after 50 steps of about 1e-2 each: float32 rounding of parameters of about 1."""

SHAPES = {
    "encoder.layers.0.attention.query.kernel": (40, 6),
    "encoder.layers.0.attention.query.bias": (6,),
    "encoder.layers.0.attention.norm.scale": (6,),
    "embeddings.word.embedding": (50, 6),
}
DECAYED = ("encoder.layers.0.attention.query.kernel", "embeddings.word.embedding")


def leaves(seed, scale=1.0):
    random = np.random.default_rng(seed)
    return {name: random.normal(scale=scale, size=shape).astype(np.float32) for name, shape in SHAPES.items()}


def make(**settings):
    config = TrainConfig(**{"learning_rate": 1e-2, "schedule": "constant", "warmup_rate": 0.0, **settings})
    return make_optimizer(config, STEPS)


@functools.partial(jax.jit, static_argnums=0)
def one_step(optimizer, parameters, state, gradients, apply=True):
    norm = global_norm(gradients)
    return optimizer.update(
        parameters,
        state,
        gradients,
        learning_rate=optimizer.schedule(state.count),
        gradient_factor=optimizer.clip_factor(norm),
        apply=jnp.asarray(apply),
    )


def run(optimizer, gradient_scale=1.0):
    parameters = jax.tree.map(jnp.asarray, leaves(0))
    state = optimizer.init(parameters)
    for index in range(STEPS):
        parameters, state = one_step(optimizer, parameters, state, leaves(index + 1, gradient_scale))
    return parameters, state


def run_torch(kind, gradient_scale=1.0, max_grad_norm=0.0, weight_decay=0.0, **arguments):
    torch = pytest.importorskip("torch", reason="torch is the oracle")
    parameters = {name: torch.nn.Parameter(torch.tensor(array)) for name, array in leaves(0).items()}
    groups = [
        {"params": [parameters[name] for name in DECAYED], "weight_decay": weight_decay},
        {"params": [parameters[name] for name in SHAPES if name not in DECAYED], "weight_decay": 0.0},
    ]
    optimizer = getattr(torch.optim, kind)(groups, lr=1e-2, **arguments)
    for index in range(STEPS):
        for name, gradient in leaves(index + 1, gradient_scale).items():
            parameters[name].grad = torch.tensor(gradient)
        if max_grad_norm:
            torch.nn.utils.clip_grad_norm_(parameters.values(), max_grad_norm)
        optimizer.step()
    return {name: parameter.detach().numpy() for name, parameter in parameters.items()}


def assert_same(ours, theirs):
    for name in SHAPES:
        np.testing.assert_allclose(np.asarray(ours[name]), theirs[name], rtol=0, atol=PARAMETER_TOLERANCE)


@pytest.mark.parity
@pytest.mark.parametrize("max_grad_norm", [0.0, 1.0, 1e4])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_adamw_equals_torch(max_grad_norm, weight_decay):
    ours, _ = run(make(optimizer="adamw", weight_decay=weight_decay, max_grad_norm=max_grad_norm))
    assert_same(ours, run_torch("AdamW", max_grad_norm=max_grad_norm, weight_decay=weight_decay))


@pytest.mark.parity
def test_adamw_with_other_moments_equals_torch():
    settings = {"adam_beta1": 0.8, "adam_beta2": 0.98, "adam_epsilon": 1e-6}
    ours, _ = run(make(weight_decay=0.0, max_grad_norm=0.0, **settings), gradient_scale=1e-4)
    assert_same(ours, run_torch("AdamW", gradient_scale=1e-4, betas=(0.8, 0.98), eps=1e-6))


@pytest.mark.parity
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_adam_equals_torch(weight_decay):
    ours, _ = run(make(optimizer="adam", weight_decay=weight_decay, max_grad_norm=1.0))
    assert_same(ours, run_torch("Adam", max_grad_norm=1.0, weight_decay=weight_decay))


@pytest.mark.parity
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_sgd_equals_torch(momentum):
    ours, state = run(make(optimizer="sgd", momentum=momentum, weight_decay=0.1, max_grad_norm=1.0))
    assert_same(ours, run_torch("SGD", max_grad_norm=1.0, weight_decay=0.1, momentum=momentum))
    assert set(state.moments) == ({"momentum"} if momentum else set())


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_adamw_equals_optax(weight_decay):
    decays = {name: name in DECAYED for name in SHAPES}
    chain = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-2, weight_decay=weight_decay, mask=decays))
    with jax.numpy_dtype_promotion("standard"):
        parameters = jax.tree.map(jnp.asarray, leaves(0))
        state = chain.init(parameters)
        for index in range(STEPS):
            updates, state = jax.jit(chain.update)(leaves(index + 1), state, parameters)
            parameters = optax.apply_updates(parameters, updates)
    ours, _ = run(make(weight_decay=weight_decay, max_grad_norm=1.0))
    # optax's bias correction is off by 1e-5 of a step in the first steps, hence the wider bound.
    for name in SHAPES:
        np.testing.assert_allclose(np.asarray(ours[name]), np.asarray(parameters[name]), rtol=0, atol=2e-5)


def test_biases_and_norms_do_not_decay():
    names = {
        **dict.fromkeys(SHAPES),
        "classifier.bias": None,
        "masked_lm.bias": None,
        "encoder.layers.stacked.feed_forward.norm.bias": None,
        "encoder.layers.stacked.feed_forward.up.kernel@values": None,
    }
    decays = make(weight_decay=0.25).decays(names)
    kept = {name for name, decay in decays.items() if decay == 0.25}
    assert kept == {*DECAYED, "encoder.layers.stacked.feed_forward.up.kernel@values"}
    assert set(decays) == set(names)


def test_decay_rules_of_ones_own_are_checked():
    optimizer = dataclasses.replace(make(), decay_rules=(Rule(r"encodr\..*", True), Rule(r".*", False)))
    with pytest.raises(RuleError, match=r"encodr.*matches no leaf"):
        optimizer.decays(dict.fromkeys(SHAPES))


@pytest.mark.parametrize("name", ["adamw", "adam", "sgd"])
def test_a_step_that_is_not_applied_changes_nothing(name):
    optimizer = make(optimizer=name)
    before, state = run(optimizer)
    bad = {leaf: np.full(shape, np.nan, np.float32) for leaf, shape in SHAPES.items()}
    after, state_after = one_step(optimizer, before, state, bad, False)
    for old, new in zip(jax.tree.leaves((before, state)), jax.tree.leaves((after, state_after)), strict=True):
        np.testing.assert_array_equal(np.asarray(old), np.asarray(new))


def test_state_is_float32_and_zero():
    state = make().init({name: jax.ShapeDtypeStruct(shape, jnp.bfloat16) for name, shape in SHAPES.items()})
    assert int(state.count) == 0
    for moment in jax.tree.leaves(state.moments):
        assert moment.dtype == jnp.float32
        assert not np.any(np.asarray(moment))


@pytest.mark.parametrize("shape", [(5,), (3, 4), (16, 3), (17, 3), (33, 8), (1000, 7), (3, 40, 5), (2, 3, 4)])
@pytest.mark.parametrize("sharded", [False, True])
def test_global_norm(shape, sharded):
    array = np.random.default_rng(1).normal(size=shape).astype(np.float32)
    other = np.full((2,), 3.0, np.float32)
    norm = jax.jit(functools.partial(global_norm, sharded=sharded))({"a": array, "b": other})
    expected = np.sqrt(np.sum(array.astype(np.float64) ** 2) + 18.0)
    np.testing.assert_allclose(float(norm), expected, rtol=1e-6)


def test_global_norm_of_large_arrays_is_exact():
    array = np.random.default_rng(1).normal(size=(30522, 64)).astype(np.float32)
    expected = np.sqrt(np.sum(array.astype(np.float64) ** 2))
    np.testing.assert_allclose(float(jax.jit(global_norm)({"a": array})), expected, rtol=1e-6)


@pytest.mark.parametrize(("norm", "expected"), [(0.5, 1.0), (4.0, 0.25), (np.inf, 0.0)])
def test_clip_factor(norm, expected):
    factor = make(max_grad_norm=1.0).clip_factor(jnp.asarray(norm, jnp.float32))
    np.testing.assert_allclose(float(factor), expected, rtol=1e-6)
    assert float(make(max_grad_norm=0.0).clip_factor(jnp.asarray(norm, jnp.float32))) == 1.0


def test_update_needs_no_scratch_copies_of_the_parameters():
    optimizer = Optimizer("adamw", make().schedule, weight_decay=0.1, max_grad_norm=1.0)
    shapes = {name: jax.ShapeDtypeStruct((2048, 512), jnp.float32) for name in ("a.kernel", "b.kernel", "c.kernel")}
    state = jax.eval_shape(optimizer.init, shapes)
    step = jax.jit(functools.partial(one_step.__wrapped__, optimizer), donate_argnums=(0, 1))
    analysis = step.lower(shapes, state, shapes).compile().memory_analysis()
    one_array = 2048 * 512 * 4
    assert analysis.alias_size_in_bytes >= 9 * one_array
    assert analysis.temp_size_in_bytes < one_array
