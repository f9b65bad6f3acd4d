"""ONNX Runtime's profiles: samples per node and run, kernels as the engine itself reads them, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest
from hypothesis import given
from hypothesis import strategies as st

from akd_deploy.engines import load_engine
from akd_deploy.errors import CorruptFileError, MismatchError, UsageError
from akd_deploy.kernel import Kernel
from akd_deploy.latency_table import NETWORK, PROBE
from akd_deploy.models.onnx_from_student import onnx_from_architecture
from akd_deploy.profiling.importers.imported import AGGREGATED, Imported
from akd_deploy.profiling.importers.onnxruntime_events import durations, read_runs
from akd_deploy.profiling.importers.onnxruntime_profile import rows_from_profiles
from akd_deploy.search_space import load_space
from akd_deploy.target import Target

GOLDEN = Path(__file__).parents[2] / "golden" / "importers" / "onnxruntime"
PROFILE = GOLDEN / "profile.json"
CPU = Target("desk_onnxruntime_fp32", "desk", "onnxruntime")


@pytest.fixture(scope="module")
def optimised(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The golden model, which is kept as text, in ONNX's own format."""
    path = tmp_path_factory.mktemp("golden") / "optimised.onnx"
    onnx.save_model(onnx.parser.parse_model((GOLDEN / "optimised.onnxtxt").read_text()), path)
    return path


def rows_of(imported: Imported) -> dict[str, Any]:
    return {row.name: row for row in imported.rows}


# --- what it becomes -----------------------------------------------------------------------------------------------


def test_every_node_has_a_sample_for_each_run_after_the_warm_up(optimised: Path) -> None:
    rows = rows_of(rows_from_profiles([PROFILE], optimised, CPU, network="net"))
    row = rows["net/fused_stem"]
    assert (row.kind, row.family) == (PROBE, "net")
    assert row.measurement.samples_s == pytest.approx([14e-6, 13e-6, 13e-6, 14e-6])
    assert set(row.measurement.block_ids) == {0}
    all_runs = rows_of(rows_from_profiles([PROFILE], optimised, CPU, network="net", warmup_runs=0))
    assert all_runs["net/fused_stem"].measurement.samples_s[0] == pytest.approx(61e-6)


def test_kernels_have_what_the_events_do_not_tell(optimised: Path) -> None:
    rows = rows_of(rows_from_profiles([PROFILE], optimised, CPU, network="net"))
    ((stem, _),) = rows["net/fused_stem"].kernels
    assert stem.inputs == ((1, 3, 16, 16), (8, 3, 3, 3), (8,))
    assert (stem.op, stem.attribute("strides"), stem.attribute("activation")) == ("FusedConv", (2, 2), "Relu")
    assert rows["net/fused_depthwise"].kernels[0][0].attribute("groups") == 8
    assert rows["net/head"].kernels[0][0].attribute("transpose_b") == 1


def test_the_network_has_the_runs_and_every_node(optimised: Path) -> None:
    imported = rows_from_profiles([PROFILE], optimised, CPU, network="net")
    network = rows_of(imported)["net"]
    runs = [e["dur"] for e in json.loads(PROFILE.read_text()) if e["name"] == "model_run"]
    assert network.kind == NETWORK
    assert network.measurement.samples_s == pytest.approx([dur / 1e6 for dur in runs[1:]])
    assert sum(count for _, count in network.kernels) == 10
    # Sums over nodes of the four runs: 48, 45, 48, 50 µs; the runs themselves 77, 74, 77, 79.
    assert imported.layers_over_network == pytest.approx(48 / 77)


def test_a_node_below_a_microsecond_is_an_aggregate_or_has_no_latency(optimised: Path) -> None:
    imported = rows_from_profiles([PROFILE], optimised, CPU, network="net")
    rows = rows_of(imported)
    residual = rows["net/residual"]  # 1, 0, 1 and 1 µs
    assert residual.family == f"{AGGREGATED}/net"
    assert residual.measurement.samples_s == pytest.approx([0.75e-6])
    assert imported.without_latency == ("flatten",)
    assert "net/flatten" not in rows
    assert rows["net [all layers]"].measurement.median_s == pytest.approx((48 + 45 + 48 + 50) / 4e6)
    assert imported.aggregated == 1 + 3


