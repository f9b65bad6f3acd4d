import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from contracts.engine_contract import EngineContract
from engine_graphs import GRAPHS, IMAGE, Graph, case, feeds_of, tensor_shapes
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import helper

from akd_deploy.engines.onnx_file import node_names, read_onnx
from akd_deploy.engines.onnxruntime_attribution import LAYOUT_OPS
from akd_deploy.engines.onnxruntime_engine import OnnxRuntimeEngine
from akd_deploy.engines.onnxruntime_session import OnnxRuntimeSession
from akd_deploy.errors import BuildError, MissingRuntimeError, UnknownNameError, UsageError
from akd_deploy.kernel import ExecutedKernel
from akd_deploy.profiling.worker import Timed, measure_model
from akd_deploy.target import Target, load_target

TARGET = Target("t", "cpu", "onnxruntime")


def engine(level: str = "all", precision: str = "fp32", batch: int = 1) -> OnnxRuntimeEngine:
    return OnnxRuntimeEngine(
        replace(TARGET, precision=precision, batch=batch, engine_options={"graph_optimization": level})
    )


class TestOnnxRuntime(EngineContract):
    runtime_modules = ("onnxruntime", "torch")

    @pytest.fixture
    def engine(self):
        return OnnxRuntimeEngine(TARGET)

    @pytest.fixture
    def model(self, tmp_path):
        return case(GRAPHS["inverted_bottleneck"](), tmp_path / "model.onnx")


class TestOnnxRuntimeInt8(TestOnnxRuntime):
    @pytest.fixture
    def engine(self):
        return engine(precision="int8")

    @pytest.fixture
    def model(self, tmp_path):
        # One quantisation step of the output: kernels round ties in their own ways.
        return case(GRAPHS["quantized"](), tmp_path / "model.onnx", tolerance=0.0101)


class TestOnnxRuntimeSeveralPartsAtBatch3(TestOnnxRuntime):
    @pytest.fixture
    def engine(self):
        return engine(level="extended", batch=3)

    @pytest.fixture
    def model(self, tmp_path):
        return case(GRAPHS["several_parts"](), tmp_path / "model.onnx", batch=3)


# --- kernels ------------------------------------------------------------------------------------------------


def kernels_of(model: onnx.ModelProto, tmp_path: Path, level: str = "all", batch: int = 1) -> list[ExecutedKernel]:
    path = tmp_path / "network.onnx"
    onnx.save(model, str(path))
    return list(engine(level, batch=batch).executed_kernels(path))


def told(kernels: list[ExecutedKernel]) -> list[tuple[str, tuple[str, ...]]]:
    return [(k.kernel.op, k.nodes) for k in kernels]


def is_layout(executed: ExecutedKernel) -> bool:
    return executed.kernel.op.removeprefix("nchwc.") in LAYOUT_OPS


def test_convolution_takes_in_its_normalisation_and_activation(tmp_path):
    kernels = kernels_of(GRAPHS["conv_bn_relu"](), tmp_path, "extended")
    assert told(kernels) == [("FusedConv", ("Conv_0", "BatchNormalization_1", "Relu_2"))]
    kernel = kernels[0].kernel
    assert (kernel.inputs, kernel.outputs) == (((1, 3, 16, 16), (16, 3, 3, 3), (16,)), ((1, 16, 8, 8),))
    assert kernel.dtype == "float32"
    assert dict(kernel.attributes) == {
        "kernel_size": (3, 3), "strides": (2, 2), "dilations": (1, 1), "groups": 1, "pads": (1, 1, 1, 1),
        "activation": "Relu",
    }  # fmt: skip


def test_blocked_convolution_is_another_kernel_and_its_reorder_belongs_to_what_it_reorders(tmp_path):
    kernels = kernels_of(GRAPHS["conv_bn_relu"](), tmp_path)
    assert told(kernels) == [
        ("nchwc.Conv", ("Conv_0", "BatchNormalization_1", "Relu_2")),
        ("nchwc.ReorderOutput", ("Relu_2",)),
    ]
    assert kernels[1].kernel.inputs == kernels[1].kernel.outputs == ((1, 16, 8, 8),)


