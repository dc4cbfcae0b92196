"""What stands for torch's objects while one of its pickles is interpreted: storages, tensors, parameters."""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from flaxbert.errors import WeightsError
from flaxbert.weights.formats.pickle_machine import Callee, PickledMap, Stateful
from flaxbert.weights.formats.stored import (
    DTYPES_BY_NAME,
    LARGEST_NUMBER,
    MOST_AXES,
    StoredTensor,
    are_sizes,
    broken,
    shape_problem,
    span,
    strides_in_order,
)

KIND = "PyTorch"
"""How errors call files of this format."""

_STORAGES: dict[str, str] = {
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
}

_TYPE_ALIASES: dict[str, str] = {"float": "float32", "double": "float64", "half": "float16", "long": "int64"}

_WRAPPERS = ("state_dict", "model_state_dict", "model", "module")
_MOST_WRAPPERS = 2


@dataclasses.dataclass(frozen=True)
class StorageType:
    """A class of storages.

    Attributes:
      dtype: Type of the elements; None for storages of bare bytes.
    """

    dtype: np.dtype | None


@dataclasses.dataclass(frozen=True)
class Storage:
    """A stretch of elements that tensors share.

    Attributes:
      key: Its name in the file.
      dtype: Type of the elements; bare bytes are uint8.
      num_elements: How many there are.
      start: The first element that belongs to it, where it is a view of another one.
    """

    key: str
    dtype: np.dtype
    num_elements: int
    start: int = 0


@dataclasses.dataclass(frozen=True)
class TorchTensor:
    """A tensor as its pickle describes it.

    Attributes:
      storage: Where its elements are.
      dtype: Type of the elements.
      offset: The first element, counted from the start of the storage.
      shape: Sizes of the axes.
      strides: Steps along the axes, in elements.
    """

    storage: Storage
    dtype: np.dtype
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def _are_axes(values: Any) -> bool:
    return isinstance(values, list | tuple) and len(values) <= MOST_AXES and are_sizes(values)


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any, dtype: Any = None) -> Stateful:
    if not isinstance(storage, Storage):
        raise ValueError("a tensor has no storage")
    if dtype is not None and not isinstance(dtype, np.dtype):
        raise ValueError("a tensor has no type")
    if not are_sizes([offset]) or not _are_axes(shape) or not _are_axes(strides) or len(shape) != len(strides):
        raise ValueError("offset, shape or strides of a tensor are malformed")
    return Stateful(TorchTensor(storage, dtype or storage.dtype, offset, tuple(shape), tuple(strides)))


def _rebuild_tensor(arguments: tuple[Any, ...]) -> Stateful:
    storage, offset, shape, strides = arguments[:4]
    return _tensor(storage, offset, shape, strides)


def _rebuild_tensor_v3(arguments: tuple[Any, ...]) -> Stateful:
    storage, offset, shape, strides, _, _, dtype = arguments[:7]
    return _tensor(storage, offset, shape, strides, dtype)


def _rebuild_parameter(arguments: tuple[Any, ...]) -> Any:
    if not arguments or not isinstance(unwrap(arguments[0]), TorchTensor):
        raise ValueError("a parameter holds no tensor")
    return arguments[0]


def _rebuild_from_type(arguments: tuple[Any, ...]) -> Any:
    function, _, values = arguments[:3]
    if not isinstance(function, Callee) or function.name.endswith("_type_v2") or not isinstance(values, tuple):
        raise ValueError("a tensor of a class of its own holds no tensor")
    return function.function(values)


def _ordered_dict(arguments: tuple[Any, ...]) -> Stateful:
    if len(arguments) > 1:
        raise ValueError("it takes one list of pairs")
    pairs = arguments[0] if arguments else []
    if not isinstance(pairs, list) or not all(isinstance(pair, list | tuple) and len(pair) == 2 for pair in pairs):
        raise ValueError("it takes a list of pairs")
    found = PickledMap([(pair[0], pair[1]) for pair in pairs])
    pairs.clear()  # a file that makes dictionaries of one list again and again gets empty ones, and no copies
    return Stateful(found)