def test_each_profile_is_a_block(optimised: Path, tmp_path: Path) -> None:
    slower = events()
    for event in slower:
        event["ts"] *= 2
        event["dur"] *= 2
    again = written(tmp_path / "again.json", slower)
    row = rows_of(rows_from_profiles([PROFILE, again], optimised, CPU, network="net"))["net/pool"]
    assert row.measurement.samples_s == pytest.approx([3e-6] * 4 + [6e-6] * 4)
    assert row.measurement.block_ids == (0,) * 4 + (1,) * 4
    assert row.measurement.sigma == pytest.approx(0.4714, abs=1e-4)


@pytest.mark.parametrize("graph_optimization", ["all", "extended", "basic", "disabled"])
def test_a_real_session_s_kernels_are_those_the_engine_itself_reads(graph_optimization: str, tmp_path: Path) -> None:
    import onnxruntime

    target = Target("t", "desk", "onnxruntime", engine_options={"graph_optimization": graph_optimization})
    rng = np.random.default_rng(3)
    space = load_space("mobile")
    onnx.save_model(onnx_from_architecture(space.sample(rng), rng), tmp_path / "m.onnx")
    options = load_engine(target)._session_options()  # type: ignore[attr-defined]
    options.enable_profiling = True
    options.profile_file_prefix = str(tmp_path / "profile")
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    session = onnxruntime.InferenceSession(str(tmp_path / "m.onnx"), options, providers=["CPUExecutionProvider"])
    for _ in range(4):
        session.run(None, {i.name: np.zeros(i.shape, np.float32) for i in session.get_inputs()})
    profile = Path(session.end_profiling())
    imported = rows_from_profiles([profile], tmp_path / "optimised.onnx", target)
    network = rows_of(imported)["optimised"]
    assert sorted(network.counts().elements()) == sorted(
        e.kernel for e in load_engine(target).executed_kernels(tmp_path / "m.onnx")
    )
    assert len(network.measurement.samples_s) == 3


def test_a_node_that_another_process_did_not_time_is_told_or_has_no_latency(optimised: Path, tmp_path: Path) -> None:
    quick = events()
    for event in quick:
        if event["name"].startswith("gate"):
            event["dur"] = 0
    imported = rows_from_profiles([PROFILE, written(tmp_path / "quick.json", quick)], optimised, CPU)
    assert set(imported.without_latency) == {"gate", "flatten"}
    less = [event for event in events() if not event["name"].startswith("gate")]
    with pytest.raises(MismatchError, match=r"less\.json.*no event of gate"):
        rows_from_profiles([PROFILE, written(tmp_path / "less.json", less)], optimised, CPU)


# --- nodes without names -------------------------------------------------------------------------------------------


def events() -> list[dict[str, Any]]:
    content = json.loads(PROFILE.read_text())
    assert isinstance(content, list)
    return content


def written(path: Path, content: object) -> Path:
    path.write_text(json.dumps(content))
    return path


def without_names(folder: Path, model_path: Path, keep: tuple[str, ...] = ()) -> tuple[Path, Path]:
    """The model with nameless nodes, and a profile in which the session called them by operator and number."""
    model, profile = onnx.load(model_path), events()
    for i, node in enumerate(model.graph.node):
        if node.name not in keep:
            for event in profile:
                if event["name"] == f"{node.name}_kernel_time":
                    event["name"] = f"{node.op_type}_{100 - i}_kernel_time"
            node.name = ""
    onnx.save_model(model, folder / "nameless.onnx")
    return folder / "nameless.onnx", written(folder / "p.json", profile)


