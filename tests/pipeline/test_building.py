"""Engines that read no ONNX get what they build; a variant is built as what it is typed to be."""

from __future__ import annotations

import importlib.util
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from engines.engine_graphs import GRAPHS

from akd_deploy.engines import load_engine
from akd_deploy.engines.tensorrt_engine import TensorRtEngine, TensorRtRtxEngine
from akd_deploy.errors import BuildError, MissingRuntimeError
from akd_deploy.export.quantize import quantize_onnx
from akd_deploy.measurement import Measurement
from akd_deploy.pipeline import benching, building, quantizing
from akd_deploy.pipeline.typed import isa_of, typed_network
from akd_deploy.profiling.blocks import Measured
from akd_deploy.target import Target

RTX = Target("rtx", "rtx", "tensorrt-rtx", "fp16")  # of its default cards, one has no fp8
CPU = Target("t", "cpu", "onnxruntime")
needs_rtx = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None, reason="the Python package tensorrt_rtx is not installed"
)


@pytest.fixture
def network(tmp_path):
    path = tmp_path / "m.onnx"
    model = GRAPHS["residual"]()
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    onnx.save(model, path)
    return path


@pytest.fixture
def without_gpu(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))


def feeds(count=4):
    rng = np.random.default_rng(0)
    return [{"x": rng.standard_normal((1, 3, 16, 16), dtype=np.float32)} for _ in range(count)]


def test_an_engine_that_loads_models_is_given_the_file_itself(network, tmp_path):
    assert load_engine(CPU).loadable(network, tmp_path / "out") == network
    assert not (tmp_path / "out").exists()


@needs_rtx
def test_an_engine_that_loads_plans_is_given_the_plan_it_builds_and_a_plan_as_it_is(network, tmp_path):
    engine = load_engine(Target("rtx", "rtx", "tensorrt-rtx"))
    plan = engine.loadable(network, tmp_path / "out")
    assert (plan.suffix, plan.is_file()) == (".plan", True)
    assert engine.loadable(plan, tmp_path / "again") == plan


@pytest.mark.parametrize("mode", ["fp16", "bf16", "int8", "fp8"])
def test_the_precision_of_a_variant_is_read_from_its_tensors(network, tmp_path, mode):
    variant = quantize_onnx(network, mode, feeds(), tmp_path / "v.onnx").path
    assert building.precision_of(variant, 1) == mode
    assert building.target_as_typed(RTX, variant).precision == mode
    assert building.target_as_typed(CPU, variant) is CPU


def test_a_float32_network_is_built_in_the_kind_of_float32_that_the_target_asks_for(network):
    assert building.precision_of(network, 1) == "fp32"
    assert building.target_as_typed(RTX, network).precision == "fp32"
    tf32 = Target("rtx", "rtx", "tensorrt-rtx", "tf32")
    assert building.target_as_typed(tf32, network) is tf32


def on_a_machine_with_a_card(monkeypatch):
    """Everything but the card itself: what would run there is asked for, and recorded."""
    monkeypatch.setattr(TensorRtEngine, "why_not", lambda self: None)
    monkeypatch.setattr(
        TensorRtEngine, "fingerprint", lambda self: SimpleNamespace(facts={"kind": "gpu", "compute_capability": "7.0"})
    )
    measured = []

    def blocks(target, models, protocol, rng, on_model=None):
        for path in models.values():
            assert path.suffix == ".plan"
            measured.append(path.read_bytes())
        samples = tuple(1e-3 + 1e-6 * i for i in range(60))
        return {name: Measured(Measurement(name, samples, tuple(range(10)) * 6), 0, 0) for name in models}

    monkeypatch.setattr(benching, "measure_blocks", blocks)
    monkeypatch.setattr(quantizing, "measure_blocks", blocks)
    return measured


@needs_rtx
def test_bench_of_onnx_files_measures_their_plans(network, tmp_path, monkeypatch):
    measured = on_a_machine_with_a_card(monkeypatch)
    fp16 = quantize_onnx(network, "fp16", [], tmp_path / "fp16.onnx").path
    settings = benching.BenchSettings(benching.bench_protocol(6, 0.1, 0.0, "host"))
    rng = np.random.default_rng(0)
    benching.bench_models(RTX, fp16, fp16, settings, rng, lambda *_: None)
    assert len(measured) == 2
    with pytest.raises(BuildError, match="float32"):  # a latency of the other precision would be a lie
        benching.bench_models(RTX, network, None, settings, rng, lambda *_: None)


