from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from contracts.engine_contract import EngineContract
from engine_graphs import GRAPHS, IMAGE, Graph, case

from akd_deploy.engines import openvino_engine
from akd_deploy.engines.openvino_engine import OpenVinoEngine
from akd_deploy.engines.openvino_kernels import ExecutedLayer, executed_layers
from akd_deploy.errors import (
    BuildError,
    CorruptFileError,
    MissingFileError,
    MissingRuntimeError,
    UnknownNameError,
    UsageError,
)
from akd_deploy.kernel import ExecutedKernel
from akd_deploy.target import Target, load_target

TARGET = Target("t", "cpu", "openvino")


def engine(precision: str = "fp32", batch: int = 1) -> OpenVinoEngine:
    return OpenVinoEngine(replace(TARGET, precision=precision, batch=batch))


@pytest.fixture(scope="module")
def cpu_has_bfloat16() -> bool:
    return "BF16" in openvino_engine._core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


class TestOpenVino(EngineContract):
    runtime_modules = ("openvino", "torch")

    @pytest.fixture
    def engine(self):
        return OpenVinoEngine(TARGET)

    @pytest.fixture
    def model(self, tmp_path):
        return case(GRAPHS["inverted_bottleneck"](), tmp_path / "model.onnx")


class TestOpenVinoInt8(TestOpenVino):
    @pytest.fixture
    def engine(self):
        return engine("int8")

    @pytest.fixture
    def model(self, tmp_path):
        # Two quantisation steps of the output: kernels round intermediate values in their own ways.
        return case(GRAPHS["quantized"](), tmp_path / "model.onnx", tolerance=0.0201)


class TestOpenVinoSeveralPartsAtBatch3(TestOpenVino):
    @pytest.fixture
    def engine(self):
        return engine(batch=3)

    @pytest.fixture
    def model(self, tmp_path):
        return case(GRAPHS["several_parts"](), tmp_path / "model.onnx", batch=3)


# --- kernels ------------------------------------------------------------------------------------------------


def kernels_of(model: onnx.ModelProto, tmp_path: Path, precision: str = "fp32") -> list[ExecutedKernel]:
    path = tmp_path / "network.onnx"
    onnx.save(model, str(path))
    return list(engine(precision).executed_kernels(path))


def working(kernels: list[ExecutedKernel]) -> list[tuple[str, tuple[str, ...]]]:
    return [(k.kernel.op, k.nodes) for k in kernels if k.kernel.op not in ("Reorder", "Reshape")]


def test_convolution_takes_in_normalisation_activation_and_residual(tmp_path):
    kernels = kernels_of(GRAPHS["residual"](), tmp_path)
    assert working(kernels) == [
        ("Convolution", ("Conv_0", "Relu_1")),
        ("Convolution", ("Conv_2", "Relu_3")),
        ("Convolution", ("Conv_4", "Add_5", "Relu_6")),
        ("Reduce", ("GlobalAveragePool_7",)),
        ("FullyConnected", ("Gemm_9",)),
    ]
    fused = next(k.kernel for k in kernels if "Add_5" in k.nodes)
    assert fused.inputs == ((1, 16, 16, 16), (16, 16, 3, 3), (16,), (1, 16, 16, 16))
    assert fused.dtype == "float32"
    expected = {"kernel_size": (3, 3), "strides": (1, 1), "dilations": (1, 1), "groups": 1, "pads": (1, 1, 1, 1)}
    assert expected.items() <= dict(fused.attributes).items()
    assert (fused.attribute("activation"), fused.attribute("residual")) == ("Relu", 1)


def test_swish_and_hard_swish_are_told_apart(tmp_path):
    kernels = kernels_of(GRAPHS["inverted_bottleneck"](), tmp_path)
    activations = {k.nodes[0]: k.kernel.attribute("activation") for k in kernels if k.kernel.op == "Convolution"}
    assert activations == {
        "Conv_0": None, "Conv_2": "Sigmoid+Mul", "Conv_6": "Sigmoid+Mul", "Conv_11": "Sigmoid+Mul",
        "Conv_14": "Sigmoid", "Conv_17": "HardSwish",
    }  # fmt: skip
    depthwise = next(k.kernel for k in kernels if "Conv_6" in k.nodes and k.kernel.op == "Convolution")
    assert depthwise.inputs[1] == (32, 1, 1, 5, 5)
    assert (depthwise.attribute("groups"), depthwise.attribute("kernel_size")) == (32, (5, 5))


