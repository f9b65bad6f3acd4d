"""`akd-deploy predict`: who says what a network executes, on a table that is written here."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from command_line import TARGET, Answer, call
from engines.engine_graphs import GRAPHS, Graph

from akd_deploy.device import cpu_fingerprint
from akd_deploy.engines import load_engine
from akd_deploy.engines.onnxruntime_engine import OnnxRuntimeEngine
from akd_deploy.fusion.onnxruntime_cpu import RUNTIME_VERSION, why_not
from akd_deploy.kernel import Kernel
from akd_deploy.latency_table import PROBE, LatencyTable, TableHeader, TableRow, write_table
from akd_deploy.measurement import Measurement
from akd_deploy.pipeline.kernels import KernelReader
from akd_deploy.target import load_target

if why_not(f"{RUNTIME_VERSION}.0", cpu_fingerprint()) is not None:
    pytest.skip("needs an x86 CPU", allow_module_level=True)

PROBES = 24


def known_network(folder: Path) -> Path:
    path = folder / "known.onnx"
    path.write_bytes(GRAPHS["inverted_bottleneck"]().SerializeToString())
    return path


def refused_network(folder: Path) -> Path:
    """With an operator that the runtime has and the rules do not know."""
    graph = Graph()
    path = folder / "refused.onnx"
    y = graph("QuickGelu", "x", domain="com.microsoft")
    path.write_bytes(graph.model({"x": [1, 8]}, [graph("Relu", y)]).SerializeToString())
    return path


def row(number: int, kernels: Sequence[Kernel], rng: np.random.Generator) -> TableRow:
    counts = {kernel: 1 + number % 3 for kernel in kernels}
    seconds = 1e-6 + sum(n * (1e-6 + 1e-10 * kernel.traffic_bytes) for kernel, n in counts.items())
    samples = tuple((seconds * rng.normal(1, 0.01, 6)).tolist())
    return TableRow(PROBE, "f", tuple(counts.items()), Measurement(f"p{number}", samples, (0, 0, 1, 1, 2, 2)))


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of probes of the kernels of both networks."""
    folder = tmp_path_factory.mktemp("table")
    target = load_target(TARGET)
    engine = load_engine(target)
    reader = KernelReader(engine, cpu_fingerprint(), engine.version())
    kernels = list(
        dict.fromkeys(
            executed.kernel
            for network in (known_network(folder), refused_network(folder))
            for executed in reader.read(network).executed
        )
    )
    rng = np.random.default_rng(0)
    rows = [row(i, [kernels[i % len(kernels)], kernels[(3 * i + 1) % len(kernels)]], rng) for i in range(PROBES)]
    header = TableHeader(target, cpu_fingerprint(), engine.version(), {"seconds": 0.01}, "2026-01-01T00:00:00+00:00")
    write_table(LatencyTable(header, tuple(rows)), folder / "table")
    return folder / "table"


def predict(folder: Path, table: Path, network: Path, *more: object) -> Answer:
    return call(folder, "predict", "--target", TARGET, "--table", table, "--onnx", network, *more)


def test_predict_says_who_said_what_is_executed(tmp_path: Path, table: Path) -> None:
    network = known_network(tmp_path)
    found = {
        source: predict(tmp_path, table, network, "--json", "--kernels", source).data
        for source in ("auto", "rules", "runtime")
    }
    assert [data["kernels_from"] for data in found.values()] == ["rules", "rules", "runtime"]
    assert len({data["latency_s"] for data in found.values()}) == 1
    assert len({str(data["layers"]) for data in found.values()}) == 1
    assert predict(tmp_path, table, network).stdout.rstrip().endswith("kernels from the rules")


def test_the_runtime_answers_for_what_rules_refuse(tmp_path: Path, table: Path) -> None:
    network = refused_network(tmp_path)
    assert predict(tmp_path, table, network, "--json").data["kernels_from"] == "runtime"
    answer = predict(tmp_path, table, network, "--json", "--kernels", "rules")
    assert (answer.code, answer.error["kind"]) == (2, "usage")
    assert "QuickGelu" in answer.error["found"]


def test_an_unknown_source_is_refused_with_the_known_ones(tmp_path: Path, table: Path) -> None:
    answer = predict(tmp_path, table, known_network(tmp_path), "--json", "--kernels", "guess")
    assert (answer.code, answer.error["kind"]) == (2, "unknown_name")
    assert "auto, rules, runtime" in answer.error["next"]


def test_a_file_that_was_predicted_once_needs_nobody_asked_again(
    tmp_path: Path, table: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = known_network(tmp_path)
    first = predict(tmp_path, table, network, "--json", "--kernels", "runtime").data
    monkeypatch.setattr(OnnxRuntimeEngine, "executed_kernels", None)
    assert predict(tmp_path, table, network, "--json", "--kernels", "runtime").data == first
    assert len(list((tmp_path / "home" / "kernels").iterdir())) == 1


def test_a_network_without_the_values_of_its_weights_is_predicted_too(tmp_path: Path, table: Path) -> None:
    network = known_network(tmp_path)
    whole = predict(tmp_path, table, network, "--json").data
    model = onnx.load(network)
    for tensor in model.graph.initializer:
        if len(tensor.dims) > 1:
            tensor.ClearField("raw_data")
    network.write_bytes(model.SerializeToString())
    assert predict(tmp_path, table, network, "--json").data == whole


def test_predict_works_without_the_runtime_where_rules_do(
    tmp_path: Path, table: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxruntime" else real(name))
    assert predict(tmp_path, table, known_network(tmp_path), "--json").data["kernels_from"] == "rules"
    answer = predict(tmp_path, table, refused_network(tmp_path), "--json")
    assert (answer.code, answer.error["kind"]) == (5, "missing_runtime")
    assert "not installed" in answer.error["found"]
    assert "QuickGelu" in answer.error["found"]