@pytest.mark.parametrize("keep", [(), ("pointwise", "residual")])
def test_events_find_their_nodes_without_names(keep: tuple[str, ...], optimised: Path, tmp_path: Path) -> None:
    model, profile = without_names(tmp_path, optimised, keep)
    named = rows_of(rows_from_profiles([PROFILE], optimised, CPU, network="net"))
    found = rows_from_profiles([profile], model, CPU, network="net")
    of = {row.kernels: row.measurement.samples_s for row in named.values()}
    assert len(found.rows) == len(named)
    assert {row.kernels: row.measurement.samples_s for row in found.rows} == of


def test_nodes_of_the_same_name_are_told_apart(optimised: Path, tmp_path: Path) -> None:
    model, profile = onnx.load(optimised), events()
    for node in model.graph.node:
        if node.name == "project":
            node.name = "pointwise"
    for event in profile:
        event["name"] = event["name"].replace("project", "pointwise")
    onnx.save_model(model, tmp_path / "m.onnx")
    found = rows_from_profiles([written(tmp_path / "p.json", profile)], tmp_path / "m.onnx", CPU, network="net")
    medians = {row.kernels[0][0].inputs[-1]: row.measurement.median_s for row in found.rows if row.name[:4] == "net/"}
    assert medians[16, 8, 1, 1] == pytest.approx(7e-6)
    assert medians[16, 16, 1, 1] == pytest.approx(9e-6)


def test_events_that_could_be_of_two_different_nodes_are_refused(tmp_path: Path) -> None:
    runs = read_runs(without_names(tmp_path, _resaved(tmp_path))[1])
    same = {"inputs": ((1, 16, 8, 8),), "outputs": ((1, 16, 8, 8),)}
    kernels = {
        "a": Kernel("HardSigmoid", **same, attributes=(("axis", 1),)),
        "b": Kernel("HardSigmoid", **same, attributes=(("axis", 2),)),
    }
    with pytest.raises(MismatchError, match="none of its operator"):
        durations(runs, kernels)
    only = next(name for name in runs.events[0] if name[0].startswith("HardSigmoid"))
    alone = type(runs)(
        runs.path, runs.seconds, ({only: runs.events[0][only]},), tuple({only: r[only]} for r in runs.node_seconds)
    )
    with pytest.raises(MismatchError, match="several that differ: a, b"):
        durations(alone, kernels)


def _resaved(folder: Path) -> Path:
    path = folder / "o.onnx"
    onnx.save_model(onnx.parser.parse_model((GOLDEN / "optimised.onnxtxt").read_text()), path)
    return path


# --- what is refused -----------------------------------------------------------------------------------------------


