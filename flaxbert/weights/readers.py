"""Reading tensors from safetensors files, one or sharded, with every byte range checked before it is used.

The format (github.com/huggingface/safetensors): 8 bytes little-endian length of the header, a JSON header with dtype,
shape and byte range of each tensor, then the tensors' bytes without holes.
"""

import dataclasses
import json
import math
import pathlib
from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np

from flaxbert.errors import WeightsError

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
    "F32": np.float32,
    "F64": np.float64,
}
"""Types of safetensors that are read, by their name in the header."""

_PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json", "model.bin")
_OTHER_FORMATS: dict[str, str] = {
    "tf_model.h5": "TensorFlow weights",
    "flax_model.msgpack": "weights of transformers' former Flax classes",
    "bert_model.ckpt.index": "a TensorFlow checkpoint",
    "model.ckpt.index": "a TensorFlow checkpoint",
    "adapter_model.safetensors": "an adapter without its base model",
    "model.onnx": "an ONNX export",
}


@dataclasses.dataclass(frozen=True)
class StoredTensor:
    """Where one tensor lies.

    Attributes:
      name: Name in the file.
      file: The file.
      dtype: Stored type.
      shape: Stored shape.
      offset: First byte, counted from the start of the file.
    """

    name: str
    file: pathlib.Path
    dtype: np.dtype
    shape: tuple[int, ...]
    offset: int

    @property
    def num_bytes(self) -> int:
        """Bytes that the tensor occupies."""
        return math.prod(self.shape) * self.dtype.itemsize

    def read(self) -> np.ndarray:
        """Returns the tensor as an array of its own; bfloat16, float16 and float64 become float32.

        Raises:
          WeightsError: The file can not be read any more or became shorter.
        """
        count = math.prod(self.shape)
        try:
            values = np.fromfile(self.file, self.dtype, count, offset=self.offset)
        except OSError as error:
            raise WeightsError(f"Tensor '{self.name}' of {self.file} can not be read: {error}.") from error
        if values.size != count:
            raise WeightsError(f"Tensor '{self.name}' of {self.file} ends early; the file changed while it was read.")
        floating = self.dtype.kind == "f" or self.dtype == ml_dtypes.bfloat16
        return values.astype(np.float32 if floating else self.dtype, copy=False).reshape(self.shape)


def _broken(file: pathlib.Path, problem: str) -> WeightsError:
    return WeightsError(f"{file} is no whole safetensors file: {problem}. Download or copy it again.")


def _read_header(file: pathlib.Path) -> tuple[dict[str, Any], int, int]:
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            start = stream.read(8)
            if len(start) < 8:
                raise _broken(file, f"it has {size} bytes and so not even a header length")
            header_bytes = int.from_bytes(start, "little")
            if start.startswith(b"version "):
                raise WeightsError(f"{file} is a Git LFS pointer, not the weights; run 'git lfs pull' in its folder.")
            if header_bytes > LARGEST_HEADER_BYTES:
                raise _broken(file, f"its header claims {header_bytes} bytes, more than {LARGEST_HEADER_BYTES}")
            if header_bytes + 8 > size:
                raise _broken(file, f"its header claims {header_bytes} bytes, but the file has {size}")
            text = stream.read(header_bytes)
    except OSError as error:
        raise WeightsError(f"{file} can not be read: {error.strerror or error}.") from error
    try:
        header = json.loads(text)
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise _broken(file, f"its header is no JSON ({error})") from error
    if not isinstance(header, dict):
        raise _broken(file, "its header is no JSON object")
    return header, 8 + header_bytes, size


def _whole_numbers(values: Any) -> bool:
    return isinstance(values, list) and all(type(value) is int and value >= 0 for value in values)


