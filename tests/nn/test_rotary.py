"""Rotary positions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxbert.errors import ConfigError
from flaxbert.nn.rotary import check_head_dim, rotate, rotation


def test_scores_depend_on_distances_only():
    values = jax.random.normal(jax.random.key(0), (2, 1, 3, 5, 8))
    places = jnp.arange(5, dtype=jnp.int32)[None]
    scores = []
    for start in (0, 31):
        turned = rotation(places + jnp.int32(start), 8, 100.0)
        scores.append(jnp.einsum("bhqd,bhkd->bhqk", rotate(values[0], turned), rotate(values[1], turned)))
    np.testing.assert_allclose(scores[0], scores[1], atol=1e-5)


def test_the_gradient_turns_back():
    values = jax.random.normal(jax.random.key(0), (1, 2, 3, 6))
    turned = rotation(jnp.array([[0, 5, 900]], jnp.int32), 6, 10.0)
    back = jax.vjp(lambda array: rotate(array, turned), values)[1](rotate(values, turned))[0]
    np.testing.assert_allclose(back, values, atol=1e-5)
    np.testing.assert_allclose(rotate(values, turned)[:, :, 0], values[:, :, 0], atol=0)


def test_odd_heads_are_refused():
    check_head_dim(6)
    with pytest.raises(ConfigError, match="a head has 7, an odd number"):
        check_head_dim(7)
