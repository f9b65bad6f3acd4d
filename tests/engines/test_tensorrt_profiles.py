"""Shape profiles: read from text, checked against a network, chosen for what is fed, and built for real."""

from __future__ import annotations

import importlib.util

import onnx
import pytest
from engine_graphs import Graph
from hypothesis import given
from hypothesis import strategies as st

from akd_deploy.engines.onnx_file import graph_inputs, read_onnx
from akd_deploy.engines.tensorrt_engine import TensorRtRtxEngine
from akd_deploy.engines.tensorrt_profiles import ShapeRange, checked_profiles, parse_profiles, profile_for
from akd_deploy.errors import BuildError, UnknownNameError, UsageError
from akd_deploy.target import Target

needs_rtx = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None, reason="the Python package tensorrt_rtx is not installed"
)


def test_a_profile_is_read_input_by_input_and_one_shape_alone_is_all_three():
    (profile,) = parse_profiles(["x:1x3,2x3,8x3  mask:4"], "o")
    assert profile == {"x": ShapeRange((1, 3), (2, 3), (8, 3)), "mask": ShapeRange((4,), (4,), (4,))}
    assert str(profile["x"]) == "1x3,2x3,8x3"


def test_names_may_have_colons():
    assert parse_profiles(["serving:x:0:1x3"], "o") == ({"serving:x:0": ShapeRange((1, 3), (1, 3), (1, 3))},)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("", "no profile|profile"),
        ("x", "each input once"),
        ("x:1x3,2x3", "each input once"),
        ("x:1x3,2x3,3x3,4x3", "each input once"),
        ("x:1xa,2x3,3x3", "each input once"),
        ("x:1x3 x:1x3", "each input once"),
        ("x:2x3,1x3,8x3", "min ≤ opt ≤ max"),
        ("x:1x3,9x3,8x3", "min ≤ opt ≤ max"),
        ("x:1x3,2x3,8x3x1", "min ≤ opt ≤ max"),
        ("x:0x3,2x3,8x3", "min ≤ opt ≤ max"),
    ],
)
def test_a_text_that_is_no_profile_is_refused_and_quoted(text, match):
    with pytest.raises(UsageError, match=match) as caught:
        parse_profiles(["ok:1", text], "engine_options.shapes of target t")
    assert "engine_options.shapes of target t" in str(caught.value)


def inputs(**shapes):
    g = Graph()
    g("Add", *shapes) if len(shapes) == 2 else g("Relu", *shapes)
    return graph_inputs(g.model(shapes, [g.nodes[-1].output[0]]).graph)


def test_every_dynamic_input_needs_a_range_and_fixed_ones_have_theirs():
    profiles = parse_profiles(["x:1x3,2x3,4x3"], "o")
    (complete,) = checked_profiles(profiles, inputs(x=["N", 3], y=[1, 3]), "m.onnx")
    assert complete["y"] == ShapeRange((1, 3), (1, 3), (1, 3))
    with pytest.raises(UsageError, match=r"none for 'y' in profile 0"):
        checked_profiles(profiles, inputs(x=["N", 3], y=["N", 3]), "m.onnx")
    with pytest.raises(UnknownNameError, match="Known: y"):
        checked_profiles(profiles, inputs(y=["N", 3]), "m.onnx")
    for fixed in (["N", 4], [2, 3], ["N", 3, 1]):
        with pytest.raises(UsageError, match="fixed dimensions"):
            checked_profiles(profiles, inputs(x=fixed), "m.onnx")
    assert checked_profiles((), inputs(x=["N", 3]), "m.onnx") == ()


def test_of_the_profiles_that_hold_a_shape_the_one_optimised_for_the_nearest_is_taken():
    profiles = parse_profiles(["x:1x3,1x3,16x3", "x:1x3,8x3,16x3", "x:32x3"], "o")
    assert [profile_for(profiles, {"x": (n, 3)}, "m") for n in (1, 2, 4, 8, 16, 32)] == [0, 0, 1, 1, 1, 2]
    with pytest.raises(UsageError, match=r"x of 17x3 in m.*1x3,1x3,16x3"):
        profile_for(profiles, {"x": (17, 3)}, "m")


SIZES = st.lists(st.tuples(st.integers(1, 9), st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=3)


@given(SIZES)
def test_what_a_profile_says_it_reads_back(drawn):
    low, opt, high = zip(*((a, a + b, a + b + c) for a, b, c in drawn), strict=True)
    shapes = ShapeRange(low, opt, high)
    assert parse_profiles([f"x:{shapes}"], "o") == ({"x": shapes},)
    assert all(shape in shapes for shape in (shapes.min, shapes.opt, shapes.max))
    assert (high[0] + 1, *high[1:]) not in shapes


# --- real builds --------------------------------------------------------------------------------------------------


def dynamic_network(path):
    g = Graph()
    x = g("Relu", g.conv("x", 3, 8, 3))
    onnx.save(g.model({"x": ["N", 3, "H", "W"]}, [g.conv(x, 8, 4, 1)]), path)
    return path


def rtx(**options):
    return TensorRtRtxEngine(Target("t", "rtx", "tensorrt-rtx", "fp32", 1, engine_options=options))


@needs_rtx
def test_a_network_of_dynamic_height_and_width_is_built_for_its_profiles(tmp_path):
    model = dynamic_network(tmp_path / "m.onnx")
    with pytest.raises(UsageError, match="no dynamic dimension but the batch"):
        rtx().build(model, tmp_path / "none")
    shapes = ("x:1x3x16x16,4x3x32x32,8x3x64x64", "x:1x3x128x128")
    built = rtx(shapes=shapes).build(model, tmp_path / "two")
    assert built.details["profiles"] == [
        {"x": "1x3x16x16,4x3x32x32,8x3x64x64"},
        {"x": "1x3x128x128,1x3x128x128,1x3x128x128"},
    ]
    assert any("Conv_0" in kernel["nodes"] for kernel in built.details["kernels"])
    one = rtx(shapes=shapes[:1]).build(model, tmp_path / "one")
    assert one.path.read_bytes() != built.path.read_bytes()
    read = read_onnx(model, 1, keep_dynamic=True)
    assert [d.dim_param for d in read.graph.input[0].type.tensor_type.shape.dim] == ["N", "", "H", "W"]


@needs_rtx
def test_profiles_that_do_not_fit_the_network_are_refused_before_the_build(tmp_path):
    model = dynamic_network(tmp_path / "m.onnx")
    with pytest.raises(UsageError, match="fixed dimensions"):
        rtx(shapes=("x:1x4x16x16",)).build(model, tmp_path / "out")
    with pytest.raises(UnknownNameError, match="y"):
        rtx(shapes=("x:1x3x16x16 y:1",)).build(model, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@needs_rtx
def test_kernels_of_shapes_that_are_not_known_are_not_listed(tmp_path):
    model = dynamic_network(tmp_path / "m.onnx")
    with pytest.raises((BuildError, UsageError), match=r"static shapes|fixed shape"):
        rtx(shapes=("x:1x3x16x16,4x3x32x32,8x3x64x64",)).executed_kernels(model)
