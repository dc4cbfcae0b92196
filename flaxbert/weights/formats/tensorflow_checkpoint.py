"""Checkpoints of TensorFlow 1 (tensor bundles), as Google released BERT, ALBERT and ELECTRA, read without TensorFlow.

``NAME.index`` is a sorted table from the names of variables to type, shape, place and checksum; under the empty name it has
a header. ``NAME.data-00000-of-00001`` and so on hold the bytes. ``NAME.meta``, the graph, is not looked at.
"""

import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any

from flaxbert.core.crc32c import unmask
from flaxbert.errors import WeightsError
from flaxbert.weights.formats.protobuf import read_fields
from flaxbert.weights.formats.sorted_table import read_sorted_table
from flaxbert.weights.formats.stored import DTYPES_BY_NAME, StoredTensor, broken, open_file, shape_problem
from flaxbert.weights.formats.tensorflow_names import is_kernel, torch_names

KIND = "TensorFlow checkpoint"
"""How errors call files of this format."""

_TYPES: dict[int, str] = {
    1: "float32",
    2: "float64",
    3: "int32",
    4: "uint8",
    5: "int16",
    6: "int8",
    9: "int64",
    10: "bool",
    14: "bfloat16",
    17: "uint16",
    19: "float16",
    22: "uint32",
    23: "uint64",
}
"""Numpy's names of types by TensorFlow's number."""

_STRING = 7
_MOST_SHARDS = 99_999
_OBJECT_GRAPH = "_CHECKPOINTABLE_OBJECT_GRAPH"


@dataclasses.dataclass
class _Entry:
    """What the index says of one variable."""

    dtype: int = 0
    shape: list[int] = dataclasses.field(default_factory=list)
    shard: int = 0
    offset: int = 0
    size: int = 0
    checksum: int = 0
    is_sliced: bool = False
    rank_is_unknown: bool = False


def read_tensorflow_checkpoint(index: pathlib.Path) -> dict[str, StoredTensor]:
    """Finds the variables of a checkpoint.

    Args:
      index: Its file ``NAME.index``.

    Returns:
      Tensors by torch's name, not yet read; kernels with the axes as torch has them. What an optimizer kept has its name in
      the checkpoint.

    Raises:
      WeightsError: The index or a data file can not be read or is damaged, or the checkpoint is of a kind that is not read.
    """
    try:
        num_shards, entries = _read_index(index)
    except ValueError as error:
        if isinstance(error, WeightsError):
            raise
        raise broken(index, KIND, str(error)) from error
    if _OBJECT_GRAPH in entries:
        raise WeightsError(
            f"{index} is a checkpoint of TensorFlow 2 objects, whose names belong to the program that wrote it. flaxbert "
            "reads those of Google's original code (bert/encoder/layer_0/…); export it to safetensors first."
        )
    names = torch_names(list(entries))
    sizes: dict[int, int] = {}
    tensors: dict[str, StoredTensor] = {}
    for variable, entry in entries.items():
        name = names[variable]
        if name in tensors:
            raise broken(index, KIND, f"two of its variables would be called '{name}'")
        if entry.dtype != _STRING:
            tensors[name] = _tensor(index, variable, name, entry, num_shards, sizes)
    if not tensors:
        raise broken(index, KIND, "it names no tensors")
    return tensors


def _read_index(index: pathlib.Path) -> tuple[int, dict[str, _Entry]]:
    table = read_sorted_table(index, KIND)
    if not table or table[0][0] != b"":
        raise ValueError("its index has no header")
    header = dict(read_fields(table[0][1]))
    num_shards = header.get(1, 0)
    if not isinstance(num_shards, int) or not 1 <= num_shards <= _MOST_SHARDS:
        raise ValueError("its number of data files is not plausible")
    if header.get(2, 0) != 0:
        raise ValueError("it was written on a big-endian machine")
    entries: dict[str, _Entry] = {}
    for key, value in table[1:]:
        try:
            entries[key.decode("utf-8")] = _read_entry(value)
        except UnicodeDecodeError as error:
            raise ValueError("the name of a variable is no UTF-8") from error
    return num_shards, entries


def _number(value: Any) -> int:
    if not isinstance(value, int):
        raise TypeError("bytes stand where a number is due")
    return value


def _read_shape(entry: _Entry, message: Any) -> None:
    if not isinstance(message, bytes):
        raise TypeError("a number stands where a shape is due")
    for number, value in read_fields(message):
        if number == 2 and isinstance(value, bytes):
            entry.shape.append(_number(dict(read_fields(value)).get(1, 0)))
        elif number == 3:
            entry.rank_is_unknown = bool(value)


def _read_entry(message: bytes) -> _Entry:
    entry = _Entry()
    fields: dict[int, Callable[[Any], None]] = {
        1: lambda value: setattr(entry, "dtype", _number(value)),
        2: lambda value: _read_shape(entry, value),
        3: lambda value: setattr(entry, "shard", _number(value)),
        4: lambda value: setattr(entry, "offset", _number(value)),
        5: lambda value: setattr(entry, "size", _number(value)),
        6: lambda value: setattr(entry, "checksum", _number(value)),
        7: lambda _: setattr(entry, "is_sliced", True),
    }
    try:
        for number, value in read_fields(message):
            fields.get(number, lambda _: None)(value)
    except TypeError as error:
        raise ValueError("the entry of a variable is malformed") from error
    return entry


def _tensor(
    index: pathlib.Path, variable: str, name: str, entry: _Entry, num_shards: int, sizes: dict[int, int]
) -> StoredTensor:
    if entry.is_sliced or entry.rank_is_unknown:
        raise WeightsError(
            f"The variable '{variable}' of {index} is stored in slices, which flaxbert does not put together. Save the "
            "checkpoint without a partitioner."
        )
    if entry.dtype not in _TYPES:
        raise WeightsError(
            f"The variable '{variable}' of {index} has TensorFlow's type {entry.dtype}; flaxbert reads "
            f"{', '.join(_TYPES.values())}."
        )
    dtype = DTYPES_BY_NAME[_TYPES[entry.dtype]]
    if entry.shard >= num_shards:
        raise broken(index, KIND, f"'{variable}' lies in data file {entry.shard} of {num_shards}")
    file = index.with_name(f"{index.name.removesuffix('.index')}.data-{entry.shard:05d}-of-{num_shards:05d}")
    if entry.shard not in sizes:
        if not file.is_file():
            raise WeightsError(f"{index.parent} lacks {file.name}, which {index.name} names; copy it there too.")
        with open_file(file) as (_, size):
            sizes[entry.shard] = size
    if problem := shape_problem(entry.shape, entry.size, dtype.itemsize):
        raise broken(index, KIND, f"'{variable}' {problem}")
    tensor = StoredTensor(name, file, dtype, tuple(entry.shape), entry.offset, checksum=unmask(entry.checksum))
    if tensor.num_bytes != entry.size:
        raise broken(
            index, KIND, f"'{variable}' of shape {tensor.shape} has {entry.size} bytes, not {tensor.num_bytes}"
        )
    if entry.offset + entry.size > sizes[entry.shard]:
        raise broken(
            file,
            KIND,
            f"'{variable}' ends at byte {entry.offset + entry.size}, but the file has {sizes[entry.shard]} (truncated)",
        )
    return tensor.transposed() if is_kernel(variable) and len(tensor.shape) > 1 else tensor
