"""nn-Meter's kernel data: configurations become kernels, text becomes seconds, and nothing is passed over."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from akd_deploy.engines import load_engine
from akd_deploy.errors import CorruptFileError, MismatchError, UnknownNameError, UsageError
from akd_deploy.kernel import Kernel
from akd_deploy.profiling.importers.block_models import batches, blocks_model, executed_by
from akd_deploy.profiling.importers.blocks import Block
from akd_deploy.profiling.importers.measured_blocks import imported_from_blocks, plain_kernels
from akd_deploy.profiling.importers.nn_meter import KERNEL_TYPES, blocks_from_nn_meter
from akd_deploy.target import Target

GOLDEN = Path(__file__).parents[2] / "golden" / "importers" / "nn_meter"
CONFIGS, PROFILED = GOLDEN / "conv-bn-relu_prior.json", GOLDEN / "profiled_conv-bn-relu.json"
WHOLE: dict[str, int] = {
    "HW": 14, "CIN": 24, "COUT": 32, "KERNEL_SIZE": 3, "STRIDES": 2, "POOL_STRIDES": 2,
    "CIN1": 8, "CIN2": 12, "CIN3": 0, "CIN4": 4,
}  # fmt: skip


def config_of(kind: str, **changes: int) -> dict[str, int]:
    return {key: {**WHOLE, **changes}[key] for key in KERNEL_TYPES[kind].needs}


def written(path: Path, content: object) -> Path:
    path.write_text(json.dumps(content))
    return path


def one(folder: Path, kind: str, config: object, latency: object = "1.5 +- 0.1") -> Path:
    return written(folder / "k.json", {kind: {"ID": {"config": config, "latency": latency}}})


def plain_kernel(path: Path) -> tuple[Kernel, ...]:
    ((measured,), _) = blocks_from_nn_meter([path], 1)
    return tuple(measured.block.kernels)


# --- what it becomes -----------------------------------------------------------------------------------------------


def test_configurations_and_results_in_two_files_meet_by_their_ids() -> None:
    measured, unmeasured = blocks_from_nn_meter([CONFIGS, PROFILED], 1)
    imported = imported_from_blocks("nn-meter", measured, unmeasured, plain_kernels("fp32"), "onnx")
    rows = {row.name: row for row in imported.rows}
    assert len(rows) == 7
    row = rows["conv-bn-relu/ZT91XC"]
    assert row.family == "imported/conv-bn-relu"
    assert row.measurement.samples_s == pytest.approx([18.44e-3])
    ((kernel, count),) = row.kernels
    assert (kernel.op, kernel.dtype, count) == ("Conv", "float32", 1)
    assert kernel.inputs == ((1, 24, 56, 56), (72, 24, 3, 3), (72,))
    assert kernel.outputs == ((1, 72, 28, 28),)
    told = {"kernel_size": (3, 3), "strides": (2, 2), "groups": 1, "activation": "relu", "pads": (0, 0, 1, 1)}
    assert {name: kernel.attribute(name) for name in told} == told
    # One was timed at 0, one was configured and never profiled.
    assert set(imported.without_latency) == {"conv-bn-relu/D9S3GO", "conv-bn-relu/X0X0X0"}
    assert imported.protocol == {"source": "nn-meter", "statistic": "mean", "kernels": "onnx"}


def test_a_csv_tells_its_kernel_type_by_the_model_path() -> None:
    measured, unmeasured = blocks_from_nn_meter([GOLDEN / "dwconv-bn-relu.csv", GOLDEN / "addrelu.csv"], 1)
    found = {m.block.name: m for m in measured}
    assert (len(found), unmeasured) == (7, ())
    (kernel,) = found["dwconv-bn-relu/dwconv-bn-relu_prior_R2T9MV"].block.kernels
    assert kernel.inputs == ((1, 240, 28, 28), (240, 1, 5, 5), (240,))
    assert (kernel.attribute("groups"), kernel.attribute("kernel_size")) == (240, (5, 5))
    assert found["addrelu/addrelu_prior_W1A2B3"].latencies_s == pytest.approx((0.212e-3,))
    (kernel,) = found["addrelu/addrelu_prior_W1A2B3"].block.kernels
    assert (kernel.op, kernel.inputs, kernel.attribute("activation")) == ("Add", ((1, 40, 28, 28),) * 2, "relu")


def test_a_kernel_that_was_profiled_twice_has_a_block_for_each(tmp_path: Path) -> None:
    again = json.loads(PROFILED.read_text())
    again["conv-bn-relu"]["YB2F4N"]["latency"] = "10.02 +- 0.1"
    measured, _ = blocks_from_nn_meter([CONFIGS, PROFILED, written(tmp_path / "again.json", again)], 1)
    found = next(m for m in measured if m.block.name.endswith("YB2F4N"))
    assert found.latencies_s == pytest.approx((9.731e-3, 10.02e-3))


@pytest.mark.parametrize("latency", [37.53, "37.53", "37.53 +- 0.314", " 37.53+-0.314 "])
def test_latencies_are_read_as_nn_meter_writes_them(latency: object, tmp_path: Path) -> None:
    ((measured,), _) = blocks_from_nn_meter([one(tmp_path, "fc", config_of("fc"), latency)], 1)
    assert measured.latencies_s == pytest.approx((37.53e-3,))


def test_other_spellings_of_a_kernel_type_are_the_same_kernel(tmp_path: Path) -> None:
    config = config_of("add")
    assert plain_kernel(one(tmp_path, "add-relu", config)) == plain_kernel(one(tmp_path, "addrelu", config))
    config = config_of("maxpool")
    told = {("STRIDES" if key == "POOL_STRIDES" else key): value for key, value in config.items()}
    assert plain_kernel(one(tmp_path, "maxpool", told)) == plain_kernel(one(tmp_path, "maxpool", config))


@pytest.mark.parametrize("kind", KERNEL_TYPES)
@settings(max_examples=40)
@given(data=st.data())
def test_every_kernel_type_is_a_valid_model_of_the_shapes_it_says(kind: str, data: st.DataObject) -> None:
    """ONNX's own shape inference is the second implementation."""
    sizes = {"HW": st.integers(1, 40), "KERNEL_SIZE": st.sampled_from([1, 3, 5, 7]), "STRIDES": st.integers(1, 3)}
    config = {
        key: data.draw(sizes.get(key.removeprefix("POOL_"), st.integers(1, 20).map(lambda n: 2 * n)), label=key)
        for key in KERNEL_TYPES[kind].needs
    }
    block = KERNEL_TYPES[kind].write(Block(kind), config, 2)
    model = blocks_model([block])
    onnx.checker.check_model(model, full_check=True)
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True).graph
    shapes = {
        value.name: tuple(d.dim_value for d in value.type.tensor_type.shape.dim)
        for value in (*inferred.value_info, *inferred.output)
    }
    for node in model.graph.node:
        expected = [kernel.outputs for kernel in block.kernels]
        if node.op_type not in ("Constant", "Relu", "Clip", "HardSwish", "HardSigmoid"):
            assert tuple(shapes[name] for name in node.output) in expected


