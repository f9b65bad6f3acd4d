"""ONNX models without the values of their weights: small enough to keep, complete enough to fuse and to run.

A skeleton keeps every node, shape, type and small constant. Of a large float initialiser it keeps dims and type, and
in its `doc_string` the mean, the standard deviation and the least of its values, from which `filled` draws new ones.
"""

from __future__ import annotations

import gzip
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

FLOATS = frozenset({TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE})
KEPT_VALUES = 16
"""A float tensor of no more values, or no more distinct ones, stays as it is: an epsilon, a resize's scales, a mask."""

MANY_INDICES = 1024
"""Integer tensors of more values are kept once for all their copies."""


def skeleton(model: ModelProto) -> ModelProto:
    """A copy of `model` without the values of its large float initialisers, and without anyone's notes in it."""
    bare = ModelProto()
    bare.CopyFrom(model)
    del bare.metadata_props[:]
    bare.doc_string = ""
    for graph in _graphs(bare.graph):
        _forget_notes(graph)
        for tensor in graph.initializer:
            if tensor.data_type in FLOATS:
                _strip(tensor)
        _share_indices(graph)
    return bare


def filled(bare: ModelProto, rng: np.random.Generator) -> ModelProto:
    """A copy of the skeleton `bare` with normal values where values are missing.

    They have the originals' mean and standard deviation and are none of them below the originals' least, so
    that variances stay positive and activations keep their size.
    """
    model = ModelProto()
    model.CopyFrom(bare)
    for graph in _graphs(model.graph):
        for tensor in graph.initializer:
            if _is_stripped(tensor):
                _fill(tensor, rng)
    return model


def write_skeleton(model: ModelProto, path: Path) -> Path:
    """Write the skeleton of `model` to `path` (`.onnx.gz`); the same bytes for the same model."""
    path.parent.mkdir(parents=True, exist_ok=True)
    raw = skeleton(model).SerializeToString(deterministic=True)
    path.write_bytes(gzip.compress(raw, compresslevel=9, mtime=0))
    return path


def read_skeleton(path: Path) -> ModelProto:
    """What `write_skeleton` wrote."""
    return onnx.load_from_string(gzip.decompress(path.read_bytes()))


def _graphs(graph: GraphProto) -> Iterator[GraphProto]:
    """The graph and those inside its nodes' attributes."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in ([attribute.g] if attribute.HasField("g") else []) + list(attribute.graphs):
                yield from _graphs(inner)


def _forget_notes(graph: GraphProto) -> None:
    """Exporters note stack traces of the machine they ran on at every node and value."""
    graph.doc_string = ""
    del graph.metadata_props[:]
    parts: list[NodeProto | onnx.ValueInfoProto | TensorProto] = [*graph.node, *graph.value_info, *graph.initializer]
    for part in [*parts, *graph.input, *graph.output]:
        part.doc_string = ""
        del part.metadata_props[:]


def _strip(tensor: TensorProto) -> None:
    if math.prod(tensor.dims) <= KEPT_VALUES:
        return
    values = numpy_helper.to_array(tensor)
    if len(np.unique(values.ravel()[: 64 * KEPT_VALUES])) <= KEPT_VALUES and len(np.unique(values)) <= KEPT_VALUES:
        return
    values = values.astype(np.float64)
    name, dims, data_type = tensor.name, list(tensor.dims), tensor.data_type
    tensor.Clear()
    tensor.name, tensor.data_type = name, data_type
    tensor.dims.extend(dims)
    tensor.doc_string = f"{values.mean():.2g} {values.std():.2g} {values.min():.2g}"


def _share_indices(graph: GraphProto) -> None:
    """One tensor for all large integer tensors of the same values: every layer carries its own table of positions."""
    firsts: dict[tuple[int, tuple[int, ...], bytes], str] = {}
    instead: dict[str, str] = {}
    for tensor in graph.initializer:
        if tensor.data_type not in FLOATS and math.prod(tensor.dims) > MANY_INDICES:
            same = (tensor.data_type, tuple(tensor.dims), numpy_helper.to_array(tensor).tobytes())
            if (first := firsts.setdefault(same, tensor.name)) != tensor.name:
                instead[tensor.name] = first
    kept = [tensor for tensor in graph.initializer if tensor.name not in instead]
    del graph.initializer[:]
    graph.initializer.extend(kept)
    described = [value for value in graph.value_info if value.name not in instead]
    del graph.value_info[:]
    graph.value_info.extend(described)
    for inner in _graphs(graph):
        for node in inner.node:
            node.input[:] = [instead.get(name, name) for name in node.input]


def _is_stripped(tensor: TensorProto) -> bool:
    fields = (tensor.raw_data, tensor.float_data, tensor.double_data, tensor.int32_data, tensor.external_data)
    return tensor.data_type in FLOATS and math.prod(tensor.dims) > 0 and not any(map(len, fields))


def _fill(tensor: TensorProto, rng: np.random.Generator) -> None:
    mean, std, least = (np.float32(value) for value in tensor.doc_string.split())
    values = rng.standard_normal(tuple(tensor.dims), dtype=np.float32)
    values *= std
    values += mean
    np.maximum(values, least, out=values)
    tensor.raw_data = values.astype(helper.tensor_dtype_to_np_dtype(tensor.data_type), copy=False).tobytes()
    tensor.doc_string = ""
