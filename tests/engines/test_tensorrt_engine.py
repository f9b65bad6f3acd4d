"""TensorRT: real builds with TensorRT-RTX (no GPU needed), readers on golden files, a fake runtime for running."""

from __future__ import annotations

import importlib.util
import os
import signal
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
import torch
from contracts.engine_contract import EngineContract
from engine_graphs import GRAPHS, Graph, case
from onnx import TensorProto, helper, numpy_helper

from akd_deploy.engines import load_engine
from akd_deploy.engines.nvidia import why_no_gpu
from akd_deploy.engines.precision_audit import Layer
from akd_deploy.engines.tensorrt_callbacks import message_log
from akd_deploy.engines.tensorrt_engine import TensorRtEngine, TensorRtRtxEngine
from akd_deploy.engines.tensorrt_inspect import (
    EngineLayer,
    EngineTensor,
    NodeSettings,
    executed_kernels_from_layers,
    layers_from_inspector,
    layers_from_log,
    memory_from_log,
)
from akd_deploy.engines.tensorrt_parse import module_of
from akd_deploy.engines.tensorrt_precision import as_built
from akd_deploy.errors import (
    AkdError,
    BuildError,
    MissingRuntimeError,
    UnknownNameError,
    UsageError,
)
from akd_deploy.export.cast import cast_model
from akd_deploy.kernel import Kernel
from akd_deploy.target import Target, read_target

GOLDEN = Path(__file__).parents[1] / "golden"
TARGETS = Path(__file__).parents[2] / "targets"
needs_rtx = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None, reason="the Python package tensorrt_rtx is not installed"
)


def rtx(precision: str = "fp32", batch: int = 1, **options: object) -> TensorRtRtxEngine:
    return TensorRtRtxEngine(Target("t", "rtx", "tensorrt-rtx", precision, batch, engine_options=options))


def saved(model: onnx.ModelProto, path: Path) -> Path:
    onnx.save(model, str(path))
    return path


def typed(model: onnx.ModelProto, kind: int) -> onnx.ModelProto:
    """The same network with every float32 tensor in another floating type."""
    for initializer in model.graph.initializer:
        if initializer.data_type == TensorProto.FLOAT:
            values = numpy_helper.to_array(initializer).astype(helper.tensor_dtype_to_np_dtype(kind))
            initializer.CopyFrom(numpy_helper.from_array(values, initializer.name))
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        if value.type.tensor_type.elem_type == TensorProto.FLOAT:
            value.type.tensor_type.elem_type = kind
    return model


def residual(kind: int = TensorProto.FLOAT) -> onnx.ModelProto:
    return typed(GRAPHS["residual"](), kind)


def symmetric_quantized() -> onnx.ModelProto:
    """Two int8 convolutions with a residual, and a head left in fp32."""
    g = Graph()

    def q(x: str, scale: float) -> str:
        arguments = (g.constant(np.float32(scale)), g.constant(np.int8(0)))
        return g("DequantizeLinear", g("QuantizeLinear", x, *arguments), *arguments)

    a = g("Relu", g("Conv", q("x", 0.05), q(g.weight(16, 3, 3, 3), 0.01), pads=[1] * 4))
    b = g("Conv", q(a, 0.05), q(g.weight(16, 16, 3, 3), 0.01), pads=[1] * 4)
    x = g("Flatten", g("GlobalAveragePool", g("Add", b, a)))
    return g.model({"x": [1, 3, 16, 16]}, [g("MatMul", x, g.weight(16, 10))])


@needs_rtx
class TestTensorRtRtxEngine(EngineContract):
    runtime_modules = ("tensorrt_rtx", "tensorrt", "torch")

    @pytest.fixture
    def engine(self):
        return rtx(batch=2)

    @pytest.fixture
    def model(self, tmp_path):
        return case(GRAPHS["inverted_bottleneck"](), tmp_path / "model.onnx", batch=2, tolerance=1e-3)


class TestTensorRtEngine(EngineContract):
    runtime_modules = ("tensorrt_rtx", "tensorrt", "torch")

    @pytest.fixture
    def engine(self):
        return TensorRtEngine(Target("t", "gpu", "tensorrt", "fp32", 2))

    @pytest.fixture
    def model(self, tmp_path):
        return case(GRAPHS["inverted_bottleneck"](), tmp_path / "model.onnx", batch=2, tolerance=1e-3)