def test_residual_addition_goes_into_the_last_convolution(tmp_path):
    kernels = kernels_of(GRAPHS["residual"](), tmp_path)
    assert told(kernels) == [
        ("nchwc.Conv", ("Conv_0", "Relu_1")),
        ("nchwc.Conv", ("Conv_2", "Relu_3")),
        ("nchwc.Conv", ("Conv_4", "Add_5", "Relu_6")),
        ("nchwc.GlobalAveragePool", ("GlobalAveragePool_7",)),
        ("nchwc.ReorderOutput", ("GlobalAveragePool_7",)),
        ("Flatten", ("Flatten_8",)),
        ("Gemm", ("Gemm_9",)),
    ]
    fused = kernels[2].kernel
    assert fused.inputs == ((1, 16, 16, 16), (16, 16, 3, 3), (16,), (1, 16, 16, 16))
    assert fused.attribute("residual") == 1
    assert fused.attribute("activation") == "Relu"
    # The weights of a Gemm are packed beforehand and missing in a profile, yet they are an input.
    assert kernels[6].kernel.inputs == ((1, 16), (10, 16), (10,))
    assert kernels[6].kernel.attribute("transpose_b") == 1


def test_extended_keeps_addition_and_activation_apart(tmp_path):
    kernels = told(kernels_of(GRAPHS["residual"](), tmp_path, "extended"))
    assert kernels[2:5] == [("Conv", ("Conv_4",)), ("Add", ("Add_5",)), ("Relu", ("Relu_6",))]


def test_squeeze_excite_shapes_are_those_of_padded_channels(tmp_path):
    kernels = kernels_of(GRAPHS["squeeze_excite"](), tmp_path)
    by_nodes = {k.nodes: k for k in kernels if k.kernel.op == "nchwc.Conv"}
    assert set(by_nodes) == {("Conv_0", "Relu_1"), ("Conv_3", "Relu_4"), ("Conv_5", "Sigmoid_6"), ("Conv_8",)}
    squeeze = by_nodes["Conv_3", "Relu_4"].kernel
    block = squeeze.outputs[0][1]
    assert block in (8, 16)  # the 4 channels fill one block
    assert squeeze.inputs == ((1, 16, 1, 1), (block, 16, 1, 1), (block,))
    reorders = [k for k in kernels if k.kernel.op == "nchwc.ReorderOutput" and k.nodes == ("Relu_4",)]
    assert [(k.kernel.inputs, k.kernel.outputs) for k in reorders] == [(((1, block, 1, 1),), ((1, 4, 1, 1),))]
    assert ("nchwc.ReorderInput", ("Conv_8",)) in told(kernels)


def test_depthwise_convolution_keeps_its_groups(tmp_path):
    kernels = kernels_of(GRAPHS["depthwise"](), tmp_path)
    assert told(kernels)[:3] == [
        ("nchwc.Conv", ("Conv_0", "Clip_1")),
        ("nchwc.Conv", ("Conv_2", "BatchNormalization_3", "Relu_4")),
        ("nchwc.Conv", ("Conv_5",)),
    ]
    assert kernels[1].kernel.attribute("groups") == 16
    assert kernels[1].kernel.attribute("kernel_size") == (5, 5)
    assert kernels[2].kernel.attribute("pads") is None


def test_swish_and_residual_with_hard_swish_cover_their_nodes(tmp_path):
    kernels = told(kernels_of(GRAPHS["inverted_bottleneck"](), tmp_path))
    assert ("QuickGelu", ("Sigmoid_4", "Mul_5")) in kernels
    assert ("nchwc.Conv", ("Conv_17", "BatchNormalization_18", "Add_19", "HardSwish_20")) in kernels
    assert ("Gemm", ("MatMul_23", "Add_24")) in kernels


def test_function_that_runs_as_two_kernels_is_named_by_both(tmp_path):
    kernels = told(kernels_of(GRAPHS["inverted_bottleneck"](), tmp_path, "extended"))
    assert ("HardSigmoid", ("HardSwish_20",)) in kernels
    assert ("Mul", ("HardSwish_20",)) in kernels


