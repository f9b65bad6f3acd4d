"""Operations of one layer of every kind, and their counts, written down by hand."""

from __future__ import annotations

import pytest

from akd_deploy.search_space import Layer
from akd_deploy.search_space.operations import operations


def names(layer: Layer) -> list[str]:
    return [step.name.removeprefix("l.") for step in operations([layer])]


def test_a_convolution_is_one_operation() -> None:
    (step,) = operations([Layer("l", "conv", 8, 16, 9, kernel_size=5, stride=2)])
    assert (step.in_channels, step.out_channels, step.out_size, step.groups) == (8, 16, 5, 1)
    assert step.macs == 5 * 5 * 16 * 8 * 25
    assert step.parameters == 16 * 8 * 25 + 16


def test_an_inverted_bottleneck_expands_convolves_squeezes_and_projects_in_order() -> None:
    layer = Layer("l", "mbconv", 8, 8, 6, kernel_size=3, expansion=3, se_ratio=0.5, skip="identity")
    assert names(layer) == [
        "expand", "depthwise", "se.squeeze", "se.reduce", "se.expand", "se.scale", "project", "add",
    ]  # fmt: skip
    steps = {step.name: step for step in operations([layer])}
    assert (steps["l.depthwise"].groups, steps["l.depthwise"].out_channels) == (24, 24)
    # the squeeze is a share of the layer's own input, not of the expanded one
    assert steps["l.se.reduce"].out_channels == 4
    assert steps["l.project"].activation == "none"
    assert steps["l.add"].inputs == ("l.project", "input")
    assert sum(step.macs for step in steps.values()) == (
        36 * 24 * 8 + 36 * 24 * 9 + 24 * 4 + 4 * 24 + 36 * 8 * 24
    )  # fmt: skip


def test_a_pooled_skip_is_pooled_beside_the_main_path() -> None:
    layer = Layer("l", "dw_separable", 8, 8, 7, stride=2, skip="pool")
    assert names(layer) == ["depthwise", "project", "skip", "add"]
    pool, add = operations([layer])[-2:]
    assert (pool.inputs, pool.stride, pool.out_size) == (("input",), 2, 4)
    assert add.inputs == ("l.project", "l.skip")


def test_pools_are_layers_of_one_operation_without_weights() -> None:
    for op, kind in (("max_pool", "max_pool"), ("avg_pool", "pool")):
        (step,) = operations([Layer("l", op, 8, 8, 7, kernel_size=3)])
        assert (step.kind, step.out_channels, step.out_size, step.macs, step.parameters) == (kind, 8, 7, 0, 0)


def test_a_dense_layer_is_joined_with_its_input_and_brought_back_to_its_width() -> None:
    layer = Layer("l", "conv", 8, 8, 6, kernel_size=3, skip="dense_identity")
    assert names(layer) == ["conv", "concat", "join", "add"]
    _, concat, join, add = operations([layer])
    assert (concat.inputs, concat.in_channels, concat.out_channels) == (("input", "l.conv"), 8, 16)
    assert (join.in_channels, join.out_channels, join.kernel_size, join.activation) == (16, 8, 1, "none")
    assert add.inputs == ("l.join", "input")
    assert names(Layer("l", "conv", 8, 8, 6, kernel_size=3, skip="dense")) == ["conv", "concat", "join"]


def test_a_head_counts_one_bias_per_class() -> None:
    pool, classifier = operations([Layer("head", "head", 48, 10, 3)])
    assert (pool.macs, pool.parameters) == (0, 0)
    assert (classifier.macs, classifier.parameters) == (480, 490)


def test_layers_are_chained_through_their_last_operation() -> None:
    steps = operations([Layer("a", "conv", 3, 8, 8), Layer("b", "dw_separable", 8, 8, 8)], source="picture")
    assert steps[0].inputs == ("picture",)
    assert steps[1].inputs == ("a.conv",)


def test_an_operation_nobody_knows_is_refused() -> None:
    with pytest.raises(ValueError, match="transformer"):
        operations([Layer("l", "transformer", 8, 8, 8)])
