"""Encoding, torch module, ONNX and executed kernels are one and the same network, over 200 random ones."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from random_students import SPACES, trained_like

from akd_deploy.engines import load_engine
from akd_deploy.kernel import ExecutedKernel
from akd_deploy.models.onnx_from_student import onnx_from_student
from akd_deploy.models.student import Student
from akd_deploy.predictor.features import macs
from akd_deploy.search_space.operations import Operation
from akd_deploy.target import Target

PER_SPACE = 52
BLOCK = 16
"""ONNX Runtime pads channels to whole blocks of this many or fewer in its blocked layouts."""


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def engine_at(level: str):
    return load_engine(Target("here", "cpu", "onnxruntime", engine_options={"graph_optimization": level}))


def counted_in_torch(student: Student, images: torch.Tensor) -> tuple[torch.Tensor, int, int]:
    """Logits, multiply-accumulates of one image, and parameters as shipped, from what the modules really do."""
    total = 0

    def count(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        nonlocal total
        # Every weight is used once per output position.
        positions = output.shape[2] * output.shape[3] if output.ndim == 4 else 1
        total += positions * module.weight.numel()

    counted = [m for m in student.modules() if isinstance(m, torch.nn.Conv2d | torch.nn.Linear)]
    hooks = [module.register_forward_hook(count) for module in counted]
    with torch.inference_mode():
        logits = student(images)
    for hook in hooks:
        hook.remove()
    return logits, total, sum(module.weight.numel() + module.weight.shape[0] for module in counted)


def padded(channels: int) -> set[int]:
    """What a blocked layout may make of so many channels."""
    return {channels, *(-(-channels // block) * block for block in (8, BLOCK))}


def check_kernels(executed: tuple[ExecutedKernel, ...], steps: dict[str, Operation], model: onnx.ModelProto) -> None:
    """Every ONNX node is executed, and every convolution once, at the architecture's shape up to padding."""
    covered = Counter(node for e in executed for node in e.nodes if not e.kernel.op.endswith(("Input", "Output")))
    nodes = {node.name for node in model.graph.node}
    assert nodes <= {node for e in executed for node in e.nodes}
    assert covered.keys() <= nodes
    seen = Counter()
    for e in executed:
        if not e.kernel.op.endswith(("Conv", "Gemm")):
            continue
        (name,) = (node for node in e.nodes if node in steps and steps[node].kind in ("conv", "linear"))
        step, kernel = steps[name], e.kernel
        seen[name] += 1
        if step.kind == "linear":
            assert macs(kernel) == step.macs
            continue
        batch, channels, *size = kernel.outputs[0]
        assert (batch, size) == (1, [step.out_size] * 2)
        assert channels in padded(step.out_channels)
        assert kernel.attribute("kernel_size") == (step.kernel_size,) * 2
        assert kernel.attribute("strides") == (step.stride,) * 2
        assert kernel.attribute("groups") in (padded(step.groups) if step.groups > 1 else {1})
        inputs = kernel.inputs[1][1]
        assert inputs in (padded(step.in_channels) if step.groups == 1 else {1})
        assert macs(kernel) == channels * inputs * step.kernel_size**2 * step.out_size**2
        assert macs(kernel) >= step.macs
    assert seen == Counter({name: 1 for name, step in steps.items() if step.macs})


@pytest.mark.parametrize("name", SPACES)
def test_encoding_module_onnx_and_kernels_are_one_network(name: str, tmp_path: Path) -> None:
    space, rng = SPACES[name], np.random.default_rng(len(name))
    blocked, plain = engine_at("all"), engine_at("extended")
    images = torch.from_numpy(rng.standard_normal((1, *space.input_shape)).astype(np.float32))
    seen = set()
    for seed in range(PER_SPACE):
        architecture = space.sample(rng)
        seen.add(space.network_digest(architecture))
        student = trained_like(architecture, seed)
        steps = {step.name: step for step in student.operations}
        expected_macs = sum(step.macs for step in steps.values())
        expected_parameters = sum(step.parameters for step in steps.values())

        logits, torch_macs, torch_parameters = counted_in_torch(student, images)
        assert (torch_macs, torch_parameters) == (expected_macs, expected_parameters)

        path = onnx_from_student(student, tmp_path / "student.onnx")
        model = onnx.load(path)
        assert sum(int(np.prod(tensor.dims)) for tensor in model.graph.initializer) == expected_parameters
        with blocked.load(path) as session:
            (found,) = session.run({"input": images.numpy()}).values()
        # Relative to the largest logit: small ones are differences of large ones.
        assert np.abs(found - logits.numpy()).max() <= 1e-4 * np.abs(logits.numpy()).max()

        executed = plain.executed_kernels(path)
        check_kernels(executed, steps, model)
        assert sum(macs(e.kernel) for e in executed if e.kernel.op.endswith(("Conv", "Gemm"))) == expected_macs
        check_kernels(blocked.executed_kernels(path), steps, model)
    assert len(seen) > 0.95 * PER_SPACE


def test_more_than_two_hundred_networks_are_compared() -> None:
    assert PER_SPACE * len(SPACES) >= 200