def test_reorders_stay_and_constants_go(tmp_path):
    kernels = kernels_of(GRAPHS["conv_bn_relu"](), tmp_path)
    first = kernels[0]
    assert (first.kernel.op, first.nodes) == ("Reorder", ("Conv_0",))
    assert first.kernel.attribute("from_layout") != first.kernel.attribute("layout")
    assert not {k.kernel.op for k in kernels} & {"Input", "Output", "Const"}


def test_what_depends_on_weights_alone_is_not_executed():
    def layer(name: str, kind: str, *sources: int) -> ExecutedLayer:
        return ExecutedLayer(name, kind, (name,), "f32", ("f32",), "a", ((1,),) * len(sources), ((1,),), sources)

    layers = [
        layer("x", "Input"),
        layer("w", "Const"),
        layer("w_reordered", "Reorder", 1),
        layer("random", "RandomUniform"),
        layer("fc", "FullyConnected", 0, 2),
        layer("y", "Output", 4),
    ]
    assert executed_layers(layers) == [3, 4]


def test_quantised_network_runs_on_integer_layers(tmp_path):
    kernels = kernels_of(GRAPHS["quantized"](), tmp_path, "int8")
    convolutions = [k for k in kernels if k.kernel.op == "Convolution"]
    assert [k.kernel.dtype for k in convolutions] == ["uint8", "uint8"]
    assert {"Conv_3", "Relu_4", "QuantizeLinear_5"} <= set(convolutions[0].nodes)


@pytest.mark.parametrize("name", GRAPHS)
def test_every_node_is_covered_by_one_layer_besides_reorders(name, tmp_path):
    model = GRAPHS[name]()
    kernels = kernels_of(model, tmp_path, "int8" if name == "quantized" else "fp32")
    assert all(k.nodes for k in kernels)
    assert {n for k in kernels for n in k.nodes} == {node.name for node in model.graph.node}
    parts = Counter(n for k in kernels if k.kernel.op != "Reorder" for n in k.nodes)
    assert {n for n, times in parts.items() if times > 1} == set()


def test_nodes_with_one_name_are_told_apart(tmp_path):
    model = GRAPHS["residual"]()
    for node in model.graph.node:
        node.name = "" if node.op_type == "Conv" else "same"
    assert working(kernels_of(model, tmp_path))[2] == ("Convolution", ("Conv_4_out", "Add_5_out", "Relu_6_out"))


def test_kernels_of_an_openvino_file_are_refused(tmp_path):
    onnx.save(GRAPHS["conv_bn_relu"](), str(tmp_path / "network.onnx"))
    built = engine().build(tmp_path / "network.onnx", tmp_path / "out")
    with pytest.raises(UsageError, match="ONNX"):
        engine().executed_kernels(built.path)


# --- precision and threads ----------------------------------------------------------------------------------


def build(model: onnx.ModelProto, tmp_path: Path, precision: str):
    path = tmp_path / "network.onnx"
    onnx.save(model, str(path))
    return engine(precision).build(path, tmp_path / "out")


def test_fp32_target_computes_in_float32_even_where_bfloat16_is_the_default(tmp_path):
    assert set(build(GRAPHS["residual"](), tmp_path, "fp32").precision) == {"float32"}


def test_bf16_target_computes_in_bfloat16_or_is_refused_by_layer(tmp_path, cpu_has_bfloat16):
    if cpu_has_bfloat16:
        assert build(GRAPHS["residual"](), tmp_path, "bf16").precision["bfloat16"] >= 4
    else:
        with pytest.raises(BuildError, match=r"computing in float32.*Conv_0"):
            build(GRAPHS["residual"](), tmp_path, "bf16")


def test_bf16_asked_and_float32_computed_is_refused_by_layer(tmp_path, monkeypatch):
    # What a CPU without bfloat16 does: the hint is taken and nothing comes of it.
    monkeypatch.setitem(openvino_engine._HINTS, "bf16", "f32")
    with pytest.raises(BuildError, match=r"computing in float32.*Conv_4"):
        build(GRAPHS["residual"](), tmp_path, "bf16")


def test_fp32_asked_and_bfloat16_computed_is_refused_by_layer(tmp_path, monkeypatch, cpu_has_bfloat16):
    if not cpu_has_bfloat16:
        pytest.skip("this CPU does not compute in bfloat16")
    monkeypatch.setitem(openvino_engine._HINTS, "fp32", "bf16")
    with pytest.raises(BuildError, match=r"computing in bfloat16.*Conv_0"):
        build(GRAPHS["residual"](), tmp_path, "fp32")


