"""Rows whose tokens lie on several devices equal rows on one: attention, windows, picked tokens, whole networks."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxbert.architecture import Execution
from flaxbert.config import MeshConfig
from flaxbert.core.sharding import build_mesh, param_shardings, place_batch, shard
from flaxbert.core.trees import flatten_names, leaf_names
from flaxbert.errors import MeshError
from flaxbert.families import FAMILIES, get_family
from flaxbert.families.modernbert_encoder import ModernBertOptions
from flaxbert.nn import attention, local_attention
from flaxbert.nn.attention import attend, splash_attention
from flaxbert.nn.local_attention import attend_near, make_window, visible_bias
from flaxbert.nn.rotary import Rotation
from flaxbert.nn.softmax_attention import softmax_attention
from flaxbert.nn.split_length import first_token, mix_over_devices, pick_tokens, sequence_ways
from flaxbert.nn.tokens import Tokens
from tests.helpers import slow_unless
from tests.nn.models import run, small_config, small_params

BATCH, HEADS, LENGTH, WIDTH = 4, 2, 16, 8

SAME_RESULTS = 2e-5
"""Absolute, for results of size up to 5: the same float32 numbers in another order."""

PACKED = np.repeat([[1, 2, 3, 0]], BATCH, axis=0).repeat([6, 1, 7, 2], axis=1).astype(np.int32)
PADDED = (np.arange(LENGTH) < np.array([[16], [5], [9], [1]])).astype(np.int32)

MESH = MeshConfig(data=1, fsdp=2, sequence=4)


def tokens_of(segment_ids, packed):
    ids = jnp.asarray(segment_ids)
    return Tokens(input_ids=ids, segment_ids=ids, packed=packed)


def arrays(seed=0, length=LENGTH):
    return jax.random.normal(jax.random.key(seed), (3, BATCH, HEADS, length, WIDTH))


def compile_and_run(function, *inputs):
    """Runs a function compiled in half the time; for arrays this small the speed of the code does not matter."""
    return jax.jit(function).lower(*inputs).compile({"xla_backend_optimization_level": 0})(*inputs)


def value_and_gradients(mix, inputs, mesh=None):
    """Returns mixed values and gradients of queries, keys and values, on one device or a mesh."""
    weights = jax.random.normal(jax.random.key(9), inputs.shape[1:])

    def loss(inputs):
        mixed = mix(*inputs)
        return jnp.sum(jnp.sin(mixed) * weights), mixed

    if mesh is None:
        return compile_and_run(jax.grad(loss, has_aux=True), inputs)
    with jax.set_mesh(build_mesh(mesh)):
        return compile_and_run(jax.grad(loss, has_aux=True), inputs)


def assert_same(mix, inputs, real, mesh=MESH):
    (ours, mixed), (expected, reference) = value_and_gradients(mix, inputs, mesh), value_and_gradients(mix, inputs)
    visible = np.broadcast_to(real[:, None, :, None], reference.shape)
    np.testing.assert_allclose(np.asarray(mixed)[visible], np.asarray(reference)[visible], atol=SAME_RESULTS)
    np.testing.assert_allclose(ours, expected, atol=SAME_RESULTS)
    assert np.abs(expected).max() > 0.01


@pytest.mark.slow  # by default tests/train/test_mesh.py trains with it
@pytest.mark.parametrize(
    ("segment_ids", "packed", "rate", "scored"),
    [
        (PACKED, True, 0.3, BATCH),
        (PACKED, True, 0.0, 0),
        (PADDED, False, 0.3, 0),
        (PADDED, False, 0.0, 1),
    ],
)
def test_attention_over_devices_equals_attention_on_one(segment_ids, packed, rate, scored):
    tokens, key = tokens_of(segment_ids, packed), jax.random.key(4) if rate else None
    scores = jax.random.normal(jax.random.key(2), (scored, HEADS, LENGTH, LENGTH)) if scored else None

    def mix(query, keys, values):
        return attend(query, keys, values, tokens, Execution(), rate, key, position_scores=scores)

    assert_same(mix, arrays(), np.ones_like(segment_ids, bool), MeshConfig(data=2, sequence=2, tensor=2))


@pytest.mark.slow
def test_batch_and_heads_that_a_mesh_does_not_divide_stay_whole():
    inputs, tokens = arrays()[:, :3], tokens_of(PACKED[:3], True)
    mix = lambda query, keys, values: attend(query, keys, values, tokens, Execution(), 0.0, None)
    real = np.ones((3, LENGTH), bool)
    assert_same(mix, inputs, real, MeshConfig(data=1, fsdp=1, sequence=2, tensor=4))


@pytest.mark.slow  # by default ModernBERT is computed over devices
@pytest.mark.parametrize(
    ("segment_ids", "packed", "radius", "blocks"),
    [
        (PACKED, True, 1, True),
        (PACKED, True, 1, False),
        (PADDED, False, 2, True),
        (PADDED, False, 4, False),
        (PACKED, True, 5, False),
    ],
)
def test_windows_over_devices_equal_windows_on_one(segment_ids, packed, radius, blocks, monkeypatch):
    if blocks:
        monkeypatch.setattr(local_attention, "SMALLEST_BLOCK", 2)
        monkeypatch.setattr(local_attention, "LENGTH_OF_BLOCKS", 1)
    tokens = tokens_of(segment_ids, packed)

    def mix(query, keys, values):
        if sequence_ways() > 1:
            return attend_near(query, keys, values, tokens, radius, 0.0, None)
        bias = visible_bias(tokens.segment_ids, tokens.segment_ids, 0, radius, packed)
        return softmax_attention(query, keys, values, bias, None, 0.0)

    real = segment_ids != 0

    def of_real(query, keys, values):  # what padding gathers is never read
        return mix(query, keys, values) * real[:, None, :, None].astype(np.float32)

    assert_same(of_real, arrays(), real)


@pytest.mark.slow
def test_dropped_weights_in_windows_are_those_of_masked_scores():
    tokens, key, radius = tokens_of(PACKED, True), jax.random.key(3), 2

    def mix(query, keys, values):
        if sequence_ways() > 1:
            return attend_near(query, keys, values, tokens, radius, 0.3, key)
        bias = visible_bias(tokens.segment_ids, tokens.segment_ids, 0, radius, True)
        return attention.attend_with_bias(query, keys, values, bias, 0.3, key)

    assert_same(mix, arrays(), PACKED != 0)


def test_a_window_is_left_to_the_devices_only_where_tokens_are_split():
    ids, turned = jnp.asarray(PACKED), Rotation(jnp.ones((1, 1, LENGTH, 2)), jnp.zeros((1, 1, LENGTH, 2)))
    assert not make_window(ids, True, turned, 2).is_split
    with jax.set_mesh(build_mesh(MESH)):
        assert make_window(ids, True, turned, 2).is_split
        assert not make_window(ids, True, turned, LENGTH).is_split
    with jax.set_mesh(build_mesh(MeshConfig())):
        assert not make_window(ids, True, turned, 2).is_split


@pytest.mark.parametrize("slots", slow_unless({8}.__contains__, [8, 3]))
def test_tokens_are_picked_from_the_devices_that_hold_them(slots):
    hidden = arrays()[0].reshape(BATCH, LENGTH, -1)
    positions = jnp.asarray(np.random.default_rng(0).integers(0, LENGTH, (BATCH, slots)), jnp.int32)

    def loss(hidden):
        picked = pick_tokens(hidden, positions)
        return jnp.sum(jnp.sin(picked)), (picked, first_token(hidden))

    expected = compile_and_run(jax.grad(loss, has_aux=True), hidden)
    with jax.set_mesh(build_mesh(MESH)):
        ours = compile_and_run(jax.grad(loss, has_aux=True), hidden)
    for mine, other in zip(jax.tree.leaves(ours), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(mine, other, atol=SAME_RESULTS)


@pytest.mark.slow
def test_the_splash_kernel_runs_on_every_device_of_a_mesh():
    length = 256
    ids = jnp.asarray(np.repeat([[1, 2, 3]], 2, axis=0).repeat([90, 130, 36], axis=1), jnp.int32)
    inputs = jax.random.normal(jax.random.key(0), (3, 2, 2, length, 64))

    def mix(query, key, value, query_ids, key_ids, scores, part):
        return splash_attention(query, key, value, key_ids, interpret=True, query_ids=query_ids)

    reference = attend(*inputs, tokens_of(ids, True), Execution(attention="xla"), 0.0, None)
    for axes in ({"data": 2, "sequence": 2, "tensor": 2}, {"data": 4, "tensor": 2}):
        with jax.set_mesh(build_mesh(MeshConfig(**axes))):
            mixed = jax.jit(functools.partial(mix_over_devices, mix))(*inputs, ids)
        np.testing.assert_allclose(mixed, reference, atol=SAME_RESULTS)


NEAR = {"modernbert": {"options": ModernBertOptions(global_every=2, local_attention=4)}}
"""A layer of each kind, and windows that hide something of rows this short."""


def packed_batch(config, rows=4):
    random = np.random.default_rng(0)
    segments = PACKED[:rows]
    ids = np.where(segments > 0, random.integers(5, config.vocab_size, segments.shape), config.pad_token_id)
    return {
        "input_ids": ids.astype(np.int32),
        "segment_ids": segments,
        "position_ids": np.concatenate([np.arange(size) for size in (6, 1, 7, 2)])
        .astype(np.int32)[None]
        .repeat(rows, 0),
        "masked_positions": random.integers(0, 14, (rows, 8)).astype(np.int32),
    }


REFUSED = ("deberta", "deberta-v2")


@pytest.mark.parametrize("family", slow_unless({"modernbert"}.__contains__, sorted(set(FAMILIES) - {*REFUSED})))
def test_every_family_gives_the_results_and_gradients_of_one_device(family):
    sizes = {"num_attention_heads": 4, "hidden_size": 16, "max_position_embeddings": 16, **NEAR.get(family, {})}
    config = small_config(family, "fill-mask", **sizes)
    params, batch = small_params(config, "fill-mask"), packed_batch(config)

    def loss(params, batch):
        output = run(params, batch, config=config, task="fill-mask")
        return jnp.sum(jnp.sin(output.logits)), output.logits

    compute = functools.partial(compile_and_run, jax.grad(loss, has_aux=True))
    gradients, logits = compute(params, batch)
    mesh = build_mesh(MeshConfig(data=1, fsdp=2, sequence=4))
    axes = get_family(family).parameter_axes(leaf_names(params))
    with jax.set_mesh(mesh):
        ours, on_mesh = compute(shard(params, param_shardings(params, axes, mesh)), place_batch(batch, mesh))
    np.testing.assert_allclose(on_mesh, logits, atol=SAME_RESULTS)
    expected = flatten_names(gradients)
    for name, gradient in flatten_names(ours).items():
        largest = max(1.0, float(np.abs(expected[name]).max()))
        np.testing.assert_allclose(gradient, expected[name], atol=5 * SAME_RESULTS * largest, err_msg=name)


@pytest.mark.parametrize("family", slow_unless({"deberta"}.__contains__, REFUSED))
def test_distances_of_all_pairs_can_not_be_split(family):
    config = small_config(family, "fill-mask", num_attention_heads=4, hidden_size=16, max_position_embeddings=16)
    params, batch = small_params(config, "fill-mask"), packed_batch(config)
    with jax.set_mesh(build_mesh(MESH)), pytest.raises(MeshError, match=r"mesh.sequence 4 .*set mesh.sequence 1"):
        run(params, batch, config=config, task="fill-mask")


@pytest.mark.parametrize(
    ("family", "task"),
    [
        *(
            pytest.param(*pair, marks=pytest.mark.slow)
            for pair in [
                ("bert", "pretraining"),
                ("bert", "sequence-classification"),
                ("bert", "question-answering"),
                ("bert", "relation-classification"),
                ("roberta", "sequence-classification"),
                ("modernbert", "sequence-classification"),
                ("electra", "replaced-token-detection"),
            ]
        ),
    ],
)
def test_every_kind_of_head_gives_the_results_of_one_device(family, task):
    config = small_config(family, task, num_attention_heads=4, hidden_size=16, max_position_embeddings=16)
    params, batch = small_params(config, task), packed_batch(config)
    if task == "pretraining":
        batch["first_positions"] = np.repeat([[0, 6, 7]], BATCH, axis=0).astype(np.int32)
    else:
        mask = PADDED.astype(np.int32)
        batch = {"input_ids": np.where(mask, batch["input_ids"], config.pad_token_id), "attention_mask": mask}
        if task == "relation-classification":
            batch["entity_mask"] = np.repeat([[0, 1, 0, 2]], BATCH, axis=0).repeat(4, axis=1).astype(np.int32)
    expected = run(params, batch, config=config, task=task)
    mesh = build_mesh(MeshConfig(data=2, sequence=2, tensor=2))
    with jax.set_mesh(mesh):
        ours = run(params, place_batch(batch, mesh), config=config, task=task)
    for name in ("logits", "next_sentence_logits", "pooled"):
        if getattr(expected, name) is not None:
            np.testing.assert_allclose(getattr(ours, name), getattr(expected, name), atol=SAME_RESULTS, err_msg=name)
