"""What a kernel's cost can depend on: the one description that fitting and predicting share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import takewhile
from math import ceil, exp2, gcd, log2, sqrt
from math import prod as _prod
from types import MappingProxyType

import numpy as np

from akd_deploy.kernel import BYTES_PER_ELEMENT, Kernel, Shape

VECTOR_CHANNELS = 16
"""Channels are padded to this many in blocked layouts (16 floats fill an AVX-512 register); a term, not a rule."""

CONVOLUTIONS = ("dense", "pointwise", "grouped", "depthwise", "transposed")
PRODUCTS = ("shared", "batched")
"""Kinds of a matrix product: one right-hand matrix for all (a weight), or one for each matrix on the left."""

_PRODUCT_NAMES = frozenset({"mm", "bmm", "addmm", "baddbmm", "matmul", "linear", "einsum", "dot"})
_RECURRENT_PARTS = ("lstm", "gru", "rnn")
_TRANSPOSED = ("transpose", "deconv")
_PRODUCT_PARTS = ("gemm", "matmul", "fullyconnected", "matrix_multiply", "matrixmultiply")


def prod(sizes: Sequence[int]) -> int:
    """Product of sizes; 1 for none."""
    return int(_prod(sizes))


@dataclass(frozen=True)
class Dimensions:
    """The sizes that rule a kernel's cost, under one name whatever the operator and its memory layout.

    `kind` is one of `CONVOLUTIONS` or `PRODUCTS`, "pool", "attention", "recurrent", or "" for everything else. An
    output holds `batch` × `out` × `positions` elements; `reduced` terms (times `window` for a convolution) stand behind
    each.
    `broadcast` is how many inputs are smaller than the output, up to 2, and `run` how many output elements in a row are
    made without starting on one of them anew.
    """

    kind: str
    batch: int
    reduced: float
    out: int
    positions: float
    window: int = 1
    groups: int = 1
    stride: int = 1
    dilation: int = 1
    broadcast: int = 0
    run: float = 1.0


def _whole(value: object, default: int) -> int:
    return value if isinstance(value, int) and value > 0 else default


def _sizes(value: object) -> tuple[int, ...]:
    if isinstance(value, tuple):
        return value
    return (value,) if isinstance(value, int) else ()


@lru_cache(maxsize=65_536)
def dimensions(kernel: Kernel) -> Dimensions:
    """Read a kernel's sizes off its shapes."""
    output = kernel.outputs[0] if kernel.outputs else ()
    first = kernel.inputs[0] if kernel.inputs else ()
    elements = max(1, prod(output))
    batch = max(1, output[0]) if len(output) > 1 else 1
    window = kernel.attribute("kernel_size")
    stride = max(1, prod(_sizes(kernel.attribute("strides"))))
    if window is not None:
        weight = next((shape for shape in kernel.inputs[1:] if len(shape) >= 3), None)
        if weight is not None:
            return _convolution(kernel, weight, batch, elements, stride)
        channels = max(1, output[1]) if len(output) > 2 else 1
        positions = elements / batch / channels
        return Dimensions("pool", batch, 1, channels, positions, max(1, prod(_sizes(window))), stride=stride)
    if "attention" in kernel.op.lower() and len(first) >= 3 and len(kernel.inputs) > 1 and len(kernel.inputs[1]) >= 2:
        width = max(1, first[-1])
        return Dimensions("attention", batch, width, max(1, kernel.inputs[1][-2]), elements / batch / width)
    if _is_fused_attention(kernel):
        width = max(1, first[-1])
        return Dimensions("attention", batch, width, _keys(first, kernel.inputs[1]), elements / batch / width)
    if (weights := _recurrent_weights(kernel)) and first:
        steps = prod(first[:-1])
        out = max(1, output[-1]) if output else 1
        reduced = steps * sum(map(prod, weights)) / max(1, kernel.output_elements)
        return Dimensions("recurrent", 1, reduced, out, elements / out)
    if _is_product(kernel.op):
        return _product(kernel, output, elements)
    largest = max((prod(shape) for shape in kernel.inputs), default=1)
    out = max(1, output[-1]) if output else 1
    smaller = [shape for shape in kernel.inputs if 0 < prod(shape) < elements]
    run = float(min((_run(shape, output) for shape in smaller), default=elements))
    return Dimensions("", 1, max(1.0, largest / elements), out, elements / out, broadcast=min(len(smaller), 2), run=run)


