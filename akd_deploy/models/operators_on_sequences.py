"""Operators of sequences, each with what comes after it in networks: attention, normalisations, reductions, choices."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
from onnx import TensorProto

from akd_deploy.models.graph_builder import Graph, Recipe

VOCABULARY = 2048


def _masked(compare: str) -> Recipe:
    def mask(g: Graph) -> str:
        return g.dense(g("Where", g(compare, g.x, g.weight(g.width)), g.x, g.constant(0)), g.width, g.width)

    return mask


def _both(join: str) -> Recipe:
    def mask(g: Graph) -> str:
        high, low = g("Greater", g.x, g.constant(0)), g("Less", g.x, g.constant(1))
        return g("Where", g("Not", g(join, high, low)), g.x, g.constant(0))

    return mask


def _then_dense(name: str, *more: Callable[[Graph], str], **attributes: Any) -> Recipe:
    return lambda g: g.dense(g(name, g.x, *(one(g) for one in more), **attributes), g.width, g.width)


def _reduced(name: str) -> Recipe:
    def reduce(g: Graph) -> str:
        norm = g(name, g.x, g.whole(-1), keepdims=1)
        return g("Div", g.x, g("Add", norm, g.constant(1.5)))

    return reduce


def _pooled(name: str) -> Recipe:
    return lambda g: g.dense(g(name, g.x, g.whole(1), keepdims=0), g.width, g.width)


def _binary(name: str, shape: Callable[[Graph], tuple[int, ...]]) -> Recipe:
    return lambda g: g.dense(g(name, g.x, g.weight(*shape(g))), g.width, g.width)


def _rms(g: Graph) -> str:
    mean = g("ReduceMean", g("Pow", g.x, g.constant(2)), g.whole(-1), keepdims=1)
    scaled = g("Mul", g.x, g("Reciprocal", g("Sqrt", g("Add", mean, g.constant(1e-6)))))
    return g.dense(g("Mul", scaled, g.weight(g.width)), g.width, g.width)


def _rms_divided(g: Graph) -> str:
    mean = g("ReduceMean", g("Pow", g.x, g.constant(2)), g.whole(-1), keepdims=1)
    scaled = g("Div", g.x, g("Sqrt", g("Add", mean, g.constant(1e-6))))
    return g.dense(g("Mul", scaled, g.weight(g.width)), g.width, g.width)


def _normalized(g: Graph, x: str) -> str:
    return g.dense(g("LayerNormalization", x, g.weight(g.width), g.weight(g.width), axis=-1), g.width, g.width)


def _skip_layer_norm(g: Graph) -> str:
    return _normalized(g, g("Add", g.x, g.given(g.extent, g.width)))


def _unscaled_layer_norm(g: Graph) -> str:
    centred = g("Sub", g.x, g("ReduceMean", g.x, g.whole(-1), keepdims=1))
    variance = g("ReduceMean", g("Mul", centred, centred), g.whole(-1), keepdims=1)
    return g.dense(g("Div", centred, g("Sqrt", g("Add", variance, g.constant(1e-5)))), g.width, g.width)


def _gelu_erf(g: Graph) -> str:
    gate = g("Add", g("Erf", g("Div", g.x, g.constant(2**0.5))), g.constant(1))
    return g.dense(g("Mul", g("Mul", g.x, gate), g.constant(0.5)), g.width, g.width)


def _gelu_tanh(g: Graph) -> str:
    inner = g("Add", g.x, g("Mul", g.constant(0.044715), g("Pow", g.x, g.constant(3))))
    gate = g("Add", g("Tanh", g("Mul", inner, g.constant((2 / np.pi) ** 0.5))), g.constant(1))
    return g.dense(g("Mul", g("Mul", g.x, gate), g.constant(0.5)), g.width, g.width)


def _quick_gelu(g: Graph) -> str:
    return g.dense(g("Mul", g.x, g("Sigmoid", g("Mul", g.x, g.constant(1.702)))), g.width, g.width)


def _glu(g: Graph) -> str:
    value, gate = g.all_of("Split", g.x, outputs=2, axis=-1, num_outputs=2)
    return g.dense(g("Mul", value, g("Sigmoid", gate)), g.width // 2, g.width)


def _heads(g: Graph, x: str, heads: int = 4) -> str:
    split = g("Reshape", x, g.whole(0, g.extent, heads, g.width // heads))
    return g("Transpose", split, perm=[0, 2, 1, 3])


def _attention(scale_mask: bool) -> Recipe:
    def attend(g: Graph) -> str:
        query, key, value = (_heads(g, g.dense(g.x, g.width, g.width)) for _ in range(3))
        score = g("MatMul", query, g("Transpose", key, perm=[0, 1, 3, 2]))
        score = g("Mul", score, g.constant(0.125))
        if scale_mask:
            score = g("Add", score, g.weight(1, 1, g.extent, g.extent))
        mixed = g("MatMul", g("Softmax", score, axis=-1), value)
        joined = g("Reshape", g("Transpose", mixed, perm=[0, 2, 1, 3]), g.whole(0, g.extent, g.width))
        return g.dense(joined, g.width, g.width)

    return attend


def _einsum_attention(g: Graph) -> str:
    query, key = (_heads(g, g.dense(g.x, g.width, g.width)) for _ in range(2))
    score = g("Softmax", g("Einsum", query, key, equation="bhid,bhjd->bhij"), axis=-1)
    return g("Einsum", score, key, equation="bhij,bhjd->bhid")


def _rotary(g: Graph) -> str:
    heads, half, end = _heads(g, g.x), g.width // 8, 2**31
    first = g("Slice", heads, g.whole(0), g.whole(half), g.whole(3))
    second = g("Slice", heads, g.whole(half), g.whole(end), g.whole(3))
    turned = g("Concat", g("Neg", second), first, axis=-1)
    angle = g.given(1, g.extent, g.width // 4)
    return g("Add", g("Mul", heads, g("Cos", angle)), g("Mul", turned, g("Sin", angle)))


def _embedded(g: Graph) -> str:
    ids = g.given(g.extent, kind=TensorProto.INT64)
    words = g("Gather", g.weight(VOCABULARY, g.width), ids)
    return _normalized(g, g("Add", words, g("Add", g.x, g.weight(g.extent, g.width))))


def _first_token(g: Graph) -> str:
    return g.dense(g("Gather", g.x, g.constant(0, np.int64), axis=1), g.width, g.width)


def _picked(g: Graph) -> str:
    ids = g.given(g.extent, g.width, kind=TensorProto.INT64)
    return g("GatherElements", g.x, ids, axis=1)


def _scattered(g: Graph) -> str:
    ids = g.given(g.extent, g.width, kind=TensorProto.INT64)
    return g("ScatterElements", g.x, ids, g("Mul", g.x, g.x), axis=1)


def _picked_pairs(g: Graph) -> str:
    """Some of a square of scores, as of interactions between features."""
    scores = g("MatMul", g.x, g("Transpose", g.x, perm=[0, 2, 1]))
    places = np.array([(i, j) for i in range(16) for j in range(i)])
    kept = g("GatherND", g("Transpose", scores, perm=[1, 2, 0]), g.constant(places, np.int64))
    return g("Sigmoid", g("Transpose", kept, perm=[1, 0]))


def _one_hot(g: Graph) -> str:
    ids = g("ArgMax", g.x, axis=-1, keepdims=0)
    hot = g("OneHot", ids, g.constant(g.width, np.int64), g.constant([0, 1]))
    return g("MatMul", hot, g.weight(g.width, g.width))


def _expanded(g: Graph) -> str:
    token = g("Expand", g.weight(1, 1, g.width), g.whole(g.batch, 1, g.width))
    return g.dense(g("Concat", token, g.x, axis=1), g.width, g.width)


def _repeated(g: Graph) -> str:
    """Keys shared by groups of heads."""
    heads = g("Unsqueeze", _heads(g, g.x, 2), g.whole(2))
    wide = g("Expand", heads, g.whole(g.batch, 2, 4, g.extent, g.width // 2))
    return g("Mul", g("Reshape", wide, g.whole(0, 8, g.extent, g.width // 2)), g.constant(0.5))


def _causal(g: Graph) -> str:
    score = g("MatMul", g.x, g("Transpose", g.x, perm=[0, 2, 1]))
    return g("Softmax", g("Trilu", score, upper=0), axis=-1)


def _top(g: Graph) -> str:
    values, _ = g.all_of("TopK", g.x, g.whole(8), outputs=2, axis=-1)
    return g("Softmax", values, axis=-1)


def _rolled(g: Graph) -> str:
    parts = [(g.whole(4), g.whole(g.extent)), (g.whole(0), g.whole(4))]
    return g.dense(
        g("Concat", *(g("Slice", g.x, begin, end, g.whole(1)) for begin, end in parts), axis=1), g.width, g.width
    )


def _recurrent(name: str, gates: int, direction: str = "forward") -> Recipe:
    def run(g: Graph) -> str:
        hidden, ways = g.width // 2, 2 if direction == "bidirectional" else 1
        weights = g.weight(ways, gates * hidden, g.width), g.weight(ways, gates * hidden, hidden)
        steps = g("Transpose", g.x, perm=[1, 0, 2])
        bias = g.weight(ways, 2 * gates * hidden)
        return g("Tanh", g(name, steps, *weights, bias, hidden_size=hidden, direction=direction))

    return run


def _convolved(g: Graph, window: int, deep: bool = False, stride: int = 1, dilation: int = 1) -> str:
    turned, groups = g("Transpose", g.x, perm=[0, 2, 1]), g.width if deep else 1
    weight = g.weight(g.width, g.width // groups, window)
    return g("Conv", turned, weight, g.weight(g.width), kernel_shape=[window], group=groups, strides=[stride],
             dilations=[dilation], pads=[dilation * (window // 2)] * 2)  # fmt: skip


def _conv_1d(window: int, deep: bool = False, stride: int = 1, dilation: int = 1) -> Recipe:
    return lambda g: g("Relu", _convolved(g, window, deep, stride, dilation))


def _gated_conv_1d(g: Graph) -> str:
    return g("Mul", g("Tanh", _convolved(g, 3, dilation=2)), g("Sigmoid", _convolved(g, 3, dilation=2)))


def _silu_conv_1d(g: Graph) -> str:
    mapped = _convolved(g, 31, deep=True)
    return g("Transpose", g("Mul", mapped, g("Sigmoid", mapped)), perm=[0, 2, 1])


def _upsampled_1d(g: Graph) -> str:
    weight = g.weight(g.width, g.width // 2, 4)
    turned = g("Transpose", g.x, perm=[0, 2, 1])
    return g("Relu", g("ConvTranspose", turned, weight, g.weight(g.width // 2), kernel_shape=[4], strides=[2],
                       pads=[1, 1]))  # fmt: skip


def _pooled_1d(name: str) -> Recipe:
    return lambda g: g(name, _convolved(g, 1), kernel_shape=[2], strides=[2])


def _swiglu(g: Graph) -> str:
    gate = g.dense(g.x, g.width, 2 * g.width)
    return g.dense(
        g("Mul", g("Mul", gate, g("Sigmoid", gate)), g.dense(g.x, g.width, 2 * g.width)), 2 * g.width, g.width
    )


def _tied_head(g: Graph) -> str:
    return g("MatMul", g.x, g("Transpose", g.weight(VOCABULARY, g.width), perm=[1, 0]))


def _attention_with(keys: Callable[[Graph], str], reduced: int = 1, biased: bool = False) -> Recipe:
    """`reduced` times fewer keys than queries, of what `keys` makes of the sequence."""

    def attend(g: Graph) -> str:
        short, length = keys(g), g.extent // reduced
        query = _heads(g, g.dense(g.x, g.width, g.width))
        key, value = (
            g("Transpose", g("Reshape", g.dense(short, g.width, g.width), g.whole(0, length, 4, g.width // 4)),
              perm=[0, 2, 1, 3]) for _ in range(2)
        )  # fmt: skip
        score = g("Div", g("MatMul", query, g("Transpose", key, perm=[0, 1, 3, 2])), g.constant(8))
        if biased:
            score = g("Add", score, g.weight(1, 4, g.extent, length))
        mixed = g("Transpose", g("MatMul", g("Softmax", score, axis=-1), value), perm=[0, 2, 1, 3])
        return g.dense(g("Reshape", mixed, g.whole(0, g.extent, g.width)), g.width, g.width)

    return attend


def _every_fourth(g: Graph) -> str:
    groups = g("Reshape", g.x, g.whole(0, g.extent // 4, 4, g.width))
    return g("ReduceMean", groups, g.whole(2), keepdims=0)


def _cross_covariance(g: Graph) -> str:
    """Attention between channels instead of tokens."""
    query, key, value = (g("Transpose", _heads(g, g.dense(g.x, g.width, g.width)), perm=[0, 1, 3, 2]) for _ in range(3))
    score = g("Softmax", g("MatMul", query, g("Transpose", key, perm=[0, 1, 3, 2])), axis=-1)
    mixed = g("Transpose", g("MatMul", score, value), perm=[0, 3, 1, 2])
    return g.dense(g("Reshape", mixed, g.whole(0, g.extent, g.width)), g.width, g.width)


def _normalized_row(g: Graph) -> str:
    """Of a network of rows of a table."""
    row = g("Gather", g.x, g.constant(0, np.int64), axis=1)
    mapped = g("Relu", g("Gemm", row, g.weight(g.width, 2 * g.width), g.weight(2 * g.width)))
    statistics = *(g.weight(2 * g.width) for _ in range(3)), g.constant(np.full(2 * g.width, 0.5))
    return g("Gemm", g("BatchNormalization", mapped, *statistics), g.weight(2 * g.width, 10), g.weight(10))


def _cast(kind: int) -> Recipe:
    """There and back."""
    return lambda g: g("Cast", g("Cast", g.dense(g.x, g.width, g.width), to=kind), to=TensorProto.FLOAT)


def _row_product(wider: int) -> Recipe:
    """One row for all tokens, without a bias that runtimes would make a Gemm of."""

    def multiply(g: Graph) -> str:
        row = g("ReduceMean", g.x, g.whole(1), keepdims=1)
        return g("Tanh", g("MatMul", row, g.weight(g.width, wider * g.width)))

    return multiply


def _flat_product(g: Graph) -> str:
    flat = g("Reshape", g.x, g.whole(-1, g.width))
    return g("Gemm", flat, g.weight(g.width, g.width), g.weight(g.width), transB=1)


def _recipes() -> dict[str, Recipe]:
    def row(g: Graph) -> tuple[int, ...]:
        return (g.width,)

    def column(g: Graph) -> tuple[int, ...]:
        return (g.extent, 1)

    def full(g: Graph) -> tuple[int, ...]:
        return (1, g.extent, g.width)

    names = ("Gelu", "Erf", "Abs", "Neg", "Exp", "Sin", "Cos", "Round", "Ceil", "Sign", "HardSwish", "Mish", "Softplus",
             "Tanh", "Sigmoid", "Elu", "Relu", "Reciprocal")  # fmt: skip
    shapes = {"row": row, "column": column, "full": full}
    return {
        "LayerNormalization": lambda g: _normalized(g, g.x), "SkipLayerNormalization": _skip_layer_norm,
        "RMSNormalization": _then_dense("RMSNormalization", lambda g: g.weight(g.width)),
        "RMSPattern": _rms, "RMSPatternDivided": _rms_divided, "LayerNormalizationPattern": _unscaled_layer_norm,
        **{f"Sequence{name}": _then_dense(name) for name in names},
        "GeluTanh": _then_dense("Gelu", approximate="tanh"),
        "GeluErfPattern": _gelu_erf, "GeluTanhPattern": _gelu_tanh, "QuickGeluPattern": _quick_gelu, "Glu": _glu,
        "SequenceSqrt": lambda g: g.dense(g("Sqrt", g("Abs", g.x)), g.width, g.width),
        "SequenceLog": lambda g: g.dense(g("Log", g("Add", g("Abs", g.x), g.constant(1))), g.width, g.width),
        "SequencePow": _then_dense("Pow", lambda g: g.constant(2)),
        "PowCubed": _then_dense("Pow", lambda g: g.constant(3)),
        **{f"{name}_{how}": _binary(name, shape) for how, shape in shapes.items()
           for name in ("Add", "Mul", "Sub", "Div", "Max", "Min")},
        "ClipSequence": lambda g: g.dense(g("Clip", g("Neg", g.x), g.constant(-1), g.constant(1)), g.width, g.width),
        **{f"Where{name}": _masked(name) for name in ("Greater", "Less", "Equal", "GreaterOrEqual", "LessOrEqual")},
        "LogicalAnd": _both("And"), "LogicalOr": _both("Or"),
        **{f"Sequence{name}": _reduced(name) for name in
           ("ReduceL2", "ReduceL1", "ReduceMax", "ReduceMin", "ReduceSum", "ReduceMean", "ReduceSumSquare",
            "ReduceLogSumExp")},
        **{f"Pooled{name}": _pooled(name) for name in ("ReduceMean", "ReduceMax", "ReduceSum")},
        "Attention": _attention(False), "MaskedAttention": _attention(True), "EinsumAttention": _einsum_attention,
        "EinsumDense": lambda g: g("Einsum", g.x, g.weight(g.width, g.width), equation="bld,de->ble"),
        "RotaryEmbedding": _rotary, "RepeatedHeads": _repeated,
        "Embedding": _embedded, "FirstToken": _first_token, "ClassToken": _expanded,
        "GatherElements": _picked, "GatherPairs": _picked_pairs, "ScatterElements": _scattered, "OneHot": _one_hot,
        "LogSoftmax": lambda g: g("LogSoftmax", g.dense(g.x, g.width, g.width), axis=-1),
        "TokenSoftmax": lambda g: g.dense(g("Softmax", g.x, axis=1), g.width, g.width),
        "Softmax": lambda g: g.dense(g("Softmax", g.x, axis=-1), g.width, g.width),
        "CumSum": lambda g: g.dense(g("CumSum", g.x, g.constant(1, np.int64)), g.width, g.width),
        "TopK": _top, "Trilu": _causal, "Roll": _rolled,
        "ArgMax": lambda g: g("Cast", g("ArgMax", g.x, axis=-1), to=TensorProto.FLOAT),
        "ArgMin": lambda g: g("Cast", g("ArgMin", g.x, axis=-1), to=TensorProto.FLOAT),
        "Cast": _cast(TensorProto.INT32), "CastBool": _cast(TensorProto.BOOL),
        "TransposeTokens": lambda g: g.dense(g("Transpose", g.x, perm=[0, 2, 1]), g.extent, g.extent),
        "RowProduct": _row_product(1), "WideRowProduct": _row_product(4), "Gemm": _flat_product,
        "LSTM": _recurrent("LSTM", 4), "LSTMBidirectional": _recurrent("LSTM", 4, "bidirectional"),
        "GRU": _recurrent("GRU", 3), "GRUBidirectional": _recurrent("GRU", 3, "bidirectional"),
        "RNN": _recurrent("RNN", 1), "Conv1d": _conv_1d(3), "Conv1dDepthwise": _conv_1d(5, deep=True),
        "Conv1dPointwise": _conv_1d(1), "Conv1dStrided": _conv_1d(3, stride=2),
        "Conv1dDilated": _conv_1d(3, dilation=4), "Conv1dWide": _conv_1d(9), "Conv1dGated": _gated_conv_1d,
        "Conv1dDepthwiseSilu": _silu_conv_1d,
        "ConvTranspose1d": _upsampled_1d, "MaxPool1d": _pooled_1d("MaxPool"),
        "AveragePool1d": _pooled_1d("AveragePool"),
        "SwiGlu": _swiglu, "TiedHead": _tied_head, "Head": lambda g: g.dense(g.x, g.width, VOCABULARY),
        "BiasedAttention": _attention_with(lambda g: g.x, biased=True),
        "ReducedAttention": _attention_with(_every_fourth, 4), "CrossCovariance": _cross_covariance,
        "Rows": _normalized_row,
    }  # fmt: skip


SEQUENCE_OPERATORS: Mapping[str, Recipe] = MappingProxyType(_recipes())
"""Name → what comes after a dense layer."""
