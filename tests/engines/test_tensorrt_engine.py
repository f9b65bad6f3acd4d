"""TensorRT: real builds with TensorRT-RTX (no GPU needed), readers on golden files, a fake runtime for running."""

from __future__ import annotations

import ctypes
import importlib.util
import math
import os
import signal
from enum import Enum
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from contracts.engine_contract import EngineContract
from engine_graphs import GRAPHS, Graph, case
from onnx import TensorProto, helper, numpy_helper

from akd_deploy.engines import load_engine
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
from akd_deploy.engines.tensorrt_precision import as_built
from akd_deploy.engines.tensorrt_session import TensorRtSession
from akd_deploy.errors import (
    AkdError,
    BuildError,
    CorruptFileError,
    MismatchError,
    MissingRuntimeError,
    UnknownNameError,
    UsageError,
)
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
    assert built.details["weights_bytes"] > 4 * (16 * 27 + 2 * 16 * 144)  # at least the convolutions' weights
    assert built.details["activation_bytes"] > 0


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
    ],
)
def test_options_that_make_no_sense_are_refused(options, match):
    with pytest.raises(UsageError, match=match):
        rtx(**options)


def test_timing_cache_is_no_option_of_the_flavour_that_times_nothing():
    with pytest.raises(UnknownNameError, match="timing_cache"):
        rtx(timing_cache="x")


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


# --- running, on a fake runtime -----------------------------------------------------------------------------------


class FakeTensorRt:
    """A runtime whose engines compute y = 2 x + 1 on float32 of shape (batch, 3), in this process's memory."""

    __name__ = "fake_tensorrt"
    __version__ = "11.0"
    TensorIOMode = Enum("TensorIOMode", "NONE INPUT OUTPUT")
    DataType = Enum("DataType", "FLOAT BF16")
    LayerInformationFormat = Enum("LayerInformationFormat", "ONELINE JSON")

    class ILogger:
        Severity = Enum("Severity", "INTERNAL_ERROR ERROR WARNING")

    def __init__(self, *, dtype: str = "FLOAT", batch: int = -1, fails: bool = False, unresolved: tuple = ()) -> None:
        self.dtype, self.batch, self.fails, self.unresolved = self.DataType[dtype], batch, fails, unresolved
        self.runtimes: list[FakeRuntime] = []

    def Runtime(self, log: object) -> FakeRuntime:  # noqa: N802
        self.runtimes.append(FakeRuntime(self, log))
        return self.runtimes[-1]


class FakeRuntime:
    engine_host_code_allowed = True

    def __init__(self, trt: FakeTensorRt, log) -> None:
        self.trt, self.log = trt, log

    def deserialize_cuda_engine(self, plan: bytes):
        if plan != b"plan":
            self.log.log(self.trt.ILogger.Severity.ERROR, "Version tag does not match.")
            return None
        return FakeEngine(self.trt)


class FakeEngine:
    num_io_tensors = 2

    def __init__(self, trt: FakeTensorRt) -> None:
        self.trt = trt

    def get_tensor_name(self, index: int) -> str:
        return "xy"[index]

    def get_tensor_mode(self, name: str):
        return self.trt.TensorIOMode.INPUT if name == "x" else self.trt.TensorIOMode.OUTPUT

    def get_tensor_shape(self, name: str) -> tuple[int, int]:
        return (self.trt.batch, 3)

    def get_tensor_dtype(self, name: str):
        return self.trt.dtype

    def create_execution_context(self) -> FakeContext:
        return FakeContext(self.trt)


class FakeContext:
    def __init__(self, trt: FakeTensorRt) -> None:
        self.trt, self.shape, self.addresses = trt, None, {}

    def set_input_shape(self, name: str, shape: tuple) -> bool:
        self.shape = shape
        return True

    def infer_shapes(self) -> list[str]:
        return list(self.trt.unresolved)

    def get_tensor_shape(self, name: str):
        return self.shape

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return True

    def execute_async_v3(self, stream: int) -> bool:
        def view(name: str) -> np.ndarray:
            pointer = ctypes.cast(self.addresses[name], ctypes.POINTER(ctypes.c_float))
            return np.ctypeslib.as_array(pointer, shape=(math.prod(self.shape),))

        if not self.trt.fails:
            view("y")[:] = 2 * view("x") + 1
        return not self.trt.fails


class CountingStream:
    cuda_stream = 0

    def __init__(self) -> None:
        self.waits = 0

    def synchronize(self) -> None:
        self.waits += 1


def fake_session(trt: FakeTensorRt, stream: CountingStream | None = None, plan: bytes = b"plan") -> TensorRtSession:
    return TensorRtSession(trt, plan, "m.plan", 2, device="cpu", stream=stream or CountingStream())


X = np.arange(6, dtype=np.float32).reshape(2, 3)


def test_session_runs_on_its_own_buffers_and_resolves_the_batch():
    trt = FakeTensorRt()
    with fake_session(trt) as session:
        assert [(s.name, s.shape, s.dtype) for s in session.inputs] == [("x", (2, 3), "float32")]
        first = session.run({"x": X})
        session.run({"x": X + 1})
        np.testing.assert_array_equal(first["y"], 2 * X + 1)
    assert trt.runtimes[0].engine_host_code_allowed is False


def test_bound_call_waits_for_the_stream_every_time():
    stream = CountingStream()
    with fake_session(FakeTensorRt(), stream) as session:
        call = session.bind({"x": X})
        assert call() is None
        call()
        np.testing.assert_array_equal(session.bound_outputs()["y"], 2 * X + 1)
    assert stream.waits == 2


def test_feeds_that_do_not_fit_are_refused():
    with fake_session(FakeTensorRt()) as session, pytest.raises(UsageError, match="x"):
        session.run({"x": X.astype(np.float64)})


def test_plan_of_another_version_is_refused_with_tensorrts_reason():
    with pytest.raises(MismatchError, match=r"m\.plan.*Version tag does not match"):
        fake_session(FakeTensorRt(), plan=b"other")


def test_empty_plan_is_corrupt_and_never_reaches_tensorrt():
    trt = FakeTensorRt()
    with pytest.raises(CorruptFileError, match="empty"):
        fake_session(trt, plan=b"")
    assert trt.runtimes == []


def test_failed_inference_is_an_error_and_no_old_result():
    with fake_session(FakeTensorRt(fails=True)) as session, pytest.raises(AkdError, match="one inference"):
        session.run({"x": X})


def test_inputs_whose_shapes_stay_open_are_named():
    with pytest.raises(AkdError, match="inputs without a shape: lengths"):
        fake_session(FakeTensorRt(unresolved=("lengths",)))


def test_bfloat16_inputs_are_refused_since_numpy_has_none():
    with pytest.raises(MismatchError, match="bfloat16"):
        fake_session(FakeTensorRt(dtype="BF16"))
