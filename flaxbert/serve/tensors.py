"""Tensors of the Open Inference Protocol, as JSON and as the bytes that its binary extension puts behind the JSON."""

import math
import struct
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from flaxbert.serve.errors import RequestError
from flaxbert.serve.schemas import TensorIn

BYTES = "BYTES"
_TYPES: dict[str, str] = {
    "BOOL": "?",
    "UINT8": "<u1",
    "UINT16": "<u2",
    "UINT32": "<u4",
    "UINT64": "<u8",
    "INT8": "<i1",
    "INT16": "<i2",
    "INT32": "<i4",
    "INT64": "<i8",
    "FP16": "<f2",
    "FP32": "<f4",
    "FP64": "<f8",
}
_SIZE_KEY = "binary_data_size"


def _refuse(tensor: TensorIn, what: str) -> RequestError:
    return RequestError("validation", f"The input '{tensor.name}' {what}.")


def _flat(values: Any) -> list[Any]:
    found: list[Any] = []
    waiting = [iter(values)] if isinstance(values, list) else [iter([values])]
    while waiting:
        entry = next(waiting[-1], waiting)
        if entry is waiting:
            waiting.pop()
        elif isinstance(entry, list):
            waiting.append(iter(entry))
        else:
            found.append(entry)
    return found


def _strings(data: bytes, tensor: TensorIn) -> list[str]:
    found, place = [], 0
    while place < len(data):
        if place + 4 > len(data):
            raise _refuse(tensor, "ends within the length of a text")
        (size,) = struct.unpack_from("<I", data, place)
        place += 4
        if place + size > len(data):
            raise _refuse(tensor, "ends within a text")
        found.append(_decoded(data[place : place + size], tensor))
        place += size
    return found


def _decoded(text: bytes, tensor: TensorIn) -> str:
    try:
        return text.decode()
    except UnicodeDecodeError as error:
        raise _refuse(tensor, f"is no UTF-8 ({error.reason} at byte {error.start})") from error


def read_tensor(tensor: TensorIn, raw: bytes | None) -> np.ndarray | list[str]:
    """Returns the values of an input, flat.

    Args:
      tensor: The input.
      raw: Its bytes, where they stand behind the JSON.

    Raises:
      RequestError: Values, shape and type do not fit together.
    """
    size = math.prod(tensor.shape)
    if tensor.datatype == BYTES:
        if raw is not None:
            texts = _strings(raw, tensor)
        else:
            texts = _flat(tensor.data)
            if not all(isinstance(text, str) for text in texts):
                raise _refuse(tensor, "is of type BYTES, but holds what is no text")
        if len(texts) != size:
            raise _refuse(tensor, f"has {len(texts)} entries, but shape {tensor.shape}")
        return texts
    if tensor.datatype not in _TYPES:
        raise _refuse(tensor, f"has the type {tensor.datatype!r}; known are {', '.join([*_TYPES, BYTES])}")
    dtype = np.dtype(_TYPES[tensor.datatype])
    if raw is not None:
        if len(raw) != size * dtype.itemsize:
            raise _refuse(tensor, f"has {len(raw)} bytes, but shape {tensor.shape} of {tensor.datatype}")
        return np.frombuffer(raw, dtype)
    values = _flat(tensor.data)
    if len(values) != size:
        raise _refuse(tensor, f"has {len(values)} entries, but shape {tensor.shape}")
    if not all(isinstance(value, int | float) for value in values):
        raise _refuse(tensor, f"is of type {tensor.datatype}, but holds what is no number")
    try:
        return np.asarray(values, dtype)
    except (OverflowError, ValueError) as error:
        raise _refuse(tensor, f"holds a number that is no {tensor.datatype}") from error


def split_body(body: bytes, json_length: str | None) -> tuple[bytes, bytes]:
    """Returns the JSON of a request and the bytes behind it.

    Args:
      body: The whole body.
      json_length: The header ``Inference-Header-Content-Length``, or None.

    Raises:
      RequestError: The header is no length of the body's part.
    """
    if json_length is None:
        return body, b""
    if not json_length.isascii() or not json_length.isdigit() or int(json_length) > len(body):
        raise RequestError(
            "bad_request",
            f"Inference-Header-Content-Length is {json_length[:20]!r}, but the body has {len(body)} bytes.",
        )
    return body[: int(json_length)], body[int(json_length) :]


def read_inputs(tensors: Sequence[TensorIn], raw: bytes) -> dict[str, np.ndarray | list[str]]:
    """Returns the values of all inputs by name.

    Args:
      tensors: The inputs.
      raw: The bytes behind the JSON, those of one input after those of the other.

    Raises:
      RequestError: Values, shapes and types do not fit together.
    """
    parts: list[bytes | None] = []
    place = 0
    for tensor in tensors:
        size = (tensor.parameters or {}).get(_SIZE_KEY)
        part = None
        if size is not None:
            if not isinstance(size, int) or isinstance(size, bool) or size < 0 or place + size > len(raw):
                raise _refuse(tensor, f"has {_SIZE_KEY} {size!r}, but {len(raw) - place} bytes are left")
            part = raw[place : place + size]
            place += size
        parts.append(part)
    if place != len(raw):
        raise RequestError("validation", f"{len(raw) - place} bytes behind the JSON belong to no input.")
    return read_tensors(tensors, parts)


def read_tensors(tensors: Sequence[TensorIn], parts: Sequence[bytes | None]) -> dict[str, np.ndarray | list[str]]:
    """Returns the values of all inputs by name.

    Args:
      tensors: The inputs.
      parts: The bytes of each, or None where it holds its values itself.

    Raises:
      RequestError: Values, shapes and types do not fit together.
    """
    found: dict[str, np.ndarray | list[str]] = {}
    for tensor, part in zip(tensors, parts, strict=True):
        if part is None and tensor.data is None:
            raise _refuse(tensor, "has no data")
        if tensor.name in found:
            raise _refuse(tensor, "is given twice")
        found[tensor.name] = read_tensor(tensor, part)
    return found


def describe(name: str, values: np.ndarray | Sequence[Any], shape: Sequence[int]) -> dict[str, Any]:
    """Returns an output without its data.

    Args:
      name: Its name.
      values: float32 or integer array, or texts.
      shape: Its shape.
    """
    datatype = BYTES
    if isinstance(values, np.ndarray):
        datatype = next(key for key, code in _TYPES.items() if np.dtype(code) == values.dtype)
    return {"name": name, "datatype": datatype, "shape": list(shape)}


def to_bytes(values: np.ndarray | Sequence[str]) -> bytes:
    """Returns the values of an output as the binary extension has them.

    Args:
      values: An array, or texts.
    """
    if isinstance(values, np.ndarray):
        return np.ascontiguousarray(values).tobytes()
    texts = [text.encode() for text in values]
    return b"".join(struct.pack("<I", len(text)) + text for text in texts)


def wants_binary(parameters: Mapping[str, Any] | None, key: str) -> bool:
    """Returns whether a client asks for bytes.

    Args:
      parameters: Parameters of a request or of an output.
      key: ``binary_data_output`` or ``binary_data``.
    """
    return bool((parameters or {}).get(key, False))
