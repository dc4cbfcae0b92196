"""Every transform over every family and task: names, shapes, shardings, scan, jit, and logits that move by little."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flaxbert.architecture import Execution
from flaxbert.config import MeshConfig
from flaxbert.core.arrays import QuantizedArray, SparseArray, is_typed
from flaxbert.core.rules import Rule, match_rules
from flaxbert.core.sharding import build_mesh, param_shardings, place_batch, shard
from flaxbert.core.trees import (
    flatten_names,
    flatten_parts,
    leaf_kinds,
    leaf_names,
    same_structure,
    size_bytes,
    stack_layers,
    unflatten_parts,
    unstack_layers,
)
from flaxbert.families import FAMILIES, get_family
from flaxbert.families.graph import abstract_params, forward, graph_definition
from flaxbert.transforms import (
    GroupSparsity,
    MagnitudeSparsity,
    QuantizationSpec,
    default_quantization_rules,
    default_sparsity_rules,
    densify,
    dequantize,
    quantize,
    sparsify,
)
from tests.helpers import slow_unless
from tests.nn.models import run, small_batch, small_config, small_params

INT8_MOVEMENT = 0.1
"""Largest movement of a logit relative to the largest logit: two layers of products that each err by about 1 %."""

INT4_MOVEMENT = 0.5
"""The same for 4 bits: groups of four err by about 7 %, the tables too."""

SCAN_MOVEMENT = 0.02
"""The same between scanned and unrolled layers: another order of float32 sums tips a token's code to its neighbour."""

EXACT = 1e-5
"""The same where both sides compute with the same float32 numbers, in another order."""

TRANSFORMS = {
    "int8": lambda params: quantize(params)[0],
    "int4": lambda params: quantize(params, default_quantization_rules(QuantizationSpec(4, 4)))[0],
    "2:4": lambda params: sparsify(params)[0],
    "magnitude": lambda params: sparsify(params, default_sparsity_rules(MagnitudeSparsity(0.3)))[0],
    "global magnitude": lambda params: sparsify(params, default_sparsity_rules(MagnitudeSparsity(0.3, scope="global")))[
        0
    ],
    "2:4 then int8": lambda params: quantize(sparsify(params)[0])[0],
}
DENSE = {"int8": dequantize, "int4": dequantize, "2:4 then int8": dequantize}
CASES = [(family.model_type, task) for family in FAMILIES.values() for task in family.architectures]
KINDS = ("bert", "deberta-v2")
"""Families whose trees differ in kind: layers alone, tables beside the layers; int8 of all is in ``tests/families``."""

RUN_CASES = [case for case in CASES if case[0] == "bert" or (case[0] in KINDS and case[1] == "fill-mask")]


def result(params, config, task, batch, scanned=False):
    output = run(params, batch, config=config, task=task, execution=Execution(scan_layers=scanned))
    return np.asarray(output.last_hidden_state if output.logits is None else output.logits)


def movement(actual, expected):
    assert actual.shape == expected.shape
    assert np.isfinite(actual).all()
    return np.abs(actual - expected).max() / np.abs(expected).max()


BOTH = [("2:4 then int8", family, "sequence-classification") for family in KINDS]


@pytest.mark.parametrize(
    ("name", "family", "task"),
    [
        *slow_unless(
            lambda case: case[1] == "bert" and case[2] in ("fill-mask", "sequence-classification"),
            [(name, *case) for name in ("int8", "int4", "2:4") for case in RUN_CASES],
            several=True,
        ),
        *slow_unless(lambda case: case[1] == "bert", BOTH, several=True),
    ],
)
def test_a_transformed_model_runs_like_its_dense_form(name, family, task):
    config = small_config(family, task)
    params = small_params(config, task)
    transformed = TRANSFORMS[name](params)
    assert leaf_names(transformed) == leaf_names(params)
    assert leaf_kinds(transformed)
    batch = small_batch(config, task=task)
    dense = DENSE.get(name, densify)(transformed)
    assert not any(map(is_typed, flatten_names(dense).values()))
    actual = result(transformed, config, task, batch)
    assert movement(actual, result(dense, config, task, batch)) < (INT8_MOVEMENT if "int8" in name else EXACT)
    if name in ("int8", "int4"):
        bound = INT8_MOVEMENT if name == "int8" else INT4_MOVEMENT
        assert movement(actual, result(params, config, task, batch)) < bound


