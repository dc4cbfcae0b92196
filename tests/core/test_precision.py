"""The precision policy."""

import jax.numpy as jnp
import pytest

from flaxbert.core.precision import Precision
from flaxbert.errors import ConfigError


@pytest.mark.parametrize(
    ("name", "dtype", "scaled"),
    [("float32", jnp.float32, False), ("bfloat16", jnp.bfloat16, False), ("float16", jnp.float16, True)],
)
def test_names_give_types_and_only_float16_needs_a_loss_scale(name, dtype, scaled):
    assert Precision(name).compute_dtype == dtype
    assert Precision(name).needs_loss_scale is scaled


@pytest.mark.parametrize("name", ["bf16", "float64", "bfloat_16", ""])
def test_an_unknown_name_lists_the_known_ones(name):
    with pytest.raises(ConfigError, match=f"'{name}'.*float32, bfloat16, float16"):
        Precision(name)


def test_a_near_miss_is_suggested():
    with pytest.raises(ConfigError, match="Did you mean 'bfloat16'"):
        Precision("bfloat_16")
