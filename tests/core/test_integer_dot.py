import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxbert.core import integer_dot as module
from flaxbert.core.integer_dot import has_mixed_products, integer_dot
from tests.helpers import slow_unless


@pytest.fixture(params=["mixed", "signed"], autouse=True, scope="module")
def processor(request):
    """Runs every test as on a processor with and without fast products of mixed bytes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "has_mixed_products", lambda: request.param == "mixed")
        jax.clear_caches()
        yield
    jax.clear_caches()


def draw(shape, seed):
    return np.random.default_rng(seed).integers(-128, 128, shape).astype(np.int8)


def exact(tokens, codes, axis):
    return tokens.astype(np.int64) @ (codes if axis == 0 else codes.T).astype(np.int64)


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("lead", slow_unless(lambda lead: lead in ((), (2, 3)), [(), (1,), (5,), (2, 3), (16, 128)]))
@pytest.mark.parametrize("size", [(64, 24), (7, 3), pytest.param((768, 40), marks=pytest.mark.slow)])
def test_equals_the_exact_integer_product(axis, lead, size):
    tokens, codes = draw((*lead, size[0]), 0), draw(size if axis == 0 else size[::-1], 1)
    for run in (integer_dot, jax.jit(integer_dot, static_argnums=2)):
        result = run(jnp.asarray(tokens), jnp.asarray(codes), axis)
        assert result.dtype == jnp.int32
        np.testing.assert_array_equal(result, exact(tokens, codes, axis))


@pytest.mark.parametrize("sign", [-128, 127])
def test_longest_sum_does_not_overflow(sign):
    tokens, codes = np.full((8, 65_000), -128, np.int8), np.full((65_000, 8), sign, np.int8)
    np.testing.assert_array_equal(integer_dot(jnp.asarray(tokens), jnp.asarray(codes), 0), exact(tokens, codes, 0))


@pytest.mark.parametrize("axes", [(0, None), (1, None), (0, 0), (None, 1)])
def test_maps_over_a_batch_of_either_operand(axes):
    batch = 3
    lhs, rhs = [6, 16], [16, 10]
    for shape, axis in zip((lhs, rhs), axes, strict=True):
        if axis is not None:
            shape.insert(axis, batch)
    tokens, codes = draw(lhs, 2), draw(rhs, 3)
    result = jax.jit(jax.vmap(lambda left, right: integer_dot(left, right, 0), in_axes=axes))(tokens, codes)
    for index in range(batch):
        left = tokens if axes[0] is None else np.take(tokens, index, axes[0])
        right = codes if axes[1] is None else np.take(codes, index, axes[1])
        np.testing.assert_array_equal(result[index], exact(left, right, 0))


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("processor\t: 0\nflags\t\t: fpu avx2 avx512_vnni\n", True),
        ("flags : fpu avx512_vnni amx_int8", False),
        ("flags : fpu amx_int8", False),
        ("flags : fpu avx2 avx_vnni", False),
        ("Features : asimddp", False),
        (None, False),
    ],
)
def test_finds_the_instructions_in_what_linux_says(tmp_path, monkeypatch, content, expected):
    file = tmp_path / "cpuinfo"
    if content is not None:
        file.write_text(content, "utf-8")
    monkeypatch.setattr("flaxbert.core.processor._PROCESSOR_FILE", file)
    has_mixed_products.cache_clear()
    assert has_mixed_products() == expected
    has_mixed_products.cache_clear()
