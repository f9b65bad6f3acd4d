"""The part of Triton's schema that a configuration of ours could use, as protobuf descriptors.

Names, numbers and types are those of `protobuf/model_config.proto` in github.com/triton-inference-server/common
(package inference, BSD-3-Clause); a field that is not here is an error when a text is parsed.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format

_NUMBERS = {"string": 9, "int64": 3, "int32": 5, "uint32": 13, "bool": 8}

_DATA_TYPES = [
    "TYPE_INVALID", "TYPE_BOOL", "TYPE_UINT8", "TYPE_UINT16", "TYPE_UINT32", "TYPE_UINT64", "TYPE_INT8", "TYPE_INT16",
    "TYPE_INT32", "TYPE_INT64", "TYPE_FP16", "TYPE_FP32", "TYPE_FP64", "TYPE_STRING", "TYPE_BF16",
]  # fmt: skip
_KINDS = ["KIND_AUTO", "KIND_GPU", "KIND_CPU", "KIND_MODEL"]
_FORMATS = ["FORMAT_NONE", "FORMAT_NHWC", "FORMAT_NCHW"]

_MESSAGES = {
    "ModelTensorReshape": ["repeated int64 shape = 1"],
    "ModelInput": [
        "string name = 1", "DataType data_type = 2", "ModelInput.Format format = 3", "repeated int64 dims = 4",
        "ModelTensorReshape reshape = 5", "bool is_shape_tensor = 6", "bool allow_ragged_batch = 7",
        "bool optional = 8", "bool is_non_linear_format_io = 9",
    ],
    "ModelOutput": [
        "string name = 1", "DataType data_type = 2", "repeated int64 dims = 3", "string label_filename = 4",
        "ModelTensorReshape reshape = 5", "bool is_shape_tensor = 6", "bool is_non_linear_format_io = 7",
    ],
    "ModelInstanceGroup": [
        "string name = 1", "int32 count = 2", "repeated int32 gpus = 3", "ModelInstanceGroup.Kind kind = 4",
        "repeated string profile = 5", "bool passive = 7", "string host_policy = 9",
    ],
    "ModelParameter": ["string string_value = 1"],
    "ModelConfig": [
        "string name = 1", "string platform = 2", "int32 max_batch_size = 4", "repeated ModelInput input = 5",
        "repeated ModelOutput output = 6", "repeated ModelInstanceGroup instance_group = 7",
        "string default_model_filename = 8", "repeated ModelConfig.ParametersEntry parameters = 14",
        "string backend = 17", "string runtime = 25",
    ],
}  # fmt: skip


def _enum(into: Any, name: str, values: list[str]) -> None:
    enum = into.add(name=name)
    for number, value in enumerate(values):
        enum.value.add(name=value, number=number)


def _field(message: Any, text: str, enums: tuple[str, ...]) -> None:
    *labels, kind, name, _, number = text.split()
    field = message.field.add(name=name, number=int(number), label=3 if labels == ["repeated"] else 1)
    if kind in _NUMBERS:
        field.type = _NUMBERS[kind]
    else:
        field.type, field.type_name = 14 if kind in enums else 11, f".inference.{kind}"


@cache
def _model_config_class() -> Any:
    file = descriptor_pb2.FileDescriptorProto(name="model_config.proto", package="inference", syntax="proto3")
    _enum(file.enum_type, "DataType", _DATA_TYPES)
    for name, fields in _MESSAGES.items():
        message = file.message_type.add(name=name)
        if name == "ModelInstanceGroup":
            _enum(message.enum_type, "Kind", _KINDS)
        if name == "ModelInput":
            _enum(message.enum_type, "Format", _FORMATS)
        if name == "ModelConfig":
            entry = message.nested_type.add(name="ParametersEntry")
            entry.options.map_entry = True
            for text in ("string key = 1", "ModelParameter value = 2"):
                _field(entry, text, ())
        for text in fields:
            _field(message, text, ("DataType", "ModelInstanceGroup.Kind", "ModelInput.Format"))
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("inference.ModelConfig"))


def parse_model_config(text: str) -> Any:
    """The message in a config.pbtxt; raises `text_format.ParseError` where it does not fit the schema."""
    return text_format.Parse(text, _model_config_class()())