# --- real builds: what comes out ----------------------------------------------------------------------------------


@needs_rtx
def test_two_builds_are_byte_identical(tmp_path):
    model = saved(residual(), tmp_path / "m.onnx")
    first, second = (rtx().build(model, tmp_path / name).path.read_bytes() for name in "ab")
    assert first == second


@needs_rtx
def test_a_refused_build_does_not_change_the_next_one(tmp_path):
    model = saved(residual(), tmp_path / "m.onnx")
    before = rtx().build(model, tmp_path / "before").path.read_bytes()
    with pytest.raises(BuildError, match=r"Turing|SM75|sm75"):  # fp32 products are not for this capability
        rtx(compute_capabilities=("sm75",)).build(model, tmp_path / "refused")
    after = rtx().build(model, tmp_path / "after").path.read_bytes()
    assert after == before


@needs_rtx
def test_build_tells_its_capabilities_kernels_and_memory(tmp_path):
    built = rtx(compute_capabilities=("sm89", "sm120")).build(saved(residual(), tmp_path / "m.onnx"), tmp_path / "out")
    assert built.path.name == "m.plan"
    assert built.details["compute_capabilities"] == ["sm89", "sm120"]
    assert any("Conv_0" in kernel["nodes"] for kernel in built.details["kernels"])
    assert built.details["memory"]["weights_bytes"] > 4 * (16 * 27 + 2 * 16 * 144)  # at least the convolutions'
    assert built.details["memory"]["activation_bytes"] > 0


@needs_rtx
def test_each_capability_alone_is_another_plan(tmp_path):
    model = saved(residual(), tmp_path / "m.onnx")
    plans = {rtx(compute_capabilities=(c,)).build(model, tmp_path / c).path.read_bytes() for c in ("sm86", "sm120")}
    assert len(plans) == 2


@needs_rtx
@pytest.mark.parametrize("capability", ["sm87", "SM90"])
def test_unsupported_capability_is_refused_with_the_known_ones(tmp_path, capability):
    with pytest.raises(UnknownNameError, match=r"sm(87|90).*sm120.*sm86.*sm89"):
        rtx(compute_capabilities=("sm86", capability)).build(saved(residual(), tmp_path / "m.onnx"), tmp_path)


@needs_rtx
def test_progress_is_reported_as_phases_and_fractions(tmp_path):
    seen: list[tuple[str, float]] = []
    model = saved(residual(), tmp_path / "m.onnx")
    rtx().build(model, tmp_path / "out", on_progress=lambda phase, done: seen.append((phase, done)))
    assert len(seen) > 10
    assert all(0 <= done <= 1 for _, done in seen)
    assert ("Building engine", 1.0) in seen


@needs_rtx
def test_exception_while_reporting_progress_cancels_the_build_and_comes_out(tmp_path):
    def stop(phase: str, done: float) -> None:
        raise KeyError("enough")

    with pytest.raises(KeyError, match="enough"):
        rtx().build(saved(residual(), tmp_path / "m.onnx"), tmp_path / "out", on_progress=stop)
    assert not list(tmp_path.glob("out/*"))
    assert any("BuildCanceled" in message for message in message_log(rtx()._module()).errors())


@needs_rtx
def test_ctrl_c_ends_a_build_and_leaves_no_file(tmp_path):
    pressed: list[str] = []

    def press(phase: str, done: float) -> None:
        if not pressed:
            os.kill(os.getpid(), signal.SIGINT)
        pressed.append(phase)

    model = saved(residual(), tmp_path / "m.onnx")
    with pytest.raises(KeyboardInterrupt):
        rtx().build(model, tmp_path / "out", on_progress=press)
    assert not list(tmp_path.glob("out/*"))
    rtx().build(model, tmp_path / "out")


@needs_rtx
def test_nodes_without_names_are_found_again_under_their_outputs(tmp_path):
    model = residual()
    for node in model.graph.node:
        node.name = ""
    kernels = rtx().executed_kernels(saved(model, tmp_path / "m.onnx"))
    assert "Conv_0_out" in {node for kernel in kernels for node in kernel.nodes}