def nodes_of(profile: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [event for event in profile if event["cat"] == "Node"]


def runs_of(profile: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [event for event in profile if event["name"] == "model_run"]


REFUSED = {
    "a GPU's nodes": (
        lambda p: nodes_of(p)[3]["args"].update(provider="CUDAExecutionProvider"), MismatchError, "1 events of CUDA",
    ),
    "no run": (lambda p: [p.remove(run) for run in runs_of(p)], CorruptFileError, "did not end"),
    "a run cut short": (lambda p: p.pop(), CorruptFileError, "did not end"),
    "no node": (lambda p: [p.remove(node) for node in nodes_of(p)], CorruptFileError, "no executed node"),
    "runs side by side": (lambda p: runs_of(p)[1].update(dur=10**6), CorruptFileError, "side by side|before the one"),
    "a node outside": (lambda p: nodes_of(p)[12].update(ts=3), CorruptFileError, "'pointwise'"),
    "a node once only": (lambda p: p.remove(nodes_of(p)[14]), CorruptFileError, "'scale'|'project'|'gate'"),
    "a node less": (
        lambda p: [p.remove(n) for n in nodes_of(p) if n["name"].startswith("gate")], MismatchError, "session wrote",
    ),
    "another shape": (
        lambda p: nodes_of(p)[0]["args"].update(input_type_shape=[{"float": [1, 3, 32, 32]}]), MismatchError, "stem",
    ),
    "a negative time": (lambda p: nodes_of(p)[5].update(dur=-3), CorruptFileError, "project_kernel_time"),
    "a time that is none": (lambda p: nodes_of(p)[5].update(dur="long"), CorruptFileError, "'long'"),
    "no operator": (lambda p: nodes_of(p)[5]["args"].pop("op_name"), CorruptFileError, "op_name"),
    "no list": (lambda p: p.__setitem__(0, 3), CorruptFileError, "no list of events"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_wrong_is_told_by_file_and_place(case: str, optimised: Path, tmp_path: Path) -> None:
    change, kind, told = REFUSED[case]
    profile = events()
    change(profile)
    path = written(tmp_path / "prof.json", profile)
    with pytest.raises(kind, match=told) as refused:
        rows_from_profiles([path], optimised, CPU)
    assert "prof.json" in str(refused.value)


def test_a_profile_torn_anywhere_is_never_half_read(optimised: Path, tmp_path: Path) -> None:
    text = PROFILE.read_text()
    for length in range(0, len(text) - 5, 997):
        (tmp_path / "torn.json").write_text(text[:length])
        with pytest.raises(CorruptFileError, match=r"torn.json.*no JSON"):
            rows_from_profiles([tmp_path / "torn.json"], optimised, CPU)


def test_targets_and_numbers_that_do_not_fit_are_refused(optimised: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="5 runs"):
        rows_from_profiles([PROFILE], optimised, CPU, warmup_runs=5)
    with pytest.raises(UsageError, match="no file"):
        rows_from_profiles([], optimised, CPU)
    with pytest.raises(UsageError, match="engine 'openvino'"):
        rows_from_profiles([PROFILE], optimised, Target("t", "desk", "openvino"))
    with pytest.raises(UsageError, match="another provider"):
        rows_from_profiles([PROFILE], optimised, Target("t", "g", "onnxruntime", engine_options={"provider": "cuda"}))
    with pytest.raises(MismatchError, match="float32"):
        rows_from_profiles([PROFILE], optimised, Target("t", "desk", "onnxruntime", "int8"))
    with pytest.raises(UsageError, match="batch"):
        rows_from_profiles([PROFILE], optimised, Target("t", "desk", "onnxruntime", batch=4))
    with pytest.raises(CorruptFileError, match=r"profile\.json"):
        rows_from_profiles([PROFILE], PROFILE, CPU)


@given(st.lists(st.lists(st.integers(0, 10**5), min_size=2, max_size=2), min_size=2, max_size=5))
def test_every_duration_comes_back_in_its_run(tmp_path_factory: pytest.TempPathFactory, taken: list[list[int]]) -> None:
    """Two nodes, named as nasty as suffixes allow; any durations, any number of runs."""
    profile: list[dict[str, Any]] = []
    clock = 0
    for run in taken:
        begin, clock = clock, clock + 1
        for name, dur in zip(("a_kernel_time", "a"), run, strict=True):
            arguments = {"op_name": "Relu", "provider": "CPUExecutionProvider",
                         "input_type_shape": [{"float": [1]}], "output_type_shape": [{"float": [1]}]}  # fmt: skip
            profile.append({"cat": "Node", "name": f"{name}_kernel_time", "ts": clock, "dur": dur, "args": arguments})
            clock += dur
        profile.append({"cat": "Session", "name": "model_run", "ts": begin, "dur": clock - begin})
    path = written(tmp_path_factory.mktemp("runs") / "p.json", profile)
    relu = Kernel("Relu", ((1,),), ((1,),))
    found = durations(read_runs(path), {"a": relu, "a_kernel_time": relu})
    assert found["a_kernel_time"] == pytest.approx([run[0] / 1e6 for run in taken])
    assert found["a"] == pytest.approx([run[1] / 1e6 for run in taken])