def test_quantised_network_runs_on_integer_kernels(tmp_path):
    kernels = kernels_of(GRAPHS["quantized"](), tmp_path)
    convolution = next(k for k in kernels if k.kernel.op == "QLinearConv")
    assert convolution.kernel.dtype == "uint8"
    assert convolution.kernel.attribute("kernel_size") == (3, 3)
    assert (16, 3, 3, 3) in convolution.kernel.inputs
    # The first two nodes quantise the input; the convolution takes in Q/DQ around it, and the Relu.
    model = GRAPHS["quantized"]()
    names = node_names(model.graph)
    assert set(convolution.nodes) == {names[1], names[2], "Conv_3", "Relu_4", "QuantizeLinear_5"}
    ops = Counter(k.kernel.op for k in kernels)
    assert ops["QLinearConv"] == 2
    assert ops["QLinearAdd"] == ops["QLinearGlobalAveragePool"] == ops["QLinearMatMul"] == 1


def test_attention_block_covers_normalisation_and_gelu(tmp_path):
    kernels = kernels_of(GRAPHS["attention"](), tmp_path)
    ops = Counter(k.kernel.op for k in kernels)
    assert ops["Gelu"] == ops["FusedMatMul"] == ops["SkipLayerNormalization"] == 1
    assert ops["LayerNormalization"] == 2
    by_op = {k.kernel.op: k for k in kernels}
    operators = [name.split("_")[0] for name in by_op["Gelu"].nodes]
    assert operators == ["Div", "Erf", "Add", "Mul", "Mul"]
    assert [name.split("_")[0] for name in by_op["FusedMatMul"].nodes] == ["MatMul", "Mul"]
    assert len(by_op["SkipLayerNormalization"].nodes) == 10
    for k in kernels:
        if k.kernel.op == "Gemm" and k.nodes[0].startswith("MatMul"):
            assert [name.split("_")[0] for name in k.nodes] == ["MatMul", "Add"]


