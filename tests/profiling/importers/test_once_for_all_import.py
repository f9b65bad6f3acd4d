"""Lookup tables of ProxylessNAS and Once-for-All: names become blocks of kernels, and contradictions are refused."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from akd_deploy.errors import CorruptFileError, MismatchError, UnknownNameError
from akd_deploy.profiling.importers.block_models import blocks_model
from akd_deploy.profiling.importers.measured_blocks import MeasuredBlock, imported_from_blocks, plain_kernels
from akd_deploy.profiling.importers.once_for_all import blocks_from_lookup_table

GOLDEN = Path(__file__).parents[2] / "golden" / "importers" / "once_for_all"


def table(folder: Path, *names: str, **told: float) -> Path:
    path = folder / "t.json"
    path.write_text(json.dumps({name: {"mean": 2.5, **told} for name in names}))
    return path


def block(folder: Path, name: str) -> MeasuredBlock:
    ((measured,), _) = blocks_from_lookup_table(table(folder, name), 1)
    return measured


# --- what it becomes -----------------------------------------------------------------------------------------------


def test_a_block_of_proxylessnas_is_its_kernels_with_the_mean_in_seconds() -> None:
    measured, unmeasured = blocks_from_lookup_table(GOLDEN / "proxyless.yaml", 1)
    imported = imported_from_blocks("once-for-all", measured, unmeasured, plain_kernels("fp32"), "onnx")
    assert (len(imported.rows), unmeasured) == (13, ())
    rows = {row.name: row for row in imported.rows}
    row = rows["expanded_conv-input:56x56x24-output:56x56x24-expand:3-kernel:3-stride:1-idskip:1"]
    assert row.measurement.samples_s == pytest.approx([4.13e-3])
    assert row.family == "imported/expanded_conv"
    shapes = {(k.op, k.inputs[0], k.outputs[0], k.attribute("groups"), k.attribute("activation")) for k in row.counts()}
    wide, narrow = (1, 72, 56, 56), (1, 24, 56, 56)
    assert shapes == {
        ("Conv", narrow, wide, 1, "relu6"),  # expanded three times
        ("Conv", wide, wide, 72, "relu6"),
        ("Conv", wide, narrow, 1, None),
        ("Add", narrow, narrow, None, None),
    }
    logits = rows["Logits-input:7x7x1280-output:1000"]
    assert [k.op for k, _ in logits.kernels] == ["Flatten", "Gemm", "GlobalAveragePool"]


def test_an_expansion_of_one_has_no_expanding_convolution() -> None:
    measured, _ = blocks_from_lookup_table(GOLDEN / "proxyless.yaml", 1)
    found = next(m.block for m in measured if "expand:1-" in m.block.name)
    assert [k.attribute("groups") for k in found.kernels] == [32, 1]


def test_mobilenet_v3_writes_the_expanded_channels_and_its_activations() -> None:
    measured, unmeasured = blocks_from_lookup_table(GOLDEN / "mobilenet_v3.json", 1)
    assert unmeasured == ("Logits-input:1x1x1280-output:1000",)  # its mean is 0
    found = {m.block.name: m.block.kernels for m in measured}
    kernels = found["expanded_conv-input:14x14x80-output:14x14x112-expand:480-kernel:3-stride:1-idskip:0-se:1-hs:1"]
    assert [(k.op, k.outputs[0][1], k.attribute("activation")) for k in kernels] == [
        ("Conv", 480, "hardswish"),
        ("Conv", 480, "hardswish"),
        ("GlobalAveragePool", 480, None),
        ("Conv", 120, "relu"),
        ("Conv", 480, "hardsigmoid"),
        ("Mul", 480, None),
        ("Conv", 112, None),
    ]
    plain = found["expanded_conv-input:112x112x16-output:56x56x24-expand:64-kernel:3-stride:2-idskip:0-se:0-hs:0"]
    assert [k.attribute("activation") for k in plain] == ["relu", "relu", None]
    assert found["Conv-input:224x224x3-output:112x112x16"][0].attribute("activation") == "hardswish"
    assert [k.op for k in found["AvgPool2D-input:7x7x960-output:1x1x960"]] == ["GlobalAveragePool"]
    assert found["Conv_2-input:1x1x960-output:1x1x1280"][0].outputs == ((1, 1280, 1, 1),)


def test_the_squeezed_channels_are_a_quarter_rounded_to_eight(tmp_path: Path) -> None:
    # 72 / 4 = 18 → 16 would lose more than a tenth → 24; 120 / 4 = 30 → 32; 16 / 4 = 4 → 8.
    for expand, squeezed in ((72, 24), (120, 32), (16, 8), (960, 240)):
        name = f"expanded_conv-input:8x8x16-output:8x8x16-expand:{expand}-kernel:3-stride:1-idskip:0-se:1-hs:0"
        kernels = block(tmp_path, name).block.kernels
        assert squeezed in [k.outputs[0][1] for k in kernels if k.outputs[0][2:] == (1, 1)]


def test_equal_kernels_in_one_block_are_counted(tmp_path: Path) -> None:
    name = "expanded_conv-input:8x8x16-output:8x8x16-expand:1-kernel:1-stride:1-idskip:0"
    made = block(tmp_path, name)
    row = imported_from_blocks("once-for-all", [made], (), plain_kernels("fp32"), "onnx").rows[0]
    assert sum(row.counts().values()) == len(made.block.kernels)
    assert row.counts() == Counter(made.block.kernels)


@given(
    size=st.integers(1, 64), channels=st.integers(1, 64), out=st.integers(1, 64), kernel=st.sampled_from([1, 3, 5, 7]),
    stride=st.integers(1, 2), expand=st.integers(1, 8), flags=st.tuples(*[st.integers(0, 1)] * 3), v3=st.booleans(),
)  # fmt: skip
def test_every_block_that_makes_sense_is_a_valid_model_of_its_name_s_shapes(
    tmp_path_factory, size, channels, out, kernel, stride, expand, flags, v3
) -> None:
    after = -(-size // stride)
    skip = int(flags[0] and stride == 1 and channels == out)
    name = (
        f"expanded_conv-input:{size}x{size}x{channels}-output:{after}x{after}x{out}"
        f"-expand:{expand * channels if v3 else expand}-kernel:{kernel}-stride:{stride}-idskip:{skip}"
    ) + (f"-se:{flags[1]}-hs:{flags[2]}" if v3 else "")
    made = block(tmp_path_factory.mktemp("block"), name)
    assert made.latencies_s == (0.0025,)
    model = blocks_model([made.block])
    onnx.checker.check_model(model, full_check=True)
    (output,) = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph.output
    assert [d.dim_value for d in output.type.tensor_type.shape.dim] == [1, out, after, after]
    depthwise = next(k for k in made.block.kernels if k.attribute("groups") == expand * channels)
    assert depthwise.attribute("kernel_size") == (kernel, kernel)


# --- what is refused -----------------------------------------------------------------------------------------------

GOOD = "expanded_conv-input:56x56x24-output:28x28x40-expand:3-kernel:3-stride:2-idskip:0"


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("MBConv_3x3", "'MBConv_3x3'"),
        (GOOD.replace("expanded_conv", "fused_conv"), "layer 'fused_conv'"),
        (GOOD.replace("-idskip:0", ""), "idskip"),
        (GOOD + "-dilation:2", "dilation"),
        (GOOD + "-se:1", "the settings expand, kernel, stride, idskip, se, hs"),
        (GOOD + "-stride:2", "the settings"),
        (GOOD.replace("28x28x40", "27x27x40"), "27x27 at stride 2"),
        (GOOD.replace("stride:2", "stride:0"), "at stride 0"),
        ("Conv-input:224x224x3-output:100x100x32", "100x100 at stride 3"),
        (GOOD.replace("28x28x40", "28x28"), "height x width x channels"),
        (GOOD.replace("idskip:0", "idskip:1"), "a skip between different shapes"),
        (GOOD.replace("idskip:0", "idskip:3").replace("stride:2", "stride:1").replace("28x28x40", "56x56x24"), "flag"),
        (GOOD.replace("kernel:3", "kernel:0"), "kernel or an expansion of 0"),
        (GOOD.replace("56x56x24", "56x56x0"), "a size"),
        (GOOD.replace("56x56x24", "56xx24"), "a size"),
        ("AvgPool2D-input:7x7x960-output:2x2x960", "more than 1x1"),
        ("Conv_1-input:7x7x960-output:4x4x960", "4x4 at stride 1"),
        ("Logits-input:7x7x960-output:1x1x1000", "height x width"),
        ("Conv-input:224x224x3-output:112x112x32-kernel:5", "(none)"),
    ],
)
def test_a_name_that_contradicts_itself_is_refused(name: str, told: str, tmp_path: Path) -> None:
    with pytest.raises((CorruptFileError, UnknownNameError)) as refused:
        blocks_from_lookup_table(table(tmp_path, GOOD, name), 1)
    assert told in str(refused.value)
    assert "t.json" in str(refused.value)


def test_values_that_are_no_latencies_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match=r"'p99' in expanded_conv.*t\.json"):
        blocks_from_lookup_table(table(tmp_path, GOOD, p99=3), 1)
    for wrong in ({"mean": -1}, {"mean": "fast"}, {"count": 3}, 3.5):
        (tmp_path / "t.json").write_text(json.dumps({GOOD: wrong}))
        with pytest.raises(CorruptFileError, match="the mean latency of expanded_conv"):
            blocks_from_lookup_table(tmp_path / "t.json", 1)


def test_tables_of_both_kinds_in_one_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(MismatchError, match="Split it"):
        blocks_from_lookup_table(table(tmp_path, GOOD, "AvgPool2D-input:7x7x960-output:1x1x960"), 1)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (f"{GOOD}:\n  mean: 1\n{GOOD}:\n  mean: 2\n", "twice"),
        ("a: [1, 2\n", "no YAML"),
        ("- a\n- b\n", "no blocks"),
        ("", "no blocks"),
        ("!!python/object/apply:os.getcwd []\n", "no YAML"),
        ("{[1]: 2}\n", "no YAML"),
        ("\x00", "no YAML"),
    ],
)
def test_yaml_is_read_as_plain_values_or_not_at_all(text: str, told: str, tmp_path: Path) -> None:
    (tmp_path / "t.yaml").write_text(text)
    with pytest.raises(CorruptFileError, match=told):
        blocks_from_lookup_table(tmp_path / "t.yaml", 1)