@needs_rtx
def test_auto_measures_and_scores_the_plan_of_every_variant_and_keeps_it(network, tmp_path, monkeypatch):
    measured = on_a_machine_with_a_card(monkeypatch)
    loaded = []

    class Session:
        def __enter__(self):
            return self

        def __exit__(self, *exc):
            pass

        def run(self, feeds):
            return {"y": np.eye(10)[:1]}

    monkeypatch.setattr(TensorRtRtxEngine, "load", lambda self, path: loaded.append(path.name) or Session())
    monkeypatch.setattr(quantizing, "CALIBRATION_SAMPLES", 2)
    images = np.random.default_rng(0).standard_normal((8, 3, 16, 16), dtype=np.float32)
    np.savez(tmp_path / "samples.npz", x=images, labels=np.zeros(8, np.int64))
    arguments = (RTX, "auto", tmp_path / "out", None, tmp_path / "samples.npz", np.random.default_rng(0))
    data = quantizing.quantize_measured(network, *arguments, lambda *_: None)
    rows = {row["mode"]: row for row in data["variants"]}
    built = {name for name, row in rows.items() if row["path"] is not None}
    assert {"fp32", "fp16", "bf16", "int8"} <= built
    assert "fp8" in rows["fp8"]["why"]  # refused by the build, which is no reason to measure nothing
    assert len(measured) == len(set(measured)) == len(built)
    kept = {path.name for path in (tmp_path / "out").glob("*.plan")}
    source = network.with_suffix(".plan").name
    assert set(loaded) == {*kept, source, "trial.plan"}  # int8 is tried before it is kept


def test_a_gpu_that_is_not_here_has_no_cpu_instructions_and_stops_no_typing(network, without_gpu):
    assert isa_of(RTX) == []
    assert isa_of(CPU)
    assert building.precision_of(typed_network(network, RTX), 1) == "fp16"
    with pytest.raises(MissingRuntimeError):
        load_engine(RTX).fingerprint()


@pytest.mark.parametrize(
    ("precision", "refused"), [("fp32", False), ("tf32", False), ("fp16", True), ("int8", True), ("bf16", True)]
)
def test_an_engine_that_hides_its_kernels_is_audited_by_what_the_network_is_typed_as(network, precision, refused):
    def build(path, folder):
        raise BuildError(asked="kernels", found="one compiled node", next="Use another engine.")

    target = Target("t", "gpu", "onnxruntime", precision)
    engine = SimpleNamespace(loads_models=True, target=target, build=build)
    if refused:
        with pytest.raises(BuildError, match="a network typed fp32"):
            building.audit_precision(engine, network)
    else:
        building.audit_precision(engine, network)


@pytest.mark.parametrize(("precision", "refused"), [("bf16", True), ("fp32", False), ("tf32", False)])
def test_an_engine_built_for_another_precision_is_none_of_the_target(tmp_path, monkeypatch, precision, refused):
    monkeypatch.setattr(building, "built_record", lambda path: {"facts": {"made": precision}})
    made = SimpleNamespace(target=SimpleNamespace(precision=precision))
    monkeypatch.setattr(building, "engine_facts_from_dict", lambda facts, where: made)
    engine = SimpleNamespace(loads_models=True, target=Target("t", "cpu", "openvino"))
    (tmp_path / "e.xml").write_bytes(b"")
    if refused:
        with pytest.raises(BuildError, match="an engine that was built for a target of bf16"):
            building.audit_precision(engine, tmp_path / "e.xml")
    else:
        building.audit_precision(engine, tmp_path / "e.xml")


def test_a_built_engine_is_audited_no_more(network, tmp_path):
    def build(path, folder):
        raise AssertionError

    engine = SimpleNamespace(loads_models=False, target=RTX, build=build)
    building.audit_precision(engine, network)
    building.audit_precision(SimpleNamespace(loads_models=True, target=CPU, build=build), tmp_path / "e.pt2")
