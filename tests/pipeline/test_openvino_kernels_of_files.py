"""Kernels of a file for OpenVINO: by its rules where they were tested, the same as the runtime's, without it too."""

from __future__ import annotations

import importlib.util
from collections import Counter
from dataclasses import replace

import numpy as np
import onnx
import pytest
from engines.engine_graphs import Graph
from fusion.fusion_networks import skeleton

from akd_deploy.device import DeviceFingerprint, cpu_fingerprint
from akd_deploy.engines import load_engine
from akd_deploy.errors import MissingRuntimeError, UsageError
from akd_deploy.fusion import openvino_cpu
from akd_deploy.pipeline import kernels as kernels_module
from akd_deploy.pipeline.kernels import AUTO, RULES, RUNTIME, KernelReader
from akd_deploy.target import Target

OPTIONS = {"threads": 1, "pinning": False}
TARGET = Target("t", "cpu", "openvino", engine_options=OPTIONS)
VERSION = f"{openvino_cpu.RUNTIME_VERSION}.1"
ISAS = {
    "avx2": "avx2 fma",
    "avx512": "avx2 avx512f fma",
    "bf16": "avx2 avx512f avx512_bf16 fma",
    "amx": "avx2 avx512f avx512_bf16 amx_int8 amx_bf16 fma",
}
DEVICES = {
    name: DeviceFingerprint({"kind": "cpu", "machine": "x86_64", "isa": isa}) for name, isa in ISAS.items()
}  # fmt: skip
HERE = cpu_fingerprint()
IS_HERE = importlib.util.find_spec("openvino") is not None and "avx512f" in HERE.facts["isa"].split()
needs_runtime = pytest.mark.skipif(not IS_HERE, reason="needs OpenVINO on a CPU with AVX-512")


@pytest.fixture(autouse=True)
def settled(monkeypatch):
    """Files count as written long ago."""
    monkeypatch.setattr(kernels_module, "_SETTLED_NS", 0)


@pytest.fixture
def no_runtime(monkeypatch):
    """As if OpenVINO were not installed."""
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "openvino" else real(name))


def reader(folder=None, target: Target = TARGET, device: DeviceFingerprint = DEVICES["amx"], version: str = VERSION):
    return KernelReader(load_engine(target), device, version, folder)


def network(folder, channels: int = 16, bias: float = 1.0):
    """Two convolutions, the second with a bias that is the same number for every channel."""
    graph = Graph()
    y = graph("Relu", graph.conv("x", 3, channels, 3))
    weight, shift = graph.weight(channels, channels, 1, 1), graph.constant(np.full(channels, bias, np.float32))
    y = graph("Relu", graph("Conv", y, weight, shift, kernel_shape=[1, 1]))
    path = folder / "network.onnx"
    path.write_bytes(graph.model({"x": [1, 3, 8, 8]}, [y]).SerializeToString())
    return path


def refused(folder):
    graph = Graph()
    path = folder / "refused.onnx"
    path.write_bytes(graph.model({"x": [1, 8]}, [graph("Selu", "x")]).SerializeToString())
    return path


def counted(found):
    return Counter((e.kernel, e.nodes) for e in found.executed)


def inputs(found):
    return [e.kernel.inputs for e in found.executed if e.kernel.op == "Convolution"]


# --- without the runtime --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("device", sorted(DEVICES))
def test_without_the_runtime_kernels_come_from_rules(device, tmp_path, no_runtime):
    found = reader(device=DEVICES[device]).read(network(tmp_path))
    assert found.kernels_from == RULES
    assert [e.kernel.op for e in found.executed] == ["Reorder", "Convolution", "Convolution", "Reorder"]


@needs_runtime
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", ["mobilenet_v3_small", "bert_tiny"])
def test_with_the_runtime_hidden_the_same_kernels_come_out(name, precision, tmp_path, monkeypatch):
    if precision == "bf16" and "avx512_bf16" not in HERE.facts["isa"].split():
        pytest.skip("needs a CPU with bfloat16")
    path = tmp_path / "network.onnx"
    rng = np.random.default_rng(0)
    model = skeleton(name)
    for tensor in model.graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT and not tensor.raw_data and not tensor.float_data:
            tensor.raw_data = rng.standard_normal(tuple(tensor.dims)).astype(np.float32).tobytes()
    path.write_bytes(model.SerializeToString())
    target = replace(TARGET, precision=precision)
    by_runtime = reader(target=target, device=HERE).read(path, RUNTIME)
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "openvino" else real(name))
    by_rules = reader(target=target, device=HERE).read(path)
    assert (by_runtime.kernels_from, by_rules.kernels_from) == (RUNTIME, RULES)
    assert counted(by_rules) == counted(by_runtime)


def test_what_rules_refuse_without_the_runtime_says_both_reasons(tmp_path, no_runtime):
    with pytest.raises(MissingRuntimeError, match=r"not installed.*Selu.*pip install"):
        reader().read(refused(tmp_path))
    with pytest.raises(MissingRuntimeError, match=r"not installed.*not of 2025\.1"):
        reader(version="2025.1.0").read(network(tmp_path))
    with pytest.raises(MissingRuntimeError, match="not installed"):
        reader().read(network(tmp_path), RUNTIME)