@needs_rtx
def test_weights_in_another_file_are_found(tmp_path):
    path = tmp_path / "m.onnx"
    onnx.save(residual(), str(path), save_as_external_data=True, location="m.weights", size_threshold=0)
    (tmp_path / "inside").mkdir()
    inside = saved(residual(), tmp_path / "inside" / "m.onnx")
    assert rtx().build(path, tmp_path / "a").path.read_bytes() == rtx().build(inside, tmp_path / "b").path.read_bytes()


@needs_rtx
@pytest.mark.parametrize("name", sorted(GRAPHS.keys() - {"quantized"}))
def test_kernels_of_every_graph_are_read_and_cover_its_convolutions(tmp_path, name):
    model = GRAPHS[name]()
    kernels = rtx(batch=2).executed_kernels(saved(model, tmp_path / "m.onnx"))
    covered = {node for kernel in kernels for node in kernel.nodes}
    assert {node.name for node in model.graph.node if node.op_type in ("Conv", "MatMul", "Gemm")} <= covered
    assert all(shape for kernel in kernels for shape in kernel.kernel.outputs)


@needs_rtx
def test_convolution_kernels_carry_window_activation_and_residual(tmp_path):
    kernels = rtx("fp16").executed_kernels(saved(residual(TensorProto.FLOAT16), tmp_path / "m.onnx"))
    last = next(k.kernel for k in kernels if k.name.startswith("Conv_4"))
    assert last.op == "correlation"
    assert last.dtype == "float16"
    assert last.attribute("kernel_size") == (3, 3)
    assert last.attribute("groups") == 1
    assert last.attribute("residual") == 1
    assert last.outputs == ((1, 16, 16, 16),)


# --- real builds: what is refused ---------------------------------------------------------------------------------


