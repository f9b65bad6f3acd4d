"""TensorRT sessions and builds on a GPU, on a stand-in for its module in the shapes of 10.x and 11.x."""

from __future__ import annotations

import hashlib
import json
import sys
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
import torch
from engine_graphs import Graph
from fake_tensorrt import CountingStream, FakeContext, FakeTensorRt

from akd_deploy.device import DeviceFingerprint
from akd_deploy.engines import tensorrt_timing
from akd_deploy.engines.base import random_feeds
from akd_deploy.engines.tensorrt_engine import TensorRtEngine
from akd_deploy.engines.tensorrt_session import TensorRtSession
from akd_deploy.errors import (
    AkdError,
    BuildError,
    CorruptFileError,
    MismatchError,
    MissingFileError,
    MissingRuntimeError,
    UsageError,
)
from akd_deploy.profiling.worker import measure_model
from akd_deploy.storage import exclusive_lock
from akd_deploy.target import Target


def fake_session(trt: FakeTensorRt, stream: CountingStream | None = None, plan: bytes = b"plan") -> TensorRtSession:
    return TensorRtSession(trt, plan, "m.plan", 2, device="cpu", stream=stream or CountingStream())


X = np.arange(6, dtype=np.float32).reshape(2, 3)


def test_session_runs_on_its_own_buffers_and_resolves_the_batch():
    trt = FakeTensorRt()
    with fake_session(trt) as session:
        assert [(s.name, s.shape, s.dtype) for s in session.inputs] == [("x", (2, 3), "float32")]
        first = session.run({"x": X})
        session.run({"x": X + 1})
        np.testing.assert_array_equal(first["y"], 2 * X + 1)
    assert trt.runtimes[0].engine_host_code_allowed is False


def test_bound_call_waits_for_the_stream_every_time():
    stream = CountingStream()
    with fake_session(FakeTensorRt(), stream) as session:
        call = session.bind({"x": X})
        assert call() is None
        call()
        np.testing.assert_array_equal(session.bound_outputs()["y"], 2 * X + 1)
    assert stream.waits == 2


def test_feeds_that_do_not_fit_are_refused():
    with fake_session(FakeTensorRt()) as session, pytest.raises(UsageError, match="x"):
        session.run({"x": X.astype(np.float64)})


def test_plan_of_another_version_is_refused_with_tensorrts_reason():
    with pytest.raises(MismatchError, match=r"m\.plan.*Version tag does not match"):
        fake_session(FakeTensorRt(), plan=b"other")


def test_empty_plan_is_corrupt_and_never_reaches_tensorrt():
    trt = FakeTensorRt()
    with pytest.raises(CorruptFileError, match="empty"):
        fake_session(trt, plan=b"")
    assert trt.runtimes == []


def test_failed_inference_is_an_error_and_no_old_result():
    with fake_session(FakeTensorRt(fails=True)) as session, pytest.raises(AkdError, match="one inference"):
        session.run({"x": X})


def test_inputs_whose_shapes_stay_open_are_named():
    with pytest.raises(AkdError, match="inputs without a shape: lengths"):
        fake_session(FakeTensorRt(unresolved=("lengths",)))


def test_bfloat16_inputs_are_refused_since_numpy_has_none():
    with pytest.raises(MismatchError, match="bfloat16"):
        fake_session(FakeTensorRt(dtype="BF16"))


# --- parts of an inference ----------------------------------------------------------------------------------------


