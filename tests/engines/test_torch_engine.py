"""torch as an engine: the contract, archives without pickles, and what it says of the operators it runs."""

from __future__ import annotations

import io
import json
import zipfile
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from contracts.engine_contract import EngineContract, ModelCase
from torch import nn

from akd_deploy.engines.torch_archive import export_module, read_archive
from akd_deploy.engines.torch_engine import TorchEngine
from akd_deploy.engines.torch_session import TorchSession
from akd_deploy.errors import (
    BuildError,
    CorruptFileError,
    MissingRuntimeError,
    UnknownNameError,
    UsageError,
)
from akd_deploy.kernel import Kernel
from akd_deploy.target import Target, read_target

SHAPE = (2, 3, 8, 8)


class Tiny(nn.Module):
    """Convolution with a residual, pooled, and a linear head: every kind of operator the audit looks at."""

    def __init__(self, generator: torch.Generator) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.ReLU())
        self.dw = nn.Conv2d(4, 4, 3, padding=1, groups=4)
        self.head = nn.Linear(4, 5)
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.5, generator=generator)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        return self.head((x + self.dw(x)).mean((2, 3)))


def tiny() -> Tiny:
    return Tiny(torch.Generator().manual_seed(0)).eval()


def engine_of(precision: str = "fp32", batch: int = 2, **options: object) -> TorchEngine:
    return TorchEngine(Target("t", "cpu", "torch", precision, batch, engine_options=options))