def test_float32_network_for_an_int8_target_is_refused(tmp_path):
    with pytest.raises(BuildError, match="computing in float32"):
        build(GRAPHS["residual"](), tmp_path, "int8")


def test_quantised_network_for_an_fp32_target_is_refused(tmp_path):
    with pytest.raises(BuildError, match="computing in uint8"):
        build(GRAPHS["quantized"](), tmp_path, "fp32")


def test_precision_without_a_hint_is_refused():
    with pytest.raises(UnknownNameError, match="bf16, fp16, fp32, int8"):
        engine("fp8")


def test_threads_are_applied(tmp_path):
    onnx.save(GRAPHS["conv_bn_relu"](), str(tmp_path / "network.onnx"))
    with engine().load(tmp_path / "network.onnx") as session:
        assert session._compiled.get_property("INFERENCE_NUM_THREADS") == 1
        assert session._compiled.get_property("NUM_STREAMS") == 1


def test_more_threads_than_there_are_is_an_error(tmp_path):
    onnx.save(GRAPHS["conv_bn_relu"](), str(tmp_path / "network.onnx"))
    greedy = OpenVinoEngine(replace(TARGET, engine_options={"threads": 4096}))
    with pytest.raises(UsageError, match="threads"):
        greedy.load(tmp_path / "network.onnx")


# --- refusals and files -------------------------------------------------------------------------------------


def test_missing_package_is_refused_with_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr(openvino_engine.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingRuntimeError, match=r"akd-deploy\[openvino\]"):
        engine().load(tmp_path / "any.xml")


def test_device_that_is_no_cpu_is_refused():
    with pytest.raises(UsageError, match="CPU"):
        OpenVinoEngine(replace(TARGET, device="gpu"))


def test_unsupported_operator_is_named_with_its_node(tmp_path):
    g = Graph()
    g("Frobnicate", g("Relu", "x"), domain="com.example")
    with pytest.raises(BuildError, match=r"Frobnicate_1 \(com.example.Frobnicate\)"):
        build(g.model(IMAGE, ["Frobnicate_1_out"]), tmp_path, "fp32")


def test_engine_without_its_weights_or_with_half_of_them_is_refused(tmp_path):
    built = build(GRAPHS["residual"](), tmp_path, "fp32")
    weights = built.path.with_suffix(".bin")
    weights.write_bytes(weights.read_bytes()[: weights.stat().st_size // 2])
    with pytest.raises(CorruptFileError, match=r"network\.bin"):
        engine().load(built.path)
    weights.unlink()
    with pytest.raises(MissingFileError, match=r"network\.bin"):
        engine().load(built.path)


def test_engine_file_of_other_bytes_is_corrupt(tmp_path):
    built = build(GRAPHS["residual"](), tmp_path, "fp32")
    built.path.write_text("no xml at all", encoding="utf-8")
    with pytest.raises(CorruptFileError, match=r"network\.xml"):
        engine().load(built.path)


def test_engine_built_for_another_batch_is_refused(tmp_path):
    built = build(GRAPHS["residual"](), tmp_path, "fp32")
    with pytest.raises(UsageError, match="batch"):
        engine(batch=4).load(built.path)


def test_weights_in_another_file_are_built_in(tmp_path):
    model = GRAPHS["residual"]()
    expected = case(model, tmp_path / "inline.onnx")
    onnx.save(
        model, str(tmp_path / "network.onnx"), save_as_external_data=True, location="weights.bin", size_threshold=0
    )
    built = engine().build(tmp_path / "network.onnx", tmp_path / "out")
    (tmp_path / "weights.bin").unlink()
    with engine().load(built.path) as session:
        for name, array in session.run(expected.feeds).items():
            np.testing.assert_allclose(array, expected.expected[name], rtol=1e-4, atol=1e-4)


def test_onnx_file_loads_directly(tmp_path):
    model = case(GRAPHS["attention"](), tmp_path / "network.onnx")
    with engine().load(model.path) as session:
        for name, array in session.run(model.feeds).items():
            np.testing.assert_allclose(array, model.expected[name], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ["cpu_openvino_fp32", "cpu_openvino_bf16"])
def test_shipped_targets_are_valid(name):
    shipped = OpenVinoEngine(load_target(name))
    assert shipped.option("threads") == 1
