"""Which ONNX operators each engine does not run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx
from onnx import TensorProto

from akd_deploy.target import Target


def operators_named(names: str) -> frozenset[str]:
    """The operators in a text that separates their names by spaces."""
    return frozenset(names.split())


_TEXT_AND_SEQUENCES = operators_named(
    "ConcatFromSequence ImageDecoder Optional OptionalGetElement OptionalHasElement RegexFullMatch "
    "SequenceConstruct SequenceErase SequenceInsert SequenceLength SequenceMap SplitToSequence StringConcat "
    "StringNormalizer StringSplit TfIdfVectorizer"
)

_TENSORRT = _TEXT_AND_SEQUENCES | operators_named(
    "AffineGrid Bernoulli BitCast BitShift BitwiseAnd BitwiseNot BitwiseOr BitwiseXor CenterCropPad Col2Im "
    "Compress ConvInteger CumProd DFT DeformConv Det DynamicQuantizeLinear MatMulInteger MaxRoiPool MaxUnpool "
    "MelWeightMatrix Multinomial NegativeLogLikelihoodLoss QLinearConv QLinearMatMul SequenceAt SequenceEmpty "
    "SoftmaxCrossEntropyLoss SwiGLU Unique"
)

UNSUPPORTED: Mapping[str, frozenset[str]] = {
    # No kernel and no function body, by the kernel registry of 1.31.
    "onnxruntime": frozenset({"ImageDecoder"}),
    # Operators without a translation, each tried alone with 2026.4.
    "openvino": _TEXT_AND_SEQUENCES
    | operators_named(
        "BitCast CausalConvWithState CumProd DeformConv Det LinearAttention MaxUnpool MelWeightMatrix SwiGLU "
        "TensorScatter"
    ),
    # What the parser's `supports_operator` denies, in TensorRT-RTX 1.7 (the API of TensorRT 11).
    "tensorrt": _TENSORRT,
    # Which comes without the plugins and kernels of these two, tried alone with 1.7.
    "tensorrt-rtx": _TENSORRT | operators_named("NonMaxSuppression NonZero"),
}
"""Engine → standard operators that it refuses in every form; other operators may still be refused by type or shape."""

EXTRA_DOMAINS: Mapping[str, frozenset[str]] = {
    "onnxruntime": frozenset({"com.microsoft", "com.microsoft.nchwc", "ai.onnx.ml"}),
    "openvino": frozenset({"com.microsoft", "org.openvinotoolkit"}),
    "tensorrt": frozenset({"trt.plugins"}),
    "tensorrt-rtx": frozenset(),
}
"""Engine → operator domains beyond ONNX's own of which it runs at least some; their operators are not listed here."""

NEWEST_OPSET: Mapping[str, int] = {"onnxruntime": 26}
"""Engine → the newest operator set it loads (1.31 refuses 27). OpenVINO and TensorRT do not look at the number."""

NEWEST_IR: Mapping[str, int] = {"onnxruntime": 13}
"""Engine → the newest file format it loads (1.31 refuses 14). OpenVINO and TensorRT do not look at the number."""

_NO_CPU_KERNEL: Mapping[int, frozenset[str]] = {
    TensorProto.BFLOAT16: operators_named("Conv ConvTranspose Gemm MatMul"),
    TensorProto.DOUBLE: operators_named("Conv ConvTranspose"),
}
"""Element type → operators that ONNX Runtime's CPU provider has no kernel of (each tried with 1.31)."""

_NOT_IN_TENSORRT = frozenset(
    {TensorProto.INT16, TensorProto.UINT16, TensorProto.FLOAT8E5M2, TensorProto.FLOAT8E5M2FNUZ,
     TensorProto.FLOAT8E4M3FNUZ}
)  # fmt: skip
"""Element types whose initialisers TensorRT's parser refuses (tried with TensorRT-RTX 1.7); of float8 it has E4M3FN."""

INT8_OPERATORS = operators_named(
    "Conv ConvTranspose Gemm MatMul Add Mul AveragePool GlobalAveragePool MaxPool Concat Relu Clip LeakyRelu "
    "Sigmoid HardSigmoid HardSwish Tanh Softmax Resize Where Gather Reshape Flatten Transpose Squeeze "
    "Unsqueeze Slice Split Pad Expand Tile ArgMax DepthToSpace SpaceToDepth Identity ReduceMean"
)
"""Operators that some engine runs on int8 or carries it through; others between DQ and Q cost a conversion each way."""

FLOAT_ALONE: Mapping[str, frozenset[str]] = {
    "onnxruntime": operators_named("ConvTranspose HardSigmoid HardSwish Pad ReduceMean SpaceToDepth Tanh"),
    "tensorrt-rtx": operators_named("ConvTranspose"),
}
"""Engine → those of `INT8_OPERATORS` that it computes in floating point all the same: each tried between DQ and Q with
ONNX Runtime 1.31's CPU provider and TensorRT-RTX 1.7. OpenVINO fuses them; TensorRT 10 and 11 were not tried."""


def is_onnx(domain: str) -> bool:
    """Whether a domain is ONNX's own, which has two names."""
    return domain in ("", "ai.onnx")


def operator_problem(
    node: onnx.NodeProto, engine: str, opset: int, functions: frozenset[tuple[str, str]]
) -> str | None:
    """Why an engine cannot run this node's operator, or None.

    Args:
        opset: of ONNX's own domain, which says which operators exist.
        functions: (domain, name) of the functions that the file brings along.
    """
    if (node.domain, node.op_type) in functions:
        return None
    if not is_onnx(node.domain):
        if node.domain in EXTRA_DOMAINS[engine]:
            return None
        return f"operator {node.domain}::{node.op_type} is not ONNX's, and {engine} does not bring its domain along"
    if not onnx.defs.has(node.op_type, min(opset, onnx.defs.onnx_opset_version()), ""):
        return f"no operator {node.op_type} in opset {opset}"
    if node.op_type in UNSUPPORTED[engine]:
        return f"{engine} has no {node.op_type}"
    return None


def type_problem(node: onnx.NodeProto, element_types: Sequence[int], target: Target) -> str | None:
    """Why a target's engine cannot run this operator on tensors of these types, or None.

    Args:
        element_types: of what the node reads, as ONNX numbers them, 0 where it is not known.
    """
    engine = target.engine
    on_cpu = engine == "onnxruntime" and target.engine_options.get("provider", "cpu") == "cpu"
    if on_cpu and element_types and node.op_type in _NO_CPU_KERNEL.get(element_types[0], ()):
        return f"ONNX Runtime's CPU provider has no {node.op_type} in {_name(element_types[0])}"
    if engine in ("tensorrt", "tensorrt-rtx"):
        refused = [element for element in element_types if element in _NOT_IN_TENSORRT]
        if refused:
            return f"{engine} has no tensors in {_name(refused[0])}"
    return None


def _name(element: int) -> str:
    return TensorProto.DataType.Name(element).lower()
