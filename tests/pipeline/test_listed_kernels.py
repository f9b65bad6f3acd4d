"""Kernels that a profile is planned with are those of the CPU it will be measured on."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
from engines.engine_graphs import Graph

from akd_deploy.device import DeviceFingerprint
from akd_deploy.engines import load_engine
from akd_deploy.fusion import openvino_cpu
from akd_deploy.pipeline.listing import Lister
from akd_deploy.target import Target

TARGET = Target("t", "cpu", "openvino", engine_options={"pinning": False})
WIDE = "avx2 avx512f avx512_bf16 amx_bf16"


@pytest.fixture
def asked(monkeypatch):
    """Whether the engine was asked; it answers that nothing runs."""
    calls = []
    engine = type(load_engine(TARGET))
    monkeypatch.setattr(engine, "version", lambda self: f"{openvino_cpu.RUNTIME_VERSION}.0")
    monkeypatch.setattr(engine, "executed_kernels", lambda self, path: calls.append(path.name) or ())
    return calls


def on_cpu(monkeypatch, isa: str, target: Target = TARGET) -> Lister:
    device = DeviceFingerprint({"kind": "cpu", "machine": "x86_64", "isa": isa})
    monkeypatch.setattr(type(load_engine(target)), "fingerprint", lambda self: device)
    return Lister(target)


def pooled(op: str = "MaxPool"):
    graph = Graph()
    y = graph("MaxPool", "x", kernel_shape=[2, 2]) if op == "MaxPool" else graph(op, "x")
    return graph.model({"x": [1, 3, 8, 8]}, [y])


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_rules_say_it_where_they_were_compared_with_such_a_cpu(precision, asked, monkeypatch):
    found = on_cpu(monkeypatch, WIDE, replace(TARGET, precision=precision))(pooled())
    assert found == Counter(e.kernel for e in openvino_cpu.kernels_of(pooled(), precision, isa=WIDE.split()))
    assert found
    assert not asked


@pytest.mark.parametrize(
    ("isa", "change"),
    [
        ("avx2", {}),
        ("", {}),
        ("avx2 avx512f", {"precision": "bf16"}),
        (WIDE, {"precision": "int8"}),
        (WIDE, {"engine_options": {"threads": openvino_cpu.MOST_THREADS + 1}}),
    ],
)
def test_the_engine_says_it_where_rules_were_not_compared_with_such_a_cpu(isa, change, asked, monkeypatch):
    assert not on_cpu(monkeypatch, isa, replace(TARGET, **change))(pooled())
    assert asked == ["model.onnx"]


def test_the_engine_says_it_where_rules_refuse(asked, monkeypatch):
    assert not on_cpu(monkeypatch, WIDE)(pooled("Selu"))
    assert asked == ["model.onnx"]