@pytest.mark.parametrize("family", slow_unless("bert".__eq__, KINDS))
@pytest.mark.parametrize("name", TRANSFORMS)
def test_stacking_commutes_with_transforms_and_scan_runs_typed_leaves(name, family):
    config, task = small_config(family), "sequence-classification"
    params = small_params(config, task)
    transformed = TRANSFORMS[name](params)
    stacked = TRANSFORMS[name](stack_layers(params))
    again = flatten_parts(unstack_layers(stacked))
    parts = flatten_parts(transformed)
    assert again.keys() == parts.keys()
    assert all(np.array_equal(again[part], array) for part, array in parts.items())
    batch = small_batch(config)
    scanned = result(stacked, config, task, batch, scanned=True)
    assert movement(scanned, result(transformed, config, task, batch)) < (SCAN_MOVEMENT if "int8" in name else EXACT)


@pytest.mark.parametrize("family", slow_unless("bert".__eq__, KINDS))
@pytest.mark.parametrize("name", ["int8", "int4", "2:4"])
def test_transformed_models_give_the_same_on_a_mesh(name, family):
    config, task = small_config(family, num_attention_heads=4), "sequence-classification"
    transformed = TRANSFORMS[name](small_params(config, task))
    mesh = build_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    leaf_axes = get_family(family).parameter_axes(leaf_names(transformed))
    placed = shard(transformed, param_shardings(transformed, leaf_axes, mesh))
    batch = small_batch(config)
    with jax.set_mesh(mesh):
        on_mesh = result(placed, config, task, place_batch(batch, mesh))
    bound = SCAN_MOVEMENT if name == "int8" else EXACT
    assert movement(on_mesh, result(transformed, config, task, batch)) < bound


@pytest.mark.parametrize("name", ["int8", "int4", "2:4"])
def test_a_model_that_lies_on_a_mesh_is_transformed_where_it_lies(name):
    config, task = small_config(num_attention_heads=4), "sequence-classification"
    params = small_params(config, task)
    mesh = build_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    leaf_axes = get_family("bert").parameter_axes(leaf_names(params))
    placed = TRANSFORMS[name](shard(params, param_shardings(params, leaf_axes, mesh)))
    expected = TRANSFORMS[name](params)
    shardings = flatten_parts(param_shardings(expected, leaf_axes, mesh))
    for part, array in flatten_parts(placed).items():
        np.testing.assert_array_equal(array, flatten_parts(expected)[part])
        assert array.sharding.is_equivalent_to(shardings[part], array.ndim), part


SAME_DIRECTION = 0.98
"""Smallest cosine of two gradients: that of the int8 model is taken at activations that err by about 1 %."""


@pytest.mark.parametrize("family", slow_unless("bert".__eq__, KINDS))
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_what_stays_float_in_a_quantized_model_trains_like_in_its_dense_form(family, precision):
    config, task = small_config(family), "sequence-classification"
    quantized = stack_layers(quantize(small_params(config, task))[0])
    graphdef = graph_definition(config, task, Execution(scan_layers=True, precision=precision))
    kinds, parts = leaf_kinds(quantized), flatten_parts(quantized)
    trainable = {name: part for name, part in parts.items() if "@" not in name}
    frozen = {name: part for name, part in parts.items() if "@" in name}
    dense_frozen = {name: leaf for name, leaf in flatten_parts(dequantize(quantized)).items() if name not in trainable}
    batch = small_batch(config)

    def gradients(frozen, kinds):
        def loss(trainable):
            params = unflatten_parts({**trainable, **frozen}, kinds)
            return jnp.sum(jnp.sin(forward(graphdef, params, batch).logits))

        return jax.jit(jax.grad(loss))(trainable)

    actual, expected = gradients(frozen, kinds), gradients(dense_frozen, {})
    assert actual.keys() == expected.keys()
    for name, gradient in actual.items():
        first, second = np.asarray(gradient, np.float64).ravel(), np.asarray(expected[name], np.float64).ravel()
        if not name.endswith(
            ("attention.key.bias", "attention.position_key.bias")
        ):  # has no gradient but rounding: softmax does not see it
            assert np.linalg.norm(second) > 0, name
            assert first @ second / np.linalg.norm(first) / np.linalg.norm(second) > SAME_DIRECTION, name


