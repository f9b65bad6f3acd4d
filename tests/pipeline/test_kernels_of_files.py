"""Kernels of a file come from whom one asks, are the same whoever says so, and are remembered no longer than true."""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from dataclasses import replace

import numpy as np
import onnx
import pytest
from engines.engine_graphs import GRAPHS, Graph, masked_attention
from onnx import TensorProto

from akd_deploy.device import DeviceFingerprint, cpu_fingerprint
from akd_deploy.engines import load_engine
from akd_deploy.errors import CorruptFileError, MissingFileError, MissingRuntimeError, UnknownNameError, UsageError
from akd_deploy.fusion import onnxruntime_cpu
from akd_deploy.fusion.onnxruntime_cpu import RUNTIME_VERSION
from akd_deploy.pipeline import kernels as kernels_module
from akd_deploy.pipeline.kernels import AUTO, RULES, RUNTIME, KernelReader
from akd_deploy.target import Target

TARGET = Target("t", "cpu", "onnxruntime")
HERE = cpu_fingerprint()
X86 = DeviceFingerprint({"kind": "cpu", "machine": "x86_64", "isa": "avx2 avx512f fma"})
VERSION = f"{RUNTIME_VERSION}.1"

if onnxruntime_cpu.why_not(VERSION, HERE) is not None:
    pytest.skip("needs an x86 CPU", allow_module_level=True)


@pytest.fixture(autouse=True)
def settled(monkeypatch):
    """Files count as written long ago."""
    monkeypatch.setattr(kernels_module, "_SETTLED_NS", 0)


def reader(folder=None, target: Target = TARGET, device: DeviceFingerprint = HERE, version: str = VERSION):
    return KernelReader(load_engine(target), device, version, folder)


def network(folder, channels: int = 16, name: str = "network.onnx"):
    graph = Graph()
    y = graph.conv("x", 3, channels, 3)
    y = graph("Relu", graph.conv(y, channels, channels, 1))
    path = folder / name
    path.write_bytes(graph.model({"x": [1, 3, 8, 8]}, [y]).SerializeToString())
    return path


def refused(folder):
    """A network of an operator that the runtime has and the rules do not know."""
    graph = Graph()
    y = graph("QuickGelu", "x", domain="com.microsoft")
    path = folder / "refused.onnx"
    path.write_bytes(graph.model({"x": [1, 8]}, [y]).SerializeToString())
    return path


def counted(found):
    return Counter((e.kernel, e.nodes) for e in found.executed)


@pytest.fixture
def asked(monkeypatch):
    """Who was asked, in order."""
    calls = []
    engine = type(load_engine(TARGET))
    runtime, rules = engine.executed_kernels, onnxruntime_cpu.kernels_of
    monkeypatch.setattr(engine, "executed_kernels", lambda self, path: calls.append(RUNTIME) or runtime(self, path))
    monkeypatch.setattr(
        onnxruntime_cpu, "kernels_of", lambda *args, **more: calls.append(RULES) or rules(*args, **more)
    )
    return calls


@pytest.fixture
def no_runtime(monkeypatch):
    """As if ONNX Runtime were not installed."""
    engine = type(load_engine(TARGET))
    monkeypatch.setattr(engine, "why_not", lambda self: "the package onnxruntime is not installed")


# --- who is asked -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(GRAPHS))
def test_rules_and_runtime_agree_on_the_engines_own_graphs(name, tmp_path):
    path = tmp_path / "network.onnx"
    path.write_bytes(GRAPHS[name]().SerializeToString())
    target = replace(TARGET, precision="int8") if name == "quantized" else TARGET
    by_rules, by_runtime = (reader(target=target).read(path, source) for source in (AUTO, RUNTIME))
    assert by_runtime.kernels_from == RUNTIME
    assert counted(by_rules) == counted(by_runtime)


def with_denormals(found) -> dict[str, object]:
    return {e.kernel.op: e.kernel.attribute("denormals") for e in found.executed if e.kernel.attribute("denormals")}


def masked_file(folder, value: float, *, external: bool = False, images: int = 0):
    mask = np.zeros((8, 32, 32))  # in a graph that is too large to be kept as it is
    mask[0, :, 16:] = value
    path, model = folder / "masked.onnx", masked_attention(mask, windows=8, tokens=32, images=images)
    onnx.save_model(
        model, path, save_as_external_data=external, location="weights.bin", size_threshold=1024
    )  # fmt: skip
    return path


