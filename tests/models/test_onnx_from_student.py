"""The ONNX of a student: names kept, shapes static, files whole."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from random_students import SPACES, trained_like

from akd_deploy.models.onnx_from_student import (
    CHAIN_SEPARATOR,
    onnx_from_architecture,
    onnx_from_chains,
    onnx_from_layers,
    onnx_from_student,
)
from akd_deploy.search_space.operations import operations

SPACE = SPACES["digits 12×12"]
LAYERS = SPACE.layers(SPACE.sample(np.random.default_rng(2)))


def run(model: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, feeds)


def shape_of(value: onnx.ValueInfoProto) -> list[int]:
    return [dimension.dim_value for dimension in value.type.tensor_type.shape.dim]


@pytest.mark.parametrize("batch", [1, 4])
def test_input_and_output_have_the_names_and_shapes_engines_expect(batch: int, tmp_path: Path) -> None:
    student = trained_like(SPACE.sample(np.random.default_rng(0)), 0)
    model = onnx.load(onnx_from_student(student, tmp_path / "s.onnx", batch))
    onnx.checker.check_model(model, full_check=True)
    assert [(v.name, shape_of(v)) for v in model.graph.input] == [("input", [batch, 1, 12, 12])]
    assert [(v.name, shape_of(v)) for v in model.graph.output] == [("logits", [batch, 10])]
    images = torch.randn(batch, 1, 12, 12, generator=torch.Generator().manual_seed(0))
    (found,) = run(model, {"input": images.numpy()})
    with torch.inference_mode():
        np.testing.assert_allclose(found, student(images).numpy(), rtol=1e-4, atol=1e-5)


def test_the_main_node_of_every_operation_carries_its_name(tmp_path: Path) -> None:
    student = trained_like(SPACE.sample(np.random.default_rng(4)), 0)
    model = onnx.load(onnx_from_student(student, tmp_path / "s.onnx"))
    named = {node.name: node.op_type for node in model.graph.node}
    assert len(named) == len(model.graph.node)
    operators = {"conv": "Conv", "linear": "Gemm", "pool": "AveragePool", "global_pool": "GlobalAveragePool",
                 "add": "Add", "scale": "Mul"}  # fmt: skip
    for step in student.operations:
        assert named[step.name] == operators[step.kind]


def test_batch_norms_are_folded_and_none_is_left(tmp_path: Path) -> None:
    student = trained_like(SPACE.sample(np.random.default_rng(0)), 0)
    model = onnx.load(onnx_from_student(student, tmp_path / "s.onnx"))
    assert not [node for node in model.graph.node if node.op_type == "BatchNormalization"]
    weights = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
    conv, norm = student.steps["stem_conv"].conv, student.steps["stem_conv"].norm
    scale = (norm.weight / torch.sqrt(norm.running_var + norm.eps)).detach().numpy()
    np.testing.assert_allclose(
        weights["stem.conv.weight"], conv.weight.detach().numpy() * scale[:, None, None, None], rtol=1e-6
    )
    np.testing.assert_allclose(
        weights["stem.conv.bias"], norm.bias.detach().numpy() - norm.running_mean.numpy() * scale, rtol=1e-5, atol=1e-6
    )


def test_one_seed_gives_one_untrained_network_and_another_another() -> None:
    architecture = SPACE.sample(np.random.default_rng(0))
    first, again, other = (
        onnx_from_architecture(architecture, np.random.default_rng(seed)).SerializeToString() for seed in (1, 1, 2)
    )
    assert first == again
    assert first != other


def test_untrained_networks_compute_with_ordinary_numbers() -> None:
    rng = np.random.default_rng(0)
    for _ in range(5):
        model = onnx_from_architecture(SPACE.sample(rng), rng)
        (logits,) = run(model, {"input": rng.standard_normal((1, 1, 12, 12), dtype=np.float32)})
        assert np.isfinite(logits).all()
        assert 1e-4 < np.abs(logits).max() < 1e4


def test_a_stretch_of_layers_ends_where_its_last_layer_does() -> None:
    stretch = LAYERS[1:3]
    model = onnx_from_layers(stretch, np.random.default_rng(0), batch=2)
    first, last = stretch[0], stretch[-1]
    (found,) = run(model, {"input": np.zeros((2, first.in_channels, first.in_size, first.in_size), np.float32)})
    assert found.shape == (2, last.out_channels, last.out_size, last.out_size)


def test_chains_stand_side_by_side_and_tell_whose_node_is_whose() -> None:
    chains = [LAYERS[:1], LAYERS[1:3], LAYERS[-1:], LAYERS[1:3]]
    model = onnx_from_chains(chains)
    onnx.checker.check_model(model, full_check=True)
    assert [value.name for value in model.graph.input] == [f"{i}/input" for i in range(4)]
    owned: list[set[str]] = [set() for _ in chains]
    for node in model.graph.node:
        number, _, name = node.name.partition(CHAIN_SEPARATOR)
        owned[int(number)].add(name)
    for chain, names in zip(chains, owned, strict=True):
        assert {step.name for step in operations(chain)} <= names
    outputs = run(model, {v.name: np.zeros(shape_of(v), np.float32) for v in model.graph.input})
    assert [array.shape[1] for array in outputs] == [chain[-1].out_channels for chain in chains]


def test_an_activation_without_onnx_is_refused() -> None:
    from dataclasses import replace

    with pytest.raises(ValueError, match="tanh"):
        onnx_from_layers([replace(LAYERS[0], activation="tanh")], np.random.default_rng(0))
