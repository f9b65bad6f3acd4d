"""The runner in a bundle computes what the engine computes, with the engine's settings, and needs nothing of ours."""

from __future__ import annotations

import ctypes
import json
import math
import os
import subprocess
import sys
from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import onnx
import pytest
from bundles import bytes_of, facts, write_keys
from export_graphs import convnet, saved
from onnx import TensorProto, helper, numpy_helper

from akd_deploy.engines import load_engine
from akd_deploy.errors import UsageError
from akd_deploy.export.bundle import BundleFile, GeneratedFile, write_bundle
from akd_deploy.export.engine_facts import EngineFacts
from akd_deploy.export.manifest import Manifest
from akd_deploy.export.package import package_bundle
from akd_deploy.export.runner import RUNNER_NAME, has_runner, runner_source
from akd_deploy.export.verify import verify_bundle
from akd_deploy.target import Target

ORT = Target("cpu ort", "cpu", "onnxruntime", engine_options={"threads": 1})
OPENVINO = Target("cpu openvino", "cpu", "openvino", engine_options={"threads": 1})
TARGETS = {"onnxruntime": ORT, "openvino": OPENVINO}
X = np.random.default_rng(5).standard_normal((1, 3, 8, 8)).astype(np.float32)


def write_runnable(folder: Path, target: Target, model: onnx.ModelProto | None = None) -> Path:
    """A bundle of an engine that was really built, with its runner."""
    engine = load_engine(target)
    source = saved(convnet() if model is None else model, folder / "net.onnx")
    built = engine.build(source, folder / "built")
    inside = {f"engines/t/{path.name}": path for path in built.files}
    name, *parts = inside
    made = EngineFacts(
        target, built.engine_version, "net.onnx", tuple(parts), engine.fingerprint().facts, None, built.precision, None
    )
    files = [BundleFile("net.onnx", source, "onnx")]
    files += [BundleFile(n, path, "engine" if n == name else "engine_part") for n, path in inside.items()]
    write_bundle(
        folder / "bundle",
        files,
        facts(target.engine, target=target, engines={name: made}),
        generated=[GeneratedFile(RUNNER_NAME, "runner", runner_source)],
    )
    return folder / "bundle"


def source_for(target: Target, measured: Mapping | None = None, name: str = "e/net.engine") -> str:
    """The text for an engine that nobody has built."""
    from akd_deploy.export.manifest import FileEntry

    made = EngineFacts(target, "10.13.0", None, (), {"model": "GPU"}, ("sm87",), {}, None)
    manifest = Manifest({name: FileEntry("a" * 64, 1, "engine")}, facts(target=target, engines={name: made}))
    return runner_source(manifest)


def module_of(text: str, name: str = "runner") -> ModuleType:
    """The runner, imported."""
    module = ModuleType(name)
    module.__file__ = "/nowhere/runner.py"
    exec(compile(text, "runner.py", "exec"), module.__dict__)
    return module


