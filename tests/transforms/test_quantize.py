"""Quantization: the error bound, what is quantized, what is refused, and that the model still works."""

import math

import hypothesis.extra.numpy as hnp
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flaxbert.core.arrays import GroupedArray, QuantizedArray
from flaxbert.core.rules import Rule
from flaxbert.core.trees import flatten_names, stack_layers, unstack_layers
from flaxbert.errors import ConfigError, RuleError, ShapeError, WeightsError
from flaxbert.transforms import (
    DEFAULT_QUANTIZATION_RULES,
    GroupSparsity,
    QuantizationSpec,
    dequantize,
    quantize,
    sparsify,
)
from flaxbert.transforms.rounding import channel_grid, pack_pairs, round_groups, signed_grid

ROUNDING = 1 + 1e-5
"""The bound holds in exact numbers; scale and quotient round at 6e-8, up to 127 times that for the largest code."""

EVERYTHING = (Rule(".*", QuantizationSpec()),)


def tree(num_layers=2, seed=0):
    generator = np.random.default_rng(seed)
    draw = lambda *shape: generator.standard_normal(shape).astype(np.float32)
    layers = {str(i): {"up": {"kernel": draw(8, 12), "bias": draw(12)}} for i in range(num_layers)}
    return {
        "embeddings": {"word": {"embedding": draw(10, 8)}, "position": {"embedding": draw(6, 8)}},
        "encoder": {"layers": layers},
        "classifier": {"kernel": draw(8, 2), "bias": draw(2)},
    }


def assert_bound(weights, codes, scale):
    error = np.abs(weights.astype(np.float64) - codes.astype(np.float64) * scale.astype(np.float64))
    assert (error <= scale.astype(np.float64) / 2 * ROUNDING).all()


WEIGHTS = hnp.arrays(
    np.float32,
    hnp.array_shapes(min_dims=2, max_dims=3, max_side=6),
    elements=st.floats(-(2.0**127), 2.0**127, width=32),
)


@settings(max_examples=200, deadline=None)
@given(WEIGHTS, st.sampled_from([-1, -2]))
def test_every_weight_is_within_half_a_step_of_its_code(weights, axis):
    grid = channel_grid(weights, axis)
    codes, scale = grid.codes(weights).astype(np.int8), grid.scale
    assert scale.dtype == np.float32
    assert scale.shape == tuple(1 if i == weights.ndim + axis else size for i, size in enumerate(weights.shape))
    assert np.abs(codes.astype(int)).max() <= 127
    assert (scale > 0).all()
    assert_bound(weights, codes, scale)


@settings(max_examples=50, deadline=None)
@given(WEIGHTS)
def test_signs_and_the_largest_magnitude_of_a_channel_are_kept(weights):
    codes = channel_grid(weights, -2).codes(weights)
    assert (np.sign(codes) * np.sign(weights) >= 0).all()
    largest = np.abs(weights).max(axis=-2)
    assert (np.abs(codes.astype(int)).max(axis=-2)[largest > 2.0**-100] == 127).all()


@settings(max_examples=100, deadline=None)
@given(
    hnp.arrays(
        np.float32, st.sampled_from([(8, 3), (2, 12, 2), (16, 1)]), elements=st.floats(-(2.0**100), 2.0**100, width=32)
    ),
    st.sampled_from([4, 8]),
)
def test_no_group_errs_more_than_plain_rounding_to_four_bits(weights, size):
    size = size if weights.shape[-2] % size == 0 else 4
    codes, scale, offset = round_groups(weights, -2, size, signed_grid)
    assert not offset.any()
    assert codes.min() >= -8
    assert codes.max() <= 7
    assert np.isfinite(scale).all()
    groups = lambda array: array.reshape(*array.shape[:-2], -1, size, array.shape[-1]).astype(np.float64)
    stored = groups(codes) * scale.astype(np.float64)[..., :, None, :]
    exact = groups(weights)
    step = np.maximum(np.abs(exact).max(axis=-2, keepdims=True) / 7, 1e-37)
    plain = np.rint(exact / step) * step
    errors = lambda array: np.square(array - exact).sum(axis=-2)
    rounding = 1e-9 * np.square(exact).sum(axis=-2)  # of scales and quotients in float32
    assert (errors(stored) <= errors(plain) * (1 + 1e-4) + rounding + 1e-60).all()


def test_codes_are_packed_two_to_a_byte():
    codes = np.array([[-8, 7, 0, -1], [3, -3, 5, 1]], np.int8)
    assert pack_pairs(codes, -1).tolist() == [[0x78, -16], [-45, 0x15]]
    assert pack_pairs(codes.T, -2).tolist() == pack_pairs(codes, -1).T.tolist()