@pytest.mark.parametrize("images", [0, 2])
@pytest.mark.parametrize("external", [False, True])
def test_rules_and_runtime_tell_the_same_kernels_that_a_mask_makes_slow(external, images, tmp_path):
    path = masked_file(tmp_path, -100.0, external=external, images=images)
    rules, runtime = (reader().read(path, source) for source in (RULES, RUNTIME))
    assert counted(rules) == counted(runtime)
    assert with_denormals(rules) == {"Softmax": 0.062, "MatMul": 0.062}
    flushing = replace(TARGET, engine_options={"denormal_as_zero": True})
    assert not with_denormals(reader(target=flushing).read(path, RULES))


@pytest.mark.parametrize("external", [False, True])
def test_another_mask_is_another_file(external, tmp_path):
    asked = reader(tmp_path / "memory")
    assert with_denormals(asked.read(masked_file(tmp_path, -100.0, external=external)))
    (tmp_path / "weights.bin").unlink(missing_ok=True)
    assert not with_denormals(asked.read(masked_file(tmp_path, -1e4, external=external)))
    if external:
        values = (tmp_path / "weights.bin").read_bytes()
        lower, higher = np.float32(-1e4).tobytes(), np.float32(-100.0).tobytes()
        assert lower in values
        (tmp_path / "weights.bin").write_bytes(values.replace(lower, higher))
        assert with_denormals(asked.read(tmp_path / "masked.onnx"))


def test_rules_are_asked_first_and_the_runtime_where_they_refuse(tmp_path, asked):
    known = reader()
    assert known.read(network(tmp_path)).kernels_from == RULES
    assert asked == [RULES]
    assert known.read(refused(tmp_path)).kernels_from == RUNTIME
    assert asked == [RULES, RULES, RUNTIME]


def test_where_rules_are_in_doubt_the_runtime_is_asked_if_it_is_here(tmp_path, asked, monkeypatch):
    graph = Graph()
    scale, zero = graph.constant(np.float32(0.1)), graph.constant(np.uint8(128))
    pair = graph("DequantizeLinear", graph("QuantizeLinear", "x", scale, zero), scale, zero)
    path = tmp_path / "network.onnx"
    y = graph("Relu", graph("Transpose", pair, perm=[0, 2, 1]))
    path.write_bytes(graph.model({"x": [1, 4, 8]}, [y]).SerializeToString())
    known = reader(target=replace(TARGET, precision="int8"))
    assert known.read(path).kernels_from == RUNTIME
    assert known.read(path, RULES).kernels_from == RULES
    assert asked == [RUNTIME, RULES]
    monkeypatch.setattr(type(known.engine), "why_not", lambda self: "the package onnxruntime is not installed")
    assert reader().read(path).kernels_from == RULES


def test_the_runtime_alone_is_asked_on_request(tmp_path, asked):
    assert reader().read(network(tmp_path), RUNTIME).kernels_from == RUNTIME
    assert asked == [RUNTIME]


def test_rules_alone_refuse_what_they_do_not_know(tmp_path, asked):
    with pytest.raises(UsageError, match="QuickGelu"):
        reader().read(refused(tmp_path), RULES)
    assert asked == [RULES]
    with pytest.raises(UnknownNameError, match="auto, rules, runtime"):
        reader().read(refused(tmp_path), "rule")


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"version": "1.32.0"}, r"not of 1\.32\.0"),
        ({"version": "1.3"}, r"not of 1\.3\."),
        ({"device": DeviceFingerprint({"machine": "aarch64", "isa": "asimd"})}, "not of aarch64"),
        ({"device": DeviceFingerprint({"machine": "x86_64", "isa": ""})}, "which instructions"),
        ({"device": DeviceFingerprint({"machine": "x86_64"})}, "which instructions"),
        ({"target": replace(TARGET, precision="fp16")}, "not for fp16"),
    ],
)
def test_rules_that_do_not_hold_leave_the_word_to_the_runtime(change, why, tmp_path, asked):
    known, path = reader(**change), network(tmp_path)
    assert known.read(path).kernels_from == RUNTIME
    assert asked == [RUNTIME]
    with pytest.raises(UsageError, match=why):
        known.read(path, RULES)


@pytest.mark.parametrize("target", [Target("t", "cpu", "openvino", "int8"), Target("t", "cpu", "openvino", "fp16")])
def test_where_there_are_no_rules_the_engine_is_asked_every_time(target, tmp_path, monkeypatch):
    engine, path = load_engine(target), network(tmp_path)
    kernels = reader().read(path).executed
    monkeypatch.setattr(type(engine), "why_not", lambda self: None)
    monkeypatch.setattr(type(engine), "executed_kernels", lambda self, path: kernels)
    known = KernelReader(engine, HERE, "2026.4.0", tmp_path / "kernels")
    found = known.read(path)
    assert (found.executed, found.kernels_from) == (kernels, RUNTIME)
    with pytest.raises(UsageError, match=f"fp32 and bf16, not for {target.precision}"):
        known.read(path, RULES)
    assert not (tmp_path / "kernels").exists()