# --- who is asked ---------------------------------------------------------------------------------------------------


@pytest.fixture
def asked(monkeypatch, tmp_path):
    """Who was asked, in order; the runtime answers as the rules for AVX-512 do."""
    calls = []
    rules, engine = openvino_cpu.kernels_of, type(load_engine(TARGET))
    answer = rules(onnx.load(network(tmp_path)))
    monkeypatch.setattr(engine, "why_not", lambda self: None)
    monkeypatch.setattr(engine, "executed_kernels", lambda self, path: calls.append(RUNTIME) or answer)
    monkeypatch.setattr(openvino_cpu, "kernels_of", lambda *args, **more: calls.append(RULES) or rules(*args, **more))
    return calls


def test_rules_are_asked_first_and_the_runtime_where_they_refuse(tmp_path, asked):
    assert reader().read(network(tmp_path)).kernels_from == RULES
    assert reader().read(refused(tmp_path)).kernels_from == RUNTIME
    assert asked == [RULES, RULES, RUNTIME]


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"version": "2026.5.0"}, r"not of 2026\.5\.0"),
        ({"version": "2026.40"}, r"not of 2026\.40"),
        ({"device": DeviceFingerprint({"machine": "aarch64", "isa": "asimd"})}, "not of aarch64"),
        ({"device": DeviceFingerprint({"machine": "x86_64", "isa": "fma"})}, "AVX2"),
        ({"device": DeviceFingerprint({"machine": "x86_64"})}, "which instructions"),
        ({"device": DEVICES["avx512"], "target": replace(TARGET, precision="bf16")}, "without avx512_bf16"),
        ({"target": replace(TARGET, precision="int8")}, "not for int8"),
        ({"target": replace(TARGET, engine_options={"threads": 8})}, "not 8"),
    ],
)
def test_rules_that_do_not_hold_leave_the_word_to_the_runtime(change, why, tmp_path, asked):
    known, path = reader(**change), network(tmp_path)
    assert known.read(path).kernels_from == RUNTIME
    assert asked[-1] == RUNTIME
    with pytest.raises(UsageError, match=why):
        known.read(path, RULES)


def test_on_a_cpu_that_was_only_emulated_the_runtime_is_asked_if_it_is_here(tmp_path, asked, monkeypatch):
    known, path = reader(device=DEVICES["avx2"]), network(tmp_path)
    assert known.read(path).kernels_from == RUNTIME
    assert asked == [RUNTIME]
    monkeypatch.setattr(type(known.engine), "why_not", lambda self: "the package openvino is not installed")
    assert known.read(path).kernels_from == RULES


# --- values that decide ---------------------------------------------------------------------------------------------


@needs_runtime
@pytest.mark.parametrize("external", [False, True])
@pytest.mark.parametrize(("channels", "bias"), [(16, 0.0), (512, 0.0), (1040, 0.0), (1040, 1.0)])
def test_a_bias_of_zeros_is_left_out_however_many_there_are(channels, bias, external, tmp_path):
    path = network(tmp_path, channels, bias)
    if external:
        model = onnx.load(path)
        onnx.save_model(model, path, save_as_external_data=True, location="weights.bin", size_threshold=64)
    by_rules, by_runtime = (reader(device=HERE).read(path, source) for source in (RULES, RUNTIME))
    assert counted(by_rules) == counted(by_runtime)
    assert len(inputs(by_rules)[1]) == (2 if bias == 0 else 3)


def test_a_bias_that_becomes_zero_in_a_weights_file_is_noticed(tmp_path):
    path, known = network(tmp_path, 512), reader(tmp_path / "kernels")
    onnx.save_model(onnx.load(path), path, save_as_external_data=True, location="weights.bin", size_threshold=64)
    weights = tmp_path / "weights.bin"
    first = known.read(path, AUTO)
    weights.write_bytes(weights.read_bytes().replace(np.ones(512, np.float32).tobytes(), bytes(2048)))
    assert len(inputs(first)[1]) == 3
    assert len(inputs(known.read(path, AUTO))[1]) == 2


# --- what is remembered ---------------------------------------------------------------------------------------------


def test_what_rules_say_is_remembered_and_what_the_runtime_says_is_not(tmp_path, asked):
    path = network(tmp_path)
    for source in (RULES, RUNTIME, AUTO):
        for _ in range(2):
            reader(tmp_path / "kernels").read(path, source)
    assert asked == [RULES, RUNTIME, RUNTIME, RULES]


def test_what_is_remembered_of_another_cpu_or_engine_is_not_taken(tmp_path):
    folder, path = tmp_path / "kernels", network(tmp_path)
    onnxruntime = KernelReader(load_engine(Target("t", "cpu", "onnxruntime")), DEVICES["amx"], "1.31.1", folder)
    found = [
        reader(folder, device=DEVICES["avx2"]).read(path, RULES),
        reader(folder).read(path, RULES),
        reader(folder, replace(TARGET, precision="bf16")).read(path, RULES),
        onnxruntime.read(path, RULES),
    ]
    assert len(list(folder.iterdir())) == len(found)
    assert counted(found[1]) != counted(found[2]) != counted(found[3])