def test_four_bits_take_an_eighth_and_a_scale_per_group():
    weights = np.random.default_rng(0).standard_normal((128, 64)).astype(np.float32)
    params, report = quantize({"up": {"kernel": weights}}, [Rule(".*", QuantizationSpec(4))])
    leaf = params["up"]["kernel"]
    assert isinstance(leaf, GroupedArray)
    assert leaf.group_size == 64
    assert report.bytes_after == 128 * 64 // 2 + 2 * 64 * 4
    relative = np.sqrt(np.mean((np.asarray(leaf.materialize()) - weights) ** 2) / np.mean(weights**2))
    assert relative == pytest.approx(report.leaves[0].rms_relative_error, rel=1e-3)
    assert relative < 0.11
    assert np.array_equal(dequantize(params)["up"]["kernel"], leaf.materialize())
    with pytest.raises(RuleError, match="quantized already"):
        quantize(params, [Rule(".*", QuantizationSpec())])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bits": 5}, "bits is 5"),
        ({"bits": 8, "group_size": 64}, "one scale for each output"),
        ({"bits": 4, "group_size": 2}, "even number of entries, at least 4"),
        ({"bits": 4, "group_size": 33}, "even number of entries, at least 4"),
    ],
)
def test_group_sizes_that_make_no_sense_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        QuantizationSpec(**options)


def test_groups_that_do_not_divide_name_the_leaf_and_a_size_that_does():
    weights = {"up": {"kernel": np.ones((312, 4), np.float32)}, "down": {"kernel": np.ones((1200, 4), np.float32)}}
    with pytest.raises(ShapeError, match=r"'up.kernel' has 312 entries.* have 312, 1200: choose group_size 24, which"):
        quantize(weights, [Rule(".*", QuantizationSpec(4, 64))])
    assert quantize(weights, [Rule(".*", QuantizationSpec(4, 24))])[1].changed
    odd = {"up": {"kernel": np.ones((9, 4), np.float32)}}
    with pytest.raises(ShapeError, match="have 9: no size suits all of them, so let an earlier rule"):
        quantize(odd, [Rule(".*", QuantizationSpec(4, 64))])


def test_default_rules_quantize_the_large_matrices_and_keep_the_rest():
    params, report = quantize(tree())
    quantized = {name for name, leaf in flatten_names(params).items() if isinstance(leaf, QuantizedArray)}
    assert quantized == {"embeddings.word.embedding", "encoder.layers.0.up.kernel", "encoder.layers.1.up.kernel"}
    assert {leaf.name for leaf in report.changed} == quantized
    assert list(flatten_names(params)) == list(flatten_names(tree()))


def test_scales_lie_along_the_outputs_of_kernels_and_the_rows_of_tables_in_every_layer():
    stacked = flatten_names(quantize(stack_layers(tree()))[0])
    assert stacked["encoder.layers.stacked.up.kernel"].scale.shape == (2, 1, 12)
    assert stacked["embeddings.word.embedding"].scale.shape == (10, 1)
    plain = flatten_names(quantize(tree())[0])
    again = flatten_names(unstack_layers(quantize(stack_layers(tree()))[0]))
    for name, leaf in plain.items():
        assert all(
            np.array_equal(a, b) for a, b in zip(jax.tree.leaves(leaf), jax.tree.leaves(again[name]), strict=True)
        )


def test_the_tree_that_goes_in_is_not_changed():
    params = tree()
    before = {name: leaf.copy() for name, leaf in flatten_names(params).items()}
    quantize(params)
    assert all(np.array_equal(before[name], leaf) for name, leaf in flatten_names(params).items())


def test_arrays_stay_where_they_are():
    host, _ = quantize(tree())
    device, _ = quantize(jax.tree.map(jnp.asarray, tree()))
    assert isinstance(flatten_names(host)["encoder.layers.0.up.kernel"].codes, np.ndarray)
    assert isinstance(flatten_names(device)["encoder.layers.0.up.kernel"].codes, jax.Array)


def test_the_report_tells_bytes_and_errors_that_can_be_checked():
    params, report = quantize(tree())
    name = "encoder.layers.0.up.kernel"
    weights, leaf = flatten_names(tree())[name], flatten_names(params)[name]
    told = next(entry for entry in report.leaves if entry.name == name)
    error = leaf.materialize() - weights
    assert (told.bytes_before, told.bytes_after, told.num_parameters) == (8 * 12 * 4, 8 * 12 + 12 * 4, 96)
    assert told.max_relative_error == pytest.approx(np.abs(error).max() / np.abs(weights).max(), rel=1e-5)
    assert told.rms_relative_error == pytest.approx(
        math.sqrt((np.asarray(error) ** 2).sum() / (weights**2).sum()), rel=1e-4
    )
    assert 0 < told.max_relative_error <= 1 / 254 * ROUNDING


def test_dequantize_gives_back_dense_leaves_with_the_same_names_and_quantizes_to_the_same_codes():
    params, _ = quantize(tree())
    dense = dequantize(params)
    assert list(flatten_names(dense)) == list(flatten_names(tree()))
    assert not any(isinstance(leaf, QuantizedArray) for leaf in flatten_names(dense).values())
    again, _ = quantize(dense)
    name = "encoder.layers.1.up.kernel"
    np.testing.assert_array_equal(flatten_names(again)[name].codes, flatten_names(params)[name].codes)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_weights_are_quantized_too(dtype):
    params, _ = quantize({"kernel": jnp.ones((4, 4), dtype)}, EVERYTHING)
    np.testing.assert_allclose(params["kernel"].materialize(), 1.0, rtol=1e-5)


