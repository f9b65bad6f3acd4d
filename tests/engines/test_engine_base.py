import itertools
import os
import stat
from pathlib import Path

import numpy as np
import onnx
import pytest
from engine_graphs import GRAPHS, Graph

from akd_deploy.engines import base, load_engine
from akd_deploy.engines.base import Session, TensorSpec, Timings, random_feeds, time_calls, warm_up
from akd_deploy.engines.declared_float32 import KEY, declare_float32, declared_float32
from akd_deploy.engines.device_timing import timed_parts
from akd_deploy.engines.feeds import CACHE_LINE_BYTES, aligned_copy, checked_feeds
from akd_deploy.engines.nvidia import gpu_clocks, gpu_fingerprint, why_no_gpu
from akd_deploy.engines.onnx_file import copy_onnx, node_names, read_onnx
from akd_deploy.engines.original_graph import original_graph
from akd_deploy.engines.precision_audit import Layer, audited_precision
from akd_deploy.errors import (
    BuildError,
    CorruptFileError,
    MissingFileError,
    MissingRuntimeError,
    UnknownNameError,
    UsageError,
)
from akd_deploy.target import Target

# --- choosing an engine, timing it --------------------------------------------------------------------------


def test_unknown_engine_lists_the_known_ones():
    with pytest.raises(UnknownNameError, match="onnxruntime, openvino, tensorrt"):
        load_engine(Target("t", "cpu", "onnx-runtime"))


class FakeClock:
    """`perf_counter` that moves only when told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = FakeClock()
    monkeypatch.setattr(base.time, "perf_counter", clock)
    return clock


def test_what_is_done_between_calls_is_in_no_sample(clock):
    between = []

    def call() -> None:
        clock.now += 0.01

    def pause() -> None:
        between.append(clock.now)
        clock.now += 0.5

    assert time_calls(call, seconds=0.0, min_samples=3, between=pause) == pytest.approx([0.01] * 3)
    assert between == pytest.approx([0.0, 0.51, 1.02])


def test_time_calls_takes_enough_samples_and_enough_time(clock):
    def call() -> None:
        clock.now += 0.01

    assert time_calls(call, seconds=0.055, min_samples=3) == pytest.approx([0.01] * 6)
    assert len(time_calls(call, seconds=0.0, min_samples=8)) == 8
    assert len(time_calls(call, seconds=100.0, min_samples=1, max_samples=4)) == 4


def test_pauses_come_before_every_call_and_are_in_no_sample(clock):
    happened: list[str] = []

    def call() -> None:
        happened.append("call")
        clock.now += 0.01

    def sleep(seconds: float) -> None:
        assert seconds == 0.04
        happened.append("sleep")
        clock.now += seconds

    samples = time_calls(call, seconds=0.12, min_samples=1, idle_s=0.04, sleep=sleep)
    assert samples == pytest.approx([0.01] * 3)  # 50 ms each, pause included, until 120 ms have passed
    assert happened == ["sleep", "call"] * 3


class FakeEvent:
    """A moment on a device's clock, which `work` moves."""

    device_now = 0.0

    def __init__(self) -> None:
        self.at: float | None = None

    def record(self) -> None:
        self.at = FakeEvent.device_now

    def synchronize(self) -> None:
        assert self.at is not None

    def elapsed_time(self, end: "FakeEvent") -> float:
        return (end.at - self.at) * 1e3


def test_parts_are_told_apart_by_the_devices_clock_and_the_hosts(clock, monkeypatch):
    monkeypatch.setattr(FakeEvent, "device_now", 5.0)
    order: list[str] = []

    def part(name: str, host_s: float, device_s: float):
        def run() -> None:
            order.append(name)
            clock.now += host_s
            FakeEvent.device_now += device_s

        return run

    call = timed_parts(part("in", 1.0, 10.0), part("launch", 2.0, 20.0), part("out", 4.0, 40.0), FakeEvent, clock)
    for _ in range(2):  # events are used again
        timings = call()
        assert timings == Timings(enqueue_s=2.0, h2d_s=10.0, compute_s=20.0, d2h_s=40.0, end_to_end_s=7.0)
    assert order == ["in", "launch", "out"] * 2


def test_a_session_on_the_host_has_no_parts():
    class OnHost(Session):
        def run(self, feeds):
            return {}

        def bind(self, feeds):
            return lambda: None

    assert OnHost().timings({}) is None


