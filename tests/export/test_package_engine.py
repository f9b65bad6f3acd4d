"""An engine that was built here becomes a bundle with its network, its bench and its runner."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from export_graphs import convnet, saved
from onnx import helper, numpy_helper

from akd_deploy.certificate import certify
from akd_deploy.engines import load_engine
from akd_deploy.errors import CorruptFileError, MismatchError, MissingFileError, UsageError, VerificationError
from akd_deploy.export.load import load_bundle
from akd_deploy.export.package_engine import package_engine
from akd_deploy.export.trusted import record_built
from akd_deploy.export.verify import verify_bundle
from akd_deploy.measurement import Measurement
from akd_deploy.storage import file_sha256
from akd_deploy.target import Target

TARGETS = {name: Target(f"cpu_{name}", "cpu", name) for name in ("onnxruntime", "openvino")}


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("AKD_DEPLOY_HOME", str(tmp_path / "home"))


BLOCKS_S = {block: [1e-3 + 1e-6 * sample for sample in range(50)] for block in range(10)}


def measurement(blocks_s):
    return Measurement(
        "m",
        tuple(sample for samples in blocks_s.values() for sample in samples),
        tuple(block for block, samples in blocks_s.items() for _ in samples),
    )


def build(folder, name="onnxruntime"):
    """The engine file."""
    engine, network = load_engine(TARGETS[name]), saved(convnet(), folder / "net.onnx")
    built = engine.build(network, folder / "built")
    record_built(engine, built, network)
    return built.path


def bench_of(path, name="onnxruntime", **changes):
    """What `bench -o` writes about a file, as far as it is read."""
    engine = load_engine(TARGETS[name])
    told = {
        "sha256": file_sha256(path),
        "target": TARGETS[name].as_dict(),
        "device": dict(engine.fingerprint().facts),
        "engine_version": engine.version(),
        "latency_stats_s": measurement(BLOCKS_S).statistics_s(),
        "blocks": {str(block): samples for block, samples in BLOCKS_S.items()},
        "certificate": certify(measurement(BLOCKS_S).blocks, 4e-3, 90, 0.99).as_dict(),
        "accuracy": None,
        "protocol": {},
    } | changes
    file = path.parent / "bench.json"
    file.write_text(json.dumps(told), encoding="utf-8")
    return file


@pytest.mark.parametrize("name", sorted(TARGETS))
def test_the_bundle_holds_what_was_built_what_it_was_built_from_and_what_was_measured(tmp_path, name):
    engine = build(tmp_path, name)
    source = saved(convnet(seed=2), tmp_path / "float.onnx")
    package_engine(engine, "zip", tmp_path / "b.zip", bench=bench_of(engine, name), source=source)
    manifest = verify_bundle(tmp_path / "b.zip").manifest
    inside = f"engines/cpu_{name}/{engine.name}"
    assert manifest.with_role("engine") == [inside]
    assert (manifest.with_role("onnx"), manifest.with_role("source")) == (["net.onnx"], ["float.onnx"])
    assert manifest.with_role("runner") == ["runner.py"]
    assert manifest.files[inside].sha256 == file_sha256(engine)
    made = manifest.facts.engines[inside]
    assert (made.target, made.network) == (TARGETS[name], "net.onnx")
    assert list(made.parts) == manifest.with_role("engine_part")
    assert manifest.facts.latency == {"measured_s": measurement(BLOCKS_S).statistics_s(), "budget_s": 4e-3}
    assert manifest.facts.certificate["ok"] is True
    package_engine(engine, "dir", tmp_path / "b", bench=bench_of(engine, name))
    kept = json.loads((tmp_path / "b" / "latency_samples.json").read_text(encoding="utf-8"))
    assert kept == {"target": f"cpu_{name}", "blocks_s": {str(block): s for block, s in BLOCKS_S.items()}}
    assert manifest.facts.provenance["network"]["sha256"] == file_sha256(tmp_path / "net.onnx")
    with load_bundle(tmp_path / "b.zip") as loaded:
        assert loaded.fit.differs == loaded.fit.blocks == ()


def test_without_a_bench_nothing_is_claimed(tmp_path):
    package_engine(build(tmp_path), "dir", tmp_path / "b")
    facts = verify_bundle(tmp_path / "b").manifest.facts
    assert (facts.latency, facts.certificate, facts.accuracy, facts.parity) == ({}, None, None, None)


def test_a_triton_model_is_named_after_the_engine(tmp_path):
    package_engine(build(tmp_path), "triton", tmp_path / "models")
    assert (tmp_path / "models" / "net" / "config.pbtxt").is_file()


def test_what_was_not_built_here_is_not_packaged(tmp_path):
    engine = build(tmp_path)
    engine.write_bytes(engine.read_bytes() + b"\0")
    with pytest.raises(VerificationError, match="no record that it was built here"):
        package_engine(engine, "zip", tmp_path / "b.zip")
    (record,) = (tmp_path / "home" / "built_engines").iterdir()
    engine = build(tmp_path)
    record.write_text('{"parts": {}}', encoding="utf-8")
    with pytest.raises(VerificationError, match="a record without its facts"):
        package_engine(engine, "zip", tmp_path / "b.zip")
    assert not (tmp_path / "b.zip").exists()


def test_another_network_in_its_place_is_not_packaged_as_what_it_was_built_from(tmp_path):
    engine = build(tmp_path)
    saved(convnet(seed=3), tmp_path / "net.onnx")
    with pytest.raises(MismatchError, match=r"another one in .*net\.onnx now"):
        package_engine(engine, "zip", tmp_path / "b.zip")
    (tmp_path / "net.onnx").unlink()
    with pytest.raises(MissingFileError, match=r"net\.onnx"):
        package_engine(engine, "zip", tmp_path / "b.zip")


def test_weights_in_files_of_their_own_are_refused(tmp_path):
    import onnx

    network = tmp_path / "net.onnx"
    onnx.save(convnet(), network, save_as_external_data=True, location="net.weights", size_threshold=0)
    engine = load_engine(TARGETS["onnxruntime"])
    built = engine.build(network, tmp_path / "built")
    record_built(engine, built, network)
    with pytest.raises(UsageError, match="Save it as one file"):
        package_engine(built.path, "zip", tmp_path / "b.zip")


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"sha256": "0" * 64}, "another file"),
        ({"target": {}}, "another target"),
        ({"engine_version": "0.1"}, "another engine_version: 0.1"),
    ],
)
def test_a_bench_of_something_else_is_refused(tmp_path, changes, found):
    engine = build(tmp_path)
    with pytest.raises(MismatchError, match=found):
        package_engine(engine, "zip", tmp_path / "b.zip", bench=bench_of(engine, **changes))


@pytest.mark.parametrize(
    ("where", "changes", "found"),
    [
        ("certificate", {"budget_s": 1e-6}, "ok True in its certificate, not False"),
        ("certificate", {"exceeding": 1}, "exceeding 1 in its certificate, not 0"),
        ("certificate", {"failing_share_upper": 0.01}, "failing_share_upper 0.01 in its certificate"),
        ("latency_stats_s", {"median": 1e-9}, "a median of 1e-09, not 0.0010"),
        ("latency_stats_s", {"p99": "fast"}, "a p99 of fast, not"),
    ],
)
def test_a_bench_that_says_what_its_samples_do_not_is_refused(tmp_path, where, changes, found):
    engine = build(tmp_path)
    told = json.loads(bench_of(engine).read_text(encoding="utf-8"))
    with pytest.raises(MismatchError, match=found):
        package_engine(engine, "zip", tmp_path / "b.zip", bench=bench_of(engine, **{where: told[where] | changes}))
    assert not (tmp_path / "b.zip").exists()


def test_a_certificate_of_before_its_bound_on_processes_is_computed_anew(tmp_path):
    engine = build(tmp_path)
    certificate = json.loads(bench_of(engine).read_text(encoding="utf-8"))["certificate"]
    bound = certificate.pop("failing_share_upper")
    package_engine(engine, "zip", tmp_path / "b.zip", bench=bench_of(engine, certificate=certificate))
    assert verify_bundle(tmp_path / "b.zip").manifest.facts.certificate["failing_share_upper"] == bound


@pytest.mark.parametrize(
    ("accuracy", "correct"), [(0.99, [0] * 100), (7.5, ["x"]), (0.5, [1]), (0.75, [1, 0, 1, 2]), ("good", None)]
)
def test_accuracy_that_its_answers_do_not_have_is_refused(tmp_path, accuracy, correct):
    engine = build(tmp_path)
    with pytest.raises(CorruptFileError):
        package_engine(engine, "zip", tmp_path / "b.zip", bench=bench_of(engine, accuracy=accuracy, correct=correct))


def test_what_a_latency_is_of_and_how_calm_it_was_go_along(tmp_path):
    engine = build(tmp_path)
    protocol = {"boundary": "end-to-end", "idle_s": 0.01, "seconds": 0.1}
    bench = bench_of(engine, protocol=protocol, disturbed=2, remeasured=5)
    package_engine(engine, "zip", tmp_path / "b.zip", bench=bench)
    latency = verify_bundle(tmp_path / "b.zip").manifest.facts.latency
    told = {key: latency[key] for key in ("boundary", "idle_s", "disturbed", "remeasured")}
    assert told == {"boundary": "end-to-end", "idle_s": 0.01, "disturbed": 2, "remeasured": 5}


def test_statistics_that_nobody_knows_do_not_go_along(tmp_path):
    engine = build(tmp_path)
    stated = measurement(BLOCKS_S).statistics_s() | {"p9999": 1e-9}
    package_engine(engine, "zip", tmp_path / "b.zip", bench=bench_of(engine, latency_stats_s=stated))
    latency = verify_bundle(tmp_path / "b.zip").manifest.facts.latency
    assert latency["measured_s"] == measurement(BLOCKS_S).statistics_s()


def test_accuracy_that_was_measured_beside_goes_along(tmp_path):
    engine = build(tmp_path)
    package_engine(engine, "zip", tmp_path / "b.zip", bench=bench_of(engine, accuracy=0.75, correct=[1, 0, 1, 1]))
    assert verify_bundle(tmp_path / "b.zip").manifest.facts.accuracy == {"test": 0.75, "images": 4}


def test_a_source_of_another_network_is_refused(tmp_path):
    engine = build(tmp_path)
    other = convnet(classes=3)
    other.graph.output[0].type.tensor_type.shape.dim.add().dim_value = 1
    other.graph.node[-1].output[0] = "deep"
    other.graph.node.append(helper.make_node("Unsqueeze", ["deep", "last"], ["logits"], "unsqueeze"))
    other.graph.initializer.append(numpy_helper.from_array(np.array([2], np.int64), "last"))
    other = saved(other, tmp_path / "other.onnx")
    with pytest.raises(MismatchError, match=r"as what net\.onnx was made from"):
        package_engine(engine, "zip", tmp_path / "b.zip", source=other)


def test_a_source_of_open_batch_is_the_source_of_a_variant_of_fixed_batch(tmp_path):
    engine = build(tmp_path)
    source = convnet(seed=2)
    for value in (*source.graph.input, *source.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
    package_engine(engine, "zip", tmp_path / "b.zip", source=saved(source, tmp_path / "open.onnx"))


@pytest.mark.parametrize(
    ("name", "inside"), [("my net.onnx", "my_net.onnx"), ("aux.onnx", "_aux.onnx"), (".größe.onnx", "_gr__e.onnx")]
)
def test_names_that_a_bundle_may_not_have_become_others_and_what_is_inside_still_loads(tmp_path, name, inside):
    engine = load_engine(TARGETS["onnxruntime"])
    network = saved(convnet(), tmp_path / name)
    built = engine.build(network, tmp_path / "built")
    record_built(engine, built, network)
    (tmp_path / "before").mkdir()
    source = saved(convnet(seed=2), tmp_path / "before" / name)
    package_engine(built.path, "zip", tmp_path / "b.zip", source=source)
    manifest = verify_bundle(tmp_path / "b.zip").manifest
    assert manifest.with_role("engine") == [f"engines/cpu_onnxruntime/{inside}"]
    assert (manifest.with_role("onnx"), manifest.with_role("source")) == ([inside], [f"source_{inside}"])
    with load_bundle(tmp_path / "b.zip") as loaded:
        assert loaded.fit.blocks == ()


def test_a_source_may_be_called_as_the_folder_of_engines_is(tmp_path):
    source = saved(convnet(seed=2), tmp_path / "engines")
    package_engine(build(tmp_path), "zip", tmp_path / "b.zip", source=source)
    assert verify_bundle(tmp_path / "b.zip").manifest.with_role("source") == ["source_engines"]


def test_of_a_torch_archive_no_file_is_the_source(tmp_path):
    path = tmp_path / "net.pt2"
    torch.export.save(torch.export.export(torch.nn.Linear(3, 2), (torch.zeros(1, 3),)), path)
    engine = load_engine(Target("cpu_torch", "cpu", "torch"))
    built = engine.build(path, tmp_path / "built")
    record_built(engine, built, path)
    with pytest.raises(UsageError, match=r"made from a module.*without --source"):
        package_engine(built.path, "zip", tmp_path / "b.zip", source=saved(convnet(), tmp_path / "net.onnx"))


def test_a_file_that_is_no_bench_is_refused(tmp_path):
    engine, bench = build(tmp_path), tmp_path / "bench.json"
    for text in ("", "[]", "{}", json.dumps({"latency_stats_s": {}})):
        bench.write_text(text, encoding="utf-8")
        with pytest.raises(CorruptFileError, match="something else"):
            package_engine(engine, "zip", tmp_path / "b.zip", bench=bench)
    with pytest.raises(CorruptFileError, match="no objects"):
        package_engine(engine, "zip", tmp_path / "b.zip", bench=bench_of(engine, device=[]))
    with pytest.raises(MissingFileError):
        package_engine(engine, "zip", tmp_path / "b.zip", bench=tmp_path / "gone.json")


def test_a_plan_for_other_gpus_is_packaged_with_what_it_is_for_and_is_not_loaded_without_one(tmp_path):
    """Built by TensorRT-RTX, which needs no GPU to build."""
    pytest.importorskip("tensorrt_rtx")
    from akd_deploy.errors import MissingRuntimeError

    target = Target("rtx", "rtx", "tensorrt-rtx", engine_options={"compute_capabilities": ("sm89",)})
    engine, network = load_engine(target), saved(convnet(), tmp_path / "net.onnx")
    built = engine.build(network, tmp_path / "built")
    record_built(engine, built, network)
    package_engine(built.path, "zip", tmp_path / "b.zip")
    manifest = verify_bundle(tmp_path / "b.zip").manifest
    made = manifest.facts.engines["engines/rtx/net.plan"]
    assert (made.device, made.compute_capabilities) == (None, ("sm89",))
    assert made.engine_version == engine.version()
    assert made.precision == built.precision
    assert set(made.memory or {}) <= {"activation_bytes", "weights_bytes"}
    assert manifest.with_role("runner") == ["runner.py"]
    if engine.why_not() is not None:
        with pytest.raises(MissingRuntimeError):
            load_bundle(tmp_path / "b.zip", trust=True)
