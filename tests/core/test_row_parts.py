"""Parts of a batch: how many there are, and that they change no result."""

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from flaxbert.core.row_parts import CPU_PART_TOKENS, map_row_parts, num_row_parts


@given(rows=st.integers(1, 300), tokens=st.integers(1, 2000))
def test_parts_divide_the_rows_and_are_no_larger_than_they_should(rows, tokens):
    parts = num_row_parts(rows, tokens)
    assert rows % parts == 0
    assert parts == 1 or rows // parts * tokens <= CPU_PART_TOKENS
    if rows * tokens <= CPU_PART_TOKENS:
        assert parts == 1


def test_sizes_that_are_not_known_and_other_backends_are_not_divided(monkeypatch):
    assert num_row_parts(jnp.int32(64), 128) == 1
    assert num_row_parts(64, 128) == 8
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert num_row_parts(64, 128) == 1


def test_a_batch_on_a_mesh_is_not_divided():
    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    with jax.set_mesh(mesh):
        assert num_row_parts(64, 128) == 1


@settings(deadline=None, max_examples=20)
@given(parts=st.sampled_from([1, 2, 3, 6]))
def test_output_is_that_of_the_whole(parts):
    batch = {"a": jnp.arange(24.0).reshape(6, 4), "b": jnp.arange(6)}
    run = lambda rows: {"sum": jnp.sum(rows["a"], axis=1), "pair": (rows["b"] + 1, None)}
    found, expected = map_row_parts(run, batch, parts), run(batch)
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_what_has_no_rows_is_computed_at_once():
    batch = {"a": jnp.arange(24.0).reshape(6, 4)}
    sizes = []

    def run(rows):
        sizes.append(rows["a"].shape[0])
        return jnp.sum(rows["a"])

    assert map_row_parts(run, batch, 2) == jnp.sum(batch["a"])
    assert sizes[-1] == 6
