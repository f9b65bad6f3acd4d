from math import ceil, prod

import numpy as np
import pytest

from akd_deploy.export.granularity import (
    CPU_BLOCK,
    documented_granularity,
    granularity_from_rows,
    learned_granularity,
    step_of,
    with_channels,
)
from akd_deploy.kernel import Kernel
from akd_deploy.latency_table import TableRow
from akd_deploy.measurement import Measurement
from akd_deploy.target import Target


def conv(inside, outside, side=14, window=3):
    data, result = (1, inside, side, side), (1, outside, side, side)
    inputs = (data, (outside, inside, window, window), (outside,))
    return Kernel("Conv", inputs, (result,), attributes=(("kernel_size", (window, window)), ("groups", 1)))


def depthwise(channels, side=14):
    shape = (1, channels, side, side)
    attributes = (("kernel_size", (3, 3)), ("groups", channels))
    return Kernel("Conv", (shape, (channels, 1, 3, 3)), (shape,), attributes=attributes)


def tiled_s(kernel, tile):
    """A device that computes `tile` channels at once, and moves bytes one by one."""
    weight, result = kernel.inputs[1], kernel.outputs[0]
    up = [tile * ceil(n / tile) if n > 1 else 1 for n in weight[:2]]
    return 1e-6 + 2e-11 * prod(up) * prod(weight[2:]) * prod(result[2:]) + 4e-11 * kernel.traffic_bytes


def rows(tile, channels, count=60, noise=0.02, seed=0):
    rng = np.random.default_rng(seed)
    found = []
    for i in range(count):
        side = int(rng.choice([7, 14, 28]))
        one = conv(int(rng.choice(channels)), int(rng.choice(channels)), side, int(rng.choice([1, 3])))
        other = depthwise(int(rng.choice(channels)), side)
        kernels = ((one, 1), (other, 1)) if i % 3 else ((one, 1),)
        seconds = 4e-6 + sum(tiled_s(kernel, tile) for kernel, _ in kernels)
        samples = tuple((seconds * np.exp(rng.normal(0, noise, 5))).tolist())
        found.append(TableRow("probe", "f", tuple(sorted(kernels)), Measurement(f"p{i}", samples, (0,) * 5)))
    return found


ODD = tuple(range(4, 97, 4))


@pytest.mark.parametrize("tile", [8, 16, 32])
def test_the_tile_of_a_device_is_read_off_its_measurements(tile):
    found = granularity_from_rows(rows(tile, ODD), "latency_tables/t")
    assert found is not None
    assert found.multiple == tile
    assert found.source == "60 measurements in latency_tables/t"


def test_a_device_without_tiles_teaches_none():
    assert granularity_from_rows(rows(1, ODD), "t") is None


def test_measurements_that_cannot_tell_tiles_apart_teach_none():
    assert granularity_from_rows(rows(8, (32, 64, 96)), "t") is None
    assert granularity_from_rows(rows(16, ODD, count=8), "t") is None
    assert granularity_from_rows(rows(16, ODD, noise=0.8), "t") is None


@pytest.mark.parametrize("tile", [8, 16, 32])
def test_the_step_in_a_sweep_of_channels_is_the_tile(tile):
    assert learned_granularity(lambda kernel: tiled_s(kernel, tile), conv(64, 1)) == tile


def test_a_smooth_sweep_has_no_step():
    assert learned_granularity(lambda kernel: tiled_s(kernel, 1), conv(64, 1)) is None
    assert learned_granularity(lambda kernel: 1e-3, conv(64, 1)) is None
    assert step_of([]) is None


def test_other_channels_change_every_shape_they_are_in():
    one = conv(16, 18)
    wider = with_channels(one, outside=24)
    assert wider == conv(16, 24)
    assert with_channels(one, inside=32) == conv(32, 18)
    gemm = Kernel("Gemm", ((1, 18), (10, 18), (10,)), ((1, 10),))
    assert with_channels(gemm, inside=24) == Kernel("Gemm", ((1, 24), (10, 24), (10,)), ((1, 10),))
    residual = Kernel("Conv", (*one.inputs, one.outputs[0]), one.outputs, attributes=one.attributes)
    assert with_channels(residual, outside=24).inputs[3] == (1, 24, 14, 14)
    assert with_channels(depthwise(18), outside=24) == depthwise(18), "its channels are those of its input"


def test_what_engines_document_says_who_says_so():
    cpu, gpu = Target("t", "cpu", "openvino"), Target("t", "rtx", "tensorrt-rtx", "int8")
    assert documented_granularity(cpu).multiple == CPU_BLOCK
    assert documented_granularity(gpu).multiple == 16
    assert "NVIDIA" in documented_granularity(gpu).source
