"""Gates on networks that nobody here wrote: what is extracted computes what is gated."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from odd_networks import INPUT_SHAPE as ODD_SHAPE
from odd_networks import ODD, odd
from torch import nn
from user_networks import INPUT_SHAPE, KINDS, network

from akd_deploy.errors import MismatchError, UsageError
from akd_deploy.models.channel_graph import residual_branches, trace_channels
from akd_deploy.models.gated_network import GatedNetwork, extract
from akd_deploy.models.onnx_from_module import onnx_from_module
from akd_deploy.models.part import Part

CHECKED = settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def images(seed: int = 0, n: int = 3) -> torch.Tensor:
    return torch.randn(n, *INPUT_SHAPE, generator=torch.Generator().manual_seed(seed))


def random_mask(gated: GatedNetwork, rng: np.random.Generator, share: float) -> np.ndarray:
    """Any mask that leaves every layer a unit."""
    mask = rng.random(len(gated.units)) < share
    layers: dict[str, list[int]] = {}
    for i, unit in enumerate(gated.units):
        if unit.branch is None:
            layers.setdefault(unit.layer, []).append(i)
    for members in layers.values():
        if not mask[members].any():
            mask[rng.choice(members)] = True
    return mask


def gate(gated: GatedNetwork, mask: np.ndarray, rng: np.random.Generator) -> None:
    """Gates between 0.5 and 1.5 for what is kept, 0 for what is not."""
    with torch.no_grad():
        gated.gates.copy_(torch.from_numpy(mask * rng.uniform(0.5, 1.5, len(mask))).float())


@pytest.mark.parametrize("kind", KINDS)
@given(seed=st.integers(0, 2**31), share=st.floats(0.1, 1.0), group=st.sampled_from([1, 2, 3]))
@CHECKED
def test_what_is_extracted_computes_what_is_gated(kind: str, seed: int, share: float, group: int) -> None:
    rng = np.random.default_rng(seed)
    gated = GatedNetwork(network(kind, seed % 1000), INPUT_SHAPE, group=group).eval()
    mask = random_mask(gated, rng, share)
    gate(gated, mask, rng)
    small = extract(gated)
    batch = images(seed % 997)
    with torch.no_grad():
        expected, found = gated(batch), small(batch)
    scale = max(1.0, float(expected.abs().max()))
    assert float((expected - found).abs().max()) < 1e-5 * scale
    if kind != "ResNeXt":  # whose module that is called twice is counted twice
        counted = sum(p.numel() for m in small.modules() if isinstance(m, nn.Conv2d | nn.ConvTranspose2d | nn.Linear)
                      for p in m.parameters())  # fmt: skip
        assert counted == gated.parameters_left(mask)


@pytest.mark.parametrize("kind", KINDS)
def test_with_all_gates_open_it_is_the_network_itself(kind: str) -> None:
    plain = network(kind, 3)
    with torch.no_grad():
        expected = plain(images())
        gated = GatedNetwork(plain, INPUT_SHAPE).eval()
        assert torch.allclose(gated(images()), expected, atol=1e-6)
        assert torch.allclose(extract(gated)(images()), expected, atol=1e-6)
    assert gated.macs() == gated.macs(np.ones(len(gated.units), bool))


GATED_THROUGH = {"scale", "scale viewed", "scale reshaped", "scale unsqueezed", "scale indexed", "scale bounded",
                 "scale twice", "scale of positions", "scale of the whole map", "permuted by name", "joined by axis",
                 "block twice", "convolution twice", "squeeze and excitation", "groups"}  # fmt: skip
"""Odd networks whose first convolution has gates; the channels of the others are kept, and named."""


@pytest.mark.parametrize("kind", ODD)
def test_what_people_write_between_convolutions_is_cut_right_or_kept(kind: str) -> None:
    plain = odd(kind)
    batch = torch.randn(3, *ODD_SHAPE, generator=torch.Generator().manual_seed(1))
    gated = GatedNetwork(plain, ODD_SHAPE).eval()
    rng = np.random.default_rng(0)
    with torch.no_grad():
        assert torch.allclose(gated(batch), plain(batch), atol=1e-6)
        assert torch.allclose(extract(gated)(batch), plain(batch), atol=1e-6)
        for _ in range(6):
            mask = random_mask(gated, rng, 0.6)
            gate(gated, mask, rng)
            assert torch.allclose(extract(gated)(batch), gated(batch), atol=1e-5)
    first = next(node for node in gated.graph.consumers() if node.target == "first")
    gates = gated.places(gated.graph.of[first.name].labels) < len(gated.units)
    assert gates.all() if kind in GATED_THROUGH else True
    assert gates.all() or any(
        root in gated.graph.kept_roots() for root in gated.graph.roots(gated.graph.of[first.name].labels)
    )


def test_a_branch_whose_sum_is_not_what_goes_around_it_is_no_unit_and_is_named() -> None:
    gated = GatedNetwork(odd("a view rectified in place"), ODD_SHAPE)
    assert not any(unit.branch for unit in gated.units)
    assert [why for why in gated.kept_whole if why.startswith("add: without its branch")]
    assert not any("branch" in why for why in GatedNetwork(odd("rectified in place"), ODD_SHAPE).kept_whole)
    assert sum(unit.branch is not None for unit in GatedNetwork(odd("rectified in place"), ODD_SHAPE).units) == 1


class _ChangedInPlace(nn.Module):
    """torch.fx takes x += y for x = x + y, and so does not see that `before` is changed too."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.head = nn.Conv2d(3, 3, 3, padding=1), nn.Linear(3, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.inner(x)
        before = x
        x += self.inner(x)
        return self.head((x + before).mean((2, 3)))


