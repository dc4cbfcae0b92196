"""Tensors of messages: their values in typed fields, or as raw bytes beside them."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from pydantic import ValidationError

from flaxbert.serve import tensors
from flaxbert.serve.errors import RequestError
from flaxbert.serve.rpc.messages import MESSAGES
from flaxbert.serve.schemas import TensorIn

_CONTENTS = {
    "BOOL": "bool_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    tensors.BYTES: "bytes_contents",
}
"""The field that holds the values of a datatype; those of FP16 are always raw."""


@dataclasses.dataclass(frozen=True, eq=False)
class Inputs:
    """The inputs of a request.

    Attributes:
      values: Values by name, flat.
      shapes: Their shapes.
      raw: Whether they came as raw bytes, and the outputs go so.
    """

    values: Mapping[str, Any]
    shapes: Mapping[str, Sequence[int]]
    raw: bool


def _refuse(name: str, what: str) -> RequestError:
    return RequestError("validation", f"The input '{name}' {what}.")


def _data(message: Any) -> list[Any] | None:
    """Returns the values in the field of the tensor's datatype, or None where it has no contents."""
    if not message.HasField("contents"):
        return None
    field = _CONTENTS.get(message.datatype)
    filled = [descriptor.name for descriptor, _ in message.contents.ListFields()]
    if field is not None and any(name != field for name in filled):
        raise _refuse(
            message.name, f"has the type {message.datatype}, whose values stand in {field}, not in {filled[0]}"
        )
    if field is None:
        if message.datatype == "FP16":
            raise _refuse(message.name, "has the type FP16, whose values must be raw")
        return []
    values = getattr(message.contents, field)
    if message.datatype != tensors.BYTES:
        return list(values)
    try:
        return [text.decode() for text in values]
    except UnicodeDecodeError as error:
        raise _refuse(message.name, f"is no UTF-8 ({error.reason} at byte {error.start})") from error


def _tensor(message: Any) -> TensorIn:
    try:
        return TensorIn(name=message.name, shape=list(message.shape), datatype=message.datatype, data=_data(message))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        raise _refuse(message.name, f"has a wrong {place}: {first['msg']}") from error


def read_inputs(request: Any) -> Inputs:
    """Returns the inputs of a request.

    Args:
      request: A ``ModelInferRequest``.

    Raises:
      RequestError: Values, shapes and types do not fit together.
    """
    described = [_tensor(message) for message in request.inputs]
    raw = bool(request.raw_input_contents)
    parts: Sequence[bytes | None] = request.raw_input_contents if raw else [None] * len(described)
    if len(parts) != len(described):
        raise RequestError("validation", f"There are {len(parts)} raw_input_contents for {len(described)} inputs.")
    doubled = next((tensor.name for tensor in described if raw and tensor.data is not None), None)
    if doubled is not None:
        raise _refuse(doubled, "has contents, but the request has raw_input_contents too")
    shapes = {tensor.name: tensor.shape for tensor in described}
    return Inputs(tensors.read_tensors(described, parts), shapes, raw)


def read_parameters(messages: Mapping[str, Any]) -> dict[str, Any]:
    """Returns parameters as Python's values; those without a value are left out.

    Args:
      messages: ``InferParameter`` by name.
    """
    chosen = {name: (message, message.WhichOneof("parameter_choice")) for name, message in messages.items()}
    return {name: getattr(message, field) for name, (message, field) in chosen.items() if field is not None}


def write_outputs(response: Any, outputs: Sequence[tuple[str, Any, Sequence[int]]], raw: bool) -> None:
    """Puts outputs into a response.

    Args:
      response: A ``ModelInferResponse``.
      outputs: Name, values and shape of each.
      raw: Whether their values are raw bytes.
    """
    for name, values, shape in outputs:
        message = MESSAGES["ModelInferResponse.InferOutputTensor"](**tensors.describe(name, values, shape))
        if raw:
            response.raw_output_contents.append(tensors.to_bytes(values))
        else:
            flat = values.reshape(-1).tolist() if isinstance(values, np.ndarray) else [t.encode() for t in values]
            getattr(message.contents, _CONTENTS[message.datatype]).extend(flat)
        response.outputs.append(message)