def test_channels_are_blocked_as_on_the_cpu_that_was_measured(tmp_path):
    path = network(tmp_path, channels=24)
    narrow = replace_isa("avx2 fma")
    assert onnxruntime_cpu.block_of(X86) == 16
    assert onnxruntime_cpu.block_of(narrow) == 8
    wide_kernels, narrow_kernels = (counted(reader(device=device).read(path)) for device in (X86, narrow))
    assert wide_kernels != narrow_kernels
    assert {shape[1] for kernel, _ in narrow_kernels for shape in kernel.outputs} == {24}
    assert {shape[1] for kernel, _ in wide_kernels for shape in kernel.outputs} == {24, 32}


def replace_isa(isa: str) -> DeviceFingerprint:
    return DeviceFingerprint({**X86.facts, "isa": isa})


def test_without_the_runtime_rules_do_and_what_they_refuse_says_both_reasons(tmp_path, no_runtime):
    assert reader().read(network(tmp_path)).kernels_from == RULES
    with pytest.raises(MissingRuntimeError, match=r"not installed.*QuickGelu.*pip install"):
        reader().read(refused(tmp_path))
    with pytest.raises(MissingRuntimeError, match="not installed"):
        reader().read(network(tmp_path), RUNTIME)


def test_a_value_that_was_left_out_and_decides_something_is_asked_of_the_runtime(tmp_path, asked):
    graph = Graph()
    largest = graph("ReduceMax", graph.constant(np.full(30_000, 2, np.float32)), keepdims=1)
    y = graph("Tile", "x", graph("Cast", largest, to=TensorProto.INT64))
    path = tmp_path / "network.onnx"
    path.write_bytes(graph.model({"x": [8]}, [graph("Relu", y)]).SerializeToString())
    found = reader().read(path)
    assert (found.kernels_from, asked) == (RUNTIME, [RULES, RUNTIME])
    assert found.executed[-1].kernel.outputs == ((16,),)
    with pytest.raises(UsageError, match="were not read"):
        reader().read(path, RULES)


def test_a_broken_file_is_said_to_be_broken_and_not_handed_on(tmp_path, asked):
    path = network(tmp_path)
    model = onnx.load(path)
    model.graph.initializer[0].raw_data = model.graph.initializer[0].raw_data[:-4]
    path.write_bytes(model.SerializeToString())
    with pytest.raises(CorruptFileError, match="expected in the raw_data"):
        reader().read(path)
    assert asked == []


# --- what is remembered -------------------------------------------------------------------------------------------


@pytest.fixture
def reads(monkeypatch):
    """The files whose structure was read."""
    found = []
    real = kernels_module.read_structure
    monkeypatch.setattr(
        kernels_module,
        "read_structure",
        lambda path, batch, **more: found.append(path.name) or real(path, batch, **more),
    )
    return found


def test_an_unchanged_file_is_not_read_again(tmp_path, reads, asked):
    known, path = reader(), network(tmp_path)
    first = known.read(path)
    assert known.read(path) == first
    assert known.read(tmp_path / "." / path.name) == first
    assert (reads, asked) == ([path.name], [RULES])


def test_a_copy_is_read_and_nobody_is_asked(tmp_path, reads, asked):
    known, path = reader(), network(tmp_path)
    copy = tmp_path / "copy.onnx"
    copy.write_bytes(path.read_bytes())
    assert known.read(copy) == known.read(path)
    assert (reads, asked) == ([copy.name, path.name], [RULES])


def test_sources_are_remembered_apart(tmp_path, asked):
    known, path = reader(tmp_path / "kernels"), network(tmp_path)
    for source in (RUNTIME, RULES, AUTO, RUNTIME, RULES, AUTO):
        assert known.read(path, source).kernels_from == (RUNTIME if source == RUNTIME else RULES)
    assert asked == [RUNTIME, RULES, RULES]