def random_params(config, task, seed):
    generator = np.random.default_rng(seed)
    return jax.tree.map(
        lambda leaf: (generator.standard_normal(leaf.shape) * 10.0 ** generator.integers(-4, 3)).astype(np.float32),
        abstract_params(config, task),
    )


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    case=st.sampled_from(CASES),
    name=st.sampled_from(sorted(TRANSFORMS)),
    num_layers=st.integers(1, 3),
    num_heads=st.integers(1, 3),
    head_dim=st.sampled_from([8, 16]),
    mlp=st.sampled_from([4, 12, 40]),
    token_types=st.integers(0, 2),
    scanned=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_transforms_keep_every_tree_sound(case, name, num_layers, num_heads, head_dim, mlp, token_types, scanned, seed):
    family, task = case
    config = small_config(
        family,
        task,
        vocab_size=23,
        hidden_size=num_heads * head_dim,
        num_hidden_layers=num_layers,
        num_attention_heads=num_heads,
        intermediate_size=mlp,
        max_position_embeddings=9,
        type_vocab_size=token_types,
    )
    params = random_params(config, task, seed)
    params = stack_layers(params) if scanned else params
    transformed = TRANSFORMS[name](params)
    before, after = flatten_names(params), flatten_names(transformed)
    assert list(before) == list(after)
    for leaf_name, leaf in after.items():
        assert (leaf.shape, leaf.dtype) == (before[leaf_name].shape, before[leaf_name].dtype)
        if is_typed(leaf):
            leaf.validate(leaf_name)
            dense = np.asarray(leaf.materialize())
            largest = np.abs(before[leaf_name]).max()
            assert np.abs(dense).max() <= largest * (8 / 7 if name == "int4" else 1) * (1 + 1e-6)
            if isinstance(leaf, SparseArray):
                np.testing.assert_array_equal(dense, np.where(leaf.mask, before[leaf_name], 0))
            if isinstance(leaf, QuantizedArray) and name == "int8":
                assert np.abs(dense - before[leaf_name]).max() <= largest / 254 * (1 + 1e-4)
        else:
            assert leaf is before[leaf_name]
    kinds, parts = leaf_kinds(transformed), flatten_parts(transformed)
    assert same_structure(unflatten_parts(parts, kinds), transformed)
    chosen = match_rules(parts, [Rule(r".*@(codes|packed|scale|mask)", True), Rule(".*", False)], purpose="freezing")
    assert {part for part, frozen in chosen.items() if frozen} == {
        part for part in parts if part.endswith(("@codes", "@packed", "@scale", "@mask"))
    }
    assert get_family(family).parameter_axes(list(after)).keys() == after.keys()
    if name in ("int8", "int4", "2:4 then int8"):
        assert size_bytes(transformed) < size_bytes(params)


def test_group_sizes_that_do_not_divide_are_told_by_leaf_for_a_whole_model():
    config = small_config(intermediate_size=42)
    with pytest.raises(ValueError, match=r"'encoder.layers.0.feed_forward.down.kernel'.* 42 entries .* 2:4"):
        sparsify(random_params(config, "fill-mask", 0), default_sparsity_rules(GroupSparsity(2, 4)))