def in_a_fresh_process(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Python in another process, away from this project."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH" and not k.startswith("COV")}
    command = [sys.executable, "-B", *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("engine", sorted(TARGETS))
def test_a_runner_gives_the_engines_outputs_in_a_process_of_its_own(tmp_path, engine):
    bundle = write_runnable(tmp_path, TARGETS[engine])
    (tmp_path / "elsewhere").mkdir()
    np.savez(tmp_path / "x.npz", x=X)
    code = f"""
import sys
sys.modules["akd_deploy"] = sys.modules["onnx"] = sys.modules["torch"] = None  # importing them fails
sys.path.insert(0, {str(bundle)!r})
import numpy as np
from runner import Runner
runner = Runner()
outputs = runner.run(dict(np.load({str(tmp_path / "x.npz")!r})))
assert [(name, shape, dtype) for name, shape, dtype in runner.inputs] == [("x", (1, 3, 8, 8), "float32")]
runner.bind(dict(np.load({str(tmp_path / "x.npz")!r})))()
np.savez({str(tmp_path / "y.npz")!r}, **outputs)
"""
    done = in_a_fresh_process(tmp_path / "elsewhere", "-c", code)
    assert done.returncode == 0, done.stderr
    with load_engine(TARGETS[engine]).load(bundle / "engines" / "t" / f"net{load_engine(TARGETS[engine]).suffix}") as s:
        expected = s.run({"x": X})
    found = np.load(tmp_path / "y.npz")
    assert set(found) == set(expected)
    np.testing.assert_array_equal(found["logits"], expected["logits"])


@pytest.mark.parametrize("engine", sorted(TARGETS))
def test_a_runner_prints_percentiles_of_single_calls(tmp_path, engine):
    bundle = write_runnable(tmp_path, TARGETS[engine])
    done = in_a_fresh_process(bundle, "runner.py", "--seconds", "0.01", "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert 0 < told["latency_s"]["median"] <= told["latency_s"]["p90"] <= told["latency_s"]["p99"] < 1
    assert told["samples"] >= 100
    assert told["version"] == load_engine(TARGETS[engine]).version()
    assert told["measured"]["latency_s"] == {"median": 1.5e-3, "p90": 1.75e-3, "p99": 2e-3}
    words = in_a_fresh_process(bundle, "runner.py", "--seconds", "0.01").stdout
    assert "when measured: 1.75 ms" in words
    assert verify_bundle(bundle).ok  # nothing was written beside it


@pytest.mark.parametrize("engine", sorted(TARGETS))
def test_a_runner_loads_no_file_that_was_changed(tmp_path, engine):
    bundle = write_runnable(tmp_path, TARGETS[engine])
    ((name, made),) = verify_bundle(bundle).manifest.facts.engines.items()
    for file in (name, *made.parts):
        original = (bundle / file).read_bytes()
        middle = len(original) // 2
        (bundle / file).write_bytes(original[:middle] + bytes([original[middle] ^ 1]) + original[middle + 1 :])
        done = in_a_fresh_process(bundle, "runner.py", "--seconds", "0.01")
        assert done.returncode != 0
        assert f"{file} is not the file that was packaged" in done.stderr
        (bundle / file).write_bytes(original)


class SwappedAfterTheCheck:
    """A runner whose bundle somebody writes to the moment that it has been checked."""

    def __init__(self, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.module = module_of((bundle / RUNNER_NAME).read_text(encoding="utf-8"))
        check = self.module.checked_files

        def checked_files(folder):
            content = check(folder)
            for name in content:
                (folder / name).write_bytes(bytes(len(content[name])))
            return content

        monkeypatch.setattr(self.module, "checked_files", checked_files)
        self.runner = self.module.Runner(bundle)


def in_files(model: onnx.ModelProto, path: Path) -> onnx.ModelProto:
    """The model with its weights beside it, in a folder of their own."""
    (path.parent / "weights").mkdir()
    onnx.save(model, str(path), save_as_external_data=True, location="weights/all.bin", size_threshold=0)
    return onnx.load(str(path), load_external_data=False)


def with_branches(path: Path) -> onnx.ModelProto:
    """A network whose weights belong to graphs within a node: y = x + 1 or x - 1."""
    weights = numpy_helper.from_array(np.ones((1, 3, 8, 8), np.float32), "w")
    branches = {
        name: helper.make_graph(
            [helper.make_node(op, ["x", "w"], [name])],
            name,
            [],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 3, 8, 8])],
            [weights],
        )
        for name, op in (("then_branch", "Add"), ("else_branch", "Sub"))
    }
    graph = helper.make_graph(
        [helper.make_node("ReduceMax", ["x"], ["top"], keepdims=0), helper.make_node("Cast", ["top"], ["some"], to=9),
         helper.make_node("If", ["some"], ["y"], **branches)],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 3, 8, 8])],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return in_files(model, path)


