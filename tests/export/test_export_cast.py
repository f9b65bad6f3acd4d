import ml_dtypes
import numpy as np
import onnx
import pytest
from export_graphs import convnet, images, network, saved, weight
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from akd_deploy.errors import BuildError, UnknownNameError, UsageError
from akd_deploy.export.cast import cast_model
from akd_deploy.export.low_precision import LOW_PRECISIONS, tensor_to_low
from akd_deploy.export.parity import check_parity, compare_outputs, is_within, tolerance_for
from akd_deploy.export.quantize import quantize_onnx


def runner(model):
    evaluator = ReferenceEvaluator(model)
    return lambda feeds: dict(zip(evaluator.output_names, evaluator.run(None, feeds), strict=True))


def types_of(model):
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True)
    values = (*inferred.graph.value_info, *inferred.graph.input, *inferred.graph.output)
    return {value.name: value.type.tensor_type.elem_type for value in values}


def node(model, name):
    return next(n for n in model.graph.node if n.name == name)


@pytest.mark.parametrize("mode", ["fp16", "bf16"])
def test_a_cast_network_is_at_parity_and_computes_everything_in_16_bits(mode):
    model = convnet()
    cast = cast_model(model, mode)
    check_parity(compare_outputs(runner(model), runner(cast.model), images(4)), tolerance_for(mode))
    types = types_of(cast.model)
    assert cast.kept_float32 == {}
    for n in model.graph.node:
        if n.output[0] != "logits":
            assert types[n.output[0]] == LOW_PRECISIONS[mode].onnx_type
    assert types["x"] == types["logits"] == TensorProto.FLOAT
    assert all(t.data_type == LOW_PRECISIONS[mode].onnx_type for t in cast.model.graph.initializer)
    assert [n.op_type for n in cast.model.graph.node].count("Cast") == 2


def test_the_same_network_gives_the_same_bytes_and_is_left_alone():
    model = convnet()
    before = model.SerializeToString(deterministic=True)
    first, second = (cast_model(model, "fp16").model.SerializeToString(deterministic=True) for _ in range(2))
    assert first == second
    assert model.SerializeToString(deterministic=True) == before


@pytest.mark.parametrize("mode", ["fp16", "bf16"])
def test_rounding_is_to_nearest_even_as_a_second_implementation_does_it(mode):
    rng = np.random.default_rng(0)
    values = (rng.standard_normal(4000) * 10.0 ** rng.integers(-8, 5, 4000)).astype(np.float32)
    ties = [1 + odd * 2.0**-bits for bits in (8, 11) for odd in (1, 3)]  # halfway between two of either type
    values = np.concatenate([values, ties, [0, -0.0, 1, np.inf, -np.inf]]).astype(np.float32)
    values = values[(np.abs(values) <= 65504) | np.isinf(values)]
    ours = numpy_helper.to_array(tensor_to_low(numpy_helper.from_array(values, "v"), LOW_PRECISIONS[mode], "v"))
    theirs = values.astype(np.float16 if mode == "fp16" else ml_dtypes.bfloat16)
    assert np.array_equal(ours.astype(np.float32), theirs.astype(np.float32))


def test_nan_stays_nan_in_bfloat16():
    tensor = numpy_helper.from_array(np.array([np.nan, 1], np.float32), "v")
    assert np.isnan(numpy_helper.to_array(tensor_to_low(tensor, LOW_PRECISIONS["bf16"], "v")).astype(np.float32)[0])


def test_a_weight_beyond_float16_keeps_its_node_in_float32_and_says_so():
    model = convnet()
    w2 = next(t for t in model.graph.initializer if t.name == "w2")
    values = numpy_helper.to_array(w2).copy()
    values[0, 0] = 1e5
    w2.CopyFrom(weight("w2", values))
    cast = cast_model(model, "fp16")
    assert list(cast.kept_float32) == ["pointwise"]
    assert "w2" in cast.kept_float32["pointwise"]
    types = types_of(cast.model)
    assert types["c2"] == TensorProto.FLOAT
    assert types["a2"] == TensorProto.FLOAT16
    assert cast_model(model, "bf16").kept_float32 == {}