class StreamOfWork:
    """A GPU's stream on this CPU: what is asked of the device takes its time there, and events are moments of it.

    A copy takes 1 ms and an inference 5; the host gets through at once. `done` is what was asked in which stream.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_ms, self.current, self.done = 0.0, "default", []
        work, copy_ = self, torch.Tensor.copy_

        class Event:
            def __init__(self, enable_timing: bool) -> None:
                assert enable_timing

            def record(self) -> None:
                self.at_ms = work.now_ms
                work.done.append(("event", work.current))

            def synchronize(self) -> None:
                work.done.append(("wait", work.current))

            def elapsed_time(self, end: Event) -> float:
                return end.at_ms - self.at_ms

        @contextmanager
        def stream(one):
            before, work.current = work.current, one
            yield
            work.current = before

        def copy(to, source, non_blocking=False):
            if non_blocking:
                work.ask("copy", 1.0)
                assert to.is_pinned_here or source.is_pinned_here  # from pageable memory the host would wait
            return copy_(to, source)

        def pinned(tensor):
            tensor.is_pinned_here = True
            return tensor

        monkeypatch.setattr(torch.Tensor, "is_pinned_here", False, raising=False)
        monkeypatch.setattr(torch.Tensor, "pin_memory", pinned)
        monkeypatch.setattr(torch.Tensor, "copy_", copy)
        monkeypatch.setattr(torch.cuda, "Event", Event)
        monkeypatch.setattr(torch.cuda, "stream", stream)

    def ask(self, what: str, takes_ms: float, stream: object = None) -> None:
        self.now_ms += takes_ms
        self.done.append((what, self.current if stream is None else stream))


@pytest.fixture
def work(monkeypatch) -> StreamOfWork:
    made = StreamOfWork(monkeypatch)
    execute = FakeContext.execute_async_v3

    def execute_async_v3(context, handle):
        made.ask("execute", 5.0, handle)
        return execute(context, handle)

    monkeypatch.setattr(FakeContext, "execute_async_v3", execute_async_v3)
    return made


def test_the_parts_of_an_inference_are_timed_on_the_stream_that_computes(work):
    stream = CountingStream()
    with fake_session(FakeTensorRt(), stream) as session:
        call = session.timings({"x": X})
        session.bind({"x": 0 * X})()  # what lies on the device is not what is sent
        work.done.clear()
        for _ in range(2):
            timings = call()
        assert timings.h2d_s == pytest.approx(1e-3)
        assert timings.compute_s == pytest.approx(5e-3)
        assert timings.d2h_s == pytest.approx(1e-3)
        assert 0 < timings.enqueue_s < timings.end_to_end_s < 1e-1  # by the host's clock
        np.testing.assert_array_equal(session.bound_outputs()["y"], 2 * X + 1)
    one = [("event", stream), ("copy", stream), ("event", stream), ("execute", stream.cuda_stream), ("event", stream),
           ("copy", stream), ("event", stream), ("wait", stream)]  # fmt: skip
    assert work.done == one * 2
    assert work.current == "default"


def test_parts_are_timed_at_the_shapes_of_the_feeds_and_wrong_ones_are_refused(work):
    with fake_session(FakeTensorRt(profiles=TWO_PROFILES)) as session:
        assert session.timings({"x": batch(16)})().compute_s == pytest.approx(5e-3)
        np.testing.assert_array_equal(session.bound_outputs()["y"], 2 * batch(16) + 1)
        with pytest.raises(UsageError, match="x"):
            session.timings({"x": batch(17)})


def test_a_failed_inference_has_no_parts(work):
    with fake_session(FakeTensorRt(fails=True)) as session, pytest.raises(AkdError, match="one inference"):
        session.timings({"x": X})()


@pytest.mark.parametrize(
    ("boundary", "parts"), [("host", set()), ("gpu", {"compute_s", "h2d_s"}), ("end-to-end", {"d2h_s", "enqueue_s"})]
)
def test_each_boundary_of_a_bench_is_what_it_is_called(work, boundary, parts):
    """Through the measuring process's own code: the device's time for "gpu", and the host's for the others."""
    protocol = {"warmup_s": 0.0, "seconds": 0.0, "min_samples": 3, "max_samples": 3, "boundary": boundary}
    loader = SimpleNamespace(load=lambda path: fake_session(FakeTensorRt()))
    timed = measure_model(loader, Path("m.plan"), protocol, np.random.default_rng(0))
    assert parts <= timed.parts_s.keys()
    assert bool(parts) == bool(timed.parts_s)
    assert (timed.samples_s == pytest.approx([5e-3] * 3)) == (boundary == "gpu")
    calls = [what for what, _ in work.done if what in ("copy", "execute")]
    copied = ["execute"] if boundary == "host" else ["copy", "execute", "copy"]
    assert calls == copied * (len(calls) // len(copied))


@pytest.mark.gpu
def test_the_parts_of_an_inference_on_a_gpu_lie_within_the_whole(network, tmp_path):
    one = engine()
    if one.why_not() is not None:
        pytest.skip(one.why_not())
    with one.load(one.build(network, tmp_path / "out").path) as session:
        call = session.timings(random_feeds(session, np.random.default_rng(0)))
        for _ in range(20):
            timings = call()
    assert 0 < timings.h2d_s + timings.compute_s + timings.d2h_s <= 1.05 * timings.end_to_end_s
    assert 0 < timings.enqueue_s < timings.end_to_end_s


# --- shapes, memory, layers ---------------------------------------------------------------------------------------

TWO_PROFILES = (((1, 3), (2, 3), (4, 3)), ((4, 3), (8, 3), (16, 3)))


def batch(n: int) -> np.ndarray:
    return np.arange(3 * n, dtype=np.float32).reshape(n, 3)


def test_shapes_follow_what_is_fed_and_the_profile_that_fits_it():
    trt = FakeTensorRt(profiles=TWO_PROFILES)
    with fake_session(trt) as session:
        for n in (2, 1, 16, 5, 2):
            np.testing.assert_array_equal(session.run({"x": batch(n)})["y"], 2 * batch(n) + 1)
            assert session.inputs[0].shape == session.outputs[0].shape == (n, 3)
    told = [call for call in trt.contexts[0].calls if call.startswith("profile")]
    assert told == ["profile 1", "profile 0"]


def test_a_shape_that_is_set_is_not_set_again():
    trt = FakeTensorRt(profiles=TWO_PROFILES)
    with fake_session(trt) as session:
        session.run({"x": batch(3)})
        call = session.bind({"x": batch(3)})
        call()
    assert [c for c in trt.contexts[0].calls if c.startswith("shape")] == ["shape (2, 3)", "shape (3, 3)"]


def test_a_shape_outside_every_profile_is_refused_with_what_they_hold():
    with fake_session(FakeTensorRt(profiles=TWO_PROFILES)) as session:
        with pytest.raises(UsageError, match=r"x of 17x3 in m\.plan.*1x3,2x3,4x3.*4x3,8x3,16x3"):
            session.run({"x": batch(17)})
        with pytest.raises(UsageError, match="x"):
            session.run({})
        with pytest.raises(UsageError, match="x"):
            session.run({"x": np.zeros((2, 3, 1), np.float32)})


def test_a_session_starts_at_the_targets_batch_where_its_first_profile_holds_it():
    for profiles, first in ((TWO_PROFILES, 2), (TWO_PROFILES[1:], 8)):
        with fake_session(FakeTensorRt(profiles=profiles)) as session:
            assert session.inputs[0].shape == (first, 3)


def test_an_engine_of_fixed_shapes_asks_for_no_profile():
    with fake_session(FakeTensorRt(batch=2, profiles=())) as session:
        session.run({"x": batch(2)})
        with pytest.raises(UsageError, match="x"):
            session.run({"x": batch(3)})


@pytest.mark.parametrize(("version", "size"), [("10.13.0", 4096), ("11.2.0", 8192)])
def test_the_memory_of_a_context_is_asked_under_the_name_the_version_has_for_it(version, size):
    with fake_session(FakeTensorRt(version)) as session:
        assert session.device_memory_bytes == size


def test_layers_are_timed_in_a_run_of_their_own_which_later_calls_do_not_pay_for():
    trt = FakeTensorRt()
    with fake_session(trt) as session:
        assert session.layer_times_s({"x": X}) == (("double", 0.00025), ("add one", 0.0005))
        assert trt.contexts[0].enqueue_emits_profile is False
        np.testing.assert_array_equal(session.run({"x": X})["y"], 2 * X + 1)


def test_a_closed_session_says_so():
    session = fake_session(FakeTensorRt())
    session.close()
    session.close()
    with pytest.raises(AkdError, match="closed"):
        session.run({"x": X})


# --- builds on a GPU ----------------------------------------------------------------------------------------------


@pytest.fixture
def network(tmp_path) -> Path:
    g = Graph()
    onnx.save(g.model({"x": ["N", 3, 4, 4]}, [g("Relu", g.conv("x", 3, 2, 3))]), tmp_path / "m.onnx")
    return tmp_path / "m.onnx"


@pytest.fixture
def on_a_gpu(monkeypatch):
    """Makes `trt` the module `tensorrt` of a machine with a card that torch sees."""

    def install(trt: FakeTensorRt, driver: str = "580.1") -> FakeTensorRt:
        facts = {"model": "H100", "compute_capability": "9.0", "driver": driver}
        monkeypatch.setitem(sys.modules, "tensorrt", trt)
        monkeypatch.setattr("akd_deploy.engines.tensorrt_engine.why_no_gpu", lambda: None)
        monkeypatch.setattr("akd_deploy.engines.tensorrt_engine.gpu_fingerprint", lambda: DeviceFingerprint(facts))
        monkeypatch.setattr("torch.cuda.is_available", lambda: True)
        monkeypatch.setattr("torch.cuda.Stream", CountingStream)
        return trt

    return install


def engine(precision: str = "fp32", **options: object) -> TensorRtEngine:
    return TensorRtEngine(Target("t", "gpu", "tensorrt", precision, 1, engine_options=options))


@pytest.mark.parametrize(("version", "device_bytes", "flags"), [("10.12.0", 4096, 0b11), ("11.4.0", 8192, 0b1)])
def test_a_build_is_strongly_typed_and_tells_memory_and_kernels_of_the_loaded_engine(
    on_a_gpu, network, tmp_path, version, device_bytes, flags
):
    trt = on_a_gpu(FakeTensorRt(version))
    seen = []
    built = engine().build(network, tmp_path / "out", on_progress=lambda phase, done: seen.append((phase, done)))
    assert trt.network_flags == [flags]
    memory = {"activation_bytes": 640, "weights_bytes": 160, "device_bytes": device_bytes}
    assert built.details["memory"] == memory
    assert built.details["compute_capabilities"] == ["sm90"]
    assert built.engine_version == version
    assert {kernel["op"] for kernel in built.details["kernels"]} & {"CaskConvolution", "correlation"}
    assert ("Building engine", 1.0) in seen
    assert all(runtime.engine_host_code_allowed is False for runtime in trt.runtimes)


def test_kernels_that_the_inspector_shows_in_another_precision_fail_the_build(on_a_gpu, network, tmp_path):
    """The network is typed fp32, and so is its log's silence; what was built computes its convolution in fp16."""
    on_a_gpu(FakeTensorRt("11.0.1"))
    model = onnx.load(network)
    model.graph.node[0].name = "stem"  # as the golden inspector's text calls it
    onnx.save(model, network)
    with pytest.raises(BuildError, match=r"float16 \(stem"):
        engine().build(network, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_versions_before_strong_typing_are_refused(on_a_gpu, network, tmp_path):
    on_a_gpu(FakeTensorRt("10.11.0"))
    with pytest.raises(MissingRuntimeError, match=r"10\.11\.0, older than 10\.12"):
        engine().build(network, tmp_path / "out")


def test_an_option_whose_flag_the_version_lacks_is_refused_and_is_no_matter_when_left_out(on_a_gpu, network, tmp_path):
    on_a_gpu(FakeTensorRt(flags="REFIT TF32"))
    with pytest.raises(UsageError, match=r"SPARSE_WEIGHTS.*tensorrt 11\.0\.1 without it"):
        engine(sparse_weights=True).build(network, tmp_path / "out")
    engine(refit=True).build(network, tmp_path / "out")


@pytest.mark.parametrize("version", ["10.12.0", "11.4.0"])
def test_options_reach_the_builder(on_a_gpu, network, tmp_path, version):
    trt = on_a_gpu(FakeTensorRt(version))
    engine().build(network, tmp_path / "a")
    options = {"sparse_weights": True, "refit": True, "version_compatible": True, "workspace_mib": 3}
    engine("tf32", builder_optimization_level=5, **options).build(network, tmp_path / "b")
    plain, all_on = trt.configs
    assert plain.on == set()
    assert {flag.name for flag in all_on.on} == {"SPARSE_WEIGHTS", "REFIT", "VERSION_COMPATIBLE", "TF32"}
    assert all_on.pools == {"WORKSPACE": 3 << 20}
    assert plain.pools == {}
    assert (plain.builder_optimization_level, all_on.builder_optimization_level) == (3, 5)
    assert plain.avg_timing_iterations == 8


def test_what_was_built_is_loaded_and_other_files_are_not(on_a_gpu, network, tmp_path, monkeypatch):
    on_a_gpu(FakeTensorRt())
    built = engine().build(network, tmp_path / "out")
    with pytest.raises(UsageError, match="Build the model"):
        engine().load(network)
    with pytest.raises(MissingFileError, match="nowhere"):
        engine().load(tmp_path / "nowhere.plan")
    loads = []
    monkeypatch.setattr("akd_deploy.engines.tensorrt_engine.TensorRtSession", lambda *a, **k: loads.append((a, k)))
    engine().load(built.path)
    assert loads[0][0][1] == b"plan"


def test_profiles_reach_the_builder_with_the_fixed_inputs(on_a_gpu, network, tmp_path):
    trt = on_a_gpu(FakeTensorRt())
    shapes = ("x:1x3x4x4,2x3x4x4,4x3x4x4", "x:8x3x4x4")
    built = engine(shapes=shapes).build(network, tmp_path / "out")
    assert [profile.shapes for profile in trt.configs[0].profiles] == [
        {"x": ((1, 3, 4, 4), (2, 3, 4, 4), (4, 3, 4, 4))},
        {"x": ((8, 3, 4, 4),) * 3},
    ]
    assert built.details["profiles"][0] == {"x": "1x3x4x4,2x3x4x4,4x3x4x4"}


# --- timing caches ------------------------------------------------------------------------------------------------


def test_a_timing_cache_is_shared_by_builds_that_time_the_same_and_told_with_its_hash(on_a_gpu, network, tmp_path):
    trt = on_a_gpu(FakeTensorRt())
    folder = str(tmp_path / "cache")
    first = engine(timing_cache=folder).build(network, tmp_path / "a")
    second = engine(timing_cache=folder).build(network, tmp_path / "b")
    engine(timing_cache=folder, builder_optimization_level=5).build(network, tmp_path / "c")
    assert [len(config.timed) for config in trt.configs] == [2, 0, 2]
    told = first.details["timing_cache"]
    assert told == second.details["timing_cache"]
    assert told["sha256"] == hashlib.sha256(Path(told["path"]).read_bytes()).hexdigest()
    assert len(list((tmp_path / "cache").glob("*.timing"))) == 2


def test_another_gpu_driver_version_or_flag_has_another_cache_and_another_network_has_not(on_a_gpu):
    paths = set()
    for version, driver, options in (
        ("11.0.1", "1", {}),
        ("11.0.2", "1", {}),
        ("11.0.1", "2", {}),
        ("11.0.1", "1", {"sparse_weights": True}),
        ("11.0.1", "1", {"workspace_mib": 1}),
        ("11.0.1", "1", {"shapes": ("x:1",)}),
    ):
        on_a_gpu(FakeTensorRt(version), driver)
        paths.add(engine(timing_cache="cache", **options)._timing_cache().path)
    assert len(paths) == 5
    assert all(path.parent == Path("cache") and len(path.stem) == 64 for path in paths)


def test_a_pinned_cache_must_be_there_is_enough_and_is_never_written(on_a_gpu, network, tmp_path):
    trt = on_a_gpu(FakeTensorRt())
    folder = str(tmp_path / "cache")
    with pytest.raises(MissingFileError, match="pinned timing cache"):
        engine(timing_cache=folder, pin_timing_cache=True).build(network, tmp_path / "a")
    told = engine(timing_cache=folder).build(network, tmp_path / "a").details["timing_cache"]
    before = Path(told["path"]).stat().st_mtime_ns
    pinned = engine(timing_cache=folder, pin_timing_cache=True)
    assert pinned.build(network, tmp_path / "b").details["timing_cache"] == {**told, "pinned": True}
    assert Path(told["path"]).stat().st_mtime_ns == before
    assert trt.configs[-1].timed == set()
    assert trt.BuilderFlag.ERROR_ON_TIMING_CACHE_MISS in trt.configs[-1].on
    assert trt.BuilderFlag.ERROR_ON_TIMING_CACHE_MISS not in trt.configs[-2].on
    Path(told["path"]).write_bytes(b'timings ["CONVOLUTION@3"]')
    with pytest.raises(BuildError, match=r"timing cache miss: \['ACTIVATION@3'\]"):
        pinned.build(network, tmp_path / "c")
    assert Path(told["path"]).read_bytes() == b'timings ["CONVOLUTION@3"]'


def test_timings_that_another_build_wrote_meanwhile_are_kept(on_a_gpu, network, tmp_path):
    on_a_gpu(FakeTensorRt())
    path = engine(timing_cache=str(tmp_path / "cache"))._timing_cache().path

    def meanwhile(phase: str, done: float) -> None:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b'timings ["of another build"]')

    engine(timing_cache=str(path.parent)).build(network, tmp_path / "out", on_progress=meanwhile)
    assert json.loads(path.read_bytes()[8:]) == ["ACTIVATION@3", "CONVOLUTION@3", "of another build"]


def test_a_cache_of_something_else_is_named_and_left_alone(on_a_gpu, network, tmp_path):
    on_a_gpu(FakeTensorRt())
    path = engine(timing_cache=str(tmp_path / "cache"))._timing_cache().path
    path.parent.mkdir()
    path.write_bytes(b"something else")
    with pytest.raises(CorruptFileError, match=path.stem):
        engine(timing_cache=str(path.parent)).build(network, tmp_path / "out")
    assert path.read_bytes() == b"something else"


def test_a_cache_in_use_is_waited_for_and_a_build_is_kept_where_its_timings_cannot_be(
    on_a_gpu, network, tmp_path, monkeypatch
):
    on_a_gpu(FakeTensorRt())
    one = engine(timing_cache=str(tmp_path / "cache"))
    path = one._timing_cache().path
    monkeypatch.setattr(tensorrt_timing, "LOCK_WAIT_S", 0.0)
    with exclusive_lock(path.with_suffix(".lock")):
        built = one.build(network, tmp_path / "out")
    assert built.path.is_file()
    assert "timing cache was not written: it is in use by process" in built.notes[-1]
    assert built.details["timing_cache"]["sha256"] is None
    monkeypatch.setattr(tensorrt_timing, "LOCK_WAIT_S", 60.0)
    held = ExitStack()
    held.enter_context(exclusive_lock(path.with_suffix(".lock")))
    monkeypatch.setattr(tensorrt_timing.time, "sleep", lambda seconds: held.close())
    assert one.build(network, tmp_path / "out").details["timing_cache"]["sha256"] is not None