@needs_rtx
def test_fp16_asked_of_an_fp32_network_is_an_error_that_names_its_layers(tmp_path):
    with pytest.raises(BuildError, match=r"float32 \(Conv_0, Conv_2, Conv_4, Gemm_"):
        rtx("fp16").build(saved(residual(), tmp_path / "m.onnx"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def with_float32_island(kind: str = "fp16", nodes: tuple[str, ...] = ("Conv_2", "Relu_3", "Conv_4")) -> onnx.ModelProto:
    """A 16-bit network of which some nodes stay in float32, as it declares."""
    model = residual()
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    return cast_model(model, kind, dict.fromkeys(nodes, "overflows")).model


@needs_rtx
@pytest.mark.parametrize(("precision", "dtype"), [("fp16", "float16"), ("bf16", "bfloat16")])
def test_a_declared_float32_island_is_built_and_noted(tmp_path, precision, dtype):
    built = rtx(precision).build(saved(with_float32_island(precision), tmp_path / "m.onnx"), tmp_path / "out")
    assert built.precision["float32"] >= 2
    assert built.precision[dtype] >= 3
    assert built.notes == (f"2 of 4 layers are not in {precision}: 2 computing in float32 (Conv_2, Conv_4)",)


@needs_rtx
def test_a_declared_island_that_tensorrt_fuses_away_is_noted(tmp_path):
    """A lone convolution between two casts: the kernel takes the casts in, and its weights are float16."""
    built = rtx("fp16").build(saved(with_float32_island(nodes=("Conv_2",)), tmp_path / "m.onnx"), tmp_path / "out")
    assert "float32" not in built.precision
    assert built.notes == ("declared to stay in float32 and fused into kernels that do not: Conv_2 in float16",)


@needs_rtx
def test_an_undeclared_float32_island_is_an_error_that_names_it(tmp_path):
    model = with_float32_island()
    del model.metadata_props[:]
    with pytest.raises(BuildError, match=r"found 2 computing in float32 \(Conv_2, Conv_4\)") as caught:
        rtx("fp16").build(saved(model, tmp_path / "m.onnx"), tmp_path / "out")
    assert caught.value.details["layers"] == ["Conv_2", "Conv_4"]
    assert not (tmp_path / "out").exists()


@needs_rtx
@pytest.mark.parametrize("precision", ["fp32", "tf32"])
def test_fp32_asked_of_an_fp16_network_is_an_error(tmp_path, precision):
    with pytest.raises(BuildError, match="float16"):
        rtx(precision).build(saved(residual(TensorProto.FLOAT16), tmp_path / "m.onnx"), tmp_path / "out")


@needs_rtx
def test_int8_layers_are_audited_from_their_q_dq_pairs_and_the_rest_is_named(tmp_path):
    model = saved(symmetric_quantized(), tmp_path / "m.onnx")
    built = rtx("int8").build(model, tmp_path / "out")
    assert built.precision["int8"] == 2
    assert "MatMul" in built.notes[0]
    with pytest.raises(BuildError, match="int8"):
        rtx("fp32").build(model, tmp_path / "out32")
    convolutions = [k.kernel for k in rtx("int8").executed_kernels(model) if k.kernel.op == "correlation"]
    assert [kernel.dtype for kernel in convolutions] == ["int8", "int8"]


@needs_rtx
def test_fp8_is_refused_by_a_card_without_it_with_tensorrts_reason(tmp_path):
    model = symmetric_quantized()
    model.opset_import[0].version = 19
    for initializer in model.graph.initializer:
        if initializer.data_type == TensorProto.INT8:
            initializer.CopyFrom(helper.make_tensor(initializer.name, TensorProto.FLOAT8E4M3FN, [], [0.0]))
    path = saved(model, tmp_path / "m.onnx")
    with pytest.raises(BuildError, match=r"sm86.*fp8"):
        rtx("fp8", compute_capabilities=("sm86",)).build(path, tmp_path / "out")
    built = rtx("fp8", compute_capabilities=("sm89",)).build(path, tmp_path / "out")
    assert built.precision["float8e4m3"] == 2


@needs_rtx
@pytest.mark.parametrize("operator", ["Det", "NoSuchOperator"])
def test_unsupported_operator_is_named_with_its_node(tmp_path, operator):
    g = Graph()
    model = g.model({"x": [1, 2, 4, 4]}, [g(operator, g("Relu", "x"))])
    with pytest.raises(BuildError, match=rf"operator {operator} of node '{operator}_1'") as caught:
        rtx().build(saved(model, tmp_path / "m.onnx"), tmp_path / "out")
    assert caught.value.details["nodes"][0]["operator"] == operator


@needs_rtx
@pytest.mark.slow
def test_the_module_that_an_unsupported_node_was_exported_from_is_named(tmp_path):
    class Determinant(torch.nn.Module):
        def forward(self, x):
            return torch.linalg.det(x)

    class Block(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.bad = torch.nn.Conv2d(2, 2, 1), Determinant()

        def forward(self, x):
            return self.bad(self.conv(x))

    network = torch.nn.Sequential(Block()).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter's own code
        exported = torch.onnx.export(network, (torch.zeros(1, 2, 4, 4),), dynamo=True, verbose=False)
    exported.save(tmp_path / "m.onnx")
    with pytest.raises(BuildError, match=r"operator Det of node '\w+' in module 0\.bad \(Determinant\)") as caught:
        rtx().build(tmp_path / "m.onnx", tmp_path / "out")
    assert [node["module"] for node in caught.value.details["nodes"]] == ["0.bad (Determinant)"]


@pytest.mark.parametrize(
    ("metadata", "module"),
    [
        ({}, None),
        ({"namespace": ": a.Net/layer1: b.Block/layer1.conv: torch.nn.Conv2d/conv2d: aten.conv2d.default"},
         "layer1.conv (Conv2d)"),
        ({"namespace": ": a.Net/relu: aten.relu.default"}, "the network itself (Net)"),
        ({"pkg.torch.onnx.name_scopes": "['', 'fc', 'linear']"}, "fc"),
        ({"pkg.torch.onnx.name_scopes": "no list ("}, None),
    ],
)  # fmt: skip
def test_modules_are_read_from_what_exporters_write_of_them(metadata, module):
    node = helper.make_node("Relu", ["x"], ["y"])
    for key, value in metadata.items():
        node.metadata_props.add(key=key, value=value)
    assert module_of(node) == module


@needs_rtx
def test_functions_that_led_to_an_unsupported_node_are_named_where_no_module_is(tmp_path):
    inner = helper.make_function(
        "own", "Measure", ["a"], ["b"], [helper.make_node("Det", ["a"], ["b"], name="inside")],
        [helper.make_opsetid("", 17)],
    )  # fmt: skip
    model = Graph().model({"x": [1, 2, 4, 4]}, [])
    model.graph.node.append(helper.make_node("Measure", ["x"], ["y"], name="outer", domain="own"))
    model.graph.output.append(helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 2]))
    model.functions.append(inner)
    model.opset_import.append(helper.make_opsetid("own", 1))
    with pytest.raises(BuildError, match="Det") as caught:
        rtx().build(saved(model, tmp_path / "m.onnx"), tmp_path / "out")
    assert "Measure" in caught.value.details["nodes"][0]["module"]


@needs_rtx
@pytest.mark.parametrize(
    "options",
    [
        {"builder_optimization_level": 0},
        {"builder_optimization_level": 5},
        {"workspace_mib": 64},
        {"sparse_weights": True},
        {"compute_capabilities": ("sm80",)},
        {"compute_capabilities": ("sm80", "sm86", "sm89", "sm120", "sm121")},
    ],
    ids=str,
)
def test_every_option_builds(tmp_path, options):
    model = saved(with_float32_island(nodes=()), tmp_path / "m.onnx")
    built = rtx("fp16", **options).build(model, tmp_path / "out")
    assert "float16" in built.precision
    default = rtx("fp16").build(model, tmp_path / "default")
    if "compute_capabilities" in options:
        assert built.path.read_bytes() != default.path.read_bytes()


@needs_rtx
@pytest.mark.skipif(why_no_gpu() is None, reason="a GPU is here")
def test_a_refittable_plan_is_refused_without_the_card_with_tensorrts_reason(tmp_path):
    """Its kernels are compiled on the card itself."""
    with pytest.raises(BuildError, match="CUDA_SUCCESS"):
        rtx(refit=True, compute_capabilities=("sm89",)).build(saved(residual(), tmp_path / "m.onnx"), tmp_path / "out")


@needs_rtx
def test_shapes_as_outputs_are_no_kernels(tmp_path):
    g = Graph()
    model = g.model({"x": ["N", 2, 4, 4]}, [g("Shape", "x"), g("Relu", "x")])
    model.graph.output[0].type.tensor_type.elem_type = TensorProto.INT64
    kernels = rtx().executed_kernels(saved(model, tmp_path / "m.onnx"))
    assert [kernel.nodes for kernel in kernels] == [("Relu_1",)]


def test_fields_of_a_log_line_that_nobody_knows_hide_no_tensor():
    tensor = "{ Name: x, Dimensions: [1,3], Datatype: Half, Format: Row }"
    line = f"Name: a, LayerType: kgen, Inputs: [ {tensor}, {tensor}], Constants: [], Outputs: [ {tensor}], New: [1, 2]"
    (layer,) = layers_from_log([f"Layers:\n{line}, StreamId: 0, Metadata: [ONNX Layer: n]\n\nI/O Tensors:\n"])
    half = EngineTensor((1, 3), "float16")
    assert (layer.inputs, layer.constants, layer.outputs, layer.nodes) == ((half, half), (), (half,), ("n",))
    other_order = f"Layers:\nName: a, LayerType: kgen, Outputs: [ {tensor}], Inputs: [ {tensor}, {tensor}]\n\n"
    (layer,) = layers_from_log([other_order])
    assert (layer.inputs, layer.outputs) == ((half, half), (half,))


@needs_rtx
def test_tf32_is_another_plan_than_fp32(tmp_path):
    model = saved(residual(), tmp_path / "m.onnx")
    plain, tf32 = (rtx(precision).build(model, tmp_path / precision) for precision in ("fp32", "tf32"))
    assert set(plain.precision) == set(tf32.precision) == {"float32"}
    assert plain.path.read_bytes() != tf32.path.read_bytes()
    assert not any("TF32" in note for note in plain.notes)
    assert "products of float32 may round their inputs to TF32; which do, no build tells" in tf32.notes


@needs_rtx
def test_bf16_is_built_and_audited(tmp_path):
    built = rtx("bf16").build(saved(with_float32_island("bf16", ()), tmp_path / "m.onnx"), tmp_path / "out")
    assert set(built.precision) == {"bfloat16"}
    with pytest.raises(BuildError, match="float16"):
        rtx("bf16").build(saved(residual(TensorProto.FLOAT16), tmp_path / "half.onnx"), tmp_path / "out")


@needs_rtx
def test_option_that_tensorrt_refuses_is_a_build_error_with_its_reason(tmp_path):
    with pytest.raises(BuildError, match="lean"):  # this flavour carries no lean runtime
        rtx(version_compatible=True).build(saved(residual(), tmp_path / "m.onnx"), tmp_path / "out")


@needs_rtx
def test_batch_of_the_model_must_be_the_targets(tmp_path):
    g = Graph()
    model = saved(g.model({"x": [1, 4]}, [g("MatMul", "x", g.weight(4, 4))]), tmp_path / "m.onnx")
    with pytest.raises(UsageError, match="fixed batch 1"):
        rtx(batch=8).build(model, tmp_path / "out")


@needs_rtx
def test_dynamic_batch_becomes_the_targets(tmp_path):
    kernels = rtx(batch=8).executed_kernels(saved(residual(), tmp_path / "m.onnx"))
    assert kernels[0].kernel.inputs[0][0] == 8
    assert kernels[-1].kernel.outputs[0] == (8, 10)


@needs_rtx
def test_file_in_the_way_of_the_engine_is_a_storage_error(tmp_path):
    (tmp_path / "out").write_text("a file where the folder should be")
    with pytest.raises(AkdError, match="out"):
        rtx().build(saved(residual(), tmp_path / "m.onnx"), tmp_path / "out")


# --- options and targets ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"builder_optimization_level": 6}, "0 to 5"),
        ({"workspace_mib": -1}, "MiB"),
        ({"compute_capabilities": ("sm86", "SM86")}, "once"),
        ({"compute_capabilities": ()}, "at least one"),
        ({"tf32": True}, "tf32"),
        ({"refit": True}, "one alone"),
        ({"pin_timing_cache": True}, "timing_cache"),
        ({"shapes": ("x:2x3,1x3,4x3",)}, "min ≤ opt ≤ max"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, match):
    with pytest.raises(UsageError, match=match):
        rtx(**options)


@needs_rtx
def test_a_timing_cache_is_noted_to_do_nothing_where_a_build_times_nothing(tmp_path):
    built = rtx(timing_cache=str(tmp_path / "cache")).build(saved(residual(), tmp_path / "m.onnx"), tmp_path / "out")
    assert any("timing_cache does nothing" in note for note in built.notes)
    assert "timing_cache" not in built.details
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("name", ["rtx_tensorrt-rtx_fp16", "orin_tensorrt_fp16"])
def test_targets_of_this_engine_have_valid_options(name):
    assert load_engine(read_target(TARGETS / f"{name}.toml")).suffix == ".plan"


def test_tensorrt_without_its_package_is_refused_with_what_to_install(tmp_path):
    engine = TensorRtEngine(read_target(TARGETS / "orin_tensorrt_fp16.toml"))
    if engine._why_no_module() is None:
        pytest.skip("TensorRT is here")
    with pytest.raises(MissingRuntimeError, match=r"akd-deploy\[tensorrt\]"):
        engine.build(tmp_path / "m.onnx", tmp_path)


@needs_rtx
def test_a_missing_driver_is_never_answered_with_installing_the_package_that_is_here(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MissingRuntimeError, match="NVIDIA driver") as error:
        rtx().load(tmp_path / "m.plan")
    assert "pip install" not in error.value.next
    assert "driver" in error.value.next


def test_a_plan_is_refused_as_a_network_with_what_to_give_instead(tmp_path):
    (tmp_path / "m.plan").write_bytes(b"a plan")
    with pytest.raises(UsageError, match=r"built plan.*GPU.*ONNX file it was built from"):
        rtx().executed_kernels(tmp_path / "m.plan")


def test_tensorrt_builds_for_no_other_gpu_than_its_own(monkeypatch):
    facts = SimpleNamespace(facts={"compute_capability": "9.0"})
    monkeypatch.setattr("akd_deploy.engines.tensorrt_engine.gpu_fingerprint", lambda: facts)
    engine = TensorRtEngine(read_target(TARGETS / "orin_tensorrt_fp16.toml"))
    with pytest.raises(BuildError, match=r"sm87.*sm90"):
        engine._built_for()
    assert TensorRtEngine(Target("t", "gpu", "tensorrt"))._built_for() == ("sm90",)


# --- readers ------------------------------------------------------------------------------------------------------


def test_inspector_json_of_tensorrt_10_gives_kernels_with_weights_and_settings():
    layers = layers_from_inspector((GOLDEN / "inspector_10.json").read_text(encoding="utf-8"))
    reformat, conv, pooled = executed_kernels_from_layers(layers, {})
    told = {"from": "float16", "to": "float16", "from_format": "linear", "to_format": "hwc8"}
    assert reformat.kernel == Kernel(
        "Reformat", ((1, 3, 32, 32),), ((1, 3, 32, 32),), "float16", tuple(sorted(told.items()))
    )
    assert conv.kernel == Kernel(
        op="CaskConvolution",
        inputs=((1, 3, 32, 32), (16, 3, 3, 3), (16,)),
        outputs=((1, 16, 16, 16),),
        dtype="float16",
        attributes=(
            ("activation", "relu"), ("dilations", (1, 1)), ("groups", 1), ("kernel_size", (3, 3)), ("strides", (2, 2)),
        ),
    )  # fmt: skip
    assert conv.nodes == ("stem", "stem_relu")
    assert pooled.kernel.attributes == (("fusion", "AddMean"),)
    assert pooled.nodes == ("res", "gap")


def test_inspector_json_of_tensorrt_11_gives_kernels_with_the_nodes_settings():
    layers = layers_from_inspector((GOLDEN / "inspector_11.json").read_text(encoding="utf-8"))
    nodes = {
        "stem": NodeSettings("Conv", (("kernel_size", (3, 3)), ("strides", (2, 2)))),
        "stem_relu": NodeSettings("Relu"),
        "res": NodeSettings("Add"),
    }
    move, conv = executed_kernels_from_layers(layers, nodes)
    assert move.kernel.attributes == (("fusion", "ConcMove"),)
    assert conv.kernel == Kernel(
        op="correlation",
        inputs=((1, 4, 32, 32), (16, 4, 3, 3), (1,), (1, 16, 1, 1), (1, 16, 16, 16)),
        outputs=((1, 16, 16, 16),),
        dtype="float16",
        attributes=(("activation", "relu"), ("kernel_size", (3, 3)), ("residual", 1), ("strides", (2, 2))),
    )
    assert conv.nodes == ("stem", "stem_relu", "res")


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("{", "cannot be read"),
        ('{"Bindings": []}', "cannot be read"),
        ('{"Layers": 3}', "cannot be read"),
        ('{"Layers": ["stem + relu"]}', "names only"),
    ],
)
def test_inspector_text_that_tells_no_layers_is_an_error(text, match):
    with pytest.raises(BuildError, match=match):
        layers_from_inspector(text)