def layer_norm_of_large_values(eps: float = 1e-5, scale: float = 3e3) -> onnx.ModelProto:
    """LayerNormalization taken apart, of values in the thousands: their squares are beyond 65504, the result is not."""
    nodes = [
        helper.make_node("Mul", ["x", "scale"], ["big"], "scale_up"),
        helper.make_node("ReduceMean", ["big"], ["mean"], "mean", axes=[3], keepdims=1),
        helper.make_node("Sub", ["big", "mean"], ["d"], "center"),
        helper.make_node("Mul", ["d", "d"], ["square"], "square"),
        helper.make_node("ReduceMean", ["square"], ["var"], "variance", axes=[3], keepdims=1),
        helper.make_node("Add", ["var", "eps"], ["guarded"], "guard"),
        helper.make_node("Sqrt", ["guarded"], ["std"], "root"),
        helper.make_node("Div", ["d", "std"], ["logits"], "divide"),
    ]
    weights = [weight("scale", np.array(scale)), weight("eps", np.array(eps))]
    return network(nodes, weights, output_shape=(1, 3, 8, 8))


def test_the_island_of_a_layer_norm_is_what_overflows_and_no_node_more(tmp_path):
    """Each node of it is needed: with any one of them in float16 the result is another."""
    pytest.importorskip("onnxruntime")
    model = layer_norm_of_large_values()
    source = saved(model, tmp_path / "m.onnx")
    kept = quantize_onnx(source, "fp16", images(4), tmp_path / "v.onnx").kept_float32
    assert set(kept) == {"square", "variance", "guard", "root"}
    reference, samples = runner(model), images(4, seed=3)
    with np.errstate(over="ignore", invalid="ignore"):
        whole = compare_outputs(reference, runner(cast_model(model, "fp16", kept).model), samples)
        check_parity(whole, tolerance_for("fp16"))
        for name in kept:
            without = {other: reason for other, reason in kept.items() if other != name}
            parity = compare_outputs(reference, runner(cast_model(model, "fp16", without).model), samples)
            assert not is_within(parity, tolerance_for("fp16")), name


def test_bfloat16_needs_no_island_and_says_so(tmp_path):
    model = layer_norm_of_large_values()
    written = quantize_onnx(saved(model, tmp_path / "m.onnx"), "bf16", [], tmp_path / "v.onnx")
    assert written.kept_float32 == {}
    assert any("float32's range" in note for note in written.notes)
    parity = compare_outputs(runner(model), runner(onnx.load(written.path)), images(4))
    check_parity(parity, tolerance_for("bf16"))


def test_a_mask_of_the_lowest_float_reaches_softmax_as_it_is():
    """Cast to float16 it is −∞, and a row that is masked as a whole would be NaN."""
    lowest = float(np.finfo(np.float32).min)
    nodes = [
        helper.make_node("Relu", ["x"], ["scores"], "scores"),
        helper.make_node("Add", ["scores", "mask"], ["masked"], "mask"),
        helper.make_node("Softmax", ["masked"], ["p"], "softmax", axis=3),
        helper.make_node("Mul", ["p", "two"], ["logits"], "after"),
    ]
    mask = np.zeros((1, 1, 8, 8))
    mask[..., 0, :] = lowest
    weights = [weight("mask", mask), weight("two", np.array(2.0))]
    model = network(nodes, weights, output_shape=(1, 3, 8, 8))
    cast = cast_model(model, "fp16")
    assert set(cast.kept_float32) == {"mask", "softmax"}
    assert [n.name for n in cast.model.graph.node if n.op_type == "Cast"] == [
        "x__float16__cast",
        "scores__float32__cast",
        "p__float16__cast",
        "logits__cast",
    ]
    check_parity(compare_outputs(runner(model), runner(cast.model), images(2)), tolerance_for("fp16"))


