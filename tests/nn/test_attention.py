"""Attention implementations against a float64 loop: masks, packing, gradients, choice of the implementation."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxbert.config import MeshConfig
from flaxbert.core.sharding import build_mesh
from flaxbert.errors import ConfigError
from flaxbert.nn import attention
from flaxbert.nn import softmax_attention as softmax_module
from flaxbert.nn.attention import (
    MOST_ATTENTION_PARTS,
    SPLASH_LENGTH,
    attention_bias,
    choose_attention,
    num_attention_parts,
    splash_attention,
)
from flaxbert.nn.dropout import key_words
from flaxbert.nn.softmax_attention import softmax_attention
from tests.helpers import slow_unless

FLOAT32_TOLERANCE = 5e-6
"""Absolute, for values of size 1: exponents and sums of up to 128 terms that round at 6e-8."""

BFLOAT16_TOLERANCE = 4e-2
"""Absolute, for values of size up to 4: operands, weights and result round at 2**-9 each."""

FLOAT16_TOLERANCE = 6e-3
"""The same for float16, which rounds at 2**-12."""

TOLERANCES = {jnp.float32: FLOAT32_TOLERANCE, jnp.bfloat16: BFLOAT16_TOLERANCE, jnp.float16: FLOAT16_TOLERANCE}

SEGMENTS = {
    "all real": (False, [[1] * 8, [1] * 8]),
    "right padding": (False, [[1] * 5 + [0] * 3, [1] * 8]),
    "left padding": (False, [[0] * 3 + [1] * 5, [0] * 7 + [1]]),
    "holes": (False, [[1, 0, 1, 0, 1, 1, 0, 1], [0, 1, 1, 1, 1, 1, 1, 0]]),
    "packed": (True, [[1, 1, 1, 2, 2, 3, 3, 0], [1] * 4 + [2] * 4]),
    "a row of padding": (False, [[0] * 8, [1] * 8]),
    "a packed row of padding": (True, [[0] * 8, [1, 1, 2, 2, 2, 0, 0, 0]]),
}


def draw(batch, heads, length, width, seed=0):
    generator = np.random.default_rng(seed)
    return [jnp.asarray(generator.standard_normal((batch, heads, length, width)), jnp.float32) for _ in range(3)]


def reference(query, key, value, ids, packed):
    """One query at a time in float64; NaN where a query sees no key."""
    query, key, value = (np.asarray(array, np.float64) for array in (query, key, value))
    mixed = np.full(query.shape, np.nan)
    for row, head, place in np.ndindex(query.shape[:3]):
        visible = (ids[row] != 0) & ((ids[row] == ids[row][place]) if packed else True)
        if visible.any():
            scores = key[row, head, visible] @ query[row, head, place] / np.sqrt(query.shape[-1])
            weights = np.exp(scores - scores.max())
            mixed[row, head, place] = weights / weights.sum() @ value[row, head, visible]
    return mixed


@pytest.mark.parametrize("dtype", TOLERANCES, ids=lambda dtype: dtype.__name__)
@pytest.mark.parametrize("case", SEGMENTS)
def test_every_query_that_sees_a_key_is_right_and_none_is_nan(case, dtype):
    packed, ids = SEGMENTS[case][0], np.asarray(SEGMENTS[case][1], np.int32)
    arrays = [array.astype(dtype) for array in draw(2, 3, 8, 4)]
    mixed = jax.jit(softmax_attention, static_argnums=(5,))(
        *arrays, attention_bias(jnp.asarray(ids), packed), None, 0.0
    )
    assert mixed.dtype == dtype
    mixed, expected = np.asarray(mixed, np.float64), reference(*arrays, ids, packed)
    assert np.isfinite(mixed).all()
    seen = ~np.isnan(expected)
    assert np.abs(mixed - expected)[seen].max() < TOLERANCES[dtype]


def plain(query, key, value, bias):
    scores = (
        jnp.einsum("bhqd,bhkd->bhqk", query, key, precision="highest") / jnp.sqrt(jnp.float32(query.shape[-1])) + bias
    )
    return jnp.einsum("bhqk,bhkd->bhqd", jax.nn.softmax(scores, axis=-1), value, precision="highest")


@pytest.mark.parametrize("dtype", TOLERANCES, ids=lambda dtype: dtype.__name__)
@pytest.mark.parametrize("case", ["right padding", "packed", "a row of padding"])
def test_gradients_equal_those_of_a_plain_float32_reference(case, dtype):
    packed, ids = SEGMENTS[case][0], jnp.asarray(SEGMENTS[case][1], jnp.int32)
    arrays, weights = draw(2, 3, 8, 4), draw(2, 3, 8, 4, seed=1)[0]
    bias = attention_bias(ids, packed)
    weights = weights * (ids != 0).astype(jnp.float32)[:, None, :, None]

    def loss(query, key, value):
        mixed = softmax_attention(query.astype(dtype), key.astype(dtype), value.astype(dtype), bias, None, 0.0)
        return jnp.sum(mixed.astype(jnp.float32) * weights)

    gradients = jax.jit(jax.grad(loss, argnums=(0, 1, 2)))(*arrays)
    expected = jax.jit(jax.grad(lambda *a: jnp.sum(plain(*a, bias) * weights), argnums=(0, 1, 2)))(*arrays)
    for gradient, wanted in zip(gradients, expected, strict=True):
        assert np.isfinite(np.asarray(gradient)).all()
        assert np.abs(np.asarray(gradient) - np.asarray(wanted)).max() < 2 * TOLERANCES[dtype]


def test_hidden_keys_get_no_gradient():
    ids = jnp.asarray([[1, 1, 1, 0, 0, 0, 0, 0]], jnp.int32)
    query, key, value = draw(1, 2, 8, 4)
    loss = lambda key, value: jnp.sum(
        jnp.sin(softmax_attention(query, key, value, attention_bias(ids, False), None, 0.0))
    )
    for gradient in jax.jit(jax.grad(loss, argnums=(0, 1)))(key, value):
        assert (np.asarray(gradient)[:, :, 3:] == 0).all()
        assert (np.asarray(gradient)[:, :, :3] != 0).any()


def test_huge_scores_do_not_overflow():
    arrays = [array * 1e4 for array in draw(1, 1, 8, 4)]
    ids = jnp.ones((1, 8), jnp.int32)
    assert np.isfinite(np.asarray(softmax_attention(*arrays, attention_bias(ids, False), None, 0.0))).all()


def test_the_bias_is_wide_only_where_queries_differ():
    ids = jnp.asarray([[1, 1, 2, 0]], jnp.int32)
    assert attention_bias(ids, False).shape == (1, 1, 1, 4)
    bias = np.asarray(attention_bias(ids, True))
    assert bias.shape == (1, 1, 4, 4)
    assert (bias[0, 0] == 0).tolist() == [
        [True, True, False, False],
        [True, True, False, False],
        [False, False, True, False],
        [False, False, False, False],
    ]
    assert np.isfinite(bias).all()


def test_dropout_drops_weights_at_its_rate_and_keeps_their_mean():
    length, rate = 64, 0.25
    query = key = jnp.zeros((8, 2, length, 4))
    value = jnp.ones((8, 2, length, 4))
    bias = attention_bias(jnp.ones((8, length), jnp.int32), False)
    words = key_words(jax.random.key(0))
    mixed = np.asarray(jax.jit(softmax_attention, static_argnums=(5,))(query, key, value, bias, words, rate))
    # every result is the share of kept weights, scaled up; all columns of a head share their weights
    kept = mixed[..., 0] * (1 - rate)
    assert np.ptp(mixed, axis=-1).max() < 1e-6
    deviation = np.sqrt(rate * (1 - rate) / length)
    assert kept.mean() == pytest.approx(1 - rate, abs=4 * deviation / np.sqrt(kept.size))
    assert kept.std() == pytest.approx(deviation, rel=0.1)


@pytest.mark.parametrize("dtype", TOLERANCES, ids=lambda dtype: dtype.__name__)
def test_gradients_with_dropout_equal_those_of_a_plain_reference_with_the_same_mask(dtype):
    rate, words = 0.3, key_words(jax.random.key(1))
    ids = jnp.asarray(SEGMENTS["packed"][1], jnp.int32)
    arrays, weights = draw(2, 3, 8, 4), draw(2, 3, 8, 4, seed=1)[0]
    bias = attention_bias(ids, True)
    # the identity as values shows the dropped weights themselves, and with them the mask
    identity = jnp.broadcast_to(jnp.eye(8), (2, 3, 8, 8))
    shown = softmax_attention(
        jnp.zeros((2, 3, 8, 8)), jnp.zeros((2, 3, 8, 8)), identity, jnp.zeros_like(bias), words, rate
    )
    mask = shown > 0
    assert 0 < int(mask.sum()) < mask.size

    def reference(query, key, value):
        scores = jnp.einsum("bhqd,bhkd->bhqk", query, key, precision="highest") / jnp.sqrt(jnp.float32(4)) + bias
        kept = jnp.where(mask, jax.nn.softmax(scores, axis=-1) / (1 - rate), 0.0)
        return jnp.sum(jnp.einsum("bhqk,bhkd->bhqd", kept, value, precision="highest") * weights)

    def loss(*arrays):
        mixed = softmax_attention(*(array.astype(dtype) for array in arrays), bias, words, rate)
        return jnp.sum(mixed.astype(jnp.float32) * weights)

    gradients = jax.jit(jax.grad(loss, argnums=(0, 1, 2)))(*arrays)
    expected = jax.jit(jax.grad(reference, argnums=(0, 1, 2)))(*arrays)
    for gradient, wanted in zip(gradients, expected, strict=True):
        assert np.abs(np.asarray(gradient) - np.asarray(wanted)).max() < 3 * TOLERANCES[dtype]  # scaled up by 1 / 0.7


@pytest.mark.parametrize("packed", [False, True])
def test_splash_equals_xla_on_real_tokens_with_its_gradients(packed):
    query, key, value = draw(2, 2, 128, 64)
    ids = jnp.asarray([[1] * 50 + [2 if packed else 1] * 40 + [0] * 38, [1] * 128], jnp.int32)
    weights = draw(2, 2, 128, 64, seed=1)[0] * (ids != 0).astype(jnp.float32)[:, None, :, None]
    bias = attention_bias(ids, packed)

    def loss(attend):
        def weighted(*arrays):
            mixed = attend(*arrays)
            return jnp.sum(mixed * weights), mixed

        return jax.jit(jax.value_and_grad(weighted, argnums=(0, 1, 2), has_aux=True))(query, key, value)

    (_, mixed), gradients = loss(lambda q, k, v: splash_attention(q, k, v, ids, interpret=True))
    (_, expected), expected_gradients = loss(lambda q, k, v: softmax_attention(q, k, v, bias, None, 0.0))
    real = np.asarray(ids) != 0
    assert np.isfinite(np.asarray(mixed)).all()
    assert np.abs(np.asarray(mixed - expected)).swapaxes(1, 2)[real].max() < FLOAT32_TOLERANCE
    for gradient, wanted in zip(gradients, expected_gradients, strict=True):
        assert np.abs(np.asarray(gradient - wanted)).max() < 2 * FLOAT32_TOLERANCE


def test_splash_refuses_lengths_that_its_blocks_do_not_divide():
    with pytest.raises(ConfigError, match="multiples of 128, not 100"):
        splash_attention(*draw(1, 2, 100, 8), jnp.ones((1, 100), jnp.int32), interpret=True)


@pytest.mark.parametrize(
    ("dtype", "length", "drops", "platform", "expected"),
    [
        (jnp.float32, 128, False, "cpu", "xla"),
        (jnp.bfloat16, 4096, False, "cpu", "xla"),
        (jnp.bfloat16, 128, False, "gpu", "cudnn"),
        (jnp.float16, 128, False, "cuda", "cudnn"),
        (jnp.float32, 128, False, "gpu", "xla"),
        (jnp.bfloat16, 128, True, "gpu", "xla"),
        (jnp.bfloat16, SPLASH_LENGTH, False, "tpu", "splash"),
        (jnp.bfloat16, SPLASH_LENGTH // 2, False, "tpu", "xla"),
        (jnp.bfloat16, SPLASH_LENGTH + 1, False, "tpu", "xla"),
        (jnp.bfloat16, SPLASH_LENGTH, True, "tpu", "xla"),
    ],
)
def test_auto_takes_the_kernel_that_can_run(dtype, length, drops, platform, expected):
    for given in (dtype, jnp.dtype(dtype)):
        assert choose_attention("auto", given, length, drops, platform) == expected


@pytest.mark.parametrize(
    ("name", "dtype", "drops", "platform", "message"),
    [
        ("cudnn", jnp.bfloat16, False, "cpu", "needs an NVIDIA GPU"),
        ("cudnn", jnp.float32, False, "gpu", "half precision"),
        ("cudnn", jnp.bfloat16, True, "gpu", "can not drop attention weights"),
        ("splash", jnp.bfloat16, False, "gpu", "needs a TPU"),
        ("splash", jnp.bfloat16, True, "tpu", "can not drop attention weights"),
    ],
)
def test_an_explicit_choice_that_can_not_run_is_refused(name, dtype, drops, platform, message):
    with pytest.raises(ConfigError, match=message):
        choose_attention(name, dtype, 1024, drops, platform)


@pytest.mark.parametrize("name", ["xla", "cudnn", "splash"])
def test_an_explicit_choice_that_can_run_stays(name):
    platform = {"xla": "cpu", "cudnn": "gpu", "splash": "tpu"}[name]
    assert choose_attention(name, jnp.bfloat16, 256, False, platform) == name


@pytest.mark.parametrize("rate", [0.0, 0.3])
@pytest.mark.parametrize("num_parts", slow_unless((3).__eq__, [2, 3, 5]))
def test_a_batch_in_parts_has_the_same_result_gradients_and_masks(num_parts, rate):
    words = key_words(jax.random.key(1)) if rate else None
    arrays, weights = draw(5, 3, 8, 4), draw(5, 3, 8, 4, seed=1)[0]
    bias = attention_bias(jnp.asarray([[1] * 8, [1] * 5 + [0] * 3, [0] * 8, [1] * 8, [1, 0] * 4], jnp.int32), False)

    def run(parts):
        loss = lambda *three: jnp.sum(softmax_attention(*three, bias, words, rate, parts) * weights)
        return softmax_attention(*arrays, bias, words, rate, parts), *jax.grad(loss, argnums=(0, 1, 2))(*arrays)

    for whole, cut in zip(run(1), run(num_parts), strict=True):
        np.testing.assert_allclose(cut, whole, atol=FLOAT32_TOLERANCE)


@pytest.mark.parametrize(
    ("packed", "dtype", "on_mesh"),
    slow_unless(
        {(True, jnp.float32, False), (False, jnp.bfloat16, False), (False, jnp.float32, True)}.__contains__,
        itertools.product([False, True], [jnp.float32, jnp.bfloat16], [False, True]),
        several=True,
    ),
)
def test_a_long_input_in_blocks_has_the_same_result_and_gradients(packed, dtype, on_mesh, monkeypatch):
    arrays, weights = (draw(2, 4, 32, 4, seed=seed) for seed in (0, 1))
    arrays, ids = [array.astype(dtype) for array in arrays], [[1] * 11 + [2] * 21, [1] * 20 + [2] * 7 + [0] * 5]
    bias = attention_bias(jnp.asarray(ids, jnp.int32), packed)

    def run(*arrays):
        loss = lambda *three: jnp.sum(softmax_attention(*three, bias, None, 0.0).astype(jnp.float32) * weights[0])
        return softmax_attention(*arrays, bias, None, 0.0, 2), *jax.grad(loss, argnums=(0, 1, 2))(*arrays)

    whole = jax.jit(run)(*arrays)
    monkeypatch.setattr(softmax_module, "LONG", 16)
    monkeypatch.setattr(softmax_module, "BLOCK", 8)
    if on_mesh:
        spread = jax.NamedSharding(build_mesh(MeshConfig(data=2, tensor=4)), jax.P("data", "tensor"))
        arrays = [jax.device_put(array, spread) for array in arrays]
    for one, cut in zip(whole, jax.jit(lambda *three: run(*three))(*arrays), strict=True):
        np.testing.assert_allclose(cut.astype(jnp.float32), one.astype(jnp.float32), atol=TOLERANCES[dtype])


def test_keys_that_make_no_blocks_are_met_at_once(monkeypatch):
    query, weights = draw(1, 2, 32, 4)[:2]
    key, value = draw(1, 2, 12, 4, seed=1)[:2]
    loss = lambda *three: jnp.sum(softmax_attention(*three, jnp.zeros((1, 1, 1, 12)), None, 0.0) * weights)
    whole = jax.grad(loss, argnums=(0, 1, 2))(query, key, value)
    monkeypatch.setattr(softmax_module, "LONG", 16)
    monkeypatch.setattr(softmax_module, "BLOCK", 8)
    for one, other in zip(whole, jax.grad(loss, argnums=(0, 1, 2))(query, key, value), strict=True):
        np.testing.assert_array_equal(one, other)


def test_the_scores_of_a_long_input_are_never_held_at_once():
    length = softmax_module.LONG
    shapes = [jax.ShapeDtypeStruct((1, 2, length, 4), jnp.float32)] * 3
    bias = jnp.zeros((1, 1, 1, length))
    loss = lambda *three: jnp.sum(softmax_attention(*three, bias, None, 0.0))
    text = str(jax.make_jaxpr(jax.value_and_grad(loss, argnums=(0, 1, 2)))(*shapes))
    assert f"{softmax_module.BLOCK},{length}]" in text
    assert f"{length},{length}]" not in text


def test_a_batch_is_cut_for_the_threads_of_one_cpu_device_only(monkeypatch):
    monkeypatch.setattr(attention, "num_threads", lambda: 4)
    assert [num_attention_parts(batch, "cpu", trains=False) for batch in (1, 3, 64)] == [1, 3, 4]
    assert num_attention_parts(64, "cpu", trains=True) == 4
    assert num_attention_parts(64, "gpu", trains=False) == 1
    with jax.set_mesh(build_mesh(MeshConfig(data=4, tensor=2))):
        assert num_attention_parts(64, "cpu", trains=False) == 1
    monkeypatch.setattr(attention, "num_threads", lambda: 2)
    assert [num_attention_parts(64, "cpu", trains=trains) for trains in (False, True)] == [2, 1]
    monkeypatch.setattr(attention, "num_threads", lambda: 128)
    assert num_attention_parts(64, "cpu", trains=True) == MOST_ATTENTION_PARTS
