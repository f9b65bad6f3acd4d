"""Shared weights: every network of a space out of one set of tensors."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from random_students import SPACES

from akd_deploy.errors import MismatchError, UsageError
from akd_deploy.models.shared_network import SampledNetwork, SharedNetwork, keyed_operations
from akd_deploy.models.student import module_name, student_from_architecture
from akd_deploy.search_space import load_space

NAMES = ["digits 12×12", "colour 32×32", "add-ons 15×15"]


def images(space, n: int = 6) -> torch.Tensor:
    return torch.randn(n, *space.input_shape, generator=torch.Generator().manual_seed(0))


@pytest.fixture(params=NAMES)
def shared(request) -> SharedNetwork:
    return SharedNetwork(SPACES[request.param], seed=0)


def test_a_network_computes_what_a_student_with_its_slices_does_on_the_same_batch(shared: SharedNetwork) -> None:
    rng, batch = np.random.default_rng(0), images(shared.space)
    for _ in range(8):
        architecture = shared.space.sample(rng)
        student = student_from_architecture(architecture, seed=1)
        with torch.no_grad():
            for key, step in keyed_operations(shared.space.layers(architecture)):
                if step.kind not in ("conv", "linear"):
                    continue
                part, module = shared.sliced(key, step), student.steps[module_name(step)]
                target = module if step.kind == "linear" else module.conv
                target.weight.copy_(part["weight"])
                if target.bias is not None:
                    target.bias.copy_(part["bias"])
            student.train()
            assert torch.allclose(shared(batch, architecture), student(batch), atol=1e-4)


def test_a_student_taken_out_is_in_evaluation_mode_and_computes_the_same_once_calibrated(shared: SharedNetwork) -> None:
    with torch.no_grad():
        for name, parameter in shared.weights.items():
            if name.endswith(("_bias", "_scale")):
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(name))))
    batch = images(shared.space, 64)
    for seed in range(4):
        architecture = shared.space.sample(np.random.default_rng(seed))
        student = shared.student(architecture, [batch])
        assert not student.training
        with torch.no_grad():
            # Torch's running variance is the unbiased one: with 64 images and more values alike within 1 %.
            assert torch.allclose(student(batch), shared(batch, architecture), rtol=0.05, atol=0.05)


def test_narrower_networks_use_the_first_channels_of_wider_ones() -> None:
    space = SPACES["digits 12×12"]
    shared = SharedNetwork(space, seed=0)
    choices = dict(space.sample(np.random.default_rng(0)).choices) | {"b0.op": "conv", "b0.kernel": 3, "b0.layers": 1}

    def first_weight(width: float) -> torch.Tensor:
        layers = space.layers(space.architecture({**choices, "b0.width": width}))
        key, step = next((k, s) for k, s in keyed_operations(layers) if s.name == "b0.0.conv")
        return shared.sliced(key, step)["weight"]

    narrow, wide = first_weight(0.5), first_weight(1.25)
    assert narrow.shape[0] < wide.shape[0]
    assert narrow.data_ptr() == wide.data_ptr()
    assert torch.equal(narrow, wide[: narrow.shape[0], : narrow.shape[1]])


def test_operators_and_windows_of_one_place_share_nothing() -> None:
    space = load_space("augmented")
    shared = SharedNetwork(space, seed=0)
    plain = dict(space.backbone().choices)

    def keys(op: str) -> set[str]:
        found = keyed_operations(space.layers(space.architecture({**plain, "a0.op": op, "a0.skip": 1})))
        return {key for key, step in found if step.kind == "conv" and key.startswith("a0")}

    names = [keys(op) for op in ("conv3", "conv5", "dw_separable3", "dw_separable5")]
    assert not any(names[i] & names[j] for i in range(4) for j in range(i) if {i, j} != {2, 3})
    # Depthwise windows differ, the 1×1 projection after them is one and the same.
    assert len(names[2] & names[3]) == 1
    assert all(f"{key}_weight" in shared.weights for found in names for key in found)


def test_depthwise_windows_of_different_operators_share_nothing() -> None:
    space = SPACES["digits 12×12"]
    choices = dict(space.sample(np.random.default_rng(0)).choices) | {"b1.kernel": 3, "b1.layers": 1}

    def key(operator: str) -> str:
        layers = space.layers(space.architecture({**choices, "b1.op": operator}))
        return next(key for key, step in keyed_operations(layers) if step.name == "b1.0.depthwise")

    assert len({key(operator) for operator in ("dw_separable", "mbconv3", "mbconv6")}) == 3


def test_a_gradient_reaches_the_tensors_of_the_network_alone(shared: SharedNetwork) -> None:
    architecture = shared.space.sample(np.random.default_rng(2))
    shared(images(shared.space), architecture).square().sum().backward()
    used = {key for key, step in keyed_operations(shared.space.layers(architecture)) if step.kind in ("conv", "linear")}
    for name, parameter in shared.weights.items():
        assert (parameter.grad is not None) == (name.rpartition("_")[0] in used), name


def test_one_seed_gives_one_set_of_weights() -> None:
    space = SPACES["add-ons 15×15"]
    first, again, other = (SharedNetwork(space, seed).weights for seed in (1, 1, 2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_candidates_are_taken_in_turn() -> None:
    space = SPACES["add-ons 15×15"]
    shared, rng = SharedNetwork(space, 0), np.random.default_rng(5)
    candidates = [space.sample(rng) for _ in range(3)]
    sampled, batch = SampledNetwork(shared, candidates), images(space)
    with torch.no_grad():
        for i in range(5):
            assert torch.equal(sampled(batch), shared(batch, candidates[i % 3]))
    with pytest.raises(UsageError, match="none"):
        SampledNetwork(shared, [])


def test_networks_of_other_spaces_and_empty_calibrations_are_refused() -> None:
    shared = SharedNetwork(SPACES["add-ons 15×15"], 0)
    with pytest.raises(MismatchError):
        shared(images(shared.space), load_space("augmented").backbone())
    with pytest.raises(UsageError, match="no batch"):
        shared.student(shared.space.sample(np.random.default_rng(0)), [])
