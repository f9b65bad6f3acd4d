"""Which ONNX operators each engine does not run."""

from __future__ import annotations

from collections.abc import Mapping

import onnx


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
    "tensorrt-rtx": _TENSORRT,
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


INT8_OPERATORS = operators_named(
    "Conv ConvTranspose Gemm MatMul Add Mul AveragePool GlobalAveragePool MaxPool Concat Relu Clip LeakyRelu "
    "Sigmoid HardSigmoid HardSwish Tanh Softmax Resize Where Gather Reshape Flatten Transpose Squeeze "
    "Unsqueeze Slice Split Pad Expand Tile ArgMax DepthToSpace SpaceToDepth Identity ReduceMean"
)
"""Operators that engines run on int8 or carry int8 through; others between DQ and Q cost a conversion each way."""


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
    if node.domain not in ("", "ai.onnx"):
        if node.domain in EXTRA_DOMAINS[engine]:
            return None
        return f"operator {node.domain}::{node.op_type} is not ONNX's, and {engine} does not bring its domain along"
    if not onnx.defs.has(node.op_type, min(opset, onnx.defs.onnx_opset_version()), ""):
        return f"no operator {node.op_type} in opset {opset}"
    if node.op_type in UNSUPPORTED[engine]:
        return f"{engine} has no {node.op_type}"
    return None
