"""The space of add-ons: the backbone is in it, and every encoding fits together."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from akd_deploy.errors import UnknownNameError, UsageError
from akd_deploy.models.student import student_from_architecture
from akd_deploy.search_space import load_space, space_of
from akd_deploy.search_space.augmented import IDENTITY, OPERATORS, AugmentedSpace
from akd_deploy.search_space.operations import INPUT, operations

SPACE = AugmentedSpace()
ON_A_LOADED_MACHINE = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@st.composite
def space_settings(draw: st.DrawFn) -> dict[str, Any]:
    stages = draw(st.integers(1, 4))

    def some(low: int, high: int) -> list[int]:
        return draw(st.lists(st.integers(low, high), min_size=stages, max_size=stages))

    return {
        "resolution": draw(st.integers(8, 64)),
        "in_channels": draw(st.sampled_from([1, 3])),
        "classes": draw(st.integers(2, 100)),
        "stem_width": draw(st.integers(1, 40)),
        "stem_stride": draw(st.integers(1, 2)),
        "widths": some(1, 64),
        "strides": some(1, 2),
        "depths": some(1, 3),
        "backbone": draw(st.sampled_from(["conv", "dw_separable", "mbconv3"])),
        "kernel": draw(st.sampled_from([3, 5])),
    }


@given(space_settings(), st.integers(0, 2**32 - 1))
@ON_A_LOADED_MACHINE
def test_what_one_operation_puts_out_is_what_its_readers_take_in(given_settings: dict[str, Any], seed: int) -> None:
    space = load_space("augmented", given_settings)
    steps = operations(space.layers(space.sample(np.random.default_rng(seed))))
    written = {INPUT: (space.input_shape[0], space.input_shape[1])}
    for step in steps:
        assert written[step.inputs[0]] == (step.in_channels, step.in_size), step
        if step.kind == "add":
            assert written[step.inputs[1]] == (step.out_channels, step.out_size), step
        if step.kind == "concat":
            assert step.out_channels == sum(written[name][0] for name in step.inputs), step
        written[step.name] = (step.out_channels, step.out_size)
    assert written[steps[-1].name] == (space.classes, 1)
    assert len({step.name for step in steps}) == len(steps)


@given(space_settings())
@ON_A_LOADED_MACHINE
def test_identity_everywhere_is_the_backbone_whatever_its_connections(given_settings: dict[str, Any]) -> None:
    space = load_space("augmented", given_settings)
    assert isinstance(space, AugmentedSpace)
    plain = space.backbone()
    assert [layer.name for layer in space.layers(plain)] == [
        "stem", *(f"b{i}" for i in range(space.points)), "head"
    ]  # fmt: skip
    connected = space.architecture({name: plain.choices[name] if name.endswith(".op") else 1 for name in space.choices})
    assert space.network_digest(connected) == space.network_digest(plain)
    alone = load_space("augmented", {**given_settings, "operators": [IDENTITY]})
    assert space.network_digest(plain) == alone.network_digest(alone.backbone())


def test_identity_everywhere_computes_what_the_same_backbone_of_space_mobile_does() -> None:
    mobile = load_space("mobile", {"layers": [[1], [1], [1]], "operators": ["conv"], "kernels": [3], "se_ratios": [0.0],
                                   "skips": ["identity"], "width_multipliers": [1.0]})  # fmt: skip
    there = student_from_architecture(mobile.sample(np.random.default_rng(0)), seed=3).eval()
    here = student_from_architecture(SPACE.backbone(), seed=4).eval()
    assert [p.shape for p in here.parameters()] == [p.shape for p in there.parameters()]
    here.load_state_dict(dict(zip(here.state_dict(), there.state_dict().values(), strict=True)))
    images = torch.randn(2, 1, 12, 12, generator=torch.Generator().manual_seed(0))
    assert torch.equal(here(images), there(images))


def test_it_is_as_large_as_published() -> None:
    assert SPACE.points == 3
    assert SPACE.size == 7**3 * 2 ** (2 * 3)
    assert len(OPERATORS) == 7


def test_each_operator_and_connection_gives_a_network_of_its_own() -> None:
    plain = dict(SPACE.backbone().choices)
    digests = {
        SPACE.network_digest(SPACE.architecture({**plain, "a1.op": op, "a1.skip": skip, "a1.dense": dense}))
        for op in OPERATORS
        for skip in (0, 1)
        for dense in (0, 1)
    }
    assert len(digests) == 6 * 4 + 1


def test_wider_backbones_go_from_narrow_to_wide_and_belong_to_spaces_beside() -> None:
    (family,) = SPACE.hand_shrunk()
    sizes = [sum(step.parameters for step in operations(space_of(a).layers(a))) for a in family]
    assert sizes == sorted(sizes)
    assert sizes[0] < sizes[-1] / 20


@pytest.mark.parametrize(
    ("given_settings", "named"),
    [({"backbone": "resnet"}, "backbone"), ({"kernel": 4}, "kernel"), ({"operators": ["conv7"]}, "operators"),
     ({"depths": [1, 1]}, "depths"), ({"widths": []}, "widths"), ({"strides": [0, 1, 1]}, "strides")],
)  # fmt: skip
def test_settings_that_make_no_space_are_named(given_settings: dict[str, Any], named: str) -> None:
    with pytest.raises(UsageError, match=named):
        load_space("augmented", given_settings)


def test_unknown_settings_are_answered_with_the_known_ones() -> None:
    with pytest.raises(UnknownNameError, match="backbone"):
        load_space("augmented", {"spine": "conv"})