def _run(shape: Shape, output: Shape) -> int:
    """Output elements in a row for which a broadcast input is either walked along or stood still on."""
    padded = (1,) * (len(output) - len(shape)) + shape[-len(output) :] if output else ()
    ends = [(own, size) for own, size in zip(padded, output, strict=True) if size > 1][::-1]
    stands = bool(ends) and ends[0][0] == 1
    return prod([size for _, size in takewhile(lambda pair: (pair[0] == 1) == stands, ends)])


def _is_fused_attention(kernel: Kernel) -> bool:
    """Whether a fused kernel of elementwise operators holds the matrix products of an attention head, too."""
    operators = kernel.attribute("operators")
    inside = isinstance(operators, str) and "MatMul" in operators.split("+")
    return inside and len(kernel.inputs) > 2 and all(len(shape) >= 3 for shape in kernel.inputs[:2])


def _keys(queries: Shape, keys: Shape) -> int:
    """How many keys each query meets: (…, queries, width) and keys of the same width, either transposed."""
    rows = queries[-2] if queries[-2] in keys[-2:] else max(queries[:-1])
    return max(1, round(prod(keys) / max(1, prod(queries)) * rows))


def _recurrent_weights(kernel: Kernel) -> list[Shape]:
    """(directions, gates × units, inputs or units) of a recurrent operator; none of any other."""
    name, constants = kernel.op.lower(), kernel.attribute("constants")
    if not isinstance(constants, tuple) or not any(part in name for part in _RECURRENT_PARTS):
        return []
    return [kernel.inputs[i] for i in constants if i < len(kernel.inputs) and len(kernel.inputs[i]) == 3]


def _is_product(operator: str) -> bool:
    name = operator.lower().rsplit(".", 1)[-1]
    return name in _PRODUCT_NAMES or any(part in name for part in _PRODUCT_PARTS)


def _convolution(kernel: Kernel, weight: Shape, batch: int, elements: int, stride: int) -> Dimensions:
    """`weight` is (out, in / groups, *window); (in, out / groups, *window) where the convolution is transposed."""
    count = _whole(kernel.attribute("groups"), 1)
    window = max(1, prod(weight[2:]))
    moved = (stride, max(1, prod(_sizes(kernel.attribute("dilations")))))
    if any(part in kernel.op.lower() for part in _TRANSPOSED) or kernel.attribute("transposed") == 1:
        out = max(1, weight[1] * count)
        return Dimensions("transposed", batch, weight[0] / count, out, elements / batch / out, window, count, *moved)
    ungrouped = "pointwise" if window == 1 else "dense"
    kind = ungrouped if count == 1 else "depthwise" if weight[1] == 1 else "grouped"
    out = max(1, weight[0])
    return Dimensions(kind, batch, weight[1], out, elements / batch / out, window, count, *moved)


def _product(kernel: Kernel, output: Shape, elements: int) -> Dimensions:
    """(batch × m × k) times (batch or 1 × k × n), either transposed: k² = |A| |B| / (|output| × matrices in B)."""
    out = max(1, output[-1]) if output else 1
    matrices = [shape for shape in kernel.inputs if len(shape) >= 2]
    if len(matrices) < 2:
        return Dimensions(
            "shared", 1, kernel.inputs[0][-1] if kernel.inputs and kernel.inputs[0] else 1, out, elements / out
        )
    left, right = matrices[:2]
    batch = max(1, prod(right[:-2]))
    reduced = sqrt(prod(left) * prod(right) / (elements * batch))
    kind = "shared" if batch == 1 else "batched"
    return Dimensions(kind, batch, reduced, out, max(1.0, elements / batch / out))


TERMS = (
    "launch", "macs", "padded_macs", "traffic_bytes", "outputs", "rows", "filling_macs", "filling_bytes",
    "transcendental", "aliased_bytes", "denormals",
)  # fmt: skip
"""Names of what `cost_terms` returns, in order."""
FILLING = 0.7
"""Exponent of the filling terms: a small kernel fills the device badly, so that time grows slower than work until
it does. Its value matters little (families left out on an H200: MAPE 7.9 % at 0.5, 7.5 % here, 9.0 % without)."""


def groups(kernel: Kernel) -> int:
    """The convolution's group count; 1 where the operator has none."""
    return _whole(kernel.attribute("groups"), 1)


LAYOUTS = ("plain", "last", "blocked")
"""What an engine's name of a memory layout says: dimensions in order, channels last, or channels in blocks."""