def _size(arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    (shape,) = arguments
    if not _are_axes(shape):
        raise ValueError("sizes are malformed")
    return tuple(shape)


def _build_names() -> dict[tuple[str, str], Any]:
    callees = {
        ("torch._utils", "_rebuild_tensor"): _rebuild_tensor,
        ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
        ("torch._utils", "_rebuild_tensor_v3"): _rebuild_tensor_v3,
        ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
        ("torch._utils", "_rebuild_parameter_with_state"): _rebuild_parameter,
        ("torch._tensor", "_rebuild_from_type_v2"): _rebuild_from_type,
        ("collections", "OrderedDict"): _ordered_dict,
        ("torch", "Size"): _size,
        ("torch", "device"): lambda _: None,
    }
    names: dict[tuple[str, str], Any] = {
        (module, name): Callee(f"{module}.{name}", function) for (module, name), function in callees.items()
    }
    for name, dtype in _STORAGES.items():
        names["torch", name] = names["torch.cuda", name] = StorageType(DTYPES_BY_NAME[dtype])
    names["torch.storage", "UntypedStorage"] = names["torch", "UntypedStorage"] = StorageType(None)
    names |= {("torch", name): dtype for name, dtype in DTYPES_BY_NAME.items()}
    names |= {("torch", alias): DTYPES_BY_NAME[name] for alias, name in _TYPE_ALIASES.items()}
    inert = StorageType(None)  # the class that _rebuild_from_type_v2 is given, which is not looked at
    return names | {("torch", "Tensor"): inert, ("torch.nn.parameter", "Parameter"): inert}


NAMES: dict[tuple[str, str], Any] = _build_names()
"""Everything that a pickle of tensors may name, by module and name."""


class Storages:
    """The storages that a pickle refers to."""

    def __init__(self) -> None:
        self.by_key: dict[str, Storage] = {}

    def find(self, identity: Any) -> Storage:
        """Returns what stands for a storage.

        Args:
          identity: The persistent id: ``("storage", type, key, device, number of elements)`` and, in the old format, a view.

        Raises:
          ValueError: The id is malformed, or gives a storage another type or size than before.
        """
        if not isinstance(identity, tuple) or len(identity) not in (5, 6) or identity[0] != "storage":
            raise ValueError("only storages can be referred to")
        _, kind, key, _, num_elements = identity[:5]
        if not isinstance(kind, StorageType) or not isinstance(key, str) or not are_sizes([num_elements]):
            raise ValueError("type, name or size of a storage is malformed")
        storage = Storage(key, kind.dtype or DTYPES_BY_NAME["uint8"], num_elements)
        if self.by_key.setdefault(key, storage) != storage:
            raise ValueError(f"storage '{key}' has several types or sizes")
        view = identity[5] if len(identity) == 6 else None
        if view is None:
            return storage
        if not isinstance(view, tuple) or len(view) != 3 or not are_sizes(view[1:]):
            raise ValueError("the view of a storage is malformed")
        if view[1] + view[2] > num_elements:
            raise ValueError("the view of a storage reaches beyond it")
        return dataclasses.replace(storage, start=view[1])


def unwrap(value: Any) -> Any:
    """Returns what is behind a value on which attributes may be set.

    Args:
      value: Any value of a pickle.
    """
    return value.value if isinstance(value, Stateful) else value


def find_tensors(file: pathlib.Path, content: Any) -> dict[str, TorchTensor]:
    """Finds the state dictionary in what a file holds: the whole of it, or one entry such as ``state_dict``.

    Args:
      file: The file, for messages.
      content: What its pickle holds.

    Returns:
      Tensors by name.

    Raises:
      WeightsError: There is no state dictionary, or it names a tensor twice.
    """
    entries = _entries(content)
    for _ in range(_MOST_WRAPPERS):
        if entries is None or any(isinstance(value, TorchTensor) for _, value in entries):
            break
        inside = [value for key, value in entries if key in _WRAPPERS and isinstance(value, PickledMap)]
        if len(inside) != 1:
            break
        entries = _entries(inside[0])
    tensors: dict[str, TorchTensor] = {}
    for key, value in entries or []:
        if not isinstance(value, TorchTensor):
            continue
        if not isinstance(key, str):
            raise broken(file, KIND, f"its state dictionary names a tensor by a {type(key).__name__}, not by a text")
        if key in tensors:
            raise broken(file, KIND, f"its state dictionary names the tensor '{key[:80]}' twice")
        tensors[key] = value
    if not tensors:
        keys = ", ".join(key for key, _ in (entries or [])[:8] if isinstance(key, str))
        raise WeightsError(
            f"{file} holds no state dictionary of tensors ({f'it has the entries {keys[:300]}' if keys else 'nothing with names'})."
            " Save model.state_dict() and nothing around it, or one entry 'state_dict' or 'model'."
        )
    return tensors


def _entries(value: Any) -> list[tuple[Any, Any]] | None:
    value = unwrap(value)
    return [(key, unwrap(entry)) for key, entry in value.pairs] if isinstance(value, PickledMap) else None


def place_tensor(
    file: pathlib.Path, name: str, tensor: TorchTensor, places: Mapping[str, tuple[int, int]], file_bytes: int
) -> StoredTensor:
    """Says where a tensor lies, having checked that it stays inside its storage.

    Args:
      file: The file.
      name: The tensor's name.
      tensor: The tensor.
      places: First byte and number of bytes of each storage.
      file_bytes: Size of the file; a tensor of more bytes (a broadcast one) is refused.

    Returns:
      The place.

    Raises:
      WeightsError: The tensor reaches beyond its storage, or its storage is not in the file.
    """
    storage, itemsize = tensor.storage, tensor.dtype.itemsize
    if storage.key not in places:
        raise broken(file, KIND, f"tensor '{name}' lies in storage '{storage.key}', which the file does not have")
    if problem := shape_problem(tensor.shape, file_bytes, itemsize):
        raise broken(file, KIND, f"tensor '{name}' {problem}")
    start, num_bytes = places[storage.key]
    first = (storage.start * storage.dtype.itemsize) + tensor.offset * itemsize
    end = first + span(tensor.shape, tensor.strides) * itemsize
    if max(end, first) > num_bytes or end >= LARGEST_NUMBER:
        raise broken(
            file, KIND, f"tensor '{name}' ends at byte {end} of storage '{storage.key}', which has {num_bytes}"
        )
    placed = StoredTensor(name, file, tensor.dtype, tensor.shape, start + first)
    steps = zip(tensor.shape, tensor.strides, strides_in_order(tensor.shape), strict=True)
    if 0 in tensor.shape or all(size == 1 or step == due for size, step, due in steps):
        return placed
    return dataclasses.replace(placed, strides=tensor.strides)
