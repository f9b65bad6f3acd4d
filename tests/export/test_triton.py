"""What is written for a Triton server is read by its schema."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from bundles import facts, write_small_bundle
from export_graphs import convnet, saved
from google.protobuf import text_format
from model_config_schema import parse_model_config
from onnx import TensorProto, helper

from akd_deploy.device import DeviceFingerprint
from akd_deploy.engines import load_engine
from akd_deploy.errors import UsageError
from akd_deploy.export.bundle import BundleFile, write_bundle
from akd_deploy.export.package import package_bundle
from akd_deploy.export.triton import TritonPlatform, triton_config
from akd_deploy.export.verify import verify_bundle
from akd_deploy.target import Target

ORT = TritonPlatform("onnxruntime_onnx", "model.onnx", "m.onnx")
PLAN = TritonPlatform("tensorrt_plan", "model.plan", "m.plan")
CPU = Target("t", "cpu", "onnxruntime", engine_options={"threads": 3})
CUDA = Target("t", "gpu", "onnxruntime", engine_options={"provider": "cuda"})
OPENVINO = TritonPlatform("openvino", "model.xml", "m.xml", {"m.bin": "model.bin"}, is_backend=True)
BF16 = Target("t", "cpu", "openvino", "bf16", engine_options={"threads": 2})
INT8 = Target("t", "cpu", "openvino", "int8")
LATENCY = {"PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": "1"}
ORIN = Target("t", "orin", "tensorrt", "fp16")

NAMES = {
    "BOOL": 1, "UINT8": 2, "UINT16": 3, "UINT32": 4, "UINT64": 5, "INT8": 6, "INT16": 7, "INT32": 8, "INT64": 9,
    "FLOAT16": 10, "FLOAT": 11, "DOUBLE": 12, "BFLOAT16": 14,
}  # fmt: skip
"""ONNX's name of a type → Triton's number of it."""


def network(path: Path, dtype: int = TensorProto.FLOAT, shape=(1, 3, 8, 8), weights=()) -> Path:
    """The same tensor in and out, by names that need no escaping but are odd."""
    inputs = [helper.make_tensor_value_info("x:0", dtype, shape)]
    inputs += [helper.make_tensor_value_info(w.name, w.data_type, w.dims) for w in weights]
    outputs = [helper.make_tensor_value_info("y/out.1", dtype, shape)]
    graph = helper.make_graph([helper.make_node("Identity", ["x:0"], ["y/out.1"])], "g", inputs, outputs, weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    path.write_bytes(model.SerializeToString())
    return path


@pytest.mark.parametrize(
    ("platform", "target", "kind", "parameters"),
    [
        (ORT, CPU, 2, {"intra_op_thread_count": "3"}),
        (ORT, CUDA, 1, {"intra_op_thread_count": "1"}),
        (PLAN, ORIN, 1, {}),
        (OPENVINO, BF16, 2, {**LATENCY, "INFERENCE_NUM_THREADS": "2", "HINT_BF16": "YES"}),
        (OPENVINO, INT8, 2, {**LATENCY, "INFERENCE_NUM_THREADS": "1"}),
    ],
)
def test_each_platform_is_served_where_and_as_it_was_measured(tmp_path, platform, target, kind, parameters):
    config = parse_model_config(triton_config("net", platform, network(tmp_path / "m.onnx"), target))
    assert (config.name, config.platform or config.backend, config.max_batch_size) == ("net", platform.name, 0)
    assert bool(config.platform) != bool(config.backend) == platform.is_backend
    (group,) = config.instance_group
    assert (group.kind, group.count) == (kind, 1)
    assert {key: value.string_value for key, value in config.parameters.items()} == parameters
    assert [(t.name, list(t.dims)) for t in config.input] == [("x:0", [1, 3, 8, 8])]
    assert [(t.name, list(t.dims)) for t in config.output] == [("y/out.1", [1, 3, 8, 8])]


@pytest.mark.parametrize("dtype", sorted(NAMES))
@pytest.mark.parametrize("platform", [ORT, PLAN], ids=lambda platform: platform.name)
def test_every_type_of_tensor_has_its_number_in_the_schema(tmp_path, platform, dtype):
    path = network(tmp_path / "m.onnx", getattr(TensorProto, dtype))
    config = parse_model_config(triton_config("net", platform, path, CPU if platform is ORT else ORIN))
    assert [t.data_type for t in (*config.input, *config.output)] == [NAMES[dtype]] * 2


def test_a_type_that_the_server_does_not_know_is_refused(tmp_path):
    with pytest.raises(UsageError, match="ONNX type 8"):
        triton_config("net", ORT, network(tmp_path / "m.onnx", TensorProto.STRING), CPU)


def test_scalars_a_free_batch_and_free_dimensions_have_dims(tmp_path):
    path = network(tmp_path / "m.onnx", shape=())
    (tensor,) = parse_model_config(triton_config("net", ORT, path, CPU)).input
    assert list(tensor.dims) == [1]
    assert tensor.HasField("reshape")
    assert list(tensor.reshape.shape) == []
    path = network(tmp_path / "m.onnx", shape=("N", 3, "H"))
    (tensor,) = parse_model_config(triton_config("net", ORT, path, Target("t", "cpu", "onnxruntime", batch=4))).input
    assert (list(tensor.dims), tensor.HasField("reshape")) == ([4, 3, -1], False)


def test_weights_that_are_listed_as_inputs_are_none(tmp_path):
    weight = helper.make_tensor("w", TensorProto.FLOAT, [1], [0.0])
    path = network(tmp_path / "m.onnx", weights=[weight])
    assert [t.name for t in parse_model_config(triton_config("net", ORT, path, CPU)).input] == ["x:0"]


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ({"provider": "tensorrt"}, "provider 'tensorrt'"),
        ({"graph_optimization": "extended"}, "graph optimisation 'extended'"),
        ({"spinning": False, "threads": 2}, "spinning False"),
        ({"denormal_as_zero": True}, "does not set"),
    ],
)
def test_what_the_server_would_run_otherwise_than_it_was_measured_is_refused(tmp_path, options, found):
    target = Target("t", "x", "onnxruntime", engine_options=options)
    with pytest.raises(UsageError, match=found):
        triton_config("net", ORT, network(tmp_path / "m.onnx"), target)


@pytest.mark.parametrize("engine", ["onnxruntime", "tensorrt"])
def test_the_file_in_a_packaged_repository_fits_the_schema(tmp_path, engine):
    write_small_bundle(tmp_path, engine=engine)
    package_bundle(tmp_path / "bundle", "triton", tmp_path / "models", model_name="a.b-c_1")
    model = tmp_path / "models" / "a.b-c_1"
    config = parse_model_config((model / "config.pbtxt").read_text(encoding="utf-8"))
    assert config.name == model.name  # the server refuses another name than the folder's
    served = {"onnxruntime_onnx": "model.onnx", "tensorrt_plan": "model.plan"}[config.platform]
    assert (model / "1" / served).is_file()
    if engine == "onnxruntime":
        graph = onnx.load(model / "1" / served).graph
        assert [t.name for t in config.input] == [value.name for value in graph.input]
        assert [t.name for t in config.output] == [value.name for value in graph.output]


@pytest.mark.parametrize(
    "text",
    ['platfrom: "x"', "max_batch_size: a", "input [ { name: x } ]", "instance_group [ { kind: KIND_TPU } ]",
     'input [ { data_type: TYPE_FLOAT } ]', 'parameters { key: "k" value: "v" }'],
)  # fmt: skip
def test_the_schema_refuses_what_is_not_in_it(text):
    with pytest.raises(text_format.ParseError):
        parse_model_config(text)


def test_exactly_one_network_can_be_served(tmp_path):
    path = network(tmp_path / "m.onnx")
    write_bundle(tmp_path / "b", [BundleFile(n, path, "onnx") for n in ("a.onnx", "b.onnx")], facts())
    with pytest.raises(UsageError, match="2 files of role 'onnx'"):
        package_bundle(tmp_path / "b", "triton", tmp_path / "models")


def test_several_inputs_and_outputs_are_lists(tmp_path):
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 2]) for name in "abcd"]
    nodes = [helper.make_node("Relu", ["a"], ["c"]), helper.make_node("Relu", ["b"], ["d"])]
    graph = helper.make_graph(nodes, "g", values[:2], values[2:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    config = parse_model_config(triton_config("net", ORT, tmp_path / "m.onnx", CPU))
    assert [t.name for t in (*config.input, *config.output)] == ["a", "b", "c", "d"]


# --- OpenVINO --------------------------------------------------------------------------------------------------


def openvino_bundle(folder: Path, precision: str = "bf16", isa: str | None = "avx2 amx_bf16", **options) -> Path:
    """A bundle of an engine that OpenVINO really wrote, measured on a CPU of these features."""
    pytest.importorskip("openvino")
    target = Target("t", "cpu", "openvino", precision, engine_options=options)
    source = saved(convnet(), folder / "net.onnx")
    built = load_engine(Target("t", "cpu", "openvino", "fp32")).build(source, folder / "built")
    files = [
        BundleFile("net.onnx", source, "onnx"),
        BundleFile("engines/t/net.xml", built.files[0], "engine"),
        BundleFile("engines/t/net.bin", built.files[1], "engine_part"),
    ]
    device = {"kind": "cpu", "model": "Test CPU"} | ({} if isa is None else {"isa": isa})
    write_bundle(folder / "bundle", files, facts("openvino", target=target, device=DeviceFingerprint(device)))
    return folder / "bundle"


def test_an_openvino_engine_is_served_as_its_backend_looks_for_it(tmp_path):
    import openvino

    package_bundle(openvino_bundle(tmp_path), "triton", tmp_path / "models", model_name="net")
    model = tmp_path / "models" / "net"
    config = parse_model_config((model / "config.pbtxt").read_text(encoding="utf-8"))
    assert (config.backend, config.platform, config.default_model_filename) == ("openvino", "", "")
    # The backend reads model.xml of the version's folder, and OpenVINO the weights of that name beside it.
    served = openvino.Core().read_model(model / "1" / "model.xml")
    for ports, told in ((served.inputs, config.input), (served.outputs, config.output)):
        assert [(t.name, list(t.dims)) for t in told] == [(p.get_any_name(), list(p.get_shape())) for p in ports]
    assert sorted(path.name for path in (model / "1").iterdir()) == ["model.bin", "model.xml"]
    assert verify_bundle(model).ok


@pytest.mark.parametrize(
    ("precision", "isa", "found"),
    [
        ("fp32", "avx2 avx512_bf16", "measured on a CPU with bfloat16"),
        ("int8", "amx_bf16", "measured on a CPU with bfloat16"),
        ("fp32", None, "a CPU of unknown features"),
        ("fp16", "avx2", "precision fp16"),
    ],
)
def test_a_precision_that_the_server_would_not_keep_is_refused(tmp_path, precision, isa, found):
    bundle = openvino_bundle(tmp_path, precision, isa)
    with pytest.raises(UsageError, match=f"{found}.*would compute in bfloat16"):
        package_bundle(bundle, "triton", tmp_path / "models")


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_a_cpu_without_bfloat16_computes_in_float32_of_itself(tmp_path, precision):
    package_bundle(openvino_bundle(tmp_path, precision, "avx2 fma"), "triton", tmp_path / "models", model_name="net")
    text = (tmp_path / "models" / "net" / "config.pbtxt").read_text(encoding="utf-8")
    assert "HINT_BF16" not in {key for key in parse_model_config(text).parameters}


def test_threads_that_are_not_pinned_are_refused(tmp_path):
    with pytest.raises(UsageError, match="pinning False"):
        package_bundle(openvino_bundle(tmp_path, pinning=False), "triton", tmp_path / "models")


def test_openvino_without_its_weights_is_refused(tmp_path):
    write_small_bundle(tmp_path, engine="openvino")
    with pytest.raises(UsageError, match=r"cpu_test\.engine as engine and parts"):
        package_bundle(tmp_path / "bundle", "triton", tmp_path / "models")


@pytest.mark.parametrize("dtype", ["BFLOAT16", "DOUBLE"])
def test_types_that_openvinos_backend_does_not_pass_on_are_refused(tmp_path, dtype):
    path = network(tmp_path / "m.onnx", getattr(TensorProto, dtype))
    with pytest.raises(UsageError, match="ONNX type"):
        triton_config("net", OPENVINO, path, BF16)


def test_scalars_are_refused_for_openvino(tmp_path):
    with pytest.raises(UsageError, match="scalar"):
        triton_config("net", OPENVINO, network(tmp_path / "m.onnx", shape=()), BF16)
