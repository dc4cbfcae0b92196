"""The messages of the Open Inference Protocol, by the names and numbers of its specification.

Their descriptors are made here instead of by protoc: generated code registers its messages for the whole process, where those of a client
of the same protocol have the same names, and it runs with some versions of protobuf only.
"""

import re
from typing import Any, Final

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

PACKAGE: Final = "inference"

SERVICE: Final = "GRPCInferenceService"

_Field = descriptor_pb2.FieldDescriptorProto

_PARAMETERS = "map<string, InferParameter> parameters = 4"

_TABLE: dict[str, tuple[str, ...]] = {
    "ServerLiveRequest": (),
    "ServerLiveResponse": ("bool live = 1",),
    "ServerReadyRequest": (),
    "ServerReadyResponse": ("bool ready = 1",),
    "ModelReadyRequest": ("string name = 1", "string version = 2"),
    "ModelReadyResponse": ("bool ready = 1",),
    "ServerMetadataRequest": (),
    "ServerMetadataResponse": ("string name = 1", "string version = 2", "repeated string extensions = 3"),
    "ModelMetadataRequest": ("string name = 1", "string version = 2"),
    "ModelMetadataResponse": (
        "string name = 1",
        "repeated string versions = 2",
        "string platform = 3",
        "repeated ModelMetadataResponse.TensorMetadata inputs = 4",
        "repeated ModelMetadataResponse.TensorMetadata outputs = 5",
    ),
    "ModelMetadataResponse.TensorMetadata": (
        "string name = 1",
        "string datatype = 2",
        "repeated int64 shape = 3",  # -1 where any size is taken
    ),
    "InferParameter": (
        "oneof bool bool_param = 1",
        "oneof int64 int64_param = 2",
        "oneof string string_param = 3",
        "oneof double double_param = 4",
        "oneof uint64 uint64_param = 5",
    ),
    "InferTensorContents": (  # flat, the last axis fastest; which one is filled follows from the datatype
        "repeated bool bool_contents = 1",
        "repeated int32 int_contents = 2",
        "repeated int64 int64_contents = 3",
        "repeated uint32 uint_contents = 4",
        "repeated uint64 uint64_contents = 5",
        "repeated float fp32_contents = 6",
        "repeated double fp64_contents = 7",
        "repeated bytes bytes_contents = 8",
    ),
    "ModelInferRequest": (
        "string model_name = 1",
        "string model_version = 2",
        "string id = 3",
        _PARAMETERS,
        "repeated ModelInferRequest.InferInputTensor inputs = 5",
        "repeated ModelInferRequest.InferRequestedOutputTensor outputs = 6",
        "repeated bytes raw_input_contents = 7",  # none, or one for each input, which then has no contents
    ),
    "ModelInferRequest.InferInputTensor": (
        "string name = 1",
        "string datatype = 2",
        "repeated int64 shape = 3",
        _PARAMETERS,
        "InferTensorContents contents = 5",
    ),
    "ModelInferRequest.InferRequestedOutputTensor": (
        "string name = 1",
        "map<string, InferParameter> parameters = 2",
    ),
    "ModelInferResponse": (
        "string model_name = 1",
        "string model_version = 2",
        "string id = 3",
        _PARAMETERS,
        "repeated ModelInferResponse.InferOutputTensor outputs = 5",
        "repeated bytes raw_output_contents = 6",
    ),
    "ModelInferResponse.InferOutputTensor": (
        "string name = 1",
        "string datatype = 2",
        "repeated int64 shape = 3",
        _PARAMETERS,
        "InferTensorContents contents = 5",
    ),
}
"""Fields of every message as the language of protobuf writes them; ``oneof`` marks those of which one is set."""

_ONEOF = "parameter_choice"

_LINE = re.compile(r"(?:(repeated|oneof) )?(?:map<string, (\w+)>|([\w.]+)) (\w+) = (\d+)")

METHODS: Final = ("ServerLive", "ServerReady", "ModelReady", "ServerMetadata", "ModelMetadata", "ModelInfer")
"""Methods of the service; each takes ``<name>Request`` and gives ``<name>Response``."""


def _set_type(field: Any, name: str) -> None:
    field.type = dict(_Field.Type.items()).get(f"TYPE_{name.upper()}", _Field.TYPE_MESSAGE)
    if field.type == _Field.TYPE_MESSAGE:
        field.type_name = f".{PACKAGE}.{name}"


def _add_field(message: Any, path: str, line: str) -> None:
    found = _LINE.fullmatch(line)
    if found is None:
        raise ValueError(f"{path}: {line!r} is no field")
    label, value_type, kind, name, number = found.groups()
    repeated = label == "repeated" or value_type is not None
    field = message.field.add(name=name, number=int(number))
    field.label = _Field.LABEL_REPEATED if repeated else _Field.LABEL_OPTIONAL
    if label == "oneof":
        if not message.oneof_decl:
            message.oneof_decl.add(name=_ONEOF)
        field.oneof_index = 0
    if value_type is None:
        _set_type(field, kind)
        return
    entry = f"{name.title()}Entry"  # a map is a repeated message of keys and values
    _set_type(field, f"{path}.{entry}")
    nested = message.nested_type.add(name=entry)
    nested.options.map_entry = True
    for place, (part, part_type) in enumerate((("key", "string"), ("value", value_type)), start=1):
        _set_type(nested.field.add(name=part, number=place, label=_Field.LABEL_OPTIONAL), part_type)


def describe_protocol() -> descriptor_pb2.FileDescriptorProto:
    """Returns the description of all messages and of the service."""
    file = descriptor_pb2.FileDescriptorProto(name="flaxbert/inference.proto", package=PACKAGE, syntax="proto3")
    messages: dict[str, Any] = {}
    for path, lines in _TABLE.items():
        outer, _, name = path.rpartition(".")
        messages[path] = messages[outer].nested_type.add(name=name) if outer else file.message_type.add(name=name)
        for line in lines:
            _add_field(messages[path], path, line)
    service = file.service.add(name=SERVICE)
    for name in METHODS:
        types = {"input_type": f".{PACKAGE}.{name}Request", "output_type": f".{PACKAGE}.{name}Response"}
        service.method.add(name=name, **types)
    return file


def _make_classes() -> dict[str, Any]:
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(describe_protocol().SerializeToString())
    find = pool.FindMessageTypeByName
    return {path: message_factory.GetMessageClass(find(f"{PACKAGE}.{path}")) for path in _TABLE}


MESSAGES: Final[dict[str, Any]] = _make_classes()
"""Class of every message, by its name without the package."""