def test_a_network_whose_graph_computes_something_else_is_refused() -> None:
    with pytest.raises(UsageError, match=r"one that computes something else[\s\S]*Write x = x \+ y"):
        GatedNetwork(_ChangedInPlace().eval(), ODD_SHAPE)


def test_tracing_changes_neither_the_networks_modes_nor_its_statistics() -> None:
    plain = network("ResNet", 0).train()
    plain.blocks[0].eval()
    before = {name: tensor.clone() for name, tensor in plain.state_dict().items()}
    GatedNetwork(plain, INPUT_SHAPE)
    assert plain.training
    assert not any(module.training for module in plain.blocks[0].modules())
    assert plain.blocks[1].first[1].training
    assert all(torch.equal(before[name], tensor) for name, tensor in plain.state_dict().items())


@pytest.mark.parametrize(
    ("kind", "branches", "named"),
    [("ResNet", 3, "output"), ("WideResNet", 3, "output"), ("VGG", 0, "output"), ("MobileNet", 2, "output"),
     ("DenseNet", 0, "output"), ("ConvNeXt", 2, "LayerNorm mixes channels"), ("ResNeXt", 0, "output")],
)  # fmt: skip
def test_branches_are_found_and_what_is_kept_is_named(kind: str, branches: int, named: str) -> None:
    gated = GatedNetwork(network(kind, 0), INPUT_SHAPE)
    assert len(residual_branches(gated.graph)) == sum(unit.branch is not None for unit in gated.units)
    found = sum(unit.branch is not None for unit in gated.units)
    # A sum with a convolution around it is no residual branch: dropping it would leave another shape.
    assert found <= branches
    assert any(named in why for why in gated.kept_whole)


def test_channels_that_a_sum_ties_are_one_unit_and_those_inside_a_block_are_not() -> None:
    graph = trace_channels(network("ResNet", 0), INPUT_SHAPE)
    of = {str(node.target): graph.roots(graph.of[node.name].labels).tolist() for node in graph.consumers()}
    assert of["stem.0"] == of["blocks.0.second.0"]
    assert of["blocks.1.second.0"] == of["blocks.1.around.0"] == of["blocks.2.second.0"]
    assert not set(of["blocks.0.first.0"]) & set(of["stem.0"])


def test_depthwise_convolutions_and_squeezes_follow_their_input_and_groups_stay_as_wide() -> None:
    graph = trace_channels(network("MobileNet", 0), INPUT_SHAPE)
    of = {str(node.target): graph.roots(graph.of[node.name].labels).tolist() for node in graph.consumers()}
    assert of["blocks.0.body.0.0"] == of["blocks.0.body.2.0"] == of["blocks.0.squeeze.3"]
    assert len(set(of["blocks.0.squeeze.1"])) == 6
    graph = trace_channels(network("ResNeXt", 0), INPUT_SHAPE)
    of = {str(node.target): graph.roots(graph.of[node.name].labels).tolist() for node in graph.consumers()}
    assert len(set(of["stem.0"])) == 4  # three groups of four channels
    assert len(set(of["grouped.0"])) == 6
    assert of["again.0"] == of["grouped.0"]  # called twice: what it writes is what it reads


def test_only_the_inside_of_a_convnext_block_is_gated_beside_its_branch() -> None:
    gated = GatedNetwork(network("ConvNeXt", 0), INPUT_SHAPE)
    assert {unit.layer for unit in gated.units if unit.branch is None} == {"blocks.0.expand", "blocks.1.expand"}