def test_build_log_of_an_int8_network_gives_its_kernels():
    # The table of a real build: quantise, int8 conv, quantise, int8 conv with residual, mean, product.
    layers = layers_from_log(["Parsing", (GOLDEN / "tensorrt_rtx_build_log.txt").read_text(encoding="utf-8"), "Done"])
    assert [layer.op for layer in layers] == ["kgen", "correlation", "kgen", "correlation", "kgen", "kgen"]
    assert layers[1].inputs == (EngineTensor((1, 4, 32, 32), "int8"),)
    assert layers[1].constants[0] == EngineTensor((16, 4, 3, 3), "int8")
    assert layers[1].outputs == (EngineTensor((1, 16, 16, 16), "float32"),)
    assert layers[3].nodes == ("c2", "dequant2", "dequant3", "add", "quant3")
    assert layers[-1].outputs == (EngineTensor((1, 10), "float32"),)


def test_log_without_a_table_has_no_layers_and_no_kernels_are_invented():
    assert layers_from_log(["Parsing node: a [Conv]", "Engine generation completed"]) == ()
    with pytest.raises(BuildError, match="nothing about its kernels"):
        executed_kernels_from_layers((), {})


def test_line_of_the_table_that_cannot_be_read_is_an_error():
    with pytest.raises(BuildError, match="Nom: a"):
        layers_from_log(["Layers:\nNom: a, LayerType: kgen\n\nI/O Tensors:\n"])


