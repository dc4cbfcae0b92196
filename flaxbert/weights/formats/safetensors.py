"""Safetensors files, with every byte range checked before it is used.

The format (github.com/huggingface/safetensors): 8 bytes little-endian length of the header, a JSON header with dtype,
shape and byte range of each tensor, then the tensors' bytes without holes.
"""

import json
import pathlib
import reprlib
from typing import Any

import ml_dtypes
import numpy as np

from flaxbert.errors import WeightsError
from flaxbert.weights.formats.stored import LARGEST_NUMBER, StoredTensor, are_sizes, broken, open_file, shape_problem

SINGLE_FILE = "model.safetensors"
"""Name of the weights file of a folder that is not sharded."""

INDEX_FILE = "model.safetensors.index.json"
"""Name of the file that says which shard holds which tensor."""

LARGEST_HEADER_BYTES = 100_000_000
"""Headers above this size are refused, as the reference implementation does."""

DTYPES: dict[str, Any] = {
    "BOOL": np.bool_,
    "U8": np.uint8,
    "I8": np.int8,
    "I16": np.int16,
    "U16": np.uint16,
    "I32": np.int32,
    "U32": np.uint32,
    "I64": np.int64,
    "U64": np.uint64,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "F8_E4M3": ml_dtypes.float8_e4m3fn,
    "F32": np.float32,
    "F64": np.float64,
}
"""Types of safetensors that are read, by their name in the header."""

_KIND = "safetensors"


def _read_header(file: pathlib.Path) -> tuple[dict[str, Any], int, int]:
    with open_file(file) as (stream, size):
        start = stream.read(8)
        if len(start) < 8:
            raise broken(file, _KIND, f"it has {size} bytes and so not even a header length")
        header_bytes = int.from_bytes(start, "little")
        if header_bytes > LARGEST_HEADER_BYTES:
            raise broken(file, _KIND, f"its header claims {header_bytes} bytes, more than {LARGEST_HEADER_BYTES}")
        if header_bytes + 8 > size:
            raise broken(file, _KIND, f"its header claims {header_bytes} bytes, but the file has {size}")
        text = stream.read(header_bytes)
    try:
        header = json.loads(text, object_pairs_hook=_without_repetition)
    except (ValueError, RecursionError) as error:  # no UTF-8, no JSON, numbers of thousands of digits, deep nesting
        raise broken(file, _KIND, f"its header is no JSON ({error})") from error
    if not isinstance(header, dict):
        raise broken(file, _KIND, "its header is no JSON object")
    return header, 8 + header_bytes, size


def _without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"'{name}' stands twice in one object")
        found[name] = value
    return found


def _stored_tensor(file: pathlib.Path, name: str, entry: Any, data_start: int, size: int) -> tuple[StoredTensor, int]:
    if not isinstance(entry, dict) or not are_sizes(entry.get("shape")):
        raise broken(file, _KIND, f"the header entry of tensor '{name}' is malformed")
    offsets: Any = entry.get("data_offsets")
    kind = entry.get("dtype")
    if not are_sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise broken(file, _KIND, f"tensor '{name}' has the byte range {reprlib.repr(offsets)}")
    if not isinstance(kind, str) or kind not in DTYPES:
        shown = kind if isinstance(kind, str) else reprlib.repr(kind)
        raise WeightsError(f"Tensor '{name}' of {file} has type {shown}; flaxbert reads {', '.join(DTYPES)}.")
    dtype, end = np.dtype(DTYPES[kind]), data_start + offsets[1]
    if end > size:
        raise broken(file, _KIND, f"tensor '{name}' ends at byte {end}, but the file has {size} (truncated)")
    tensor = StoredTensor(name, file, dtype, tuple(entry["shape"]), data_start + offsets[0])
    if problem := shape_problem(tensor.shape, LARGEST_NUMBER, dtype.itemsize):
        raise broken(file, _KIND, f"tensor '{name}' {problem}")
    if tensor.num_bytes != offsets[1] - offsets[0]:
        raise broken(
            file,
            _KIND,
            f"tensor '{name}' of shape {tensor.shape} and type {kind} needs {tensor.num_bytes} bytes, "
            f"but has {offsets[1] - offsets[0]}",
        )
    return tensor, end


def read_safetensors_header(file: pathlib.Path) -> tuple[dict[str, StoredTensor], dict[str, str]]:
    """Reads and checks the header of one file, without its tensors.

    Args:
      file: A safetensors file.

    Returns:
      Tensors by name, and the metadata.

    Raises:
      WeightsError: The file can not be read, is truncated or oversized, or its header is inconsistent.
    """
    header, data_start, size = _read_header(file)
    metadata = header.pop("__metadata__", {})
    tensors: dict[str, StoredTensor] = {}
    ranges: list[tuple[int, int, str]] = []
    for name, entry in header.items():
        tensors[name], end = _stored_tensor(file, name, entry, data_start, size)
        ranges.append((tensors[name].offset, end, name))
    position = data_start
    for begin, end, name in sorted(ranges):
        if begin != position:
            raise broken(
                file, _KIND, f"tensor '{name}' starts at byte {begin} where {position} is due (overlap or hole)"
            )
        position = end
    if position != size:
        raise broken(file, _KIND, f"{size - position} bytes follow the last tensor")
    metadata = metadata if isinstance(metadata, dict) else {}
    return tensors, {key: value for key, value in metadata.items() if isinstance(value, str)}