@pytest.mark.parametrize("level", ["all", "extended", "basic", "disabled"])
@pytest.mark.parametrize("name", GRAPHS)
def test_every_node_is_covered_once_and_shapes_are_the_references(name, level, tmp_path):
    model = GRAPHS[name]()
    kernels = kernels_of(model, tmp_path, level, batch=2)
    shapes = tensor_shapes(model, batch=2)
    outputs = {node.name: shapes[node.output[0]] for node in model.graph.node}
    assert all(k.nodes for k in kernels)
    assert {n for k in kernels for n in k.nodes} == set(outputs)
    parts = Counter(n for k in kernels if not is_layout(k) for n in k.nodes)
    # HardSwish may run as two kernels, and a dequantisation once for each of its readers.
    assert {n for n, times in parts.items() if times > 1} <= {"HardSwish_20", "DequantizeLinear_6"}
    for k in kernels:
        if is_layout(k) or k.kernel.op.startswith("QLinear"):
            continue
        candidates = {outputs[n] for n in k.nodes}
        # Fusions of matrices flatten the leading dimensions; blocked layouts fill up channels.
        flat = {(int(np.prod(s[:-1])), s[-1]) for s in candidates if s}
        blocked = {(s[0], -(-s[1] // b) * b, *s[2:]) for s in candidates if len(s) == 4 for b in (8, 16)}
        assert k.kernel.outputs[0] in candidates | flat | blocked, k


def test_kernels_follow_the_batch(tmp_path):
    one = kernels_of(GRAPHS["residual"](), tmp_path, batch=1)
    four = kernels_of(GRAPHS["residual"](), tmp_path, batch=4)
    assert [k.kernel.outputs[0][1:] for k in one] == [k.kernel.outputs[0][1:] for k in four]
    assert {k.kernel.outputs[0][0] for k in four} == {4}


def test_nodes_without_names_or_with_one_name_are_told_apart_by_their_outputs(tmp_path):
    model = GRAPHS["residual"]()
    for node in model.graph.node:
        node.name = "" if node.op_type == "Conv" else "same"
    kernels = told(kernels_of(model, tmp_path))
    assert kernels[0] == ("nchwc.Conv", ("Conv_0_out", "Relu_1_out"))
    assert kernels[2] == ("nchwc.Conv", ("Conv_4_out", "Add_5_out", "Relu_6_out"))


def test_thousands_of_nodes_in_components(tmp_path):
    g, outputs = Graph(), []
    for _ in range(3):
        x = g("Relu", g.conv("x", 3, 8, 1))
        for _ in range(150):
            y = g.conv(g("Relu", g.conv(x, 8, 8, 1)), 8, 8, 1)
            x = g("Relu", g("Add", x, y))
        outputs.append(x)
    model = g.model({"x": ["N", 3, 4, 4]}, outputs)
    assert len(model.graph.node) > 2_000
    kernels = kernels_of(model, tmp_path)
    covered = Counter(n for k in kernels if not is_layout(k) for n in k.nodes)
    assert set(covered) == {node.name for node in model.graph.node}
    assert set(covered.values()) == {1}


UNARY = ("Relu", "Sigmoid", "Tanh", "HardSwish", "Identity", "conv", "depthwise", "swish", "MaxPool")


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    steps=st.lists(
        st.tuples(st.sampled_from((*UNARY, "Add", "Mul")), st.integers(0, 9), st.integers(0, 9)), min_size=1
    ),
    level=st.sampled_from(["all", "extended"]),
)
def test_any_graph_is_covered_completely_and_no_kernel_is_without_a_node(steps, level, tmp_path):
    g = Graph()
    tensors = [g.conv("x", 3, 8, 3)]
    for operator, first, second in steps:
        a, b = tensors[first % len(tensors)], tensors[second % len(tensors)]
        match operator:
            case "Add" | "Mul":
                out = g(operator, a, b)
            case "conv":
                out = g.conv(a, 8, 8, 3)
            case "depthwise":
                out = g.conv(a, 8, 8, 3, group=8)
            case "swish":
                out = g("Mul", a, g("Sigmoid", a))
            case "MaxPool":
                out = g("MaxPool", a, kernel_shape=[3, 3], pads=[1, 1, 1, 1])
            case _:
                out = g(operator, a)
        tensors.append(out)
    model = g.model({"x": [1, 3, 6, 6]}, tensors[-2:])
    kernels = kernels_of(model, tmp_path, level)
    assert all(k.nodes for k in kernels)
    assert {n for k in kernels for n in k.nodes} == {node.name for node in model.graph.node}


def test_control_flow_is_refused(tmp_path):
    def branch(op: str) -> onnx.GraphProto:
        out = onnx.helper.make_tensor_value_info("z", onnx.TensorProto.FLOAT, [1, 4])
        return onnx.helper.make_graph([onnx.helper.make_node(op, ["x"], ["z"])], op, [], [out])

    g = Graph()
    sign = g("Greater", g("ReduceSum", "x", keepdims=0), g.constant(np.float32(0)))
    g("If", sign, then_branch=branch("Relu"), else_branch=branch("Tanh"))
    with pytest.raises(BuildError, match=r"control flow.*If"):
        kernels_of(g.model({"x": [1, 4]}, ["If_2_out"]), tmp_path)


# --- precision ----------------------------------------------------------------------------------------------


def build(model: onnx.ModelProto, tmp_path: Path, precision: str):
    path = tmp_path / "network.onnx"
    onnx.save(model, str(path))
    return engine(precision=precision).build(path, tmp_path / "out")


def as_float16(model: onnx.ModelProto) -> onnx.ModelProto:
    for tensor in model.graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT:
            values = onnx.numpy_helper.to_array(tensor).astype(np.float16)
            tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.elem_type = onnx.TensorProto.FLOAT16
    del model.graph.value_info[:]
    return model


def test_precision_counts_what_computes(tmp_path):
    assert build(GRAPHS["conv_bn_relu"](), tmp_path, "fp32").precision == {"float32": 2}
    int8 = build(GRAPHS["quantized"](), tmp_path, "int8")
    assert int8.precision["uint8"] > int8.precision["float32"]


def test_float32_network_for_an_int8_target_is_refused_by_layer(tmp_path):
    with pytest.raises(BuildError, match=r"computing in float32.*Conv_4, Add_5, Relu_6"):
        build(GRAPHS["residual"](), tmp_path, "int8")


def test_quantised_network_for_an_fp32_target_is_refused_by_layer(tmp_path):
    with pytest.raises(BuildError, match=r"computing in uint8.*Conv_3"):
        build(GRAPHS["quantized"](), tmp_path, "fp32")


@pytest.mark.parametrize("name", ["conv_bn_relu", "residual"])
def test_float16_networks_are_attributed_though_the_runtime_computes_in_float32(name, tmp_path):
    """It renames every tensor that it holds in float32 instead."""
    model = as_float16(GRAPHS[name]())
    names = dict(zip(node_names(model.graph), (node.op_type for node in model.graph.node), strict=True))
    convolutions = Counter(op for op in names.values() if op == "Conv")["Conv"]
    kernels = [k for k in kernels_of(model, tmp_path) if k.kernel.op.endswith("Conv")]
    inside = [[names[node] for node in kernel.nodes] for kernel in kernels]
    assert len(kernels) == convolutions
    assert [ops.count("Conv") for ops in inside] == [1] * convolutions
    others = [k for k in kernels_of(model, tmp_path) if k.kernel.op in ("Max", "Relu", "Add", "ReduceMean")]
    for kernel in others:
        assert "Conv" not in [names[node] for node in kernel.nodes], kernel


def test_float16_network_that_the_cpu_computes_in_float32_is_refused(tmp_path):
    with pytest.raises(BuildError, match=r"computing in float32.*Conv_0"):
        build(as_float16(GRAPHS["residual"]()), tmp_path, "fp16")


def test_partly_quantised_network_builds_with_a_note(tmp_path):
    g = Graph()
    x = g.quantized(g("Conv", g.quantized("x"), g.quantized_weight(16, 3, 3, 3)))
    built = build(g.model(IMAGE, [g.conv(x, 16, 8, 1)]), tmp_path, "int8")
    assert "1 of 2 layers are not in int8" in built.notes[0]


# --- refusals -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("option", ["provider", "graph_optimization"])
def test_unknown_value_lists_the_known_ones(option):
    with pytest.raises(UnknownNameError, match=r"cpu, cuda, tensorrt|all, basic, disabled, extended"):
        OnnxRuntimeEngine(replace(TARGET, engine_options={option: "fast"}))


def test_provider_and_device_must_agree():
    with pytest.raises(UsageError, match="provider"):
        OnnxRuntimeEngine(replace(TARGET, device="gpu"))
    with pytest.raises(UsageError, match="provider"):
        OnnxRuntimeEngine(replace(TARGET, engine_options={"provider": "cuda"}))


def cuda_engine() -> OnnxRuntimeEngine:
    return OnnxRuntimeEngine(Target("t", "gpu", "onnxruntime", "fp16", engine_options={"provider": "cuda"}))


def test_missing_provider_is_refused_with_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    reason = cuda_engine().why_not()
    assert reason is not None
    assert "no cuda provider" in reason
    with pytest.raises(MissingRuntimeError, match=r"akd-deploy\[gpu\]"):
        cuda_engine().load(tmp_path / "any.onnx")


def test_silent_fallback_to_the_cpu_is_an_error(tmp_path, monkeypatch):
    path = tmp_path / "network.onnx"
    onnx.save(GRAPHS["conv_bn_relu"](), str(path))
    real = onnxruntime.InferenceSession

    def falls_back(model, options, providers, **others):
        assert providers[0][0] == "CUDAExecutionProvider"
        return real(model, options, providers=["CPUExecutionProvider"])

    monkeypatch.setattr(onnxruntime, "InferenceSession", falls_back)
    monkeypatch.setattr(OnnxRuntimeEngine, "why_not", lambda self: None)
    with pytest.raises(MissingRuntimeError, match="fell back to CPUExecutionProvider"):
        cuda_engine().load(path)


class OnTheGpu:
    """ONNX Runtime whose CUDA device is this CPU: what is bound there, and each wait for it, is written down."""

    def __init__(self) -> None:
        self.done: list[str] = []
        self.OrtValue, self.RunOptions = self, onnxruntime.RunOptions

    def ortvalue_from_numpy(self, array, device, index):
        self.done.append(f"input on {device}")
        return onnxruntime.OrtValue.ortvalue_from_numpy(array, "cpu", 0)

    def ortvalue_from_shape_and_type(self, shape, kind, device, index):
        self.done.append(f"output on {device}")
        return onnxruntime.OrtValue.ortvalue_from_shape_and_type(shape, kind, "cpu", 0)


@pytest.fixture
def on_the_gpu(tmp_path, monkeypatch) -> tuple[OnTheGpu, OnnxRuntimeEngine]:
    """The runtime, and an engine whose sessions hold it for CUDA's."""
    path, gpu = tmp_path / "m.onnx", OnTheGpu()
    onnx.save(GRAPHS["conv_bn_relu"](), path)
    real = onnxruntime.InferenceSession(read_onnx(path, 1).SerializeToString())
    wait = onnxruntime.IOBinding.synchronize_outputs
    monkeypatch.setattr(
        onnxruntime.IOBinding, "synchronize_outputs", lambda binding: (gpu.done.append("wait"), wait(binding))
    )
    one = cuda_engine()
    monkeypatch.setattr(one, "load", lambda path: OnnxRuntimeSession(real, gpu, "cuda"))
    return gpu, one


def measured(one: OnnxRuntimeEngine, boundary: str) -> Timed:
    protocol = {"warmup_s": 0.0, "seconds": 0.0, "min_samples": 3, "max_samples": 3, "boundary": boundary}
    return measure_model(one, Path("m.onnx"), protocol, np.random.default_rng(0))


def test_on_a_gpu_a_bound_call_waits_for_the_device_and_copies_nothing(on_the_gpu):
    gpu, one = on_the_gpu
    timed = measured(one, "host")
    assert gpu.done[:3] == ["input on cuda", "output on cuda", "wait"]
    assert set(gpu.done[2:]) == {"wait"}
    assert len(gpu.done) >= 2 + 1 + len(timed.samples_s)
    assert timed.parts_s == {}


def test_the_devices_own_time_of_onnxruntime_is_refused_and_never_the_hosts(on_the_gpu):
    gpu, one = on_the_gpu
    with pytest.raises(UsageError, match=r"boundary gpu.*ONNX Runtime compute on a stream of its own.*host's clock"):
        measured(one, "gpu")
    assert gpu.done == [], "nothing was run"
    timed = measured(one, "end-to-end")  # from numpy's arrays to numpy's arrays
    assert len(timed.samples_s) == 3
    assert (timed.parts_s, gpu.done) == ({}, [])


def test_unsupported_operator_is_named_with_its_node(tmp_path):
    g = Graph()
    g("Frobnicate", g("Relu", "x"), domain="com.example")
    with pytest.raises(BuildError, match=r"Frobnicate_1 \(com.example.Frobnicate\)"):
        build(g.model(IMAGE, ["Frobnicate_1_out"]), tmp_path, "fp32")


def test_network_that_does_not_fit_itself_is_refused_at_build(tmp_path):
    model = GRAPHS["conv_bn_relu"]()
    del model.graph.value_info[:]
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 5
    with pytest.raises(BuildError, match="Conv_0"):
        build(model, tmp_path, "fp32")


def test_kernels_inside_the_tensorrt_provider_are_not_guessed(tmp_path, monkeypatch):
    path = tmp_path / "network.onnx"
    onnx.save(GRAPHS["conv_bn_relu"](), str(path))
    monkeypatch.setattr(OnnxRuntimeEngine, "why_not", lambda self: None)
    target = Target("t", "gpu", "onnxruntime", "fp16", engine_options={"provider": "tensorrt"})
    with pytest.raises(BuildError, match="does not show"):
        OnnxRuntimeEngine(target).executed_kernels(path)


# --- files --------------------------------------------------------------------------------------------------


def test_weights_in_another_file_travel_with_the_engine(tmp_path):
    model = GRAPHS["residual"]()
    expected = case(model, tmp_path / "inline.onnx")
    onnx.save(
        model, str(tmp_path / "network.onnx"), save_as_external_data=True, location="weights.bin", size_threshold=0
    )
    built = engine().build(tmp_path / "network.onnx", tmp_path / "out")
    assert [file.name for file in built.files] == ["network.onnx", "weights.bin"]
    (tmp_path / "weights.bin").unlink()
    with engine().load(built.path) as session:
        for name, array in session.run(expected.feeds).items():
            np.testing.assert_allclose(array, expected.expected[name], rtol=1e-4, atol=1e-4)
    assert len(engine().executed_kernels(built.path)) == 7


def test_output_whose_shape_only_a_run_tells_is_declared(tmp_path):
    g = Graph()
    model = g.model({"x": [2, 3]}, [g("NonZero", "x")])
    model.graph.output[0].type.tensor_type.elem_type = onnx.TensorProto.INT64
    onnx.save(model, str(tmp_path / "network.onnx"))
    with engine(batch=2).load(tmp_path / "network.onnx") as session:
        assert session.outputs[0].shape == (2, 6)  # random feeds hold no zero


def test_one_thread_is_what_the_session_gets():
    options = engine()._session_options()
    assert options.intra_op_num_threads == options.inter_op_num_threads == 1
    assert options.execution_mode == onnxruntime.ExecutionMode.ORT_SEQUENTIAL


def test_feeding_zeros_gives_what_the_reference_gives(tmp_path):
    model = GRAPHS["attention"]()
    path = tmp_path / "network.onnx"
    onnx.save(model, str(path))
    zeros = {name: np.zeros_like(array) for name, array in feeds_of(model).items()}
    expected = onnx.reference.ReferenceEvaluator(model).run(None, zeros)
    with engine().load(path) as session:
        np.testing.assert_allclose(next(iter(session.run(zeros).values())), expected[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "name",
    ["cpu_onnxruntime_fp32", "cpu_onnxruntime_int8", "cpu_onnxruntime_extended_fp32", "gpu_onnxruntime-cuda_fp16"],
)
def test_shipped_targets_are_valid(name):
    target = load_target(name)
    shipped = OnnxRuntimeEngine(target)
    assert target.is_generic
    assert shipped.option("threads") == 1


HALVED = """
import sys
import numpy as np
from akd_deploy.engines import load_engine
from akd_deploy.errors import MismatchError
from akd_deploy.target import Target
from pathlib import Path

for asked in sys.argv[2:]:
    target = Target("t", "cpu", "onnxruntime", engine_options={"denormal_as_zero": asked == "zero"})
    try:
        with load_engine(target).load(Path(sys.argv[1])) as session:
            print(float(session.run({"x": np.full(4, 1e-40, np.float32)})["y"][0]) > 0)
    except MismatchError as error:
        print(error.found)
"""


@pytest.mark.parametrize(
    ("asked", "printed"),
    [
        (("kept",), ["True"]),
        (("zero",), ["False"]),
        (
            ("kept", "zero"),
            ["True", "a session without it earlier in this process: ONNX Runtime decides once per process"],
        ),
    ],
)
def test_numbers_below_the_least_normal_one_are_flushed_where_asked_and_never_by_half(tmp_path, asked, printed):
    x, y = (helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [4]) for name in "xy")
    half = onnx.numpy_helper.from_array(np.array([0.5], np.float32), "half")
    graph = helper.make_graph([helper.make_node("Mul", ["x", "half"], ["y"])], "halved", [x], [y], [half])
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "halved.onnx"
    )
    # a process of its own: what the first session decides stays decided
    done = subprocess.run(
        [sys.executable, "-c", HALVED, str(tmp_path / "halved.onnx"), *asked],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines() == printed