def runnable_with_files(folder: Path, model: onnx.ModelProto) -> Path:
    """The bundle of a network for ONNX Runtime whose weights lie in files beside `folder`/net.onnx."""
    source = saved(model, folder / "net.onnx")
    weights = "engines/t/weights/all.bin"
    made = EngineFacts(ORT, "1.31", "net.onnx", (weights,), {"model": "CPU"}, None, {}, None)
    files = [
        BundleFile("net.onnx", source, "onnx"),
        BundleFile("engines/t/net.onnx", source, "engine"),
        BundleFile(weights, folder / "weights" / "all.bin", "engine_part"),
    ]
    written = facts("onnxruntime", target=ORT, engines={"engines/t/net.onnx": made})
    write_bundle(folder / "bundle", files, written, generated=[GeneratedFile(RUNNER_NAME, "runner", runner_source)])
    return folder / "bundle"


@pytest.mark.parametrize("make", [lambda path: in_files(convnet(), path), with_branches], ids=["weights", "branches"])
def test_what_a_runner_has_checked_is_what_onnxruntime_gets(tmp_path, monkeypatch, make):
    model = make(tmp_path / "net.onnx")
    name = model.graph.output[0].name
    bundle = runnable_with_files(tmp_path, model)
    with load_engine(ORT).load(bundle / "engines" / "t" / "net.onnx") as session:
        expected = session.run({"x": X})[name]
    assert np.abs(expected).max() > 0
    swapped = SwappedAfterTheCheck(bundle, monkeypatch)
    assert not any((bundle / "engines" / "t" / "weights" / "all.bin").read_bytes())
    np.testing.assert_array_equal(swapped.runner.run({"x": X})[name], expected)
    np.testing.assert_array_equal(swapped.runner.run({"x": X})[name], expected)


@pytest.mark.parametrize("engine", sorted(TARGETS))
def test_what_a_runner_has_checked_is_what_the_runtime_gets(tmp_path, monkeypatch, engine):
    bundle = write_runnable(tmp_path, TARGETS[engine])
    with load_engine(TARGETS[engine]).load(bundle / "engines" / "t" / f"net{load_engine(TARGETS[engine]).suffix}") as s:
        expected = s.run({"x": X})["logits"]
    np.testing.assert_array_equal(SwappedAfterTheCheck(bundle, monkeypatch).runner.run({"x": X})["logits"], expected)


# --- the settings are the engine's own -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("precision", "options"),
    [
        ("fp32", {}),
        ("fp32", {"threads": 3, "graph_optimization": "extended", "spinning": False}),
        ("int8", {"threads": 2, "graph_optimization": "basic"}),
        ("fp32", {"graph_optimization": "disabled", "denormal_as_zero": True}),
    ],
)
def test_session_options_of_onnxruntime_are_the_engines(precision, options):
    target = Target("t", "cpu", "onnxruntime", precision, engine_options=options)
    ours, theirs = load_engine(target)._session_options(), module_of(source_for(target)).session_options()
    entries = list(load_engine(target).session_settings()["entries"])
    assert "session.intra_op.allow_spinning" in entries
    names = [n for n in dir(ours) if not n.startswith("_") and not callable(getattr(ours, n))]
    assert {"graph_optimization_level", "intra_op_num_threads", "inter_op_num_threads", "execution_mode"} <= set(names)
    assert {n: getattr(theirs, n) for n in names} == {n: getattr(ours, n) for n in names}
    assert [theirs.get_session_config_entry(e) for e in entries] == [ours.get_session_config_entry(e) for e in entries]


