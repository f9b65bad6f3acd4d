"""OpenVINO's fusion rules against lists that the runtime wrote, on machines that do not have it."""

from collections import Counter

import pytest
from fusion.fusion_networks import network
from fusion.openvino_networks import PRECISIONS, golden_names, read_golden

from akd_deploy.fusion.openvino_cpu import kernels_of

NAMES = golden_names()


def test_there_are_golden_lists_of_several_families():
    assert len(NAMES) >= 10


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", NAMES)
def test_kernels_are_the_runtimes(name, precision):
    found = Counter(kernel.kernel.signature for kernel in kernels_of(network(name), precision))
    assert found == Counter(read_golden(name)[precision])