def test_warm_up_lasts_until_the_rate_is_stable(clock):
    durations = itertools.chain([0.1, 0.08, 0.06, 0.04, 0.02], itertools.repeat(0.01))

    def call() -> None:
        clock.now += next(durations)

    calls = warm_up(call, seconds=0.1)
    # Each window is 10 ms, one call; the sixth and seventh agree.
    assert calls == 7


def test_warm_up_gives_up_on_a_rate_that_never_settles(clock):
    durations = itertools.cycle([0.011, 0.022])

    def call() -> None:
        clock.now += next(durations)

    warm_up(call, seconds=0.1, max_seconds=1.0)
    assert 1.0 <= clock.now < 1.03


def test_warm_up_calls_at_least_once_where_the_process_is_kept_away_between_two_readings(monkeypatch):
    readings = itertools.count(step=5.0)
    monkeypatch.setattr(base.time, "perf_counter", lambda: next(readings))
    calls = []
    assert warm_up(lambda: calls.append(1), seconds=0.1) == len(calls) >= 1


# --- feeds --------------------------------------------------------------------------------------------------

SPECS = (TensorSpec("x", (2, 3), "float32"), TensorSpec("ids", (2,), "int64"))


def test_random_feeds_fit_the_inputs_and_come_from_the_generator():
    class OneSession:
        inputs = SPECS

    feeds, again = (random_feeds(OneSession(), np.random.default_rng(3)) for _ in range(2))
    assert checked_feeds(SPECS, feeds).keys() == {"x", "ids"}
    assert not feeds["ids"].any()
    np.testing.assert_array_equal(feeds["x"], again["x"])


def test_feeds_are_neither_cast_nor_broadcast_and_come_in_the_inputs_order():
    good = {"ids": np.zeros(2, np.int64), "x": np.zeros((3, 2), np.float32).T}
    checked = checked_feeds(SPECS, good)
    assert list(checked) == ["x", "ids"]
    assert checked["x"].flags.c_contiguous
    for name, wrong in [("x", np.zeros((1, 3), np.float32)), ("ids", np.zeros(2, np.int32))]:
        with pytest.raises(UsageError, match=name):
            checked_feeds(SPECS, {**good, name: wrong})
    with pytest.raises(UsageError, match="no array"):
        checked_feeds(SPECS, {"x": good["x"]})
    with pytest.raises(UnknownNameError, match="Did you mean 'ids'"):
        checked_feeds(SPECS, {**good, "idx": good["ids"]})


@pytest.mark.parametrize("shape", [(3, 5), (), (0, 4)])
def test_aligned_copy_begins_at_a_cache_line_and_is_a_copy(shape):
    source = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    copy = aligned_copy(source)
    assert copy.size == 0 or copy.ctypes.data % CACHE_LINE_BYTES == 0
    np.testing.assert_array_equal(copy, source)
    assert not np.shares_memory(copy, source)


# --- ONNX files ---------------------------------------------------------------------------------------------


def saved(model: onnx.ModelProto, tmp_path: Path, **options: object) -> Path:
    path = tmp_path / "network.onnx"
    onnx.save(model, str(path), **options)
    return path


def input_shape(model: onnx.ModelProto) -> list[int]:
    return [dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim]


def test_dynamic_batch_becomes_the_targets(tmp_path):
    path = saved(GRAPHS["residual"](), tmp_path)
    model = read_onnx(path, batch=5)
    assert input_shape(model) == [5, 3, 16, 16]
    assert not [d for v in model.graph.value_info for d in v.type.tensor_type.shape.dim if d.dim_param]


def test_unnamed_batch_becomes_the_targets(tmp_path):
    model = GRAPHS["residual"]()
    model.graph.input[0].type.tensor_type.shape.dim[0].Clear()
    assert input_shape(read_onnx(saved(model, tmp_path), batch=5)) == [5, 3, 16, 16]


def test_other_dynamic_dimensions_are_refused_by_name(tmp_path):
    model = Graph().model({"x": ["N", 3, "height", "width"]}, [])
    model.graph.node.append(onnx.helper.make_node("Relu", ["x"], ["y"]))
    with pytest.raises(UsageError, match=r"dimension 2 \(height\), dimension 3 \(width\)"):
        read_onnx(saved(model, tmp_path), batch=1)