@pytest.mark.parametrize(("provider", "precision"), [("cuda", "fp16"), ("cuda", "tf32"), ("tensorrt", "fp16")])
def test_providers_of_onnxruntime_are_the_engines(monkeypatch, provider, precision):
    import onnxruntime

    asked = []

    class Asked(Exception):  # noqa: N818
        pass

    def create(model, options, providers, enable_fallback):
        asked.append((providers, enable_fallback))
        raise Asked

    monkeypatch.setattr(onnxruntime, "InferenceSession", create)
    target = Target("t", "gpu", "onnxruntime", precision, engine_options={"provider": provider})
    module = module_of(source_for(target))
    monkeypatch.setattr(module, "checked_files", lambda folder: {module.MODEL: b""})
    with pytest.raises(Asked):
        module.Runner()
    engine = load_engine(target)
    with pytest.raises(Asked):
        engine._session(convnet(), Path("m.onnx"), engine._session_options())
    assert asked[0] == asked[1]


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8", "fp16"])
def test_settings_of_openvino_are_the_engines(monkeypatch, tmp_path, precision):
    import openvino

    given = []
    compile_model = openvino.Core.compile_model

    def spying(self, model, device, config):
        given.append((device, config))
        return compile_model(self, model, device, config)

    target = Target("t", "cpu", "openvino", precision, engine_options={"threads": 1, "pinning": False})
    model = saved(convnet(), tmp_path / "net.onnx")
    monkeypatch.setattr(openvino.Core, "compile_model", spying)
    load_engine(target).load(model).close()
    module = module_of(source_for(target, name="e/net.onnx"))
    monkeypatch.setattr(module, "checked_files", lambda folder: {module.MODEL: model.read_bytes()})
    module.Runner()
    assert len(given) == 2
    assert given[0] == given[1]


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_the_measuring_process_is_bound_to_the_cpus_of_the_benchs(monkeypatch, capsys, threads):
    from akd_deploy.profiling.blocks import pinned_cpus

    target = Target("t", "cpu", "openvino", engine_options={"threads": threads})
    module, bound = module_of(source_for(target)), []
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 2, 5, 7})
    monkeypatch.setattr(os, "sched_setaffinity", lambda pid, cpus: bound.append(cpus))
    monkeypatch.setattr(module, "Runner", lambda: SimpleNamespace(inputs=[], bind=lambda feeds: lambda: None))
    monkeypatch.setattr(sys, "argv", ["runner.py", "--seconds", "0.001"])
    module.main()
    assert bound == [pinned_cpus(target)]
    assert "median" in capsys.readouterr().out


def test_the_percentiles_are_those_of_a_measurement(monkeypatch, capsys):
    from akd_deploy.measurement import Measurement

    module = module_of(source_for(ORT))
    samples = [i * 1e-3 for i in range(1, 102)]
    monkeypatch.setattr(os, "sched_setaffinity", lambda pid, cpus: None)
    monkeypatch.setattr(module, "Runner", lambda: SimpleNamespace(inputs=[], bind=lambda feeds: lambda: None))
    monkeypatch.setattr(module, "warm_up", lambda call, seconds: 1)
    monkeypatch.setattr(module, "time_calls", lambda call, seconds, min_samples: samples)
    monkeypatch.setattr(sys, "argv", ["runner.py", "--json"])
    module.main()
    told = json.loads(capsys.readouterr().out)
    assert told["latency_s"] == Measurement("m", tuple(samples), (0,) * 101).statistics_s()
    assert told["latency_s"]["p90"] == pytest.approx(91e-3)


def test_a_process_that_measures_a_gpu_is_bound_to_no_cpu():
    gpu = Target("t", "gpu", "onnxruntime", engine_options={"provider": "cuda"})
    assert module_of(source_for(gpu)).CPUS == 0


def test_the_timing_loop_is_the_benchs(monkeypatch):
    """Same source, so same samples from the same clock."""
    from akd_deploy.engines import base

    module = module_of(source_for(ORT))

    def timed(functions):
        ticks = iter(range(10_000))
        monkeypatch.setattr(functions.time, "perf_counter", lambda: next(ticks) * 1e-3)
        calls = functions.warm_up(lambda: None, 0.05)
        return calls, functions.time_calls(lambda: None, seconds=0.05, min_samples=7)

    assert timed(module) == timed(base)


# --- what a network may look like ------------------------------------------------------------------------------