def test_build_that_collapsed_into_one_opaque_layer_is_an_error():
    line = (
        "Name: {ForeignNode[a...b]}, LayerType: Myelin, Inputs: [ { Name: x, Dimensions: [1,3], Datatype: Half, "
        "Format: Row }], Outputs: [ { Name: y, Dimensions: [1,3], Datatype: Half, Format: Row }], TacticName: , "
        "StreamId: 0, Metadata: "
    )
    with pytest.raises(BuildError, match="one opaque layer"):
        executed_kernels_from_layers(layers_from_log([f"Layers:\n{line}\n\nI/O Tensors:\n"]), {})


def test_layer_of_an_unknown_element_type_is_an_error():
    text = '{"Layers": [{"Name": "a", "LayerType": "b", "Outputs": [{"Dimensions": [1], "Datatype": "FP4"}]}]}'
    with pytest.raises(BuildError, match="FP4"):
        layers_from_inspector(text)


def test_memory_is_read_from_the_log():
    lines = ["Total Activation Memory: 8216576 bytes", "Total Weights Memory: 5248 bytes", "Total Host Memory: 1 bytes"]
    assert memory_from_log(lines) == {"activation_bytes": 8216576, "weights_bytes": 5248}


def test_int8_layer_whose_kernel_reads_no_int8_counts_as_the_float_it_reads():
    def kernel(dtype: str) -> EngineLayer:
        return EngineLayer("k", "correlation", (EngineTensor((1,), dtype),), (), (), ("conv",))

    layers = [Layer("conv", "int8", True)]
    assert as_built(layers, [kernel("float16")])[0].dtype == "float16"
    assert as_built(layers, [kernel("int8")])[0].dtype == "int8"
    assert as_built(layers, [])[0].dtype == "int8"