def _along_rows(kernel: Kernel) -> bool | None:
    """Whether an operator that works along axes works along the last one; None for operators that name no axis."""
    value, rank = kernel.attribute("axes"), len(kernel.inputs[0]) if kernel.inputs else 0
    axes = _sizes(kernel.attribute("axis") if value is None else value)
    return None if not axes or not rank else any(axis in (-1, rank - 1) for axis in axes)


def _layout(name: object) -> int | None:
    """Position among `LAYOUTS` of a layout named by its dimensions' letters ("acdb", "aBcd16b"); None without one."""
    if not isinstance(name, str) or not name:
        return None
    if not name.isalpha() or not name.islower():
        return 2
    return 0 if list(name) == sorted(name) else 1


FUSED_NAMES: Mapping[str, str] = MappingProxyType({"FusedConv": "Conv", "FusedGemm": "Gemm"})
"""What ONNX Runtime calls an operator with an activation in it → without: a coordinate tells the two apart."""
_INTERPOLATING = ("resize", "upsample", "interpolate")


@lru_cache(maxsize=65_536)
def regime(kernel: Kernel) -> str:
    """Kernels of one regime are assumed to cost alike: the operator, for products their kind, for interpolations their
    mode, for transpositions whether rows stay whole, for a softmax whether it is along rows, and for reorders from
    which layout to which."""
    kind, op = dimensions(kernel).kind, kernel.op
    if kind in CONVOLUTIONS or kind in PRODUCTS:
        op = FUSED_NAMES.get(op, op)
    order, mode = kernel.attribute("perm"), kernel.attribute("mode")
    if isinstance(mode, str) and any(part in kernel.op.lower() for part in _INTERPOLATING):
        return f"{kernel.op}/{mode}"
    if kernel.op.endswith("Softmax") and _along_rows(kernel) is False:
        return f"{kernel.op}/columns"
    if kernel.op == "Transpose" and isinstance(order, tuple) and order:
        return f"{kernel.op}/{'rows' if order[-1] == len(order) - 1 else 'elements'}"
    source, target = _layout(kernel.attribute("from_layout")), _layout(kernel.attribute("layout"))
    if source is not None and target is not None:
        return f"{kernel.op}/{LAYOUTS[source]}-{LAYOUTS[target]}"
    return op if kind in ("", "pool") else f"{op}/{kind}"


def macs(kernel: Kernel) -> int:
    """Multiply-accumulates (window reads for pooling); 0 for elementwise operators."""
    size = dimensions(kernel)
    if size.kind == "":
        return 0
    if size.kind == "attention":  # queries times keys, and the result times values
        return round(2 * kernel.output_elements * size.out)
    if size.kind == "transposed":  # every input element meets every weight of its group
        return round(prod(kernel.inputs[0]) * size.window * size.out / size.groups)
    return round(kernel.output_elements * size.reduced * size.window)


_PICKING = ("slice", "gather")


@lru_cache(maxsize=65_536)
def moved_bytes(kernel: Kernel) -> float:
    """Bytes read and written: every tensor's once, but of one that elements are picked from no more than are picked."""
    if not any(part in kernel.op.lower() for part in _PICKING):
        return kernel.traffic_bytes
    picked = kernel.output_elements
    return BYTES_PER_ELEMENT[kernel.dtype] * (picked + sum(min(prod(shape), picked) for shape in kernel.inputs))


def _padded(channels: int) -> int:
    return VECTOR_CHANNELS * ceil(channels / VECTOR_CHANNELS)


