"""Pooling in numpy is that of the network."""

import jax.numpy as jnp
import numpy as np
import pytest

from flaxbert.nn.heads import pool
from flaxbert.nn.host_pooling import pool_tokens


@pytest.mark.parametrize("mode", ["cls", "mean", "max", "mean_sqrt_len_tokens", "weightedmean", "lasttoken"])
def test_pooling_in_numpy_is_that_of_the_network(mode):
    random = np.random.default_rng(0)
    hidden = random.standard_normal((3, 5, 4)).astype(np.float32)
    mask = np.array([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [0, 1, 1, 0, 0]], np.int32)
    np.testing.assert_allclose(
        pool_tokens(hidden, mask, [mode]), pool(jnp.asarray(hidden), jnp.asarray(mask), mode), rtol=1e-5, atol=1e-6
    )
