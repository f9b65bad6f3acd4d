"""Kernels of TensorRT engines as 10.x and 11.x describe them; the descriptions are hand-made after the formats."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from akd_deploy.engines.tensorrt_inspect import (
    NodeSettings,
    executed_kernels_from_layers,
    layers_from_inspector,
    layers_from_log,
)
from akd_deploy.errors import BuildError
from akd_deploy.kernel import ExecutedKernel
from akd_deploy.predictor.features import dimensions, macs

GOLDEN = Path(__file__).parents[1] / "golden" / "tensorrt"
NODES = {
    "stem": NodeSettings("Conv", (("groups", 1), ("kernel_size", (3, 3)), ("strides", (2, 2)))),
    "stem_relu": NodeSettings("Relu"),
    "dw": NodeSettings("Conv", (("groups", 32), ("kernel_size", (3, 3)), ("strides", (1, 1)))),
    "dw_relu": NodeSettings("Relu"),
    "pw": NodeSettings("Conv", (("groups", 1), ("kernel_size", (1, 1)), ("strides", (1, 1)))),
    "add": NodeSettings("Add"),
}
TEN = [
    ("Reformat", "float32", "stem_quant"),
    ("CaskConvolution", "int8", "stem_dequant stem stem_relu dw_quant"),
    ("CaskConvolution", "int8", "dw_dequant dw dw_relu pw_quant"),
    ("CaskConvolution", "int8", "pw_dequant pw add"),
    ("Reformat", "float16", ""),
    ("PointWiseV2", "float16", "swish_sigmoid swish_mul"),
    ("Shuffle", "float16", "transpose"),
    ("gemm", "float16", "qkv"),
    ("kgen", "float16", "split q_heads k_heads v_heads"),
    ("attention", "float16", "qk scale softmax av"),
    ("gemm", "float16", "proj"),
    ("kgen", "float16", "res norm"),
    ("MatrixMultiply", "float16", "head"),
    ("Reformat", "float16", ""),
]
ELEVEN = [
    ("kgen", "float32", "stem_quant"),
    ("correlation", "int8", "stem_dequant stem stem_relu dw_quant"),
    ("correlation", "int8", "dw_dequant dw dw_relu pw_quant"),
    ("correlation", "int8", "pw_dequant pw add"),
    ("kgen", "float16", "swish_sigmoid swish_mul flatten transpose"),
    ("gemm", "float16", "qkv"),
    ("kgen", "float16", "split q_heads k_heads v_heads"),
    ("attention", "float16", "qk scale softmax av"),
    ("kgen", "float16", "proj_quant"),
    ("gemm", "int8", "proj_dequant proj"),
    ("kgen", "float16", "res norm"),
    ("gemm", "float16", "head"),
]


def inspected(version: str) -> tuple[ExecutedKernel, ...]:
    return executed_kernels_from_layers(
        layers_from_inspector((GOLDEN / f"inspector_{version}.json").read_text()), NODES
    )


def logged(text: str) -> tuple[ExecutedKernel, ...]:
    return executed_kernels_from_layers(layers_from_log(["Parsing", text, "Done"]), NODES)


def of(version: str, nodes: str) -> ExecutedKernel:
    (found,) = (e for e in inspected(version) if " ".join(e.nodes) == nodes)
    return found


@pytest.mark.parametrize(("version", "expected"), [("10", TEN), ("11", ELEVEN)])
def test_every_layer_that_runs_is_a_kernel_in_the_type_that_it_reads(version, expected):
    assert [(e.kernel.op, e.kernel.dtype, " ".join(e.nodes)) for e in inspected(version)] == expected


@pytest.mark.parametrize("version", ["10", "11"])
def test_a_build_log_tells_the_same_kernels_as_the_inspector(version):
    assert logged((GOLDEN / f"build_log_{version}.txt").read_text()) == inspected(version)


@pytest.mark.parametrize("version", ["10", "11"])
def test_an_int8_convolution_has_its_window_weights_and_residual(version):
    dw, pw = of(version, "dw_dequant dw dw_relu pw_quant").kernel, of(version, "pw_dequant pw add").kernel
    assert dw.inputs[:2] == ((1, 32, 16, 16), (32, 1, 3, 3))
    assert (dw.attribute("kernel_size"), dw.attribute("groups"), dw.attribute("activation")) == ((3, 3), 32, "relu")
    assert dw.attribute("to") is None
    assert pw.inputs[:2] == ((1, 32, 16, 16), (32, 32, 1, 1))
    assert pw.inputs[-1] == (1, 32, 16, 16)
    assert (pw.attribute("residual"), pw.attribute("to")) == (1, "float16")
    assert (dimensions(dw).kind, dimensions(pw).kind) == ("depthwise", "pointwise")
    assert macs(pw) == 32 * 32 * 16 * 16


def test_a_quantising_reformat_is_another_kernel_than_one_of_layouts():
    quantise, relayout, convert = (e.kernel for e in inspected("10") if e.kernel.op == "Reformat")
    assert dict(quantise.attributes) == {
        "from": "float32", "to": "int8", "from_format": "linear", "to_format": "chw4", "origin": "qdq",
    }  # fmt: skip
    assert dict(relayout.attributes) == {
        "from": "float16", "to": "float16", "from_format": "hwc8", "to_format": "linear",
    }  # fmt: skip
    assert (convert.attribute("to"), convert.attribute("to_format")) == ("float32", "linear")


def test_quantising_code_of_11_says_what_it_writes():
    first, second = of("11", "stem_quant").kernel, of("11", "proj_quant").kernel
    assert (first.attribute("fusion"), first.attribute("to")) == ("MulMinMaxRounCastConc", "int8")
    assert (second.dtype, second.attribute("to")) == ("float16", "int8")


@pytest.mark.parametrize("version", ["10", "11"])
def test_products_and_attention_are_costed_as_such(version):
    qkv, attention = of(version, "qkv").kernel, of(version, "qk scale softmax av").kernel
    assert macs(qkv) == 256 * 32 * 96
    assert attention.attribute("fusion") == "gemm_mha_v2"
    assert dimensions(attention).kind == "attention"
    assert macs(attention) == 2 * 4 * 256 * 256 * 8
    assert macs(of(version, "head").kernel) == 256 * 32 * 10


def test_a_fused_pointwise_stretch_lists_its_operations():
    assert of("10", "swish_sigmoid swish_mul").kernel.attribute("fusion") == "Sigmoid+Mul"
    assert of("11", "swish_sigmoid swish_mul flatten transpose").kernel.attribute("fusion") == "SigmMulReshTran"


def test_nothing_runs_where_streams_wait_or_memory_stays_as_it_is():
    described = json.loads((GOLDEN / "inspector_11.json").read_text())["Layers"]
    assert {layer["LayerType"] for layer in described} >= {"signal", "wait"}
    ops = {e.kernel.op for version in ("10", "11") for e in inspected(version)}
    assert not ops & {"signal", "wait", "NoOp"}


def test_a_stretch_that_hides_its_kernels_is_refused_among_others_too():
    described = json.loads((GOLDEN / "inspector_10.json").read_text())
    hidden = {**described["Layers"][7], "Name": "{ForeignNode[qkv...norm]}", "LayerType": "Myelin"}
    described["Layers"][7:12] = [hidden]
    with pytest.raises(BuildError, match=r"opaque layer.*ForeignNode\[qkv\.\.\.norm\]"):
        executed_kernels_from_layers(layers_from_inspector(json.dumps(described)), {})


@pytest.mark.parametrize("cut", ["Kernel: [3,", "Kernel: [3,3], Stride: x", "LayerType CaskConvolution"])
def test_a_line_of_a_log_that_is_cut_or_of_another_format_is_an_error(cut):
    line = f"Name: a + b, LayerType: CaskConvolution, ParameterType: Convolution, {cut}"
    with pytest.raises(BuildError, match="no layer"):
        logged(f"Layers:\n{line if cut.startswith('K') else f'Name: a, {cut}'}\n\nBindings:\nx\n")


@pytest.mark.parametrize("name", ["a, b", "PWN(a, b)", "(Unnamed Layer* 1) [Shuffle]", "x/y + z"])
def test_names_in_a_log_may_look_like_anything(name):
    tensor = f"{{ Name: {name}, Location: Device, Dimensions: [1,8], Format/Datatype: Row major linear FP32 }}"
    line = f"Name: {name}, LayerType: Shuffle, Inputs: [ {tensor}], Outputs: [ {tensor}], ParameterType: Shuffle, "
    (found,) = logged(f"Layers:\n{line}StreamId: 0, Metadata: [ONNX Layer: {name}]\n\nBindings:\nx\n")
    assert (found.name, found.nodes, found.kernel.inputs) == (name, (name,), ((1, 8),))
