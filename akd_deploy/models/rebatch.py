"""Skeletons of batch 1 for another batch."""

from __future__ import annotations

import math

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, numpy_helper

from akd_deploy.errors import UsageError

SHAPED_BY = {"Reshape": 1, "Expand": 1, "ConstantOfShape": 0, "Resize": 3}
"""Operators whose output has the shape that a constant says, and which input that is."""


def rebatched(model: ModelProto, batch: int) -> ModelProto:
    """The network for inputs of `batch`, of one whose inputs are of batch 1.

    A constant that says a shape beginning with 1 (or, where a reshape folds the batch into its first dimension, with
    anything) gets the batch there, and one that is joined to batches (a class token) is repeated.

    Raises:
        UsageError: shapes then contradict each other, or outputs are not `batch` times as large.
    """
    if batch == 1:
        return model
    before = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
    sizes = {value.name: _elements(value) for value in (*before.graph.value_info, *before.graph.input)}
    sizes |= {value.name: _elements(value) for value in before.graph.output}
    result = ModelProto()
    result.CopyFrom(model)
    graph = result.graph
    del graph.value_info[:]
    constants = {tensor.name: tensor for tensor in graph.initializer}
    nodes = {node.output[0]: node for node in graph.node if node.op_type == "Constant"}
    weights = set(constants)
    for value in graph.input:
        if value.name not in weights:
            value.type.tensor_type.shape.dim[0].dim_value *= batch
    fed = {value.name for value in graph.input if value.name not in weights}
    for node in graph.node:
        if not fed.isdisjoint(node.input):
            fed.update(node.output)
        place = SHAPED_BY.get(node.op_type)
        if place is not None and len(node.input) > place and (shape := _constant(node.input[place], constants, nodes)):
            new = _shape(node, numpy_helper.to_array(shape), fed, batch)
            node.input[place] = _added(graph, node, numpy_helper.from_array(new))
        elif node.op_type == "Concat" and _axis(node) != 0:
            for place, name in enumerate(node.input):
                joined = constants.get(name)
                if joined is not None and joined.dims and joined.dims[0] == 1:
                    node.input[place] = _added(graph, node, _repeated(joined, batch))
    for value in graph.output:
        dims = value.type.tensor_type.shape.dim
        if dims:
            dims[0].Clear()
    try:
        after = onnx.shape_inference.infer_shapes(result, check_type=True, strict_mode=True, data_prop=True)
    except onnx.shape_inference.InferenceError as error:
        raise _fixed(batch, str(error).splitlines()[0]) from error
    known = {value.name: _elements(value) for value in (*after.graph.value_info, *after.graph.input)}
    known |= {value.name: _elements(value) for value in after.graph.output}
    for node in after.graph.node:  # inference takes a reshape's word for it
        given, made = known.get(node.input[0]) if node.input else None, known.get(node.output[0])
        if node.op_type == "Reshape" and given is not None and given != made:
            raise _fixed(batch, f"{node.name} makes {made} elements of {given}")
    for value in after.graph.output:
        if _elements(value) != batch * sizes[value.name]:
            raise _fixed(batch, f"output {value.name} of {_elements(value)} elements for {sizes[value.name]}")
    del result.graph.output[:]
    result.graph.output.extend(after.graph.output)
    return result


def _fixed(batch: int, found: str) -> UsageError:
    return UsageError(
        asked=f"a network of batch 1 for batch {batch}",
        found=f"its batch is fixed within: {found}",
        next="Export it with that batch.",
    )


def _elements(value: onnx.ValueInfoProto) -> int:
    return math.prod(dim.dim_value for dim in value.type.tensor_type.shape.dim)


def _axis(node: NodeProto) -> int:
    return next(attribute.i for attribute in node.attribute if attribute.name == "axis")


def _constant(name: str, constants: dict[str, TensorProto], nodes: dict[str, NodeProto]) -> TensorProto | None:
    if name in constants:
        return constants[name]
    attributes = nodes[name].attribute if name in nodes else ()
    return next((attribute.t for attribute in attributes if attribute.name == "value"), None)


def _shape(node: NodeProto, shape: np.ndarray, fed: set[str], batch: int) -> np.ndarray:
    """A shape with the batch in it; one that only shapes constants, or takes its first dimension as it comes, stays."""
    if not shape.size or shape.ndim != 1:
        return shape
    if node.op_type == "Reshape" and node.input[0] not in fed:
        return shape  # of weights
    folded = node.op_type == "Reshape" and shape[0] > 1 and -1 not in shape
    if shape[0] == 1 or folded:
        return np.concatenate([shape[:1] * batch, shape[1:]])
    return shape


def _repeated(tensor: TensorProto, batch: int) -> TensorProto:
    """`batch` copies; where its values are missing, of what a skeleton says of them."""
    if tensor.doc_string and not tensor.raw_data:
        copy = TensorProto()
        copy.CopyFrom(tensor)
        copy.dims[0] = batch
        return copy
    values = numpy_helper.to_array(tensor)
    return numpy_helper.from_array(np.repeat(values, batch, 0))


def _added(graph: onnx.GraphProto, node: NodeProto, tensor: TensorProto) -> str:
    tensor.name = f"{node.output[0]}_batch_{len(graph.initializer)}"
    graph.initializer.append(tensor)
    return tensor.name
