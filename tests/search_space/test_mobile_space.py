"""The mobile space: every setting gives networks whose layers fit together."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from akd_deploy.architecture import Architecture
from akd_deploy.errors import MismatchError, UnknownNameError, UsageError
from akd_deploy.search_space import Layer, load_space, space_of
from akd_deploy.search_space.mobile import MOBILENET_SETTINGS, MobileSpace, rounded_channels
from akd_deploy.search_space.operations import INPUT, operations


@st.composite
def space_settings(draw: st.DrawFn) -> dict[str, Any]:
    """Settings of any sensible mobile space: 8 to 224 pixels, one to seven blocks."""
    blocks = draw(st.integers(1, 7))

    def some(options: list[Any]) -> list[Any]:
        return draw(st.lists(st.sampled_from(options), min_size=1, max_size=len(options), unique=True))

    return {
        "resolution": draw(st.integers(8, 224)),
        "in_channels": draw(st.sampled_from([1, 3, 4])),
        "classes": draw(st.integers(1, 1000)),
        "stem_width": draw(st.integers(1, 64)),
        "stem_stride": draw(st.integers(1, 3)),
        "widths": draw(st.lists(st.integers(1, 320), min_size=blocks, max_size=blocks)),
        "strides": draw(st.lists(st.integers(1, 3), min_size=blocks, max_size=blocks)),
        "layers": [some([1, 2, 3, 4]) for _ in range(blocks)],
        "operators": some(["conv", "dw_separable", "mbconv3", "mbconv6"]),
        "kernels": some([1, 3, 5, 7]),
        "se_ratios": some([0.0, 0.25, 0.5]),
        "skips": some(["none", "identity", "pool"]),
        "width_multipliers": some([0.25, 0.5, 0.75, 1.0, 1.25, 1.5]),
        "activation": draw(st.sampled_from(["relu", "hardswish"])),
    }


ON_A_LOADED_MACHINE = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
SEEDS = st.integers(0, 2**32 - 1)
DIGITS = load_space("mobile")


# --- settings to layers -----------------------------------------------------------------------------------------


@given(space_settings(), SEEDS)
@ON_A_LOADED_MACHINE
def test_what_one_layer_puts_out_is_what_the_next_takes_in(given_settings: dict[str, Any], seed: int) -> None:
    space = load_space("mobile", given_settings)
    layers = space.layers(space.sample(np.random.default_rng(seed)))
    channels, size, _ = space.input_shape
    for layer in layers:
        assert (layer.in_channels, layer.in_size) == (channels, size), layer
        channels, size = layer.out_channels, layer.out_size
    assert (channels, size) == (space.classes, 1)
    assert [layer.op for layer in layers].count("head") == 1
    assert len({layer.name for layer in layers}) == len(layers)


@given(space_settings(), SEEDS)
@ON_A_LOADED_MACHINE
def test_what_one_operation_puts_out_is_what_its_readers_take_in(given_settings: dict[str, Any], seed: int) -> None:
    space = load_space("mobile", given_settings)
    written = {INPUT: (space.input_shape[0], space.input_shape[1])}
    for step in operations(space.layers(space.sample(np.random.default_rng(seed)))):
        assert written[step.inputs[0]] == (step.in_channels, step.in_size), step
        if step.kind == "add":
            assert written[step.inputs[1]] == (step.out_channels, step.out_size), step
        if step.kind == "scale":
            assert written[step.inputs[1]] == (step.out_channels, 1), step
        assert step.in_channels % step.groups == 0
        assert step.name not in written
        written[step.name] = (step.out_channels, step.out_size)


@given(st.integers(1, 224), st.sampled_from([1, 3, 5, 7]), st.integers(1, 3), st.sampled_from(["conv", "dw_separable"]))
@ON_A_LOADED_MACHINE
def test_out_size_is_what_torch_gives(size: int, kernel_size: int, stride: int, op: str) -> None:
    layer = Layer("l", op, 1, 1, size, kernel_size=kernel_size, stride=stride, skip="pool")
    image = torch.zeros(1, 1, size, size)
    convolved = F.conv2d(image, torch.zeros(1, 1, kernel_size, kernel_size), stride=stride, padding=kernel_size // 2)
    assert convolved.shape[2:] == (layer.out_size, layer.out_size)
    pooled = F.avg_pool2d(image, 3, stride=stride, padding=1)
    assert pooled.shape[2:] == (layer.out_size, layer.out_size)
    assert operations([layer])[-1].out_size == layer.out_size


def test_a_skip_that_cannot_be_is_none() -> None:
    space = load_space("mobile", {"skips": ["identity"], "layers": [[2], [2], [2]], "se_ratios": [0.0]})
    layers = space.layers(space.sample(np.random.default_rng(0)))
    for layer in layers:
        if layer.op not in ("stem", "head"):
            possible = layer.in_channels == layer.out_channels and layer.stride == 1
            assert layer.skip == ("identity" if possible else "none")


def test_a_pooled_skip_passes_a_stride_and_not_a_change_of_width() -> None:
    space = load_space("mobile", {"skips": ["pool"], "stem_width": 16, "widths": [16, 24], "strides": [2, 1],
                                  "layers": [[1], [1]], "width_multipliers": [1.0]})  # fmt: skip
    _, first, second, _ = space.layers(space.sample(np.random.default_rng(0)))
    assert (first.stride, first.skip) == (2, "pool")
    assert second.skip == "none"


@pytest.mark.parametrize(("channels", "expected"), [(0.4, 4), (5.9, 4), (6, 8), (8, 8), (17.9, 16), (18, 20)])
def test_widths_are_rounded_to_the_nearest_four(channels: float, expected: int) -> None:
    assert rounded_channels(channels) == expected


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("resolution", 0),
        ("resolution", "12"),
        ("resolution", 12.5),
        ("in_channels", True),
        ("classes", 0),
        ("stem_stride", -1),
        ("strides", [1, 0, 2]),
        ("strides", 2),
        ("widths", [16, -24, 48]),
        ("layers", [[1, 2], [], [1]]),
        ("layers", [[1, 2], [0], [1]]),
        ("layers", [1, 2, 3]),
        ("kernels", [3, 4]),
        ("kernels", [3, 3]),
        ("kernels", [[3]]),
        ("kernels", []),
        ("se_ratios", [-0.25]),
        ("skips", ["none", "dense"]),
        ("operators", ["conv", "mbconv9"]),
        ("width_multipliers", [0.0]),
        ("width_multipliers", [float("nan")]),
        ("activation", "tanh"),
    ],
)
def test_a_setting_that_makes_no_sense_is_named_with_what_it_must_be(key: str, value: object) -> None:
    with pytest.raises(UsageError, match=key) as caught:
        load_space("mobile", {key: value})
    assert "Write" in caught.value.next


@pytest.mark.parametrize("change", [{"strides": [1, 2]}, {"layers": [[1]]}, {"widths": []}])
def test_lists_of_different_lengths_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="one per width"):
        load_space("mobile", change)


def test_unknown_names_are_told_with_the_known_ones() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'resolution'"):
        load_space("mobile", {"resolutoin": 12})
    with pytest.raises(UnknownNameError, match="mobile"):
        load_space("mobil")


def test_the_mobilenet_settings_are_a_space_of_photographs() -> None:
    space = load_space("mobile", MOBILENET_SETTINGS)
    assert space.input_shape == (3, 224, 224)
    layers = space.layers(space.sample(np.random.default_rng(0)))
    assert layers[-1].in_size == 7
    assert space.classes == 1000


# --- encodings --------------------------------------------------------------------------------------------------


@given(space_settings(), SEEDS)
@ON_A_LOADED_MACHINE
def test_tokens_round_trip_and_every_sample_is_valid(given_settings: dict[str, Any], seed: int) -> None:
    space = load_space("mobile", given_settings)
    architecture = space.sample(np.random.default_rng(seed))
    assert space.checked(architecture) is architecture
    tokens = space.tokens(architecture)
    assert space.from_tokens(tokens) == architecture
    assert (space.tokens(space.from_tokens(tokens.tolist())) == tokens).all()
    assert space_of(architecture).layers(architecture) == space.layers(architecture)


def test_size_is_the_product_of_options_and_every_encoding_is_distinct() -> None:
    space = load_space(
        "mobile",
        {"widths": [8], "strides": [1], "layers": [[1, 2]], "kernels": [3, 5], "operators": ["conv", "mbconv3"],
         "se_ratios": [0.0], "skips": ["none", "identity"], "width_multipliers": [0.5, 1.0]},
    )  # fmt: skip
    assert space.size == 2 * 2 * 1 * 2 * 2 * 2
    counts = [len(options) for options in space.choices.values()]
    everything = {space.from_tokens(tokens) for tokens in np.ndindex(*counts)}
    assert len(everything) == space.size


def test_size_of_a_large_space_does_not_overflow() -> None:
    space = load_space(
        "mobile", {**MOBILENET_SETTINGS, "widths": [16] * 30, "strides": [1] * 30, "layers": [[1, 2]] * 30}
    )
    assert space.size == (4 * 3 * 2 * 3 * 2 * 3) ** 30


def test_one_seed_gives_one_sample_and_another_another() -> None:
    first, again, other = (DIGITS.sample_tokens(50, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert (first == again).all()
    assert (first != other).any()


def test_samples_are_uniform_over_options() -> None:
    tokens = DIGITS.sample_tokens(6_000, np.random.default_rng(0))
    for column, options in enumerate(DIGITS.choices.values()):
        shares = np.bincount(tokens[:, column], minlength=len(options)) / len(tokens)
        # Five standard errors.
        assert np.abs(shares - 1 / len(options)).max() < 5 * (0.25 / len(tokens)) ** 0.5


def test_encodings_of_the_same_network_share_a_digest_and_others_do_not() -> None:
    space = load_space("mobile", {"widths": [16, 24], "strides": [1, 2], "layers": [[1], [1]], "kernels": [3],
                                  "se_ratios": [0.0], "width_multipliers": [0.5, 0.55, 1.0]})  # fmt: skip
    counts = [len(options) for options in space.choices.values()]
    by_digest: dict[str, set[str]] = {}
    by_layers: dict[str, set[str]] = {}
    for tokens in np.ndindex(*counts):
        architecture = space.from_tokens(tokens)
        digest, layers = space.network_digest(architecture), repr(space.layers(architecture))
        by_digest.setdefault(digest, set()).add(layers)
        by_layers.setdefault(layers, set()).add(digest)
    assert all(len(networks) == 1 for networks in by_digest.values())
    assert all(len(digests) == 1 for digests in by_layers.values())
    # 16 × 0.5 and 16 × 0.55 are both 8 channels, and no block's width allows an identity skip at a stride of 2.
    assert len(by_digest) < space.size / 2


def test_a_choice_that_is_unknown_missing_or_foreign_is_named() -> None:
    choices = dict(DIGITS.sample(np.random.default_rng(0)).choices)
    with pytest.raises(UnknownNameError, match=re.escape("b0.colour")):
        DIGITS.architecture({**choices, "b0.colour": 1})
    with pytest.raises(UsageError, match=re.escape("b1.kernel")):
        DIGITS.architecture({key: value for key, value in choices.items() if key != "b1.kernel"})
    with pytest.raises(UsageError, match=r"b1.kernel.*found 9.*\(3, 5\)"):
        DIGITS.architecture({**choices, "b1.kernel": 9})


def test_an_architecture_of_other_settings_or_another_space_is_refused() -> None:
    architecture = DIGITS.sample(np.random.default_rng(0))
    other = load_space("mobile", {"classes": 11})
    with pytest.raises(MismatchError, match="11"):
        other.layers(architecture)
    with pytest.raises(MismatchError, match="elsewhere"):
        DIGITS.checked(Architecture("elsewhere", architecture.settings, architecture.choices))


def test_an_architecture_that_leaves_settings_out_means_their_defaults() -> None:
    space = load_space("mobile", {"classes": 7})
    complete = space.sample(np.random.default_rng(0))
    brief = Architecture("mobile", {"classes": 7}, complete.choices)
    assert space_of(brief).layers(brief) == space.layers(complete)


@pytest.mark.parametrize("tokens", [[0] * 17, [0] * 19, [-1] + [0] * 17, [99] + [0] * 17])
def test_tokens_of_the_wrong_number_or_range_are_refused(tokens: list[int]) -> None:
    with pytest.raises(UsageError, match="token"):
        DIGITS.from_tokens(tokens)


# --- segments and baselines -------------------------------------------------------------------------------------


def test_a_segments_layers_depend_on_the_choices_it_names_alone() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        values, others = dict(DIGITS.sample(rng).choices), dict(DIGITS.sample(rng).choices)
        for segment in DIGITS.segments:
            mixed = {**others, **{name: values[name] for name in segment.choices}}
            assert DIGITS.segment_layers(segment, mixed) == DIGITS.segment_layers(segment, values)


def test_hand_shrunk_families_are_plain_and_grow_with_width() -> None:
    space = MobileSpace({"skips": ["none"], "kernels": [5]})
    families = space.hand_shrunk()
    assert len(families) == 4
    for family in families:
        sizes = []
        for architecture in family:
            layers = space_of(architecture).layers(architecture)
            assert (layers[-1].out_channels, layers[0].in_channels) == (space.classes, 1)
            assert all(layer.se_ratio == 0 for layer in layers)
            sizes.append(sum(step.parameters for step in operations(layers)))
        assert sizes == sorted(sizes)
        assert sizes[-1] > 4 * sizes[0]


def test_mobilenet_is_the_mobile_space_at_its_own_settings() -> None:
    space = load_space("mobilenet", {"classes": 10})
    architecture = space.sample(np.random.default_rng(0))
    assert space.input_shape == (3, 224, 224)
    assert space.classes == 10
    assert architecture.space == "mobile"
    assert space_of(architecture).layers(architecture) == space.layers(architecture)