def test_a_network_for_any_batch_runs_at_the_batch_that_was_measured(tmp_path):
    model = convnet()
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "N"
    target = Target("t", "cpu", "onnxruntime", batch=2)
    bundle = write_runnable(tmp_path, target, model)
    code = (
        f"import sys; sys.path.insert(0, {str(bundle)!r}); import numpy as np; from runner import Runner; r = Runner();"
        "print(r.inputs[0][1], r.run({'x': np.zeros((2, 3, 8, 8), np.float32)})['logits'].shape)"
    )
    done = in_a_fresh_process(tmp_path, "-c", code)
    assert done.stdout == "(2, 3, 8, 8) (2, 10)\n", done.stderr


def test_feeds_that_do_not_fit_are_refused(tmp_path):
    module = module_of(source_for(ORT))
    inputs = [("x", (1, 2), "float32")]
    for feeds in ({}, {"x": np.zeros((1, 2))}, {"x": np.zeros((2, 2), np.float32)}, {"x": X, "y": X}):
        with pytest.raises(ValueError, match="x"):
            module.checked_feeds(inputs, feeds)


def test_names_in_a_manifest_are_text_in_the_runner_and_nothing_else():
    """A target or a file cannot be called so that the runner does something else."""
    evil = '"); raise SystemExit("evil") #\n"""\nraise SystemExit("evil")\n'
    module = module_of(source_for(Target(evil, "cpu", "onnxruntime")))
    assert evil == module.TARGET


# --- in a bundle -----------------------------------------------------------------------------------------------


def test_the_same_bundle_has_the_same_runner_and_it_is_covered_by_the_signature(tmp_path):
    written = []
    for name in "ab":
        (tmp_path / name).mkdir()
        bundle = write_runnable(tmp_path / name, ORT)
        written.append((bundle / RUNNER_NAME).read_bytes())
        assert verify_bundle(bundle).manifest.files[RUNNER_NAME].role == "runner"
    assert written[0] == written[1]
    private, public = write_keys(tmp_path)
    package_bundle(tmp_path / "a" / "bundle", "zip", tmp_path / "b.zip", key=private)
    assert verify_bundle(tmp_path / "b.zip", key=public).authentic
    (tmp_path / "a" / "bundle" / RUNNER_NAME).write_text("import os", encoding="utf-8")
    assert f"{RUNNER_NAME}: " in " ".join(verify_bundle(tmp_path / "a" / "bundle").problems)


def test_a_server_gets_no_runner(tmp_path):
    package_bundle(write_runnable(tmp_path, ORT), "triton", tmp_path / "models", model_name="net")
    assert not any(RUNNER_NAME in name for name in bytes_of(tmp_path / "models"))


def test_torch_has_no_runner_and_says_so():
    target = Target("t", "cpu", "torch")
    assert not has_runner(target)
    with pytest.raises(UsageError, match="engine 'torch'"):
        source_for(target)


# --- TensorRT, on a runtime and a driver made of this process's memory -------------------------------------------


class FakeContext:
    def __init__(self) -> None:
        self.addresses: dict[str, int] = {}
        self.shape: tuple[int, ...] = ()

    def set_input_shape(self, name, shape) -> bool:
        self.shape = shape
        return True

    def infer_shapes(self) -> list[str]:
        return []

    def get_tensor_shape(self, name):
        return self.shape

    def set_tensor_address(self, name, address) -> bool:
        self.addresses[name] = address
        return True

    def execute_async_v3(self, stream) -> bool:
        x, y = (ctypes.cast(self.addresses[n], ctypes.POINTER(ctypes.c_float)) for n in "xy")
        for i in range(math.prod(self.shape)):
            y[i] = 2 * x[i] + 1
        return True