def test_fixed_batch_that_is_not_the_targets_is_refused(tmp_path):
    g = Graph()
    path = saved(g.model({"x": [3, 4]}, [g("Relu", "x")]), tmp_path)
    with pytest.raises(UsageError, match="fixed batch 3"):
        read_onnx(path, batch=2)
    assert input_shape(read_onnx(path, batch=3)) == [3, 4]


def test_names_are_unique_and_their_own_where_they_can_be():
    nodes = [
        onnx.helper.make_node("Relu", ["x"], ["a"], name="same"),
        onnx.helper.make_node("Relu", ["a"], ["b"], name="same"),
        onnx.helper.make_node("Relu", ["b"], ["c"], name="a"),
        onnx.helper.make_node("Relu", ["c"], ["d"]),
    ]
    assert node_names(onnx.helper.make_graph(nodes, "g", [], [])) == ["a_", "b", "a", "d"]


def external(tmp_path: Path) -> Path:
    return saved(GRAPHS["residual"](), tmp_path, save_as_external_data=True, location="weights.bin", size_threshold=0)


def test_copy_takes_the_weights_along(tmp_path):
    path = external(tmp_path)
    copies = copy_onnx(path, tmp_path / "out")
    assert [copy.name for copy in copies] == ["network.onnx", "weights.bin"]
    assert [copy.read_bytes() for copy in copies] == [path.read_bytes(), (tmp_path / "weights.bin").read_bytes()]


@pytest.mark.parametrize("name", ["network.json", "network.txt", "network.onnxtxt", "network.textproto"])
def test_a_networks_format_is_not_guessed_from_its_name(tmp_path, name):
    path = tmp_path / name
    path.write_text('{"graph": {}}', encoding="utf-8")
    with pytest.raises(CorruptFileError, match=name):
        read_onnx(path, batch=1)
    path.write_bytes(saved(GRAPHS["residual"](), tmp_path).read_bytes())
    assert read_onnx(path, batch=1).graph.node


def test_copy_onto_itself_changes_nothing(tmp_path):
    path = external(tmp_path)
    before = path.read_bytes()
    assert copy_onnx(path, tmp_path)[0].read_bytes() == before


def test_missing_and_short_weights_files_are_named(tmp_path):
    path = external(tmp_path)
    weights = tmp_path / "weights.bin"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(CorruptFileError, match=r"weights\.bin"):
        read_onnx(path, batch=1)
    weights.unlink()
    with pytest.raises(MissingFileError, match=r"weights\.bin"):
        read_onnx(path, batch=1)


@pytest.mark.parametrize("location", ["/etc/passwd", "../weights.bin"])
def test_weights_outside_the_networks_folder_are_refused(tmp_path, location):
    path = external(tmp_path)
    model = onnx.load(str(path), load_external_data=False)
    next(e for e in model.graph.initializer[0].external_data if e.key == "location").value = location
    path.write_bytes(model.SerializeToString())
    with pytest.raises(CorruptFileError, match="outside"):
        read_onnx(path, batch=1)


def test_repeated_nodes_and_copies_are_the_same_tensor():
    graph = GRAPHS["several_parts"]().graph
    original = original_graph(graph)
    tanh = [i for i, node in enumerate(graph.node) if node.op_type == "Tanh"]
    assert original.twins == {tanh[0]: [tanh[1]]}
    copy = next(node for node in graph.node if node.op_type == "Identity")
    assert original.tensor(copy.output[0]) == original.tensor(copy.input[0])


# --- precision ----------------------------------------------------------------------------------------------


def test_audit_judges_the_layers_that_multiply_matrices():
    layers = [Layer("conv", "float16", True), Layer("norm", "float32", False), Layer("shape", "int64", False)]
    assert audited_precision("fp16", layers, "n") == ({"float16": 1, "float32": 1}, ())
    with pytest.raises(BuildError, match=r"1 computing in float16 \(conv\)"):
        audited_precision("fp32", layers, "n")


def test_audit_without_such_layers_judges_what_there_is():
    with pytest.raises(BuildError, match="relu"):
        audited_precision("bf16", [Layer("relu", "float32", False)], "n")
    assert audited_precision("int8", [Layer("relu", "uint8", False)], "n")[0] == {"uint8": 1}


