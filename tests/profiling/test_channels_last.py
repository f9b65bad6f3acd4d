"""Stretches whose ends lie channels last compute what they did, and OpenVINO does not reorder for them."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from akd_deploy.models.onnx_skeleton import filled, read_skeleton
from akd_deploy.models.published import skeleton_path
from akd_deploy.pipeline.expected_error import Enough
from akd_deploy.pipeline.probe_plan import plan_probes
from akd_deploy.profiling.channels_last import with_channels_last_ends
from akd_deploy.profiling.windows import Window
from akd_deploy.target import Target


def window(nodes, inputs, outputs, weights=()):
    graph = helper.make_graph(
        nodes,
        "window",
        [helper.make_tensor_value_info(name, kind, shape) for name, kind, shape in inputs],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in outputs],
        [onnx.numpy_helper.from_array(value, name) for name, value in weights],
    )
    return Window("family", helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10))


def convolution():
    """A convolution whose input is also added to its output, with the sum's mean as another output."""
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((6, 6, 3, 3), dtype=np.float32)
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], name="conv", pads=[1, 1, 1, 1]),
        helper.make_node("Add", ["c", "x"], ["y"], name="add"),
        helper.make_node("GlobalAveragePool", ["y"], ["mean"], name="mean"),
    ]
    inputs = [("x", TensorProto.FLOAT, [2, 6, 5, 7])]
    return window(nodes, inputs, [("y", [2, 6, 5, 7]), ("mean", [2, 6, 1, 1])], [("w", weight)])


def run(model, feeds):
    import onnxruntime

    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, feeds)


def test_the_same_is_computed_from_and_to_tensors_with_channels_last():
    plain = convolution()
    wrapped = with_channels_last_ends(plain)
    onnx.checker.check_model(wrapped.model, full_check=True)
    x = np.random.default_rng(1).standard_normal((2, 6, 5, 7), dtype=np.float32)
    y, mean = run(plain.model, {"x": x})
    y_last, mean_too = run(wrapped.model, {"x": x.transpose(0, 2, 3, 1)})
    np.testing.assert_allclose(y_last.transpose(0, 3, 1, 2), y, rtol=1e-5)
    np.testing.assert_allclose(mean_too, mean, rtol=1e-5)  # one position is channels last already
    assert wrapped.name != plain.name


def test_tokens_and_vectors_have_no_channels_to_be_last():
    nodes = [helper.make_node("Gather", ["table", "tokens"], ["y"], name="gather")]
    table = np.zeros((10, 4), np.float32)
    ends = [("y", [1, 3, 4])]
    tokens = window(nodes, [("tokens", TensorProto.INT64, [1, 3])], ends, [("table", table)])
    assert [v.name for v in with_channels_last_ends(tokens).model.graph.input] == ["tokens"]
    relu = [helper.make_node("Relu", ["x"], ["y"], name="relu")]
    assert with_channels_last_ends(window(relu, [("x", TensorProto.FLOAT, [1, 8])], [("y", [1, 8])])) is None


def openvino_target():
    pytest.importorskip("openvino")
    return Target("t", device="cpu", engine="openvino", precision="fp32", batch=1, engine_options={})


def test_openvino_takes_such_a_stretch_without_a_reorder(tmp_path):
    from akd_deploy.engines import load_engine

    engine = load_engine(openvino_target())
    plain = convolution()
    counts = []
    for one in (plain, with_channels_last_ends(plain)):
        onnx.save_model(one.model, tmp_path / "model.onnx")
        counts.append([kernel.kernel.op for kernel in engine.executed_kernels(tmp_path / "model.onnx")])
    assert counts[0].count("Reorder") == 3
    assert counts[1].count("Reorder") == 1  # of the mean, which is one position
    assert set(counts[1]) <= set(counts[0])


def test_a_plan_for_openvino_has_stretches_with_and_without_reorders_and_each_still_does_something(tmp_path):
    from akd_deploy.engines import load_engine

    target = openvino_target()
    engine = load_engine(target)
    plan = plan_probes(target, {"resnet18": read_skeleton(skeleton_path("resnet18"))}, Enough(40), seed=0)
    with_reorders = []
    for subject in plan.subjects.subjects:
        if isinstance(subject, Window):
            path = tmp_path / "stretch.onnx"
            onnx.save_model(filled(subject.model, np.random.default_rng(0)), path)
            kernels = engine.executed_kernels(path)
            with_reorders.append(any(kernel.kernel.op == "Reorder" for kernel in kernels))
            assert any(kernel.kernel.op not in ("Reorder", "Transpose") for kernel in kernels)
    assert 0.1 < np.mean(with_reorders) < 0.9