def fake_tensorrt(module: str) -> tuple[ModuleType, list[bytes]]:
    """Engines compute y = 2 x + 1 on float32 of shape (batch, 3); the plans they were made of are kept."""
    trt, plans = ModuleType(module), []
    mode = Enum("TensorIOMode", "INPUT OUTPUT")

    class Runtime:
        engine_host_code_allowed = True

        def __init__(self, log) -> None:
            trt.runtime = self

        def deserialize_cuda_engine(self, plan):
            plans.append(plan)
            return SimpleNamespace(
                num_io_tensors=2,
                get_tensor_name=lambda i: "xy"[i],
                get_tensor_mode=lambda n: mode.INPUT if n == "x" else mode.OUTPUT,
                get_tensor_shape=lambda n: (-1, 3),
                get_tensor_dtype=lambda n: "FLOAT",
                create_execution_context=FakeContext,
            )

    trt.__version__, trt.TensorIOMode, trt.Runtime = "10.13.0", mode, Runtime
    trt.nptype = lambda dtype: {"FLOAT": np.float32}[dtype]
    trt.Logger = lambda severity: None
    trt.Logger.ERROR = 0
    return trt, plans


class FakeDriver:
    """`libcuda` on the host: allocations are ctypes buffers; synchronisations are counted."""

    def __init__(self, name: str) -> None:
        assert name == "libcuda.so.1"
        self.buffers: list = []
        self.waits = 0

    def __getattr__(self, name):
        def call(*arguments) -> int:
            if name == "cuMemAlloc_v2":
                self.buffers.append(ctypes.create_string_buffer(arguments[1].value))
                arguments[0]._obj.value = ctypes.addressof(self.buffers[-1])
            elif name in ("cuMemcpyHtoD_v2", "cuMemcpyDtoH_v2"):
                ctypes.memmove(arguments[0].value, arguments[1].value, arguments[2].value)
            elif name == "cuStreamSynchronize":
                self.waits += 1
            else:
                assert name in ("cuInit", "cuDeviceGet", "cuDevicePrimaryCtxRetain", "cuCtxSetCurrent",
                                "cuStreamCreate", "cuCtxSynchronize"), name  # fmt: skip
            return 0

        return call


@pytest.mark.parametrize("engine", ["tensorrt", "tensorrt-rtx"])
def test_a_runner_of_tensorrt_runs_its_plan(monkeypatch, engine):
    name = engine.replace("-", "_")
    trt, plans = fake_tensorrt(name)
    monkeypatch.setitem(sys.modules, name, trt)
    monkeypatch.setattr(ctypes, "CDLL", FakeDriver)
    target = Target("orin", "orin", engine, "fp16", batch=2, engine_options={"compute_capabilities": ("sm87",)})
    module = module_of(source_for(target))
    monkeypatch.setattr(module, "checked_files", lambda folder: {module.MODEL: b"plan"})
    runner = module.Runner()
    assert (runner.inputs, runner.outputs) == ([("x", (2, 3), "float32")], [("y", (2, 3), "float32")])
    assert plans == [b"plan"]
    assert trt.runtime.engine_host_code_allowed is False
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    np.testing.assert_array_equal(runner.run({"x": x})["y"], 2 * x + 1)
    call = runner.bind({"x": x})
    before = runner._cuda._library.waits
    call()
    assert runner._cuda._library.waits == before + 1


def test_a_plan_that_was_changed_never_reaches_tensorrt(monkeypatch, tmp_path):
    trt, plans = fake_tensorrt("tensorrt")
    monkeypatch.setitem(sys.modules, "tensorrt", trt)
    module = module_of(source_for(Target("orin", "orin", "tensorrt")))
    (tmp_path / "e").mkdir()
    (tmp_path / "e" / "net.engine").write_bytes(b"plan")
    with pytest.raises(RuntimeError, match="is not the file that was packaged"):
        module.Runner(tmp_path)
    assert plans == []


def test_errors_of_the_driver_are_raised(monkeypatch):
    trt, _ = fake_tensorrt("tensorrt")
    monkeypatch.setitem(sys.modules, "tensorrt", trt)
    module = module_of(source_for(Target("orin", "orin", "tensorrt")))
    monkeypatch.setattr(ctypes, "CDLL", lambda name: SimpleNamespace(cuInit=lambda flags: 100))
    with pytest.raises(RuntimeError, match="cuInit failed with CUDA error 100"):
        module.Cuda()