def test_audit_notes_layers_that_stayed_behind():
    counts, notes = audited_precision("int8", [Layer("a", "int8", True), Layer("b", "float32", True)], "n")
    assert counts == {"float32": 1, "int8": 1}
    assert notes == ("1 of 2 layers are not in int8: 1 computing in float32 (b)",)


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_a_layer_left_in_float32_is_wrong_unless_its_node_may_stay(precision):
    low = {"fp16": "float16", "bf16": "bfloat16"}[precision]
    layers = [Layer("a + cast", low, True, ("a", "cast")), Layer("b + relu", "float32", True, ("b", "relu"))]
    with pytest.raises(BuildError, match=r"found 1 computing in float32 \(b \+ relu\)") as caught:
        audited_precision(precision, layers, "n")
    assert KEY in caught.value.next
    with pytest.raises(BuildError, match="b"):
        audited_precision(precision, layers, "n", {"a": "overflows"})
    counts, notes = audited_precision(precision, layers, "n", {"b": "overflows"})
    assert counts == {"float32": 1, low: 1}
    assert "1 of 2 layers" in notes[0]
    assert audited_precision(precision, layers, "n", None)[0] == counts


def test_a_network_of_which_nothing_is_in_the_precision_asked_for_cannot_be_declared_away():
    with pytest.raises(BuildError, match="a, b"):
        audited_precision("fp16", [Layer("a", "float32", True), Layer("b", "float32", True)], "n", ("a", "b"))


def test_a_node_may_stay_in_float32_alone_and_never_widens_what_fp32_means():
    mixed = [Layer("a", "float16", True), Layer("b", "bfloat16", True)]
    with pytest.raises(BuildError, match=r"bfloat16 \(b\)"):
        audited_precision("fp16", mixed, "n", ("b",))
    with pytest.raises(BuildError, match=r"float16 \(a\)"):
        audited_precision("fp32", [Layer("a", "float16", True), Layer("b", "float32", True)], "n", ("a", "b"))


def test_a_declaration_survives_the_file_and_one_that_cannot_be_read_is_named():
    model = GRAPHS["residual"]()
    assert declared_float32(model, "m.onnx") == {}
    declare_float32(model, {"b": "überläuft", "a": "sums"})
    declare_float32(model, {"b": "überläuft", "a": "sums"})
    again = onnx.load_from_string(model.SerializeToString())
    assert declared_float32(again, "m.onnx") == {"a": "sums", "b": "überläuft"}
    assert len(again.metadata_props) == 1
    for text in ("[", '["a"]', '{"a": 1}'):
        again.metadata_props[0].value = text
        with pytest.raises(CorruptFileError, match=r"m\.onnx"):
            declared_float32(again, "m.onnx")
    declare_float32(again, {})
    assert not again.metadata_props


# --- NVIDIA -------------------------------------------------------------------------------------------------


def fake_driver(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    program = folder / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n{script}\n", encoding="ascii")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.defpath}")


def test_clocks_of_a_gpu_are_told_by_its_driver_and_unknown_without_one(tmp_path, monkeypatch):
    fake_driver(tmp_path, monkeypatch, 'echo "1980 MHz, 2619 MHz, 1980 MHz, 2619 MHz, P0, 31, 74.10 W"')
    clocks = gpu_clocks()
    assert (clocks["clocks.sm"], clocks["pstate"], clocks["power.draw"]) == ("1980 MHz", "P0", "74.10 W")
    fake_driver(tmp_path, monkeypatch, "exit 9")
    assert gpu_clocks() is None


def test_gpu_is_told_by_its_driver(tmp_path, monkeypatch):
    fake_driver(tmp_path, monkeypatch, 'echo "NVIDIA A100-SXM4-80GB, 550.54.15, 8.0"; echo "Other, 550.54.15, 8.6"')
    assert why_no_gpu() is None
    assert dict(gpu_fingerprint().facts) == {
        "kind": "gpu", "vendor": "nvidia", "model": "NVIDIA A100-SXM4-80GB", "compute_capability": "8.0",
        "driver": "550.54.15",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ('echo "couldn\'t communicate with the NVIDIA driver"; exit 9', "status 9.*communicate"),
        ('echo "No devices were found"', "listed no GPU"),
        ("true", "listed no GPU"),
    ],
)
def test_driver_without_a_gpu_is_refused_with_its_words(tmp_path, monkeypatch, script, reason):
    fake_driver(tmp_path, monkeypatch, script)
    with pytest.raises(MissingRuntimeError, match=reason):
        gpu_fingerprint()


def test_no_driver_is_a_reason(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "nvidia-smi" in str(why_no_gpu())
