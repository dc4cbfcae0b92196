"""Counts and bytes of trees and folders."""

import numpy as np
import pytest

from flaxbert.comparison.storage import describe_products, measure_tree, weights_bytes
from flaxbert.core.arrays import QuantizedArray, SparseArray
from flaxbert.weights.load import load_checkpoint

CODES = np.array([[1, 0], [2, -3]], np.int8)
TREE = {
    "a": {"kernel": QuantizedArray(CODES, np.ones((1, 2), np.float32)), "bias": np.array([0.0, 1.0], np.float32)},
    "b": {"kernel": SparseArray(np.ones((2, 2), np.float32), np.array([[True, False], [False, False]]))},
}


def test_leaves_are_counted_by_form_with_all_their_parts():
    size = measure_tree(TREE, "cpu")
    assert (size.num_parameters, size.num_nonzero) == (10, 3 + 1 + 1)
    assert size.size_bytes == (4 + 8) + 8 + (16 + 4)
    by_form = {(entry.form, entry.dtype): entry for entry in size.storage}
    assert set(by_form) == {("quantized", "int8"), ("dense", "float32"), ("sparse", "float32")}
    quantized = by_form["quantized", "int8"]
    assert (quantized.num_leaves, quantized.num_parameters, quantized.size_bytes) == (1, 4, 12)
    assert quantized.bits_per_weight == 24.0
    assert quantized.computes == "int8 products"


@pytest.mark.parametrize(
    ("form", "expected"),
    [
        ("dense", "bfloat16 products"),
        ("quantized", "int8 products"),
        ("grouped", "stored only: written out for each product, bfloat16 products"),
        ("sparse", "stored only: multiplied dense, bfloat16 products"),
    ],
)
@pytest.mark.parametrize("platform", ["cpu", "gpu", "tpu"])
def test_products_are_told_in_words(form, expected, platform):
    assert describe_products(form, platform, "bfloat16") == expected


def test_files_of_weights_are_those_that_are_read(models, tmp_path):
    sizes = {name: weights_bytes(load_checkpoint(folder).folder) for name, folder in models.items()}
    assert sizes["int8"] < sizes["float"] < sizes["sparse"]
    (tmp_path / "pytorch_model.bin").write_bytes(b"x" * 10)
    assert weights_bytes(tmp_path) == 10
    (tmp_path / "model.safetensors").write_bytes(b"x" * 7)
    (tmp_path / "2_Dense").mkdir()
    (tmp_path / "2_Dense" / "model.safetensors").write_bytes(b"x" * 5)
    assert weights_bytes(tmp_path) == 12