def slow_reference(module: Tiny, x: np.ndarray) -> np.ndarray:
    """The same network in numpy, one multiplication at a time."""
    weights = {name: parameter.detach().numpy().astype(np.float64) for name, parameter in module.named_parameters()}

    def conv(x: np.ndarray, w: np.ndarray, b: np.ndarray, stride: int, groups: int) -> np.ndarray:
        padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
        size = -(-x.shape[2] // stride)
        out = np.zeros((len(x), len(w), size, size))
        for o in range(len(w)):
            first = o // (len(w) // groups) * w.shape[1]
            for i in range(size):
                for j in range(size):
                    window = padded[
                        :, first : first + w.shape[1], i * stride : i * stride + 3, j * stride : j * stride + 3
                    ]
                    out[:, o, i, j] = (window * w[o]).sum((1, 2, 3)) + b[o]
        return out

    x = np.maximum(conv(x, weights["stem.0.weight"], weights["stem.0.bias"], 2, 1), 0)
    x = x + conv(x, weights["dw.weight"], weights["dw.bias"], 1, 4)
    return x.mean((2, 3)) @ weights["head.weight"].T + weights["head.bias"]


@pytest.fixture(scope="module")
def archive(tmp_path_factory) -> bytes:
    path = tmp_path_factory.mktemp("torch") / "tiny.pt2"
    return export_module(tiny(), SHAPE, path, dynamic_batch=True).read_bytes()


@pytest.fixture
def case(tmp_path: Path, archive: bytes) -> ModelCase:
    x = np.random.default_rng(0).standard_normal(SHAPE).astype(np.float32)
    path = tmp_path / "tiny.pt2"
    path.write_bytes(archive)
    return ModelCase(
        path=path,
        feeds={"x": x},
        expected={"output": slow_reference(tiny(), x).astype(np.float32)},
        nodes=frozenset({"stem.0", "stem.1", "dw", "head"}),
    )


class TestTorchEngine(EngineContract):
    runtime_modules = ("torch",)
    model_suffix = ".pt2"

    @pytest.fixture
    def engine(self):
        return engine_of()

    @pytest.fixture
    def model(self, case):
        return case


class TestTorchEngineChannelsLast(EngineContract):
    runtime_modules = ("torch",)
    model_suffix = ".pt2"

    @pytest.fixture
    def engine(self):
        return engine_of(channels_last=True, threads=2)

    @pytest.fixture
    def model(self, case):
        return case


def on_gpu(mode: str) -> TorchEngine:
    return TorchEngine(Target("t", "gpu", "torch", "fp32", 2, engine_options={"device": "cuda", "mode": mode}))


@pytest.mark.gpu
@pytest.mark.parametrize("mode", ["eager", "cuda_graph", "compile"])
def test_every_mode_on_a_gpu_agrees_with_the_reference(case, tmp_path, mode):
    engine = on_gpu(mode)
    if engine.why_not() is not None:
        pytest.skip(engine.why_not())
    built = engine.build(case.path, tmp_path / "out")
    with engine.load(built.path) as session:
        for feeds in (case.feeds, {"x": np.ones_like(case.feeds["x"])}, case.feeds):
            result = session.run(feeds)["output"]
        np.testing.assert_allclose(result, case.expected["output"], rtol=1e-4, atol=1e-4)
        other = session.run({"x": np.ones_like(case.feeds["x"])})["output"]
        np.testing.assert_allclose(other, slow_reference(tiny(), np.ones(SHAPE)), rtol=1e-4, atol=1e-4)


class ReplayedGraph:
    """What a CUDA graph does, on the CPU: a replay fills the captured outputs from the captured inputs."""

    def __init__(self) -> None:
        self.compute = self.outputs = None

    def replay(self) -> None:
        with torch.inference_mode():
            for captured, fresh in zip(self.outputs, self.compute(), strict=True):
                captured.copy_(fresh)


class CountedEvent:
    """An event that is taken when it is recorded; moments are counted."""

    moments = 0

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing
        self.at = 0

    def record(self) -> None:
        CountedEvent.moments += 1
        self.at = CountedEvent.moments

    def synchronize(self) -> None:
        pass

    def elapsed_time(self, end: CountedEvent) -> float:
        return float(end.at - self.at)


@pytest.mark.parametrize("graph", [False, True])
def test_the_parts_of_an_inference_are_timed_from_host_arrays_to_host_arrays(case, monkeypatch, graph):
    """On a stand-in for a GPU: where the copies go and in which order, not how long they take."""
    monkeypatch.setattr(torch.cuda, "Event", CountedEvent)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor)
    monkeypatch.setattr(TorchSession, "_synchronise", lambda session: None)
    session = engine_of().load(case.path)
    if graph:
        captured = ReplayedGraph()
        captured.outputs = [torch.zeros(2, 5)]
        static = [torch.zeros(SHAPE)]
        captured.compute = lambda: [session.module(static[0])]
        session._graph, session._static, session._replayed = captured, static, captured.outputs

    class Elsewhere:
        type = "cuda"

    assert session.timings(case.feeds) is None  # the CPU has no clock of its own
    session._placed = lambda arrays: [torch.zeros(SHAPE)]  # what is there before the first copy
    session._device = Elsewhere()
    call = session.timings(case.feeds)
    session._latest = []
    timings = call()
    np.testing.assert_allclose(session.bound_outputs()["output"], case.expected["output"], rtol=1e-4, atol=1e-4)
    assert (timings.h2d_s, timings.compute_s, timings.d2h_s) == (1e-3, 1e-3, 1e-3)
    assert 0 < timings.enqueue_s < timings.end_to_end_s


@pytest.mark.gpu
@pytest.mark.parametrize("mode", ["eager", "cuda_graph"])
def test_the_parts_of_an_inference_on_a_gpu_lie_within_the_whole(case, tmp_path, mode):
    engine = on_gpu(mode)
    if engine.why_not() is not None:
        pytest.skip(engine.why_not())
    with engine.load(engine.build(case.path, tmp_path / "out").path) as session:
        call = session.timings(case.feeds)
        for _ in range(20):
            timings = call()
        assert 0 < timings.h2d_s + timings.compute_s + timings.d2h_s <= 1.05 * timings.end_to_end_s
        assert 0 < timings.enqueue_s < timings.end_to_end_s
        np.testing.assert_allclose(session.bound_outputs()["output"], case.expected["output"], rtol=1e-4, atol=1e-4)


