"""Reading safetensors: equal to the reference implementation, and every damage named."""

import json

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from flaxbert.errors import WeightsError
from flaxbert.weights.formats.safetensors import read_safetensors_header

TENSORS = {
    "half": np.arange(6, dtype=np.float16).reshape(2, 3) / 7,
    "brain": (np.arange(6).reshape(3, 2) / 7).astype(ml_dtypes.bfloat16),
    "single": np.arange(5, dtype=np.float32) / 7,
    "double": np.arange(4, dtype=np.float64) / 7,
    "codes": np.arange(-3, 4, dtype=np.int8),
    "mask": np.array([True, False]),
    "none": np.zeros((0, 4), np.float32),
    "scalar": np.array(3.5, np.float32),
}


def _header(header, body=b""):
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + body


def test_reads_what_the_reference_writes(tmp_path):
    file = tmp_path / "model.safetensors"
    safetensors.numpy.save_file(TENSORS, file, metadata={"format": "pt"})
    found, metadata = read_safetensors_header(file)
    assert metadata == {"format": "pt"}
    assert found.keys() == TENSORS.keys()
    for name, expected in TENSORS.items():
        array = found[name].read()
        floating = name in ("half", "brain", "single", "double", "none", "scalar")
        assert array.dtype == (np.float32 if floating else expected.dtype)
        assert array.shape == expected.shape
        np.testing.assert_array_equal(array, expected.astype(array.dtype))
        assert array.flags.writeable


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "has 0 bytes"),
        (b"\x10\x00", "has 2 bytes"),
        ((10**6).to_bytes(8, "little") + b"{}", "claims 1000000 bytes, but the file has 10"),
        ((2**63).to_bytes(8, "little") + b"{}", "more than 100000000"),
        ((4).to_bytes(8, "little") + b"{xx}", "header is no JSON"),
        ((2).to_bytes(8, "little") + b"[]", "no JSON object"),
        ((4).to_bytes(8, "little") + b"\xff\xfe\xfd\xfc", "header is no JSON"),
        (_header({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}, b"\0" * 7), "truncated"),
        (_header({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}, b"\0" * 9), "1 bytes follow"),
        (
            _header({"a": {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}}, b"\0" * 8),
            "needs 12 bytes, but has 8",
        ),
        (_header({"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 8]}}, b"\0" * 8), "'a' is malformed"),
        (_header({"a": {"dtype": "F32", "shape": [2], "data_offsets": [8, 0]}}, b"\0" * 8), r"byte range \[8, 0\]"),
        (_header({"a": {"dtype": "F32", "shape": [2]}}, b"\0" * 8), "byte range None"),
        (_header({"a": 3}), "'a' is malformed"),
        (_header({"a": {"dtype": "F8_E5M2", "shape": [2], "data_offsets": [0, 2]}}, b"\0\0"), "type F8_E5M2"),
        (
            _header(
                {
                    "a": {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]},
                    "b": {"dtype": "U8", "shape": [4], "data_offsets": [2, 6]},
                },
                b"\0" * 6,
            ),
            "overlap or hole",
        ),
        (_header({"a": {"dtype": ["F32"], "shape": [2], "data_offsets": [0, 8]}}, b"\0" * 8), r"type \['F32'\]"),
        (_header({"a": {"dtype": "F32", "shape": [0] * 33, "data_offsets": [0, 0]}}), "33 axes"),
        (_header({"a": {"dtype": "F32", "shape": [0, 2**61], "data_offsets": [0, 0]}}), "no file can hold"),
        (_header({"a": {"dtype": "F32", "shape": [2**80], "data_offsets": [0, 8]}}, b"\0" * 8), "'a' is malformed"),
        (_header({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 2**63]}}, b"\0" * 8), "byte range"),
        ((5000).to_bytes(8, "little") + b"9" * 5000, "header is no JSON"),
        ((60000).to_bytes(8, "little") + b"[" * 60000, "header is no JSON"),
        ((14).to_bytes(8, "little") + b'{"a":1,"a":{}}', "'a' stands twice"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
    ],
)
def test_damage_is_named(tmp_path, content, message):
    file = tmp_path / "model.safetensors"
    file.write_bytes(content)
    with pytest.raises(WeightsError, match=message) as caught:
        read_safetensors_header(file)
    assert str(file) in str(caught.value)


def test_every_truncation_is_an_error(tmp_path):
    whole = tmp_path / "whole.safetensors"
    safetensors.numpy.save_file(TENSORS, whole)
    content = whole.read_bytes()
    file = tmp_path / "model.safetensors"
    for size in range(len(content)):
        file.write_bytes(content[:size])
        with pytest.raises(WeightsError):
            read_safetensors_header(file)


def test_file_that_shrinks_after_the_header_was_read(tmp_path):
    file = tmp_path / "model.safetensors"
    safetensors.numpy.save_file({"a": np.ones(8, np.float32)}, file)
    found, _ = read_safetensors_header(file)
    file.write_bytes(file.read_bytes()[:-4])
    with pytest.raises(WeightsError, match="ends early"):
        found["a"].read()