def test_a_constant_that_keeps_a_variance_from_zero_is_not_rounded_to_it():
    """Where all values of a row are equal the variance is 0: 1e-12 is 0 in float16, and 0 / 0 is no number."""
    model = layer_norm_of_large_values(eps=1e-12, scale=1.0)
    cast = cast_model(model, "fp16")
    assert set(cast.kept_float32) == {"guard", "root"}
    assert "'eps' would be 0" in cast.kept_float32["guard"]
    flat = [{"x": np.ones((1, 3, 8, 8), np.float32)}]
    check_parity(compare_outputs(runner(model), runner(cast.model), flat), tolerance_for("fp16"))
    assert cast_model(layer_norm_of_large_values(eps=1e-5, scale=1.0), "fp16").kept_float32 == {}
    assert cast_model(model, "bf16").kept_float32 == {}


def test_clip_bounds_beyond_float16_are_clamped_instead():
    model = convnet()
    next(t for t in model.graph.initializer if t.name == "high").CopyFrom(weight("high", np.array(3e38)))
    cast = cast_model(model, "fp16")
    assert cast.kept_float32 == {}
    bound = next(t for t in cast.model.graph.initializer if t.name == node(cast.model, "relu6").input[2])
    assert numpy_helper.to_array(bound) == 65504


def test_softmax_and_nodes_asked_for_stay_in_float32_with_one_cast_per_tensor():
    nodes = [
        helper.make_node("Flatten", ["x"], ["f"], "flatten"),
        helper.make_node("Gemm", ["f", "w"], ["g"], "gemm"),
        helper.make_node("Softmax", ["g"], ["s"], "softmax"),
        helper.make_node("Softmax", ["g"], ["t"], "softmax2", axis=0),
        helper.make_node("Add", ["s", "t"], ["u"], "sum"),
        helper.make_node("Relu", ["u"], ["logits"], "relu"),
    ]
    model = network(nodes, [weight("w", np.ones((192, 10)) / 192)])
    cast = cast_model(model, "fp16", {"relu": "because"})
    assert cast.kept_float32 == {
        "softmax": "Softmax sums exponentials",
        "softmax2": "Softmax sums exponentials",
        "relu": "because",
    }
    assert [n.input[0] for n in cast.model.graph.node if n.op_type == "Softmax"] == ["g__float32"] * 2
    check_parity(compare_outputs(runner(model), runner(cast.model), images(2)), tolerance_for("fp16"))


def test_scales_of_resize_stay_float32_as_its_schema_says():
    nodes = [
        helper.make_node("Resize", ["x", "", "scales"], ["r"], "resize", mode="nearest"),
        helper.make_node("GlobalAveragePool", ["r"], ["p"], "pool"),
        helper.make_node("Flatten", ["p"], ["logits"], "flatten"),
    ]
    model = network(nodes, [weight("scales", np.array([1, 1, 2, 2]))], output_shape=(1, 3))
    cast = cast_model(model, "fp16")
    assert node(cast.model, "resize").input[2] == "scales"
    assert types_of(cast.model)["r"] == TensorProto.FLOAT16


def test_casts_constants_and_whole_numbers_inside_the_network_are_handled():
    nodes = [
        helper.make_node("Constant", [], ["two"], "two", value=weight("v", np.array(2.0))),
        helper.make_node("Flatten", ["x"], ["f"], "flatten"),
        helper.make_node("ArgMax", ["f"], ["i"], "argmax", axis=1),
        helper.make_node("Cast", ["i"], ["c"], "to_float", to=TensorProto.FLOAT),
        helper.make_node("Shape", ["c"], ["shape"], "shape"),
        helper.make_node("ConstantOfShape", ["shape"], ["ones"], "ones", value=helper.make_tensor("v", 1, [1], [1.0])),
        helper.make_node("Mul", ["c", "two"], ["m"], "mul"),
        helper.make_node("Add", ["m", "ones"], ["logits"], "add"),
    ]
    model = network(nodes, [], output_shape=(1, 1))
    cast = cast_model(model, "fp16")
    feeds = images(1)[0]
    assert runner(cast.model)(feeds)["logits"] == runner(model)(feeds)["logits"]
    types = types_of(cast.model)
    assert types["i"] == TensorProto.INT64
    assert types["c"] == types["ones"] == types["m"] == TensorProto.FLOAT16