@pytest.mark.parametrize(
    ("read", "held", "written", "judged"),
    [
        ("float16", "float16", "float16", "float16"),
        ("float32", "float16", "float32", "float16"),  # the cast is fused into it
        ("float32", "float32", "float16", "float16"),
        ("float32", "float32", "float32", "float32"),
        ("bfloat16", "float32", "float32", "bfloat16"),
    ],
)
def test_a_floating_layer_whose_kernel_touches_no_tensor_of_its_type_counts_as_what_it_reads(
    read, held, written, judged
):
    r, h, w = (EngineTensor((1, 3), dtype) for dtype in (read, held, written))
    layer = Layer("conv + cast", "float16", True, ("conv", "cast"))
    other = EngineLayer("other", "correlation", (EngineTensor((1,), "float32"),), (), (), ("elsewhere",))
    scale = EngineTensor((1,), "float16")
    kernel = EngineLayer("k", "correlation", (r,), (h, scale), (w,), ("conv", "relu"))
    assert as_built([layer], [other, kernel])[0].dtype == judged
    hidden = EngineLayer("{ForeignNode[conv...fc]}", "Myelin", (r,), (), (w,), ("conv",))
    assert as_built([layer], [hidden])[0].dtype == "float16"


@pytest.mark.parametrize(
    ("name", "is_matrix", "judged"),
    [
        ("__myl_CorrCastMulMulCast_myl0_1", False, "float32"),  # between its own casts
        ("__myl_CorrMulMul_myl0_1", False, "float16"),
        ("__myl_CastCorrCast_myl0_1", True, "float16"),
    ],
)
def test_what_lies_between_casts_of_one_kernel_is_not_judged_by_what_the_kernel_reads(name, is_matrix, judged):
    half = EngineTensor((1, 3), "float16")
    kernel = EngineLayer(name, "correlation", (half,), (half,), (half,), ("conv", "scale"))
    assert as_built([Layer("scale", "float32", is_matrix)], [kernel])[0].dtype == judged