def test_the_zeros_of_a_sparse_leaf_stay_zeros_and_the_report_says_so():
    sparse, _ = sparsify(
        {"kernel": tree()["encoder"]["layers"]["0"]["up"]["kernel"]}, (Rule(".*", GroupSparsity(2, 4)),)
    )
    params, report = quantize(sparse, EVERYTHING)
    assert (params["kernel"].codes[~sparse["kernel"].mask] == 0).all()
    assert report.leaves[0].form == "quantized, zeros kept"
    assert report.leaves[0].kept_share == 0.5
    assert "1 sparse leaves were quantized" in report.notes[0]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite_are_named(value):
    params = tree()
    params["encoder"]["layers"]["1"]["up"]["kernel"][3, 5] = value
    with pytest.raises(WeightsError, match=r"'encoder.layers.1.up.kernel' has 1 weights.*\(3, 5\)"):
        quantize(params)


def test_a_leaf_is_not_quantized_twice():
    params, _ = quantize(tree())
    with pytest.raises(RuleError, match=r"'embeddings.word.embedding' is quantized already"):
        quantize(params)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"dense": {"bias": np.ones(4, np.float32)}}, r"'dense.bias' of shape \(4,\)"),
        ({"norm": {"scale": np.ones((4, 4), np.float32)}}, r"'norm.scale' of shape \(4, 4\)"),
        ({"kernel": np.ones(4, np.float32)}, r"'kernel' of shape \(4,\)"),
        ({"kernel": np.ones((4, 4), np.int32)}, r"'kernel' has dtype int32"),
    ],
)
def test_leaves_that_can_not_be_quantized_are_named(params, message):
    with pytest.raises(ShapeError, match=message):
        quantize(params, EVERYTHING)


def test_rules_are_total_and_their_purpose_is_told():
    with pytest.raises(RuleError, match=r"No quantization rule matches 'embeddings.word.embedding'"):
        quantize(tree(), DEFAULT_QUANTIZATION_RULES[:1])
    with pytest.raises(
        RuleError, match=r"quantization rule 'encoder\\.\(layers\|groups\)\\.\.\*\\.kernel' matches no leaf"
    ):
        quantize({"pooler": {"kernel": np.ones((2, 2), np.float32)}})


@pytest.mark.parametrize("bits", [5, 0, 16, -8])
def test_other_numbers_of_bits_are_refused(bits):
    with pytest.raises(ConfigError, match=f"bits is {bits}"):
        QuantizationSpec(bits=bits)


def test_an_all_zero_channel_stays_zero():
    params, report = quantize({"kernel": np.zeros((3, 2), np.float32)}, EVERYTHING)
    np.testing.assert_array_equal(params["kernel"].materialize(), 0.0)
    assert report.max_relative_error == report.rms_relative_error == 0.0


def test_large_leaves_are_rounded_in_pieces_like_small_ones(monkeypatch):
    generator = np.random.default_rng(0)
    params = {
        "up": {"kernel": generator.standard_normal((32, 40))},
        "word": {"embedding": generator.standard_normal((50, 32))},
    }
    params = jax.tree.map(lambda leaf: leaf.astype(np.float32), params)
    for spec in (
        QuantizationSpec(),
        QuantizationSpec(4, 16),
        QuantizationSpec(3, 16),
        QuantizationSpec(8, scheme="float8"),
    ):
        rules = [Rule(".*", spec)]
        monkeypatch.setattr("flaxbert.transforms.quantized_leaves.PIECE_BYTES", 2**21)
        whole, report = quantize(params, rules)
        monkeypatch.setattr("flaxbert.transforms.quantized_leaves.PIECE_BYTES", 700)
        pieces, again = quantize(params, rules)
        for name, leaf in flatten_names(whole).items():
            for part, array in leaf.stored_parts().items():
                assert np.array_equal(array, getattr(flatten_names(pieces)[name], part)), (name, part)
        for first, second in zip(report.leaves, again.leaves, strict=True):
            assert first.rms_relative_error == pytest.approx(second.rms_relative_error, rel=1e-9)
            assert first.max_relative_error == second.max_relative_error


def test_a_tree_that_is_consumed_is_empty_afterwards_and_gives_the_same():
    expected, report = quantize(tree())
    consumed = tree()
    found, again = quantize(consumed, consume=True)
    assert flatten_names(consumed) == {}
    assert list(flatten_names(found)) == list(flatten_names(expected))
    assert report == again
    for name, leaf in flatten_names(expected).items():
        other = flatten_names(found)[name]
        assert np.array_equal(
            leaf.codes if isinstance(leaf, QuantizedArray) else leaf,
            other.codes if isinstance(other, QuantizedArray) else other,
        )
