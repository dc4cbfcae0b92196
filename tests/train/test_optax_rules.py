"""Rules of optax behind our interface: they learn, skip what is not finite, and equal optax's own optimizers."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from flaxbert.config import TrainConfig
from flaxbert.core.axes import LAYERS
from flaxbert.train.optax_rules import OTHER, RULES
from flaxbert.train.optimizers import make_optimizer
from tests.helpers import slow_unless

LEARNING_RATE = 0.01
NAMES = {
    "encoder.layers.0.up.kernel": (6, 4),
    "encoder.layers.0.up.bias": (4,),
    "embeddings.word.embedding": (130, 140),
}


def params(seed=0):
    keys = jax.random.split(jax.random.key(seed), len(NAMES))
    return {name: jax.random.normal(key, shape) for (name, shape), key in zip(NAMES.items(), keys, strict=True)}


def make(name, **options):
    config = TrainConfig(
        optimizer=name, learning_rate=LEARNING_RATE, schedule="constant", warmup_rate=0.0, max_grad_norm=0.0, **options
    )
    return make_optimizer(config, 100)


def compiled(optimizer, cache={}):  # noqa: B006  one program for each optimizer of this file
    if id(optimizer) not in cache:
        cache[id(optimizer)] = (optimizer, jax.jit(optimizer.update))  # kept, so that its id is not given again
    return cache[id(optimizer)][1]


def step(optimizer, leaves, state, gradients, apply=True):
    return compiled(optimizer)(
        leaves,
        state,
        gradients,
        learning_rate=jnp.float32(LEARNING_RATE),
        gradient_factor=jnp.float32(1.0),
        apply=jnp.asarray(apply),
    )


@pytest.mark.parametrize("name", slow_unless({"lamb", "muon"}.__contains__, RULES))
def test_a_parabola_is_descended(name):
    optimizer, leaves = make(name), params()
    state = optimizer.init(leaves)
    start = sum(float(jnp.sum(leaf**2)) for leaf in leaves.values())
    for _ in range(40):
        leaves, state = step(optimizer, leaves, state, dict(leaves))
    assert sum(float(jnp.sum(leaf**2)) for leaf in leaves.values()) < 0.97 * start
    assert int(state.count) == 40


@pytest.mark.parametrize("name", RULES)
def test_stacked_layers_are_updated_like_layers_apart(name):
    """Scales and gradients differ by layer, so that a ratio or a mean over the whole stack would show."""
    scales, num_layers = jnp.array([0.1, 1.0, 10.0]), 3
    kernels = jax.random.normal(jax.random.key(0), (num_layers, 6, 4)) * scales[:, None, None]
    gradients = jax.random.normal(jax.random.key(1), (4, num_layers, 6, 4)) * scales[::-1, None, None] ** 2
    word = jax.random.normal(jax.random.key(2), (130, 140))

    def named(stack):
        return {f"encoder.layers.{number}.up.kernel": stack[number] for number in range(num_layers)}

    name_of_stack = "encoder.layers.up.kernel"
    options = TrainConfig(optimizer=name, learning_rate=LEARNING_RATE, schedule="constant", warmup_rate=0.0)
    axes = {name_of_stack: (LAYERS, "embed", "mlp"), "embeddings.word.embedding": ("vocab", "embed")}
    apart, together = make_optimizer(options, 100), make_optimizer(options, 100, axes)
    one = {**named(kernels), "embeddings.word.embedding": word}
    other = {name_of_stack: kernels, "embeddings.word.embedding": word}
    one_state, other_state = apart.init(one), together.init(other)
    for gradient in gradients:
        changed = {"embeddings.word.embedding": word}
        one, one_state = step(apart, one, one_state, {**named(gradient), **changed})
        other, other_state = step(together, other, other_state, {name_of_stack: gradient, **changed})
    for number in range(num_layers):
        np.testing.assert_allclose(
            other[name_of_stack][number], one[f"encoder.layers.{number}.up.kernel"], rtol=1e-6, atol=1e-7
        )
    np.testing.assert_allclose(
        other["embeddings.word.embedding"], one["embeddings.word.embedding"], rtol=1e-6, atol=1e-7
    )


@pytest.mark.parametrize("name", slow_unless({"lamb", "muon"}.__contains__, RULES))
def test_a_skipped_step_changes_nothing(name):
    optimizer, leaves = make(name), params()
    leaves, state = step(optimizer, leaves, optimizer.init(leaves), params(1))
    broken = {name: jnp.full_like(leaf, jnp.nan) for name, leaf in leaves.items()}
    again, after = step(optimizer, leaves, state, broken, apply=False)
    for before, now in ((leaves, again), (state.moments, after.moments)):
        jax.tree.map(np.testing.assert_array_equal, before, now)
    assert int(after.count) == 1


@pytest.mark.parametrize(
    ("name", "stock"),
    [
        ("lamb", lambda mask: optax.lamb(LEARNING_RATE, eps=1e-8, weight_decay=0.1, mask=mask)),
        ("lion", lambda mask: optax.lion(LEARNING_RATE, b2=0.999, weight_decay=0.1, mask=mask)),
        (
            "adafactor",
            lambda mask: optax.chain(
                optax.adafactor(None, weight_decay_rate=0.1, weight_decay_mask=mask), optax.scale(LEARNING_RATE)
            ),
        ),
    ],
)
def test_steps_equal_those_of_optax(name, stock):
    optimizer, leaves = make(name, weight_decay=0.1), params()
    mask = {key: not key.endswith("bias") for key in leaves}
    other, reference = stock(mask), dict(leaves)
    state, other_state = optimizer.init(leaves), stock(mask).init(leaves)
    for number in range(5):
        gradients = params(number + 1)
        leaves, state = step(optimizer, leaves, state, gradients)
        with jax.numpy_dtype_promotion("standard"):
            changes, other_state = other.update(gradients, other_state, reference)
            reference = optax.apply_updates(reference, changes)
    for key, leaf in leaves.items():
        np.testing.assert_allclose(leaf, reference[key], atol=2e-6)


def test_muon_takes_orthogonal_steps_of_the_size_of_adam():
    optimizer, leaves = make("muon", weight_decay=0.0), params()
    after, _ = step(optimizer, leaves, optimizer.init(leaves), params(1))
    moved = (leaves["encoder.layers.0.up.kernel"] - after["encoder.layers.0.up.kernel"]) / LEARNING_RATE
    values = np.linalg.svd(np.asarray(moved), compute_uv=False)
    assert values.max() / values.min() < 2
    assert np.sqrt(np.mean(np.square(moved))) == pytest.approx(0.2, rel=0.35)
    sizes = []
    for shape in ((16, 64), (64, 16), (32, 32)):
        leaves = {"encoder.layers.0.up.kernel": jax.random.normal(jax.random.key(0), shape)}
        gradients = {name: jax.random.normal(jax.random.key(1), shape) for name in leaves}
        after, _ = step(optimizer, leaves, optimizer.init(leaves), gradients)
        (change,) = ((leaves[name] - after[name]) / LEARNING_RATE for name in leaves)
        sizes.append(float(jnp.sqrt(jnp.mean(jnp.square(change)))))
    assert max(sizes) / min(sizes) < 1.25, "matrices that widen and those that narrow learn at one rate"


def test_stable_adamw_shrinks_steps_after_a_sudden_gradient():
    leaves = {"embeddings.word.embedding": jnp.zeros((4, 4))}
    small = {"embeddings.word.embedding": jnp.full((4, 4), 1e-3)}
    large = {"embeddings.word.embedding": jnp.full((4, 4), 1.0)}
    moved = {}
    for name in ("adamw", "stable_adamw"):
        optimizer = make(name, weight_decay=0.0)
        now, state = leaves, optimizer.init(leaves)
        for _ in range(50):
            now, state = step(optimizer, now, state, small)
        after, _ = step(optimizer, now, state, large)
        moved[name] = float(jnp.abs(after["embeddings.word.embedding"] - now["embeddings.word.embedding"]).max())
    assert moved["stable_adamw"] < 0.5 * moved["adamw"]


def test_state_is_kept_by_kind_and_name():
    state = make("adafactor").init(params())
    assert set(state.moments[OTHER])
    assert all("/" in name for name in state.moments[OTHER])
    kinds = [set(leaves) for kind, leaves in make("lamb").init(params()).moments.items() if kind != OTHER]
    assert kinds == [set(NAMES)] * 2
