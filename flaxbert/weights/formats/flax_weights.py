"""``flax_model.msgpack``, the weights of transformers' former Flax classes.

A nested dictionary of arrays. An array is a msgpack extension that holds shape, type and bytes, again as msgpack; arrays of
more than a gigabyte are dictionaries of flat chunks. The names are torch's but for the last word, and kernels are
``[in, out]`` where torch has ``[out, in]``.
"""

import dataclasses
import io
import math
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from flaxbert.errors import WeightsError
from flaxbert.weights.formats.msgpack import MsgpackReader, Payload
from flaxbert.weights.formats.stored import (
    DTYPES_BY_NAME,
    StoredTensor,
    Window,
    are_sizes,
    broken,
    open_file,
    shape_problem,
)

KIND = "Flax msgpack"
"""How errors call files of this format."""

_ARRAY, _SCALAR = 1, 3
_LONGEST_PATH = 1000
_MOST_CHUNKS = 1000
_CHUNKED = "__msgpack_chunked_array__"
_LAST_WORDS = {"kernel": "weight", "scale": "weight", "embedding": "weight"}


def torch_name(path: str) -> str:
    """Returns torch's name of a parameter.

    Args:
      path: The names that lead to it, joined by ``/``.
    """
    *parts, last = path.removeprefix("params/").split("/")
    return ".".join([*parts, _LAST_WORDS.get(last, last)])


def as_torch(path: str, tensor: StoredTensor) -> StoredTensor:
    """Returns a parameter of Flax under torch's name and with torch's axes.

    Args:
      path: The names that lead to it, joined by ``/``.
      tensor: Where it lies, as Flax stored it.
    """
    is_kernel = path.rsplit("/", 1)[-1] == "kernel" and len(tensor.shape) > 1
    named = dataclasses.replace(tensor, name=torch_name(path))
    return named.transposed() if is_kernel else named


def read_flax_file(file: pathlib.Path) -> dict[str, StoredTensor]:
    """Finds the tensors of a file of ``flax.serialization``.

    Args:
      file: The file.

    Returns:
      Tensors by torch's name, not yet read; kernels with the axes as torch has them.

    Raises:
      WeightsError: The file can not be read, is damaged, or holds what is no tree of arrays.
    """
    with open_file(file) as (stream, size):
        window = Window(stream, file, KIND, 0, size)
        tree = MsgpackReader(window).read()
        if not isinstance(tree, dict):
            raise broken(file, KIND, "it holds no dictionary")
        if window.position != size:
            raise broken(file, KIND, f"{size - window.position} bytes follow the dictionary")
        tensors: dict[str, StoredTensor] = {}
        for path, leaf in _leaves(file, tree):
            name = torch_name(path)
            if name in tensors:
                raise broken(file, KIND, f"two of its arrays would be called '{name}'")
            tensors[name] = as_torch(path, _tensor(stream, file, name, path, leaf))
    if not tensors:
        raise broken(file, KIND, "it holds no arrays")
    return tensors


def _leaves(file: pathlib.Path, tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        path = f"{prefix}/{key}" if prefix else key
        if len(path) > _LONGEST_PATH:  # names repeat what they stand in, so long ones would multiply
            raise broken(file, KIND, f"the names that lead to an array have more than {_LONGEST_PATH} letters")
        if isinstance(value, dict) and _CHUNKED not in value:
            yield from _leaves(file, value, path)
        else:
            yield path, value


def _tensor(stream: io.BufferedReader, file: pathlib.Path, name: str, path: str, leaf: Any) -> StoredTensor:
    if isinstance(leaf, dict):
        return _chunked(stream, file, name, path, leaf)
    if not isinstance(leaf, Payload) or leaf.kind not in (_ARRAY, _SCALAR):
        kind = f"an extension of type {leaf.kind}" if isinstance(leaf, Payload) else f"a {type(leaf).__name__}"
        raise broken(file, KIND, f"'{path}' is {kind}, not an array")
    window = Window(stream, file, KIND, leaf.offset, leaf.offset + leaf.num_bytes)
    value = MsgpackReader(window).read()
    if not isinstance(value, list) or len(value) != 3 or window.position != window.end:
        raise broken(file, KIND, f"array '{path}' is not shape, type and bytes")
    shape, kind, data = value
    if isinstance(kind, Payload) and kind.num_bytes <= 32:
        kind = (
            Window(stream, file, KIND, kind.offset, kind.offset + kind.num_bytes).take(kind.num_bytes).decode("latin-1")
        )
    if not isinstance(data, Payload) or data.kind is not None or not isinstance(kind, str):
        raise broken(file, KIND, f"array '{path}' is not shape, type and bytes")
    if kind not in DTYPES_BY_NAME:
        raise WeightsError(
            f"Array '{path}' of {file} has type {kind[:40]}; flaxbert reads {', '.join(DTYPES_BY_NAME)}."
        )
    dtype: np.dtype = DTYPES_BY_NAME[kind]
    if problem := shape_problem(shape, data.num_bytes, dtype.itemsize):
        raise broken(file, KIND, f"array '{path}' {problem}")
    tensor = StoredTensor(name, file, dtype, tuple(shape), data.offset)
    if tensor.num_bytes != data.num_bytes:
        raise broken(
            file, KIND, f"array '{path}' of shape {tensor.shape} has {data.num_bytes} bytes, not {tensor.num_bytes}"
        )
    return tensor


def _numbered(value: Any) -> list[Any] | None:
    """Returns the values of a dictionary with the keys 0 to n-1, as Flax writes lists."""
    if not isinstance(value, dict) or any(str(number) not in value for number in range(len(value))):
        return None
    return [value[str(number)] for number in range(len(value))]


def _chunked(
    stream: io.BufferedReader, file: pathlib.Path, name: str, path: str, leaf: Mapping[str, Any]
) -> StoredTensor:
    shape, chunks = _numbered(leaf.get("shape")), _numbered(leaf.get("chunks"))
    if (
        not are_sizes(shape)
        or not chunks
        or len(chunks) > _MOST_CHUNKS
        or any(isinstance(chunk, dict) for chunk in chunks)
    ):
        raise broken(file, KIND, f"array '{path}' in chunks lacks its shape or its chunks")
    parts = [_tensor(stream, file, name, f"{path}/chunks", chunk) for chunk in chunks]
    num_bytes = sum(part.num_bytes for part in parts)
    if problem := shape_problem(shape, num_bytes, parts[0].dtype.itemsize):
        raise broken(file, KIND, f"array '{path}' {problem}")
    tensor = dataclasses.replace(
        parts[0], shape=tuple(shape or ()), pieces=tuple((part.offset, part.num_bytes) for part in parts)
    )
    if any(part.dtype != tensor.dtype for part in parts) or tensor.num_bytes != num_bytes:
        raise broken(
            file, KIND, f"the {len(parts)} chunks of array '{path}' do not make {math.prod(tensor.shape)} values"
        )
    return tensor
