"""trtexec's files: what each layer, their sums and the network become, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from akd_deploy.engines.tensorrt_inspect import NodeSettings
from akd_deploy.errors import AkdError, CorruptFileError, MismatchError, UnknownNameError, UsageError
from akd_deploy.latency_table import NETWORK, PROBE, TableRow
from akd_deploy.profiling.importers.imported import AGGREGATED
from akd_deploy.profiling.importers.trtexec import rows_from_trtexec
from akd_deploy.target import Target

GOLDEN = Path(__file__).parents[2] / "golden" / "importers"
FP16 = Target("rtx4090_tensorrt_fp16", "rtx4090", "tensorrt", "fp16")
TEN = [GOLDEN / "trtexec_10" / f"{name}.json" for name in ("layers", "profile", "times")]
ELEVEN = [GOLDEN / "trtexec_11" / f"{name}.json" for name in ("layers", "profile", "times")]


def conv_node(kernel_size: int, stride: int, groups: int) -> NodeSettings:
    window = (
        ("dilations", (1, 1)),
        ("groups", groups),
        ("kernel_size", (kernel_size,) * 2),
        ("strides", (stride,) * 2),
    )
    return NodeSettings("Conv", window)


NODES = {
    "stem": conv_node(3, 2, 1), "stem_relu": NodeSettings("Relu"), "b1_dw": conv_node(3, 1, 16),
    "b1_relu": NodeSettings("Relu"), "b1_pw": conv_node(1, 1, 1), "b2_expand": conv_node(1, 1, 1),
    "b2_relu": NodeSettings("Relu"), "b2_dw": conv_node(5, 2, 64), "b2_relu2": NodeSettings("Relu"),
    "b2_project": conv_node(1, 1, 1), "fc": NodeSettings("Gemm"),
}  # fmt: skip


INT8 = Target("rtx4090_tensorrt_int8", "rtx4090", "tensorrt", "int8")
QUANTISED = {
    "10": [GOLDEN.parent / "tensorrt" / "inspector_10.json",
           *(GOLDEN / "trtexec_10_int8" / f"{name}.json" for name in ("profile", "times"))],
    "11": [GOLDEN.parent / "tensorrt" / "inspector_11.json",
           *(GOLDEN / "trtexec_11_int8" / f"{name}.json" for name in ("profile", "times"))],
}  # fmt: skip
QUANTISED_NODES = {
    "stem": conv_node(3, 2, 1), "stem_relu": NodeSettings("Relu"), "dw": conv_node(3, 1, 32),
    "dw_relu": NodeSettings("Relu"), "pw": conv_node(1, 1, 1), "add": NodeSettings("Add"),
}  # fmt: skip


def by_name(rows: tuple[TableRow, ...]) -> dict[str, TableRow]:
    return {row.name: row for row in rows}


# --- what it becomes -----------------------------------------------------------------------------------------------


def test_every_timed_layer_of_tensorrt_10_is_a_probe_of_its_median_in_seconds() -> None:
    imported = rows_from_trtexec(TEN, FP16, network="net")
    rows = by_name(imported.rows)
    assert len(rows) == 12 + 3 + 1  # of 14 layers one is no kernel, and one was timed at 0
    row = rows["net/b2_dw + b2_relu2"]
    assert (row.kind, row.family) == (PROBE, f"{AGGREGATED}/net")
    assert row.measurement.samples_s == pytest.approx([4.608e-6])
    ((kernel, count),) = row.kernels
    assert (kernel.op, kernel.dtype, count) == ("CaskConvolution", "float16", 1)
    assert kernel.inputs == ((1, 64, 16, 16), (64, 1, 5, 5), (64,))
    assert kernel.outputs == ((1, 64, 8, 8),)
    told = {"kernel_size": (5, 5), "strides": (2, 2), "dilations": (1, 1), "groups": 64, "activation": "relu"}
    assert dict(kernel.attributes) == told
    assert dict(rows["net/b3_project + b3_add"].kernels[0][0].attributes)["residual"] == 1
    assert imported.without_latency == ("Reformatting CopyNode for Output Tensor 0 to fc",)
    assert imported.not_kernels == ("flatten",)
    assert imported.protocol == {"source": "trtexec", "layer_statistic": "median", "network_latency": "compute"}


def test_an_aggregate_claims_neither_scatter_nor_a_tail() -> None:
    imported = rows_from_trtexec(TEN, FP16)
    probes = [row for row in imported.rows if row.kind == PROBE]
    assert imported.aggregated == len(probes) == 15
    assert all(len(row.measurement.samples_s) == 1 and row.measurement.sigma is None for row in probes)


def test_the_network_has_the_samples_of_the_times_and_all_kernels_the_engine_runs() -> None:
    network = by_name(rows_from_trtexec(TEN, FP16, network="net").rows)["net"]
    assert network.kind == NETWORK
    assert not network.family.startswith(AGGREGATED)
    expected = [entry["computeMs"] / 1e3 for entry in json.loads(TEN[2].read_text())]
    assert network.measurement.samples_s == pytest.approx(expected)
    assert sum(count for _, count in network.kernels) == 13
    latency = by_name(rows_from_trtexec(TEN, FP16, network="net", metric="latency", warmup_runs=10).rows)["net"]
    assert latency.measurement.samples_s == pytest.approx([0.04826e-3, 0.048772e-3])


def test_the_sums_add_up_and_say_that_no_call_is_in_them() -> None:
    imported = rows_from_trtexec(TEN, FP16, network="net")
    rows = by_name(imported.rows)
    layers = [row for name, row in rows.items() if name.startswith("net/")]
    whole, first, second = (rows[f"net [{span}]"] for span in ("all layers", "first half", "second half"))
    assert whole.measurement.median_s == pytest.approx(sum(row.measurement.median_s for row in layers))
    assert whole.measurement.median_s == pytest.approx(first.measurement.median_s + second.measurement.median_s)
    assert whole.counts() == first.counts() + second.counts()
    assert sum(whole.counts().values()) == len(layers)


def test_the_layers_sum_is_compared_with_the_network_by_their_means() -> None:
    # Averages in the profile: 45.47 µs; the mean of the twelve computeMs: 41.6877 µs.
    assert rows_from_trtexec(TEN, FP16).layers_over_network == pytest.approx(45.47 / 41.68766, rel=1e-4)
    assert rows_from_trtexec(TEN, FP16, metric="latency").layers_over_network == pytest.approx(
        rows_from_trtexec(TEN, FP16).layers_over_network
    )
    assert rows_from_trtexec(TEN[:2], FP16).layers_over_network is None
    assert rows_from_trtexec([TEN[0], TEN[2]], FP16).layers_over_network is None


def test_layers_of_tensorrt_11_take_their_windows_from_the_onnx_nodes() -> None:
    imported = rows_from_trtexec(ELEVEN, FP16, network="net", nodes=NODES)
    rows = by_name(imported.rows)
    assert len(rows) == 11 + 3 + 1
    assert imported.not_kernels == ("signal_9",)
    ((kernel, _),) = rows["net/b2_dw_myl0_5"].kernels
    assert (kernel.op, kernel.attribute("kernel_size"), kernel.attribute("groups")) == ("correlation", (5, 5), 64)
    assert (kernel.attribute("strides"), kernel.attribute("activation")) == ((2, 2), "relu")
    assert rows["net/__myl_SigmMul_myl0_7"].kernels[0][0].attribute("fusion") == "SigmMul"
    assert rows["net/fc_myl0_11"].measurement.median_s == pytest.approx(3.104e-6)


def test_layers_of_tensorrt_11_are_refused_without_the_onnx_file() -> None:
    with pytest.raises(UsageError, match=r"'stem_myl0_1'.*stem, stem_relu.*--onnx"):
        rows_from_trtexec(ELEVEN, FP16)
    with pytest.raises(UsageError, match="which the ONNX file given does not have"):
        rows_from_trtexec(ELEVEN, FP16, nodes={"another": NodeSettings("Conv")})


@pytest.mark.parametrize(
    ("version", "conv", "quantise", "timed", "silent"),
    [
        ("10", "dw.weight + dw_weight_quant + dw + dw_relu", "stem_quant", 14, ("flatten",)),
        ("11", "dw_myl0_2", "__myl_MulMinMaxRounCastConc_myl0_0", 12, ("signal_5", "wait_12")),
    ],
)
def test_layers_of_an_int8_engine_are_probes_and_so_is_what_quantises(
    version: str, conv: str, quantise: str, timed: int, silent: tuple[str, ...]
) -> None:
    imported = rows_from_trtexec(QUANTISED[version], INT8, network="net", nodes=QUANTISED_NODES)
    rows = by_name(imported.rows)
    assert imported.not_kernels == silent
    assert sum(name.startswith("net/") for name in rows) == timed
    ((kernel, _),) = rows[f"net/{conv}"].kernels
    assert (kernel.dtype, kernel.inputs[:2]) == ("int8", ((1, 32, 16, 16), (32, 1, 3, 3)))
    assert (kernel.attribute("groups"), kernel.attribute("activation")) == (32, "relu")
    ((kernel, _),) = rows[f"net/{quantise}"].kernels
    assert (kernel.dtype, kernel.attribute("to")) == ("float32", "int8")
    assert rows[f"net/{quantise}"].measurement.median_s == pytest.approx({"10": 4.05e-6, "11": 4.55e-6}[version])
    assert sum(count for _, count in rows["net"].kernels) == timed


def test_an_engine_without_an_int8_kernel_is_no_int8_engine() -> None:
    with pytest.raises(MismatchError, match="int8"):
        rows_from_trtexec(TEN, INT8)


def test_another_process_is_another_block(tmp_path: Path) -> None:
    profile = json.loads(TEN[1].read_text())
    for entry in profile[1:]:
        entry["medianMs"] *= 1.1
    (tmp_path / "profile.json").write_text(json.dumps(profile))
    shutil.copy(TEN[2], tmp_path / "times.json")
    rows = by_name(
        rows_from_trtexec([*TEN, tmp_path / "profile.json", tmp_path / "times.json"], FP16, network="n").rows
    )
    row = rows["n/b1_pw"].measurement
    assert row.samples_s == pytest.approx([3.552e-6, 3.9072e-6])
    assert row.block_ids == (0, 1)
    assert row.sigma == pytest.approx(0.0673, abs=1e-4)
    assert set(rows["n"].measurement.block_ids) == {0, 1}


def test_a_layer_that_one_process_timed_at_nothing_has_no_latency(tmp_path: Path) -> None:
    profile = changed(tmp_path, TEN[1], lambda content: content[4].update(medianMs=0))
    imported = rows_from_trtexec([*TEN[:2], profile], FP16, network="n")
    assert "b1_pw" in imported.without_latency
    rows = by_name(imported.rows)
    assert "n/b1_pw" not in rows
    assert all(len(row.measurement.samples_s) == 2 for row in rows.values())


def test_a_profile_of_an_older_trtexec_has_averages_alone(tmp_path: Path) -> None:
    profile = [{k: v for k, v in entry.items() if k != "medianMs"} for entry in json.loads(TEN[1].read_text())]
    (tmp_path / "p.json").write_text(json.dumps(profile))
    imported = rows_from_trtexec([TEN[0], tmp_path / "p.json"], FP16, network="n")
    assert imported.protocol["layer_statistic"] == "mean"
    assert by_name(imported.rows)["n/gap"].measurement.median_s == pytest.approx(2.99e-6)
    with pytest.raises(MismatchError, match="some with medians and some without"):
        rows_from_trtexec([*TEN[:2], tmp_path / "p.json"], FP16)


@given(
    st.lists(
        st.tuples(st.text(st.characters(exclude_categories=["Cs"]), min_size=1), st.integers(0, 10**6)), min_size=1
    )
)
def test_no_layer_is_lost_or_confused_whatever_the_names(tmp_path_factory: pytest.TempPathFactory, timed) -> None:
    folder = tmp_path_factory.mktemp("names")
    tensor = {"Name": "t", "Dimensions": [1, 8], "Format/Datatype": "FP16"}
    layers = [{"Name": n, "LayerType": "Reformat", "Inputs": [tensor], "Outputs": [tensor]} for n, _ in timed]
    (folder / "l.json").write_text(json.dumps({"Layers": layers, "Bindings": []}))
    profile = [{"count": 9}, *({"name": n, "averageMs": ms, "medianMs": ms} for n, ms in timed)]
    (folder / "p.json").write_text(json.dumps(profile))
    try:
        imported = rows_from_trtexec([folder / "l.json", folder / "p.json"], FP16, network="n")
    except CorruptFileError as error:
        assert "ForeignNode[" in str(error)  # noqa: PT017 - the one name that hides a stretch of a network
        return
    singles = [row for row in imported.rows if row.name.startswith("n/")]
    assert [row.measurement.median_s for row in singles] == pytest.approx([ms / 1e3 for _, ms in timed if ms])
    assert len(imported.without_latency) == sum(ms == 0 for _, ms in timed)
    assert len({row.name for row in imported.rows}) == len(imported.rows)


# --- what is refused -----------------------------------------------------------------------------------------------


def changed(folder: Path, path: Path, change) -> Path:
    """A copy of a golden file with its JSON changed."""
    content = json.loads(path.read_text())
    change(content)
    copy = folder / path.name
    copy.write_text(json.dumps(content))
    return copy


REFUSED = {
    "names only": (0, lambda c: c.update(Layers=["stem", "fc"]), CorruptFileError, "profilingVerbosity=detailed"),
    "no layers": (0, lambda c: c.update(Layers=[]), CorruptFileError, "layers.json"),
    "a hidden stretch": (0, lambda c: c["Layers"][3].update(Name="{ForeignNode[a...b]}"), CorruptFileError, "opaque"),
    "dynamic shapes": (
        0, lambda c: c["Layers"][1]["Outputs"][0].update(Dimensions=[-1, 3]), CorruptFileError, "static shapes",
    ),
    "an unknown type": (
        0, lambda c: c["Layers"][1]["Inputs"][0].update({"Format/Datatype": "FP3"}), CorruptFileError, "FP3",
    ),
    "another engine's layer": (1, lambda c: c[2].update(name="other"), MismatchError, "'other'.*profile.json"),
    "a layer twice": (1, lambda c: c.append(c[1]), MismatchError, "less often"),
    "an unknown key": (1, lambda c: c[2].update(p99Ms=1), UnknownNameError, r"'p99Ms' in entry 2 of .*profile.json"),
    "no average": (1, lambda c: c[3].pop("averageMs"), CorruptFileError, "entry 3"),
    "a negative time": (1, lambda c: c[2].update(medianMs=-1), CorruptFileError, r"'stem \+ stem_relu'"),
    "no number": (1, lambda c: c[2].update(medianMs="fast"), CorruptFileError, "'fast'"),
    "not a number": (1, lambda c: c[2].update(averageMs=float("nan")), CorruptFileError, "nan"),
    "an empty profile": (1, lambda c: c.__delitem__(slice(1, None)), CorruptFileError, "no layers"),
    "a query of 0": (2, lambda c: c[4].update(computeMs=0), CorruptFileError, "query 4"),
    "a query without time": (2, lambda c: c[4].pop("computeMs"), CorruptFileError, "query 4"),
    "an unknown time": (2, lambda c: c[5].update(gpuMs=1), UnknownNameError, "'gpuMs' in query 5"),
    "something else": (2, lambda c: c.clear(), CorruptFileError, "--exportTimes"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_wrong_is_told_by_file_and_place(case: str, tmp_path: Path) -> None:
    which, change, kind, told = REFUSED[case]
    files = [changed(tmp_path, path, change) if i == which else path for i, path in enumerate(TEN)]
    with pytest.raises(kind, match=told):
        rows_from_trtexec(files, FP16)


@pytest.mark.parametrize("length", [0, 1, 100, 900, 1500])
def test_a_torn_file_is_never_half_read(length: int, tmp_path: Path) -> None:
    torn = tmp_path / "profile.json"
    torn.write_text(TEN[1].read_text()[:length])
    with pytest.raises(CorruptFileError, match=r"profile.json.*no JSON"):
        rows_from_trtexec([TEN[0], torn], FP16)


def test_files_of_another_precision_engine_or_number_are_refused() -> None:
    with pytest.raises(MismatchError, match="float16"):
        rows_from_trtexec(TEN, Target("t", "rtx4090", "tensorrt", "fp32"))
    with pytest.raises(UsageError, match="engine 'onnxruntime'"):
        rows_from_trtexec(TEN, Target("t", "rtx4090", "onnxruntime", "fp16"))
    with pytest.raises(UsageError, match="0 layer info, 1 profile"):
        rows_from_trtexec(TEN[1:], FP16)
    with pytest.raises(UsageError, match="2 layer info"):
        rows_from_trtexec([*TEN, ELEVEN[0]], FP16)
    with pytest.raises(UsageError, match="1 layer info, 0 profile, 0 times"):
        rows_from_trtexec(TEN[:1], FP16)
    with pytest.raises(UsageError, match="twice"):
        rows_from_trtexec([*TEN, TEN[2]], FP16)
    with pytest.raises(UnknownNameError, match="'gpu'"):
        rows_from_trtexec(TEN, FP16, metric="gpu")
    with pytest.raises(AkdError, match="12 queries"):
        rows_from_trtexec(TEN, FP16, warmup_runs=12)
