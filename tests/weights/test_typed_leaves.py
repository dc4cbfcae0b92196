"""Typed leaves on disk."""

import json

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from flaxbert.core.arrays import GroupedArray, QuantizedArray, SparseArray
from flaxbert.core.low_bit_arrays import ChannelGroupedArray, Float8Array, PackedArray, StaticQuantizedArray
from flaxbert.errors import WeightsError
from flaxbert.weights.readers import read_safetensors_header
from flaxbert.weights.typed_leaves import describe_leaf, leaves_to_json, quantization_config, read_leaf, read_leaves
from flaxbert.weights.writers import write_safetensors

RANDOM = np.random.default_rng(0)
MASK = RANDOM.random((5, 7)) > 0.5
LEAVES = {
    "int8": QuantizedArray(RANDOM.integers(-127, 128, (5, 7)).astype(np.int8), np.ones((1, 7), np.float32) / 3),
    "int4": QuantizedArray(jnp.asarray(RANDOM.integers(-7, 8, (5, 7)), jnp.int4), np.ones((1, 7), np.float32) / 3),
    "groups": GroupedArray(RANDOM.integers(-128, 128, (4, 7)).astype(np.int8), np.ones((2, 7), np.float32) / 3),
    "3 bits": PackedArray(
        RANDOM.integers(0, 256, (3, 4, 7)).astype(np.uint8), *[np.ones((2, 7), ml_dtypes.bfloat16) / 3] * 2
    ),
    "float8": Float8Array(RANDOM.standard_normal((5, 7)).astype(ml_dtypes.float8_e4m3fn), np.ones((1, 7), np.float32)),
    "static": StaticQuantizedArray(
        RANDOM.integers(-127, 128, (5, 7)).astype(np.int8),
        *(np.full(shape, 0.3, np.float32) for shape in ((1, 7), (5, 1), (1, 1), (1, 7))),
    ),
    "channels": ChannelGroupedArray(
        RANDOM.integers(-128, 128, (4, 7)).astype(np.int8), np.ones((2, 7), np.float32), np.ones((8, 1), np.float32)
    ),
    "sparse": SparseArray((RANDOM.standard_normal((5, 7)) * MASK).astype(np.float32), MASK),
}


@pytest.mark.parametrize("name", LEAVES)
@pytest.mark.parametrize("transposed", [False, True])
def test_leaf_comes_back_exactly(tmp_path, name, transposed):
    leaf = LEAVES[name]
    stored = describe_leaf(leaf, "x.weight", transposed)
    (tmp_path / "flaxbert_leaves.json").write_text(json.dumps(leaves_to_json({"x.kernel": stored})))
    parts = {
        place.tensor: place.encode(np.asarray(getattr(leaf, part)))
        for part, place in stored.parts.items()
        if place.tensor is not None
    }
    write_safetensors(tmp_path / "x.safetensors", parts)
    tensors, _ = read_safetensors_header(tmp_path / "x.safetensors")
    found = read_leaf("x.kernel", read_leaves(tmp_path)["x.kernel"], tensors, np.asarray(leaf.materialize()))
    assert type(found) is type(leaf)
    for part, array in leaf.stored_parts().items():
        assert getattr(found, part).dtype == array.dtype
        np.testing.assert_array_equal(np.asarray(getattr(found, part)), np.asarray(array))


def test_masks_take_one_bit():
    place = describe_leaf(LEAVES["sparse"], "x.weight", True).parts["mask"]
    assert place.encode(MASK).nbytes == 5
    np.testing.assert_array_equal(place.decode(place.encode(MASK)), MASK)


def test_config_note_counts_quantized_leaves():
    stored = {name: describe_leaf(leaf, name, False) for name, leaf in LEAVES.items()}
    assert quantization_config(stored) == {
        "quant_method": "flaxbert",
        "weights": ["float8_e4m3fn", "int4", "int8", "uint3"],
        "num_quantized_tensors": 7,
    }
    assert quantization_config({"sparse": stored["sparse"]}) is None


def test_folder_without_typed_leaves(tmp_path):
    assert read_leaves(tmp_path) == {}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"format_version": 2, "leaves": {}}, "format_version 2, but this flaxbert reads 1"),
        ({"format_version": 1}, "is malformed"),
        ({"format_version": 1, "leaves": {"a": {"kind": "sparse"}}}, "is malformed"),
        ({"format_version": 1, "leaves": {"a": {"kind": "binary", "parts": {}}}}, "'a' is a binary leaf; .* Update"),
    ],
)
def test_malformed_lists(tmp_path, content, message):
    (tmp_path / "flaxbert_leaves.json").write_text(json.dumps(content))
    with pytest.raises(WeightsError, match=message):
        read_leaves(tmp_path)


def test_missing_and_wrong_parts(tmp_path):
    stored = describe_leaf(LEAVES["int8"], "x.weight", False)
    with pytest.raises(WeightsError, match=r"'x.kernel@codes' has no tensor 'x.weight.codes'"):
        read_leaf("x.kernel", stored, {}, None)
    parts = {"x.weight.codes": np.zeros((5, 6), np.int8), "x.weight.scale": np.ones((1, 7), np.float32)}
    write_safetensors(tmp_path / "x.safetensors", parts)
    tensors, _ = read_safetensors_header(tmp_path / "x.safetensors")
    with pytest.raises(WeightsError, match=r"'x.kernel@codes' has shape \(5, 6\), but .* says \(5, 7\)"):
        read_leaf("x.kernel", stored, tensors, None)