def test_a_tensor_that_is_output_and_read_again_keeps_both_types():
    nodes = [
        helper.make_node("Relu", ["x"], ["features"], "relu"),
        helper.make_node("GlobalAveragePool", ["features"], ["p"], "pool"),
        helper.make_node("Flatten", ["p"], ["logits"], "flatten"),
    ]
    model = network(nodes, [], output_shape=(1, 3))
    model.graph.output.append(helper.make_tensor_value_info("features", TensorProto.FLOAT, [1, 3, 8, 8]))
    cast = cast_model(model, "fp16")
    assert node(cast.model, "pool").input[0] == "features__float16"
    check_parity(compare_outputs(runner(model), runner(cast.model), images(2)), tolerance_for("fp16"))


def test_unnamed_nodes_get_names_and_functions_are_inlined():
    function = helper.make_function(
        "local", "Twice", ["a"], ["b"], [helper.make_node("Add", ["a", "a"], ["b"])], [helper.make_opsetid("", 17)]
    )
    nodes = [helper.make_node("Twice", ["x"], ["y"], domain="local"), helper.make_node("Flatten", ["y"], ["logits"])]
    model = network(nodes, [], output_shape=(1, 192), opsets=[helper.make_opsetid("local", 1)], functions=[function])
    cast = cast_model(model, "fp16")
    assert {n.op_type for n in cast.model.graph.node} == {"Cast", "Add", "Flatten"}
    assert all(n.name for n in cast.model.graph.node)


def test_what_cannot_be_cast_is_refused_with_the_reason():
    with pytest.raises(UnknownNameError):
        cast_model(convnet(), "fp12")
    with pytest.raises(UnknownNameError, match="node 'nobody'"):
        cast_model(convnet(), "fp16", {"nobody": "why"})
    quantised = network(
        [
            helper.make_node("QuantizeLinear", ["x", "s"], ["q"], "q"),
            helper.make_node("DequantizeLinear", ["q", "s"], ["logits"], "dq"),
        ],
        [weight("s", np.array(0.1))],
        output_shape=(1, 3, 8, 8),
    )
    with pytest.raises(UsageError, match="QuantizeLinear 'q'"):
        cast_model(quantised, "fp16")
    for mode in ("fp16", "bf16"):
        with pytest.raises(UsageError, match=r"cast before: Cast 'x__float16__cast'.*Use it as it is"):
            cast_model(cast_model(convnet(), "fp16").model, mode)
    wrong = network([helper.make_node("Relu", ["x"], ["logits"], "relu")], [], output_shape=(1, 2))
    with pytest.raises(BuildError, match="rank"):
        cast_model(wrong, "fp16")
    branch = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["then"])], "b", [], [helper.make_tensor_value_info("then", 1, None)]
    )
    control = network(
        [helper.make_node("If", ["c"], ["logits"], "if", then_branch=branch, else_branch=branch)],
        [helper.make_tensor("c", TensorProto.BOOL, [], [True])],
        output_shape=(1, 3, 8, 8),
    )
    with pytest.raises(UsageError, match="control flow"):
        cast_model(control, "fp16")


@pytest.mark.parametrize("mode", ["fp16", "bf16"])
def test_runtimes_that_read_the_type_run_it(mode, tmp_path):
    openvino = pytest.importorskip("openvino")
    model = convnet()
    path = saved(cast_model(model, mode).model, tmp_path / "m.onnx")
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    compiled = openvino.Core().compile_model(str(path), "CPU", settings)
    feeds = images(1)[0]
    parity = compare_outputs(runner(model), lambda f: {"logits": next(iter(compiled([f["x"]]).values()))}, [feeds])
    check_parity(parity, tolerance_for(mode))