def _stored_tensor(file: pathlib.Path, name: str, entry: Any, data_start: int, size: int) -> tuple[StoredTensor, int]:
    if not isinstance(entry, dict) or not _whole_numbers(entry.get("shape")):
        raise _broken(file, f"the header entry of tensor '{name}' is malformed")
    offsets: Any = entry.get("data_offsets")
    kind = str(entry.get("dtype"))
    if not _whole_numbers(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise _broken(file, f"tensor '{name}' has the byte range {offsets!r}")
    if kind not in DTYPES:
        raise WeightsError(f"Tensor '{name}' of {file} has type {kind}; flaxbert reads {', '.join(DTYPES)}.")
    tensor = StoredTensor(name, file, np.dtype(DTYPES[kind]), tuple(entry["shape"]), data_start + offsets[0])
    if tensor.num_bytes != offsets[1] - offsets[0]:
        raise _broken(
            file,
            f"tensor '{name}' of shape {tensor.shape} and type {kind} needs {tensor.num_bytes} bytes, "
            f"but has {offsets[1] - offsets[0]}",
        )
    if data_start + offsets[1] > size:
        raise _broken(
            file, f"tensor '{name}' ends at byte {data_start + offsets[1]}, but the file has {size} (truncated)"
        )
    return tensor, data_start + offsets[1]


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
            raise _broken(file, f"tensor '{name}' starts at byte {begin} where {position} is due (overlap or hole)")
        position = end
    if position != size:
        raise _broken(file, f"{size - position} bytes follow the last tensor")
    metadata = metadata if isinstance(metadata, dict) else {}
    return tensors, {str(key): str(value) for key, value in metadata.items()}


def read_json(file: pathlib.Path) -> Any:
    """Reads a JSON file of a model folder.

    Args:
      file: The file.

    Returns:
      The parsed value.

    Raises:
      WeightsError: It can not be read or is no JSON; names file and line.
    """
    try:
        return json.loads(file.read_text("utf-8-sig"))
    except OSError as error:
        raise WeightsError(f"{file} can not be read: {error.strerror or error}.") from error
    except (UnicodeDecodeError, RecursionError) as error:
        raise WeightsError(f"{file} is no JSON: {error}.") from error
    except json.JSONDecodeError as error:
        raise WeightsError(f"{file} is no JSON: {error.msg} in line {error.lineno}, column {error.colno}.") from error


def read_json_object(file: pathlib.Path) -> dict[str, Any]:
    """Reads a JSON file that must hold an object.

    Args:
      file: The file.

    Returns:
      The parsed object.

    Raises:
      WeightsError: It can not be read, or holds something else.
    """
    value = read_json(file)
    if not isinstance(value, dict):
        raise WeightsError(f"{file} holds a JSON {type(value).__name__}, but must hold an object.")
    return value


def _shard_names(index: pathlib.Path) -> list[str]:
    weight_map = read_json_object(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map or not all(isinstance(f, str) for f in weight_map.values()):
        raise WeightsError(f"{index} has no 'weight_map' from tensor names to files.")
    names = sorted(set(weight_map.values()))
    for name in names:
        if name != pathlib.PurePath(name).name or "\\" in name or name in ("", ".", ".."):
            raise WeightsError(f"{index} names the shard '{name}', which is no plain file name inside the folder.")
    missing = [name for name in names if not (index.parent / name).is_file()]
    if missing:
        raise WeightsError(f"{index.parent} lacks {', '.join(missing)}, which {index.name} names; copy them there too.")
    return names


def _check_index(index: pathlib.Path, tensors: Mapping[str, StoredTensor]) -> None:
    lost = [
        f"'{name}' in {file}"
        for name, file in read_json_object(index)["weight_map"].items()
        if name not in tensors or tensors[name].file.name != file
    ]
    if lost:
        raise WeightsError(f"{index} promises tensors that are not where it says: {', '.join(lost[:5])}.")


def open_weights(folder: pathlib.Path) -> dict[str, StoredTensor]:
    """Finds the weights of a model folder and reads their headers.

    Args:
      folder: A folder with ``model.safetensors``, or with an index and shards.

    Returns:
      All tensors by name, not yet read.

    Raises:
      WeightsError: There are no weights that flaxbert reads, a shard is missing, or a file is broken.
    """
    if (folder / SINGLE_FILE).is_file():
        return read_safetensors_header(folder / SINGLE_FILE)[0]
    index = folder / INDEX_FILE
    if not index.is_file():
        raise WeightsError(describe_missing_weights(folder))
    tensors: dict[str, StoredTensor] = {}
    for shard in _shard_names(index):
        found, _ = read_safetensors_header(folder / shard)
        twice = [name for name in found if name in tensors]
        if twice:
            raise WeightsError(f"Tensor '{twice[0]}' is both in {tensors[twice[0]].file.name} and {shard} of {folder}.")
        tensors.update(found)
    _check_index(index, tensors)
    return tensors


def describe_missing_weights(folder: pathlib.Path) -> str:
    """Returns a message that says why a folder has no weights to read, and how to mend it."""
    names = sorted(path.name for path in folder.iterdir())
    for name in names:
        if name in _PICKLES or name.endswith((".bin", ".pt", ".pth", ".pkl")):
            return (
                f"{folder} has its weights as a Python pickle ({name}). flaxbert does not unpickle: a pickle can run any "
                'code. Convert it once where you trust it: python -c "from transformers import AutoModel; '
                f"AutoModel.from_pretrained('{folder}').save_pretrained('NEW_FOLDER')\" (needs torch; use the class "
                "that the task needs, for example AutoModelForSequenceClassification)."
            )
    for name, meaning in _OTHER_FORMATS.items():
        if name in names:
            return f"{folder} holds {meaning} ({name}); flaxbert reads {SINGLE_FILE}. Convert it first."
    listing = ", ".join(names[:12]) + (" …" if len(names) > 12 else "") or "nothing"
    return f"{folder} has no {SINGLE_FILE} (or {INDEX_FILE} with its shards); it holds {listing}."
