"""What is profiled and predicted is what will run."""

from pathlib import Path

import numpy as np
import onnx
import pytest

from akd_deploy.architecture import Architecture
from akd_deploy.engines import load_engine
from akd_deploy.models.onnx_from_student import onnx_from_architecture
from akd_deploy.pipeline.kernels import KernelReader
from akd_deploy.pipeline.latency import chain_kernels, write_model
from akd_deploy.pipeline.typed import mode_for, typed_network
from akd_deploy.search_space import load_space
from akd_deploy.target import Target

SPACE = load_space("mobile", {"widths": [8, 16], "strides": [1, 2], "layers": [[1], [1, 2]]})


def target(precision: str, engine: str = "onnxruntime") -> Target:
    return Target("t", device="cpu", engine=engine, precision=precision)


def architecture() -> Architecture:
    return SPACE.sample(np.random.default_rng(0))


@pytest.mark.parametrize(
    ("engine", "precision", "mode"),
    [
        ("onnxruntime", "fp32", "fp32"),
        ("onnxruntime", "int8", "int8"),
        ("openvino", "bf16", "fp32"),
        ("tensorrt", "bf16", "bf16"),
        ("tensorrt", "tf32", "fp32"),
        ("tensorrt-rtx", "fp16", "fp16"),
        ("torch", "fp32", "pt2"),
        ("torch", "fp16", "pt2-fp16"),
    ],
)
def test_modes_are_what_engines_read(engine: str, precision: str, mode: str) -> None:
    assert mode_for(target(precision, engine)) == mode


def test_a_float32_network_is_taken_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    onnx.save_model(onnx_from_architecture(architecture(), np.random.default_rng(0)), path)
    assert typed_network(path, target("fp32")) == path
    assert {t.data_type for t in onnx.load(typed_network(path, target("fp16"))).graph.initializer} >= {10}


def test_an_int8_target_executes_int8_kernels_for_architectures_and_for_stretches(tmp_path: Path) -> None:
    int8 = target("int8")
    engine = load_engine(int8)
    whole = engine.executed_kernels(write_model(int8, architecture(), tmp_path))
    convolutions = [e.kernel for e in whole if "Conv" in e.kernel.op]
    assert convolutions
    assert {kernel.op for kernel in convolutions} == {"QLinearConv"}
    layers = SPACE.layers(architecture())
    reader = KernelReader(engine, engine.fingerprint(), engine.version())
    stretches = chain_kernels(reader)([layers[:1], layers[:2]])
    for stretch, executed in zip((layers[:1], layers[:2]), stretches, strict=True):
        names = {e.nodes[0].split(".")[0] for e in executed if "Conv" in e.kernel.op}
        assert names <= {layer.name.split(".")[0] for layer in stretch}
        assert {e.kernel.op for e in executed if "Conv" in e.kernel.op} == {"QLinearConv"}