def test_a_change_that_keeps_size_and_time_is_noticed(tmp_path):
    known, path = reader(), network(tmp_path, channels=16)
    first = known.read(path)
    was = path.stat()
    content = network(tmp_path, channels=16, name="other.onnx").read_bytes().replace(b"Relu", b"Tanh")
    assert len(content) == was.st_size
    time.sleep(0.02)  # times of files are counted in thousandths of a second
    path.write_bytes(content)
    os.utime(path, ns=(was.st_atime_ns, was.st_mtime_ns))
    assert path.stat().st_mtime_ns == was.st_mtime_ns
    assert counted(known.read(path)) != counted(first)


def test_a_file_that_was_just_written_is_read_again(tmp_path, reads, monkeypatch):
    monkeypatch.setattr(kernels_module, "_SETTLED_NS", 10**12)
    known, path = reader(), network(tmp_path)
    assert known.read(path) == known.read(path)
    assert len(reads) == 2


def test_weights_files_that_vanish_are_missed_even_if_the_network_is_known(tmp_path):
    path = network(tmp_path, channels=64)
    onnx.save_model(onnx.load(path), path, save_as_external_data=True, location="weights.bin", size_threshold=1024)
    known = reader()
    assert known.read(path) == known.read(path)
    (tmp_path / "weights.bin").write_bytes(b"short")
    with pytest.raises(CorruptFileError, match=r"weights\.bin"):
        known.read(path)
    (tmp_path / "weights.bin").unlink()
    with pytest.raises(MissingFileError, match=r"weights\.bin"):
        known.read(path)


def test_a_later_process_need_not_ask(tmp_path, asked):
    folder, path = tmp_path / "kernels", network(tmp_path)
    first = reader(folder).read(path)
    assert reader(folder).read(path) == first
    assert asked == [RULES]
    (file,) = folder.iterdir()
    assert json.loads(file.read_text())["kernels_from"] == RULES


@pytest.mark.parametrize("content", [b"", b"\x00" * 100, b"{}", b"[1]", b'{"kernels":[],"executed":[[0,"n",[]]]}'])
def test_a_torn_memory_is_replaced(content, tmp_path, asked):
    folder, path = tmp_path / "kernels", network(tmp_path)
    first = reader(folder).read(path)
    (file,) = folder.iterdir()
    whole = file.read_bytes()
    file.write_bytes(content)
    assert reader(folder).read(path) == first
    assert asked == [RULES, RULES]
    assert file.read_bytes() == whole


@pytest.mark.parametrize(
    "change",
    [
        {"version": f"{RUNTIME_VERSION}.2"},
        {"device": replace_isa("avx2")},
        {"target": replace(TARGET, engine_options={"graph_optimization": "extended"})},
        {"target": replace(TARGET, precision="int8")},
        {"target": replace(TARGET, batch=3)},
    ],
)
def test_what_is_remembered_of_other_settings_is_not_taken(change, tmp_path, asked):
    path = tmp_path / "network.onnx"
    path.write_bytes(GRAPHS["inverted_bottleneck"]().SerializeToString())
    reader(tmp_path / "kernels", device=X86).read(path)
    reader(tmp_path / "kernels", **{"device": X86, **change}).read(path)
    assert len(asked) == 2


def test_what_other_rules_said_is_not_taken(tmp_path, asked, monkeypatch):
    path = network(tmp_path)
    reader(tmp_path / "kernels").read(path)
    monkeypatch.setattr(onnxruntime_cpu, "sources_digest", lambda: "other rules")
    reader(tmp_path / "kernels").read(path)
    assert asked == [RULES, RULES]


def test_what_need_not_be_remembered_is_not(tmp_path, reads):
    known, path = reader(tmp_path / "kernels"), network(tmp_path)
    for _ in range(2):
        known.read(path, remember=False)
    assert len(reads) == 2
    assert not (tmp_path / "kernels").exists()


def test_a_place_that_cannot_be_written_does_no_harm(tmp_path):
    (tmp_path / "file").write_text("no folder")
    assert reader(tmp_path / "file" / "kernels").read(network(tmp_path)).kernels_from == RULES


def test_the_oldest_make_room(tmp_path, monkeypatch, reads, asked):
    monkeypatch.setattr(kernels_module, "KEPT_ON_DISK", 3)
    monkeypatch.setattr(kernels_module, "KEPT_IN_MEMORY", 2)
    known = reader(tmp_path / "kernels")
    paths = [network(tmp_path, channels, f"{channels}.onnx") for channels in (8, 16, 24, 32, 40)]
    for path in paths:
        known.read(path)
        time.sleep(0.02)
    assert len(list((tmp_path / "kernels").iterdir())) == 3
    for path in reversed(paths):  # two in memory, one more on the disk, two are asked for again
        known.read(path)
    assert len(reads) == len(paths) + 3
    assert len(asked) == len(paths) + 2
