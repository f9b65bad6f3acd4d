"""Networks that fusion rules are tested on, and what the runtime executes for them."""

from __future__ import annotations

import gzip
import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
import onnx
from onnx import helper, numpy_helper

from akd_deploy.kernel import ExecutedKernel
from akd_deploy.models.published import skeleton_path
from akd_deploy.target import Target

T = TypeVar("T")
FLOAT = onnx.TensorProto.FLOAT
GOLDEN = Path(__file__).parents[1] / "golden"
SKELETONS = skeleton_path("any").parent
NETWORKS = sorted(path.name.removesuffix(".onnx.gz") for path in SKELETONS.glob("*.onnx.gz"))
LEVELS = ("disabled", "basic", "extended", "all")


def skeleton(name: str) -> onnx.ModelProto:
    """A published network without the values of its large weights."""
    return onnx.load_from_string(gzip.decompress((SKELETONS / f"{name}.onnx.gz").read_bytes()))


def network(name: str) -> onnx.ModelProto:
    """A published network; `resnet18.int8` is `resnet18` with all that is quantised as a rule."""
    base, _, precision = name.partition(".")
    return quantised(skeleton(base)) if precision else skeleton(base)


def parameters(model: onnx.ModelProto) -> int:
    return sum(math.prod(tensor.dims) for tensor in model.graph.initializer)


def with_zeros(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with zeros where values are missing: what is executed does not depend on them."""
    for tensor in model.graph.initializer:
        if not any(map(len, (tensor.raw_data, tensor.float_data, tensor.int32_data, tensor.int64_data))):
            size = helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
            tensor.raw_data = bytes(math.prod(tensor.dims) * size)
    return model


def quantised(
    model: onnx.ModelProto, choose: Callable[[Sequence[T]], T] = lambda options: options[0]
) -> onnx.ModelProto:
    """The network with pairs of `QuantizeLinear` and `DequantizeLinear` around its tensors, on a calibration of nobody.

    Args:
        choose: one of some options, the first of which is what exporters do: which tensors get a pair, which weights
            are integers, what scales and zero points there are.
    """
    made = onnx.ModelProto()
    made.CopyFrom(model)
    graph = made.graph
    inferred = onnx.shape_inference.infer_shapes(model).graph
    floats = {v.name for v in (*inferred.input, *inferred.value_info) if v.type.tensor_type.elem_type == FLOAT}
    weights = {tensor.name: tensor for tensor in graph.initializer if tensor.data_type == FLOAT}
    nodes: list[onnx.NodeProto] = []
    shapes = {name: tuple(tensor.dims) for name, tensor in weights.items()}

    def constant(name: str, array: np.ndarray) -> str:
        graph.initializer.append(numpy_helper.from_array(array, name))
        return name

    def add_pair(name: str) -> None:
        scale = constant(f"{name}_scale", np.float32(choose((0.02, 0.03))))
        zero = constant(f"{name}_zero", choose((np.uint8(128), np.uint8(0), np.int8(0), np.int8(-128))))
        nodes.append(helper.make_node("QuantizeLinear", [name, scale, zero], [f"{name}_q"], f"{name}_q"))
        nodes.append(helper.make_node("DequantizeLinear", [f"{name}_q", scale, zero], [f"{name}_dq"], f"{name}_dq"))
        renamed[name] = f"{name}_dq"

    def add_integers(name: str, axis: int) -> None:
        tensor = weights[name]
        shape = choose((shapes[name][axis : axis + 1], ()))
        scale = constant(f"{name}_scale", np.full(shape, 0.01, np.float32))
        zero = constant(f"{name}_zero", np.zeros(shape, np.int8))
        graph.initializer.remove(tensor)
        graph.initializer.add(name=f"{name}_integers", data_type=onnx.TensorProto.INT8, dims=shapes[name])
        inputs = [f"{name}_integers", scale, zero]
        nodes.append(helper.make_node("DequantizeLinear", inputs, [f"{name}_dq"], f"{name}_dq", axis=axis))
        renamed[name] = f"{name}_dq"

    renamed: dict[str, str] = {}
    for value in graph.input:
        if value.name in floats and value.name not in weights and choose((True, False)):
            add_pair(value.name)
    for node in model.graph.node:
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        for i, name in enumerate(node.input):
            is_weight = (
                i == 1 and name in weights and len(shapes[name]) > 1 and node.op_type in ("Conv", "Gemm", "MatMul")
            )
            if is_weight and name not in renamed and choose((True, True, False)):
                is_transposed = any(a.name == "transB" and a.i for a in node.attribute)
                add_integers(name, 0 if node.op_type == "Conv" or is_transposed else 1)
            copy.input[i] = renamed.get(name, name)
        nodes.append(copy)
        for name in node.output:
            if (
                name in floats
                and node.op_type not in ("BatchNormalization", "Constant")
                and choose((True, True, False))
            ):
                add_pair(name)
    del graph.node[:]
    graph.node.extend(nodes)
    return made


def of_runtime(model: onnx.ModelProto, level: str, folder: Path) -> tuple[ExecutedKernel, ...]:
    """What ONNX Runtime executes for the model on this machine's CPU."""
    from akd_deploy.engines.onnxruntime_engine import OnnxRuntimeEngine

    path = folder / "network.onnx"
    path.write_bytes(model.SerializeToString())
    options = {"provider": "cpu", "graph_optimization": level, "threads": 1, "spinning": False}
    target = Target("t", device="cpu", engine="onnxruntime", precision="fp32", batch=1, engine_options=options)
    return OnnxRuntimeEngine(target).executed_kernels(path)


def counted(kernels: Iterable[ExecutedKernel]) -> Counter[tuple[str, tuple[str, ...]]]:
    """Kernels with the nodes they came from, order aside."""
    return Counter((kernel.kernel.signature, kernel.nodes) for kernel in kernels)


def agreement(found: Iterable[ExecutedKernel], expected: Iterable[ExecutedKernel]) -> float:
    """Kernels that two lists have in common, of the longer one's."""
    a, b = (Counter(kernel.kernel.signature for kernel in kernels) for kernels in (found, expected))
    return (a & b).total() / max(a.total(), b.total())


def golden_path(name: str) -> Path:
    return GOLDEN / "fusion" / f"{name}.json.gz"


def write_golden(name: str, folder: Path) -> None:
    """Note what the runtime on this machine makes of a network; its CPU must have AVX-512.

    From the repository's root: `python -c "from tests.fusion.fusion_networks import *; write_golden('resnet50',
    Path('/tmp'))"`.
    """
    import onnxruntime

    model = with_zeros(network(name))
    levels = {
        level: [[kernel.kernel.signature, list(kernel.nodes)] for kernel in of_runtime(model, level, folder)]
        for level in LEVELS
    }
    text = json.dumps({"runtime": onnxruntime.__version__, "nchwc_block": 16, "levels": levels}, indent=0)
    golden_path(name).parent.mkdir(parents=True, exist_ok=True)
    golden_path(name).write_bytes(gzip.compress(text.encode(), mtime=0))