@lru_cache(maxsize=65_536)
def cost_terms(kernel: Kernel) -> tuple[float, ...]:
    """Non-negative quantities that a kernel's time is a non-negative combination of; see `TERMS`.

    `padded_macs` counts channels rounded up to full vectors; `rows` are output rows (of channels: full vectors of them;
    of planes: full vectors of one row of each; with broadcasting: runs), each of which costs a loop; the filling terms
    are `padded_macs` and `traffic_bytes` to the power `FILLING`. `transcendental` are outputs times the exponentials
    and the like that are fused into the kernel, and `aliased_bytes` those that it moves with strides that meet in one
    set of a cache; `denormals` are the operations on numbers below the least normal one. In one `setting`, none of them
    falls where a kernel's sizes grow.
    """
    size, counted = dimensions(kernel), float(macs(kernel))
    padded = counted * _padded(size.out) / size.out
    if size.kind in ("dense", "pointwise"):
        padded *= _padded(int(size.reduced)) / max(1.0, size.reduced)
    output = kernel.outputs[0] if kernel.outputs else ()
    rows = prod(output[:-1]) / VECTOR_CHANNELS if len(output) > 2 else 0.0
    if size.kind == "pool" or size.kind in CONVOLUTIONS:
        rows *= _padded(size.out) / size.out
    elif size.kind == "" and len(output) > 3:
        rows = prod(output[:-2]) * _padded(size.out) / VECTOR_CHANNELS
    if size.broadcast:
        rows = kernel.output_elements / size.run
    traffic = moved_bytes(kernel)
    linear = (1.0, counted, padded, traffic, float(kernel.output_elements), rows)
    fused = (kernel.output_elements * _transcendental(kernel), traffic * _aliasing(kernel), _denormals(kernel))
    return (*linear, padded**FILLING, traffic**FILLING, *fused)


_TRANSCENDENTAL = (
    "sigmoid", "tanh", "elu", "erf", "exp", "softplus", "mish", "swish", "silu", "softmax", "log", "sin", "cos",
)  # fmt: skip
_ARITHMETIC = ("relu", "hardswish", "hardsigmoid", "logical")


@lru_cache(maxsize=65_536)
def _transcendental(kernel: Kernel) -> int:
    """How many exponentials and the like are fused into a kernel."""
    fused = [kernel.attribute("activation"), kernel.attribute("operators")]
    names = [name.lower() for text in fused if isinstance(text, str) for name in text.split("+")]
    return sum(
        any(part in name for part in _TRANSCENDENTAL) and not any(part in name for part in _ARITHMETIC)
        for name in names
    )


def _denormal_share(kernel: Kernel) -> float:
    value = kernel.attribute("denormals")
    return float(value) if isinstance(value, int | float) else 0.0


def _denormals(kernel: Kernel) -> float:
    """Multiply-accumulates, or outputs where there are none, with a number below the least normal one."""
    return _denormal_share(kernel) * (macs(kernel) or kernel.output_elements)


ALIASED_BYTES, LEAST_ALIASED_BYTES = 4096, 512
"""Strides that are a multiple of the former use one set of a first-level cache alone (64 sets of 64 bytes), multiples
of smaller powers of two a few."""


@lru_cache(maxsize=65_536)
def _aliasing(kernel: Kernel) -> float:
    """How few sets of a cache a transposition or a change of layout strides over: 1 where one alone, 0 where many."""
    shape, order = (kernel.inputs[0] if kernel.inputs else ()), kernel.attribute("perm")
    if isinstance(order, tuple) and len(order) == len(shape) and order[-1] != len(order) - 1:
        stride = prod(shape[order[-1] + 1 :])
    elif {_layout(kernel.attribute("from_layout")), _layout(kernel.attribute("layout"))} == {0, 1}:
        stride = prod(shape[2:])
    else:
        return 0.0
    shared = gcd(round(stride * BYTES_PER_ELEMENT[kernel.dtype]), ALIASED_BYTES)
    return max(0.0, log2(shared / LEAST_ALIASED_BYTES) / log2(ALIASED_BYTES / LEAST_ALIASED_BYTES))


SIZES, GEOMETRY, SETTINGS = 0, 1, 2
COORDINATE_GROUPS = (SIZES,) * 6 + (GEOMETRY,) * 4 + (SETTINGS,) * 10
"""What each of `coordinates` is: costs change with sizes, geometry and settings over distances of their own."""
GROUP_NAMES = ("sizes", "geometry", "settings")
RUN = 14
"""The coordinate of runs: a setting whose length changes with sizes."""


@lru_cache(maxsize=65_536)
def coordinates(kernel: Kernel) -> tuple[float, ...]:
    """Where a kernel lies among its regime's: logarithms of its sizes, one unit a doubling, then its geometry and
    settings, as `COORDINATE_GROUPS` says.

    Every kernel has the same number of coordinates.
    """
    size = dimensions(kernel)
    return (
        log2(1 + size.reduced),
        log2(1 + size.out),
        log2(1 + size.positions),
        log2(size.batch),
        log2(1 + moved_bytes(kernel) / BYTES_PER_ELEMENT[kernel.dtype]),
        log2(1 + _padded(size.out) / VECTOR_CHANNELS),
        log2(size.window),
        log2(size.stride),
        log2(size.dilation),
        log2(size.groups) if size.kind == "grouped" else 0.0,
        0.5 * (kernel.attribute("activation") not in (None, "", "none")),
        0.5 * bool(kernel.attribute("residual")),
        0.5 * len(kernel.inputs),
        float(size.broadcast),
        log2(1 + size.run) if size.broadcast else 0.0,
        float(_layout(kernel.attribute("layout")) or 0),
        float(_along_rows(kernel) is False),
        0.5 * _transcendental(kernel),
        _aliasing(kernel),
        log2(1 + DENORMAL_SLOWNESS * _denormal_share(kernel)),
    )