def test_an_engine_says_which_kernels_each_of_many_blocks_executes(tmp_path: Path) -> None:
    engine = load_engine(Target("t", "desk", "onnxruntime", engine_options={"graph_optimization": "extended"}))
    blocks = [kind.write(Block(name), WHOLE, 1) for name, kind in KERNEL_TYPES.items()]
    found = dict(zip(KERNEL_TYPES, executed_by(blocks, engine.executed_kernels, tmp_path), strict=True))
    assert [k.op for k in found["conv-bn-relu"]] == ["FusedConv"]
    assert found["conv-bn-relu"][0].outputs == ((1, 32, 7, 7),)
    assert [k.op for k in found["bnrelu"]] == ["BatchNormalization", "Relu"]
    assert sorted(k.op for k in found["channelshuffle"]) == ["Reshape", "Reshape", "Transpose"]
    assert all(found.values())
    assert list(tmp_path.iterdir()) == []
    # Alone or beside others, a block's kernels are the same.
    for name in ("se", "conv-hswish"):
        alone = KERNEL_TYPES[name].write(Block(name), WHOLE, 1)
        assert sorted(executed_by([alone], engine.executed_kernels, tmp_path)[0]) == sorted(found[name])


def test_models_of_many_blocks_stay_small() -> None:
    large = KERNEL_TYPES["fc"].write(Block("fc"), {"CIN": 25088, "COUT": 4096}, 1)
    small = [KERNEL_TYPES["add"].write(Block(f"add{i}"), WHOLE, 1) for i in range(130)]
    assert [len(batch) for batch in batches([*small, large, small[0]])] == [64, 64, 2, 1, 1]


# --- what is refused -----------------------------------------------------------------------------------------------