def test_captured_graph_reads_the_bound_feeds_and_gives_fresh_outputs(case, monkeypatch):
    class Stream:
        def wait_stream(self, other):
            pass

    monkeypatch.setattr(torch.cuda, "Stream", lambda *_: Stream())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda *_: Stream())
    monkeypatch.setattr(torch.cuda, "stream", lambda *_: nullcontext())
    monkeypatch.setattr(torch.cuda, "CUDAGraph", ReplayedGraph)
    monkeypatch.setattr(torch.cuda, "graph", lambda *_: nullcontext())
    program, _ = read_archive(case.path)
    session = TorchSession(program, 2, mode="cuda_graph", device="cpu", channels_last=False, where="tiny")
    graph = session._graph
    graph.outputs = session._replayed
    graph.compute = lambda: [session.module.forward(*session._static)]
    ones = {"x": np.ones_like(case.feeds["x"])}
    first = session.run(case.feeds)["output"]
    other = session.run(ones)["output"]
    np.testing.assert_allclose(first, case.expected["output"], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(other, slow_reference(tiny(), ones["x"]), rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_compiled_module_computes_what_the_module_does():
    engine = engine_of(mode="compile")
    if engine.why_not() is not None:
        pytest.skip(engine.why_not())
    x = np.linspace(-1, 1, 6, dtype=np.float32).reshape(2, 3)
    with engine.load_module(nn.ReLU(), (2, 3)) as session:
        np.testing.assert_array_equal(session.run({"input": x})["output"], np.maximum(x, 0))


# --- executed kernels -------------------------------------------------------------------------------------------


def test_executed_kernels_are_the_aten_operators_with_their_shapes(case):
    kernels = engine_of().executed_kernels(case.path)
    assert [k.kernel.op for k in kernels] == [
        "aten.conv2d", "aten.relu", "aten.conv2d", "aten.add", "aten.mean", "aten.linear",
    ]  # fmt: skip
    assert [k.nodes for k in kernels] == [("stem.0",), ("stem.1",), ("dw",), (), (), ("head",)]
    assert kernels[0].kernel == Kernel(
        op="aten.conv2d",
        inputs=((2, 3, 8, 8), (4, 3, 3, 3), (4,)),
        outputs=((2, 4, 4, 4),),
        dtype="float32",
        attributes=(("dilations", (1, 1)), ("groups", 1), ("kernel_size", (3, 3)), ("strides", (2, 2))),
    )
    assert kernels[2].kernel.attribute("groups") == 4
    assert kernels[4].kernel.attribute("dim") == (2, 3)


def test_executed_kernels_follow_the_targets_batch(case):
    kernels = engine_of(batch=7).executed_kernels(case.path)
    assert all(k.kernel.outputs[0][0] == 7 for k in kernels)


def test_kernels_of_a_compiled_target_are_refused_and_not_invented(case):
    engine = engine_of(mode="compile")
    if engine.why_not() is not None:
        pytest.skip(engine.why_not())
    with pytest.raises(BuildError, match="does not list"):
        engine.executed_kernels(case.path)


# --- precision --------------------------------------------------------------------------------------------------


def test_fp16_asked_of_an_fp32_graph_is_an_error_that_names_its_layers(case, tmp_path):
    with pytest.raises(BuildError, match=r"float32 \(conv2d, conv2d_1, linear\)"):
        engine_of("fp16").build(case.path, tmp_path)


def test_fp32_asked_of_an_fp16_graph_is_an_error(tmp_path):
    path = export_module(tiny().half(), SHAPE, tmp_path / "half.pt2")
    with pytest.raises(BuildError, match="float16"):
        engine_of("fp32").build(path, tmp_path / "out")


def test_fp16_graph_is_audited_as_fp16(tmp_path):
    path = export_module(tiny().half(), SHAPE, tmp_path / "half.pt2")
    built = engine_of("fp16").build(path, tmp_path / "out")
    assert set(built.precision) == {"float16"}
    with engine_of("fp16").load(built.path) as session:
        assert session.inputs[0].dtype == session.outputs[0].dtype == "float16"


def test_layers_left_in_fp32_are_named_in_the_notes(tmp_path):
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.narrow, self.wide = nn.Linear(4, 4).half(), nn.Linear(4, 4)

        def forward(self, x):
            return self.wide(self.narrow(x).float())

    path = export_module(Mixed().eval(), (2, 4), tmp_path / "mixed.pt2")
    built = engine_of("fp16").build(path, tmp_path / "out")
    assert built.precision["float16"] >= 1
    assert built.precision["float32"] == 1
    assert "linear_1" in built.notes[0]


# --- archives ---------------------------------------------------------------------------------------------------


def test_onnx_file_is_refused_with_the_reason(tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(b"whatever")
    with pytest.raises(UsageError, match=r"ONNX file, which torch cannot run.*export"):
        engine_of().build(path, tmp_path / "out")


def test_built_archive_holds_no_sample_inputs_and_loads_with_torch_alone(case, tmp_path):
    built = engine_of().build(case.path, tmp_path / "out")
    with zipfile.ZipFile(built.path) as archive:
        samples = [info for info in archive.infolist() if "sample_inputs" in info.filename]
        assert all(info.file_size == 0 for info in samples)
    program = torch.export.load(built.path)
    with torch.no_grad():
        output = program.module()(torch.from_numpy(case.feeds["x"]))
    np.testing.assert_allclose(output.numpy(), case.expected["output"], rtol=1e-4, atol=1e-4)


def test_building_twice_gives_the_same_bytes(case, tmp_path):
    first, second = (engine_of().build(case.path, tmp_path / name).path.read_bytes() for name in "ab")
    assert first == second


def rewritten(source: Path, path: Path, name: str, content: bytes) -> Path:
    """A copy of an archive in which one entry (found by the end of its name) has another content."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(path, "w") as new:
        root = old.namelist()[0].partition("/")[0]
        entries = {entry: old.read(entry) for entry in old.namelist()}
        found = next((entry for entry in entries if entry.endswith(name)), f"{root}/{name}")
        for entry, data in (entries | {found: content}).items():
            new.writestr(entry, data)
    return path


@pytest.mark.parametrize(
    "entry",
    [
        {"path_name": "weight_0", "use_pickle": True, "is_param": True, "tensor_meta": None},
        {"path_name": "custom_obj_0", "use_pickle": False, "is_param": False, "tensor_meta": None},
    ],
    ids=["pickled weight", "pickled object"],
)
def test_archive_with_a_pickle_is_refused_before_torch_reads_it(case, tmp_path, entry, monkeypatch):
    config = json.dumps({"config": {"x": entry}}).encode()
    path = rewritten(case.path, tmp_path / "evil.pt2", "model_constants_config.json", config)
    monkeypatch.setattr(torch.export, "load", lambda *_: pytest.fail("torch has read it"))
    with pytest.raises(UsageError, match="pickle"):
        read_archive(path)


def test_archive_with_compiled_code_is_refused(case, tmp_path):
    path = rewritten(case.path, tmp_path / "evil.pt2", "data/aotinductor/model/x.so", b"\x7fELF")
    with pytest.raises(UsageError, match="compiled code"):
        read_archive(path)


def test_pickled_sample_inputs_are_never_unpickled(case, tmp_path):
    class Explodes:
        def __reduce__(self):
            return (pytest.fail, ("the sample inputs were unpickled",))

    content = io.BytesIO()
    torch.save(Explodes(), content)
    path = rewritten(case.path, tmp_path / "evil.pt2", "data/sample_inputs/model.pt", content.getvalue())
    program, _ = read_archive(path)
    assert program.graph_signature.user_inputs == ("x",)


def test_zip_file_that_is_no_archive_is_corrupt(tmp_path):
    path = tmp_path / "other.pt2"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/b", b"c")
    with pytest.raises(CorruptFileError, match="without a model"):
        read_archive(path)


def test_archive_of_a_damaged_graph_is_corrupt(case, tmp_path):
    path = rewritten(case.path, tmp_path / "bad.pt2", "models/model.json", b'{"graph_module": 1}')
    with pytest.raises(CorruptFileError, match="bad"):
        read_archive(path)


# --- batches, names, modules ------------------------------------------------------------------------------------


def test_fixed_batch_that_is_not_the_targets_is_refused(tmp_path):
    path = export_module(tiny(), SHAPE, tmp_path / "fixed.pt2")
    with pytest.raises(UsageError, match="fixed batch 2"):
        engine_of(batch=3).load(path)


def test_dynamic_batch_becomes_the_targets(case):
    with engine_of(batch=5).load(case.path) as session:
        assert session.inputs[0].shape == (5, 3, 8, 8)
        assert session.outputs[0].shape == (5, 5)


def test_outputs_are_named_by_the_keys_of_a_dictionary():
    class Two(nn.Module):
        def forward(self, x):
            return {"logits": x + 1, "features": x * 2}

    class Pair(nn.Module):
        def forward(self, x):
            return x + 1, x * 2

    x = np.ones((2, 3), np.float32)
    with engine_of().load_module(Two(), (2, 3)) as session:
        result = session.run({"x": x})
        np.testing.assert_array_equal(result["logits"], x + 1)
        np.testing.assert_array_equal(result["features"], x * 2)
    with engine_of().load_module(Pair(), (2, 3)) as session:
        assert [spec.name for spec in session.outputs] == ["output_0", "output_1"]


def test_loading_a_module_leaves_it_alone(case):
    module = tiny().train()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    with engine_of(channels_last=True).load_module(module, SHAPE) as session:
        np.testing.assert_allclose(session.run(case.feeds)["output"], case.expected["output"], rtol=1e-4, atol=1e-4)
    assert module.training
    assert module.stem[0].weight.is_contiguous()
    for name, tensor in module.state_dict().items():
        torch.testing.assert_close(tensor, before[name], rtol=0, atol=0)


def test_module_that_cannot_be_exported_is_a_build_error():
    class Branches(nn.Module):
        def forward(self, x):
            return x + 1 if x.sum() > 0 else x - 1

    with pytest.raises(BuildError, match="Branches"):
        engine_of().load_module(Branches(), (2, 3))


def test_threads_are_set_when_loading(case):
    before = torch.get_num_threads()
    try:
        with engine_of(threads=2).load(case.path):
            assert torch.get_num_threads() == 2
        with engine_of(threads=1).load(case.path):
            assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


def test_closed_session_says_so(case):
    session = engine_of().load(case.path)
    session.close()
    with pytest.raises(UsageError, match="closed"):
        session.run(case.feeds)


# --- options and targets ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"mode": "fast"}, UnknownNameError, "cuda_graph"),
        ({"device": "tpu"}, UnknownNameError, "cuda"),
        ({"threads": 0}, UsageError, "≥ 1"),
        ({"mode": "cuda_graph"}, UsageError, "device"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, error, match):
    with pytest.raises(error, match=match):
        engine_of(**options)


def test_tf32_is_refused_on_a_cpu():
    with pytest.raises(UsageError, match="tf32"):
        engine_of("tf32")


@pytest.mark.parametrize("name", ["cpu_torch_fp32", "h200_torch_fp16"])
def test_targets_of_this_engine_have_valid_options(name):
    engine = TorchEngine(read_target(Path(__file__).parents[2] / "targets" / f"{name}.toml"))
    assert engine.device == ("cpu" if name.startswith("cpu") else "cuda")


def test_gpu_target_without_a_gpu_is_refused_with_the_reason(case, tmp_path):
    engine = on_gpu("cuda_graph")
    if engine.why_not() is None:
        pytest.skip("there is a GPU here")
    with pytest.raises(MissingRuntimeError, match=r"NVIDIA|CUDA"):
        engine.build(case.path, tmp_path)