DENORMAL_SLOWNESS = 90
"""How much slower a processor is with such numbers, about: what makes a share of them a large one."""


def _power(value: float) -> float:
    return _whole_if_near(exp2(value))


def _less_one(value: float) -> float:
    return _whole_if_near(exp2(value) - 1)


def _whole_if_near(value: float) -> float:
    """Without the rounding of logarithms."""
    return round(value) if abs(value - round(value)) < 1e-9 * max(1.0, value) else value


def _doubled(value: float) -> float:
    return 2.0 * value


COORDINATES: tuple[tuple[str, Callable[[float], float]], ...] = (
    ("input channels or inner size", _less_one),
    ("output channels or columns", _less_one),
    ("positions", _less_one),
    ("batch", _power),
    ("elements moved", _less_one),
    ("output channels in vectors of 16", _less_one),
    ("window", _power),
    ("stride", _power),
    ("dilation", _power),
    ("groups", _power),
    ("fused activations", _doubled),
    ("fused residuals", _doubled),
    ("inputs", _doubled),
    ("broadcast inputs", float),
    ("run of a broadcast", _less_one),
    ("layout", float),
    ("along columns", float),
    ("fused exponentials", _doubled),
    ("strides that meet in one set of a cache", float),
    ("share of denormal numbers", lambda value: _less_one(value) / DENORMAL_SLOWNESS),
)
"""What each of `coordinates` is called in messages, and from it back to the quantity; of `layout` the position among
`LAYOUTS`."""


def order_sizes(coordinates: np.ndarray, terms: np.ndarray) -> np.ndarray:
    """(n, coordinates), (n, terms) → (n, sizes): in which kernels of one `setting` are smaller and larger."""
    sizes = coordinates[:, np.array(COORDINATE_GROUPS) == SIZES]
    return np.round(np.column_stack([sizes, np.log2(1 + terms[:, TERMS.index("rows")])]), 9)


@lru_cache(maxsize=65_536)
def setting(kernel: Kernel) -> tuple[object, ...]:
    """What kernels that differ in sizes alone share: regime, type, attributes, and coordinates that are no size."""
    own = [pair for pair in kernel.attributes if pair[0] != "groups" or dimensions(kernel).kind != "depthwise"]
    place = coordinates(kernel)
    fixed = [place[i] for i, group in enumerate(COORDINATE_GROUPS) if group != SIZES and i != RUN]
    return (regime(kernel), kernel.dtype, len(kernel.outputs), tuple(map(len, kernel.inputs)), *own, *fixed)


def window_and_width(kernel: Kernel) -> tuple[float, float]:
    """Positions in a kernel's window and bytes of an element: what `with_window_and_type` changes."""
    return dimensions(kernel).window, BYTES_PER_ELEMENT[kernel.dtype]


def with_window_and_type(terms: np.ndarray, own: np.ndarray, other: Kernel) -> np.ndarray:
    """(n, terms) of kernels as if their window, their type and what is fused into them were another's of their regime,
    about; `own` (n, 2) as `window_and_width` says of each."""
    at = {name: i for i, name in enumerate(TERMS)}
    window, width = (np.array(window_and_width(other)) / own).T
    result = terms.copy()
    for name in ("macs", "padded_macs"):
        result[:, at[name]] *= window
    result[:, at["traffic_bytes"]] *= width
    result[:, at["filling_macs"]] *= window**FILLING
    result[:, at["filling_bytes"]] *= width**FILLING
    outputs, macs_ = terms[:, at["outputs"]], terms[:, at["macs"]]
    result[:, at["transcendental"]] = outputs * _transcendental(other)
    result[:, at["aliased_bytes"]] = result[:, at["traffic_bytes"]] * _aliasing(other)
    result[:, at["denormals"]] = _denormal_share(other) * np.where(macs_ > 0, macs_, outputs)
    return result