CONV = config_of("conv-bn")
REFUSED: dict[str, tuple[Any, type[Exception], str]] = {
    "an unknown kernel type": ({"conv-swish": {"ID": {"config": CONV}}}, UnknownNameError, "'conv-swish' in .*k.json"),
    "an unknown setting": (
        {"conv-bn": {"ID": {"config": {**CONV, "DILATION": 2}, "latency": 1}}}, UnknownNameError, "'DILATION'.*ID",
    ),
    "an unknown key": ({"fc": {"ID": {"config": {}, "energy": 1}}}, UnknownNameError, "'energy'"),
    "a setting that is missing": ({"fc": {"ID": {"config": {"CIN": 3}, "latency": 1}}}, CorruptFileError, "COUT"),
    "half a channel": ({"fc": {"ID": {"config": {"CIN": 3.5, "COUT": 2}}}}, CorruptFileError, "CIN of fc/ID.*3.5"),
    "no kernel size": ({"conv-bn": {"ID": {"config": {**CONV, "KERNEL_SIZE": 0}}}}, CorruptFileError, "KERNEL_SIZE"),
    "a latency in words": ({"fc": {"ID": {"config": config_of("fc"), "latency": "fast"}}}, CorruptFileError, "'fast'"),
    "a deviation in words": (
        {"fc": {"ID": {"config": config_of("fc"), "latency": "1 +- x"}}}, CorruptFileError, "deviation of the latency",
    ),
    "a negative latency": ({"fc": {"ID": {"config": config_of("fc"), "latency": -1}}}, CorruptFileError, "fc/ID"),
    "an infinite latency": ({"fc": {"ID": {"config": config_of("fc"), "latency": "inf"}}}, CorruptFileError, "inf"),
    "a latency without a configuration": ({"fc": {"ID": {"latency": 1}}}, MismatchError, "fc/ID.*configuration file"),
    "a depthwise kernel that changes channels": (
        {"dwconv-bn": {"ID": {"config": {**config_of("dwconv-bn"), "COUT": 7}}}}, CorruptFileError, "COUT.*7 and 24",
    ),
    "a shuffle of odd channels": (
        {"channelshuffle": {"ID": {"config": {"HW": 4, "CIN": 5}}}}, CorruptFileError, "halved",
    ),
    "a concat of nothing": (
        {"concat": {"ID": {"config": {"HW": 4, "CIN1": 0, "CIN2": 0, "CIN3": 0, "CIN4": 0}}}}, CorruptFileError, "none",
    ),
    "ids without a type": ({"YB2F4N": {"config": CONV, "latency": 1}}, UnknownNameError, "'YB2F4N'"),
    "a list": ([1], CorruptFileError, "no object of kernel types"),
    "a kernel that is none": ({"fc": {"ID": 3}}, CorruptFileError, "fc/ID"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_wrong_is_told_by_file_and_place(case: str, tmp_path: Path) -> None:
    content, kind, told = REFUSED[case]
    with pytest.raises(kind, match=told) as refused:
        blocks_from_nn_meter([written(tmp_path / "k.json", content)], 1)
    assert "k.json" in str(refused.value)


def test_two_configurations_under_one_id_are_refused(tmp_path: Path) -> None:
    other = json.loads(CONFIGS.read_text())
    other["conv-bn-relu"]["YB2F4N"]["config"]["COUT"] = 8
    with pytest.raises(MismatchError, match="YB2F4N"):
        blocks_from_nn_meter([CONFIGS, written(tmp_path / "o.json", other)], 1)
    with pytest.raises(UsageError, match="no file"):
        blocks_from_nn_meter([], 1)


def test_a_key_that_stands_twice_is_refused(tmp_path: Path) -> None:
    (tmp_path / "k.json").write_text('{"fc": {"ID": {"latency": 1, "latency": 2}}}')
    with pytest.raises(CorruptFileError, match="'latency' twice"):
        blocks_from_nn_meter([tmp_path / "k.json"], 1)


CSV_HEADER = "model_path,HW,CIN,latency\n"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "an empty file"),
        ("HW,CIN,latency\n1,2,3\n", "columns HW, CIN, latency"),
        (CSV_HEADER + "relu_prior_A,8,16\n", "line 2 with 4 values"),
        (CSV_HEADER + "relu_prior_A,8,16,1\nrelu_prior_A,8,16,2\n", "line 3"),
        (CSV_HEADER + "gelu_prior_A,8,16,1\n", "'gelu' in line 2"),
        (CSV_HEADER + "relu_prior_A,8,,1\n", "CIN of relu"),
        ("model_path,HW,CIN,CIN,latency\nadd_prior_A,8,16,8,1\n", "16 and 8"),
        ("model_path,HW,CIN,COUT,latency\nrelu_prior_A,8,16,8,1\n", "'COUT'"),
        (CSV_HEADER + "relu_prior_A,8,16,nan\n", "nan"),
    ],
)
def test_what_is_wrong_in_a_csv_is_told_by_line(text: str, told: str, tmp_path: Path) -> None:
    (tmp_path / "k.csv").write_text(text)
    with pytest.raises((CorruptFileError, UnknownNameError), match=told) as refused:
        blocks_from_nn_meter([tmp_path / "k.csv"], 1)
    assert "k.csv" in str(refused.value)