@pytest.mark.parametrize("kind", ["ResNet", "MobileNet", "DenseNet"])
def test_operations_are_counted_as_torch_counts_them(kind: str) -> None:
    from torch.utils.flop_counter import FlopCounterMode

    rng = np.random.default_rng(5)
    gated = GatedNetwork(network(kind, 1), INPUT_SHAPE)
    for _ in range(4):
        mask = random_mask(gated, rng, 0.6)
        with FlopCounterMode(display=False) as counter:
            extract(gated, mask)(images(n=1))
        assert gated.macs(mask) == counter.get_total_flops() // 2


def test_a_layer_that_would_be_left_nothing_is_named() -> None:
    gated = GatedNetwork(network("VGG", 0), INPUT_SHAPE)
    mask = np.array([unit.layer != "features.3" for unit in gated.units])
    with pytest.raises(MismatchError, match=r"features\.3"):
        extract(gated, mask)
    with pytest.raises(MismatchError, match="units"):
        extract(gated, mask[:-1])


def test_rectifiers_that_meet_where_a_branch_was_are_one() -> None:
    gated = GatedNetwork(network("ResNet", 0), INPUT_SHAPE)
    mask = np.array([unit.branch is None for unit in gated.units])
    small, x = extract(gated, mask), images()
    with torch.no_grad():
        gated.gates.copy_(torch.from_numpy(mask).float())
        assert torch.allclose(small(x), gated.eval()(x), atol=1e-5)
    relus = [node for node in small.graph.nodes if node.target is torch.nn.functional.relu]
    assert relus
    assert not any(source in relus for node in relus for source in node.all_input_nodes)


def test_gates_get_gradients_and_weights_are_those_of_the_network() -> None:
    plain = network("ResNet", 0)
    gated = GatedNetwork(plain, INPUT_SHAPE).train()
    gated(images()).square().sum().backward()
    assert gated.gates.grad is not None
    assert (gated.gates.grad != 0).float().mean() > 0.9
    own = {id(p) for p in plain.parameters()}
    assert {id(p) for p in gated.parameters()} == own | {id(gated.gates)}


def test_the_extracted_network_is_exported(tmp_path) -> None:
    import onnxruntime

    rng = np.random.default_rng(0)
    gated = GatedNetwork(network("ResNet", 0), INPUT_SHAPE, group=4)
    small = extract(gated, random_mask(gated, rng, 0.5))
    path = onnx_from_module(small, (1, *INPUT_SHAPE), tmp_path / "small.onnx")
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {session.get_inputs()[0].name: images(n=1).numpy()})
    assert np.allclose(found, small(images(n=1)).detach().numpy(), atol=1e-4)


class Dependent(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x if x.sum() > 0 else -x


class Shuffled(nn.Module):
    """What no rule follows: channels are shuffled between two convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1, groups=2)
        self.classifier = nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        b, c, h, w = x.shape
        x = x.view(b, 2, c // 2, h, w).transpose(1, 2).reshape(b, c, h, w)
        return self.classifier(self.second(x).mean((2, 3)))


def test_what_cannot_be_traced_or_followed_is_said() -> None:
    with pytest.raises(UsageError, match="trace"):
        GatedNetwork(Dependent(), INPUT_SHAPE)
    gated = GatedNetwork(Shuffled(), INPUT_SHAPE)
    assert {unit.layer for unit in gated.units} == {"second"}
    assert any("reshape that is no flattening" in why for why in gated.kept_whole)
    with pytest.raises(UsageError, match="none"):
        GatedNetwork(nn.Sequential(nn.Flatten(), nn.Linear(768, 3)), INPUT_SHAPE)
    with pytest.raises(UsageError, match="channels to a unit"):
        GatedNetwork(Shuffled(), INPUT_SHAPE, group=0)


@pytest.mark.parametrize("kind", [*KINDS, "attention"])
def test_nothing_that_a_teacher_learnt_is_left_in_a_fresh_part(kind: str) -> None:
    taught, shape = (odd(kind), ODD_SHAPE) if kind in ODD else (network(kind, 0), INPUT_SHAPE)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in taught.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    gated = GatedNetwork(taught, shape)
    whole = np.ones(len(gated.units), bool)
    kept = Part(gated, whole).state_dict()
    fresh, again, other = (Part(gated, whole).reset(seed).state_dict() for seed in (3, 3, 4))
    learnt = [name for name, tensor in kept.items() if tensor.is_floating_point() and tensor.numel() > 1]
    assert not [name for name in learnt if torch.equal(kept[name], fresh[name])]
    assert all(torch.equal(fresh[name], again[name]) for name in fresh)
    assert any(not torch.equal(fresh[name], other[name]) for name in fresh)
